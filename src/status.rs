//! What the relay knows of itself, for `/status`, `/ready` and `postrider status`.
//!
//! One small structure behind a lock, written by the tasks that know and read by the admin listener. Nothing decides by it, but
//! that a standby without a broker does not ask for the slot.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::metrics::{DeadLetterQueueSample, QueueSample};

/// Shared handle. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Snapshot>>);

/// The relay as it is now. Serialized as it stands: field names are part of `/status`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    pub version: &'static str,
    pub role: Role,
    pub slot: String,
    pub publication: String,
    /// What was found wrong with captured tables when they were looked at last, and what to do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub table_troubles: Vec<String>,
    /// The replication stream is open and this relay holds the slot.
    pub session_up: bool,
    /// Another relay holds the slot; this one waits with both servers at hand, and takes over when it is gone.
    pub standing_by: bool,
    /// The publishing connection is open.
    pub broker_up: bool,
    /// The broker has sent `connection.blocked`, with its reason.
    pub broker_blocked: Option<String>,
    /// What keeps the relay from carrying, and what to do about it. `None` while it carries.
    pub problem: Option<String>,
    /// What is in doubt while the role is `halted` for anything but poison.
    pub halt: Option<InDoubt>,
    /// How many times the slot has been taken over: of two relays that believe to carry, the one with the higher number is right.
    pub relay_epoch: Option<i64>,
    /// End of the last transaction (or keepalive) before which everything is delivered, as reported to PostgreSQL.
    pub acknowledged_lsn: Option<String>,
    /// End of the last transaction or keepalive that was received.
    pub received_lsn: Option<String>,
    pub unresolved_events: u64,
    pub unresolved_bytes: u64,
    /// Keys whose head was returned or nacked and waits for its retry.
    pub held_keys: u64,
    /// The exchanges that refuse everything at the moment, with the broker's words.
    pub failing_exchanges: Vec<FailingExchange>,
    pub dead_letters: DeadLetters,
    /// The key that has waited longest.
    pub most_delayed: Option<DelayedKey>,
    /// Seconds; see the metric of the same name. `None` before the first session.
    pub delivery_lag_seconds: Option<f64>,
    /// The slot as the database showed it last; `None` before the first sample, or when there is no such slot.
    pub slot_state: Option<SlotState>,
    /// The watched queues of the consumers, by name.
    pub queues: Vec<Queue>,
    /// The consumers' dead-letter queues, by name.
    pub dead_letter_queues: Vec<DeadLetterQueue>,
    /// How old what the samplers show is. Filled in when it is asked for.
    pub samples: Vec<Samples>,
    pub stopping: bool,
}

/// The slot, as the database shows it. What it does not know is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotState {
    pub active: bool,
    pub confirmed_lag_bytes: Option<i64>,
    pub retained_bytes: Option<i64>,
    /// Absent while `max_slot_wal_keep_size` is unlimited.
    pub safe_wal_bytes: Option<i64>,
    pub wal_status: Option<String>,
    /// In transactions.
    pub catalog_xmin_age: Option<i64>,
    /// Since the server's statistics were reset.
    pub spill_bytes: Option<i64>,
    /// What keeps the restart LSN, and with it WAL, back: the oldest transactions of the cluster. Empty unless the slot retains
    /// much more than it has not confirmed.
    pub restart_held_by: Vec<Holder>,
}

/// Why the relay has halted, and what is in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InDoubt {
    /// One of [`crate::metrics::HALTS`].
    pub reason: &'static str,
    pub from_lsn: String,
    pub to_lsn: String,
}

/// A transaction that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// `None`: a prepared transaction has no process.
    pub pid: Option<i32>,
    pub xid: String,
    /// Who and since when, and how to end it.
    pub description: String,
}

/// A queue of the consumers. What is not known is absent; see the metrics of the same names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Queue {
    pub vhost: String,
    pub queue: String,
    #[serde(flatten)]
    pub sample: QueueSample,
}

/// A dead-letter queue of the consumers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeadLetterQueue {
    pub vhost: String,
    pub queue: String,
    #[serde(flatten)]
    pub sample: DeadLetterQueueSample,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Not carrying yet: connecting, or another relay has the slot.
    #[default]
    Standby,
    Active,
    /// Stopped on purpose: continuity cannot be proven (guarantee G8).
    Halted,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Standby, Role::Active, Role::Halted];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Standby => "standby",
            Role::Active => "active",
            Role::Halted => "halted",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailingExchange {
    pub exchange: String,
    pub error: String,
}

/// What waits in `postrider.dead_letters`, as the relay that carries knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DeadLetters {
    pub waiting: u64,
    pub bytes: u64,
    /// Ordering keys whose new events are parked too.
    pub keys: u64,
    /// Since the oldest of them was parked.
    pub oldest_seconds: Option<f64>,
    pub by_reason: BTreeMap<&'static str, u64>,
    /// The (exchange, routing key) pairs whose events are parked without being published; the first of them.
    pub failing: Vec<FailingWay>,
    /// The bound that they have reached: nothing is read any more.
    pub stalled: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailingWay {
    pub exchange: String,
    pub routing_key: String,
    pub reason: &'static str,
    pub error: String,
}

/// A sampler that has taken a sample, or failed to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// One of [`crate::metrics::SAMPLERS`].
    pub target: &'static str,
    /// Seconds since the last one; `None`: all attempts of this process have failed.
    pub age_seconds: Option<f64>,
    pub errors: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DelayedKey {
    pub key: String,
    pub seconds: f64,
    pub reason: String,
}

impl Status {
    pub fn new(slot: &str, publication: &str) -> Self {
        Status(Arc::new(Mutex::new(Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            slot: slot.to_owned(),
            publication: publication.to_owned(),
            ..Snapshot::default()
        })))
    }

    /// Changes the snapshot. The closure must be short: it runs under the lock.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.lock());
    }

    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// Whether `/ready` is green: it carries, or it stands by and is able to take over.
    pub fn ready(&self) -> bool {
        self.carrying() || (self.standing_by && self.unhindered())
    }

    /// This relay has the slot, WAL flows, the broker takes what is published, and nothing keeps it from reading.
    pub fn carrying(&self) -> bool {
        self.role == Role::Active && self.session_up && self.unhindered()
    }

    fn unhindered(&self) -> bool {
        self.broker_up && self.broker_blocked.is_none() && self.dead_letters.stalled.is_none() && !self.stopping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_ready_while_it_could_take_over() {
        let mut standby = Snapshot { standing_by: true, broker_up: true, ..Snapshot::default() };
        assert!(standby.ready() && !standby.carrying());
        standby.broker_blocked = Some("low on memory".to_owned());
        assert!(!standby.ready(), "it could publish nothing");
        standby.broker_blocked = None;
        standby.broker_up = false;
        assert!(!standby.ready());
        let connecting = Snapshot { broker_up: true, ..Snapshot::default() };
        assert!(!connecting.ready(), "nothing is known of the slot yet");
    }
}
