//! What is parked of several keys: which rows are heads, and which events have to be parked behind others.
//!
//! As in the window, the table's own key has its barriers, and [`Table`] all of its other rows: to each barrier they are one key.

use std::collections::BTreeSet;
use std::ops::RangeBounds;
use std::sync::Arc;

use super::{Key, Lot};
use crate::event::{Event, Joins, Position, table_of};

/// The rows of a table that are no barriers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) queue: BTreeSet<Position>,
    pub(super) taken: BTreeSet<Position>,
}

/// The table of a row with these keys.
pub(super) enum Of<'a> {
    None,
    Row(&'a str),
    Barrier(&'a str),
}

impl<'a> Of<'a> {
    pub(super) fn keys(keys: &'a [Arc<str>]) -> Of<'a> {
        let Some((key, table)) = keys.first().and_then(|key| Some((key, table_of(key)?))) else { return Of::None };
        if key.len() == table.len() { Of::Barrier(table) } else { Of::Row(table) }
    }
}

impl Lot {
    /// The row is the first of all its keys, and none of them has one in the hold.
    pub(super) fn is_head(&self, position: Position, keys: &[Arc<str>]) -> bool {
        let first_of = |key: &Key| key.taken == 0 && key.queue.first() == Some(&position);
        keys.iter().all(|key| self.keys.get(key).is_some_and(first_of))
            && match Of::keys(keys) {
                Of::None => true,
                Of::Row(table) => {
                    let barriers = self.keys.get(table);
                    barriers.is_none_or(|key| key.taken == 0 && key.queue.first().is_none_or(|first| *first > position))
                }
                Of::Barrier(table) => {
                    let rows = self.tables.get(table);
                    rows.is_none_or(|rows| {
                        rows.taken.is_empty() && rows.queue.first().is_none_or(|first| *first > position)
                    })
                }
            }
    }

    /// The event has to be parked behind what is parked already. What is before the first parked event of a key was decided before
    /// that one was: it comes again after a restart.
    pub(in crate::hold) fn holds(&self, event: &Event) -> bool {
        let is_before = |first: Option<&Position>| first.is_some_and(|first| *first < event.position);
        let holds = |key: &str| self.keys.get(key).is_some_and(|key| key.is_parked() && is_before(key.queue.first()));
        if self.rows.is_empty() {
            return false;
        }
        event.keys().any(|key| holds(key))
            || match (event.table(), &event.joins) {
                (None, _) => false,
                (Some(table), Joins::Table) => {
                    let rows = self.tables.get(table);
                    rows.is_some_and(|rows| rows.taken.len() < rows.queue.len() && is_before(rows.queue.first()))
                }
                (Some(table), _) => holds(table),
            }
    }

    /// The key of a table that has barriers here.
    pub(in crate::hold) fn key_of_barriers(&self, table: &str) -> Option<&Arc<str>> {
        self.keys.get_key_value(table).map(|(key, _)| key)
    }

    /// The first barrier of the table that has this key, if there are any that are not in the hold.
    pub(in crate::hold) fn first_barrier(&self, key: &str) -> Option<Position> {
        let barriers = self.keys.get(key).filter(|barriers| barriers.is_parked() && table_of(key) == Some(key))?;
        barriers.queue.first().copied()
    }

    fn first_of(&self, key: &str) -> Option<Position> {
        self.keys.get(key).and_then(|key| key.queue.first()).copied()
    }

    /// Up to where the rows that follow a head in its key may be taken with it.
    pub(super) fn end_of_chunk(&self, keys: &[Arc<str>]) -> Option<Position> {
        match Of::keys(keys) {
            Of::None => None,
            Of::Row(table) => self.first_of(table),
            Of::Barrier(table) => self.tables.get(table).and_then(|rows| rows.queue.first()).copied(),
        }
    }

    pub(super) fn enter_table(&mut self, position: Position, keys: &[Arc<str>]) {
        match Of::keys(keys) {
            Of::None => {}
            Of::Row(name) => {
                match self.tables.get_mut(name) {
                    Some(table) => drop(table.queue.insert(position)),
                    None => {
                        let table = Table { queue: BTreeSet::from([position]), taken: BTreeSet::new() };
                        self.tables.insert(name.into(), table);
                    }
                }
                self.settle_barrier(name);
            }
            // Nothing, nearly always: the others of the table that are here were before it.
            Of::Barrier(table) => self.settle_rows(table, position..),
        }
    }

    pub(super) fn leave_table(&mut self, position: Position, keys: &[Arc<str>]) {
        if let Of::Row(name) = Of::keys(keys)
            && let Some(table) = self.tables.get_mut(name)
        {
            table.queue.remove(&position);
            table.taken.remove(&position);
            if table.queue.is_empty() {
                self.tables.remove(name);
            }
        }
        self.settle_table(keys);
    }

    pub(super) fn taken_of_table(&mut self, position: Position, keys: &[Arc<str>], taken: bool) {
        if let Of::Row(name) = Of::keys(keys)
            && let Some(table) = self.tables.get_mut(name)
        {
            if taken {
                table.taken.insert(position);
            } else {
                table.taken.remove(&position);
            }
        }
        self.settle_table(keys);
    }

    /// What waits for a row of these keys in its table: its next barrier, or what is before that.
    fn settle_table(&mut self, keys: &[Arc<str>]) {
        match Of::keys(keys) {
            Of::None => {}
            Of::Row(table) => self.settle_barrier(table),
            Of::Barrier(table) => match self.first_of(table) {
                Some(next) => self.settle_rows(table, ..next),
                None => self.settle_rows(table, ..),
            },
        }
    }

    fn settle_barrier(&mut self, table: &str) {
        if let Some(barrier) = self.first_of(table) {
            self.settle(barrier);
        }
    }

    fn settle_rows(&mut self, table: &str, range: impl RangeBounds<Position>) {
        let Some(table) = self.tables.get(table) else { return };
        for position in table.queue.range(range).copied().collect::<Vec<_>>() {
            self.settle(position);
        }
    }

    /// The rows of these keys that are in the hold, or on their way there.
    pub(in crate::hold) fn taken_of(&self, key: &Arc<str>, joins: &Joins) -> Vec<Position> {
        let mut taken = self.taken_of_key(key);
        match (joins, table_of(key)) {
            (Joins::Table, Some(table)) => {
                taken.extend(self.tables.get(table).into_iter().flat_map(|rows| rows.taken.iter()));
            }
            (_, Some(table)) => taken.extend(self.taken_of_key(table)),
            (_, None) => {}
        }
        if let Joins::Key(other) = joins {
            taken.extend(self.taken_of_key(other));
        }
        taken
    }
}
