//! The queues of the consumers, as RabbitMQ's management API tells of them: how late each is, and what its consumers could
//! not handle. The API is another program on another port: whatever it does, nothing else waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use super::board::Board;
use super::consumer_queue::ConsumerQueue;
use super::dead_letters::{self, Reach};
use super::discovery::{self, Because, MOST_QUEUES, Walk, Watched};
use super::streams::Streams;
use super::{SampleError, Sampler};
use crate::config::{Config, SecretSource};
use crate::metrics::{DeadLetterQueueSample, Metrics};
use crate::rabbitmq::management::queues::{self, DeadLettering, ListedQueue, QueueStats};
use crate::rabbitmq::management::{Api, Binding, Exchange, ManagementError, bindings};
use crate::rabbitmq::url::Target;
use crate::status::Status;

/// Between two looks at which queues there are, and what is bound to what.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// For all requests of one sample together.
const ROUND: Duration = Duration::from_secs(60);
/// So long the last values of a queue stand when what is said of it is not believed: an election is shorter. Then it has none, so that
/// the others need not count as stale.
const DOUBT: Duration = Duration::from_secs(60);
/// So many queues are asked for one by one. Beyond it a page of them costs the broker about as much as ten.
const FEW: usize = 10;

/// Samples until it is dropped.
pub(super) async fn sample_by_management(config: &Config, url: &SecretSource, metrics: &Metrics, status: &Status) {
    let mut sampler = Sampler::new("management", metrics);
    let mut watch = Watch::new(config, url, metrics, status);
    let mut ticks = interval(config.consumers.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(ROUND, watch.round()).await.unwrap_or(Err(SampleError::SlowRound)) {
            Ok(doubts) => match doubts.into_iter().next() {
                None => sampler.succeeded(),
                Some(doubt) => {
                    sampler.answered();
                    sampler.noted(&doubt);
                }
            },
            Err(error) => sampler.failed(&error).await,
        }
    }
}

struct Watch<'a> {
    config: &'a Config,
    url: &'a SecretSource,
    metrics: &'a Metrics,
    board: Board<'a>,
    began: Instant,
    looked_around: Option<Instant>,
    watched: BTreeMap<String, Watched>,
    left_out: usize,
    /// What is known of each watched queue.
    known: BTreeMap<String, ConsumerQueue>,
    /// Listed queues that do not exist.
    missing: BTreeSet<String>,
    /// As of the last look.
    reach: Reach,
    dead_letters: BTreeMap<String, DeadLetterQueue>,
    streams: Streams,
    /// When its plugin last told of them.
    streams_told: Option<Duration>,
    /// Pages of a listing with statistics, by the last one.
    pages: usize,
}

struct DeadLetterQueue {
    /// When it was last seen empty or missing, or first seen.
    empty: Duration,
    /// When what is said of it was last believed, or when it was first seen.
    believed: Duration,
}

impl<'a> Watch<'a> {
    fn new(config: &'a Config, url: &'a SecretSource, metrics: &'a Metrics, status: &'a Status) -> Self {
        Watch {
            config,
            url,
            metrics,
            board: Board::new(metrics, status),
            began: Instant::now(),
            looked_around: None,
            watched: BTreeMap::new(),
            left_out: 0,
            known: BTreeMap::new(),
            missing: BTreeSet::new(),
            reach: Reach::new(),
            dead_letters: BTreeMap::new(),
            streams: Streams::default(),
            streams_told: None,
            pages: 1,
        }
    }

    /// One sample of everything. What comes back is not believed, and its last values stand for [`DOUBT`].
    async fn round(&mut self) -> Result<Vec<SampleError>, SampleError> {
        // Both URLs may be files that have changed.
        let target = Target::new(self.config.amqp_url.read()?.expose_secret(), self.config)
            .map_err(|error| SampleError::Vhost(error.to_string()))?;
        let vhost = target.vhost.as_str();
        if self.board.of_vhost(vhost) {
            self.forget_everything();
        }
        let mut api = Api::new(self.config, self.url)?;
        if self.looked_around.is_none_or(|last| last.elapsed() >= LOOK_AROUND) {
            self.look_around(&mut api, vhost).await?;
            self.looked_around = Some(Instant::now());
        }
        let mut stats = self.ask(&mut api, vhost).await?;
        self.find_dead_letter_queues(&mut api, vhost, &mut stats).await?;
        let mut doubts = Vec::new();
        if self.watched.keys().any(|name| stats.get(name).is_some_and(|queue| queue.is_stream)) {
            match queues::stream_consumers(&mut api, vhost).await {
                Ok(consumers) => {
                    let now = self.began.elapsed();
                    self.streams_told = Some(now);
                    self.streams.observe(now, consumers.unwrap_or_default());
                }
                // Another plugin: what it says wrong is no reason to lose the other queues.
                Err(error) => doubts.push(error.into()),
            }
        }
        self.show(vhost, &stats, &mut doubts);
        self.show_dead_letters(&stats, &mut doubts);
        let (watched, dead_letters) = (&self.watched, &self.dead_letters);
        let shown = |name: &str| watched.contains_key(name) && stats.contains_key(name);
        let ordinary = |name: &str| shown(name) && is_ordinary(watched, dead_letters, name);
        self.board.keep(ordinary, |name| dead_letters.contains_key(name) && stats.contains_key(name));
        self.known.retain(|name, _| ordinary(name));
        self.board.publish();
        Ok(doubts)
    }

