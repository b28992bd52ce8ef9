//! The relay's state in PostgreSQL: the record of its slot, the slot's lives, and the heartbeat (rules R6, R7, R8).
//!
//! Each call is one transaction and, but for the two that take the client for themselves, one message: a caller that is
//! cancelled leaves no transaction open. Every write of a relay that carries checks its epoch in that transaction; one that
//! does not find its own is [`StateError::Fenced`], and the session must end. Sessions run at `read committed`.

use std::time::{Duration, SystemTime};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, SimpleQueryMessage, Transaction};

use crate::config::Outbox;
use crate::dead_letters::DeadLetter;
use crate::lsn::Lsn;
use crate::postgres::dead_letters;
use crate::postgres::quote::{fill, outbox_values, quote_literal};

/// Number of a heartbeat of one slot: from 1, without gaps.
pub type HeartbeatNo = i64;

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Nothing that this relay knows may be written any more, and nothing published: its session must end.
    #[error("another relay has taken over slot {slot} (this one was number {epoch})")]
    Fenced { slot: String, epoch: i64 },
    #[error("slot {slot} has a complete record in postrider.progress already")]
    AlreadyRecorded { slot: String },
    #[error("slot {slot} has no record in postrider.progress")]
    NoRecord { slot: String },
    #[error("slot {slot} has no open life in postrider.lives, so nothing can be told to be surely delivered")]
    NoLife { slot: String },
    /// What is known of the dead letters is not what is there: the next session loads them, and gives the event another place.
    #[error("somebody has put a dead letter of slot {slot} where another event belongs; starting again from the slot")]
    Displaced { slot: String },
    #[error("the schema postrider holds what no postrider writes: {0}")]
    Damaged(&'static str),
    #[error("cannot {doing}{advice}")]
    Database { doing: &'static str, advice: &'static str, source: tokio_postgres::Error },
}

impl StateError {
    /// The SQL session is ending or has ended: nothing may be concluded from a write that failed.
    pub fn session_is_gone(&self) -> bool {
        let StateError::Database { source, .. } = self else { return false };
        source.code().is_none_or(|code| code.code().starts_with("57P0"))
    }

    /// Somebody held the lock for longer than `lock_timeout`, as whoever marks dead letters and does not commit: nothing was
    /// written, and the same may be tried again.
    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, StateError::Database { source, .. } if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// The publication could not be looked at.
    pub fn unseen(source: tokio_postgres::Error) -> Self {
        StateError::during("look at the publication")(source)
    }

    pub(in crate::postgres) fn during(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| {
            let advice = match source.code() {
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => {
                    " (the database is not migrated: postrider migrate)"
                }
                Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    " (a grant is missing: run what postrider migrate --print-roles prints)"
                }
                _ => "",
            };
            StateError::Database { doing, advice, source }
        }
    }
}

/// The server and database that a connection has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// As `IDENTIFY_SYSTEM` and `pg_controldata` print it.
    pub system_identifier: u64,
    pub database_oid: u32,
    pub database: String,
    /// Of the next WAL record; on a standby, of its last restart point.
    pub timeline: i32,
    /// `server_version_num`: 170004 is 17.4.
    pub version_num: i32,
    pub in_recovery: bool,
    /// Tells a restart of PostgreSQL from a lost connection.
    pub postmaster_started: SystemTime,
}

/// Whether the slot of a record exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Announced: the slot was about to be made, and may have been.
    Creating,
    Ready,
}

/// The record of a slot: what the halt rules compare the slot with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub slot: String,
    pub publication: String,
    pub system_identifier: u64,
    pub database_oid: u32,
    /// When the slot was made.
    pub timeline: i32,
    pub phase: Phase,
    /// `None` while [`Phase::Creating`].
    pub intended: Option<Lsn>,
    /// `None` while [`Phase::Creating`]; never after `intended`.
    pub acknowledged: Option<Lsn>,
    pub relay_epoch: i64,
    pub source_epoch: u32,
    /// The last one written.
    pub heartbeat_no: HeartbeatNo,
    /// The newest one before `intended`: on a new connection the first may be at most one more (D10).
    pub recorded_heartbeat_no: Option<HeartbeatNo>,
    /// What the publication was made of when the slot was taken first.
    pub publication_state: Option<String>,
    /// The first transaction of the slot's open life.
    pub born: Option<u64>,
    pub updated_at: SystemTime,
}

