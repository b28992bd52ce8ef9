//! What the window looks like from outside.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Hold, Refusal, State};
use crate::event::{Event, Joins, Position};

/// Counted as it goes: cheap to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub on_wire: usize,
    pub on_wire_bytes: usize,
    /// Everything that is not on the wire.
    pub waiting: usize,
    pub waiting_bytes: usize,
    /// Of both, those that come from the dead letters: no entry of Progress waits for them.
    pub released: usize,
    /// Keys that have a refused or poisoned event, or whose next event waits for a failing exchange.
    pub held_keys: usize,
    /// Events that can never be published.
    pub poisoned: usize,
    pub failing_exchanges: usize,
    pub suspects: usize,
}

/// The key whose head has been here longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MostDelayed {
    pub key: Arc<str>,
    pub waited: Duration,
    pub why: Why,
    /// Later events of the key that wait behind it.
    pub behind: usize,
}

/// Why an event has not been delivered yet. `Display` is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It may be published now.
    Ready,
    /// It is on the wire.
    Unconfirmed,
    /// It waits for its next attempt.
    Retry(Refusal),
    /// Its exchange refuses everything: the name, and the broker's words.
    Exchange { exchange: String, error: String },
    /// It can never be published.
    Poisoned(crate::event::Poison),
    /// It is being written into the dead letters.
    Parking,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Ready => f.write_str("about to be published"),
            Why::Unconfirmed => f.write_str("published, and not yet confirmed"),
            Why::Retry(Refusal::Returned) => f.write_str("returned: no queue is bound for it"),
            Why::Retry(Refusal::Nacked) => f.write_str("nacked: a queue refuses it"),
            Why::Retry(Refusal::TimedOut) => f.write_str("not confirmed in time"),
            Why::Exchange { exchange, error } => write!(f, "exchange `{exchange}` refuses it: {error}"),
            Why::Parking => f.write_str("on its way into the dead letters"),
            Why::Poisoned(poison) => write!(f, "can never be published: {poison}"),
        }
    }
}

impl Hold {
    /// The event at a position, while it is not decided.
    pub fn event(&self, position: Position) -> Option<&Arc<Event>> {
        self.items.get(&position).map(|item| &item.event)
    }

    pub fn stats(&self) -> Stats {
        Stats {
            on_wire: self.wire.len(),
            on_wire_bytes: self.wire_bytes,
            waiting: self.waiting(),
            waiting_bytes: self.waiting_bytes,
            released: self.released,
            held_keys: self.held_keys,
            poisoned: self.poisoned,
            failing_exchanges: self.failing.len(),
            suspects: self.suspects.len(),
        }
    }

    /// `None` if there are no events. The first event is always the head of its key.
    pub fn most_delayed(&self, now: Instant) -> Option<MostDelayed> {
        let (_, item) = self.items.first_key_value()?;
        let failing = self.failing.get_key_value(&item.event.route.exchange);
        let why = match (&item.state, failing, item.last_refusal) {
            (State::Poisoned(poison), _, _) => Why::Poisoned(poison.clone()),
            (State::OnWire { .. }, _, _) => Why::Unconfirmed,
            (State::Parking, _, _) => Why::Parking,
            (_, Some((exchange, failing)), _) => {
                Why::Exchange { exchange: exchange.clone(), error: failing.error.clone() }
            }
            (_, None, Some(refusal)) => Why::Retry(refusal),
            (_, None, None) => Why::Ready,
        };
        Some(MostDelayed {
            key: Arc::clone(&item.event.key),
            waited: now.saturating_duration_since(item.inserted),
            why,
            behind: self.behind(&item.event),
        })
    }

    /// A lower bound for what is in several lanes: what is behind in each.
    fn behind(&self, event: &Event) -> usize {
        let behind = event.keys().filter_map(|key| self.lanes.get(key)).map(|lane| lane.queue.len().saturating_sub(1));
        let table = event.table().filter(|_| event.joins == Joins::Table).and_then(|table| self.lanes.table(table));
        behind.max().unwrap_or_default() + table.map_or(0, |table| table.rows.len())
    }

    /// The failing exchanges with the broker's words.
    pub fn failing_exchanges(&self) -> impl Iterator<Item = (&str, &str)> {
        self.failing.iter().map(|(exchange, failing)| (exchange.as_str(), failing.error.as_str()))
    }
}
