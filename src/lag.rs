//! Samples what the servers know and the session does not: the slot, and the watched queues.
//!
//! The samplers have connections of their own and go on while the relay is disconnected or halted: that is when somebody
//! looks at the metrics.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::postgres::error::ConnectError;
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::url::{ParseTargetError, Target};
use crate::rabbitmq::connection::{Change, Link, Purpose, connect};
use crate::rabbitmq::topology::{QueueDepth, queue_depth};

const PERIOD: Duration = Duration::from_secs(5);
/// For one statement; also the longest that a sample may hang on a dead connection before it is dropped.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A quorum queue without a leader answers 0 messages and 0 consumers, as an empty one that nobody reads. Elections take
/// less than this many samples; only then is such an answer believed.
const DOUBTFUL_SAMPLES: u32 = 3;

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
}

/// Samples the slot every five seconds until it is dropped.
pub async fn sample_slot(config: &Config, metrics: &Metrics) {
    let mut sampler = Sampler::new("slot", metrics);
    loop {
        let error = match watch_slot(config, metrics, &mut sampler).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        sampler.failed(&error).await;
    }
}

enum Never {}

async fn watch_slot(config: &Config, metrics: &Metrics, sampler: &mut Sampler<'_>) -> Result<Never, SampleError> {
    let url = config.database_url.read()?;
    let target = Target::parse(url.expose_secret(), config.require_tls)?;
    let sql = Sql::connect(&target, "postrider lag", STATEMENT_TIMEOUT).await?;
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let found = timeout(STATEMENT_TIMEOUT, slot_sample(&sql, &config.slot)).await;
        let found = found.map_err(|_| SampleError::Silence)??;
        export_slot(metrics, found.as_ref());
        sampler.succeeded();
    }
}

#[derive(Debug, PartialEq, Eq)]
struct SlotSample {
    active: bool,
    confirmed_lag_bytes: Option<i64>,
    retained_bytes: Option<i64>,
    safe_wal_bytes: Option<i64>,
    wal_status: Option<String>,
}

async fn slot_sample(sql: &Sql, slot: &str) -> Result<Option<SlotSample>, SqlError> {
    let row = sql.client().query_opt(include_str!("../sql/queries/slot_sample.sql"), &[&slot]).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(SlotSample {
        active: row.try_get("active")?,
        confirmed_lag_bytes: row.try_get("confirmed_lag_bytes")?,
        retained_bytes: row.try_get("retained_bytes")?,
        safe_wal_bytes: row.try_get("safe_wal_bytes")?,
        wal_status: row.try_get("wal_status")?,
    }))
}

/// What the server does not know is no series, never 0.
fn export_slot(metrics: &Metrics, sample: Option<&SlotSample>) {
    let bytes = [
        (&metrics.slot_confirmed_lag_bytes, sample.and_then(|sample| sample.confirmed_lag_bytes)),
        (&metrics.slot_retained_bytes, sample.and_then(|sample| sample.retained_bytes)),
        (&metrics.slot_safe_wal_bytes, sample.and_then(|sample| sample.safe_wal_bytes)),
    ];
    for (gauge, value) in bytes {
        match value {
            Some(value) => gauge.get().set(value),
            None => gauge.clear(),
        }
    }
    match sample {
        Some(sample) => metrics.slot_active.get().set(i64::from(sample.active)),
        None => metrics.slot_active.clear(),
    }
    match sample.and_then(|sample| sample.wal_status.as_deref()) {
        Some(status) => metrics.set_slot_wal_status(status),
        None => metrics.clear_slot_wal_status(),
    }
}

/// Samples the watched queues every five seconds until it is dropped. Without watched queues it connects to nothing.
pub async fn sample_queues(config: &Config, metrics: &Metrics) {
    if config.queues.is_empty() {
        return std::future::pending().await;
    }
    let mut sampler = Sampler::new("queues", metrics);
    let mut queues = Queues::default();
    loop {
        let error = match watch_queues(config, metrics, &mut queues, &mut sampler).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        sampler.failed(&error).await;
    }
}

async fn watch_queues(
    config: &Config,
    metrics: &Metrics,
    queues: &mut Queues,
    sampler: &mut Sampler<'_>,
) -> Result<Never, SampleError> {
    let mut link = connect(config, Purpose::Probe).await?;
    let vhost = link.vhost().to_owned();
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
        let mut certain = true;
        for queue in &config.queues {
            let depth = ask(&link, queue).await?;
            certain &= queues.export(metrics, &vhost, queue, depth);
        }
        if certain {
            sampler.succeeded();
        }
    }
}

/// `None`: there is no such queue.
async fn ask(link: &Link, queue: &str) -> Result<Option<QueueDepth>, SampleError> {
    Ok(queue_depth(link, queue).await?)
}

/// What is known of each queue.
#[derive(Default)]
struct Queues(BTreeMap<String, Known>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Missing,
    Exported(QueueDepth),
    /// Exported is this; for so many samples the answer has been 0 and 0.
    Doubtful(QueueDepth, u32),
}

