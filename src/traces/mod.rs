//! Spans: what became of each event whose producer sampled its trace, for a collector that speaks OTLP (`docs/tracing.md`).
//!
//! The publisher only leaves a `Span` in a bounded queue; everything else happens on a thread of its own
//! ([`export`]). Nothing here waits, and a queue that is full costs spans, never events.

pub mod export;

mod client;
mod context;
mod span;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use tokio::sync::mpsc;

use crate::dead_letters::NewDeadLetter;
use crate::event::{Event, Position, SHOWN, Ticket, shown};
use crate::hold::{Decision, Delivered, Refusal, Refused};

use span::{Course, Fate, Server, Span};

pub(crate) use context::TraceParent;

/// Refusals that a span shows, at most: the first ones.
const REFUSALS: usize = 16;
/// Bytes of a `tracestate` that are carried on, at most; a longer one is left out. W3C Trace Context asks for 512 at least.
const TRACE_STATE: usize = 512;
/// Events whose refusals are remembered, at most. Beyond it they are forgotten.
const REFUSED: usize = 1_000;

/// The publisher's end of the queue.
#[derive(Debug)]
pub struct Spans {
    queue: mpsc::Sender<Span>,
    dropped: IntCounter,
    /// Of sampled events that are not decided. They outlive a session: the event comes again.
    refusals: HashMap<Position, Vec<(SystemTime, Refusal)>>,
    broker: Option<Arc<Server>>,
}

impl Spans {
    fn new(queue: mpsc::Sender<Span>, dropped: IntCounter) -> Self {
        Spans { queue, dropped, refusals: HashMap::new(), broker: None }
    }

    /// `address` is `host:port` of the broker.
    pub(crate) fn connected(&mut self, address: &str) {
        self.broker = Some(Arc::new(Server::new(address)));
    }

    pub(crate) fn delivered(&mut self, delivered: &Delivered) {
        let Some(parent) = sampled(&delivered.event) else { return };
        let end = SystemTime::now();
        let before = |waited: Duration| end.checked_sub(waited).unwrap_or(end);
        let course = Course {
            // What came from the dead letters was committed long ago, and its span of that time has ended when it was parked.
            start: match delivered.released {
                Some(_) => before(delivered.key_wait + delivered.confirm_wait),
                None => delivered.event.commit_time,
            },
            published: Some(before(delivered.confirm_wait)),
            end,
            attempts: delivered.attempts,
            fate: Fate::Delivered(delivered.released),
        };
        self.leave(parent, &delivered.event, course);
    }

    /// Its publish was refused, and it is sent again or parked.
    pub(crate) fn refused(&mut self, refused: &Refused, refusal: Refusal) {
        let event = &refused.event;
        // A probe with a dead letter may be refused any number of times, and its span is none of theirs.
        let over = matches!(refused.decision, Decision::Discard(_)) || event.ticket == Ticket::NONE;
        if over || sampled(event).is_none() {
            return;
        }
        if self.refusals.len() >= REFUSED && !self.refusals.contains_key(&event.position) {
            self.refusals.clear();
        }
        let refusals = self.refusals.entry(event.position).or_default();
        if refusals.len() < REFUSALS {
            refusals.push((SystemTime::now(), refusal));
        }
    }

    pub(crate) fn parked(&mut self, letter: &NewDeadLetter) {
        let Some(parent) = sampled(&letter.event) else { return };
        let course = Course {
            start: letter.event.commit_time,
            published: None,
            end: SystemTime::now(),
            attempts: letter.attempts,
            fate: Fate::Parked(letter.reason, letter.error.clone()),
        };
        self.leave(parent, &letter.event, course);
    }

    pub(crate) fn discarded(&mut self, refused: &Refused) {
        let Some(parent) = sampled(&refused.event) else { return };
        let end = SystemTime::now();
        let course = Course {
            // One that was parked before has its span of that time.
            start: if refused.event.ticket == Ticket::NONE { end } else { refused.event.commit_time },
            published: None,
            end,
            attempts: refused.attempts,
            fate: Fate::Discarded,
        };
        self.leave(parent, &refused.event, course);
    }

    fn leave(&mut self, parent: TraceParent, event: &Event, course: Course) {
        let refusals = self.refusals.remove(&event.position).unwrap_or_default();
        let Ok(place) = self.queue.try_reserve() else {
            self.dropped.inc();
            return;
        };
        let message = event.message();
        place.send(Span {
            parent,
            trace_state: context::trace_state(event).filter(|text| text.len() <= TRACE_STATE).map(str::to_owned),
            event_id: if event.id.len() <= SHOWN { Arc::clone(&event.id) } else { shown(&event.id).into() },
            position: event.position,
            route: Arc::clone(&event.route),
            routing_key: message.map(|message| shown(&message.routing_key).to_owned()).unwrap_or_default(),
            correlation_id: message
                .and_then(|message| message.properties.correlation_id.as_deref().map(|id| shown(id).to_owned())),
            body_bytes: message.map_or(0, |message| message.body.len()),
            refusals,
            broker: self.broker.clone(),
            course,
        });
    }
}

fn sampled(event: &Event) -> Option<TraceParent> {
    TraceParent::of(event).filter(|parent| parent.sampled)
}

#[cfg(test)]
mod tests;
