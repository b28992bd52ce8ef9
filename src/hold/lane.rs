//! The events of one ordering key.

use std::collections::VecDeque;
use std::time::Instant;

use crate::event::Position;

use super::{Item, State};

/// The undecided events of a key, in commit order.
///
/// While the lane is not stuck, what is on the wire is a prefix of the queue, so the next event stands at index `on_wire`.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) queue: VecDeque<Position>,
    pub(super) on_wire: usize,
    /// Events that were refused and are not yet delivered.
    pub(super) refused: usize,
    /// Events that can never be published.
    pub(super) poisoned: usize,
    /// Delivered events that still have an earlier one in the queue. Only pipelined keys have any, at most a window.
    pub(super) early: Vec<Position>,
    /// Parked events of the key that are on their way from the database.
    pub(super) coming: usize,
    /// Where the candidate stands.
    pub(super) place: Place,
    /// Counted in the number of held keys.
    pub(super) held: bool,
}

/// Where a lane's candidate stands. A lane without a candidate is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    Nowhere,
    Ready(Position),
    Timer(Instant, Position),
    Exchange(Position),
}

impl Place {
    pub(super) fn position(self) -> Option<Position> {
        match self {
            Place::Nowhere => None,
            Place::Ready(position) | Place::Timer(_, position) | Place::Exchange(position) => Some(position),
        }
    }
}

impl Lane {
    /// Nothing is sent behind something that was refused or can never be sent.
    pub(super) fn is_stuck(&self) -> bool {
        self.refused > 0 || self.poisoned > 0
    }

    /// Nearly always the last one: only what comes from the dead letters, or again, is older than what is here.
    pub(super) fn insert(&mut self, position: Position) {
        if self.queue.back().is_none_or(|last| *last < position) {
            self.queue.push_back(position);
        } else if let Err(index) = self.queue.binary_search(&position) {
            self.queue.insert(index, position);
        }
    }

    /// Takes out what is not on the wire and is not delivered: it is parked, or goes back to the dead letters.
    pub(super) fn take_out(&mut self, position: Position, item: &Item) {
        let Ok(index) = self.queue.binary_search(&position) else { return };
        self.queue.remove(index);
        self.refused -= usize::from(item.refusals > 0);
        self.poisoned -= usize::from(matches!(item.state, State::Poisoned(_)));
    }

    /// Takes a delivered event out of the queue. Returns how many events of the queue are before it.
    ///
    /// Logarithmic but for the shift, which is bounded by the window: only events on the wire leave.
    pub(super) fn remove(&mut self, position: Position) -> usize {
        let Ok(index) = self.queue.binary_search(&position) else { return 0 };
        self.queue.remove(index);
        if index > 0 {
            self.early.push(position);
        } else if !self.early.is_empty() {
            match self.queue.front() {
                Some(head) => self.early.retain(|early| early > head),
                None => self.early.clear(),
            }
        }
        index
    }

    /// How many later events were delivered before `position`. Each is counted once.
    pub(super) fn overtakers(&mut self, position: Position) -> usize {
        let before = self.early.len();
        self.early.retain(|early| *early < position);
        before - self.early.len()
    }
}