    /// What is known is of another vhost's queues, though some may have the same names.
    fn forget_everything(&mut self) {
        self.looked_around = None;
        self.watched.clear();
        self.known.clear();
        self.missing.clear();
        self.reach.clear();
        self.dead_letters.clear();
        self.streams = Streams::default();
        self.streams_told = None;
        self.pages = 1;
    }

    /// Which queues there are to watch.
    async fn look_around(&mut self, api: &mut Api<'_>, vhost: &str) -> Result<(), ManagementError> {
        let mut bound = BTreeSet::new();
        if self.config.consumers.discover {
            bound = walk(api, vhost, Walk::new(self.config.exchanges(), None)).await?;
        }
        let needs_names = self.config.consumers.discover || self.config.queues.iter().any(|queue| queue.is_pattern());
        let mut existing: Vec<ListedQueue> = Vec::new();
        if needs_names {
            existing = queues::list(api, vhost).await?;
            self.pages = queues::pages_of(existing.len());
            let listed: BTreeSet<&str> = existing.iter().map(|queue| queue.name.as_str()).collect();
            // As in [`Watch::ask`]: what was watched is gone only if it is not there by its name.
            let watched = self.watched.iter().filter(|(_, watched)| watched.because != Because::Listed);
            let unlisted: Vec<String> =
                watched.map(|(name, _)| name.clone()).filter(|name| !listed.contains(name.as_str())).collect();
            for name in unlisted {
                if queues::queue(api, vhost, &name).await?.is_some() {
                    existing.push(ListedQueue { name, exclusive: false, auto_delete: false });
                }
            }
        } else {
            queues::vhost_is_shown(api, vhost).await?;
        }
        let (watched, left_out) = discovery::choose(self.config, &existing, &bound);
        self.watched = watched;
        self.reach.clear();
        self.metrics.queues.left_out.set(i64::try_from(left_out).unwrap_or(i64::MAX));
        if left_out > 0 && self.left_out == 0 {
            warn!(
                left_out,
                watched = MOST_QUEUES,
                "there are more queues than are watched: list those that matter in [[queues]]"
            );
        }
        self.left_out = left_out;
        Ok(())
    }

    /// The statistics of the watched queues that exist; of more, if they come along.
    async fn ask(&mut self, api: &mut Api<'_>, vhost: &str) -> Result<BTreeMap<String, QueueStats>, ManagementError> {
        let mut names: BTreeSet<String> = self.watched.keys().chain(self.dead_letters.keys()).cloned().collect();
        let mut stats = BTreeMap::new();
        if names.len() > FEW.saturating_mul(self.pages.max(1)) {
            (stats, self.pages) = queues::all(api, vhost, &names).await?;
            // A queue that is deleted between two pages moves another one over their boundary, past us.
            names.retain(|name| !stats.contains_key(name) && !self.missing.contains(name));
        }
        for name in names {
            if let Some(queue) = queues::queue(api, vhost, &name).await? {
                stats.insert(name, queue);
            }
        }
        Ok(stats)
    }

