//! What becomes of what was published.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dead_letters::Reason;
use crate::event::{Event, OnUnroutable, Poison, PoisonReason, Position, Ticket};

use super::{Hold, Item, State, Way};

/// An event that the broker has taken over.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub ticket: Ticket,
    pub event: Arc<Event>,
    /// It came from the dead letters, where its row is to be deleted: by itself, or because a person had it redriven.
    pub released: Option<Released>,
    /// It is the first that has passed on its way since that began to fail: the dead letters there go out now.
    pub freed: bool,
    /// An earlier event of its key was refused and is not delivered yet (only if `pipelined`).
    pub overtook: bool,
    /// From insertion to the first publish.
    pub key_wait: Duration,
    /// From the last publish to the verdict.
    pub confirm_wait: Duration,
    /// Publishes of this session.
    pub attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    ByItself,
    Redriven,
}

/// Why an attempt did not deliver its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No queue is bound for it.
    Returned,
    /// A queue did not take it.
    Nacked,
    /// No confirm came in time. Nothing is known of its fate, so it is treated as returned (rule R5).
    TimedOut,
}

/// An event whose attempt was refused. Its key is held until it has been delivered.
#[derive(Clone, Debug)]
pub struct Refused {
    pub event: Arc<Event>,
    pub decision: Decision,
    /// Later events of its key that were delivered while it was on the wire (only if `pipelined`).
    pub overtaken_by: usize,
    /// Publishes of this session.
    pub attempts: u32,
}

/// What is done with a refused event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its key stays held and it is published again, not before this time.
    Retry { at: Instant },
    /// It is parked, or stays so.
    Park,
    /// Its route does not want it to be kept: it is resolved.
    Discard(Ticket),
}

/// Why the broker closed a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelFault {
    /// 404: the exchange does not exist.
    NotFound,
    /// 403: the user may not write to the exchange.
    AccessRefused,
    /// 406: the message is not acceptable.
    PreconditionFailed,
    Other,
}

/// Who closed the channel: the error does not name its publish.
#[derive(Clone, Debug)]
pub enum ChannelJudgement {
    /// Nothing was in flight.
    Nobody,
    /// The one event in flight could not go because of its exchange, all of whose events are held now.
    ExchangeFailing(Arc<Event>),
    /// The one event in flight can never be published.
    Poisoned(Arc<Event>),
    /// The one event in flight is retried like a nacked one.
    Refused(Refused),
    /// So many were in flight. Each is published alone now.
    Suspects(usize),
}

impl Hold {
    /// The event's attempt was confirmed and not returned. `None`: it was not on the wire, nor being probed.
    pub fn delivered(&mut self, position: Position, now: Instant) -> Option<Delivered> {
        let since = self.off_wire(position)?;
        let item = self.items.remove(&position)?;
        self.waiting_bytes -= item.bytes;
        let released = item.parked.then(|| match self.lot.is_redriven(position) {
            true => Released::Redriven,
            false => Released::ByItself,
        });
        self.released -= usize::from(item.parked);
        let freed = !self.lot.nothing_fails() && self.lot.passed(&Way::of(&item.event));
        let mut overtook = false;
        let ahead = self.lanes.delivered(position, &item);
        if ahead > 0
            && let Some(lane) = self.lanes.get(&item.event.key)
        {
            let refused = |earlier| self.items.get(earlier).is_some_and(|earlier| earlier.refusals > 0);
            overtook = lane.queue.iter().take(ahead).any(refused);
        }
        // Only if `pipelined`: it was on the wire when an earlier one was refused, which is parked.
        overtook |= self.lot.holds(&item.event);
        if released.is_some() {
            self.leave_lot(position, now);
            self.gone.push(position);
        }
        self.settle_event(&item.event);
        Some(Delivered {
            ticket: item.event.ticket,
            released,
            freed,
            overtook,
            key_wait: item.first_published.unwrap_or(now).saturating_duration_since(item.inserted),
            confirm_wait: now.saturating_duration_since(since),
            attempts: item.attempts,
            event: item.event,
        })
    }

