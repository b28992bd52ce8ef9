//! Into the parking lot and out of it (rules R3 and R4).
//!
//! An event is parked from the head of its key, with everything that waits behind it. It stays in the window until its
//! insert is committed: only that resolves it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dead_letters::{Content, DeadLetter, FailedAgain, Mark, NewDeadLetter, Reason};
use crate::event::{
    Event, HeaderValue, Joins, OnPoison, OnUnroutable, Ordering, Poison, Position, REDELIVERED, Route, Ticket, shown,
};

use super::exchange::{Failing, Feed};
use super::lot::{Lot, Taken, Way};
use super::{Hold, Item, Refusal, State};

/// `on_poison = halt`: nothing after it may be carried before a person has decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event at {position} (id {}, route {route}) can never be published: {poison}", shown(.id))]
pub struct Halted {
    pub position: Position,
    pub id: Arc<str>,
    pub route: String,
    pub poison: Poison,
}

/// What the parking lot has for the database, in this order.
#[derive(Debug, Default)]
pub struct Errands {
    pub park: Vec<NewDeadLetter>,
    /// Delivered.
    pub remove: Vec<Position>,
    pub failed: Vec<FailedAgain>,
    /// To be read; the answer goes to [`Hold::fetched`].
    pub fetch: Vec<Position>,
}

impl Errands {
    pub fn is_empty(&self) -> bool {
        self.park.is_empty() && self.remove.is_empty() && self.failed.is_empty() && self.fetch.is_empty()
    }
}

impl Refusal {
    pub(super) fn reason(self) -> Reason {
        match self {
            Refusal::Returned => Reason::Unroutable,
            Refusal::Nacked => Reason::Nacked,
            Refusal::TimedOut => Reason::TimedOut,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Refusal::Returned => "returned: no queue is bound for its routing key",
            Refusal::Nacked => "nacked: a queue refuses it; it is full, or has lost its leader",
            Refusal::TimedOut => "not confirmed within confirm_timeout",
        }
    }
}

impl Hold {
    /// The dead letters of the slot, once this relay carries. Before the first event.
    /// What its route says of the rest, `policy` tells.
    pub fn load(&mut self, letters: Vec<DeadLetter>, policy: impl Fn(&str) -> (Ordering, OnUnroutable), now: Instant) {
        self.lot.load(letters, policy, now);
    }

    pub fn lot(&self) -> &Lot {
        &self.lot
    }

