//! From decoded WAL to events, without I/O: transactions, heartbeats, and the [`Progress`] that says what may be acknowledged.

pub mod continuity;
pub mod reading;
mod transaction;

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use bytes::Bytes;

use continuity::{Continuity, Gap};
use reading::Reading;
use transaction::Transaction;

use crate::config::{Outbox, Source};
use crate::event::captured::CapturedTable;
use crate::event::change::{ChangeBuilder, ChangeContext, RowChange, TransactionBlock};
use crate::event::emitted::{self, Emitted};
use crate::event::outbox::{EventBuilder, OutboxTable, OutboxTableError, RowContext};
use crate::event::route::Pattern;
use crate::event::shape::TableInfo;
use crate::event::{Event, SourceOp};
use crate::faults::{self, Bug, Point};
use crate::lsn::Lsn;
use crate::pgoutput::message::{LogicalMessage, Relation, Truncate, Tuple, Value};
use crate::pgoutput::{self, DecodeError, Message};
use crate::postgres::state::{BadHeartbeat, Heartbeat};
use crate::progress::{Progress, ProgressError};

/// One session's way from WAL bytes to events.
pub struct Pipeline {
    slot: String,
    source_epoch: u32,
    outbox: Outbox,
    /// Tables that are captured.
    captured: Vec<Pattern>,
    /// Prefixes of messages that are events.
    messages: Vec<Pattern>,
    builder: EventBuilder,
    changes: ChangeBuilder,
    /// Makes events of the messages of `postrider.emit`, where they are wanted.
    emitted: Option<Emitted>,
    /// Said once: that a message was emitted outside of its transaction.
    stray_message: bool,
    progress: Progress,
    tables: HashMap<u32, Table>,
    transaction: Option<Transaction>,
    heartbeats: VecDeque<(Lsn, Heartbeat)>,
    continuity: Continuity,
    /// The table that is read for a snapshot.
    reading: Option<Reading>,
}

/// Rows of the outbox that `postrider repair` sends again pass through this table.
const RESEND: (&str, &str) = ("postrider", "resend");

/// What a relation in our publication is to us.
enum Table {
    Outbox(Box<OutboxTable>),
    /// The names of its columns.
    Heartbeat(Vec<String>),
    Captured(Box<CapturedTable>),
    /// It will be captured, once the catalogue has said what the stream does not.
    Undescribed(Box<Relation>),
    /// The same of the outbox, or of what is sent again (`true`).
    UndescribedOutbox(Box<Relation>, bool),
    /// Somebody added it to the publication. Its rows count (ordinals are counted over all rows) and go nowhere. The name, until that
    /// was said: a partition that is published by its root is described, and has no rows of its own.
    Foreign(Option<(String, String)>),
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
    #[error("a change of relation {0} came before the catalogue was asked for it")]
    Undescribed(u32),
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
    /// A table that will be captured: [`Pipeline::describe`] has to be told of it before the next frame.
    Undescribed(u32),
    Other,
}

