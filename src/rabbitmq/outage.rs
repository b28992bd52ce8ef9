//! How long there has been no broker that answers, and when to connect again.

use std::time::{Duration, Instant};

/// Between attempts to connect inside a session: doubled from the first to the second, with jitter.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// Inside one session.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    failures: u32,
    connected_at: Option<Instant>,
    retry_at: Option<Instant>,
    last: String,
}

impl Outage {
    /// There is a connection. Whether it is of use, the answers on it will tell.
    pub(super) fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The broker has confirmed or refused something: there is no outage.
    pub(super) fn answered(&mut self) {
        *self = Outage { connected_at: self.connected_at, ..Outage::default() };
    }

    /// The broker has closed a channel, which is an answer too: connect again at once.
    pub(super) fn refused(&mut self, now: Instant, words: &str) {
        *self = Outage { retry_at: Some(now), last: words.to_owned(), ..Outage::default() };
    }

    /// The connection was lost or given up, or could not be made.
    ///
    /// A broker that accepts connections and never answers on them is not usable, so its outage goes on; one that was
    /// connected for longer than `patience` had perhaps nothing to answer.
    pub(super) fn failed(&mut self, now: Instant, patience: Duration, last: String) {
        if self.connected_at.is_some_and(|at| now.duration_since(at) > patience) {
            *self = Outage::default();
        }
        self.since.get_or_insert(now);
        self.connected_at = None;
        self.retry_at = Some(now + backoff(self.failures));
        self.failures = self.failures.saturating_add(1);
        self.last = last;
    }

    /// When to connect again; `None`: at once.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Why there is no connection, in words.
    pub(super) fn last(&self) -> &str {
        &self.last
    }
}

/// Before the attempt that follows `failures` failed ones.
fn backoff(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = RECONNECT_MIN.saturating_mul(1 << failures.min(10)).min(RECONNECT_MAX);
    rand::random_range(longest / 2..=longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_reconnect_is_immediate_and_later_ones_wait_longer_up_to_a_bound() {
        assert_eq!(backoff(0), Duration::ZERO);
        for failures in 1..40 {
            let wait = backoff(failures);
            assert!((RECONNECT_MIN..=RECONNECT_MAX).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn connections_without_an_answer_do_not_end_an_outage() {
        let start = Instant::now();
        let mut outage = Outage::default();
        outage.failed(start, PATIENCE, "first".to_owned());
        for seconds in 1..5 {
            let now = start + Duration::from_secs(seconds);
            outage.connected(now);
            outage.failed(now, PATIENCE, "again".to_owned());
        }
        assert_eq!((outage.since(), outage.last()), (Some(start), "again"));
        outage.connected(start);
        outage.answered();
        assert_eq!(outage.since(), None);
    }

    #[test]
    fn a_connection_that_was_idle_for_long_begins_a_new_outage() {
        let start = Instant::now();
        let mut outage = Outage::default();
        outage.failed(start, PATIENCE, String::new());
        outage.connected(start);
        let later = start + Duration::from_secs(3_600);
        outage.failed(later, PATIENCE, String::new());
        assert_eq!((outage.since(), outage.retry_at()), (Some(later), Some(later)));
    }
}
