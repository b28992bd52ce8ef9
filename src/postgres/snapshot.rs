//! Reads a captured table for a snapshot, chunk by chunk, on an SQL session of its own (rule R11).
//!
//! ```text
//! reader                                   session
//!  describe ------------ Begin ----------> keeps changes of the table
//!  wait until what was decoded before is visible
//!  read a chunk -------- Chunk ----------> keeps it
//!  write its mark  ------ (WAL) ---------> publishes its rows at the mark
//!                 <----- Passed ---------
//!  next chunk ...
//!  record its key <----- Resolved -------- all of it is delivered or parked
//! ```
//!
//! The rows of a chunk are in memory only. A key is recorded once everything up to it is delivered or parked, so that a relay that was killed
//! goes on behind it, and reads again what it had read since. A mark that comes without its rows means nothing.

mod requests;
mod table;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::config::load::SecretError;
use crate::metrics::Metrics;
use crate::pipeline::reading::Chunk;
use crate::postgres::error::ConnectError;
use crate::postgres::quote::{fill, quote_ident, quote_literal};
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::state::StateError;
use crate::postgres::url::{ParseTargetError, Target};
use crate::snapshot::{BadSnapshot, Visible};

pub use requests::{Request, is_meant, next};
use requests::{Step, step};
use table::{Description, Rows};

/// Chunks that wait to be delivered, at most.
const AHEAD: usize = 8;
/// Rows of the first chunk: nothing is known of their size.
const FIRST: usize = 128;
/// Between two looks at what is still running, and between two words about it.
const LOOK: Duration = Duration::from_millis(200);
const SAY: Duration = Duration::from_secs(10);

/// What the stream's own connection has too (`postgres::replication::login`): values are printed alike.
const SETTINGS: &str = "set \"DateStyle\" = 'ISO, YMD'; set \"IntervalStyle\" = 'iso_8601'; set extra_float_digits = 3; \
     set bytea_output = 'hex'; set row_security = off; set statement_timeout = 0";

/// Why a snapshot does not go on. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Target(#[from] ParseTargetError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    State(StateError),
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    #[error("{schema}.{table} is not captured: put it into source.tables and run postrider migrate")]
    NotCaptured { schema: String, table: String },
    #[error("the relay's role may not read the table: {statement}")]
    Forbidden { statement: String },
    #[error("the table was changed while it was read; beginning again where it was")]
    Changed,
}

impl From<tokio_postgres::Error> for SnapshotError {
    fn from(error: tokio_postgres::Error) -> Self {
        SqlError::from(error).into()
    }
}

/// From the reader.
#[derive(Debug)]
pub enum Said {
    /// Keep the changes of this table from now on, whose rows have keys or not.
    Begin {
        relation: u32,
        keyed: bool,
        mark: String,
        begun: oneshot::Sender<()>,
    },
    /// Keep this chunk until its mark comes. False: too much was changed meanwhile.
    Chunk(Box<Chunk>, oneshot::Sender<bool>),
    Ended {
        failed: bool,
    },
}

/// To the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The mark of a chunk has come. `None`: it has to be read again.
    Passed { no: i64, rows: Option<u64> },
    /// All up to this chunk is delivered or parked.
    Resolved(i64),
}

/// Everything that a reader needs.
pub struct Reader {
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub epoch: i64,
    pub request: Request,
    pub said: mpsc::Sender<Said>,
    pub heard: mpsc::UnboundedReceiver<Heard>,
}

/// How a snapshot ended.
enum Outcome {
    Done(i64),
    /// Cancelled, or taken over.
    Dropped,
}

struct Reading {
    config: Arc<Config>,
    metrics: Metrics,
    epoch: i64,
    request: Request,
    said: mpsc::Sender<Said>,
    heard: mpsc::UnboundedReceiver<Heard>,
    sql: Sql,
    mark: String,
    /// Number of the last chunk.
    no: i64,
    /// Chunks that are published and not delivered, with their keys and rows.
    under_way: VecDeque<(i64, Option<Vec<String>>, i64)>,
    total: i64,
}

/// The session has ended, or the request is there no more.
struct Gone;

