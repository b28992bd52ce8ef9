//! Exchanges that refuse everything, and the probes that find out when they do no longer (rule R5).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dead_letters::Reason;
use crate::event::{Event, Position};

use super::{Hold, Place, State};

/// An exchange that is missing or may not be written to.
#[derive(Debug)]
pub(super) struct Failing {
    /// [`Reason::ExchangeMissing`] or [`Reason::AccessRefused`].
    pub(super) reason: Reason,
    /// The broker's words.
    pub(super) error: String,
    /// As [`super::Item::held`].
    held: (Instant, Duration),
    given_up: bool,
    /// The parked event that has been taken for its probe.
    pub(super) fed: Option<Position>,
    failures: u32,
    probe: ProbeState,
    /// Candidates that wait for it.
    pub(super) waiting: BTreeSet<Position>,
}

#[derive(Clone, Copy, Debug)]
enum ProbeState {
    Due(Instant),
    Running { event: Option<Position>, due: Instant },
}

/// What a probe needs of the lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    Enough,
    /// A parked event, which is to be asked for.
    Wanted,
    /// It has been asked for.
    OnItsWay,
}

/// To be done on a channel of its own: a passive declare of the exchange, then, if that passes, a publish of the event.
#[derive(Clone, Debug)]
pub struct Probe {
    pub exchange: String,
    /// The oldest event that waits for this exchange and is head of its key.
    pub event: Option<Arc<Event>>,
}

/// How a probe ended. The verdict on its event, if there is one, goes to [`Hold::delivered`], [`Hold::refused`] or
/// [`Hold::poisoned`] first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The exchange is there and may be written to.
    Passed,
    /// It still refuses, in these words.
    StillFailing(String),
}

impl Failing {
    pub(super) fn due(&self) -> Option<Instant> {
        match self.probe {
            ProbeState::Due(at) => Some(at),
            ProbeState::Running { .. } => None,
        }
    }

    /// When its events will be parked. `None`: they are parked at once by now, or there are none.
    pub(super) fn gives_up_at(&self, hold_for: Duration) -> Option<Instant> {
        (!self.given_up && !self.waiting.is_empty()).then(|| self.held.0 + hold_for)
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self.probe, ProbeState::Running { .. })
    }
}

impl Hold {
    /// The exchange refuses everything, in these words: its events are held until a probe passes, and parked after
    /// `hold_for`.
    pub fn exchange_failed(&mut self, exchange: &str, reason: Reason, words: &str, now: Instant) {
        if let Some(failing) = self.failing.get_mut(exchange) {
            words.clone_into(&mut failing.error);
            return;
        }
        let probe = ProbeState::Due(self.backoff.after(1, now));
        let failing = Failing {
            reason,
            error: words.to_owned(),
            held: (now, self.frozen_for(now)),
            given_up: false,
            fed: None,
            failures: 1,
            probe,
            waiting: BTreeSet::new(),
        };
        self.failing.insert(exchange.to_owned(), failing);
        let timers = self.timers.iter().map(|(_, position)| position);
        let candidates = self.ready.iter().chain(&self.ready_suspects).chain(timers);
        let keys: Vec<Arc<str>> = candidates
            .filter_map(|position| self.items.get(position))
            .filter(|item| item.event.route.exchange == exchange)
            .map(|item| Arc::clone(&item.event.key))
            .collect();
        for key in keys {
            self.settle(&key);
        }
        // Parked events wait in the lot.
        self.lot.exchange_failed(exchange, reason, words, now);
    }

    /// Parked events do not wait here for an exchange: the later ones of their keys would wait with them.
    pub(super) fn return_stranded(&mut self, now: Instant) {
        for position in std::mem::take(&mut self.stranded) {
            let Some(item) = self.items.get(&position).filter(|item| item.parked && !item.is_out()) else { continue };
            let waits = self.lanes.get(&item.event.key).is_some_and(|lane| lane.place == Place::Exchange(position));
            let fed = self.failing.get(&item.event.route.exchange).is_some_and(|failing| failing.fed == Some(position));
            if waits && !fed {
                self.return_parked(position, now);
            }
        }
    }

    /// Parks the events of exchanges that have refused everything for `hold_for`.
    pub(super) fn give_up_exchanges(&mut self, now: Instant) {
        if self.failing.is_empty() {
            return;
        }
        let mut waiting = Vec::new();
        for failing in self.failing.values() {
            let (since, frozen) = failing.held;
            if !failing.waiting.is_empty() && self.held_for(since, frozen, now) >= self.limits.hold_for {
                waiting.extend(failing.waiting.iter().copied());
            }
        }
        for position in waiting {
            self.park_held(position, now);
        }
        let hold_for = self.limits.hold_for;
        for failing in self.failing.values_mut() {
            failing.given_up |= now.saturating_duration_since(failing.held.0) >= hold_for;
        }
    }

