//! Taking the slot: the lock, what may be resumed, and the slot's making at first start.
//!
//! The order matters (rules R6, R7; manual, chapter "Logical Decoding Concepts"). The advisory lock is taken in the
//! replication connection, so that it dies with the walsender. The publication must be committed before the slot exists,
//! because pgoutput reads the catalog as of each change. The intent is recorded before the slot is made, so that a crash in
//! between is told apart from a slot of somebody else's.

use std::time::Duration;

use tokio_postgres::Client;

use crate::config::Config;
use crate::error;
use crate::lsn::Lsn;
use crate::postgres::quote::{quote_ident, quote_literal};
use crate::postgres::replication::{ReplicationConnection, ReplicationError, Rows};
use crate::postgres::state::{self, Phase, Record, ServerIdentity, StateError};

/// How long the making of a slot may wait for running transactions before it gives up and names them. While it waits, a
/// walsender is taken and the slot holds back vacuum.
const SLOT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Counting the rows that were there before the slot is a courtesy; it must not take the first start hostage.
const COUNT_TIMEOUT: Duration = Duration::from_secs(30);
/// For statements that only look something up.
const QUICK: Duration = Duration::from_secs(10);
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
}

/// What this process knows before it looks.
#[derive(Debug, Default)]
pub struct Before {
    /// The highest position that this process has allowed PostgreSQL to forget; it stands in for a record that could not
    /// be written (rule R8).
    pub remembered: Lsn,
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
    #[error("publication {publication} does not exist: run `postrider migrate`, or `{statement}`")]
    PublicationMissing { publication: String, statement: String },
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

/// Continuity cannot be proven (guarantee G8): nothing is published until a person has decided. Never healed by skipping.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    #[error(
        "slot {slot} is gone, and events committed after {acknowledged} may never have been sent. Accept that gap with `delete from postrider.progress where slot = '{slot}'`: a new slot is made then, which starts at the present"
    )]
    SlotMissing { slot: String, acknowledged: Lsn },
    #[error(
        "slot {slot} exists (confirmed up to {confirmed}), but there is no record of it in postrider.progress: it was made by something else, or the record was lost. Choose another name by POSTRIDER_SLOT, or drop it with `select pg_drop_replication_slot('{slot}')`: a new slot is made then, which starts at the present"
    )]
    UnknownSlot { slot: String, confirmed: Lsn },
    #[error(
        "this is another database than the one that slot {slot} was made in (system identifier and database were {recorded}, are {observed}): DATABASE_URL leads elsewhere, or this is a copy. To start anew here run `delete from postrider.progress where slot = '{slot}'`"
    )]
    SourceChanged { slot: String, recorded: String, observed: String },
    #[error(
        "slot {slot} has moved on without us: it has confirmed {confirmed}, and we allowed {intended} at most. Events committed between the two were never sent. Accept that gap with `delete from postrider.progress where slot = '{slot}'` and `select pg_drop_replication_slot('{slot}')`"
    )]
    SlotAdvanced { slot: String, intended: Lsn, confirmed: Lsn },
    #[error(
        "PostgreSQL has invalidated slot {slot} ({reason}): the WAL after {acknowledged} is gone. Accept that gap with `select pg_drop_replication_slot('{slot}')` and `delete from postrider.progress where slot = '{slot}'`"
    )]
    SlotLost { slot: String, reason: String, acknowledged: Lsn },
    #[error(
        "slot {slot} is not a persistent pgoutput slot of this database ({found}): choose another name by POSTRIDER_SLOT"
    )]
    WrongSlot { slot: String, found: String },
    #[error(
        "the server's WAL ends at {flushed}, before what was acknowledged ({acknowledged}): the database was restored or rewound, and events may be missing or different. To start anew run `select pg_drop_replication_slot('{slot}')` and `delete from postrider.progress where slot = '{slot}'`"
    )]
    SourceRewound { slot: String, flushed: Lsn, acknowledged: Lsn },
}