impl Reader {
    /// Until the snapshot is done, cancelled or fails; says [`Said::Ended`] then.
    pub async fn run(self) {
        let name = format!("{}.{}", self.request.schema, self.request.table);
        let said = self.said.clone();
        let (metrics, request) = (self.metrics.clone(), self.request.clone());
        tracing::info!(table = name, resumed = request.last_key.is_some(), "reading a table for its snapshot");
        let result = self.read().await;
        let failed = result.is_err();
        match result {
            Ok(Outcome::Done(rows)) => {
                metrics.snapshot_tables.inc();
                tracing::info!(table = name, rows, "the snapshot is done");
            }
            Ok(Outcome::Dropped) => tracing::info!(table = name, "the snapshot was cancelled, or is another's"),
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::warn!(table = name, error, "the snapshot does not go on; trying again");
            }
        }
        said.send(Said::Ended { failed }).await.ok();
    }

    async fn read(self) -> Result<Outcome, SnapshotError> {
        let Reader { config, metrics, epoch, request, said, heard } = self;
        let url = config.database_url.read()?;
        let target = Target::parse(url.expose_secret(), config.require_tls)?;
        let sql = Sql::connect(&target, &config.application_name(), Duration::ZERO).await?;
        sql.client().batch_execute(SETTINGS).await?;
        let mark = format!("{} snapshot {epoch}", config.slot);
        let mut reading = Reading {
            config,
            metrics,
            epoch,
            request,
            said,
            heard,
            sql,
            mark,
            no: 0,
            under_way: VecDeque::new(),
            total: 0,
        };
        let result = reading.all().await;
        let result = match result {
            Err(SnapshotError::Sql(error)) if error.sqlstate() == Some("42501") => Err(reading.forbidden(error).await),
            result => result,
        };
        if let Err(error) = &result {
            reading.sql.client().batch_execute("rollback").await.ok();
            let problem = crate::error::chain(error);
            reading.step(Step { problem: Some(&problem), ..Step::RUNNING }).await.ok();
        }
        result
    }
}

impl Reading {
    async fn all(&mut self) -> Result<Outcome, SnapshotError> {
        let first = table::describe(self.sql.client(), &self.config, &self.request).await?;
        let resumable = !first.key.is_empty();
        let mut after = self.request.last_key.clone().filter(|key| resumable && key.len() == first.key.len());
        let begun = Step { expected: first.estimate, afresh: after.is_none(), ..Step::RUNNING };
        if !self.step(begun).await? {
            return Ok(Outcome::Dropped);
        }
        if self.begin(&first).await?.is_err() {
            return Ok(Outcome::Dropped);
        }
        let told = if resumable { self.by_key(&first, &mut after).await? } else { self.in_one_go(&first).await? };
        if told.is_err() || self.settle(0).await?.is_err() {
            return Ok(Outcome::Dropped);
        }
        let done = self.step(Step { done: true, ..Step::RUNNING }).await?;
        Ok(if done { Outcome::Done(self.total) } else { Outcome::Dropped })
    }