    /// With a parked event a probe says more than without one.
    pub(super) fn feed(&self, exchange: &str, failing: &Failing) -> Feed {
        match failing.fed.filter(|fed| self.lot.is_taken(*fed)) {
            Some(fed) if self.items.contains_key(&fed) => Feed::Enough,
            Some(_) => Feed::OnItsWay,
            None if failing.waiting.is_empty() && self.lot.has_head_for(exchange) => Feed::Wanted,
            None => Feed::Enough,
        }
    }

    /// When a probe is to be made that nothing else has to happen for.
    pub(super) fn next_exchange_probe(&self, releasing: bool) -> Option<Instant> {
        let due = |(exchange, failing): (&String, &Failing)| {
            failing.due().filter(|_| match self.feed(exchange, failing) {
                Feed::Enough => true,
                Feed::Wanted => releasing,
                Feed::OnItsWay => false,
            })
        };
        self.failing.iter().filter_map(due).min()
    }

    /// The next probe to make, if one is due. Its event is not given by [`Self::take_next`] until the probe has ended, so
    /// each probe must be followed by [`Self::probe_ended`], whatever happens to it, or by [`Self::wire_lost`].
    pub fn probe_due(&mut self, now: Instant) -> Option<Probe> {
        let due = |exchange: &str, failing: &Failing| {
            failing.due().filter(|at| *at <= now && self.feed(exchange, failing) == Feed::Enough)
        };
        let (exchange, due) =
            self.failing.iter().find_map(|(exchange, failing)| Some((exchange.clone(), due(exchange, failing)?)))?;
        let failing = self.failing.get_mut(&exchange)?;
        let is_head = |position: &&Position| {
            let item = self.items.get(position);
            item.is_some_and(|item| self.lanes.is_head(**position, &item.event))
        };
        let position = failing.waiting.iter().find(is_head).copied();
        failing.probe = ProbeState::Running { event: position, due };
        let event = position.and_then(|position| {
            let item = self.items.get_mut(&position)?;
            item.state = State::Probing { since: now };
            item.attempts = item.attempts.saturating_add(1);
            item.first_published.get_or_insert(now);
            Some(Arc::clone(&item.event))
        });
        if let Some(event) = &event {
            self.settle_event(event);
        }
        Some(Probe { exchange, event })
    }

    /// The probe of `exchange` has ended. Its event waits again, unless it has had its verdict.
    pub fn probe_ended(&mut self, exchange: &str, outcome: ProbeOutcome, now: Instant) {
        let Some(failing) = self.failing.get_mut(exchange) else { return };
        let ProbeState::Running { event: position, .. } = failing.probe else { return };
        let mut recovered = BTreeSet::new();
        let mut refused = None;
        match outcome {
            ProbeOutcome::Passed => {
                recovered = std::mem::take(&mut failing.waiting);
                self.lot.exchange_passed(exchange, failing.reason, &failing.error, now);
                self.failing.remove(exchange);
            }
            ProbeOutcome::StillFailing(words) => {
                failing.error.clone_from(&words);
                refused = Some((failing.reason, words));
                failing.failures = failing.failures.saturating_add(1);
                failing.probe = ProbeState::Due(self.backoff.after(failing.failures, now));
            }
        }
        self.not_probing(position);
        // A parked event does not wait here: the later ones of its key would wait with it.
        if let Some((position, (reason, words))) = position.zip(refused)
            && self.items.get(&position).is_some_and(|item| item.parked)
        {
            self.stays_parked(position, reason, &words, now);
        }
        for position in recovered {
            let Some(item) = self.items.get(&position) else { continue };
            let key = Arc::clone(&item.event.key);
            self.settle(&key);
        }
    }

    /// All probes have ended without a result. They are due again at once.
    pub(super) fn end_probes(&mut self) {
        let mut ended = Vec::new();
        for failing in self.failing.values_mut() {
            if let ProbeState::Running { event, due } = failing.probe {
                failing.probe = ProbeState::Due(due);
                ended.push(event);
            }
        }
        for position in ended {
            self.not_probing(position);
        }
    }

    fn not_probing(&mut self, position: Option<Position>) {
        let Some(item) = position.and_then(|position| self.items.get_mut(&position)) else { return };
        if matches!(item.state, State::Probing { .. }) {
            item.state = State::Waiting;
            let event = Arc::clone(&item.event);
            self.settle_event(&event);
        }
    }
}
