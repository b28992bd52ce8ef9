//! All lanes, and what the barriers of a table add to them: an event may be in several.
//!
//! An update that changes the key of its row is in the lanes of both keys, and its *home* is that of the new one. A barrier is an
//! event of every key of its table. To put it into all those lanes would cost their number for each; instead the lane of the
//! table's own key has the table's barriers, and [`Table`] all of its other events. A barrier waits for what is older there; every
//! other event of the table waits for the older barriers.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::event::{Event, Joins, Ordering, Position, keys_of, table_of};

use super::lane::Lane;
use super::{Item, State};

/// How an event is tied to others. Known without a look at the event itself, which is nowhere near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
    /// Of one key, and of no table.
    Alone,
    /// Of one key of a table.
    Row,
    /// Of two keys.
    Pair,
    /// Of all keys of its table.
    Barrier,
}

impl Tie {
    pub(super) fn of(event: &Event) -> Tie {
        match event.joins {
            Joins::Nothing if event.table().is_none() => Tie::Alone,
            Joins::Nothing => Tie::Row,
            Joins::Key(_) => Tie::Pair,
            Joins::Table => Tie::Barrier,
        }
    }

    /// It neither overtakes nor is overtaken, whatever its route says.
    pub(super) fn is_strict(self) -> bool {
        matches!(self, Tie::Pair | Tie::Barrier)
    }
}

impl Item {
    pub(super) fn ordering(&self) -> Ordering {
        if self.tie.is_strict() { Ordering::Key } else { self.event.route.ordering }
    }
}

/// The undecided events of a table that are no barriers.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Those in lanes.
    pub(super) rows: BTreeSet<Position>,
    pub(super) on_wire: usize,
    /// Those on their way from the database.
    pub(super) coming: usize,
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_key: HashMap<Arc<str>, Lane>,
    tables: HashMap<Arc<str>, Table>,
}

