//! From decoded WAL to events, without I/O: transactions, heartbeats, and the [`Progress`] that says what may be acknowledged.

pub mod continuity;

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use bytes::Bytes;

use continuity::{Continuity, Gap};

use crate::config::Outbox;
use crate::event::Event;
use crate::event::outbox::{EventBuilder, OutboxTable, OutboxTableError, RowContext};
use crate::faults::{self, Bug, Point};
use crate::lsn::Lsn;
use crate::pgoutput::message::{Relation, Tuple, Value};
use crate::pgoutput::{self, DecodeError, Message};
use crate::postgres::state::{BadHeartbeat, Heartbeat};
use crate::progress::{Progress, ProgressError};

/// One session's way from WAL bytes to events.
pub struct Pipeline {
    slot: String,
    source_epoch: u32,
    outbox: Outbox,
    builder: EventBuilder,
    progress: Progress,
    tables: HashMap<u32, Table>,
    transaction: Option<Transaction>,
    heartbeats: VecDeque<(Lsn, Heartbeat)>,
    continuity: Continuity,
}

/// Rows of the outbox that `postrider repair` sends again pass through this table.
const RESEND: (&str, &str) = ("postrider", "resend");

/// What a relation in our publication is to us.
enum Table {
    Outbox(Box<OutboxTable>),
    /// The names of its columns.
    Heartbeat(Vec<String>),
    /// Somebody added it to the publication. Its rows count (ordinals are counted over all rows) and go nowhere.
    Foreign,
}

/// The transaction that is being received.
struct Transaction {
    commit: Lsn,
    commit_time: SystemTime,
    xid: u32,
    next_ordinal: u32,
    events: u64,
    heartbeat: Option<Heartbeat>,
}