/// Which server, and which database of it.
pub async fn server_identity(client: &Client) -> Result<ServerIdentity, StateError> {
    let row = client
        .query_one(include_str!("../../sql/queries/server_identity.sql"), &[])
        .await
        .map_err(StateError::during("ask the server which one it is"))?;
    Ok(ServerIdentity {
        system_identifier: row.get::<_, i64>("system_identifier").cast_unsigned(),
        database_oid: row.get("database_oid"),
        database: row.get("database"),
        timeline: row.get("timeline"),
        version_num: row.get("version_num"),
        in_recovery: row.get("in_recovery"),
        postmaster_started: row.get("postmaster_started"),
    })
}

/// The record of `slot`; `None` if there is none.
pub async fn load(client: &Client, slot: &str) -> Result<Option<Record>, StateError> {
    let row = client
        .query_opt(include_str!("../../sql/queries/load_record.sql"), &[&slot])
        .await
        .map_err(StateError::during("read the state of the slot"))?;
    row.as_ref().map(record).transpose()
}

fn record(row: &Row) -> Result<Record, StateError> {
    let phase = match row.get("phase") {
        "creating" => Phase::Creating,
        "ready" => Phase::Ready,
        _ => return Err(StateError::Damaged("an unknown phase")),
    };
    let lsn = |column: &str| row.get::<_, Option<PgLsn>>(column).map(|lsn| Lsn(lsn.into()));
    Ok(Record {
        slot: row.get("slot"),
        publication: row.get("publication"),
        system_identifier: row.get::<_, i64>("system_identifier").cast_unsigned(),
        database_oid: row.get("database_oid"),
        timeline: row.get("timeline"),
        phase,
        intended: lsn("intended_lsn"),
        acknowledged: lsn("acknowledged_lsn"),
        relay_epoch: row.get("relay_epoch"),
        source_epoch: u32::try_from(row.get::<_, i32>("source_epoch"))
            .map_err(|_| StateError::Damaged("a negative source_epoch"))?,
        heartbeat_no: row.get("heartbeat_no"),
        recorded_heartbeat_no: row.get("recorded_heartbeat_no"),
        publication_state: row.get("publication_state"),
        born: row.get::<_, Option<String>>("born").and_then(|born| born.parse().ok()),
        updated_at: row.get("updated_at"),
    })
}

/// Says that `slot` is about to be made. It must be committed before the slot is, so that a crash in between is recognised.
///
/// May be repeated until [`slot_created`] has been called.
pub async fn announce_slot(
    client: &Client,
    slot: &str,
    publication: &str,
    identity: &ServerIdentity,
) -> Result<(), StateError> {
    let system_identifier = identity.system_identifier.cast_signed();
    let announced = client
        .query_opt(
            include_str!("../../sql/queries/announce_slot.sql"),
            &[&slot, &publication, &system_identifier, &identity.database_oid, &identity.timeline],
        )
        .await
        .map_err(StateError::during("record that the slot is about to be made"))?;
    announced.map(drop).ok_or_else(|| StateError::AlreadyRecorded { slot: slot.to_owned() })
}

/// What is known of a life that has just begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLife {
    /// Rows of transactions from this one on can be told to be delivered (`xid8`).
    pub born: u64,
    /// Whether the outbox has an `xid` column that this role may read. If not, rows that another cluster's number came
    /// with cannot be told from this life's.
    pub outbox_xid_read: bool,
}

/// Completes the record of an announced slot that exists, and begins its life. `None` if that was done before.
///
/// `confirmed` is the slot's `confirmed_flush_lsn`. `born` is read here, so it is never older than the slot.
pub async fn slot_created(
    client: &mut Client,
    slot: &str,
    confirmed: Lsn,
    outbox: &Outbox,
) -> Result<Option<NewLife>, StateError> {
    const DOING: &str = "record that the slot exists";
    let transaction = client.transaction().await.map_err(StateError::during(DOING))?;
    // The newest xid takes a look at every row of the outbox, once in the slot's life.
    transaction.batch_execute("set local statement_timeout = 0").await.map_err(StateError::during(DOING))?;
    let completed = transaction
        .query_opt(include_str!("../../sql/queries/slot_ready.sql"), &[&slot, &PgLsn::from(confirmed.0)])
        .await
        .map_err(StateError::during(DOING))?;
    if completed.is_none() {
        return match load(transaction.client(), slot).await? {
            Some(_) => Ok(None),
            None => Err(StateError::NoRecord { slot: slot.to_owned() }),
        };
    }
    let life = start_life(&transaction, slot, outbox).await?;
    transaction.commit().await.map_err(StateError::during(DOING))?;
    Ok(Some(life))
}