    /// Changes are kept from now on, and everything that was decoded before can be seen.
    async fn begin(&mut self, table: &Description) -> Result<Result<(), Gone>, SnapshotError> {
        let (begun, told) = oneshot::channel();
        // As `CapturedTable::has_order` has it.
        let keyed = !table.key.is_empty()
            || matches!(table.relation.replica_identity, crate::pgoutput::message::ReplicaIdentity::Index);
        let begin = Said::Begin { relation: table.relation.oid, keyed, mark: self.mark.clone(), begun };
        if self.said.send(begin).await.is_err() || told.await.is_err() {
            return Ok(Err(Gone));
        }
        let newest: String =
            self.sql.client().query_one("select pg_catalog.pg_current_xact_id()::text", &[]).await?.get(0);
        let newest: u64 = newest.parse().map_err(|_| BadSnapshot)?;
        let mut said = tokio::time::Instant::now();
        while !self.visible().await?.ended(newest) {
            if said.elapsed() > SAY {
                said = tokio::time::Instant::now();
                tracing::info!(
                    table = self.request.table,
                    "the snapshot waits for the end of writing transactions that are older than it (see pg_stat_activity, pg_prepared_xacts)"
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Ok(()))
    }

    async fn visible(&self) -> Result<Visible, SnapshotError> {
        let row = self.sql.client().query_one("select pg_catalog.pg_current_snapshot()::text", &[]).await?;
        Ok(row.get::<_, &str>(0).parse()?)
    }

    /// A transaction that sees the table as it is at one moment.
    async fn open(&self) -> Result<(Visible, Description), SnapshotError> {
        let client = self.sql.client();
        client.batch_execute("begin isolation level repeatable read, read only").await?;
        client.batch_execute(&Description::lock(&self.request)).await?;
        let seen = self.visible().await?;
        let table = table::describe(client, &self.config, &self.request).await?;
        client.batch_execute(&table.search_path()).await?;
        Ok((seen, table))
    }

    /// Declares the cursor `chunk`.
    async fn declare(&self, kind: &str, select: &str) -> Result<(), SnapshotError> {
        // Of a condition that somebody has written: a prepared statement is one statement.
        if self.request.condition.is_some() {
            self.sql.client().prepare(select).await?;
        }
        self.sql.client().batch_execute(&format!("declare chunk no scroll cursor {kind} for {select}")).await?;
        Ok(())
    }

    async fn by_key(
        &mut self,
        first: &Description,
        after: &mut Option<Vec<String>>,
    ) -> Result<Result<(), Gone>, SnapshotError> {
        let most = self.config.limits.snapshot_rows;
        let (mut limit, mut average) = (FIRST.min(most), 0);
        loop {
            let (seen, table) = self.open().await?;
            if !table.fits(first) {
                return Err(SnapshotError::Changed);
            }
            let select = table.select(self.request.condition.as_deref(), after.as_deref(), Some(limit));
            self.declare("", &select).await?;
            let mut rows = Rows::after(average);
            let ended = rows.fetch(self.sql.client(), limit).await?;
            self.sql.client().batch_execute("commit").await?;
            average = rows.average();
            let Some(last) = rows.rows.last() else { return Ok(Ok(())) };
            let last = table.key_of(last).ok_or(SnapshotError::Changed)?;
            let count = rows.rows.len();
            match self.publish(seen, &table, rows.rows, Some(last.clone())).await? {
                Ok(true) => {
                    *after = Some(last);
                    limit = (limit * 2).min(most);
                    if ended {
                        return Ok(Ok(()));
                    }
                }
                Ok(false) => {
                    limit = (count / 2).max(1);
                    if self.begin(first).await?.is_err() {
                        return Ok(Err(Gone));
                    }
                }
                Err(Gone) => return Ok(Err(Gone)),
            }
            if self.settle(AHEAD).await?.is_err() {
                return Ok(Err(Gone));
            }
        }
    }

    /// Without a key there is no way to go on from: all rows as one transaction sees them, kept by the server.
    async fn in_one_go(&mut self, first: &Description) -> Result<Result<(), Gone>, SnapshotError> {
        let (seen, table) = self.open().await?;
        if !table.fits(first) {
            return Err(SnapshotError::Changed);
        }
        self.declare("with hold", &table.select(self.request.condition.as_deref(), None, None)).await?;
        self.sql.client().batch_execute("commit").await?;
        let (most, mut average) = (self.config.limits.snapshot_rows, 0);
        loop {
            let mut rows = Rows::after(average);
            let ended = rows.fetch(self.sql.client(), most).await?;
            average = rows.average();
            if !rows.rows.is_empty() {
                match self.publish(seen.clone(), &table, rows.rows, None).await? {
                    Ok(true) => {}
                    Ok(false) => return Err(SnapshotError::Changed),
                    Err(Gone) => return Ok(Err(Gone)),
                }
            }
            if ended {
                return Ok(Ok(()));
            }
            if self.settle(AHEAD).await?.is_err() {
                return Ok(Err(Gone));
            }
        }
    }

    /// Hands a chunk over and writes its mark. False: it has to be read again.
    async fn publish(
        &mut self,
        seen: Visible,
        table: &Description,
        rows: Vec<crate::pgoutput::message::Tuple>,
        last: Option<Vec<String>>,
    ) -> Result<Result<bool, Gone>, SnapshotError> {
        self.no += 1;
        let (no, snapshot) = (self.no, seen.to_string());
        let count = rows.len();
        let chunk = Chunk { no, seen, relation: table.relation.clone(), info: table.info.clone(), rows };
        let (taken, told) = oneshot::channel();
        if self.said.send(Said::Chunk(Box::new(chunk), taken)).await.is_err() {
            return Ok(Err(Gone));
        }
        match told.await {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(false)),
            Err(_) => return Ok(Err(Gone)),
        }
        let values = [
            ("slot_text", quote_literal(&self.config.slot)),
            ("epoch", self.epoch.to_string()),
            ("mark_text", quote_literal(&self.mark)),
            ("no", no.to_string()),
            ("snapshot_text", quote_literal(&snapshot)),
        ];
        let statement = fill(include_str!("../../sql/queries/snapshot_mark.sql"), &values);
        let marked = self.sql.client().simple_query(&statement).await?;
        if !marked.iter().any(|answer| matches!(answer, tokio_postgres::SimpleQueryMessage::Row(_))) {
            return Ok(Err(Gone));
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.snapshot_chunks.inc();
        loop {
            match self.heard.recv().await {
                Some(Heard::Passed { no: passed, rows }) if passed == no => {
                    let Some(published) = rows else { return Ok(Ok(false)) };
                    self.metrics.snapshot_rows.inc_by(published);
                    self.under_way.push_back((no, last, count));
                    self.total += count;
                    return Ok(Ok(true));
                }
                Some(Heard::Passed { .. }) => {}
                Some(Heard::Resolved(no)) => {
                    if self.resolved(no).await?.is_err() {
                        return Ok(Err(Gone));
                    }
                }
                None => return Ok(Err(Gone)),
            }
        }
    }

    /// Waits until at most `most` chunks are not delivered.
    async fn settle(&mut self, most: usize) -> Result<Result<(), Gone>, SnapshotError> {
        loop {
            let heard = if self.under_way.len() > most {
                self.heard.recv().await
            } else {
                match self.heard.try_recv() {
                    Ok(heard) => Some(heard),
                    Err(mpsc::error::TryRecvError::Empty) => return Ok(Ok(())),
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                }
            };
            match heard {
                Some(Heard::Resolved(no)) if self.resolved(no).await?.is_ok() => {}
                Some(Heard::Passed { .. }) => {}
                _ => return Ok(Err(Gone)),
            }
        }
    }

    /// Everything up to this chunk is delivered or parked: a snapshot that goes on goes on behind it.
    async fn resolved(&mut self, no: i64) -> Result<Result<(), Gone>, SnapshotError> {
        let (mut rows, mut last) = (0, None);
        while self.under_way.front().is_some_and(|(chunk, ..)| *chunk <= no) {
            let Some((_, key, count)) = self.under_way.pop_front() else { break };
            rows += count;
            last = key.or(last);
        }
        if rows == 0 {
            return Ok(Ok(()));
        }
        let there = self.step(Step { last_key: last.as_deref(), rows, ..Step::RUNNING }).await?;
        Ok(if there { Ok(()) } else { Err(Gone) })
    }

    async fn step(&self, this: Step<'_>) -> Result<bool, tokio_postgres::Error> {
        step(self.sql.client(), &self.config.slot, self.epoch, &self.request, &this).await
    }

    /// Names the grant that is missing.
    async fn forbidden(&self, error: SqlError) -> SnapshotError {
        const WHO: &str = "select current_user::text, pg_catalog.has_schema_privilege($1, 'usage')";
        let client = self.sql.client();
        client.batch_execute("rollback").await.ok();
        let Ok(row) = client.query_one(WHO, &[&self.request.schema]).await else { return error.into() };
        let (role, usage) = (quote_ident(row.get(0)), row.get::<_, bool>(1));
        let schema = quote_ident(&self.request.schema);
        let mut statement = format!("grant select on {schema}.{} to {role}", quote_ident(&self.request.table));
        if !usage {
            statement = format!("grant usage on schema {schema} to {role}; {statement}");
        }
        SnapshotError::Forbidden { statement }
    }
}
