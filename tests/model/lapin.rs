//! One channel of lapin 4.12: what `acknowledgement.rs` and `returned_messages.rs` do with returns and confirms.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use postrider::confirms::Outcome;
use postrider::event::Position;

#[derive(Debug, Default)]
pub(crate) struct Lapin {
    next_tag: u64,
    pending: BTreeSet<u64>,
    returns: VecDeque<Position>,
    results: BTreeMap<u64, Outcome>,
    closed: bool,
}

impl Lapin {
    /// A publish: registers its confirm. On a closed channel its future fails.
    pub(crate) fn publish(&mut self) -> u64 {
        self.next_tag += 1;
        if self.closed {
            self.results.insert(self.next_tag, Outcome::Failed);
        } else {
            self.pending.insert(self.next_tag);
        }
        self.next_tag
    }

    pub(crate) fn poll(&mut self, tag: u64) -> Option<Outcome> {
        self.results.remove(&tag)
    }

    pub(crate) fn on_return(&mut self, position: Position) {
        self.returns.push_back(position);
    }

    /// A confirm for one tag takes the oldest waiting return, whomever it belongs to.
    pub(crate) fn on_confirm(&mut self, tag: u64, ack: bool) {
        assert!(self.pending.remove(&tag), "the model confirmed tag {tag} twice");
        let carried = self.returns.pop_front();
        self.results.insert(tag, if ack { Outcome::Ack(carried) } else { Outcome::Nack(carried) });
    }

    /// `multiple` completes its tags in the order of a hash map: any order.
    pub(crate) fn on_multiple(&mut self, mut tags: Vec<u64>, ack: bool, mut seed: u64) {
        while !tags.is_empty() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let tag = tags.swap_remove(usize::try_from(seed >> 33).unwrap() % tags.len());
            self.on_confirm(tag, ack);
        }
    }

    /// The channel or its connection is gone. Waiting returns are never handed out.
    pub(crate) fn on_error(&mut self) {
        self.closed = true;
        for tag in std::mem::take(&mut self.pending) {
            self.results.insert(tag, Outcome::Failed);
        }
    }
}
