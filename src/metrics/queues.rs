//! The consumers' side: queues of the broker, and the dead-letter queues of their consumers.

use prometheus::{GaugeVec, IntGauge, IntGaugeVec};
use serde::Serialize;

use super::table::Table;

/// Labels `vhost` and `queue` everywhere: from the configuration or the broker, never from a row.
#[derive(Clone)]
pub struct QueueMetrics {
    messages_ready: IntGaugeVec,
    messages_unacked: IntGaugeVec,
    consumers: IntGaugeVec,
    lag_seconds: GaugeVec,
    lag_is_lower_bound: IntGaugeVec,
    lag_objective_seconds: GaugeVec,
    stalled_seconds: GaugeVec,
    stream_lag_messages: IntGaugeVec,
    dead_letter_messages: IntGaugeVec,
    dead_letter_nonempty_seconds: GaugeVec,
    /// Queues that are bound to our exchanges or matched by a pattern and not watched, because there are too many.
    pub left_out: IntGauge,
}

/// One sample of a queue. What is not known is no series, never 0. The names of the fields are part of `/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QueueSample {
    pub ready: Option<u64>,
    pub unacked: Option<u64>,
    pub consumers: Option<u64>,
    pub lag_seconds: Option<f64>,
    /// The history does not cover the backlog yet: the lag is at least `lag_seconds`. Only with a lag.
    pub lag_is_lower_bound: bool,
    pub objective_seconds: Option<f64>,
    pub stalled_seconds: Option<f64>,
    /// Of a stream: messages that its slowest stream-protocol consumer has not been sent.
    pub stream_lag_messages: Option<u64>,
}

/// One sample of a consumers' dead-letter queue. The names of the fields are part of `/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DeadLetterQueueSample {
    /// Ready and unacknowledged.
    pub messages: u64,
    /// Since it was last seen empty; 0 while it is.
    pub nonempty_seconds: f64,
}

impl QueueMetrics {
    #[rustfmt::skip]
    pub(super) fn new(table: &Table<'_>) -> Result<Self, prometheus::Error> {
        const QUEUE: &[&str] = &["vhost", "queue"];
        Ok(QueueMetrics {
            messages_ready: table.int_gauge_vec("queue_messages_ready", "Messages in the queue that are ready for a consumer. Absent for a stream.", QUEUE)?,
            messages_unacked: table.int_gauge_vec("queue_messages_unacked", "Messages that consumers hold and have not acknowledged. Absent without the management API.", QUEUE)?,
            consumers: table.int_gauge_vec("queue_consumers", "Consumers of the queue.", QUEUE)?,
            lag_seconds: table.gauge_vec("queue_lag_seconds", "How long the oldest message has been in the queue, if first in is first out; 0 when it is empty. Absent without the management API.", QUEUE)?,
            lag_is_lower_bound: table.int_gauge_vec("queue_lag_is_lower_bound", "1 while the lag is at least what queue_lag_seconds says, because the backlog is older than what has been seen of it.", QUEUE)?,
            lag_objective_seconds: table.gauge_vec("queue_lag_objective_seconds", "The lag that the configuration allows (max_lag). Absent where it names none.", QUEUE)?,
            stalled_seconds: table.gauge_vec("queue_stalled_seconds", "For how long there have been messages and consumers and none has been acknowledged; 0 otherwise. Absent without the management API.", QUEUE)?,
            stream_lag_messages: table.int_gauge_vec("stream_lag_messages", "Messages that the slowest stream-protocol consumer of a stream has not been sent yet. Absent where the stream management API does not answer.", QUEUE)?,
            dead_letter_messages: table.int_gauge_vec("dead_letter_queue_messages", "Messages in a dead-letter queue of the consumers, held ones included.", QUEUE)?,
            dead_letter_nonempty_seconds: table.gauge_vec("dead_letter_queue_nonempty_seconds", "Since a dead-letter queue of the consumers was last seen empty; 0 while it is.", QUEUE)?,
            left_out: table.int_gauge("queues_left_out", "Queues that our exchanges lead to, or that a pattern matches, and that are not watched because there are more than 200: list those that matter in [[queues]] by name.")?,
        })
    }

    /// Exports a sample; series of what it does not know go away.
    pub fn show(&self, vhost: &str, queue: &str, sample: &QueueSample) {
        let labels = [vhost, queue];
        let lower_bound = sample.lag_seconds.map(|_| u64::from(sample.lag_is_lower_bound));
        for (gauge, value) in [
            (&self.messages_ready, sample.ready),
            (&self.messages_unacked, sample.unacked),
            (&self.consumers, sample.consumers),
            (&self.lag_is_lower_bound, lower_bound),
            (&self.stream_lag_messages, sample.stream_lag_messages),
        ] {
            match value {
                Some(value) => gauge.with_label_values(&labels).set(i64::try_from(value).unwrap_or(i64::MAX)),
                // Absent already, if it was never there.
                None => drop(gauge.remove_label_values(&labels).ok()),
            }
        }
        for (gauge, value) in [
            (&self.lag_seconds, sample.lag_seconds),
            (&self.lag_objective_seconds, sample.objective_seconds),
            (&self.stalled_seconds, sample.stalled_seconds),
        ] {
            match value {
                Some(value) => gauge.with_label_values(&labels).set(value),
                None => drop(gauge.remove_label_values(&labels).ok()),
            }
        }
    }

    /// The queue is gone, or watched no more.
    pub fn forget(&self, vhost: &str, queue: &str) {
        self.show(vhost, queue, &QueueSample::default());
    }

    /// `None`: it is gone, or no dead-letter queue any more.
    pub fn show_dead_letter_queue(&self, vhost: &str, queue: &str, sample: Option<DeadLetterQueueSample>) {
        let labels = [vhost, queue];
        match sample {
            Some(sample) => {
                let messages = i64::try_from(sample.messages).unwrap_or(i64::MAX);
                self.dead_letter_messages.with_label_values(&labels).set(messages);
                self.dead_letter_nonempty_seconds.with_label_values(&labels).set(sample.nonempty_seconds);
            }
            None => {
                self.dead_letter_messages.remove_label_values(&labels).ok();
                self.dead_letter_nonempty_seconds.remove_label_values(&labels).ok();
            }
        }
    }
}
