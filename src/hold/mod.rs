//! The window: what is on the wire, what waits for its key, what waits for its retry (rules R3 and R5).
//!
//! A [`Hold`] owns every unresolved event of a session that has been handed to the publisher. It says what to publish
//! next and takes the verdicts. It knows no channel: the caller publishes what [`Hold::take_next`] gives, one attempt at a
//! time for each event, and drops what a lost channel still has to say after [`Hold::wire_lost`] or
//! [`Hold::channel_failed`].
//!
//! Each ordering key is a lane: a queue of its events. At most one event of a lane is a *candidate*, the next that may
//! go, and it stands in one place: ready, waiting for its back-off, or waiting for its exchange. So a step costs the
//! logarithm of the number of events, however long the queue of a hot key is. An event of several keys is in several lanes, and
//! goes when it is first in all of them.

mod audit;
mod backoff;
mod behind;
mod exchange;
mod lane;
mod lanes;
mod lot;
mod parking;
mod places;
mod settle;
mod stats;
mod suspects;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::dead_letters::{FailedAgain, NewDeadLetter, Reason};
use crate::event::{Event, OnPoison, OnUnroutable, Poison, Position, Ticket};
use crate::faults::{self, Bug};

use backoff::Backoff;
use exchange::Failing;
use lane::Place;
use lanes::{Lanes, Tie};

pub use exchange::{Probe, ProbeOutcome};
pub use lot::{Lot, Way};
pub use parking::{Errands, Halted};
pub use places::Displaced;
pub use stats::{MostDelayed, Stats, Why};
pub use suspects::Suspects;
pub use verdict::{ChannelFault, ChannelJudgement, Decision, Delivered, Refusal, Refused, Released};

/// The unresolved events of one session, by position and by key.
#[derive(Debug)]
pub struct Hold {
    limits: Limits,
    items: BTreeMap<Position, Item>,
    lanes: Lanes,
    /// Candidates that may go now. Suspects stand apart, because they go alone.
    ready: BTreeSet<Position>,
    ready_suspects: BTreeSet<Position>,
    /// Candidates whose back-off is not over.
    timers: BTreeSet<(Instant, Position)>,
    /// The exchanges that refuse everything, with the candidates that wait for them.
    failing: BTreeMap<String, Failing>,
    /// By number of the publish, so the first is the oldest.
    wire: BTreeMap<u64, (Instant, Position)>,
    next_publish: u64,
    wire_bytes: usize,
    waiting_bytes: usize,
    /// Of the event that came last: the next one may be as large.
    newest_bytes: usize,
    suspects: Suspects,
    /// The suspect that is on the wire. Nothing goes beside it.
    alone: Option<Position>,
    /// Lanes that are held: see [`Stats::held_keys`].
    held_keys: usize,
    poisoned: usize,
    last_inserted: Option<Position>,
    backoff: Backoff,
    lot: Lot,
    /// Events whose insert into the dead letters is not committed.
    storing: usize,
    /// Events that come from the dead letters.
    released: usize,
    /// Keys whose head may have become a poison.
    poisoned_keys: Vec<Arc<str>>,
    /// Events that belong behind others in the dead letters, and wait here until all that is before them is decided.
    followers: BTreeSet<Position>,
    /// Lanes whose head may be one of them.
    follower_lanes: Vec<Arc<str>>,
    to_park: Vec<NewDeadLetter>,
    /// Dead letters that have been delivered.
    gone: Vec<Position>,
    failed: Vec<FailedAgain>,
    /// Dead letters that wait for an exchange which has begun to refuse everything. They are to go back.
    stranded: Vec<Position>,
    places: places::Places,
    resolved: Vec<Ticket>,
    halted: Option<Halted>,
    frozen_since: Option<Instant>,
    frozen: Duration,
}

#[derive(Debug)]
struct Item {
    event: Arc<Event>,
    tie: Tie,
    bytes: usize,
    inserted: Instant,
    first_published: Option<Instant>,
    state: State,
    /// Refused since it was inserted. Its key is held while this is not zero.
    refusals: u32,
    last_refusal: Option<Refusal>,
    /// Its back-off, until it is over.
    retry_at: Option<Instant>,
    /// Since when it is held, and for how long [`Hold::frozen_for`] had stood still then.
    held: Option<(Instant, Duration)>,
    /// Publishes of it in this session.
    attempts: u32,
    /// It comes from the dead letters, where it stays until it is delivered.
    parked: bool,
}

#[derive(Clone, Debug)]
enum State {
    Waiting,
    OnWire {
        publish: u64,
        since: Instant,
    },
    /// Published by the probe of its exchange, on a channel of its own.
    Probing {
        since: Instant,
    },
    /// Never to be published.
    Poisoned(Poison),
    /// Not in its lane any more; its insert into the dead letters is not committed yet.
    Parking,
}

