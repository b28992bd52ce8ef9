//! From the broker's statistics of a queue to what is shown of it.

use std::time::Duration;

use super::age::{Age, Reading};
use crate::metrics::QueueSample;
use crate::rabbitmq::management::queues::QueueStats;

/// A queue has statistics after its first tick (5 s) and the collector's (5 s), with room for a slow broker.
const FIRST_STATISTICS: Duration = Duration::from_secs(30);
/// A `timestamp` that says a message is older is a mistake of its publisher (one in another unit, or 0).
const OLDEST_MESSAGE: Duration = Duration::from_secs(365 * 86_400);

/// What is known of a queue from earlier samples.
#[derive(Debug)]
pub(super) struct ConsumerQueue {
    age: Age,
    first_seen: Duration,
    /// Statistics of it have been seen.
    counted: bool,
    /// Somebody has consumed it since then; `None`: nobody does.
    consumed_since: Option<Duration>,
    /// When they were last believed, or when it was first seen.
    believed: Duration,
}

impl ConsumerQueue {
    pub(super) fn new(now: Duration, period: Duration) -> Self {
        ConsumerQueue {
            age: Age::of_statistics(period),
            first_seen: now,
            counted: false,
            consumed_since: None,
            believed: now,
        }
    }

    /// For how long its statistics have not been believed.
    pub(super) fn in_doubt(&self, now: Duration) -> Duration {
        now.saturating_sub(self.believed)
    }

    /// `now` counts from any fixed instant, `unix_now` from 1970. The error says why the statistics are not believed; what is known
    /// from before stays.
    pub(super) fn sample(
        &mut self,
        now: Duration,
        unix_now: Duration,
        stats: &QueueStats,
        max_lag: Option<Duration>,
    ) -> Result<QueueSample, String> {
        let sample = self.judge(now, unix_now, stats, max_lag)?;
        self.believed = now;
        Ok(sample)
    }

    fn judge(
        &mut self,
        now: Duration,
        unix_now: Duration,
        stats: &QueueStats,
        max_lag: Option<Duration>,
    ) -> Result<QueueSample, String> {
        if let Some(why) = &stats.unavailable {
            return Err(why.clone());
        }
        let unknown = QueueSample { objective_seconds: max_lag.map(|lag| lag.as_secs_f64()), ..QueueSample::default() };
        // What a stream retains is no backlog.
        if stats.is_stream {
            return Ok(QueueSample { consumers: stats.consumers, ..unknown });
        }
        let Some(counts) = stats.counts else {
            let new = !self.counted && now.saturating_sub(self.first_seen) < FIRST_STATISTICS;
            return if new { Ok(unknown) } else { Err("the broker has no statistics of it".to_owned()) };
        };
        self.counted = true;
        let reading = self.age.observe(now, counts.removed, counts.messages);
        let (lag, is_lower_bound) = with_head(reading, unix_now, stats.head_timestamp);
        // Nobody who is there is nobody who is stalled; and a consumer that has come back is given its time.
        self.consumed_since = match stats.consumers {
            Some(0) => None,
            _ => self.consumed_since.or(Some(now)),
        };
        let stalled =
            self.consumed_since.map_or(Duration::ZERO, |since| reading.stalled.min(now.saturating_sub(since)));
        Ok(QueueSample {
            ready: Some(counts.ready),
            unacked: Some(counts.unacked),
            consumers: stats.consumers,
            lag_seconds: Some(lag.as_secs_f64()),
            lag_is_lower_bound: is_lower_bound,
            stalled_seconds: Some(stalled.as_secs_f64()),
            ..unknown
        })
    }
}