impl Pipeline {
    #[expect(clippy::too_many_arguments, reason = "one caller, and every one of another kind")]
    /// `session` numbers the tickets; `start` is what the slot has confirmed; `source_epoch` goes into positions.
    pub fn new(
        session: u64,
        start: Lsn,
        source_epoch: u32,
        slot: &str,
        outbox: &Outbox,
        source: &Source,
        continuity: Continuity,
        builder: EventBuilder,
        changes: ChangeBuilder,
    ) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect();
        Pipeline {
            slot: slot.to_owned(),
            source_epoch,
            outbox: outbox.clone(),
            captured: patterns(&source.tables),
            messages: patterns(&source.messages),
            builder,
            changes,
            emitted: None,
            stray_message: false,
            progress: Progress::new(session, start),
            tables: HashMap::new(),
            transaction: None,
            heartbeats: VecDeque::new(),
            continuity,
            reading: None,
        }
    }

    /// From now on messages of `postrider.emit` are events too.
    pub fn take_emitted(&mut self) {
        self.emitted = Some(Emitted::new(&self.outbox, &self.builder));
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

    /// Takes one `XLogData`: `row_lsn` is its start, `data` the plugin's message. Pushes the events of one
    /// change: at most four, or those of a chunk of a snapshot.
    pub fn data(&mut self, row_lsn: Lsn, data: Bytes, events: &mut Vec<Event>) -> Result<Seen, PipelineError> {
        match pgoutput::decode(data)? {
            Message::Begin(begin) => {
                self.progress.begin()?;
                faults::point(Point::Begin);
                self.transaction = Some(Transaction::new(&begin, row_lsn));
                Ok(Seen::Other)
            }
            Message::Commit(commit) => self.commit(commit.end_lsn, commit.commit_time, events),
            Message::Relation(relation) => {
                let oid = relation.oid;
                let table = self.classify(relation)?;
                let undescribed = matches!(table, Table::Undescribed(_) | Table::UndescribedOutbox(..));
                self.tables.insert(oid, table);
                Ok(if undescribed { Seen::Undescribed(oid) } else { Seen::Other })
            }
            Message::Insert(insert) => {
                self.insert(insert.relation, row_lsn, &insert.new, events)?;
                faults::point(Point::Row);
                Ok(Seen::Change("insert"))
            }
            Message::Update(update) => {
                let change = RowChange::Update { old: &update.old, new: &update.new };
                self.change(update.relation, row_lsn, SourceOp::Update, change, events)?;
                Ok(Seen::Change("update"))
            }
            Message::Delete(delete) => {
                self.change(delete.relation, row_lsn, SourceOp::Delete, RowChange::Delete(&delete.old), events)?;
                Ok(Seen::Change("delete"))
            }
            Message::Truncate(truncate) => {
                self.truncate(&truncate, row_lsn, events)?;
                Ok(Seen::Change("truncate"))
            }
            Message::Logical(message) => {
                self.message(&message, row_lsn, events)?;
                Ok(Seen::Change("message"))
            }
            Message::Origin(_) | Message::Type(_) => Ok(Seen::Other),
        }
    }

    /// What the catalogue says of a table that [`Seen::Undescribed`] has named; its changes can be read from now on.
    ///
    /// # Errors
    /// The outbox lacks a column.
    pub fn describe(&mut self, oid: u32, info: &TableInfo) -> Result<(), PipelineError> {
        if let Some(table) = self.tables.get_mut(&oid)
            && let Table::Undescribed(relation) = table
        {
            let captured = self.changes.table(relation, info);
            for column in captured.nameless() {
                tracing::warn!(
                    schema = relation.namespace,
                    table = relation.name,
                    column,
                    "[[columns]] names a column that the table does not have: what it was meant to keep back may leave under another name"
                );
            }
            *table = Table::Captured(Box::new(captured));
        }
        if let Some(Table::UndescribedOutbox(relation, resent)) = self.tables.get(&oid) {
            let table = self.outbox(relation, *resent, info)?;
            self.tables.insert(oid, table);
        }
        Ok(())
    }

    fn outbox(&self, relation: &Relation, resent: bool, info: &TableInfo) -> Result<Table, PipelineError> {
        let table = self.builder.table(relation, &self.outbox.columns, info)?;
        Ok(Table::Outbox(Box::new(if resent { table.resent() } else { table })))
    }

    /// The types of the columns of a table that waits for [`Self::describe`].
    pub fn types_of(&self, oid: u32) -> Vec<u32> {
        match self.tables.get(&oid) {
            Some(Table::Undescribed(relation) | Table::UndescribedOutbox(relation, _)) => {
                relation.columns.iter().map(|column| column.type_oid).collect()
            }
            _ => Vec::new(),
        }
    }

    fn classify(&self, relation: Relation) -> Result<Table, PipelineError> {
        let (schema, table) = (relation.namespace.as_str(), relation.name.as_str());
        let resent = (schema, table) == RESEND;
        if resent || schema == self.outbox.schema && table == self.outbox.table {
            // A row that is sent again looks as it did the first time.
            let named = Relation { namespace: self.outbox.schema.clone(), name: self.outbox.table.clone(), ..relation };
            if self.builder.needs_catalogue() {
                return Ok(Table::UndescribedOutbox(Box::new(named), resent));
            }
            self.outbox(&named, resent, &TableInfo::default())
        } else if Heartbeat::is_table(schema, table) {
            Ok(Table::Heartbeat(relation.columns.iter().map(|column| column.name.clone()).collect()))
        } else if self.captured.iter().any(|pattern| pattern.matches(&format!("{schema}.{table}"))) {
            Ok(Table::Undescribed(Box::new(relation)))
        } else {
            Ok(Table::Foreign(Some((schema.to_owned(), table.to_owned()))))
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
        match self.tables.get_mut(&relation).ok_or(PipelineError::UnknownRelation(relation))? {
            Table::Outbox(table) => {
                transaction.events += 1;
                let context = transaction.context(self.source_epoch, row_lsn, ordinal);
                events.push(self.builder.build(table, row, &context, self.progress.event()?));
            }
            Table::Heartbeat(columns) => {
                let heartbeat = read_heartbeat(columns, row)?;
                // Other relays on this database write theirs into the same table.
                if heartbeat.slot == self.slot {
                    transaction.heartbeat = Some(heartbeat);
                } else {
                    self.take_mark(&heartbeat, row_lsn, events)?;
                }
            }
            Table::Captured(_) => {
                transaction.next_ordinal -= 1;
                return self.change(relation, row_lsn, SourceOp::Insert, RowChange::Insert(row), events);
            }
            Table::Undescribed(_) | Table::UndescribedOutbox(..) => return Err(PipelineError::Undescribed(relation)),
            Table::Foreign(unsaid) => foreign(unsaid),
        }
        Ok(())
    }

    /// A change of one table. Of the outbox and of tables that are none of ours it keeps its number, and nothing else comes of it.
    fn change(
        &mut self,
        relation: u32,
        row_lsn: Lsn,
        op: SourceOp,
        change: RowChange<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), PipelineError> {
        let transaction = self.transaction.as_mut().ok_or(ProgressError::EventWithoutBegin)?;
        let ordinal = transaction.next_ordinal;
        transaction.next_ordinal += 1;
        let table = match self.tables.get_mut(&relation).ok_or(PipelineError::UnknownRelation(relation))? {
            Table::Captured(table) => table,
            Table::Undescribed(_) | Table::UndescribedOutbox(..) => return Err(PipelineError::Undescribed(relation)),
            Table::Foreign(unsaid) => {
                foreign(unsaid);
                return Ok(());
            }
            Table::Outbox(_) | Table::Heartbeat(_) => return Ok(()),
        };
        let table_ordinal = transaction.next_of(relation);
        if let Some(reading) = &mut self.reading {
            reading.touch(relation, transaction.xid, || table.touches(&change));
        }
        if !self.changes.carries(op) {
            return Ok(());
        }
        let row = transaction.context(self.source_epoch, row_lsn, ordinal);
        let counted = if self.changes.counts(table) {
            if transaction.collections.is_empty() {
                transaction.events += 1;
                let begin = format!("{}:{}", transaction.xid, transaction.begin.0);
                events.push(self.changes.transaction(&begin, None, &row, self.progress.event()?));
            }
            Some((format!("{}:{}", row.xid, row_lsn.0), transaction.count(table.name())))
        } else {
            None
        };
        let block = counted.as_ref().map(|(id, (total_order, data_collection_order))| TransactionBlock {
            id,
            total_order: *total_order,
            data_collection_order: *data_collection_order,
        });
        let context = ChangeContext { row, table_ordinal, transaction: block };
        let before = events.len();
        self.changes.build(table, change, &context, || self.progress.event(), events)?;
        transaction.events += u64::try_from(events.len() - before).unwrap_or(u64::MAX);
        Ok(())
    }

    /// One statement, and an event for each of its tables.
    fn truncate(&mut self, truncate: &Truncate, row_lsn: Lsn, events: &mut Vec<Event>) -> Result<(), PipelineError> {
        for relation in &truncate.relations {
            self.change(*relation, row_lsn, SourceOp::Truncate, RowChange::Truncate, events)?;
        }
        Ok(())
    }

    fn message(
        &mut self,
        message: &LogicalMessage,
        row_lsn: Lsn,
        events: &mut Vec<Event>,
    ) -> Result<(), PipelineError> {
        let emitted = self.emitted.as_ref().filter(|_| message.prefix == emitted::PREFIX);
        let wanted = emitted.is_none() && self.messages.iter().any(|pattern| pattern.matches(&message.prefix));
        if !message.transactional {
            // It is in the WAL whether its transaction commits or not: no fact.
            if emitted.is_some() && !std::mem::replace(&mut self.stray_message, true) {
                tracing::warn!(
                    lsn = %message.lsn,
                    "a message with the prefix `postrider` was emitted outside of its transaction; such messages are ignored: emit by postrider.emit"
                );
            }
            if !wanted {
                return Ok(self.progress.empty_message(message.lsn)?);
            }
            // The end of its record may be where the next transaction's commit record begins; LSNs are multiples of 8, so that the
            // byte before it is nobody else's position. It has neither a transaction nor a time.
            let context = RowContext {
                epoch: self.source_epoch,
                commit_lsn: Lsn(message.lsn.0.saturating_sub(1)),
                commit_time: SystemTime::UNIX_EPOCH,
                xid: 0,
                row_lsn: message.lsn,
                ordinal: 0,
            };
            let ticket = self.progress.message(message.lsn)?;
            events.push(self.changes.logical(message, &context, 0, ticket));
            return Ok(());
        }
        let transaction = self.transaction.as_mut().ok_or(ProgressError::EventWithoutBegin)?;
        let ordinal = transaction.next_ordinal;
        transaction.next_ordinal += 1;
        let number = transaction.next_of(0);
        if let Some(emitted) = emitted {
            transaction.events += 1;
            // Of a message the server tells only where its record ends, and there the next row's may begin.
            let inside = Lsn(message.lsn.0.saturating_sub(1));
            let context = transaction.context(self.source_epoch, inside, ordinal);
            events.push(emitted.build(&self.builder, &message.content, &context, self.progress.event()?));
            faults::point(Point::Row);
        }
        if wanted {
            transaction.events += 1;
            let context = transaction.context(self.source_epoch, row_lsn, ordinal);
            events.push(self.changes.logical(message, &context, number, self.progress.event()?));
        }
        Ok(())
    }

    fn commit(&mut self, end: Lsn, time: SystemTime, events: &mut Vec<Event>) -> Result<Seen, PipelineError> {
        faults::point(Point::Commit);
        let end = Lsn(end.0 + u64::from(faults::seeded(Bug::AckEndPlusOne)));
        let mut transaction = self.transaction.take().ok_or(ProgressError::CommitWithoutBegin)?;
        let own = transaction.events > 0 || transaction.heartbeat.is_some();
        if let Some(heartbeat) = &transaction.heartbeat
            && !self.continuity.next(heartbeat.no, heartbeat.xmax()).map_err(|gap| PipelineError::Gap(gap, end))?
        {
            // Its number would hide those of this life from the record, which are smaller.
            transaction.heartbeat = None;
        }
        if !transaction.collections.is_empty() {
            let context = transaction.context(self.source_epoch, end, transaction.next_ordinal);
            let id = format!("{}:{}", transaction.xid, end.0);
            let ticket = self.progress.event()?;
            events.push(self.changes.transaction(&id, Some(&transaction.collections), &context, ticket));
        }
        self.progress.commit(end, time)?;
        if let Some(reading) = &mut self.reading {
            reading.committed(end);
        }
        if let Some(heartbeat) = transaction.heartbeat {
            self.heartbeats.push_back((end, heartbeat));
        }
        Ok(Seen::Commit { end, time, own })
    }
}

fn foreign(unsaid: &mut Option<(String, String)>) {
    if let Some((schema, table)) = unsaid.take() {
        tracing::warn!(
            schema,
            table,
            "the publication contains a table that is neither the outbox nor in source.tables; its rows are ignored"
        );
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
