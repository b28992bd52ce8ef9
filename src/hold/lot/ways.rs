//! The ways that parked events take: which of them are failing, and when each is probed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Instant;

use crate::dead_letters::Reason;
use crate::event::{Event, Position};

/// Failing ways that are probed at the same time.
const PROBES: usize = 8;

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    pub exchange: String,
    pub routing_key: String,
}

impl Way {
    pub(in crate::hold) fn of(event: &Event) -> Way {
        let routing_key = event.message().map_or_else(String::new, |message| message.routing_key.clone());
        Way { exchange: event.route.exchange.clone(), routing_key }
    }
}

/// The ways of all parked events.
#[derive(Debug, Default)]
pub(super) struct Ways {
    ways: BTreeMap<Arc<Way>, State>,
    /// The probes that can be made: of failing ways that have a head, by the time at which they are due.
    schedule: BTreeSet<(Instant, Arc<Way>)>,
    /// The heads of exchanges that refuse everything. Their ways are not probed: the exchange has a probe of its own.
    refusing: BTreeMap<String, BTreeSet<Position>>,
    failing: usize,
    probing: usize,
}

#[derive(Debug, Default)]
struct State {
    rows: usize,
    failing: Option<Failing>,
    /// Heads that wait for a probe to pass. Empty while the way is not failing and its exchange does not refuse everything.
    heads: BTreeSet<Position>,
    scheduled: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    reason: Reason,
    error: String,
    failures: u32,
    probe: Probe,
    /// The last probe: the next is made with another head, because this one may have been refused for what it is.
    tried: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Due(Instant),
    Out(Position),
}

impl Ways {
    /// One more row takes this way. Returns the one copy of it, however many rows it has.
    pub(super) fn add(&mut self, way: Way) -> Arc<Way> {
        let way = self.ways.get_key_value(&way).map_or_else(|| Arc::new(way), |(way, _)| Arc::clone(way));
        self.ways.entry(Arc::clone(&way)).or_default().rows += 1;
        way
    }

    pub(super) fn remove(&mut self, way: &Way) {
        let Some(state) = self.ways.get_mut(way) else { return };
        state.rows -= 1;
        if state.rows == 0 {
            self.passed(way);
            self.ways.remove(way);
        }
    }

    pub(super) fn nothing_fails(&self) -> bool {
        self.failing == 0
    }

    /// Why its events are parked without a publish.
    pub(super) fn failure(&self, way: &Way) -> Option<(Reason, &str)> {
        let failing = self.ways.get(way)?.failing.as_ref()?;
        Some((failing.reason, failing.error.as_str()))
    }

    pub(super) fn all_failing(&self) -> impl Iterator<Item = (&Way, Reason, &str)> {
        let failing = self.ways.iter().filter_map(|(way, state)| Some((way, state.failing.as_ref()?)));
        failing.map(|(way, failing)| (&**way, failing.reason, failing.error.as_str()))
    }

    pub(super) fn is_probe(&self, way: &Way, position: Position) -> bool {
        let failing = self.ways.get(way).and_then(|state| state.failing.as_ref());
        failing.is_some_and(|failing| failing.probe == Probe::Out(position))
    }

    pub(super) fn of_exchange(&self, exchange: &str) -> Vec<Arc<Way>> {
        self.ways.keys().filter(|way| way.exchange == exchange).cloned().collect()
    }

    /// The exchange refuses everything.
    pub(super) fn refuse(&mut self, exchange: &str) {
        let ways = self.of_exchange(exchange);
        let heads = ways.iter().filter_map(|way| self.ways.get(way)).flat_map(|state| state.heads.iter().copied());
        let heads = heads.collect();
        self.refusing.insert(exchange.to_owned(), heads);
        for way in ways {
            self.schedule(&way);
        }
    }

    /// Returns the heads that have waited for it.
    pub(super) fn refuse_no_longer(&mut self, exchange: &str) -> BTreeSet<Position> {
        let heads = self.refusing.remove(exchange).unwrap_or_default();
        for way in self.of_exchange(exchange) {
            self.schedule(&way);
        }
        heads
    }

    pub(super) fn refuses(&self, way: &Way) -> bool {
        self.refusing.contains_key(&way.exchange)
    }

    /// A head that waits for an exchange that refuses everything: the oldest.
    pub(super) fn head_of_exchange(&self, exchange: &str) -> Option<Position> {
        self.refusing.get(exchange)?.first().copied()
    }

    pub(super) fn insert_head(&mut self, way: &Way, position: Position) {
        let Some(state) = self.ways.get_mut(way) else { return };
        state.heads.insert(position);
        if let Some(heads) = self.refusing.get_mut(&way.exchange) {
            heads.insert(position);
        }
        self.schedule(way);
    }

    pub(super) fn remove_head(&mut self, way: &Way, position: Position) {
        let Some(state) = self.ways.get_mut(way) else { return };
        if state.heads.remove(&position) {
            if let Some(heads) = self.refusing.get_mut(&way.exchange) {
                heads.remove(&position);
            }
            self.schedule(way);
        }
    }

