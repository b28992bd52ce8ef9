//! From a change of a captured table to its events: one, or up to three in the format `debezium`.

mod other;

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::captured::{CapturedTable, ColumnRules, Image, Strictness};
use super::cdc::{Dialect, Source, push, push_times};
use super::headers;
use super::outbox::{RowContext, fits, fits_short, unix_micros};
use super::payload::JSON;
use super::route::{KeyValues, Router};
use super::shape::TableInfo;
use super::values::push_json;
use super::{Event, HeaderValue, Joins, Message, Poison, Position, Properties, SourceOp, Ticket, push_hex};
use crate::config::{Debezium, Format};
use crate::pgoutput::message::{OldTuple, Relation, Tuple};
use crate::progress::ProgressError;

/// Makes events of changes. Holds what is the same for all of them.
#[derive(Debug)]
pub struct ChangeBuilder {
    cdc: Source,
    debezium: Source,
    /// `topic.prefix`
    name: String,
    /// Which database the changes are of: ids of events hold it.
    origin: Origin,
    router: Arc<Router>,
    rules: ColumnRules,
    settings: Debezium,
    skip: Vec<SourceOp>,
    max_message_bytes: usize,
}

/// What tells a database from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub system_identifier: u64,
    pub database_oid: u32,
}

/// A change as it came.
#[derive(Clone, Copy, Debug)]
pub enum RowChange<'a> {
    Insert(&'a Tuple),
    Update {
        old: &'a OldTuple,
        new: &'a Tuple,
    },
    Delete(&'a OldTuple),
    Truncate,
    /// No change: a row that a snapshot has read.
    Read(&'a Tuple),
}

/// Where a change stands.
#[derive(Clone, Copy, Debug)]
pub struct ChangeContext<'a> {
    pub row: RowContext,
    /// Number of the change among those of its table in the transaction, from 0.
    pub table_ordinal: u32,
    /// Of the transaction, where `debezium.transaction_metadata` asks for it.
    pub transaction: Option<TransactionBlock<'a>>,
}

/// `transaction` of an envelope.
#[derive(Clone, Copy, Debug)]
pub struct TransactionBlock<'a> {
    pub id: &'a str,
    /// From 1.
    pub total_order: u64,
    /// Of its table, from 1.
    pub data_collection_order: u64,
}

/// A table's share of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionCount {
    pub schema: String,
    pub table: String,
    pub events: u64,
}

/// What becomes one message.
struct Draft<'a> {
    /// From 0: its place among the messages of one change.
    part: u8,
    op: &'static str,
    before: Option<&'a Image<'a>>,
    after: Option<&'a Image<'a>>,
    /// The row that the message key is of.
    keyed: Option<&'a Image<'a>>,
    /// `__debezium.newkey` or `__debezium.oldkey`, and the row whose key it is.
    other_key: Option<(&'static str, &'a Image<'a>)>,
    tombstone: bool,
}

impl ChangeBuilder {
    #[expect(clippy::too_many_arguments, reason = "each is a part of the configuration, and there is one caller")]
    pub fn new(
        name: &str,
        database: &str,
        origin: Origin,
        router: Arc<Router>,
        rules: ColumnRules,
        settings: &Debezium,
        skip: &[SourceOp],
        max_message_bytes: usize,
    ) -> ChangeBuilder {
        ChangeBuilder {
            cdc: Source::new(Dialect::Cdc, name, database),
            debezium: Source::new(Dialect::Debezium, name, database),
            name: name.to_owned(),
            origin,
            router,
            rules,
            settings: settings.clone(),
            skip: skip.to_vec(),
            max_message_bytes,
        }
    }

    /// The table as its changes will be read.
    pub fn table(&self, relation: &Relation, info: &TableInfo) -> CapturedTable {
        CapturedTable::new(relation, info, &self.name, &self.rules, &self.router, &self.settings)
    }

    /// Whether changes of this kind leave.
    pub fn carries(&self, op: SourceOp) -> bool {
        !self.skip.contains(&op)
    }

    /// Whether the table's changes count in the metadata of their transaction.
    pub fn counts(&self, table: &CapturedTable) -> bool {
        self.settings.transaction_metadata && table.rule.format == Format::Debezium
    }