/// While the counters tell only a lower bound, a classic queue's oldest `timestamp` may tell the age. Our messages carry their
/// commit time, those of others anything: so it is never asked where the counters know.
fn with_head(reading: Reading, unix_now: Duration, head: Option<u64>) -> (Duration, bool) {
    let age = head.and_then(|seconds| unix_now.checked_sub(Duration::from_secs(seconds)));
    match age.filter(|age| reading.is_lower_bound && *age > reading.lag && *age < OLDEST_MESSAGE) {
        Some(age) => (age, false),
        None => (reading.lag, reading.is_lower_bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rabbitmq::management::queues::Counts;

    const UNIX_NOW: Duration = Duration::from_secs(1_800_000_000);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn stats(removed: u64, ready: u64, unacked: u64) -> QueueStats {
        let counts = Counts { ready, unacked, messages: ready + unacked, removed };
        QueueStats { counts: Some(counts), consumers: Some(1), ..QueueStats::default() }
    }

    fn fresh() -> ConsumerQueue {
        ConsumerQueue::new(Duration::ZERO, seconds(5))
    }

    #[test]
    fn only_consumers_that_are_there_can_be_stalled() {
        let mut queue = fresh();
        let mut stalled = |at: u64, consumers: u64| {
            let stats = QueueStats { consumers: Some(consumers), ..stats(10, 3, 0) };
            queue.sample(seconds(at), UNIX_NOW, &stats, None).unwrap().stalled_seconds.unwrap()
        };
        assert_eq!((stalled(5, 0), stalled(500, 0)), (0.0, 0.0));
        assert_eq!((stalled(505, 1), stalled(510, 1)), (0.0, 5.0), "it has just come");
        assert_eq!(stalled(515, 0), 0.0);
    }

    #[test]
    fn a_backlog_from_before_is_a_lower_bound_until_the_timestamp_of_a_classic_queue_tells() {
        let head = |age: i64| QueueStats { head_timestamp: u64::try_from(1_800_000_000 - age).ok(), ..stats(10, 3, 2) };
        let sample = |stats: &QueueStats| {
            let mut queue = fresh();
            queue.sample(seconds(5), UNIX_NOW, stats, None).unwrap();
            let sample = queue.sample(seconds(12), UNIX_NOW, stats, Some(seconds(30))).unwrap();
            assert_eq!((sample.ready, sample.unacked, sample.consumers), (Some(3), Some(2), Some(1)));
            assert_eq!((sample.objective_seconds, sample.stalled_seconds), (Some(30.0), Some(7.0)));
            (sample.lag_seconds.unwrap(), sample.lag_is_lower_bound)
        };
        assert_eq!(sample(&stats(10, 3, 2)), (7.0, true));
        assert_eq!(sample(&head(3600)), (3600.0, false));
        assert_eq!(sample(&head(2)), (7.0, true), "younger than what has been seen");
        assert_eq!(sample(&head(-500)), (7.0, true), "of the future");
        assert_eq!(sample(&head(1_800_000_000)), (7.0, true), "no time at all");
    }

    #[test]
    fn a_timestamp_is_not_asked_where_the_counters_know() {
        let mut queue = fresh();
        queue.sample(seconds(0), UNIX_NOW, &stats(10, 0, 0), None).unwrap();
        let old = QueueStats { head_timestamp: Some(1_799_990_000), ..stats(10, 1, 0) };
        let sample = queue.sample(seconds(5), UNIX_NOW, &old, None).unwrap();
        assert!(sample.lag_seconds.unwrap() <= 5.0 && !sample.lag_is_lower_bound, "{sample:?}");
    }

    #[test]
    fn a_queue_that_serves_nobody_is_not_believed() {
        let minority = QueueStats { unavailable: Some("it has no leader".to_owned()), ..stats(10, 0, 0) };
        let refusal = fresh().sample(seconds(5), UNIX_NOW, &minority, None).unwrap_err();
        assert_eq!(refusal, "it has no leader");
    }

    #[test]
    fn missing_statistics_are_absent_at_first_and_doubtful_later() {
        let nothing = QueueStats::default();
        let mut queue = fresh();
        let sample = queue.sample(seconds(5), UNIX_NOW, &nothing, Some(seconds(30))).unwrap();
        assert_eq!(sample, QueueSample { objective_seconds: Some(30.0), ..QueueSample::default() });
        queue.sample(seconds(31), UNIX_NOW, &nothing, None).unwrap_err();
        queue.sample(seconds(40), UNIX_NOW, &stats(0, 1, 0), None).unwrap();
        queue.sample(seconds(45), UNIX_NOW, &nothing, None).unwrap_err();
    }

    #[test]
    fn what_a_stream_retains_is_no_backlog() {
        let stream = QueueStats { is_stream: true, ..stats(0, 1_000_000, 0) };
        let sample = fresh().sample(seconds(5), UNIX_NOW, &stream, None).unwrap();
        assert_eq!(sample, QueueSample { consumers: Some(1), ..QueueSample::default() });
    }
}