/// Ends the open life of `slot`, if any, and begins another.
pub(super) async fn start_life(
    transaction: &Transaction<'_>,
    slot: &str,
    outbox: &Outbox,
) -> Result<NewLife, StateError> {
    const DOING: &str = "begin a life of the slot";
    let outbox_xid_read: bool = transaction
        .query_one(
            include_str!("../../sql/queries/outbox_xid_readable.sql"),
            &[&outbox.schema, &outbox.table, &outbox.columns.xid],
        )
        .await
        .map_err(StateError::during(DOING))?
        .get(0);
    let newest_xid: Option<String> = if outbox_xid_read {
        let newest = fill(include_str!("../../sql/queries/outbox_newest_xid.sql"), &outbox_values(outbox));
        transaction.query_one(&newest, &[]).await.map_err(StateError::during(DOING))?.get(0)
    } else {
        None
    };
    transaction
        .execute(include_str!("../../sql/queries/end_life.sql"), &[&slot])
        .await
        .map_err(StateError::during(DOING))?;
    let born: String = transaction
        .query_one(include_str!("../../sql/queries/start_life.sql"), &[&slot, &newest_xid])
        .await
        .map_err(StateError::during(DOING))?
        .get(0);
    let born = born.parse().map_err(|_| StateError::Damaged("a transaction number that is none"))?;
    Ok(NewLife { born, outbox_xid_read })
}

/// What a session goes on from, for the record.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub timeline: i32,
    pub epoch: u32,
    /// What the publication is made of.
    pub publication: &'a str,
}

/// The source epoch that the newest adoption of `slot` has begun; `None` without one.
pub async fn newest_adoption(client: &Client, slot: &str) -> Result<Option<u32>, StateError> {
    const NEWEST: &str = "select max(source_epoch) from postrider.adoptions where slot = $1";
    let row = client.query_one(NEWEST, &[&slot]).await.map_err(StateError::during("look for adoptions of the slot"))?;
    Ok(row.get::<_, Option<i32>>(0).and_then(|epoch| u32::try_from(epoch).ok()))
}

/// Makes this relay the one that writes, and returns its epoch and what is parked, in the order of positions. Call it once
/// START_REPLICATION has succeeded, before the first publish (rule R6).
///
/// One transaction, so that whatever the relay before has left is read after the last of its writes.
pub async fn take_over(
    client: &mut Client,
    slot: &str,
    source: Source<'_>,
) -> Result<(i64, Vec<DeadLetter>), StateError> {
    const DOING: &str = "take over the slot's state";
    let transaction = client.transaction().await.map_err(StateError::during(DOING))?;
    let epoch = transaction
        .query_opt(
            include_str!("../../sql/queries/take_over.sql"),
            &[&slot, &source.timeline, &source.epoch.cast_signed(), &source.publication],
        )
        .await
        .map_err(StateError::during(DOING))?
        .map(|row| row.get(0))
        .ok_or_else(|| StateError::NoRecord { slot: slot.to_owned() })?;
    let parked = dead_letters::load(&transaction, slot).await?;
    transaction.commit().await.map_err(StateError::during(DOING))?;
    Ok((epoch, parked))
}

/// Records what the publications are made of, where they have grown while a relay carries.
pub async fn note_publication(client: &Client, slot: &str, epoch: i64, publication: &str) -> Result<(), StateError> {
    let written = client
        .execute(include_str!("../../sql/queries/note_publication.sql"), &[&slot, &epoch, &publication])
        .await
        .map_err(StateError::during("record what the publications are made of"))?;
    (written == 1).then_some(()).ok_or_else(|| fenced(slot, epoch))
}

/// How far the slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// What is about to be acknowledged.
    pub intended: Lsn,
    /// What has been.
    pub acknowledged: Lsn,
    /// The newest heartbeat of this session before `intended`.
    pub heartbeat: Option<HeartbeatNo>,
}

/// Records what is about to be acknowledged (`intended`) and what has been. `intended` must be durable before the
/// acknowledgement that it allows is sent (rule R8).
pub async fn write_progress(client: &Client, slot: &str, epoch: i64, reached: Reached) -> Result<(), StateError> {
    let Reached { intended, acknowledged, heartbeat } = reached;
    let written = client
        .execute(
            include_str!("../../sql/queries/write_progress.sql"),
            &[&slot, &epoch, &PgLsn::from(intended.0), &PgLsn::from(acknowledged.0), &heartbeat],
        )
        .await
        .map_err(StateError::during("write how far the slot may be acknowledged"))?;
    (written == 1).then_some(()).ok_or_else(|| fenced(slot, epoch))
}

/// Writes one heartbeat and returns its number: the last one plus one.
pub async fn beat(client: &Client, slot: &str, epoch: i64) -> Result<HeartbeatNo, StateError> {
    let values = [("slot_text", quote_literal(slot)), ("epoch", epoch.to_string())];
    let answers = client
        .simple_query(&fill(include_str!("../../sql/queries/beat.sql"), &values))
        .await
        .map_err(StateError::during("write a heartbeat"))?;
    let number = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get("no"),
        _ => None,
    });
    let number = number.ok_or_else(|| fenced(slot, epoch))?;
    number.parse().map_err(|_| StateError::Damaged("a heartbeat number that is none"))
}