    /// Pushes the events of one change, in their order. What cannot be published is a [`Poison`].
    ///
    /// # Errors
    /// Those of `ticket`, which is asked once for each event.
    pub fn build(
        &self,
        table: &CapturedTable,
        change: RowChange<'_>,
        context: &ChangeContext<'_>,
        mut ticket: impl FnMut() -> Result<Ticket, ProgressError>,
        events: &mut Vec<Event>,
    ) -> Result<(), ProgressError> {
        let (before, after) = match change {
            RowChange::Insert(new) | RowChange::Read(new) => (None, Some(table.after(new, None))),
            RowChange::Update { old, new } => (table.before(old), Some(table.after(new, Some(old)))),
            RowChange::Delete(old) => (table.before(old), None),
            RowChange::Truncate => (None, None),
        };
        let (before, after) = (before.as_ref(), after.as_ref());
        let (key, joins) = self.order(table, before, after);
        let debezium = table.rule.format == Format::Debezium;
        let draft = |part, op, before, after| Draft {
            part,
            op,
            before,
            after,
            keyed: after.or(before),
            other_key: None,
            tombstone: false,
        };
        let tombstone = |part, of| Draft { tombstone: true, ..draft(part, "d", of, None) };
        // A table without a key has no tombstone's key either, and gets one all the same.
        let mut drafts = Vec::with_capacity(1);
        match (change, before, after) {
            (RowChange::Update { .. }, Some(old), Some(new))
                if debezium && table.changes_key(old, new, &self.rules) =>
            {
                let other_key = Some(("__debezium.newkey", new));
                drafts.push(Draft { other_key, ..draft(0, "d", before, None) });
                if self.settings.tombstones {
                    drafts.push(Draft { other_key, ..tombstone(1, before) });
                }
                drafts.push(Draft { other_key: Some(("__debezium.oldkey", old)), ..draft(2, "c", None, after) });
            }
            (RowChange::Delete(_), ..) => {
                drafts.push(draft(0, "d", before, None));
                if debezium && self.settings.tombstones {
                    drafts.push(tombstone(1, before));
                }
            }
            (RowChange::Insert(_), ..) => drafts.push(draft(0, "c", None, after)),
            (RowChange::Update { .. }, ..) => {
                // Of a key that did not change Debezium shows no row before.
                let shown =
                    before.filter(|_| matches!(change, RowChange::Update { old: OldTuple::Full(_), .. }) || !debezium);
                drafts.push(Draft { keyed: after, ..draft(0, "u", shown, after) });
            }
            (RowChange::Truncate, ..) => drafts.push(draft(0, "t", None, None)),
            (RowChange::Read(_), ..) => drafts.push(draft(0, READ, None, after)),
        }
        // The place before the first change of a transaction is that of its BEGIN.
        let first_part = u8::from(debezium);
        for draft in drafts {
            let position = Position {
                epoch: context.row.epoch,
                commit: context.row.commit_lsn,
                ordinal: context.row.ordinal,
                part: first_part + draft.part,
            };
            let id = self.id(&context.row, table.oid, context.table_ordinal, draft.part);
            let (content, remains) = self.message(table, &draft, context, position, &id);
            events.push(Event {
                position,
                id,
                key: Arc::clone(&key),
                joins: joins.clone(),
                route: Arc::clone(&table.rule.route),
                commit_time: context.row.commit_time,
                ticket: ticket()?,
                content,
                remains,
            });
        }
        Ok(())
    }

    /// What the change waits for, and what waits for it (rule R3).
    fn order(&self, table: &CapturedTable, before: Option<&Image<'_>>, after: Option<&Image<'_>>) -> (Arc<str>, Joins) {
        let key = |image: &Image<'_>| table.order_key(image, &self.rules);
        match (before, after) {
            (Some(old), Some(new)) if table.moves(old, new) => (key(new), Joins::Key(key(old))),
            (_, Some(row)) | (Some(row), None) => {
                let key = key(row);
                let joins = if key == table.table_key { Joins::Table } else { Joins::Nothing };
                (key, joins)
            }
            (None, None) => (Arc::clone(&table.table_key), Joins::Table),
        }
    }

