//! Samples what the servers know and the session does not: the slot, and the queues of the consumers.
//!
//! The samplers have connections of their own and go on while the relay is disconnected or halted: that is when somebody
//! looks at the metrics.

mod age;
mod board;
mod consumer_queue;
mod dead_letters;
mod discovery;
mod management;
mod queues;
mod slot;
mod streams;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::postgres::error::ConnectError;
use crate::postgres::sql::SqlError;
use crate::postgres::url::ParseTargetError;

pub use queues::sample_queues;
pub use slot::sample_slot;

const PERIOD: Duration = Duration::from_secs(5);
/// For one statement; also the longest that a sample may hang on a dead connection before it is dropped.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A sample could not be taken. Printed once for each change.
#[derive(Debug, thiserror::Error)]
enum SampleError {
    #[error("database_url: {0}")]
    Secret(#[from] crate::config::load::SecretError),
    #[error(transparent)]
    Url(#[from] ParseTargetError),
    #[error(transparent)]
    Postgres(#[from] ConnectError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error("no answer within {} s", STATEMENT_TIMEOUT.as_secs())]
    Silence,
    #[error(transparent)]
    Broker(#[from] crate::rabbitmq::connection::ConnectError),
    #[error("the probing connection to RabbitMQ is gone: {0}")]
    Amqp(#[from] lapin::Error),
    #[error("amqp_url: {0}")]
    Vhost(String),
    #[error("the management API cannot be asked: {0}")]
    Management(#[from] crate::rabbitmq::management::ManagementError),
    #[error(
        "the management API took more than 60 s for one sample: name the queues that matter in [[queues]] and set consumers.discover = false"
    )]
    SlowRound,
    #[error("what the management API says of queue {queue} is not believed, and its last values stand for 60 s: {why}")]
    Doubtful { queue: String, why: String },
    #[error(
        "the broker tells nothing of queue {queue}: {error}; give the user the right to read it, or take it out of [[queues]]"
    )]
    Refused { queue: String, error: lapin::Error },
}

enum Never {}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The samplers' own metrics, their log lines (one for each change) and their pauses.
struct Sampler<'m> {
    target: &'static str,
    metrics: &'m Metrics,
    trouble: Option<String>,
    pause: Duration,
    working_since: Option<Instant>,
}

impl<'m> Sampler<'m> {
    fn new(target: &'static str, metrics: &'m Metrics) -> Self {
        Sampler { target, metrics, trouble: None, pause: PERIOD, working_since: None }
    }

    /// There is a sample. What is doubtful in it is for [`Sampler::noted`].
    fn answered(&self) {
        self.metrics.sampled(self.target);
    }

    fn succeeded(&mut self) {
        self.answered();
        if self.trouble.take().is_some() {
            info!(sampler = self.target, "samples can be taken again");
        }
        // A connection that lasts a moment each time is no recovery.
        if self.working_since.get_or_insert_with(Instant::now).elapsed() > LONGEST_PAUSE {
            self.pause = PERIOD;
        }
    }

    /// Counts and says it, then waits: longer each time, with jitter so that replicas do not come all at once.
    async fn failed(&mut self, error: &SampleError) {
        self.count_and_say(error, "samples cannot be taken; trying again");
        sleep(self.pause.mul_f64(rand::random_range(0.8..1.2))).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Counts and says it: there is a sample, and something is wrong with it.
    fn noted(&mut self, error: &SampleError) {
        self.count_and_say(error, "a part of the samples cannot be taken; trying again");
    }

    fn count_and_say(&mut self, error: &SampleError, what: &str) {
        self.metrics.sampler_errors.with_label_values(&[self.target]).inc();
        self.working_since = None;
        let text = error.to_string();
        if self.trouble.as_ref() != Some(&text) {
            warn!(sampler = self.target, error = text, "{what}");
            self.trouble = Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_the_same_trouble_is_said_once() {
        let metrics = Metrics::new("postrider", &[]).unwrap();
        let mut sampler = Sampler::new("slot", &metrics);
        let begin = Instant::now();
        for _ in 0..5 {
            sampler.failed(&SampleError::Silence).await;
        }
        assert!(begin.elapsed() > PERIOD * 15, "5, 10, 20, 30 and 30 s, near enough: {:?}", begin.elapsed());
        assert_eq!(metrics.sampler_errors.with_label_values(&["slot"]).get(), 5);
        sampler.succeeded();
        assert!(sampler.trouble.is_none());
    }
}
