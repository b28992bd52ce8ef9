//! What the proxy has seen pass, in order.

use std::time::SystemTime;

#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) counts: Counts,
    /// Of PostgreSQL: every standby status update.
    pub(crate) flushes: Vec<Flush>,
    /// Of RabbitMQ: what was published, and what was said of it, as it was let through.
    pub(crate) passed: Vec<Passed>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) bytes_to_server: u64,
    pub(crate) bytes_to_client: u64,
    pub(crate) published: u64,
    /// Frames: a `multiple` is one.
    pub(crate) acks: u64,
    pub(crate) nacks: u64,
    pub(crate) returns: u64,
    /// Confirms that were not let through.
    pub(crate) dropped: u64,
    /// Confirms that became part of a `multiple`.
    pub(crate) merged: u64,
    /// Confirms that came before one of an earlier publish that had been there already.
    pub(crate) reordered: u64,
    /// `multiple` confirms that came right after several returns of publishes among theirs.
    pub(crate) returns_in_multiple: u64,
    /// Connections that [`super::Mischief::CutAfter`] has cut.
    pub(crate) cuts: u64,
    /// Heartbeats, keepalives and status updates that were not let through.
    pub(crate) swallowed: u64,
}

/// What a standby status update says (`r` inside CopyData).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flush {
    pub(crate) at: SystemTime,
    pub(crate) connection: u64,
    /// Received so far.
    pub(crate) written: u64,
    /// What the server may forget.
    pub(crate) flushed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) at: SystemTime,
    pub(crate) connection: u64,
    pub(crate) channel: u16,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// On a channel with confirms, which number their publishes from 1.
    Published {
        tag: u64,
    },
    Ack {
        tag: u64,
        multiple: bool,
    },
    Nack {
        tag: u64,
        multiple: bool,
    },
    /// Names no tag.
    Return,
}

impl Evidence {
    pub(super) fn note(&mut self, connection: u64, channel: u16, what: What) {
        let count = match what {
            What::Published { .. } => &mut self.counts.published,
            What::Ack { .. } => &mut self.counts.acks,
            What::Nack { .. } => &mut self.counts.nacks,
            What::Return => &mut self.counts.returns,
        };
        *count += 1;
        self.passed.push(Passed { at: SystemTime::now(), connection, channel, what });
    }
}