    /// Stable across restarts, and of no two messages the same: as the commit of a replaced timeline may stand at the same LSN, its
    /// time and transaction go in too.
    fn id(&self, row: &RowContext, relation: u32, ordinal: u32, part: u8) -> Arc<str> {
        let digest = Sha256::new()
            .chain_update(self.origin.system_identifier.to_be_bytes())
            .chain_update(self.origin.database_oid.to_be_bytes())
            .chain_update(row.commit_lsn.0.to_be_bytes())
            .chain_update(unix_micros(row.commit_time).to_be_bytes())
            .chain_update(row.xid.to_be_bytes())
            .chain_update(relation.to_be_bytes())
            .chain_update(ordinal.to_be_bytes())
            .chain_update([part])
            .finalize();
        let mut bytes = [0; 16];
        for (byte, digest) in bytes.iter_mut().zip(digest) {
            *byte = digest;
        }
        // Version 8 and the variant of RFC 9562: a UUID whose bits are the application's own.
        let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bytes;
        *version = *version & 0x0f | 0x80;
        *variant = *variant & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        let mut rest = bytes.as_slice();
        for length in [4, 2, 2, 2, 6] {
            let (group, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            if !text.is_empty() {
                text.push('-');
            }
            push_hex(&mut text, group);
            rest = after;
        }
        text.into()
    }

    fn message(
        &self,
        table: &CapturedTable,
        draft: &Draft<'_>,
        context: &ChangeContext<'_>,
        position: Position,
        id: &Arc<str>,
    ) -> (Result<Message, Poison>, Option<Box<Message>>) {
        let mut unfit = None;
        let mut note = |result: Result<(), Poison>| {
            if let Err(poison) = result {
                unfit.get_or_insert(poison);
            }
        };
        let body = match self.body(table, draft, context, Strictness::Strict) {
            Ok(body) => body,
            Err(poison) => {
                note(Err(poison));
                self.body(table, draft, context, Strictness::Lossy).unwrap_or_default()
            }
        };
        note(fits(&body, self.max_message_bytes));
        let mut headers = vec![(Cow::Borrowed(POSITION), HeaderValue::Text(position.to_string()))];
        let mut key_header = |name: &'static str, image: &Image<'_>| {
            let mut key = Vec::new();
            note(table.push_message_key(&mut key, image, &self.rules));
            headers.push((Cow::Borrowed(name), HeaderValue::Text(String::from_utf8_lossy(&key).into_owned())));
        };
        if table.has_message_key() {
            if let Some(row) = draft.keyed {
                key_header(KEY, row);
            }
            if let Some((name, row)) = draft.other_key {
                key_header(name, row);
            }
        }
        let keyed = draft.keyed.filter(|_| table.rule.names_aggregateid());
        let keyed = keyed.map(|row| table.key_values(row, &self.rules)).unwrap_or_default();
        let routing_key = table.rule.routing_key(&KeyValues {
            aggregatetype: &table.table,
            aggregateid: &keyed,
            kind: draft.op,
            version: "1",
            op: draft.op,
            schema: &table.schema,
            table: &table.table,
            topic: &table.topic,
        });
        let kind = format!("{}.{}.{}", table.schema, table.table, draft.op);
        let message = self.finished(routing_key, kind, id, &context.row, headers, body, &mut note);
        match unfit {
            None => (Ok(message), None),
            Some(poison) => (Err(poison), Some(Box::new(message))),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a message")]
    fn finished(
        &self,
        routing_key: String,
        kind: String,
        id: &Arc<str>,
        row: &RowContext,
        headers: Vec<super::Header>,
        body: Vec<u8>,
        note: &mut impl FnMut(Result<(), Poison>),
    ) -> Message {
        note(fits_short(&routing_key, "the routing key"));
        note(fits_short(&kind, "the type"));
        let properties = Properties {
            message_id: Arc::clone(id),
            kind,
            content_type: JSON,
            timestamp: u64::try_from(unix_micros(row.commit_time).div_euclid(1_000_000)).unwrap_or(0),
            correlation_id: None,
            headers,
        };
        note(headers::check_size(&properties));
        Message { routing_key, properties, body: body.into() }
    }

    fn body(
        &self,
        table: &CapturedTable,
        draft: &Draft<'_>,
        context: &ChangeContext<'_>,
        strictness: Strictness,
    ) -> Result<Vec<u8>, Poison> {
        if draft.tombstone {
            return Ok(self.settings.tombstone_body.clone().into_bytes());
        }
        let debezium = table.rule.format == Format::Debezium;
        let mut body = Vec::with_capacity(1024);
        let out = &mut body;
        let mut unchanged = Vec::new();
        for (name, image) in [(r#"{"before":"#, draft.before), (r#","after":"#, draft.after)] {
            push(out, name);
            match image {
                None => push(out, "null"),
                Some(image) if debezium => table.push_debezium(out, image, &self.rules, strictness)?,
                Some(image) => table.push_cdc(out, image, &self.rules, strictness, &mut unchanged)?,
            }
        }
        push(out, r#","source":"#);
        let source = if debezium { &self.debezium } else { &self.cdc };
        let snapshot = match (draft.op == READ, debezium) {
            (false, _) => "false",
            (true, false) => "true",
            (true, true) => "incremental",
        };
        // The transaction of a row that was read is not known: that of the mark is none of its.
        let xid = if draft.op == READ { 0 } else { context.row.xid };
        let row = RowContext { xid, ..context.row };
        source.push(out, &row, &table.source_fragment, snapshot, ("unchanged", &unchanged));
        push(out, r#","op":""#);
        push(out, draft.op);
        push(out, r#"","#);
        push_times(out, context.row.commit_time);
        push(out, r#","transaction":"#);
        match context.transaction.filter(|_| debezium) {
            None => push(out, "null"),
            Some(block) => {
                push(out, r#"{"id":"#);
                push_json(out, block.id);
                push(out, r#","total_order":"#);
                push_json(out, &block.total_order);
                push(out, r#","data_collection_order":"#);
                push_json(out, &block.data_collection_order);
                push(out, "}");
            }
        }
        push(out, "}");
        Ok(body)
    }
}

/// The header that has the position.
pub(super) const POSITION: &str = "x-postrider-position";
/// The header that has the message key, as JSON: Kafka's key, which AMQP has no place for.
pub(super) const KEY: &str = "x-postrider-key";
/// `op` of a row that a snapshot has read.
const READ: &str = "r";