impl Lanes {
    pub(super) fn get(&self, key: &str) -> Option<&Lane> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Lane> {
        self.by_key.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.by_key.remove(key);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Lane)> {
        self.by_key.iter()
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (&Arc<str>, &Table)> {
        self.tables.iter()
    }

    pub(super) fn table(&self, table: &str) -> Option<&Table> {
        self.tables.get(table)
    }

    /// The key of a table whose barriers have a lane.
    pub(super) fn key_of_barriers(&self, table: &str) -> Option<&Arc<str>> {
        self.by_key.get_key_value(table).map(|(key, _)| key)
    }

    /// Each lane of an event.
    pub(super) fn each(&mut self, event: &Event, mut change: impl FnMut(&mut Lane)) {
        for key in event.keys() {
            if let Some(lane) = self.by_key.get_mut(key) {
                change(lane);
            }
        }
    }

    /// Into its lanes.
    pub(super) fn insert(&mut self, position: Position, item: &Item) {
        for key in item.event.keys() {
            let lane = self.by_key.entry(Arc::clone(key)).or_default();
            lane.insert(position);
            lane.poisoned += usize::from(matches!(item.state, State::Poisoned(_)));
        }
        self.change_table(&item.event.key, &item.event.joins, |table| {
            table.rows.insert(position);
        });
    }

    /// Out of its lanes, without having been delivered: it is not on the wire.
    pub(super) fn take_out(&mut self, position: Position, item: &Item) {
        self.each(&item.event, |lane| lane.take_out(position, item));
        self.change_table(&item.event.key, &item.event.joins, |table| {
            table.rows.remove(&position);
        });
    }

    /// Out of its lanes: it is delivered. Returns how many events of its own key are before it, if any of its lane is refused.
    pub(super) fn delivered(&mut self, position: Position, item: &Item) -> usize {
        let mut ahead = None;
        self.each(&item.event, |lane| {
            lane.refused -= usize::from(item.refusals > 0);
            let here = lane.remove(position);
            ahead.get_or_insert(if lane.refused > 0 { here } else { 0 });
        });
        self.change_table(&item.event.key, &item.event.joins, |table| {
            table.rows.remove(&position);
        });
        ahead.unwrap_or_default()
    }

    pub(super) fn on_wire(&mut self, event: &Event) {
        self.each(event, |lane| lane.on_wire += 1);
        self.change_table(&event.key, &event.joins, |table| table.on_wire += 1);
    }

    pub(super) fn off_wire(&mut self, event: &Event) {
        self.each(event, |lane| lane.on_wire = lane.on_wire.saturating_sub(1));
        self.change_table(&event.key, &event.joins, |table| table.on_wire = table.on_wire.saturating_sub(1));
    }

    /// Something with these keys has been asked for from the database. Returns whether nothing of its own key was before.
    pub(super) fn is_coming(&mut self, key: &Arc<str>, joins: &Joins) -> bool {
        let mut first = false;
        for name in keys_of(key, joins) {
            let lane = self.by_key.entry(Arc::clone(name)).or_default();
            first |= lane.coming == 0 && name == key;
            lane.coming += 1;
        }
        self.change_table(key, joins, |table| table.coming += 1);
        first
    }

    /// It has come, or will not. Returns whether nothing of its own key is on its way any more.
    pub(super) fn has_come(&mut self, key: &Arc<str>, joins: &Joins) -> bool {
        let mut last = false;
        for name in keys_of(key, joins) {
            let Some(lane) = self.by_key.get_mut(name) else { continue };
            lane.coming = lane.coming.saturating_sub(1);
            last |= lane.coming == 0 && name == key;
        }
        self.change_table(key, joins, |table| table.coming = table.coming.saturating_sub(1));
        last
    }

    /// For what is of a table and no barrier.
    fn change_table(&mut self, key: &str, joins: &Joins, change: impl FnOnce(&mut Table)) {
        let Some(name) = table_of(key).filter(|_| *joins != Joins::Table) else { return };
        // The name is copied only when the table has had nothing here.
        let Some(table) = self.tables.get_mut(name) else {
            let mut table = Table::default();
            change(&mut table);
            if !table.is_empty() {
                self.tables.insert(name.into(), table);
            }
            return;
        };
        change(table);
        if table.is_empty() {
            self.tables.remove(name);
        }
    }

    /// What was the first of the lane until `first` came.
    pub(super) fn second_after(&self, key: &str, first: Position) -> Option<Position> {
        let queue = &self.get(key)?.queue;
        queue.get(1).copied().filter(|_| queue.front() == Some(&first))
    }

    /// Nothing that is here is before it, in all of its lanes.
    pub(super) fn is_head(&self, position: Position, event: &Event) -> bool {
        let first = |key: &Arc<str>| self.get(key).and_then(|lane| lane.queue.front()) == Some(&position);
        event.keys().all(first)
            && match (event.table(), &event.joins) {
                (None, _) => true,
                (Some(table), Joins::Table) => {
                    self.table(table).and_then(|table| table.rows.first()).is_none_or(|row| *row > position)
                }
                (Some(table), _) => {
                    self.get(table).and_then(|lane| lane.queue.front()).is_none_or(|barrier| *barrier > position)
                }
            }
    }

    /// Nothing but its home lane keeps it from going, of which it is the head, or stands behind what it need not wait for.
    pub(super) fn is_open(&self, position: Position, item: &Item) -> bool {
        let event = &item.event;
        let settled = |lane: &Lane| lane.coming == 0 && lane.on_wire == 0;
        let other = match &event.joins {
            Joins::Key(other) => {
                self.get(other).is_none_or(|lane| settled(lane) && lane.queue.front() == Some(&position))
            }
            Joins::Nothing | Joins::Table => true,
        };
        other
            && match (event.table(), item.tie) {
                (None, _) | (_, Tie::Alone) => true,
                (Some(table), Tie::Barrier) => self.table(table).is_none_or(|table| {
                    table.coming == 0 && table.on_wire == 0 && table.rows.first().is_none_or(|row| *row > position)
                }),
                (Some(table), Tie::Row | Tie::Pair) => self.get(table).is_none_or(|barriers| {
                    settled(barriers) && barriers.queue.front().is_none_or(|barrier| *barrier > position)
                }),
            }
    }

    /// The events of a table that are no barriers.
    pub(super) fn rows(&self, table: &str, range: impl RangeBounds<Position>) -> Vec<Position> {
        self.table(table).map_or_else(Vec::new, |table| table.rows.range(range).copied().collect())
    }
}

impl Table {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.on_wire == 0 && self.coming == 0
    }
}
