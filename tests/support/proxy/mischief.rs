//! The ways to misbehave.

use std::time::Duration;

/// Seen from the proxy: which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
    Both,
}

impl Direction {
    pub(super) fn covers(self, other: Direction) -> bool {
        self == Direction::Both || self == other
    }
}

/// Of the confirms that the broker sends from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// So many of the next.
    Next(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// Neither takes nor gives anything, as a network that swallows packets; nothing is lost once it is cleared.
    Stall(Direction),
    /// The same in both directions of connections to PostgreSQL that are for SQL, not for replication.
    StallSql,
    /// Ends this stream (FIN) of each connection that there is now; the other goes on until its own end.
    HalfClose(Direction),
    /// Gives one byte at a time.
    Slices,
    /// Everything arrives so much later, in both directions.
    Latency(Duration),
    /// Confirms that never arrive.
    DropAcks(Which),
    /// Confirms arrive in bursts, late.
    DelayAcks,
    /// Confirms of the same kind become a `multiple`, as many as the broker might have put into one.
    MergeAcks,
    /// Confirms arrive in another order. (RabbitMQ sends them in any: each queue confirms when it can.)
    ReorderAcks,
    /// Heartbeat frames of AMQP; of PostgreSQL the keepalives and the status updates.
    SwallowHeartbeats(Direction),
    /// Cuts (RST) a connection after exactly so many further bytes in either one of its directions.
    CutAfter(u64),
    /// Ends (FIN) a connection that is made from now on, once it has carried so many frames of the broker. The first three are `start`, `tune` and `open-ok`.
    EndAfterFrames(u64),
}

/// What is set.
#[derive(Clone, Debug, Default)]
pub(super) struct Active {
    pub(super) stall: Option<Direction>,
    pub(super) stall_sql: bool,
    /// A number for each half-close, and what it closes.
    pub(super) half_close: (u64, Option<Direction>),
    pub(super) slices: bool,
    pub(super) latency: Duration,
    pub(super) drop_all: bool,
    pub(super) drop_next: u64,
    pub(super) delay: bool,
    pub(super) merge: bool,
    pub(super) reorder: bool,
    pub(super) swallow: Option<Direction>,
    /// A number for each time that it was set, from which a connection counts anew.
    pub(super) cut_after: (u64, Option<u64>),
    pub(super) end_after: Option<u64>,
}

impl Active {
    pub(super) fn set(&mut self, mischief: Mischief) {
        match mischief {
            Mischief::Stall(direction) => self.stall = Some(direction),
            Mischief::StallSql => self.stall_sql = true,
            Mischief::HalfClose(direction) => self.half_close = (self.half_close.0 + 1, Some(direction)),
            Mischief::Slices => self.slices = true,
            Mischief::Latency(latency) => self.latency = latency,
            Mischief::DropAcks(Which::All) => self.drop_all = true,
            Mischief::DropAcks(Which::Next(count)) => self.drop_next = count,
            Mischief::DelayAcks => self.delay = true,
            Mischief::MergeAcks => self.merge = true,
            Mischief::ReorderAcks => self.reorder = true,
            Mischief::SwallowHeartbeats(direction) => self.swallow = Some(direction),
            Mischief::CutAfter(bytes) => self.cut_after = (self.cut_after.0 + 1, Some(bytes)),
            Mischief::EndAfterFrames(frames) => self.end_after = Some(frames),
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Active {
            // Each connection remembers which of them it has seen.
            half_close: (self.half_close.0, None),
            cut_after: (self.cut_after.0, None),
            ..Active::default()
        };
    }

    pub(super) fn stalls(&self, direction: Direction, sql: bool) -> bool {
        self.stall_sql && sql || self.stall.is_some_and(|stall| stall.covers(direction))
    }

    pub(super) fn swallows(&self, direction: Direction) -> bool {
        self.swallow.is_some_and(|swallow| swallow.covers(direction))
    }

    pub(super) fn touches_confirms(&self) -> bool {
        self.holds_confirms() || self.drop_all || self.drop_next > 0
    }

    /// Confirms wait for their release.
    pub(super) fn holds_confirms(&self) -> bool {
        self.delay || self.merge || self.reorder
    }
}
