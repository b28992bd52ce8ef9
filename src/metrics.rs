//! The metrics, declared once: name, labels and a HELP text that is the documentation.
//!
//! Counters exist from the start with 0 for every value of their closed labels. A sampled gauge appears with its first
//! sample. Labels are closed enums, or a slot, queue or vhost from the configuration; never anything from a row.

mod queues;
mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::SystemTime;

#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use table::{Table, gauge, int_gauge};

use crate::dead_letters::Reason;
use crate::status::{Role, Samples};

pub use queues::{DeadLetterQueueSample, QueueMetrics, QueueSample};
pub use table::Sampled;

/// Operations counted by `postrider_changes_read_total`.
pub const OPS: [&str; 5] = ["insert", "update", "delete", "truncate", "message"];
/// Peers and reasons of `postrider_reconnects_total`.
pub const PEERS: [&str; 2] = ["postgres", "rabbitmq"];
pub const RECONNECT_REASONS: [&str; 5] = ["connect", "lost", "confirm_timeout", "channel_error", "unavailable"];
/// Targets of the samplers' own metrics.
pub const SAMPLERS: [&str; 3] = ["slot", "queues", "management"];
/// Who discarded an event, in `postrider_dead_letters_discarded_total`.
pub const DISCARDED_BY: [&str; 2] = ["operator", "route"];
/// Bounds of the dead letters, in `postrider_stalled`.
pub const STALLED: [&str; 2] = ["max_parked", "max_parked_bytes"];
/// Why a relay has halted, in `postrider_halted`: [`crate::postgres::halt::Halt::reason`], and `poison` for `on_poison = "halt"`.
pub const HALTS: [&str; 13] = [
    "slot_missing",
    "unknown_slot",
    "source_changed",
    "slot_advanced",
    "slot_lost",
    "wrong_slot",
    "source_rewound",
    "timeline_diverged",
    "publication_missing",
    "publication_changed",
    "heartbeat_gap",
    "state_file",
    "poison",
];
const WAL_STATUS: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// Every metric of one relay. Cheap to clone; each relay has a registry of its own, so that tests can run several.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Of the standard names, which have no prefix.
    process: Registry,
    pub session_up: IntGauge,
    role: IntGaugeVec,
    /// Label `reason` (see [`HALTS`]).
    halted: IntGaugeVec,
    pub broker_blocked: IntGauge,
    pub changes_read: IntCounterVec,
    /// Rows that snapshots have published, chunks that they have read, tables that are done.
    pub snapshot_rows: IntCounter,
    pub snapshot_chunks: IntCounter,
    pub snapshot_tables: IntCounter,
    pub events_published: IntCounter,
    pub events_confirmed: IntCounter,
    pub events_returned: IntCounter,
    pub events_nacked: IntCounter,
    pub publish_retries: IntCounter,
    pub spans_dropped: IntCounter,
    pub confirm_timeouts: IntCounter,
    /// Label `route`.
    pub order_overtakes: IntCounterVec,
    /// Labels `reason` and `route`.
    dead_letters: IntGaugeVec,
    dead_letter_series: Arc<Mutex<BTreeSet<(&'static str, String)>>>,
    pub dead_letters_bytes: IntGauge,
    dead_letters_oldest_age: Sampled<Gauge>,
    oldest_dead_letter: Arc<Mutex<Option<SystemTime>>>,
    pub parked_keys: IntGauge,
    /// Labels `reason` and `route`.
    pub parked: IntCounterVec,
    /// Label `route`.
    pub released: IntCounterVec,
    /// Label `route`.
    pub redriven: IntCounterVec,
    /// Labels `by` (see [`DISCARDED_BY`]) and `route`.
    pub discarded: IntCounterVec,
    /// Label `reason` (see [`STALLED`]).
    stalled: IntGaugeVec,
    pub unresolved_events: IntGauge,
    pub unresolved_bytes: IntGauge,
    pub held_keys: IntGauge,
    pub key_wait_seconds: Histogram,
    pub commit_to_confirm_seconds: Histogram,
    pub publish_to_confirm_seconds: Histogram,
    /// Labels `peer` (see [`PEERS`]) and `reason` (see [`RECONNECT_REASONS`]).
    pub reconnects: IntCounterVec,
    pub last_received_commit: Sampled<Gauge>,
    pub last_confirmed_commit: Sampled<Gauge>,
    pub slot_active: Sampled<IntGauge>,
    pub slot_confirmed_lag_bytes: Sampled<IntGauge>,
    pub slot_retained_bytes: Sampled<IntGauge>,
    pub slot_safe_wal_bytes: Sampled<IntGauge>,
    slot_wal_status: Sampled<IntGaugeVec>,
    /// In transactions.
    pub slot_catalog_xmin_age: Sampled<IntGauge>,
    pub slot_spill_bytes: IntCounter,
    heartbeat_age_seconds: Sampled<Gauge>,
    heartbeat_passed_at: Arc<Mutex<Option<SystemTime>>>,
    pub queues: QueueMetrics,
    /// Label `target` (see [`SAMPLERS`]).
    pub sampler_errors: IntCounterVec,
    sampler_last_success: GaugeVec,
    sampled_at: Arc<Mutex<BTreeMap<&'static str, SystemTime>>>,
    delivery_lag_seconds: Sampled<Gauge>,
    delivered_up_to: Arc<Mutex<Option<DeliveredUpTo>>>,
}