    /// An event was refused there; `due` is told how many times in a row, and says when the next probe is to be made.
    /// Returns whether the way was not failing before.
    pub(super) fn fail(&mut self, way: &Way, reason: Reason, error: &str, due: impl FnOnce(u32) -> Instant) -> bool {
        let Some(state) = self.ways.get_mut(way) else { return false };
        let (failures, tried) = match &state.failing {
            // Others that were out at the same time say nothing new.
            Some(Failing { probe: Probe::Due(_), .. }) => return false,
            Some(Failing { failures, tried, probe: Probe::Out(_), .. }) => {
                self.probing -= 1;
                (failures.saturating_add(1), *tried)
            }
            None => {
                self.failing += 1;
                (1, None)
            }
        };
        let probe = Probe::Due(due(failures));
        state.failing = Some(Failing { reason, error: error.to_owned(), failures, probe, tried });
        self.schedule(way);
        failures == 1
    }

    /// An event has passed there. Returns the heads that have waited for that, if the way was failing.
    pub(super) fn passed(&mut self, way: &Way) -> Option<BTreeSet<Position>> {
        let state = self.ways.get_mut(way)?;
        let failing = state.failing.take()?;
        self.failing -= 1;
        self.probing -= usize::from(matches!(failing.probe, Probe::Out(_)));
        let heads = std::mem::take(&mut state.heads);
        if let Some(waiting) = self.refusing.get_mut(&way.exchange) {
            waiting.retain(|head| !heads.contains(head));
        }
        self.schedule(way);
        Some(heads)
    }

    /// The event that was out as a probe has come back without a verdict: the next may go at once.
    pub(super) fn probe_came_back(&mut self, way: &Way, position: Position, now: Instant) {
        if let Some(failing) = self.ways.get_mut(way).and_then(|state| state.failing.as_mut())
            && failing.probe == Probe::Out(position)
        {
            failing.probe = Probe::Due(now);
            self.probing -= 1;
            self.schedule(way);
        }
    }

    /// When the next probe is due.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        (self.probing < PROBES).then(|| self.schedule.first().map(|(at, _)| *at)).flatten()
    }

    /// The head to probe a way with, if one is due now; it counts as out from now on.
    pub(super) fn take_probe(&mut self, now: Instant) -> Option<Position> {
        let (_, way) = self.schedule.first().filter(|(at, _)| *at <= now && self.probing < PROBES).cloned()?;
        let state = self.ways.get_mut(&way)?;
        let failing = state.failing.as_mut()?;
        let after = failing.tried.map_or(Unbounded, Excluded);
        let head = state.heads.range((after, Unbounded)).next().or_else(|| state.heads.first()).copied()?;
        failing.tried = Some(head);
        failing.probe = Probe::Out(head);
        self.probing += 1;
        self.schedule(&way);
        Some(head)
    }

    /// Puts the way where it belongs in the schedule. To be called after each change to its heads or its probe.
    fn schedule(&mut self, way: &Way) {
        let Some((way, state)) = self.ways.get_key_value(way).map(|(way, _)| Arc::clone(way)).and_then(|way| {
            let state = self.ways.get_mut(&way)?;
            Some((way, state))
        }) else {
            return;
        };
        let due = match state.failing.as_ref().map(|failing| failing.probe) {
            Some(Probe::Due(at)) if !state.heads.is_empty() && !self.refusing.contains_key(&way.exchange) => Some(at),
            _ => None,
        };
        if due == state.scheduled {
            return;
        }
        let before = std::mem::replace(&mut state.scheduled, due);
        if let Some(before) = before {
            self.schedule.remove(&(before, Arc::clone(&way)));
        }
        if let Some(due) = due {
            self.schedule.insert((due, way));
        }
    }
}

impl Ways {
    /// See [`super::Lot::recount`].
    pub(super) fn recount(
        &self,
        rows: &BTreeMap<Arc<Way>, usize>,
        heads: &BTreeMap<Arc<Way>, BTreeSet<Position>>,
    ) -> Result<(), String> {
        let (mut failing, mut probing, mut schedule) = (0, 0, BTreeSet::new());
        for (way, state) in &self.ways {
            let probe = state.failing.as_ref().map(|failing| failing.probe);
            failing += usize::from(probe.is_some());
            probing += usize::from(matches!(probe, Some(Probe::Out(_))));
            let none = BTreeSet::new();
            if rows.get(way) != Some(&state.rows) || heads.get(way).unwrap_or(&none) != &state.heads {
                return Err(format!("{way:?}: {state:?}, {:?}, {:?}", rows.get(way), heads.get(way)));
            }
            if let Some(Probe::Due(at)) = probe
                && !state.heads.is_empty()
                && !self.refuses(way)
            {
                schedule.insert((at, Arc::clone(way)));
            }
        }
        for (exchange, waiting) in &self.refusing {
            let ways = heads.iter().filter(|(way, _)| way.exchange == *exchange);
            let real: BTreeSet<Position> = ways.flat_map(|(_, heads)| heads.iter().copied()).collect();
            if *waiting != real {
                return Err(format!("heads of {exchange}: {waiting:?}, {real:?} there"));
            }
        }
        if rows.len() != self.ways.len() || (self.failing, self.probing) != (failing, probing) {
            return Err(format!(
                "{} of {} ways; {failing} failing, {probing} probing: {self:?}",
                self.ways.len(),
                rows.len()
            ));
        }
        if schedule == self.schedule { Ok(()) } else { Err(format!("{:?}, {schedule:?} due", self.schedule)) }
    }
}
