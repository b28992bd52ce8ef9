//! The account that is kept beside the core: what may be published now, and what has arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use postrider::event::{Ordering, Position};

use crate::wal::{Policy, Wal};

#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Published, and nothing has happened since that allows another publish.
    published: BTreeSet<Position>,
    /// On the wire.
    undecided: BTreeSet<Position>,
    /// Refused in this session and not delivered since, with the end of the back-off.
    refused: BTreeMap<Position, Instant>,
    /// In flight when a channel failed, and without a verdict since.
    suspects: BTreeSet<Position>,
    /// Given up, by a person or by its route: nothing waits for it any more.
    given_up: BTreeSet<Position>,
    /// Parked alone: nothing waits for it, nor it for anything, and yet it is not to be lost.
    skipped: BTreeSet<Position>,
    /// Accepted by a queue at least once: what consumers have seen.
    arrived: BTreeSet<Position>,
}

impl Account {
    /// An event goes onto the wire, or out with a probe.
    pub(crate) fn publish(
        &mut self,
        position: Position,
        wal: &Wal,
        now: Instant,
        probe: bool,
    ) -> Result<(), &'static str> {
        let row = wal.rows[&position];
        let sibling = |other: &&Position| wal.rows[*other].meets(row) && **other < position;
        if !self.published.insert(position) {
            return Err("was published again for no reason");
        }
        if row.ordering() == Ordering::Key {
            if self.undecided.iter().any(|other| wal.rows[other].meets(row)) {
                return Err("of ordering `key` was published beside an undecided one of its key");
            }
            if !self.skipped.contains(&position) && wal.rows.keys().filter(sibling).any(|other| !self.is_past(*other)) {
                return Err("of ordering `key` was published before an earlier one of its key had arrived");
            }
        }
        if self.refused.keys().any(|other| sibling(&other)) {
            return Err("was published while its key was held");
        }
        if !probe {
            if self.refused.get(&position).is_some_and(|at| now < *at) {
                return Err("was published before its back-off was over");
            }
            let alone =
                self.suspects.contains(&position) || self.undecided.iter().any(|other| self.suspects.contains(other));
            if alone && !self.undecided.is_empty() {
                return Err("was published beside another, and one of them is a suspect");
            }
            self.undecided.insert(position);
        }
        Ok(())
    }

    pub(crate) fn delivered(&mut self, position: Position) {
        self.undecided.remove(&position);
        self.refused.remove(&position);
        self.suspects.remove(&position);
    }

    pub(crate) fn refused(&mut self, position: Position, retry_at: Instant) {
        self.delivered(position);
        self.published.remove(&position);
        self.refused.insert(position, retry_at);
    }

    /// It is in the dead letters, or about to be.
    pub(crate) fn parked(&mut self, position: Position, holds_key: bool) {
        self.undecided.remove(&position);
        self.refused.remove(&position);
        self.published.remove(&position);
        if !holds_key {
            self.skipped.insert(position);
        }
    }

    pub(crate) fn give_up(&mut self, position: Position) {
        self.delivered(position);
        self.given_up.insert(position);
    }

    /// As [`Self::give_up`], wherever it is: it may be on the wire.
    pub(crate) fn forsake(&mut self, position: Position) {
        self.given_up.insert(position);
    }

    pub(crate) fn is_given_up(&self, position: Position) -> bool {
        self.given_up.contains(&position)
    }

    fn is_past(&self, position: Position) -> bool {
        self.arrived.contains(&position) || self.given_up.contains(&position) || self.skipped.contains(&position)
    }

    /// It has a verdict.
    pub(crate) fn acquit(&mut self, position: Position) {
        self.suspects.remove(&position);
    }

    /// The one event in flight is poison, or waits for its exchange.
    pub(crate) fn judged(&mut self, position: Position, wal: &Wal) {
        self.suspects.remove(&position);
        let row = wal.rows[&position];
        if (row.refused || row.unfit) && row.policy == Policy::SkipPoison {
            self.skipped.insert(position);
        }
    }

    /// The channel is gone: everything may be published again.
    pub(crate) fn channel_lost(&mut self, channel_failed: bool) {
        if channel_failed && self.undecided.len() > 1 {
            self.suspects.extend(&self.undecided);
        }
        self.undecided.clear();
        self.published.clear();
    }

    pub(crate) fn session_ended(&mut self) {
        self.channel_lost(false);
        self.refused.clear();
    }

    pub(crate) fn has_arrived(&self, position: Position) -> bool {
        self.arrived.contains(&position)
    }

    /// A queue accepted it. First arrivals of a key are in commit order, unless both events are pipelined. Returns the
    /// event that should have come before.
    pub(crate) fn arrive(&mut self, position: Position, wal: &Wal) -> Option<Position> {
        if !self.arrived.insert(position) || self.skipped.contains(&position) {
            return None;
        }
        let row = wal.rows[&position];
        let before = wal.rows.range(..position).find(|(earlier, other)| {
            let strict = other.ordering() == Ordering::Key || row.ordering() == Ordering::Key;
            strict && other.meets(row) && !self.is_past(**earlier)
        });
        before.map(|(earlier, _)| *earlier)
    }
}