/// By PostgreSQL's clock: the time up to which nothing that was committed is undelivered, and how far that clock is ahead of ours
/// (seconds).
#[derive(Clone, Copy, Debug)]
struct DeliveredUpTo {
    at: SystemTime,
    clock_ahead_seconds: f64,
}

impl Metrics {
    /// `routes` are the configured route names (a closed label).
    pub fn new(slot: &str, routes: &[String]) -> Result<Self, prometheus::Error> {
        let labels = HashMap::from([("slot".to_owned(), slot.to_owned())]);
        let process = Registry::new_custom(None, Some(HashMap::clone(&labels)))?;
        // Reads /proc.
        #[cfg(target_os = "linux")]
        process.register(Box::new(ProcessCollector::for_self()))?;
        let registry = Registry::new_custom(Some("postrider".to_owned()), Some(labels))?;
        let table = Table { registry: &registry };

        let build_info = table.int_gauge_vec("build_info", "Constant 1; the label tells the version.", &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let metrics = Metrics {
            session_up: table.int_gauge("session_up", "1 while the replication stream is open and this relay holds the slot.")?,
            role: table.int_gauge_vec("role", "1 for the role that this relay has now, 0 for the others.", &["role"])?,
            halted: table.int_gauge_vec("halted", "1 while the relay has stopped on purpose, for this reason: a person has to decide. See /status for what to do.", &["reason"])?,
            broker_blocked: table.int_gauge("broker_blocked", "1 while the broker has this connection blocked (memory or disk alarm).")?,
            changes_read: table.int_counter_vec("changes_read_total", "Row changes and messages read from the slot, heartbeats included.", &["op"])?,
            snapshot_rows: table.int_counter("snapshot_rows_total", "Rows that snapshots of tables have published.")?,
            snapshot_chunks: table.int_counter("snapshot_chunks_total", "Chunks that snapshots of tables have read, those that were read again included.")?,
            snapshot_tables: table.int_counter("snapshot_tables_total", "Snapshots of tables that were finished.")?,
            events_published: table.int_counter("events_published_total", "Publishes handed to the broker, retries included.")?,
            events_confirmed: table.int_counter("events_confirmed_total", "Events that the broker confirmed and did not return.")?,
            events_returned: table.int_counter("events_returned_total", "Publishes that the broker returned as unroutable.")?,
            events_nacked: table.int_counter("events_nacked_total", "Publishes that the broker refused with a nack.")?,
            publish_retries: table.int_counter("publish_retries_total", "Publishes of an event that had been published before, for whatever reason.")?,
            spans_dropped: table.int_counter("spans_dropped_total", "Spans of sampled events that the collector did not get: it was away, refused them or was too slow.")?,
            confirm_timeouts: table.int_counter("confirm_timeouts_total", "Publishes that had no verdict within confirm_timeout.")?,
            order_overtakes: table.int_counter_vec("order_overtakes_total", "Events of a pipelined route that were delivered before an earlier event of their key.", &["route"])?,
            dead_letters: table.int_gauge_vec("dead_letters", "Events that wait in postrider.dead_letters, as the relay that carries knows them.", &["reason", "route"])?,
            dead_letter_series: Arc::default(),
            dead_letters_bytes: table.int_gauge("dead_letters_bytes", "Bytes of their bodies.")?,
            dead_letters_oldest_age: table.sampled(gauge("dead_letters_oldest_age_seconds", "Since the oldest of them was parked. Absent while there are none.")?),
            oldest_dead_letter: Arc::default(),
            parked_keys: table.int_gauge("parked_keys", "Ordering keys whose new events are parked behind an earlier one.")?,
            parked: table.int_counter_vec("dead_letters_parked_total", "Events that went into the dead letters.", &["reason", "route"])?,
            released: table.int_counter_vec("dead_letters_released_total", "Dead letters that were delivered by themselves.", &["route"])?,
            redriven: table.int_counter_vec("dead_letters_redriven_total", "Dead letters that were delivered because a person asked for it.", &["route"])?,
            discarded: table.int_counter_vec("dead_letters_discarded_total", "Events given up: by a person (operator), or by on_unroutable = discard (route).", &["by", "route"])?,
            stalled: table.int_gauge_vec("stalled", "1 while nothing is read because the dead letters have reached this bound.", &["reason"])?,
            unresolved_events: table.int_gauge("unresolved_events", "Events read from the slot and neither delivered nor parked.")?,
            unresolved_bytes: table.int_gauge("unresolved_bytes", "Bytes of those events in memory.")?,
            held_keys: table.int_gauge("held_keys", "Ordering keys whose first event was returned, nacked or cannot be published, and waits.")?,
            key_wait_seconds: table.histogram("key_wait_seconds", "How long an event waited for earlier events of its key before its first publish.")?,
            commit_to_confirm_seconds: table.histogram("commit_to_confirm_seconds", "From the commit in PostgreSQL to the broker's confirm.")?,
            publish_to_confirm_seconds: table.histogram("publish_to_confirm_seconds", "From a publish to its confirm.")?,
            reconnects: table.int_counter_vec("reconnects_total", "Connections to a peer that ended or could not be made, by cause.", &["peer", "reason"])?,
            last_received_commit: table.sampled(gauge("last_received_commit_timestamp_seconds", "Commit time of the newest transaction received, by PostgreSQL's clock.")?),
            last_confirmed_commit: table.sampled(gauge("last_confirmed_commit_timestamp_seconds", "Commit time of the newest transaction with everything up to it delivered, by PostgreSQL's clock.")?),
            slot_active: table.sampled(int_gauge("slot_active", "1 while some connection uses the slot.")?),
            slot_confirmed_lag_bytes: table.sampled(int_gauge("slot_confirmed_lag_bytes", "WAL written since the position that the slot has confirmed.")?),
            slot_retained_bytes: table.sampled(int_gauge("slot_retained_bytes", "WAL that PostgreSQL keeps for the slot (since its restart LSN). A long transaction anywhere in the cluster holds it back too.")?),
            slot_safe_wal_bytes: table.sampled(int_gauge("slot_safe_wal_bytes", "WAL that can be written before the slot is in danger of being lost. Absent while max_slot_wal_keep_size is unlimited.")?),
            slot_wal_status: table.sampled(IntGaugeVec::new(Opts::new("slot_wal_status", "1 for the slot's wal_status in pg_replication_slots, 0 for the others."), &["status"])?),
            slot_catalog_xmin_age: table.sampled(int_gauge("slot_catalog_xmin_age", "Transactions since the oldest one whose catalog rows the slot keeps from vacuum.")?),
            slot_spill_bytes: table.int_counter("slot_spill_bytes_total", "Bytes of large transactions that PostgreSQL wrote to disk while decoding for the slot, since this process began to look.")?,
            heartbeat_age_seconds: table.sampled(gauge("heartbeat_age_seconds", "Since a heartbeat of this relay last came back through the slot with everything before it delivered. None is sent, and this grows, while there is nothing to show for it.")?),
            heartbeat_passed_at: Arc::default(),
            queues: QueueMetrics::new(&table)?,
            sampler_errors: table.int_counter_vec("sampler_errors_total", "Samples that failed.", &["target"])?,
            sampler_last_success: table.gauge_vec("sampler_last_success_timestamp_seconds", "When the sampler last succeeded (Unix time).", &["target"])?,
            delivery_lag_seconds: table.sampled(gauge("delivery_lag_seconds", "How late we are: PostgreSQL's time now minus the time up to which everything that was committed is delivered or parked. Grows while disconnected; up to 10 s on an idle database. Absent before the first delivery, and while another relay carries.")?),
            sampled_at: Arc::default(),
            delivered_up_to: Arc::default(),
            registry: registry.clone(),
            process,
        };

        for op in OPS {
            metrics.changes_read.with_label_values(&[op]);
        }
        for peer in PEERS {
            for reason in RECONNECT_REASONS {
                metrics.reconnects.with_label_values(&[peer, reason]);
            }
        }
        for target in SAMPLERS {
            metrics.sampler_errors.with_label_values(&[target]);
        }
        metrics.set_stalled(None);
        metrics.set_halted(None);
        for route in routes {
            for reason in Reason::ALL {
                metrics.parked.with_label_values(&[reason.as_str(), route.as_str()]);
            }
            metrics.released.with_label_values(&[route.as_str()]);
            metrics.redriven.with_label_values(&[route.as_str()]);
            for by in DISCARDED_BY {
                metrics.discarded.with_label_values(&[by, route.as_str()]);
            }
            metrics.order_overtakes.with_label_values(&[route.as_str()]);
        }
        metrics.set_role(Role::Standby);
        Ok(metrics)
    }

    pub fn set_role(&self, role: Role) {
        for each in Role::ALL {
            self.role.with_label_values(&[each.as_str()]).set(i64::from(each == role));
        }
    }

    /// One of [`HALTS`], or none.
    pub fn set_halted(&self, reason: Option<&str>) {
        for each in HALTS {
            self.halted.with_label_values(&[each]).set(i64::from(reason == Some(each)));
        }
    }

    /// The sampler has an answer; `target` is one of [`SAMPLERS`].
    pub fn sampled(&self, target: &'static str) {
        let now = SystemTime::now();
        self.sampler_last_success.with_label_values(&[target]).set(seconds_between(SystemTime::UNIX_EPOCH, now));
        self.sampled_at.lock().unwrap_or_else(PoisonError::into_inner).insert(target, now);
    }

    /// A heartbeat has come back through the slot, and everything before it is delivered.
    pub fn heartbeat_passed(&self) {
        *self.heartbeat_passed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemTime::now());
    }