/// How far the WAL was at a time of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Everything that could be seen as committed at `at` lies before it, except what was committed with
    /// `synchronous_commit = off` a moment before (`wal_writer_delay`, 200 ms).
    pub flushed: Lsn,
    pub at: SystemTime,
    /// Our time just before it was asked for: a lag that is counted from the two is never too small.
    pub asked: SystemTime,
}

pub async fn read_clock(client: &Client) -> Result<Reading, StateError> {
    let asked = SystemTime::now();
    let row = client
        .query_one(include_str!("../../sql/queries/clock.sql"), &[])
        .await
        .map_err(StateError::during("ask how far the WAL is"))?;
    let flushed: PgLsn = row.get("flushed");
    let micros: i64 = row.get("unix_micros");
    let micros = u64::try_from(micros).map_err(|_| StateError::Damaged("a clock before 1970"))?;
    Ok(Reading { flushed: Lsn(u64::from(flushed)), at: SystemTime::UNIX_EPOCH + Duration::from_micros(micros), asked })
}

/// Records that heartbeat `no`, which carried `snapshot`, came back with everything before it delivered or parked.
///
/// An older one than the last changes nothing: after a reconnect they come again.
pub async fn confirm_heartbeat(
    client: &Client,
    slot: &str,
    epoch: i64,
    no: HeartbeatNo,
    snapshot: &str,
) -> Result<(), StateError> {
    let row = client
        .query_one(include_str!("../../sql/queries/confirm_heartbeat.sql"), &[&slot, &epoch, &no, &snapshot])
        .await
        .map_err(StateError::during("record a confirmed heartbeat"))?;
    if !row.get::<_, bool>("carries") {
        return Err(fenced(slot, epoch));
    }
    row.get::<_, bool>("lives").then_some(()).ok_or_else(|| StateError::NoLife { slot: slot.to_owned() })
}

pub(super) fn fenced(slot: &str, epoch: i64) -> StateError {
    StateError::Fenced { slot: slot.to_owned(), epoch }
}

/// A row of `postrider.heartbeat`, as it comes through the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The slot that it was written for; a heartbeat of another one means nothing here.
    pub slot: String,
    pub no: HeartbeatNo,
    /// `pg_snapshot` as text.
    pub snapshot: String,
}

/// The row is not one that a postrider writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of postrider.heartbeat has no usable column `{0}`")]
pub struct BadHeartbeat(pub &'static str);

impl Heartbeat {
    /// Whether a relation of the stream is the heartbeat's table.
    pub fn is_table(schema: &str, table: &str) -> bool {
        schema == "postrider" && table == "heartbeat"
    }

    /// One past the newest transaction that had ended (manual, "Transaction ID and Snapshot Information Functions"); zero if the text is
    /// none of PostgreSQL's.
    pub fn xmax(&self) -> u64 {
        self.snapshot.split(':').nth(1).and_then(|xmax| xmax.parse().ok()).unwrap_or_default()
    }

    /// From the column names and text values of an Insert (`None`: SQL NULL). Other columns are not looked at.
    pub fn decode(columns: &[(&str, Option<&str>)]) -> Result<Self, BadHeartbeat> {
        let column = |wanted: &'static str| {
            let found = columns.iter().find(|(name, _)| *name == wanted);
            found.and_then(|(_, value)| *value).ok_or(BadHeartbeat(wanted))
        };
        Ok(Heartbeat {
            slot: column("slot")?.to_owned(),
            no: column("no")?.parse().map_err(|_| BadHeartbeat("no"))?,
            snapshot: column("snapshot")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_read_by_column_name() {
        let columns = [("no", Some("7")), ("more", None), ("snapshot", Some("10:12:10")), ("slot", Some("s"))];
        let heartbeat = Heartbeat::decode(&columns).unwrap();
        assert_eq!(heartbeat, Heartbeat { slot: "s".into(), no: 7, snapshot: "10:12:10".into() });
    }

    #[test]
    fn a_row_that_is_no_heartbeat_names_the_column() {
        assert_eq!(Heartbeat::decode(&[("slot", Some("s")), ("no", Some("x"))]), Err(BadHeartbeat("no")));
        let without_snapshot = [("slot", Some("s")), ("no", Some("1")), ("snapshot", None)];
        assert_eq!(Heartbeat::decode(&without_snapshot), Err(BadHeartbeat("snapshot")));
    }
}
