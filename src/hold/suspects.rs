//! Events that were in flight when a channel failed (rule R5).

use std::collections::BTreeSet;

use crate::event::Position;

use super::Hold;

/// The events of which one may have closed a channel. Each is published alone until it has a verdict.
///
/// Outlives the session: the next one reads the same events again. One that never comes again hinders nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects(BTreeSet<Position>);

impl Suspects {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn contains(&self, position: Position) -> bool {
        self.0.contains(&position)
    }

    pub(super) fn extend(&mut self, positions: impl IntoIterator<Item = Position>) {
        self.0.extend(positions);
    }

    pub(super) fn remove(&mut self, position: Position) {
        self.0.remove(&position);
    }

    pub(super) fn retain(&mut self, keeps: impl Fn(Position) -> bool) {
        self.0.retain(|position| keeps(*position));
    }
}

impl Hold {
    /// What the next session's [`Hold::new`] has to know.
    pub fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// The broker answered a later method on the channel, so this publish did not close it: AMQP handles the methods of a
    /// channel in order. The publish stays on the wire, and others may go beside it.
    pub fn acquitted(&mut self, position: Position) {
        if self.alone == Some(position) {
            self.clear_suspicion(position);
        }
    }

    pub(super) fn clear_suspicion(&mut self, position: Position) {
        self.suspects.remove(position);
        if self.alone == Some(position) {
            self.alone = None;
        }
    }
}