    /// What waits, by reason and route. Series of what waits no more go away.
    pub fn set_dead_letters<'a>(&self, waiting: impl Iterator<Item = (Reason, &'a str, usize)>) {
        let mut shown = self.dead_letter_series.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *shown);
        for (reason, route, count) in waiting {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.dead_letters.with_label_values(&[reason.as_str(), route]).set(count);
            shown.insert((reason.as_str(), route.to_owned()));
        }
        for (reason, route) in before.difference(&shown) {
            self.dead_letters.remove_label_values(&[*reason, route.as_str()]).ok();
        }
    }

    /// When the oldest dead letter was parked; `None`: there is none.
    pub fn set_oldest_dead_letter(&self, parked_at: Option<SystemTime>) {
        *self.oldest_dead_letter.lock().unwrap_or_else(PoisonError::into_inner) = parked_at;
    }

    /// One of [`STALLED`], or none.
    pub fn set_stalled(&self, reason: Option<&str>) {
        for each in STALLED {
            self.stalled.with_label_values(&[each]).set(i64::from(reason == Some(each)));
        }
    }

    /// This relay carries no more: another one knows the dead letters.
    pub fn forget_dead_letters(&self) {
        self.set_dead_letters(std::iter::empty());
        self.dead_letters_bytes.set(0);
        self.parked_keys.set(0);
        self.set_oldest_dead_letter(None);
        self.set_stalled(None);
    }

    /// `wal_status` of `pg_replication_slots`.
    pub fn set_slot_wal_status(&self, status: &str) {
        for each in WAL_STATUS {
            self.slot_wal_status.get().with_label_values(&[each]).set(i64::from(each == status));
        }
    }

    /// There is no such slot.
    pub fn clear_slot_wal_status(&self) {
        self.slot_wal_status.clear();
    }

    /// Everything up to `at` (PostgreSQL's clock) is delivered; `server_now` and `local_now` are one instant on both clocks.
    pub fn set_delivered_up_to(&self, at: SystemTime, server_now: SystemTime, local_now: SystemTime) {
        let clock_ahead_seconds = seconds_between(local_now, server_now);
        *self.delivered_up_to.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(DeliveredUpTo { at, clock_ahead_seconds });
    }

    /// Another relay carries: how late it is this one does not know.
    pub fn forget_delivery(&self) {
        *self.delivered_up_to.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// See `postrider_delivery_lag_seconds`.
    pub fn delivery_lag_seconds(&self) -> Option<f64> {
        let known = *self.delivered_up_to.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|known| (seconds_between(known.at, SystemTime::now()) + known.clock_ahead_seconds).max(0.0))
    }

    /// The samplers that have tried at least once.
    pub fn samples(&self) -> Vec<Samples> {
        let sampled_at = self.sampled_at.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = SAMPLERS.iter().map(|target| Samples {
            target,
            age_seconds: sampled_at.get(target).map(|at| seconds_between(*at, SystemTime::now()).max(0.0)),
            errors: self.sampler_errors.with_label_values(&[target]).get(),
        });
        samples.filter(|samples| samples.age_seconds.is_some() || samples.errors > 0).collect()
    }

    /// The exposition in Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        match self.delivery_lag_seconds() {
            Some(lag) => self.delivery_lag_seconds.get().set(lag),
            None => self.delivery_lag_seconds.clear(),
        }
        let oldest = *self.oldest_dead_letter.lock().unwrap_or_else(PoisonError::into_inner);
        match oldest {
            Some(at) => self.dead_letters_oldest_age.get().set(seconds_between(at, SystemTime::now()).max(0.0)),
            None => self.dead_letters_oldest_age.clear(),
        }
        let heartbeat = *self.heartbeat_passed_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = heartbeat {
            self.heartbeat_age_seconds.get().set(seconds_between(at, SystemTime::now()).max(0.0));
        }
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Seconds from `from` to `to`; negative if `to` is earlier.
fn seconds_between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests;