impl Halt {
    /// For `postrider_halted`: one of [`crate::metrics::HALTS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Halt::SlotMissing { .. } => "slot_missing",
            Halt::UnknownSlot { .. } => "unknown_slot",
            Halt::SourceChanged { .. } => "source_changed",
            Halt::SlotAdvanced { .. } => "slot_advanced",
            Halt::SlotLost { .. } => "slot_lost",
            Halt::WrongSlot { .. } => "wrong_slot",
            Halt::SourceRewound { .. } => "source_rewound",
        }
    }
}

/// The slot as `pg_replication_slots` shows it.
#[derive(Debug)]
struct SlotRow {
    plugin: Option<String>,
    database: Option<String>,
    temporary: bool,
    confirmed: Lsn,
    wal_status: Option<String>,
    active_pid: Option<i32>,
}

/// Leaves the slot ready for START_REPLICATION, or says why it cannot be. The caller has the lock ([`try_lock`]).
pub async fn take(
    sql: &mut Client,
    replication: &mut ReplicationConnection,
    config: &Config,
    before: Before,
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
    check_publication(sql, config).await?;

    let record = state::load(sql, &config.slot).await?;
    let slot = find(sql, &config.slot).await?;
    let name = config.slot.clone();
    // A record that was never completed says only that the slot was about to be made.
    let begun = record.as_ref().is_some_and(|record| record.phase == Phase::Ready);
    match (record, slot) {
        (_, None) if !begun => match before.missing_topology {
            Some(obstacle) => Err(SlotError::NotYet { slot: name, obstacle }),
            None => create(sql, replication, config, identity).await,
        },
        (None, Some(slot)) => Err(Halt::UnknownSlot { slot: name, confirmed: slot.confirmed }.into()),
        (record, None) => {
            let acknowledged = record.and_then(|record| record.acknowledged).unwrap_or_default();
            Err(Halt::SlotMissing { slot: name, acknowledged }.into())
        }
        (Some(record), Some(slot)) => {
            let flushed = sql.query_one("select pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await?;
            resumable(
                &record,
                &slot,
                &identity,
                &Bounds { remembered: before.remembered, flushed: lsn(flushed.get(0)) },
            )?;
            // A crash came between the slot's making and its record.
            if record.phase == Phase::Creating {
                state::slot_created(sql, &config.slot, slot.confirmed, &config.outbox).await?;
            }
            Ok(Taken { confirmed: slot.confirmed, made: false, source_epoch: record.source_epoch, identity })
        }
    }
}

/// What the slot's position is compared with, besides its record.
struct Bounds {
    /// See [`take`].
    remembered: Lsn,
    /// Where the server's WAL ends.
    flushed: Lsn,
}

/// The halt rules for a slot that exists and is recorded.
fn resumable(record: &Record, slot: &SlotRow, identity: &ServerIdentity, bounds: &Bounds) -> Result<(), Halt> {
    let name = record.slot.clone();
    let recorded = (record.system_identifier, record.database_oid);
    let observed = (identity.system_identifier, identity.database_oid);
    if recorded != observed {
        let say = |(system, database)| format!("{system} and {database}");
        return Err(Halt::SourceChanged { slot: name, recorded: say(recorded), observed: say(observed) });
    }
    if slot.plugin.as_deref() != Some("pgoutput")
        || slot.temporary
        || slot.database.as_deref() != Some(&identity.database)
    {
        let found = format!("plugin {:?}, database {:?}, temporary {}", slot.plugin, slot.database, slot.temporary);
        return Err(Halt::WrongSlot { slot: name, found });
    }
    let acknowledged = record.acknowledged.unwrap_or_default();
    if slot.wal_status.as_deref() == Some("lost") {
        return Err(Halt::SlotLost { slot: name, reason: "wal_status is `lost`".to_owned(), acknowledged });
    }
    // A slot whose making was announced and not yet recorded has acknowledged nothing: there is no bound to compare with.
    if let Some(intended) = record.intended.map(|intended| intended.max(bounds.remembered))
        && slot.confirmed > intended
    {
        return Err(Halt::SlotAdvanced { slot: name, intended, confirmed: slot.confirmed });
    }
    // Behind what was acknowledged is normal, because PostgreSQL saves a slot's position at checkpoints only; but not on WAL
    // that ends before it.
    // A database that was rewound has a rewound record; this process may know better.
    let known = acknowledged.max(bounds.remembered);
    if bounds.flushed < known {
        return Err(Halt::SourceRewound { slot: name, flushed: bounds.flushed, acknowledged: known });
    }
    Ok(())
}

/// A load balancer in front of two servers would let us write state to one and read WAL from the other.
async fn same_server(sql: &Client, replication: &mut ReplicationConnection) -> Result<(), SlotError> {
    const STARTED: &str = "select pg_catalog.pg_postmaster_start_time()::text";
    let sql: String = sql.query_one(STARTED, &[]).await?.get(0);
    let replication = single(replication.query(STARTED, QUICK).await?);
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
    let statement = format!(
        "select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('postrider'), pg_catalog.hashtext({}))",
        quote_literal(slot)
    );
    let got = single(replication.query(&statement, QUICK).await?) == "t";
    Ok(got && find(sql, slot).await?.is_none_or(|row| row.active_pid.is_none()))
}

async fn find(sql: &Client, slot: &str) -> Result<Option<SlotRow>, tokio_postgres::Error> {
    let row = sql.query_opt(include_str!("../../sql/queries/slot.sql"), &[&slot]).await?;
    Ok(row.map(|row| SlotRow {
        plugin: row.get("plugin"),
        database: row.get("database"),
        temporary: row.get("temporary"),
        confirmed: lsn(row.get::<_, Option<String>>("confirmed_flush_lsn").unwrap_or_default()),
        wal_status: row.get("wal_status"),
        active_pid: row.get("active_pid"),
    }))
}

/// PostgreSQL's own text of a `pg_lsn`, or nothing.
fn lsn(text: String) -> Lsn {
    text.parse().unwrap_or(Lsn::ZERO)
}

/// Without the publication (or with one that lost a table) events would pass the slot unseen: PostgreSQL 18 only warns.
pub async fn check_publication(sql: &Client, config: &Config) -> Result<(), SlotError> {
    let outbox = &config.outbox;
    let row = sql
        .query_one(
            include_str!("../../sql/queries/publication.sql"),
            &[&config.publication, &outbox.schema, &outbox.table],
        )
        .await?;
    let publication = config.publication.clone();
    let (name, table) = (quote_ident(&publication), quote_table(config));
    if !row.get::<_, bool>("found") {
        let statement = format!(
            "create publication {name} for table {table}, postrider.heartbeat with (publish = 'insert', publish_via_partition_root = true)"
        );
        return Err(SlotError::PublicationMissing { publication, statement });
    }
    let incomplete =
        |what: String, statement: String| Err(SlotError::PublicationIncomplete { publication, what, statement });
    if !row.get::<_, bool>("inserts") {
        incomplete("inserts".to_owned(), format!("alter publication {name} set (publish = 'insert')"))
    } else if !row.get::<_, bool>("outbox") {
        incomplete(format!("table {table}"), format!("alter publication {name} add table {table}"))
    } else if !row.get::<_, bool>("heartbeat") {
        let what = "table postrider.heartbeat".to_owned();
        incomplete(what, format!("alter publication {name} add table postrider.heartbeat"))
    } else {
        Ok(())
    }
}

/// First start: record the intent, make the slot, count what was there before, begin the slot's life.
async fn create(
    sql: &mut Client,
    replication: &mut ReplicationConnection,
    config: &Config,
    identity: ServerIdentity,
) -> Result<Taken, SlotError> {
    let slot = &config.slot;
    state::announce_slot(sql, slot, &config.publication, &identity).await?;
    replication.query(&format!("set lock_timeout = {}", SLOT_LOCK_TIMEOUT.as_millis()), QUICK).await?;
    // In this transaction the slot's snapshot is ours: what it sees is exactly what was committed before the slot.
    replication.query("begin transaction isolation level repeatable read, read only", QUICK).await?;
    let statement = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput USE_SNAPSHOT", quote_ident(slot));
    if let Err(error) = replication.query(&statement, SLOT_LOCK_TIMEOUT * 3).await {
        return Err(explain_failed_creation(sql, slot, error).await?);
    }
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
    Ok(Taken { identity, confirmed, made: true, source_epoch: 0 })
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

#[cfg(test)]
mod tests;
