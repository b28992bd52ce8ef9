//! Taking the slot: the lock, what may be resumed, and the slot's making at first start.
//!
//! The order matters (rules R6, R7; manual, chapter "Logical Decoding Concepts"). The advisory lock is taken in the
//! replication connection, so that it dies with the walsender. The publication must be committed before the slot exists,
//! because pgoutput reads the catalog as of each change. The intent is recorded before the slot is made, so that a crash in
//! between is told apart from a slot of somebody else's.

mod publication;

use std::time::Duration;

use tokio_postgres::Client;

use crate::config::Config;
use crate::error;
use crate::faults::{self, Bug, Point};
use crate::lsn::Lsn;
use crate::postgres::capture::Captured;
use crate::postgres::halt::{self, Cause, Halt, Scene, SlotRow};
use crate::postgres::halts;
use crate::postgres::quote::{quote_ident, quote_literal};
use crate::postgres::replication::{ReplicationConnection, ReplicationError, Rows};
use crate::postgres::state::{self, HeartbeatNo, Phase, Record, ServerIdentity, Source, StateError};
use crate::postgres::timeline;
use crate::postgres::witness::{Known, Witness};

pub use publication::{Published, check_publication, create_publication};

/// How long the making of a slot may wait for running transactions before it gives up and names them. While it waits, a
/// walsender is taken and the slot holds back vacuum.
const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Counting the rows that were there before the slot is a courtesy; it must not take the first start hostage.
const COUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// `server_version_num` from which on a slot can survive the promotion of a standby.
const FAILOVER_SLOTS: u32 = 170_000;
/// For statements that only look something up.
const QUICK: Duration = Duration::from_secs(10);
/// What makes the publications of captured tables.
pub const REMAKE: &str = "postrider migrate";
/// Added to a time-out of the server's, so that its own comes first, with its own words.
const GRACE: Duration = Duration::from_secs(5);

/// What a session starts from.
#[derive(Debug)]
pub struct Taken {
    pub identity: ServerIdentity,
    /// What the slot has confirmed.
    pub confirmed: Lsn,
    /// It was made just now: what was remembered of an earlier one of its name means nothing any more.
    pub made: bool,
    /// Goes into positions (see [`crate::event::Position`]).
    pub source_epoch: u32,
    /// What the publications are made of.
    pub publication: String,
    /// Those of captured tables are read too. `None`: they are older than what the slot still has to send, or nothing is captured.
    pub captures: Option<[String; 2]>,
    /// The newest heartbeat that may have been acknowledged: the first one may be at most one more (D10).
    pub recorded_heartbeat_no: Option<HeartbeatNo>,
    /// The last one that was written.
    pub heartbeat_no: HeartbeatNo,
    /// The first transaction of the slot's life.
    pub born: u64,
    /// What the second witness knew.
    pub known: Option<Known>,
}

impl Taken {
    pub fn source(&self) -> Source<'_> {
        Source { timeline: self.identity.timeline, epoch: self.source_epoch, publication: &self.publication }
    }

    /// For START_REPLICATION.
    pub fn publications<'a>(&'a self, config: &'a Config) -> Vec<&'a str> {
        let captures = self.captures.iter().flatten().map(String::as_str);
        std::iter::once(config.publication.as_str()).chain(captures).collect()
    }
}

/// What this process knows before it looks.
#[derive(Debug)]
pub struct Before<'a> {
    /// It stands in for a record that could not be written (rule R8), and against one that was rewound.
    pub witness: &'a Witness,
    /// A slot is not made while there is nowhere to publish to: nobody would notice the WAL that it keeps.
    pub missing_topology: Option<String>,
}