    /// Why nothing is read any more, in the words of the setting that says so.
    pub fn stalled(&self) -> Option<&'static str> {
        let max_bytes = u64::try_from(self.limits.max_parked_bytes).unwrap_or(u64::MAX);
        if self.lot.len() >= self.limits.max_parked {
            Some("max_parked")
        } else {
            (self.lot.bytes() >= max_bytes).then_some("max_parked_bytes")
        }
    }

    /// Set for good: the session has to end once what was before it is decided.
    pub fn halted(&self) -> Option<&Halted> {
        self.halted.as_ref()
    }

    /// Tickets of events that were resolved by themselves: parked in an earlier session, or discarded.
    pub fn take_resolved(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.resolved)
    }

    /// What is to be written. `releasing`: the broker takes publishes, so that parked events may be taken out.
    pub fn errands(&mut self, now: Instant, releasing: bool) -> Errands {
        self.park_poison(now);
        self.give_up_exchanges(now);
        self.return_stranded(now);
        if releasing && self.is_full() && self.stalled().is_none() {
            self.make_room(now);
        }
        self.park_followers(now);
        let fetch = if releasing && self.halted.is_none() { self.releases(now) } else { Vec::new() };
        Errands {
            park: std::mem::take(&mut self.to_park),
            remove: std::mem::take(&mut self.gone),
            failed: std::mem::take(&mut self.failed),
            fetch,
        }
    }

    /// The insert of these is committed: they are resolved.
    pub fn stored(&mut self, positions: impl IntoIterator<Item = Position>) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        for position in positions {
            if let Some(item) = self.items.remove(&position) {
                self.waiting_bytes -= item.bytes;
                self.storing -= 1;
                tickets.push(item.event.ticket);
            }
            self.lot.stored_now(position);
        }
        tickets
    }

    /// What was asked for by [`Errands::fetch`] has come from the database. What is missing there is gone: somebody has
    /// deleted it, or its insert has failed, and then it comes later.
    pub fn fetched(&mut self, asked: &[Position], contents: Vec<Content>, now: Instant) {
        for content in contents {
            self.released(content, now);
        }
        for position in asked {
            if !self.lot.is_taken(*position) || self.items.contains_key(position) {
                // In the hold by now, or still there because its insert has not been committed.
                if self.items.get(position).is_some_and(|item| !item.parked) {
                    self.not_come(*position, now);
                }
                continue;
            }
            self.has_come(*position);
            self.leave_lot(*position, now);
        }
    }

    /// What was asked for is there and cannot be read: it stays, and its key with it, until a person has mended or discarded
    /// it. To be told before [`Self::fetched`].
    pub fn unreadable(&mut self, position: Position, why: &str, now: Instant) {
        self.not_come(position, now);
        if self.lot.failed_again(position, Reason::Unreadable).is_some() {
            let error = format!("cannot be read: {why}");
            self.failed.push(FailedAgain { position, reason: Reason::Unreadable, error });
        }
    }

    fn not_come(&mut self, position: Position, now: Instant) {
        let Some(taken) = self.lot.taken(position) else { return };
        if self.items.get(&position).is_none_or(|item| !item.parked) {
            self.has_come(position);
            self.lot.put_back(position, now);
            self.give_back(&taken.lane, &taken.joins, now);
        }
    }

    /// A parked event that is in the window and not on the wire goes back to the lot, and with it the others of its key.
    pub(super) fn return_parked(&mut self, position: Position, now: Instant) {
        let Some(event) = self.items.get(&position).map(|item| Arc::clone(&item.event)) else { return };
        self.drop_parked(position);
        self.lot.put_back(position, now);
        self.give_back(&event.key, &event.joins, now);
    }

    /// A person has marked a dead letter. True: it has been taken out, and its row may be deleted.
    pub fn mark(&mut self, position: Position, mark: Mark, now: Instant) -> bool {
        match mark {
            Mark::Redrive => {
                self.lot.redrive(position);
                false
            }
            // On its way out: either it is delivered, or it comes back and the mark is seen again.
            Mark::Discard if self.lot.is_taken(position) => false,
            Mark::Discard => self.leave_lot(position, now),
        }
    }

    /// When [`Self::errands`] will have something to fetch, if nothing else happens.
    pub(super) fn next_release(&self) -> Option<Instant> {
        self.lot.next_probe()
    }

    fn releases(&mut self, now: Instant) -> Vec<Position> {
        let mut out = self.lot.take(now);
        // An exchange that refuses everything is probed with one of its own events.
        let due = |(exchange, failing): (&String, &Failing)| {
            let due = failing.due().is_some_and(|at| at <= now) && self.feed(exchange, failing) == Feed::Wanted;
            due.then(|| exchange.clone())
        };
        for exchange in self.failing.iter().filter_map(due).collect::<Vec<_>>() {
            let fed = self.lot.take_for_exchange(&exchange);
            out.extend(fed);
            if let Some(failing) = self.failing.get_mut(&exchange) {
                failing.fed = fed;
            }
        }
        for position in &out {
            if let Some(taken) = self.lot.taken(*position) {
                let first = self.lanes.is_coming(&taken.lane, &taken.joins);
                self.settle_coming(&taken, first);
            }
        }
        out
    }

    fn released(&mut self, content: Content, now: Instant) {
        let position = content.position;
        let Some(taken) = self.lot.taken(position).filter(|_| !self.items.contains_key(&position)) else { return };
        let mut message = content.message;
        // One that was sent again already has it.
        if taken.redrive && !message.properties.headers.iter().any(|(name, _)| name == REDELIVERED) {
            message.properties.headers.push((REDELIVERED.into(), HeaderValue::Bool(true)));
        }
        let (ordering, on_unroutable) = taken.policy;
        let (name, exchange) = (taken.route.to_string(), taken.exchange.clone());
        let route = Route { name, exchange, ordering, on_unroutable, ..Route::default() };
        let event = Event {
            position,
            id: content.event_id,
            key: Arc::clone(&taken.lane),
            joins: taken.joins.clone(),
            route: Arc::new(route),
            commit_time: content.commit_time,
            ticket: Ticket::NONE,
            content: Ok(message),
            remains: None,
        };
        let item = Item { parked: true, ..Item::new(event, State::Waiting, now) };
        self.waiting_bytes += item.bytes;
        self.lanes.insert(position, &item);
        let event = Arc::clone(&item.event);
        self.items.insert(position, item);
        self.released += 1;
        self.has_come(position);
        self.settle_new(&event);
    }

    /// It is not on its way from the database any more.
    pub(super) fn has_come(&mut self, position: Position) {
        if let Some(taken) = self.lot.taken(position) {
            let last = self.lanes.has_come(&taken.lane, &taken.joins);
            self.settle_coming(&taken, last);
        }
    }

    /// `changes`: whether a barrier is the first, or the last, that is on its way. Only that concerns the other events of its table.
    fn settle_coming(&mut self, taken: &Taken, changes: bool) {
        if changes || taken.joins != Joins::Table {
            self.settle_keys(&taken.lane, &taken.joins);
        } else {
            self.settle(&taken.lane);
        }
    }

    /// Takes a parked event out of the window.
    pub(super) fn drop_parked(&mut self, position: Position) {
        let Some(item) = self.items.remove(&position) else { return };
        self.waiting_bytes -= item.bytes;
        self.released -= 1;
        self.lanes.take_out(position, &item);
        self.settle_event(&item.event);
    }

    /// A parked event was refused again, and stays parked.
    pub(super) fn stays_parked(&mut self, position: Position, reason: Reason, error: &str, now: Instant) {
        let Some(event) = self.items.get(&position).map(|item| Arc::clone(&item.event)) else { return };
        if let Some(way) = self.lot.way_of(position).filter(|_| !reason.is_poison()) {
            self.lot.refused_there(&way, reason, error, &mut self.backoff, now);
        }
        self.drop_parked(position);
        self.lot.put_back(position, now);
        if let Some(reason) = self.lot.failed_again(position, reason) {
            self.failed.push(FailedAgain { position, reason, error: error.to_owned() });
        }
        self.give_back(&event.key, &event.joins, now);
    }

    /// Parks the head of its keys and everything that waits behind it.
    pub(super) fn park_head(&mut self, position: Position, reason: Reason, error: &str, now: Instant) {
        let Some(item) = self.items.get(&position).filter(|item| !item.is_out() && !item.parked) else { return };
        let (way, event) = (Way::of(&item.event), Arc::clone(&item.event));
        self.park_item(position, reason, error);
        if !reason.is_poison() {
            self.lot.refused_there(&way, reason, error, &mut self.backoff, now);
        }
        // What was released meanwhile is behind it too: an older event that the slot has given again.
        self.give_back(&event.key, &event.joins, now);
    }

    /// Out of its lanes and into the lot. Resolved once [`Self::stored`].
    pub(super) fn park_item(&mut self, position: Position, reason: Reason, error: &str) {
        let Some(item) = self.items.get_mut(&position) else { return };
        self.lanes.take_out(position, item);
        self.followers.remove(&position);
        self.poisoned -= usize::from(matches!(item.state, State::Poisoned(_)));
        item.state = State::Parking;
        item.retry_at = None;
        let skipped = reason.is_poison() && item.event.route.on_poison == OnPoison::Skip;
        let letter = NewDeadLetter {
            event: Arc::clone(&item.event),
            reason,
            error: error.to_owned(),
            holds_key: !skipped,
            attempts: item.attempts,
        };
        self.storing += 1;
        self.lot.add(&letter);
        let event = Arc::clone(&letter.event);
        self.to_park.push(letter);
        // A suspect stays one: that it is parked says nothing of what it does to a channel.
        self.settle_event(&event);
    }

    /// Keys whose head can never be published.
    fn park_poison(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.poisoned_keys) {
            let head = self.lanes.get(&key).and_then(|lane| lane.queue.front().copied());
            let Some((head, item)) = head.and_then(|head| Some((head, self.items.get(&head)?))) else { continue };
            if let State::Poisoned(poison) = &item.state
                && self.lanes.is_head(head, &item.event)
            {
                let poison = poison.clone();
                self.park_head(head, Reason::Poison(poison.reason), &poison.detail, now);
            }
        }
    }

    /// `on_poison = halt`: nothing after it goes out any more.
    pub(super) fn halt(&mut self, halted: Halted) {
        let position = halted.position;
        self.halted.get_or_insert(halted);
        let later: Vec<Position> = self.items.range(position..).map(|(position, _)| *position).collect();
        for position in later {
            let Some(item) = self.items.get(&position).filter(|item| !item.is_out() && !item.parked) else { continue };
            if matches!(item.state, State::Parking) {
                continue;
            }
            if let Some(item) = self.items.remove(&position) {
                self.waiting_bytes -= item.bytes;
                self.poisoned -= usize::from(matches!(item.state, State::Poisoned(_)));
                self.lanes.take_out(position, &item);
                self.followers.remove(&position);
                self.settle_event(&item.event);
            }
        }
    }

    /// Rule R3: held while the window has room.
    fn make_room(&mut self, now: Instant) {
        let waiting = self.timers.iter().map(|(_, position)| *position);
        let exchanges = self.failing.values().flat_map(|failing| failing.waiting.iter().copied());
        let held: Vec<Position> = waiting.chain(exchanges).collect();
        for position in held {
            self.park_held(position, now);
        }
    }

    /// Parks a held head, if its route allows that. Returns whether it did.
    pub(super) fn park_held(&mut self, position: Position, now: Instant) -> bool {
        let Some(item) = self.items.get(&position).filter(|item| !item.parked && item.may_be_parked()) else {
            return false;
        };
        if !self.lanes.is_head(position, &item.event) {
            return false;
        }
        let failing = self.failing.get(&item.event.route.exchange);
        let (reason, words) = match (failing, item.last_refusal) {
            (Some(failing), _) => (failing.reason, failing.error.clone()),
            (None, Some(refusal)) => (refusal.reason(), refusal.words().to_owned()),
            (None, None) => return false,
        };
        self.park_head(position, reason, &words, now);
        true
    }

    /// How much of the time since `since` counts for [`crate::config::Limits::hold_for`]: it stands still while the broker
    /// is blocked or away.
    pub(super) fn held_for(&self, since: Instant, frozen_then: Duration, now: Instant) -> Duration {
        let frozen = self.frozen_for(now).saturating_sub(frozen_then);
        now.saturating_duration_since(since).saturating_sub(frozen)
    }

    pub(super) fn frozen_for(&self, now: Instant) -> Duration {
        self.frozen + self.frozen_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether the broker takes publishes. The time of a hold stands still while it does not.
    pub fn publishing(&mut self, publishing: bool, now: Instant) {
        match (publishing, self.frozen_since) {
            (false, None) => self.frozen_since = Some(now),
            (true, Some(since)) => {
                self.frozen += now.saturating_duration_since(since);
                self.frozen_since = None;
            }
            _ => {}
        }
    }
}

impl Item {
    pub(super) fn is_out(&self) -> bool {
        matches!(self.state, State::OnWire { .. } | State::Probing { .. })
    }

    /// `on_unroutable = hold` keeps what cannot be routed; what a queue refuses is parked all the same.
    pub(super) fn may_be_parked(&self) -> bool {
        self.event.route.on_unroutable != OnUnroutable::Hold || self.last_refusal == Some(Refusal::Nacked)
    }
}