    /// Asks for what is not in `stats` yet.
    async fn find_dead_letter_queues(
        &mut self,
        api: &mut Api<'_>,
        vhost: &str,
        stats: &mut BTreeMap<String, QueueStats>,
    ) -> Result<(), ManagementError> {
        let mut ways: BTreeMap<String, DeadLettering> = BTreeMap::new();
        let mut next: BTreeSet<String> = self.watched.keys().cloned().collect();
        // The ways of the watched queues, then those of the queues that they reach.
        for _ in 0..2 {
            let mut reached = BTreeSet::new();
            for name in std::mem::take(&mut next) {
                if !stats.contains_key(&name) && !self.watched.contains_key(&name) {
                    stats.extend(queues::queue(api, vhost, &name).await?.map(|queue| (name.clone(), queue)));
                }
                let Some(way) = stats.get(&name).and_then(|queue| queue.dead_letters.clone()) else { continue };
                if !self.reach.contains_key(&way) {
                    let queues = match dead_letters::without_bindings(&way) {
                        Some(queues) => queues,
                        None => {
                            let from = Walk::new([way.exchange.as_str()], way.routing_key.clone());
                            walk(api, vhost, from).await?
                        }
                    };
                    self.reach.insert(way.clone(), queues);
                }
                let queues = self.reach.get(&way).into_iter().flatten();
                reached.extend(queues.filter(|queue| !ways.contains_key(*queue)).take(MOST_QUEUES).cloned());
                ways.insert(name, way);
            }
            next = reached;
        }
        let now = self.began.elapsed();
        let found = dead_letters::choose(&self.watched, &ways, &self.reach);
        self.dead_letters.retain(|name, _| found.contains(name));
        for name in found {
            self.dead_letters.entry(name).or_insert(DeadLetterQueue { empty: now, believed: now });
        }
        Ok(())
    }

    fn show(&mut self, vhost: &str, stats: &BTreeMap<String, QueueStats>, doubts: &mut Vec<SampleError>) {
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = self.began.elapsed();
        let streams_stand = self.streams_told.is_some_and(|told| now.saturating_sub(told) < DOUBT);
        for (name, watched) in &self.watched {
            if !is_ordinary(&self.watched, &self.dead_letters, name) {
                continue;
            }
            let Some(stats) = stats.get(name) else {
                if watched.because != Because::Listed {
                    debug!(queue = name, vhost, "a watched queue is gone");
                } else if self.missing.insert(name.clone()) {
                    warn!(queue = name, vhost, "{}", super::queues::MISSING);
                }
                continue;
            };
            if self.missing.remove(name) {
                info!(queue = name, vhost, "{}", super::queues::FOUND);
            }
            let period = self.config.consumers.period;
            let known = self.known.entry(name.clone()).or_insert_with(|| ConsumerQueue::new(now, period));
            match known.sample(now, unix_now, stats, watched.max_lag) {
                Ok(sample) if streams_stand => self.board.show(name, self.streams.complete(name, sample)),
                Ok(sample) => self.board.show(name, sample),
                Err(why) => {
                    if known.in_doubt(now) >= DOUBT {
                        self.board.forget(name);
                    }
                    doubts.push(SampleError::Doubtful { queue: name.clone(), why });
                }
            }
        }
    }

    fn show_dead_letters(&mut self, stats: &BTreeMap<String, QueueStats>, doubts: &mut Vec<SampleError>) {
        let now = self.began.elapsed();
        for (name, known) in &mut self.dead_letters {
            let Some(queue) = stats.get(name) else {
                *known = DeadLetterQueue { empty: now, believed: now };
                continue;
            };
            if queue.is_stream {
                continue;
            }
            if let Some(why) = &queue.unavailable {
                doubts.push(SampleError::Doubtful { queue: name.clone(), why: why.clone() });
            }
            let Some(counts) = queue.counts.filter(|_| queue.unavailable.is_none()) else {
                if now.saturating_sub(known.believed) >= DOUBT {
                    self.board.forget_dead_letters(name);
                }
                continue;
            };
            known.believed = now;
            if counts.messages == 0 {
                known.empty = now;
            }
            let nonempty_seconds = now.saturating_sub(known.empty).as_secs_f64();
            self.board.show_dead_letters(name, DeadLetterQueueSample { messages: counts.messages, nonempty_seconds });
        }
    }
}

/// A pattern may match a dead-letter queue too, which nobody is expected to empty in time.
fn is_ordinary(
    watched: &BTreeMap<String, Watched>,
    dead_letters: &BTreeMap<String, DeadLetterQueue>,
    name: &str,
) -> bool {
    let only_matched = watched.get(name).is_some_and(|watched| watched.because == Because::Matched);
    !(only_matched && dead_letters.contains_key(name))
}

async fn walk(api: &mut Api<'_>, vhost: &str, mut walk: Walk) -> Result<BTreeSet<String>, ManagementError> {
    while let Some(name) = walk.next() {
        // An exchange that does not exist yet leads nowhere.
        let found: Option<(Exchange, Vec<Binding>)> = bindings(api, vhost, &name).await?;
        if let Some((exchange, bindings)) = found {
            walk.found(&exchange, &bindings);
        }
    }
    Ok(walk.end())
}

#[cfg(test)]
mod tests;
