//! How long to wait before a retry.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Doubles from `min` to `max`. The wait is drawn from the upper half of the interval, never below `min`, so that what
/// failed together does not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    rng: StdRng,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Backoff { min, max: max.max(min), rng: StdRng::seed_from_u64(seed) }
    }

    /// When to try again after the `failures`th failure in a row (from 1).
    pub(super) fn after(&mut self, failures: u32, now: Instant) -> Instant {
        // 2^20 times any sensible minimum is beyond any sensible maximum.
        let doublings = failures.saturating_sub(1).min(20);
        let longest = self.min.saturating_mul(1 << doublings).min(self.max);
        let shortest = (longest / 2).max(self.min);
        now + self.rng.random_range(shortest..=longest)
    }
}
