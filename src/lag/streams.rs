//! How far the stream-protocol consumers of streams are behind. A stream keeps its messages whether they were read or
//! not, so that only its consumers' offsets tell.

use std::collections::BTreeMap;
use std::time::Duration;

use super::age::{Age, Reading};
use crate::metrics::QueueSample;
use crate::rabbitmq::management::queues::StreamConsumer;

/// The consumers that are there now.
#[derive(Debug, Default)]
pub(super) struct Streams(BTreeMap<(String, String), Consumer>);

#[derive(Debug)]
struct Consumer {
    age: Age,
    reading: Reading,
    sent: u64,
    behind: u64,
}

impl Streams {
    /// Takes a sample of all consumers. `now` counts from any fixed instant.
    pub(super) fn observe(&mut self, now: Duration, consumers: Vec<StreamConsumer>) {
        let mut before = std::mem::take(&mut self.0);
        for StreamConsumer { stream, id, sent, behind } in consumers {
            let key = (stream, id);
            let (mut age, sent_before) =
                before.remove(&key).map_or_else(|| (Age::exact(), 0), |consumer| (consumer.age, consumer.sent));
            // One that was level and has stopped to take more falls back to the begin of its last chunk.
            let stored = sent.saturating_add(behind);
            let sent = if stored < sent_before { sent } else { sent.max(sent_before) };
            let behind = stored.saturating_sub(sent);
            let reading = age.observe(now, sent, behind);
            self.0.insert(key, Consumer { age, reading, sent, behind });
        }
    }

    /// Adds what is known of the consumers of the stream, if it is one: the slowest counts.
    pub(super) fn complete(&self, stream: &str, mut sample: QueueSample) -> QueueSample {
        for (_, consumer) in self.0.iter().filter(|((of, _), _)| of == stream) {
            let Reading { lag, is_lower_bound, stalled } = consumer.reading;
            sample.stream_lag_messages = sample.stream_lag_messages.max(Some(consumer.behind));
            sample.lag_seconds = Some(sample.lag_seconds.unwrap_or_default().max(lag.as_secs_f64()));
            sample.lag_is_lower_bound |= is_lower_bound;
            sample.stalled_seconds = Some(sample.stalled_seconds.unwrap_or_default().max(stalled.as_secs_f64()));
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(id: &str, sent: u64, behind: u64) -> StreamConsumer {
        StreamConsumer { stream: "log".to_owned(), id: id.to_owned(), sent, behind }
    }

    #[test]
    fn the_slowest_consumer_is_the_streams_lag() {
        let mut streams = Streams::default();
        for second in (0..=60).step_by(5) {
            // Ten messages a second; one consumer is level, the other 20 s behind from the start.
            let slow = second * 10;
            streams.observe(Duration::from_secs(second), vec![consumer("a", slow + 200, 0), consumer("b", slow, 200)]);
        }
        let sample = streams.complete("log", QueueSample::default());
        assert_eq!((sample.stream_lag_messages, sample.lag_is_lower_bound), (Some(200), false));
        assert!((sample.lag_seconds.unwrap() - 20.0).abs() < 1.0, "{sample:?}");
        assert_eq!(sample.stalled_seconds, Some(0.0));
        assert_eq!(streams.complete("other", QueueSample::default()), QueueSample::default());
    }

    #[test]
    fn the_begin_of_the_last_chunk_is_no_step_back() {
        let mut streams = Streams::default();
        streams.observe(Duration::ZERO, vec![consumer("a", 500, 0)]);
        streams.observe(Duration::from_secs(5), vec![consumer("a", 450, 60)]);
        let sample = streams.complete("log", QueueSample::default());
        assert_eq!((sample.stream_lag_messages, sample.lag_is_lower_bound), (Some(10), false));
        assert!(sample.lag_seconds.unwrap() <= 5.0, "{sample:?}");
    }

    #[test]
    fn a_consumer_that_is_gone_counts_no_more() {
        let mut streams = Streams::default();
        streams.observe(Duration::ZERO, vec![consumer("a", 0, 500)]);
        streams.observe(Duration::from_secs(5), Vec::new());
        assert_eq!(streams.complete("log", QueueSample::default()), QueueSample::default());
    }
}
