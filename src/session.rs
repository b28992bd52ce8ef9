//! One session: from connecting to PostgreSQL until one of the two servers fails or the relay is told to stop.
//!
//! A screenful of glue around the parts without I/O. One `select!` whose arms never await the broker, so that feedback to
//! PostgreSQL keeps flowing while the broker is slow or blocked. It runs on an OS thread of its own with a current-thread
//! runtime, because the replication stream pauses that thread to let data pile up (see [`crate::postgres::replication`]).

mod carrier;
mod snapshots;
mod takeover;

use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use carrier::Carrier;
use snapshots::Snapshots;
use takeover::{LEAVE, left};

use crate::config::load::SecretError;
use crate::config::{Config, SecretSource};
use crate::dead_letters::desk::{Answer, Registry};
use crate::event::Ticket;
use crate::event::captured::ColumnRules;
use crate::event::change::{ChangeBuilder, Origin};
use crate::event::outbox::EventBuilder;
use crate::event::route::{RouteError, Router};
use crate::metrics::Metrics;
use crate::pipeline::continuity::Continuity;
use crate::pipeline::{Pipeline, PipelineError};
use crate::postgres::error::ConnectError;
use crate::postgres::halt::Halt;
use crate::postgres::identity;
use crate::postgres::replication::{ReplicationError, ReplicationStream};
use crate::postgres::slot::{self, SlotError, Taken};
use crate::postgres::sql::{self, Sql, SqlError};
use crate::postgres::state::StateError;
use crate::postgres::url::{ParseTargetError, Target};
use crate::postgres::witness::Witness;
use crate::rabbitmq::publisher::Batch;
use crate::state_writer::{StateWriter, Watched};
use crate::status::{Role, Status};

/// Feedback is coalesced to one status update in this time; PostgreSQL is asked for a keepalive (its word on how far the
/// WAL is) once in [`PING`].
const FEEDBACK: Duration = Duration::from_secs(1);
const PING: Duration = Duration::from_secs(10);
/// Nothing from PostgreSQL for this long, though each [`PING`] asks for an answer: it is dead, and something between keeps the
/// connection. A walsender that decodes a large transaction answers after half of `wal_sender_timeout` (60 s) at the latest.
const SILENCE: Duration = Duration::from_secs(90);
/// The same of the connection for SQL, which is asked for the time with each [`PING`]. Each of its statements has [`STATEMENT_TIMEOUT`], and
/// a few may wait for each other: making a slot, taking over with many dead letters. Who waits longer keeps the slot from those who would
/// carry.
const SQL_SILENCE: Duration = Duration::from_secs(120);
/// Bytes of WAL taken in one go; together with the channel's capacity it bounds what is between reader and publisher. Events take
/// about four times as much, and what fits the processor's cache is cheaper to hand over.
const READ_BYTES: usize = 256 * 1024;
/// For each statement about state: what takes longer is stuck, and tried again in a new session.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a session needs from the relay that runs it.
pub struct Session {
    pub number: u64,
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub status: Status,
    /// To the publisher. Dropped to say: publish what you have, then end.
    pub batches: mpsc::Sender<Batch>,
    /// From the publisher. Closed when it has ended.
    pub resolved: mpsc::UnboundedReceiver<Vec<Ticket>>,
    /// True when the relay is to stop.
    pub stop: watch::Receiver<bool>,
    /// What outlives a session: it is compared with the record (rule R8).
    pub witness: Witness,
    /// What the events need and the broker has not. It keeps a relay from its first start only: later, what it concerns
    /// is held and the rest flows (rule R5).
    pub missing_topology: Option<String>,
}

