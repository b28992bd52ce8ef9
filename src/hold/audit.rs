//! Everything that is counted as it goes, counted anew: for the tests.

use std::collections::{BTreeMap, BTreeSet};

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
        agree("held keys", self.held_keys, self.lanes.values().filter(|lane| lane.held).count())?;
        let (mut ready, mut timers, mut waiting) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let coming = self.lot.coming(|position| self.items.get(&position).is_some_and(|item| item.parked));
        for (key, lane) in &self.lanes {
            let items = || lane.queue.iter().filter_map(|position| self.items.get(position));
            let of = |test: fn(&super::Item) -> bool| items().filter(|item| test(item)).count();
            agree(&format!("events of {key}"), lane.queue.len(), items().count())?;
            agree(&format!("{key} on the wire"), lane.on_wire, of(|item| matches!(item.state, State::OnWire { .. })))?;
            agree(&format!("{key} refused"), lane.refused, of(|item| item.refusals > 0))?;
            agree(&format!("{key} poisoned"), lane.poisoned, of(|item| matches!(item.state, State::Poisoned(_))))?;
            agree(&format!("{key} coming"), lane.coming, coming.get(key).copied().unwrap_or_default())?;
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
        let in_lanes: usize = self.lanes.values().map(|lane| lane.queue.len()).sum();
        agree("events in lanes", in_lanes, self.items.len() - self.storing)?;
        let really_ready: BTreeSet<_> = self.ready.union(&self.ready_suspects).copied().collect();
        let really_waiting: BTreeSet<_> =
            self.failing.values().flat_map(|failing| failing.waiting.iter().copied()).collect();
        if (&ready, &timers, &waiting) != (&really_ready, &self.timers, &really_waiting) {
            return Err(format!("candidates: {ready:?} {timers:?} {waiting:?}; {really_ready:?} {really_waiting:?}"));
        }
        self.lot.recount()
    }
}

impl super::Lot {
    /// By lane, what is taken and not here yet.
    fn coming(&self, is_here: impl Fn(crate::event::Position) -> bool) -> BTreeMap<std::sync::Arc<str>, usize> {
        let mut coming = BTreeMap::new();
        for (lane, position) in self.all_taken() {
            *coming.entry(lane).or_default() += usize::from(!is_here(position));
        }
        coming
    }
}