    /// The event's attempt was refused: its key is held. `None`: it was not on the wire, nor being probed.
    pub fn refused(&mut self, position: Position, refusal: Refusal, now: Instant) -> Option<Refused> {
        self.off_wire(position)?;
        let frozen = self.frozen_for(now);
        let item = self.items.get_mut(&position)?;
        let (event, attempts) = (Arc::clone(&item.event), item.attempts);
        if item.parked && refusal == Refusal::Returned && event.route.on_unroutable == OnUnroutable::Discard {
            // It was parked behind another, and now it is like any event of its route.
            self.drop_parked(position);
            self.leave_lot(position, now);
            self.gone.push(position);
            return Some(Refused { decision: Decision::Discard(event.ticket), event, overtaken_by: 0, attempts });
        }
        if item.parked {
            self.stays_parked(position, refusal.reason(), refusal.words(), now);
            return Some(Refused { event, decision: Decision::Park, overtaken_by: 0, attempts });
        }
        item.refusals = item.refusals.saturating_add(1);
        item.last_refusal = Some(refusal);
        item.held.get_or_insert((now, frozen));
        let refusals = item.refusals;
        let mut overtaken_by = 0;
        self.lanes.each(&event, |lane| {
            lane.refused += usize::from(refusals == 1);
            overtaken_by += lane.overtakers(position);
        });
        let decision = self.after_refusal(position, refusal, now);
        match decision {
            Decision::Retry { at } => {
                if let Some(item) = self.items.get_mut(&position) {
                    item.retry_at = Some(at);
                }
            }
            Decision::Discard(_) => self.forget(position),
            Decision::Park => {}
        }
        self.settle_event(&event);
        Some(Refused { event, decision, overtaken_by, attempts })
    }

    /// The one place where the fate of a refused event is decided (rule R3).
    fn after_refusal(&mut self, position: Position, refusal: Refusal, now: Instant) -> Decision {
        let Some(item) = self.items.get(&position) else { return Decision::Park };
        let (event, refusals) = (Arc::clone(&item.event), item.refusals);
        if refusal == Refusal::Returned && event.route.on_unroutable == OnUnroutable::Discard {
            return Decision::Discard(event.ticket);
        }
        // Only if `pipelined`: the head of its key was parked while this one was on the wire.
        if self.lot.holds(&event) {
            self.park_behind(&event.key, &event.joins, now);
            if self.items.get(&position).is_some_and(|item| matches!(item.state, State::Parking)) {
                return Decision::Park;
            }
        }
        let Some(item) = self.items.get(&position) else { return Decision::Park };
        let left = match item.held.filter(|_| item.may_be_parked()) {
            Some((since, frozen)) => self.limits.hold_for.saturating_sub(self.held_for(since, frozen, now)),
            None => Duration::MAX,
        };
        if left.is_zero() && self.park_held(position, now) {
            return Decision::Park;
        }
        let at = self.backoff.after(refusals, now);
        Decision::Retry {
            at: now.checked_add(left).filter(|_| !left.is_zero()).map_or(at, |given_up| at.min(given_up)),
        }
    }

    /// Takes an event out that is resolved without having been delivered.
    fn forget(&mut self, position: Position) {
        let Some(item) = self.items.remove(&position) else { return };
        self.waiting_bytes -= item.bytes;
        self.lanes.take_out(position, &item);
        self.followers.remove(&position);
    }

    /// The event can never be published as it is: its route says what becomes of it. Returns whether the event was here.
    pub fn poisoned(&mut self, position: Position, poison: Poison, now: Instant) -> bool {
        self.off_wire(position);
        let Some(item) = self.items.get_mut(&position) else { return false };
        if matches!(item.state, State::Poisoned(_) | State::Parking) {
            return true;
        }
        if item.parked {
            self.stays_parked(position, Reason::Poison(poison.reason), &poison.detail, now);
            return true;
        }
        item.state = State::Poisoned(poison.clone());
        let event = Arc::clone(&item.event);
        let policy = event.route.on_poison;
        self.poisoned += 1;
        self.lanes.each(&event, |lane| lane.poisoned += 1);
        self.clear_suspicion(position);
        self.wait_for_those_parked_meanwhile(position, &event);
        self.settle_event(&event);
        self.is_poison(position, poison, policy);
        true
    }