/// Why the slot cannot be taken now. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error(
        "the two connections reached different servers (started {replication} and {sql}); DATABASE_URL must lead both to one primary"
    )]
    DifferentServers { replication: String, sql: String },
    #[error(
        "the server is a standby (in recovery); Postrider needs the primary: put both hosts into DATABASE_URL with target_session_attrs=read-write"
    )]
    InRecovery,
    #[error(
        "wal_level is {0}, and logical replication needs `logical`: run `alter system set wal_level = 'logical'` and restart PostgreSQL"
    )]
    WalLevel(String),
    #[error(
        "the schema `postrider` is not there or not complete: run `postrider migrate` as the owner of the database"
    )]
    NotMigrated,
    #[error("publication {publication} does not exist: as the owner of the tables run `{statement}`")]
    PublicationMissing { publication: String, statement: String },
    /// While the slot was never read with it nothing can have been missed.
    #[error(
        "publication {publication} (captured tables) does not exist: as the owner of the tables run `postrider migrate`"
    )]
    CaptureMissing { publication: String },
    #[error("captured tables are carried from now on: starting again with their publications")]
    CaptureReady,
    #[error("publication {publication} does not publish {what}: run `{statement}`")]
    PublicationIncomplete { publication: String, what: String, statement: String },
    #[error("slot {slot} is not made yet: {obstacle}")]
    NotYet { slot: String, obstacle: String },
    #[error(
        "making slot {slot} waited {seconds} s for transactions that were running already; end them, or wait. They are: {blockers}"
    )]
    Blocked { slot: String, seconds: u64, blockers: String },
    #[error("slot {slot} cannot be made: {hint}")]
    CannotCreate {
        slot: String,
        hint: &'static str,
        #[source]
        source: ReplicationError,
    },
    #[error(transparent)]
    Halt(#[from] Halt),
    #[error("the replication connection failed")]
    Replication(#[from] ReplicationError),
    #[error("reading the slot's state failed")]
    Sql(#[from] tokio_postgres::Error),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Leaves the slot ready for START_REPLICATION, or says why it cannot be. The caller has the lock ([`try_lock`]).
pub async fn take(
    sql: &mut Client,
    replication: &mut ReplicationConnection,
    config: &Config,
    before: Before<'_>,
) -> Result<Taken, SlotError> {
    let identity = state::server_identity(sql).await?;
    same_server(sql, replication).await?;
    if identity.in_recovery {
        return Err(SlotError::InRecovery);
    }
    let wal_level: String = sql.query_one("select pg_catalog.current_setting('wal_level')", &[]).await?.get(0);
    if wal_level != "logical" {
        return Err(SlotError::WalLevel(wal_level));
    }
    if crate::migrate::version(sql).await? < crate::migrate::LATEST {
        return Err(SlotError::NotMigrated);
    }
    if faults::seeded(Bug::RecreateSlot) && find(sql, &config.slot).await?.is_none() {
        sql.execute("update postrider.progress set phase = 'creating' where slot = $1", &[&config.slot]).await?;
    }
    let record = state::load(sql, &config.slot).await?;
    let (scene, known) = look(sql, Some(replication), config, before.witness, identity, record).await?;
    halt::examine(&config.slot, &scene, known.as_ref().filter(|_| !faults::seeded(Bug::RecreateSlot)))?;
    if let Some(left) = halts::load(sql, &config.slot).await?.filter(|left| left.decided_by_a_person) {
        return Err(Halt::left(&config.slot, &left).into());
    }
    if let Some(halt) = known.as_ref().and_then(|known| known.halt.clone()) {
        return Err(halt.into());
    }
    let recorded = scene.record.as_ref().and_then(|record| record.publication_state.as_deref());
    let seen = check_publication(sql, config, recorded).await;
    if let Some(halt) = missed(config, &scene, &seen) {
        return Err(halt.into());
    }
    let seen = seen?;
    if config.source.has_tables() && scene.slot.is_some() && seen.captures(config).is_none() {
        tracing::warn!(
            slot = config.slot,
            "changes of captured tables are not carried yet: their publications are younger than what the slot has still to send"
        );
    }
    let Scene { identity, slot, record, .. } = scene;
    let (Some(record), Some(slot)) = (record, slot) else {
        return match before.missing_topology {
            Some(obstacle) => Err(SlotError::NotYet { slot: config.slot.clone(), obstacle }),
            None => create(sql, replication, config, identity, seen).await,
        };
    };
    let mut source_epoch = record.source_epoch;
    // A crash came between the slot's making and its record.
    if record.phase == Phase::Creating {
        state::slot_created(sql, &config.slot, slot.confirmed, &config.outbox).await?;
    } else if record.timeline != identity.timeline {
        // What was published and not yet acknowledged may be another transaction's here, at the same position.
        source_epoch += 1;
        tracing::warn!(
            slot = record.slot,
            from = record.timeline,
            to = identity.timeline,
            source_epoch,
            "the server is on a new timeline, which has all that was acknowledged; going on in a new source epoch"
        );
    }
    Ok(Taken {
        confirmed: slot.confirmed,
        made: false,
        source_epoch,
        publication: seen.state(),
        captures: seen.captures(config),
        recorded_heartbeat_no: record
            .recorded_heartbeat_no
            .max(known.as_ref().and_then(|known| known.recorded_heartbeat_no)),
        heartbeat_no: record.heartbeat_no,
        born: record.born.unwrap_or_default(),
        identity,
        known,
    })
}

/// What the halt rules compare, and the second witness.
pub async fn look(
    sql: &Client,
    replication: Option<&mut ReplicationConnection>,
    config: &Config,
    witness: &Witness,
    identity: ServerIdentity,
    record: Option<Record>,
) -> Result<(Scene, Option<Known>), SlotError> {
    let slot = find(sql, &config.slot).await?;
    let flushed = flushed(sql).await?;
    // An adoption has made the older witness worthless. A new timeline has not: it raises the epoch too.
    let adopted = state::newest_adoption(sql, &config.slot).await?.unwrap_or_default();
    let known = witness.read(&config.slot).map_err(|error| Halt {
        slot: config.slot.clone(),
        from: record.as_ref().and_then(|record| record.acknowledged).unwrap_or_default(),
        to: flushed,
        cause: Cause::StateFile { problem: error.to_string() },
    })?;
    let known = known.filter(|known| known.source_epoch >= adopted);
    let recorded = record.as_ref().map(|record| record.timeline);
    let fork = match (recorded, replication) {
        (Some(recorded), Some(replication)) if recorded != identity.timeline => {
            Some(timeline::fork(replication, recorded, identity.timeline).await)
        }
        _ => None,
    };
    Ok((Scene { identity, slot, record, flushed, fork }, known))
}

/// Where the server's WAL ends.
pub async fn flushed(sql: &Client) -> Result<Lsn, tokio_postgres::Error> {
    Ok(lsn(sql.query_one("select pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await?.get(0)))
}

/// Whether rows have passed unseen because the publication is not what it was when the slot was taken first (D9).
pub async fn missed_publication(sql: &Client, config: &Config, scene: &Scene) -> Result<Option<Halt>, SlotError> {
    let recorded = scene.record.as_ref().and_then(|record| record.publication_state.as_deref());
    Ok(missed(config, scene, &check_publication(sql, config, recorded).await))
}

/// A publication that is not what it was when the slot was taken first: rows have passed unseen, or will. Before that nothing can have been
/// missed.
fn missed(config: &Config, scene: &Scene, found: &Result<Published, SlotError>) -> Option<Halt> {
    let record = scene.record.as_ref().filter(|record| record.phase == Phase::Ready)?;
    let changed = |observed: String, remedy: Option<&String>| Cause::PublicationChanged {
        publication: config.publication.clone(),
        recorded: record.publication_state.clone().unwrap_or_else(|| "complete".to_owned()),
        observed,
        remedy: remedy.cloned(),
    };
    let cause = match found {
        Ok(seen) => changed(seen.change.clone()?, None),
        Err(SlotError::PublicationMissing { publication, statement }) => {
            Cause::PublicationMissing { publication: publication.clone(), remedy: statement.clone() }
        }
        Err(SlotError::PublicationIncomplete { what, statement, .. }) => {
            changed(format!("without {what}"), Some(statement))
        }
        Err(SlotError::CaptureMissing { publication }) => {
            let (_, recorded) = Captured::split(record.publication_state.as_deref()?);
            recorded.is_some().then_some(())?;
            Cause::PublicationMissing { publication: publication.clone(), remedy: REMAKE.to_owned() }
        }
        Err(_) => return None,
    };
    let from = record.acknowledged.unwrap_or_default();
    Some(Halt { slot: config.slot.clone(), cause, from, to: scene.flushed })
}

/// A load balancer in front of two servers would let us write state to one and read WAL from the other. A standby has its primary's system
/// identifier, and a clone may have been started in the same instant: both are asked.
async fn same_server(sql: &Client, replication: &mut ReplicationConnection) -> Result<(), SlotError> {
    const WHICH: &str = "select pg_catalog.format('%s, system identifier %s', pg_catalog.pg_postmaster_start_time(), system_identifier) \
                         from pg_catalog.pg_control_system()";
    let sql: String = sql.query_one(WHICH, &[]).await?.get(0);
    let replication = single(replication.query(WHICH, QUICK).await?);
    if replication == sql { Ok(()) } else { Err(SlotError::DifferentServers { replication, sql }) }
}

/// The only value of the only row.
fn single(rows: Rows) -> String {
    rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten().unwrap_or_default()
}

/// Tries once to become the relay that carries; true when this connection has the lock and nobody streams from the slot.
///
/// The lock lives in the replication connection, so that it dies with the walsender (R6). It is never waited for on the
/// server: a waiting statement would hold back vacuum. Trying again on a connection that has the lock succeeds.
pub async fn try_lock(sql: &Client, replication: &mut ReplicationConnection, slot: &str) -> Result<bool, SlotError> {
    let got = single(replication.query(&lock_statement(slot), QUICK).await?) == "t";
    Ok(got && find(sql, slot).await?.is_none_or(|row| row.active_pid.is_none()))
}

/// Takes the lock of a slot for its session, or says false.
pub fn lock_statement(slot: &str) -> String {
    format!(
        "select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('postrider'), pg_catalog.hashtext({}))",
        quote_literal(slot)
    )
}

pub async fn find(sql: &Client, slot: &str) -> Result<Option<SlotRow>, tokio_postgres::Error> {
    let row = sql.query_opt(include_str!("../../sql/queries/slot.sql"), &[&slot]).await?;
    Ok(row.map(|row| SlotRow {
        plugin: row.get("plugin"),
        database: row.get("database"),
        temporary: row.get("temporary"),
        confirmed: lsn(row.get::<_, Option<String>>("confirmed_flush_lsn").unwrap_or_default()),
        wal_status: row.get("wal_status"),
        invalidation_reason: row.get("invalidation_reason"),
        active_pid: row.get("active_pid"),
    }))
}

/// PostgreSQL's own text of a `pg_lsn`, or nothing.
fn lsn(text: String) -> Lsn {
    text.parse().unwrap_or(Lsn::ZERO)
}

/// First start: record the intent, make the slot, count what was there before, begin the slot's life.
async fn create(
    sql: &mut Client,
    replication: &mut ReplicationConnection,
    config: &Config,
    identity: ServerIdentity,
    seen: Published,
) -> Result<Taken, SlotError> {
    let slot = &config.slot;
    let seen = seen.for_new_slot(sql, config).await?;
    state::announce_slot(sql, slot, &config.publication, &identity).await?;
    replication.query(&format!("set lock_timeout = {}", SLOT_LOCK_TIMEOUT.as_millis()), QUICK).await?;
    // In this transaction the slot's snapshot is ours: what it sees is exactly what was committed before the slot.
    replication.query("begin transaction isolation level repeatable read, read only", QUICK).await?;
    // A slot that the standbys keep in step costs nothing where there are none, and cannot be asked for afterwards while it is used.
    let failover = if replication.server_version() >= FAILOVER_SLOTS { ", FAILOVER true" } else { "" };
    let statement =
        format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'use'{failover})", quote_ident(slot));
    if let Err(error) = replication.query(&statement, SLOT_LOCK_TIMEOUT * 3).await {
        return Err(explain_failed_creation(sql, slot, error).await?);
    }
    faults::point(Point::SlotMade);
    let earlier = count_earlier_rows(replication, config).await;
    replication.query("rollback", QUICK).await?;
    replication.query("set lock_timeout = 0", QUICK).await?;

    let confirmed = find(sql, slot).await?.map_or(Lsn::ZERO, |row| row.confirmed);
    state::slot_created(sql, slot, confirmed, &config.outbox).await?;
    let table = format!("{}.{}", config.outbox.schema, config.outbox.table);
    match earlier {
        Ok(rows) => tracing::info!(
            slot,
            at = %confirmed,
            "slot made; {rows} rows of {table} were committed before it existed and will not be published",
        ),
        Err(error) => tracing::warn!(
            slot,
            at = %confirmed,
            error = error::chain(&error),
            "slot made; rows of {table} that were committed before it existed will not be published, and they could not be counted",
        ),
    }
    // After an adoption both go on where they were.
    let record = state::load(sql, slot).await?.ok_or_else(|| StateError::NoRecord { slot: slot.clone() })?;
    Ok(Taken {
        identity,
        confirmed,
        made: true,
        source_epoch: record.source_epoch,
        publication: seen.state(),
        captures: seen.captures(config),
        recorded_heartbeat_no: None,
        heartbeat_no: record.heartbeat_no,
        born: record.born.unwrap_or_default(),
        known: None,
    })
}

async fn count_earlier_rows(
    replication: &mut ReplicationConnection,
    config: &Config,
) -> Result<String, ReplicationError> {
    replication.query(&format!("set local statement_timeout = {}", COUNT_TIMEOUT.as_millis()), QUICK).await?;
    let table = quote_table(config);
    let rows = replication.query(&format!("select count(*)::text from {table}"), COUNT_TIMEOUT + GRACE).await?;
    Ok(single(rows))
}

/// The outbox table for a statement.
fn quote_table(config: &Config) -> String {
    format!("{}.{}", quote_ident(&config.outbox.schema), quote_ident(&config.outbox.table))
}

/// SQLSTATEs of what commonly prevents a slot (manual, appendix "PostgreSQL Error Codes").
async fn explain_failed_creation(sql: &Client, slot: &str, source: ReplicationError) -> Result<SlotError, SlotError> {
    let slot = slot.to_owned();
    let hint = match source.sqlstate() {
        Some("55P03") => {
            let rows = sql.query(include_str!("../../sql/queries/slot_blockers.sql"), &[]).await?;
            let blockers: Vec<String> = rows.iter().map(|row| row.get("blocker")).collect();
            let blockers = if blockers.is_empty() {
                "gone by now; it will be tried again".to_owned()
            } else {
                blockers.join("; ")
            };
            return Ok(SlotError::Blocked { slot, seconds: SLOT_LOCK_TIMEOUT.as_secs(), blockers });
        }
        Some("53400") => {
            "all replication slots are in use: raise max_replication_slots and restart, or drop a slot that nobody needs"
        }
        Some("42501") => {
            "this user may not replicate: run `alter role ... replication` (on managed services grant their replication role)"
        }
        _ => "see the cause",
    };
    Ok(SlotError::CannotCreate { slot, hint, source })
}
