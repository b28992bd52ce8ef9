//! Which event a place in the order names. The slot gives events again, and what is in the dead letters is not published twice:
//! that it is the same event, its position alone does not say. A source that was rewound without its record writes other events
//! at the same positions, and people edit rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Hold, OutOfOrder};
use crate::event::{Event, Position};

/// Parts of positions from here on are for events whose own place is taken by the dead letter of another one. A format that
/// makes several messages of a row numbers them from 0.
const FIRST_SPARE_PART: u8 = 128;

#[derive(Debug, Default)]
pub(super) struct Places {
    /// What has left the dead letters before the slot has given it again, with [`super::Lot::event`] of it.
    left: BTreeMap<Position, u64>,
    displaced: Vec<Displaced>,
}

/// An event that got another place than its own, where the dead letter of another event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    pub id: Arc<str>,
    pub from: Position,
    pub to: Position,
}

impl Hold {
    /// Where an event goes that the slot gives: `None` if it is in the dead letters or has left them in this session. Its own
    /// place, unless the dead letter of another event is there: to take it for that one would lose it.
    pub(super) fn place_of(&mut self, event: &Event) -> Result<Option<Position>, OutOfOrder> {
        let own = event.position;
        // As nearly always: nothing is hashed and nothing looked up for it.
        if self.lot.is_empty() && self.places.left.is_empty() {
            return Ok(Some(own));
        }
        let last = Position { part: u8::MAX, ..own };
        let id = self.lot.event(&event.id);
        if !self.places.left.is_empty() {
            self.places.left = self.places.left.split_off(&own);
            let left = self.places.left.range(own..=last).find(|(_, left)| **left == id).map(|(position, _)| *position);
            if let Some(left) = left {
                self.places.left.remove(&left);
                return Ok(None);
            }
        }
        if self.lot.events(own, last).any(|there| there == id) {
            return Ok(None);
        }
        if !self.lot.contains(own) {
            return Ok(Some(own));
        }
        let mut spare = (FIRST_SPARE_PART..=u8::MAX).map(|part| Position { part, ..own });
        let to = spare.find(|to| !self.lot.contains(*to)).ok_or(OutOfOrder { position: own, after: last })?;
        self.places.displaced.push(Displaced { id: Arc::clone(&event.id), from: own, to });
        Ok(Some(to))
    }

    /// Its row is gone, or will be. If the slot gives it again in this session, that is no news.
    pub(super) fn leave_lot(&mut self, position: Position, now: Instant) -> bool {
        let Some(event) = self.lot.event_at(position) else { return false };
        self.lot.remove(position, now);
        if self.last_inserted.is_none_or(|last| last < position) {
            self.places.left.insert(position, event);
        }
        true
    }

    /// Events that got another place since this was asked last. For the log.
    pub fn take_displaced(&mut self) -> Vec<Displaced> {
        std::mem::take(&mut self.places.displaced)
    }
}
