//! Everything that is counted as it goes, counted anew: for the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::event::{Joins, Position, keys_of, table_of};

use super::lane::Place;
use super::{Hold, State};

impl Hold {
    /// What does not agree with what is there. Slow.
    #[doc(hidden)]
    pub fn recount(&self) -> Result<(), String> {
        let agree = |what: &str, counted: usize, real: usize| {
            if counted == real { Ok(()) } else { Err(format!("{what}: {counted} counted, {real} there")) }
        };
        let count = |test: fn(&super::Item) -> bool| self.items.values().filter(|item| test(item)).count();
        let bytes = |on_wire: bool| {
            let items = self.items.values();
            let which = items.filter(|item| matches!(item.state, State::OnWire { .. }) == on_wire);
            which.map(|item| item.bytes).sum::<usize>()
        };
        agree("on the wire", self.wire.len(), count(|item| matches!(item.state, State::OnWire { .. })))?;
        agree("bytes on the wire", self.wire_bytes, bytes(true))?;
        agree("waiting bytes", self.waiting_bytes, bytes(false))?;
        agree("poisoned", self.poisoned, count(|item| matches!(item.state, State::Poisoned(_))))?;
        agree("storing", self.storing, count(|item| matches!(item.state, State::Parking)))?;
        agree("released", self.released, count(|item| item.parked))?;
        agree("held keys", self.held_keys, self.lanes.iter().filter(|(_, lane)| lane.held).count())?;
        let (mut ready, mut timers, mut waiting) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let coming = self.lot.coming(|position| self.items.get(&position).is_some_and(|item| item.parked));
        for (key, lane) in self.lanes.iter() {
            let items = || lane.queue.iter().filter_map(|position| self.items.get(position));
            let of = |test: fn(&super::Item) -> bool| items().filter(|item| test(item)).count();
            agree(&format!("events of {key}"), lane.queue.len(), items().count())?;
            agree(&format!("{key} on the wire"), lane.on_wire, of(|item| matches!(item.state, State::OnWire { .. })))?;
            agree(&format!("{key} refused"), lane.refused, of(|item| item.refusals > 0))?;
            agree(&format!("{key} poisoned"), lane.poisoned, of(|item| matches!(item.state, State::Poisoned(_))))?;
            agree(&format!("{key} coming"), lane.coming, coming.get(key).copied().unwrap_or_default())?;
            let place = self.place_of_candidate(key, lane);
            if lane.place != place {
                return Err(format!("the candidate of {key} is {:?} and should be {place:?}", lane.place));
            }
            match lane.place {
                Place::Nowhere => true,
                Place::Ready(position) => ready.insert(position),
                Place::Timer(at, position) => timers.insert((at, position)),
                Place::Exchange(position) => waiting.insert(position),
            };
        }
        for (key, coming) in coming {
            agree(&format!("{key} coming"), self.lanes.get(&key).map_or(0, |lane| lane.coming), coming)?;
        }
        let in_lanes: usize = self.lanes.iter().map(|(_, lane)| lane.queue.len()).sum();
        let lanes_of = |item: &super::Item| match item.state {
            State::Parking => 0,
            _ => item.event.keys().count(),
        };
        agree("places in lanes", in_lanes, self.items.values().map(lanes_of).sum())?;
        self.recount_tables()?;
        self.recount_followers()?;
        let really_ready: BTreeSet<_> = self.ready.union(&self.ready_suspects).copied().collect();
        let really_waiting: BTreeSet<_> =
            self.failing.values().flat_map(|failing| failing.waiting.iter().copied()).collect();
        if (&ready, &timers, &waiting) != (&really_ready, &self.timers, &really_waiting) {
            return Err(format!("candidates: {ready:?} {timers:?} {waiting:?}; {really_ready:?} {really_waiting:?}"));
        }
        self.lot.recount()
    }

    /// What is of a table and no barrier is known to its barriers.
    fn recount_tables(&self) -> Result<(), String> {
        let mut real: BTreeMap<Arc<str>, (BTreeSet<Position>, usize, usize)> = BTreeMap::new();
        let of_table = |key: &str, joins: &Joins| table_of(key).filter(|_| *joins != Joins::Table).map(Arc::from);
        for (position, item) in &self.items {
            let table = of_table(&item.event.key, &item.event.joins);
            if let Some(table) = table.filter(|_| !matches!(item.state, State::Parking)) {
                let (rows, on_wire, _) = real.entry(table).or_default();
                rows.insert(*position);
                *on_wire += usize::from(matches!(item.state, State::OnWire { .. }));
            }
        }
        for (taken, position) in self.lot.all_taken() {
            let here = self.items.get(&position).is_some_and(|item| item.parked);
            if let Some(table) = of_table(&taken.lane, &taken.joins).filter(|_| !here) {
                real.entry(table).or_default().2 += 1;
            }
        }
        let tables = self.lanes.tables();
        let counted = tables.map(|(name, table)| (Arc::clone(name), (table.rows.clone(), table.on_wire, table.coming)));
        let counted: BTreeMap<_, _> = counted.collect();
        if counted == real { Ok(()) } else { Err(format!("rows of tables: {counted:?}, {real:?} there")) }
    }

    /// What belongs into the dead letters is there, or is known to have to wait for it.
    fn recount_followers(&self) -> Result<(), String> {
        let waits = |item: &super::Item| matches!(item.state, State::Waiting | State::Poisoned(_)) && !item.parked;
        for (position, item) in self.items.iter().filter(|(_, item)| waits(item)) {
            let follows = self.followers.contains(position);
            if self.lot.holds(&item.event) && !follows {
                return Err(format!("{position} is to be parked behind others, and nobody knows"));
            }
            if follows && self.lanes.iter().any(|(_, lane)| lane.place.position() == Some(*position)) {
                return Err(format!("{position} may go, and is to be parked behind others"));
            }
        }
        let gone = self.followers.iter().find(|position| !self.items.get(position).is_some_and(waits));
        gone.map_or(Ok(()), |position| Err(format!("{position} is to be parked, and is not here")))
    }
}

impl super::Lot {
    /// By lane, what is taken and not here yet.
    fn coming(&self, is_here: impl Fn(Position) -> bool) -> BTreeMap<Arc<str>, usize> {
        let mut coming = BTreeMap::new();
        for (taken, position) in self.all_taken() {
            for key in keys_of(&taken.lane, &taken.joins) {
                *coming.entry(Arc::clone(key)).or_default() += usize::from(!is_here(position));
            }
        }
        coming
    }
}