    /// Only if `pipelined`: an earlier event of its key was parked while this one was on the wire. It goes no more before that one.
    fn wait_for_those_parked_meanwhile(&mut self, position: Position, event: &Event) {
        if self.lot.holds(event) && self.items.get(&position).is_some_and(|item| !item.parked) {
            self.followers.insert(position);
        }
    }

    /// The broker connection is lost: everything on the wire is ready again and will be sent again in the order of
    /// positions. Nothing of it counts as refused. Probes have ended too; drop their results.
    pub fn wire_lost(&mut self) {
        self.end_probes();
        self.clear_wire();
    }

    /// The broker closed the publishing channel with `words`. All verdicts that were decided must have been handed over:
    /// what is on the wire now was in flight (rule R5).
    pub fn channel_failed(&mut self, fault: ChannelFault, words: &str, now: Instant) -> ChannelJudgement {
        let in_flight: Vec<Position> = self.wire.values().map(|(_, position)| *position).collect();
        let [culprit] = in_flight.as_slice() else {
            self.suspects.extend(in_flight.iter().copied());
            self.clear_wire();
            return if in_flight.is_empty() {
                ChannelJudgement::Nobody
            } else {
                ChannelJudgement::Suspects(in_flight.len())
            };
        };
        let Some(event) = self.items.get(culprit).map(|item| Arc::clone(&item.event)) else {
            return ChannelJudgement::Nobody;
        };
        match fault {
            ChannelFault::NotFound | ChannelFault::AccessRefused => {
                let reason = match fault {
                    ChannelFault::NotFound => Reason::ExchangeMissing,
                    _ => Reason::AccessRefused,
                };
                self.clear_suspicion(*culprit);
                self.clear_wire();
                self.exchange_failed(&event.route.exchange, reason, words, now);
                ChannelJudgement::ExchangeFailing(event)
            }
            ChannelFault::PreconditionFailed => {
                self.poisoned(*culprit, Poison { reason: PoisonReason::Refused, detail: words.to_owned() }, now);
                ChannelJudgement::Poisoned(event)
            }
            ChannelFault::Other => match self.refused(*culprit, Refusal::Nacked, now) {
                Some(refused) => ChannelJudgement::Refused(refused),
                None => ChannelJudgement::Nobody,
            },
        }
    }

    /// Takes the event off the wire, or out of its probe, with a verdict: it is no suspect any more. Returns since when it
    /// was there.
    fn off_wire(&mut self, position: Position) -> Option<Instant> {
        let item = self.items.get_mut(&position)?;
        let since = match item.state {
            State::OnWire { publish, since } => {
                self.wire.remove(&publish);
                self.wire_bytes -= item.bytes;
                self.waiting_bytes += item.bytes;
                self.lanes.off_wire(&item.event);
                since
            }
            State::Probing { since } => since,
            State::Waiting | State::Poisoned(_) | State::Parking => return None,
        };
        item.state = State::Waiting;
        self.clear_suspicion(position);
        Some(since)
    }

    /// Everything on the wire waits again, without a verdict.
    fn clear_wire(&mut self) {
        self.alone = None;
        let lost = std::mem::take(&mut self.wire);
        self.waiting_bytes += std::mem::take(&mut self.wire_bytes);
        for (_, position) in lost.values() {
            let Some(Item { event, state, .. }) = self.items.get_mut(position) else { continue };
            *state = State::Waiting;
            self.lanes.off_wire(event);
        }
        for (_, position) in lost.values() {
            let Some(event) = self.items.get(position).map(|item| Arc::clone(&item.event)) else { continue };
            self.wait_for_those_parked_meanwhile(*position, &event);
            self.settle_event(&event);
        }
    }
}