impl Item {
    fn new(event: Event, state: State, now: Instant) -> Self {
        Item {
            bytes: event.bytes(),
            tie: Tie::of(&event),
            event: Arc::new(event),
            inserted: now,
            first_published: None,
            state,
            refusals: 0,
            last_refusal: None,
            retry_at: None,
            held: None,
            attempts: 0,
            parked: false,
        }
    }
}

/// Events come in the order of their positions; anything else would break the order of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {position} came after {after}; the session has to start again from the slot")]
pub struct OutOfOrder {
    pub position: Position,
    pub after: Position,
}

impl Hold {
    pub fn new(limits: &Limits, suspects: Suspects) -> Self {
        Hold::with_seed(limits, suspects, rand::random())
    }

    /// As [`Self::new`], with the jitter of the back-offs determined by `seed`.
    pub fn with_seed(limits: &Limits, suspects: Suspects, seed: u64) -> Self {
        Hold {
            limits: limits.clone(),
            items: BTreeMap::new(),
            lanes: Lanes::default(),
            ready: BTreeSet::new(),
            ready_suspects: BTreeSet::new(),
            timers: BTreeSet::new(),
            failing: BTreeMap::new(),
            wire: BTreeMap::new(),
            next_publish: 0,
            wire_bytes: 0,
            waiting_bytes: 0,
            newest_bytes: 0,
            suspects,
            alone: None,
            held_keys: 0,
            poisoned: 0,
            last_inserted: None,
            backoff: Backoff::new(limits.retry_min, limits.retry_max, seed),
            lot: Lot::default(),
            storing: 0,
            released: 0,
            poisoned_keys: Vec::new(),
            followers: BTreeSet::new(),
            follower_lanes: Vec::new(),
            to_park: Vec::new(),
            gone: Vec::new(),
            failed: Vec::new(),
            stranded: Vec::new(),
            places: places::Places::default(),
            resolved: Vec::new(),
            halted: None,
            frozen_since: None,
            frozen: Duration::ZERO,
        }
    }

    /// Takes an event in. One whose content is a [`Poison`] is never published; it is parked when its turn comes. One that
    /// is parked already is resolved, and one whose key is parked is parked behind it.
    pub fn insert(&mut self, mut event: Event, now: Instant) -> Result<(), OutOfOrder> {
        let position = event.position;
        match self.last_inserted {
            Some(after) if after >= position => return Err(OutOfOrder { position, after }),
            Some(_) => {}
            // The slot never gives again what is before the first event of a session; the lot may.
            None => self.suspects.retain(|suspect| suspect >= position || self.lot.contains(suspect)),
        }
        self.last_inserted = Some(position);
        if self.halted.is_some() {
            return Ok(());
        }
        let Some(position) = self.place_of(&event)? else {
            self.resolved.push(event.ticket);
            return Ok(());
        };
        event.position = position;
        event.straighten_joins();
        let state = match &event.content {
            Ok(_) => State::Waiting,
            Err(poison) => State::Poisoned(poison.clone()),
        };
        let item = Item::new(event, state, now);
        self.waiting_bytes += item.bytes;
        self.newest_bytes = item.bytes;
        let poison = match &item.state {
            State::Poisoned(poison) => Some((poison.clone(), item.event.route.on_poison)),
            _ => None,
        };
        let event = Arc::clone(&item.event);
        self.lanes.insert(position, &item);
        self.items.insert(position, item);
        if let Some((poison, policy)) = poison {
            self.poisoned += 1;
            self.is_poison(position, poison, policy);
        }
        self.park_new(&event, now);
        self.settle_new(&event);
        Ok(())
    }

    /// What the route says of a poison that has been found.
    fn is_poison(&mut self, position: Position, poison: Poison, policy: OnPoison) {
        let Some(item) = self.items.get(&position) else { return };
        match policy {
            // When it is the head of its key: what is before it goes first.
            OnPoison::ParkKey => {}
            OnPoison::Skip => self.park_item(position, Reason::Poison(poison.reason), &poison.detail),
            OnPoison::Halt => {
                let (id, route) = (Arc::clone(&item.event.id), item.event.route.name.clone());
                self.halt(Halted { position, id, route, poison });
            }
        }
    }

    /// The next event to publish, in the order of positions, and marks it as on the wire. `None`: nothing may go now, or
    /// the wire is full.
    pub fn take_next(&mut self, now: Instant) -> Option<Arc<Event>> {
        self.wake(now);
        let (position, suspect) = loop {
            if self.alone.is_some() {
                return None;
            }
            let suspect = self.ready_suspects.first().copied();
            let position = match suspect {
                // The wire runs empty, so that a suspect's turn comes however much else is ready.
                Some(_) if !self.wire.is_empty() => return None,
                Some(suspect) => suspect,
                None => *self.ready.first()?,
            };
            if !self.is_kept_back(position, now) {
                break (position, suspect);
            }
        };
        let bytes = self.items.get(&position)?.bytes;
        if !self.fits(bytes) {
            return None;
        }
        let item = self.items.get_mut(&position)?;
        let publish = self.next_publish;
        self.next_publish += 1;
        item.state = State::OnWire { publish, since: now };
        item.first_published.get_or_insert(now);
        item.attempts = item.attempts.saturating_add(1);
        self.wire.insert(publish, (now, position));
        self.wire_bytes += bytes;
        self.waiting_bytes -= bytes;
        self.alone = suspect;
        let event = Arc::clone(&item.event);
        self.lanes.on_wire(&event);
        self.settle_event(&event);
        Some(event)
    }

