//! Dead letters: the events that could not be delivered, next to the data, until the way is free or a person has decided
//! (rules R3 and R4).
//!
//! Here is what the table `postrider.dead_letters` holds, and the statements that write and read it. What is parked, and
//! what may be released when, the [hold](crate::hold) decides.

pub mod desk;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::event::{Event, Message, PoisonReason, Position};

/// Why an event is in the dead letters. A closed set, used as a metric label and in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No queue is bound for it.
    Unroutable,
    /// A queue refuses it (nack): it is full, or its overflow is reject-publish.
    Nacked,
    /// Never confirmed in time.
    TimedOut,
    /// 404: its exchange does not exist.
    ExchangeMissing,
    /// 403: the user may not write to its exchange.
    AccessRefused,
    /// An earlier event of its key is parked.
    Behind,
    /// It can never be published as it is.
    Poison(PoisonReason),
    /// Its row cannot be read any more: somebody has changed it. Known to the relay that has tried; the row keeps its own
    /// reason.
    Unreadable,
}

impl Reason {
    pub const ALL: [Reason; 12] = [
        Reason::Unroutable,
        Reason::Nacked,
        Reason::TimedOut,
        Reason::ExchangeMissing,
        Reason::AccessRefused,
        Reason::Behind,
        Reason::Poison(PoisonReason::TooLarge),
        Reason::Poison(PoisonReason::BadProperty),
        Reason::Poison(PoisonReason::HeadersTooLarge),
        Reason::Poison(PoisonReason::NotUtf8),
        Reason::Poison(PoisonReason::Refused),
        Reason::Unreadable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unroutable => "unroutable",
            Reason::Nacked => "nacked",
            Reason::TimedOut => "timed_out",
            Reason::ExchangeMissing => "exchange_missing",
            Reason::AccessRefused => "access_refused",
            Reason::Behind => "behind",
            Reason::Poison(reason) => reason.as_str(),
            Reason::Unreadable => "unreadable",
        }
    }

    /// A person has to decide: it is not released by itself.
    pub fn is_poison(self) -> bool {
        matches!(self, Reason::Poison(_) | Reason::Unreadable)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Reason::ALL.into_iter().find(|reason| reason.as_str() == text);
        known.ok_or_else(|| {
            let all: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            format!("unknown reason {text:?}; known are {}", all.join(", "))
        })
    }
}

/// An event that is to be parked.
#[derive(Clone, Debug)]
pub struct NewDeadLetter {
    /// Never one that came from the dead letters: that one is there already.
    pub event: Arc<Event>,
    pub reason: Reason,
    /// The broker's words, or what makes it a poison. Never values of the row.
    pub error: String,
    /// False under `on_poison = skip`: its key goes on without it.
    pub holds_key: bool,
    /// Publishes so far.
    pub attempts: u32,
}

/// What is known of a dead letter without its content.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// What it is called by people.
    pub id: i64,
    /// What it is called here: unique for the slot.
    pub position: Position,
    /// Which event it is. Another one may come to the same position once the source was rewound.
    pub event_id: Arc<str>,
    /// All its ordering keys; at least one.
    pub keys: Vec<Arc<str>>,
    pub route: String,
    pub exchange: String,
    pub routing_key: String,
    pub reason: Reason,
    /// See [`NewDeadLetter::holds_key`].
    pub holds_key: bool,
    /// Of the body.
    pub bytes: u64,
    pub parked_at: SystemTime,
    pub mark: Option<Mark>,
}

/// What a person has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Publish it, though it is poison or its way is not known to be free.
    Redrive,
    /// Take it out without publishing it.
    Discard,
}

/// A dead letter with all that is needed to publish it.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    pub position: Position,
    /// AMQP `message_id`.
    pub event_id: Arc<str>,
    pub commit_time: SystemTime,
    pub message: Message,
}

/// A dead letter whose row is not one that a relay writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub id: i64,
    pub position: Position,
    pub why: &'static str,
}

/// A published dead letter that was refused again: it stays, its mark is gone, and the attempt is noted.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedAgain {
    pub position: Position,
    /// `Behind` becomes what it is refused with; a poison stays the poison that it is.
    pub reason: Reason,
    pub error: String,
}