/// A session that is over.
#[derive(Debug)]
pub struct Ended {
    /// For how long WAL flowed, if it did.
    pub carried: Option<Duration>,
    pub result: Result<(), SessionError>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Target(#[from] ParseTargetError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("the replication connection failed")]
    Replication(#[from] ReplicationError),
    #[error("the SQL session ended")]
    SqlEnded(#[source] Arc<SqlError>),
    #[error(
        "PostgreSQL has not answered a statement for {} s, and keeps the connection: is there a proxy or a firewall between?",
        SQL_SILENCE.as_secs()
    )]
    SqlSilent,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Halt(#[from] Box<Halt>),
    #[error("the publisher has ended")]
    PublisherEnded,
    #[error("the session's thread could not be started or has died")]
    Thread(#[source] Option<std::io::Error>),
}

impl SessionError {
    /// For `postrider_reconnects_total`: one of [`crate::metrics::RECONNECT_REASONS`], if a connection to PostgreSQL is it.
    pub fn reconnect_reason(&self) -> Option<&'static str> {
        match self {
            SessionError::Connect(_) => Some("connect"),
            SessionError::Replication(_) | SessionError::SqlEnded(_) | SessionError::SqlSilent => Some("lost"),
            SessionError::State(error) if error.session_is_gone() => Some("lost"),
            _ => None,
        }
    }

    /// Continuity cannot be proven: the same answer will come until a person has decided.
    pub fn halt(&self) -> Option<&Halt> {
        match self {
            SessionError::Slot(SlotError::Halt(halt)) => Some(halt),
            SessionError::Halt(halt) => Some(halt),
            _ => None,
        }
    }
}

impl Session {
    /// Carries until told to stop (`Ok`) or until something fails. When this returns, both connections are closed. `registry`
    /// is where the publisher has the dead letters written.
    pub async fn run(self, registry: Registry) -> Ended {
        let mut began = None;
        let result = Box::pin(self.run_until_it_ends(registry, &mut began)).await;
        Ended { carried: began.map(|began| began.elapsed()), result }
    }

    async fn run_until_it_ends(
        mut self,
        registry: Registry,
        carried: &mut Option<Instant>,
    ) -> Result<(), SessionError> {
        let url = self.config.database_url.read()?;
        let target = Target::parse(url.expose_secret(), self.config.require_tls)?;
        let mut stop = self.stop.clone();
        let application_name = self.config.application_name();
        let mut sql = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            sql = Sql::connect(&target, &application_name, STATEMENT_TIMEOUT) => sql?,
        };
        let mut ended = sql.ended();
        let started = tokio::select! {
            biased;
            end = ended.wait() => return Err(SessionError::SqlEnded(end)),
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            started = self.start(&target, &mut sql) => started?,
        };
        let Some((stream, taken, epoch, letters)) = started else { return Err(SessionError::PublisherEnded) };

        *carried = Some(Instant::now());
        self.metrics.set_role(Role::Active);
        self.metrics.session_up.set(1);
        self.status.update(|status| {
            status.role = Role::Active;
            status.session_up = true;
            status.standing_by = false;
            status.relay_epoch = Some(epoch);
            status.problem = None;
            status.halt = None;
        });
        let dead_letters = letters.len();
        tracing::info!(slot = self.config.slot, from = %taken.confirmed, relay_epoch = epoch, dead_letters, "carrying");
        let (metrics, status) = (self.metrics.clone(), self.status.clone());
        // Before the first batch: rule R6.
        let loaded = Answer::Loaded { relay_epoch: epoch, letters };
        registry.answers.send(loaded).map_err(|_| SessionError::PublisherEnded)?;
        let watched = Watched { witness: self.witness.clone(), publication: taken.publication.clone() };
        let writer = StateWriter::start(sql, Arc::clone(&self.config), watched, epoch, registry);
        let result = Box::pin(self.carry(stream, &taken, epoch, writer, ended)).await;
        metrics.session_up.set(0);
        metrics.set_role(Role::Standby);
        status.update(|status| {
            status.role = Role::Standby;
            status.session_up = false;
        });
        result
    }

    async fn carry(
        self,
        stream: ReplicationStream,
        taken: &Taken,
        epoch: i64,
        writer: StateWriter,
        mut ended: sql::Ended,
    ) -> Result<(), SessionError> {
        let witness = self.witness.clone();
        let database = &taken.identity.database;
        let name = self.config.name.as_deref().unwrap_or(database);
        let router = Arc::new(Router::new(&self.config.routes)?);
        let max_message_bytes = self.config.limits.max_message_bytes;
        let builder =
            EventBuilder::new(name, database, Arc::clone(&router), &self.config.allowed_headers, max_message_bytes)
                .with_debezium(&self.config.debezium);
        let salt = self.config.redaction_salt.as_ref().map(SecretSource::read).transpose()?;
        let salt = salt.as_ref().map_or("", |salt| salt.expose_secret());
        let changes = ChangeBuilder::new(
            name,
            database,
            Origin { system_identifier: taken.identity.system_identifier, database_oid: taken.identity.database_oid },
            router,
            ColumnRules::new(&self.config.source.columns, salt.as_bytes()),
            &self.config.debezium,
            &self.config.source.skip,
            max_message_bytes,
        );
        let mut pipeline = Pipeline::new(
            self.number,
            taken.confirmed,
            taken.source_epoch,
            &self.config.slot,
            &self.config.outbox,
            &self.config.source,
            Continuity::new(taken.recorded_heartbeat_no, taken.heartbeat_no, taken.born),
            builder,
            changes,
        );
        if self.config.source.emit {
            pipeline.take_emitted();
        }
        let mut carrier = Carrier {
            began: Instant::now(),
            answered: Instant::now(),
            acknowledged: taken.confirmed,
            intended: taken.confirmed,
            received: taken.confirmed,
            own_progress: false,
            afterwards: None,
            last_beat: None,
            // What the session before has delivered may not have been shown.
            unshown_event: true,
            beats_fail: false,
            beaten_at: taken.confirmed,
            clock: None,
            unrecorded: false,
            stream,
            pipeline,
            writer,
            heartbeat_interval: self.config.limits.heartbeat_interval,
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            slot: self.config.slot.clone(),
            publication: (self.config.publication.clone(), taken.publication.clone()),
            remedy: slot::create_publication(&self.config),
            proven: taken.confirmed,
            looking: None,
            captures: taken.captures.clone(),
            identities: identity::Watch::new(&self.config),
            unwitnessed: false,
            undescribed: None,
            passed_heartbeat: None,
            snapshots: Snapshots::new(&self.config, &self.metrics, epoch, taken.captures.is_some()),
        };
        let result = match self.pump(&mut carrier, &mut ended).await {
            Ok(()) => carrier.finish().await,
            // What it has delivered by then is acknowledged, or the next session would send it again.
            Err(SessionError::PublisherEnded) => tokio::select! {
                biased;
                end = ended.wait() => Err(SessionError::SqlEnded(end)),
                finished = carrier.finish() => finished.and(Err(SessionError::PublisherEnded)),
            },
            Err(error) => Err(error),
        };
        match &result {
            // Before the replication connection is closed, and the lock with it: a standby finds the halt.
            Err(SessionError::Halt(halt)) => {
                let write = timeout(LEAVE, carrier.writer.leave(Halt::clone(halt))).await;
                left(&witness, halt, write.ok().flatten());
            }
            Ok(()) | Err(SessionError::PublisherEnded) => carrier.stream.close().await,
            Err(_) => {}
        }
        result
    }

    /// Reads, hands over and answers until the relay is to stop and has drained (`Ok`), or until something ends.
    async fn pump(mut self, carrier: &mut Carrier, ended: &mut sql::Ended) -> Result<(), SessionError> {
        let mut feedback = interval(FEEDBACK);
        feedback.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A status update for each third of what the server waits, also while nothing is read: its own questions go unread then.
        let mut ping = interval(PING.min(carrier.stream.sender_timeout() / 3));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The sender, or the room it has reserved: never both. Dropping it tells the publisher to finish what it has.
        let mut batches = Some(self.batches);
        let mut room: Option<mpsc::OwnedPermit<Batch>> = None;
        let mut frames = Vec::new();
        let mut drain_until: Option<Instant> = None;
        // While nothing is read nothing is heard.
        let mut deaf_until = Instant::now();

        loop {
            let reading = drain_until.is_none();
            let silent_at = carrier.stream.heard().max(deaf_until) + SILENCE;
            tokio::select! {
                biased;
                // R9: PostgreSQL ends ordinary sessions first when it shuts down. Returning drops the replication
                // connection at once, whatever is undelivered, so that the shutdown does not wait for us.
                end = ended.wait() => return Err(SessionError::SqlEnded(end)),
                tickets = self.resolved.recv() => match tickets {
                    Some(tickets) => {
                        carrier.resolve(&tickets);
                        while let Ok(tickets) = self.resolved.try_recv() {
                            carrier.resolve(&tickets);
                        }
                        carrier.note_progress();
                    }
                    None if !reading => return Ok(()),
                    None => return Err(SessionError::PublisherEnded),
                },
                written = carrier.writer.written() => {
                    let waited = carrier.undescribed.is_some();
                    carrier.on_written(written).await?;
                    if waited && carrier.undescribed.is_none() {
                        deaf_until = Instant::now();
                    }
                }
                said = carrier.snapshots.said() => carrier.on_snapshot(said),
                _ = feedback.tick() => carrier.feedback(false).await?,
                _ = ping.tick() => carrier.feedback(true).await?,
                _ = self.stop.wait_for(|stop| *stop), if reading => {
                    batches = None;
                    room = None;
                    drain_until = Some(Instant::now() + self.config.limits.drain_timeout);
                }
                () = sleep_until(drain_until), if !reading => {
                    tracing::info!(
                        unresolved = carrier.pipeline.progress().unresolved(),
                        "stopping without waiting longer; what is undelivered will be sent again at the next start",
                    );
                    return Ok(());
                }
                // Reading waits for room with the publisher: this is the back-pressure, and feedback goes on meanwhile.
                reserved = reserve(&mut batches), if reading && room.is_none() => {
                    room = Some(reserved.ok_or(SessionError::PublisherEnded)?);
                    deaf_until = Instant::now();
                }
                // What was left behind a table that had to be looked up.
                () = std::future::ready(()), if room.is_some() && !frames.is_empty() && carrier.undescribed.is_none() => {
                    let events = carrier.take(&mut frames).await?;
                    if !events.is_empty() && let Some(permit) = room.take() {
                        batches = Some(permit.send(Batch { events }));
                    }
                    carrier.note_progress();
                    deaf_until = Instant::now();
                }
                read = carrier.stream.next_batch(&mut frames, READ_BYTES), if room.is_some() && frames.is_empty() && carrier.undescribed.is_none() => {
                    read.map_err(|error| carrier.stream_ended(error))?;
                    let events = carrier.take(&mut frames).await?;
                    if !events.is_empty() && let Some(permit) = room.take() {
                        batches = Some(permit.send(Batch { events }));
                    }
                    carrier.note_progress();
                }
                () = sleep_until(Some(silent_at)), if room.is_some() && carrier.undescribed.is_none() => {
                    let silence = ReplicationError::Timeout { what: "a sign of life", seconds: SILENCE.as_secs() };
                    return Err(silence.into());
                }
            }
        }
    }
}

/// Room for one batch with the publisher; `None` when it has ended. Cancel-safe: the sender stays where it is until then.
async fn reserve(batches: &mut Option<mpsc::Sender<Batch>>) -> Option<mpsc::OwnedPermit<Batch>> {
    let sender = batches.as_ref()?.clone();
    let permit = sender.reserve_owned().await.ok()?;
    *batches = None;
    Some(permit)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