    /// There is room, and not plenty already that may go as soon as the wire has room: a quarter of the window is more than one
    /// sweep frees. What waits without need costs memory, and has left the processor's cache when its turn comes.
    pub fn wants_more(&self) -> bool {
        faults::seeded(Bug::UnboundedWindow) || self.has_room() && self.ready.len() < (self.limits.window / 4).max(1)
    }

    /// Waiting events fit: reading may go on. One batch may be inserted after a `true`, whatever its size.
    pub fn has_room(&self) -> bool {
        !self.is_full() && self.halted.is_none() && self.stalled().is_none()
    }

    /// Also where another event as large as the newest would not fit: a few large ones would be as much again. One that is larger than half
    /// of the room is not waited for, or little would keep it out.
    fn is_full(&self) -> bool {
        let next = self.newest_bytes.min(self.limits.waiting_bytes / 2);
        self.waiting() >= self.limits.waiting || self.waiting_bytes + next > self.limits.waiting_bytes
    }

    /// When [`Self::take_next`], [`Self::probe_due`] or [`Self::errands`] will have something that it has not now, if
    /// nothing else happens. To be asked after all of them: what they would give now lies in the past.
    /// `releasing` as for that one.
    pub fn next_wake(&self, releasing: bool) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let releasing = releasing && self.halted.is_none();
        let probe = self.next_exchange_probe(releasing);
        let given_up = self.failing.values().filter_map(|failing| failing.gives_up_at(self.limits.hold_for)).min();
        let release = if releasing { self.next_release() } else { None };
        [timer, probe, given_up, release].into_iter().flatten().min()
    }

    /// On the wire for longer than `confirm_timeout`, oldest first.
    pub fn overdue(&self, now: Instant, confirm_timeout: Duration) -> Vec<Position> {
        let late = self.wire.values().take_while(|(since, _)| now.saturating_duration_since(*since) > confirm_timeout);
        late.map(|(_, position)| *position).collect()
    }

    /// Since when the oldest publish without a verdict is on the wire.
    pub fn oldest_on_wire(&self) -> Option<Instant> {
        self.wire.first_key_value().map(|(_, (since, _))| *since)
    }

    /// Nothing is on the wire or being probed, and nothing may go at `now`: only held events are left, and what waits
    /// behind them.
    pub fn idle(&self, now: Instant) -> bool {
        self.wire.is_empty()
            && self.ready.is_empty()
            && self.ready_suspects.is_empty()
            && self.timers.first().is_none_or(|(at, _)| *at > now)
            && !self.failing.values().any(Failing::is_probing)
            && self.storing == 0
    }

    /// Whether `bytes` more may go onto the wire. An event that is larger than the whole bound goes alone.
    fn fits(&self, bytes: usize) -> bool {
        self.wire.is_empty()
            || (self.wire.len() < self.limits.window
                && self.wire_bytes.saturating_add(bytes) <= self.limits.window_bytes)
    }

    fn waiting(&self) -> usize {
        self.items.len() - self.wire.len()
    }

    /// Candidates whose back-off is over become ready.
    fn wake(&mut self, now: Instant) {
        while let Some((at, position)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            let Some(item) = self.items.get_mut(&position) else { continue };
            item.retry_at = None;
            let (key, held) = (Arc::clone(&item.event.key), item.held);
            let expired = held.is_some_and(|(since, frozen)| self.held_for(since, frozen, now) >= self.limits.hold_for);
            if !(expired && self.park_held(position, now)) {
                self.settle(&key);
            }
        }
    }

    /// Whether a candidate that is ready stays back, because its way is failing: it has been put elsewhere then.
    fn is_kept_back(&mut self, position: Position, now: Instant) -> bool {
        if self.lot.nothing_fails() {
            return false;
        }
        let Some(item) = self.items.get(&position) else { return false };
        if item.parked {
            let stays = !self.lot.may_go(position);
            if stays {
                self.return_parked(position, now);
            }
            return stays;
        }
        if !item.may_be_parked() || !self.lanes.is_head(position, &item.event) {
            return false;
        }
        let failure = self.lot.failure(&Way::of(&item.event));
        let Some((reason, words)) = failure.map(|(reason, words)| (reason, words.to_owned())) else { return false };
        // Another route's events are kept for that way; this one's are not.
        if reason == Reason::Unroutable && item.event.route.on_unroutable == OnUnroutable::Discard {
            return false;
        }
        self.park_head(position, reason, &words, now);
        true
    }
}

#[cfg(test)]
mod tests;