/// The stream cannot be understood, or breaks the protocol. The session ends and starts again from the slot.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("cannot decode what the slot sends")]
    Decode(#[from] DecodeError),
    #[error("the replication stream breaks its protocol")]
    Protocol(#[from] ProgressError),
    #[error("row of relation {0}, which the stream has not described")]
    UnknownRelation(u32),
    #[error(transparent)]
    Table(#[from] OutboxTableError),
    #[error(transparent)]
    Heartbeat(#[from] BadHeartbeat),
    /// At this end of a commit. Nothing may be acknowledged, and the relay must halt.
    #[error("{0}")]
    Gap(#[source] Gap, Lsn),
}

/// What one frame was, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// One of [`crate::metrics::OPS`].
    Change(&'static str),
    /// `own`: it had events or a heartbeat of this slot.
    Commit {
        end: Lsn,
        time: SystemTime,
        own: bool,
    },
    Other,
}

impl Pipeline {
    /// `session` numbers the tickets; `start` is what the slot has confirmed; `source_epoch` goes into positions.
    pub fn new(
        session: u64,
        start: Lsn,
        source_epoch: u32,
        slot: &str,
        outbox: &Outbox,
        continuity: Continuity,
        builder: EventBuilder,
    ) -> Self {
        Pipeline {
            slot: slot.to_owned(),
            source_epoch,
            outbox: outbox.clone(),
            builder,
            progress: Progress::new(session, start),
            tables: HashMap::new(),
            transaction: None,
            heartbeats: VecDeque::new(),
            continuity,
        }
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    pub fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Heartbeats of this slot with everything before them resolved by now, oldest first.
    pub fn passed_heartbeats(&mut self) -> impl Iterator<Item = Heartbeat> + '_ {
        let acknowledged = self.progress.acknowledged();
        std::iter::from_fn(move || {
            let (end, _) = self.heartbeats.front()?;
            if *end <= acknowledged { self.heartbeats.pop_front().map(|(_, heartbeat)| heartbeat) } else { None }
        })
    }

    /// Takes one `XLogData`: `row_lsn` is its start, `data` the plugin's message. Pushes at most one event.
    pub fn data(&mut self, row_lsn: Lsn, data: Bytes, events: &mut Vec<Event>) -> Result<Seen, PipelineError> {
        match pgoutput::decode(data)? {
            Message::Begin(begin) => {
                self.progress.begin()?;
                faults::point(Point::Begin);
                self.transaction = Some(Transaction {
                    commit: begin.final_lsn,
                    commit_time: begin.commit_time,
                    xid: begin.xid,
                    next_ordinal: 0,
                    events: 0,
                    heartbeat: None,
                });
                Ok(Seen::Other)
            }
            Message::Commit(commit) => self.commit(commit.end_lsn, commit.commit_time),
            Message::Relation(relation) => {
                let table = self.classify(&relation)?;
                self.tables.insert(relation.oid, table);
                Ok(Seen::Other)
            }
            Message::Insert(insert) => {
                self.insert(insert.relation, row_lsn, &insert.new, events)?;
                faults::point(Point::Row);
                Ok(Seen::Change("insert"))
            }
            Message::Update(_) => self.uninteresting("update"),
            Message::Delete(_) => self.uninteresting("delete"),
            Message::Truncate(_) => self.uninteresting("truncate"),
            Message::Logical(message) if message.transactional => self.uninteresting("message"),
            Message::Logical(message) => {
                self.progress.empty_message(message.lsn)?;
                Ok(Seen::Change("message"))
            }
            Message::Origin(_) | Message::Type(_) => Ok(Seen::Other),
        }
    }

    fn classify(&self, relation: &Relation) -> Result<Table, PipelineError> {
        let (schema, table) = (relation.namespace.as_str(), relation.name.as_str());
        if schema == self.outbox.schema && table == self.outbox.table {
            Ok(Table::Outbox(Box::new(OutboxTable::new(relation, &self.outbox.columns)?)))
        } else if (schema, table) == RESEND {
            // A row that is sent again looks as it did the first time.
            let of_the_outbox =
                Relation { namespace: self.outbox.schema.clone(), name: self.outbox.table.clone(), ..relation.clone() };
            Ok(Table::Outbox(Box::new(OutboxTable::new(&of_the_outbox, &self.outbox.columns)?.resent())))
        } else if Heartbeat::is_table(schema, table) {
            Ok(Table::Heartbeat(relation.columns.iter().map(|column| column.name.clone()).collect()))
        } else {
            tracing::warn!(
                schema,
                table,
                "the publication contains a table that is not the outbox; its rows are ignored"
            );
            Ok(Table::Foreign)
        }
    }

    fn insert(
        &mut self,
        relation: u32,
        row_lsn: Lsn,
        row: &Tuple,
        events: &mut Vec<Event>,
    ) -> Result<(), PipelineError> {
        let transaction = self.transaction.as_mut().ok_or(ProgressError::EventWithoutBegin)?;
        let ordinal = transaction.next_ordinal;
        transaction.next_ordinal += 1;
        if faults::seeded(Bug::SkipByRowLsn) && row_lsn < self.progress.received() {
            return Ok(());
        }
        match self.tables.get(&relation).ok_or(PipelineError::UnknownRelation(relation))? {
            Table::Outbox(table) => {
                transaction.events += 1;
                let context = RowContext {
                    epoch: self.source_epoch,
                    commit_lsn: transaction.commit,
                    commit_time: transaction.commit_time,
                    xid: transaction.xid,
                    row_lsn,
                    ordinal,
                };
                events.push(self.builder.build(table, row, &context, self.progress.event()?));
            }
            Table::Heartbeat(columns) => {
                let heartbeat = read_heartbeat(columns, row)?;
                // Other relays on this database write theirs into the same table.
                if heartbeat.slot == self.slot {
                    transaction.heartbeat = Some(heartbeat);
                }
            }
            Table::Foreign => {}
        }
        Ok(())
    }

    fn commit(&mut self, end: Lsn, time: SystemTime) -> Result<Seen, PipelineError> {
        faults::point(Point::Commit);
        let end = Lsn(end.0 + u64::from(faults::seeded(Bug::AckEndPlusOne)));
        let transaction = self.transaction.take().ok_or(ProgressError::CommitWithoutBegin)?;
        if let Some(heartbeat) = &transaction.heartbeat {
            self.continuity.next(heartbeat.no, heartbeat.xmax()).map_err(|gap| PipelineError::Gap(gap, end))?;
        }
        self.progress.commit(end, time)?;
        let own = transaction.events > 0 || transaction.heartbeat.is_some();
        if let Some(heartbeat) = transaction.heartbeat {
            self.heartbeats.push_back((end, heartbeat));
        }
        Ok(Seen::Commit { end, time, own })
    }

    /// Our publication publishes inserts only. A row change of another kind keeps its number, and nothing else comes of it.
    fn uninteresting(&mut self, op: &'static str) -> Result<Seen, PipelineError> {
        let transaction = self.transaction.as_mut().ok_or(ProgressError::EventWithoutBegin)?;
        transaction.next_ordinal += 1;
        Ok(Seen::Change(op))
    }
}

fn read_heartbeat(columns: &[String], row: &Tuple) -> Result<Heartbeat, BadHeartbeat> {
    let values = columns.iter().zip(&row.0).map(|(name, value)| match value {
        Value::Text(text) => (name.as_str(), std::str::from_utf8(text).ok()),
        Value::Null | Value::Unchanged | Value::Binary(_) => (name.as_str(), None),
    });
    Heartbeat::decode(&values.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
