//! How long the oldest message of a queue has been in it, from counters alone (rule R10). No I/O; time comes in as an
//! argument.
//!
//! R counts what was acknowledged. What left without an acknowledgement shows as a fall of R + messages. Both together are
//! the departures D; the entries are E = D + messages. First in, first out: the oldest message entered when E passed D.
//!
//! RabbitMQ does not read R and `messages` at one instant: each is up to [`STALENESS`] old. A consumer that acknowledges
//! a hundred at once makes R jump before `messages` falls, or after, and R + messages would seem to rise and fall by a
//! hundred. So a fall counts only once it has lasted: what is judged is the median of as many samples as can see such a jump.

use std::collections::VecDeque;
use std::time::Duration;

/// `messages` passes two timers of 5 s in RabbitMQ: the queue's own tick, and the collector of the management plugin.
const STALENESS: Duration = Duration::from_secs(10);
/// The history is thinned out so that no gap in it is more than this part of its age; that is the error of an age.
const GAPS_PER_AGE: u32 = 20;

/// What a sample says of a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) lag: Duration,
    /// The backlog is older than the history: the lag is at least this.
    pub(super) is_lower_bound: bool,
    /// For how long there have been messages while R stood still.
    pub(super) stalled: Duration,
}

/// The history of one queue. Its size is bounded by the logarithm of the backlog's age: some 300 points for a month.
#[derive(Debug)]
pub(super) struct Age {
    /// Samples that a fall is judged by; odd.
    window: usize,
    series: Option<Series>,
}

#[derive(Debug)]
struct Series {
    /// The newest samples of R + messages, fewer than `window`.
    recent: VecDeque<Point>,
    /// E over time; never falls. The first point is the last one that is not above D, or where the series begins.
    history: VecDeque<Point>,
    /// R + messages as judged at the last point of the history.
    level: u64,
    /// The sum of its falls.
    fallen: u64,
    removed: u64,
    /// The last time that R was seen to change, or the queue to be empty.
    stalled_since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    at: Duration,
    count: u64,
}

impl Age {
    /// For figures that are up to 10 s old and not of one instant, sampled so often.
    pub(super) fn of_statistics(period: Duration) -> Self {
        let visible = STALENESS.as_secs().div_ceil(period.as_secs().max(1)).clamp(1, 4);
        Age { window: 1 + 2 * usize::try_from(visible).unwrap_or(1), series: None }
    }

    /// For two figures of one instant.
    pub(super) fn exact() -> Self {
        Age { window: 1, series: None }
    }

    /// Takes a sample: `removed` is R. `now` counts from any fixed instant and never goes back.
    pub(super) fn observe(&mut self, now: Duration, removed: u64, messages: u64) -> Reading {
        let sample = Point { at: now, count: removed.saturating_add(messages) };
        // A counter that falls is another counter: the broker or the queue has begun again.
        let series = match self.series.take().filter(|series| series.removed <= removed) {
            Some(mut series) => {
                series.add(sample, self.window);
                series
            }
            None => Series::new(sample, removed, self.window),
        };
        self.series.insert(series).read(now, removed, messages)
    }
}

impl Series {
    fn new(sample: Point, removed: u64, window: usize) -> Self {
        Series {
            // Where each sample is judged by itself, the first one has been.
            recent: if window > 1 { [sample].into() } else { VecDeque::new() },
            history: [sample].into(),
            level: sample.count,
            fallen: 0,
            removed,
            stalled_since: sample.at,
        }
    }

    /// Judges the sample in the middle of the window, once there is one.
    fn add(&mut self, sample: Point, window: usize) {
        self.recent.push_back(sample);
        if self.recent.len() < window {
            return;
        }
        let mut counts: Vec<u64> = self.recent.iter().map(|point| point.count).collect();
        counts.sort_unstable();
        let middle = self.recent.get(window / 2).map(|point| point.at);
        if let (Some(at), Some(&level)) = (middle, counts.get(window / 2)) {
            self.fallen = self.fallen.saturating_add(self.level.saturating_sub(level));
            self.level = level;
            self.history.push_back(Point { at, count: level.saturating_add(self.fallen) });
            self.thin_out(sample.at);
        }
        self.recent.pop_front();
    }

    fn read(&mut self, now: Duration, removed: u64, messages: u64) -> Reading {
        if messages == 0 || removed != self.removed {
            self.stalled_since = now;
        }
        self.removed = removed;
        let departed = removed.saturating_add(self.fallen);
        while self.history.get(1).is_some_and(|second| second.count <= departed) {
            self.history.pop_front();
        }
        let entered = if messages == 0 { None } else { self.passed(departed) };
        let lag = if messages == 0 { Duration::ZERO } else { now.saturating_sub(entered.unwrap_or(self.begin(now))) };
        Reading {
            lag,
            is_lower_bound: messages > 0 && entered.is_none(),
            stalled: now.saturating_sub(self.stalled_since),
        }
    }

    fn begin(&self, now: Duration) -> Duration {
        self.history.front().map_or(now, |first| first.at)
    }

    /// When E passed `departed`; `None`: before the history begins.
    fn passed(&self, departed: u64) -> Option<Duration> {
        let last = self.history.back().map_or(Duration::ZERO, |point| point.at);
        let newer = self.recent.iter().filter(|point| point.at > last);
        let newer = newer.map(|point| Point { count: point.count.saturating_add(self.fallen), ..*point });
        let mut before: Option<Point> = None;
        for point in self.history.iter().copied().chain(newer) {
            if point.count > departed {
                return before.map(|before| between(before, point, departed));
            }
            before = Some(point);
        }
        // The newest sample is above `departed` while there are messages.
        before.map(|point| point.at)
    }

    /// The first point stays, and so does the last.
    fn thin_out(&mut self, now: Duration) {
        let all = std::mem::take(&mut self.history);
        let mut nexts = all.iter().skip(1).map(|next| next.at).collect::<VecDeque<_>>();
        for point in all {
            let dispensable = match (self.history.back(), nexts.pop_front()) {
                (Some(before), Some(next)) => next.saturating_sub(before.at) * GAPS_PER_AGE <= now.saturating_sub(next),
                _ => false,
            };
            if !dispensable {
                self.history.push_back(point);
            }
        }
    }
}

/// When the count passed from `departed` to the next one, between two points that lie on its two sides. One that came alone is put into
/// the middle: nothing is known of it but the two times.
fn between(before: Point, after: Point, departed: u64) -> Duration {
    #[allow(clippy::cast_precision_loss, reason = "a part of a span; counts are far below 2^53")]
    let part = {
        let (whole, inside) = (after.count.saturating_sub(before.count), departed.saturating_sub(before.count));
        (inside as f64 + 0.5) / (whole.max(1) as f64)
    };
    before.at + after.at.saturating_sub(before.at).mul_f64(part.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