impl Queues {
    /// Exports one sample. False while the answer is not believed: what is exported is the last one that was.
    fn export(&mut self, metrics: &Metrics, vhost: &str, queue: &str, depth: Option<QueueDepth>) -> bool {
        const NOTHING: QueueDepth = QueueDepth { ready: 0, consumers: 0 };
        let before = self.0.get(queue).copied();
        let now = match (before, depth) {
            (_, None) => Known::Missing,
            (Some(Known::Exported(last)), Some(NOTHING)) if last != NOTHING => Known::Doubtful(last, 1),
            (Some(Known::Doubtful(last, samples)), Some(NOTHING)) if samples < DOUBTFUL_SAMPLES => {
                Known::Doubtful(last, samples + 1)
            }
            (_, Some(depth)) => Known::Exported(depth),
        };
        self.0.insert(queue.to_owned(), now);
        let labels = [vhost, queue];
        match now {
            Known::Doubtful(..) => return false,
            Known::Exported(depth) => {
                metrics.queue_messages_ready.with_label_values(&labels).set(i64::from(depth.ready));
                metrics.queue_consumers.with_label_values(&labels).set(i64::from(depth.consumers));
                if before == Some(Known::Missing) {
                    info!(queue, vhost, "the watched queue is there");
                }
            }
            Known::Missing if before == Some(Known::Missing) => {}
            Known::Missing => {
                // Absent already, if it was never there.
                metrics.queue_messages_ready.remove_label_values(&labels).ok();
                metrics.queue_consumers.remove_label_values(&labels).ok();
                warn!(queue, vhost, "the watched queue does not exist: declare it, or take it out of [[queues]]");
            }
        }
        true
    }
}

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

    fn succeeded(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        self.metrics.sampler_last_success.with_label_values(&[self.target]).set(now);
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
        self.metrics.sampler_errors.with_label_values(&[self.target]).inc();
        self.working_since = None;
        let text = error.to_string();
        if self.trouble.as_ref() != Some(&text) {
            warn!(sampler = self.target, error = text, "samples cannot be taken; trying again");
            self.trouble = Some(text);
        }
        sleep(self.pause.mul_f64(rand::random_range(0.8..1.2))).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new("postrider", &[]).unwrap()
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
    fn what_the_server_does_not_know_is_no_series() {
        let metrics = metrics();
        let sample = SlotSample {
            active: true,
            confirmed_lag_bytes: Some(100),
            retained_bytes: Some(200),
            safe_wal_bytes: Some(300),
            wal_status: Some("reserved".to_owned()),
        };
        export_slot(&metrics, Some(&sample));
        let text = metrics.render().unwrap();
        assert!(text.contains("postrider_slot_safe_wal_bytes{slot=\"postrider\"} 300\n"), "{text}");
        assert!(text.contains("postrider_slot_wal_status{status=\"reserved\",slot=\"postrider\"} 1\n"), "{text}");
        export_slot(&metrics, Some(&SlotSample { safe_wal_bytes: None, ..sample }));
        let text = metrics.render().unwrap();
        assert!(!text.contains("postrider_slot_safe_wal_bytes") && text.contains("postrider_slot_retained_bytes"));
        export_slot(&metrics, None);
        assert!(!metrics.render().unwrap().contains("postrider_slot_"), "there is no slot: nothing is said of it");
    }

    #[test]
    fn a_missing_queue_has_no_series() {
        let (metrics, mut queues) = (metrics(), Queues::default());
        assert!(queues.export(&metrics, "/", "q", None));
        assert_eq!(ready(&metrics), None);
        queues.export(&metrics, "/", "q", depth(10, 1));
        assert_eq!(ready(&metrics).as_deref(), Some("10"));
        queues.export(&metrics, "/", "q", None);
        assert_eq!(ready(&metrics), None);
    }

    #[test]
    fn nothing_and_nobody_is_believed_after_a_while_only() {
        let (metrics, mut queues) = (metrics(), Queues::default());
        assert!(queues.export(&metrics, "/", "q", depth(10, 1)));
        for _ in 0..DOUBTFUL_SAMPLES {
            assert!(!queues.export(&metrics, "/", "q", depth(0, 0)), "no success is claimed");
            assert_eq!(ready(&metrics).as_deref(), Some("10"), "the last answer stands");
        }
        assert!(queues.export(&metrics, "/", "q", depth(0, 0)));
        assert_eq!(ready(&metrics).as_deref(), Some("0"));
        assert!(queues.export(&metrics, "/", "q", depth(0, 0)), "from then on it is the state");
        assert!(queues.export(&metrics, "/", "q", depth(3, 0)));
        assert_eq!(ready(&metrics).as_deref(), Some("3"));
        assert!(queues.export(&metrics, "/", "q", depth(0, 1)), "a consumer proves a leader");
        assert_eq!(ready(&metrics).as_deref(), Some("0"));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_the_same_trouble_is_said_once() {
        let metrics = metrics();
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
