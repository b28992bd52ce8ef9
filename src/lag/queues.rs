//! The queues of the consumers.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use super::board::Board;
use super::management::sample_by_management;
use super::{Never, SampleError, Sampler, ticks};
use crate::config::Config;
use crate::metrics::{Metrics, QueueSample};
use crate::rabbitmq::connection::{Change, Purpose, connect, is_refusal};
use crate::rabbitmq::topology::{QueueDepth, queue_depth};
use crate::status::Status;

/// A quorum queue without a leader answers 0 messages and 0 consumers, as an empty one that nobody reads. Elections take
/// less than this many samples; only then is such an answer believed.
const DOUBTFUL_SAMPLES: u32 = 3;

pub(super) const MISSING: &str = "the watched queue does not exist: declare it, or take it out of [[queues]]";
pub(super) const FOUND: &str = "the watched queue is there";

/// Samples the queues of the consumers until it is dropped: by the management API if it is configured, otherwise the listed
/// ones by AMQP. With neither it connects to nothing.
pub async fn sample_queues(config: &Config, metrics: &Metrics, status: &Status) {
    match &config.management_url {
        Some(url) => sample_by_management(config, url, metrics, status).await,
        None if config.queues.is_empty() => std::future::pending().await,
        None => sample_by_amqp(config, metrics, status).await,
    }
}

async fn sample_by_amqp(config: &Config, metrics: &Metrics, status: &Status) {
    let mut sampler = Sampler::new("queues", metrics);
    let mut queues = Queues { known: BTreeMap::new(), board: Board::new(metrics, status) };
    loop {
        let error = match watch_queues(config, &mut queues, &mut sampler).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        sampler.failed(&error).await;
    }
}

async fn watch_queues(
    config: &Config,
    queues: &mut Queues<'_>,
    sampler: &mut Sampler<'_>,
) -> Result<Never, SampleError> {
    let mut link = connect(config, Purpose::Probe).await?;
    if queues.board.of_vhost(link.vhost()) {
        queues.known.clear();
    }
    let mut ticks = ticks();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // Also empties lapin's list of events, which grows with each question about a missing queue.
            change = link.changed() => match change {
                Change::Lost(error) => return Err(error.into()),
                Change::Blocked(_) | Change::Unblocked => continue,
            },
        }
        let (mut certain, mut refused) = (true, None);
        for queue in &config.queues {
            match queue_depth(&link, &queue.name).await {
                Ok(depth) => {
                    certain &= queues.export(&queue.name, depth, queue.max_lag.or(config.consumers.max_lag));
                }
                // A right that is missing (403), or a queue of another connection (405), says nothing about the others.
                Err(error) if is_refusal(&error) => {
                    queues.refused(&queue.name);
                    refused.get_or_insert(SampleError::Refused { queue: queue.name.clone(), error });
                }
                Err(error) => return Err(error.into()),
            }
        }
        queues.board.publish();
        match refused {
            Some(error) => {
                if certain {
                    sampler.answered();
                }
                sampler.noted(&error);
            }
            None if certain => sampler.succeeded(),
            None => {}
        }
    }
}

/// What is known of each queue, and shown of it.
struct Queues<'a> {
    known: BTreeMap<String, Known>,
    board: Board<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Missing,
    Exported(QueueDepth),
    /// Exported is this; for so many samples the answer has been 0 and 0.
    Doubtful(QueueDepth, u32),
}

impl Queues<'_> {
    /// Nothing is known of it any more.
    fn refused(&mut self, queue: &str) {
        self.known.remove(queue);
        self.board.forget(queue);
    }

    /// Exports one sample. False while the answer is not believed: what is exported is the last one that was.
    fn export(&mut self, queue: &str, depth: Option<QueueDepth>, max_lag: Option<Duration>) -> bool {
        const NOTHING: QueueDepth = QueueDepth { ready: 0, consumers: 0 };
        let before = self.known.get(queue).copied();
        let now = match (before, depth) {
            (_, None) => Known::Missing,
            (Some(Known::Exported(last)), Some(NOTHING)) if last != NOTHING => Known::Doubtful(last, 1),
            (Some(Known::Doubtful(last, samples)), Some(NOTHING)) if samples < DOUBTFUL_SAMPLES => {
                Known::Doubtful(last, samples + 1)
            }
            (_, Some(depth)) => Known::Exported(depth),
        };
        self.known.insert(queue.to_owned(), now);
        match now {
            Known::Doubtful(..) => return false,
            Known::Exported(depth) => {
                let (ready, consumers) = (Some(depth.ready.into()), Some(depth.consumers.into()));
                let objective_seconds = max_lag.map(|lag| lag.as_secs_f64());
                self.board.show(queue, QueueSample { ready, consumers, objective_seconds, ..QueueSample::default() });
                if before == Some(Known::Missing) {
                    info!(queue, "{FOUND}");
                }
            }
            Known::Missing if before == Some(Known::Missing) => {}
            Known::Missing => {
                self.board.forget(queue);
                warn!(queue, "{MISSING}");
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new("postrider", &[]).unwrap()
    }

    fn queues<'a>(metrics: &'a Metrics, status: &'a Status) -> Queues<'a> {
        Queues { known: BTreeMap::new(), board: Board::new(metrics, status) }
    }

    fn depth(ready: u32, consumers: u32) -> Option<QueueDepth> {
        Some(QueueDepth { ready, consumers })
    }

    fn ready(metrics: &Metrics) -> Option<String> {
        let text = metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with("postrider_queue_messages_ready{"))?;
        line.rsplit_once(' ').map(|(_, value)| value.to_owned())
    }

    #[test]
    fn a_missing_queue_has_no_series() {
        let (metrics, status) = (metrics(), Status::default());
        let mut queues = queues(&metrics, &status);
        assert!(queues.export("q", None, None));
        assert_eq!(ready(&metrics), None);
        queues.export("q", depth(10, 1), None);
        assert_eq!(ready(&metrics).as_deref(), Some("10"));
        queues.export("q", None, None);
        assert_eq!(ready(&metrics), None);
    }

    #[test]
    fn nothing_and_nobody_is_believed_after_a_while_only() {
        let (metrics, status) = (metrics(), Status::default());
        let mut queues = queues(&metrics, &status);
        assert!(queues.export("q", depth(10, 1), None));
        for _ in 0..DOUBTFUL_SAMPLES {
            assert!(!queues.export("q", depth(0, 0), None), "no success is claimed");
            assert_eq!(ready(&metrics).as_deref(), Some("10"), "the last answer stands");
        }
        assert!(queues.export("q", depth(0, 0), None));
        assert_eq!(ready(&metrics).as_deref(), Some("0"));
        assert!(queues.export("q", depth(0, 0), None), "from then on it is the state");
        assert!(queues.export("q", depth(3, 0), None));
        assert_eq!(ready(&metrics).as_deref(), Some("3"));
        assert!(queues.export("q", depth(0, 1), None), "a consumer proves a leader");
        assert_eq!(ready(&metrics).as_deref(), Some("0"));
    }
}
