//! From a committed row of the outbox to an [`Event`].

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::cdc::Dialect;
use super::debezium::{EventRouter, Routed};
use super::headers::{self, AllowedHeaders, Captured, MAX_SHORT, RowHeaders};
use super::payload::JSON;
use super::route::{KeyValues, Router, Rule};
use super::shape::{self, ColumnShape, TableInfo};
use super::table::{Identity, Row, Scalar};
use super::{
    Event, Header, HeaderValue, Joins, Message, Poison, PoisonReason, Position, Properties, REDELIVERED, Ticket, cdc,
    payload,
};
use crate::config::{Columns, Debezium, Format};
use crate::lsn::Lsn;
use crate::pgoutput::message::{Relation, Tuple};

pub use super::table::{OutboxTable, OutboxTableError};

/// Makes events of rows. Holds what is the same for all of them.
#[derive(Debug)]
pub struct EventBuilder {
    source: cdc::Source,
    router: Arc<Router>,
    /// Of the format `debezium`.
    debezium: Debezium,
    allowed_headers: AllowedHeaders,
    /// Of a body.
    max_message_bytes: usize,
}

/// Where and when a row was committed.
#[derive(Clone, Copy, Debug)]
pub struct RowContext {
    pub commit_lsn: Lsn,
    pub commit_time: SystemTime,
    /// 0: none, of a message that is not transactional.
    pub xid: u32,
    /// Of the row's own WAL record.
    pub row_lsn: Lsn,
    /// Number of the row in its transaction (see [`Position`]).
    pub ordinal: u32,
    /// The source epoch (see [`Position`]).
    pub epoch: u32,
}

/// A row, and what is known before it is read.
struct Given<'a> {
    table: &'a OutboxTable,
    row: &'a Tuple,
    context: &'a RowContext,
    rule: &'a Rule,
    position: Position,
    id: &'a Arc<str>,
    /// No body can be made of it but the payload column's bytes.
    opaque: bool,
}

/// What happened to the thing that the event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Create,
    Update,
    Delete,
    /// A row that was there before: only a row's own `headers` can say so.
    Read,
    /// Likewise.
    Truncate,
}

impl Op {
    /// A payload that is SQL NULL: the thing is gone. JSON null is a value.
    fn of(row: &Row<'_>) -> Op {
        match (row.payload, row.before) {
            (None, _) => Op::Delete,
            (Some(_), Some(_)) => Op::Update,
            (Some(_), None) => Op::Create,
        }
    }

    /// `op` of a row's `headers`.
    pub(super) fn named(name: &str) -> Option<Op> {
        let all = [Op::Create, Op::Update, Op::Delete, Op::Read, Op::Truncate];
        all.into_iter().find(|op| op.as_str() == name)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Op::Create => "c",
            Op::Update => "u",
            Op::Delete => "d",
            Op::Read => "r",
            Op::Truncate => "t",
        }
    }
}

impl EventBuilder {
    /// `name` is `source.name`, `database` is `source.db`; `allowed_headers` as in the configuration.
    pub fn new(
        name: &str,
        database: &str,
        router: impl Into<Arc<Router>>,
        allowed_headers: &[String],
        max_message_bytes: usize,
    ) -> EventBuilder {
        EventBuilder {
            source: cdc::Source::new(Dialect::Cdc, name, database),
            router: router.into(),
            debezium: Debezium::default(),
            allowed_headers: AllowedHeaders::new(allowed_headers),
            max_message_bytes,
        }
    }

    /// With other settings of the format `debezium` than its defaults.
    #[must_use]
    pub fn with_debezium(mut self, settings: &Debezium) -> EventBuilder {
        self.debezium = settings.clone();
        self
    }

    /// Whether the catalogue has to be asked for the outbox table before its rows can be read.
    pub fn needs_catalogue(&self) -> bool {
        self.router.uses(Format::Debezium)
    }

    /// The outbox table as its rows will be read. `info` is what the catalogue says, where [`Self::needs_catalogue`] asks for it.
    ///
    /// # Errors
    /// [`OutboxTableError`], which names the table, the column and the setting.
    pub fn table(
        &self,
        relation: &Relation,
        columns: &Columns,
        info: &TableInfo,
    ) -> Result<OutboxTable, OutboxTableError> {
        let table = OutboxTable::new(relation, columns)?;
        Ok(table.routed(self.event_router(&shape::columns(relation, info), columns)))
    }

    /// Debezium's Outbox Event Router for a table of these columns.
    pub(super) fn event_router(&self, columns: &[ColumnShape], names: &Columns) -> Option<EventRouter> {
        if !self.needs_catalogue() {
            return None;
        }
        // The configuration has been checked: its expressions are some.
        EventRouter::new(columns, names, &self.debezium).ok()
    }

    /// Never fails: what cannot be published becomes an event whose content is a [`Poison`].
    pub fn build(&self, table: &OutboxTable, row: &Tuple, context: &RowContext, ticket: Ticket) -> Event {
        self.build_of(table, row, context, ticket, None)
    }

    /// Of what is known to be unfit for a reason of its own. The body of its remains is the payload column as it is.
    pub(super) fn build_poison(
        &self,
        table: &OutboxTable,
        row: &Tuple,
        context: &RowContext,
        ticket: Ticket,
        poison: Poison,
    ) -> Event {
        self.build_of(table, row, context, ticket, Some(poison))
    }

    fn build_of(
        &self,
        table: &OutboxTable,
        row: &Tuple,
        context: &RowContext,
        ticket: Ticket,
        known: Option<Poison>,
    ) -> Event {
        let identity = table.identity(row);
        let rule = self.router.choose(&identity.aggregatetype, &identity.kind);
        let position = Position { epoch: context.epoch, commit: context.commit_lsn, ordinal: context.ordinal, part: 0 };
        let id: Arc<str> = Arc::from(&*identity.id);
        let given = Given { table, row, context, rule, position, id: &id, opaque: known.is_some() };
        let (content, remains) = match known.map_or_else(|| table.read(row), Err) {
            Ok(values) => match self.message(&given, values, true) {
                (message, None) => (Ok(message), None),
                (message, Some(poison)) => (Err(poison), Some(Box::new(message))),
            },
            Err(poison) => {
                let repaired = table.repaired(row);
                let values = table.read(&repaired).ok();
                (Err(poison), values.map(|values| Box::new(self.message(&given, values, false).0)))
            }
        };
        Event {
            position,
            key: key(&identity),
            joins: Joins::Nothing,
            route: Arc::clone(&rule.route),
            commit_time: context.commit_time,
            ticket,
            content,
            remains,
            id,
        }
    }

    /// The message of a row, made as far as it can be made, and the first reason why it can't be published.
    ///
    /// `values` are those of the row; if it could not be read (`readable` is false), what its repair has left of them.
    fn message(&self, given: &Given<'_>, mut values: Row<'_>, readable: bool) -> (Message, Option<Poison>) {
        let Given { table, row, context, rule, position, id, opaque } = *given;
        let mut unfit = None;
        let mut note = |result: Result<(), Poison>| {
            if let Err(poison) = result {
                unfit.get_or_insert(poison);
            }
        };
        // What the migrations' default says, for tables that have no version.
        values.version.get_or_insert(Scalar::Integer(1));
        let parsed = match values.headers {
            Some(field) => RowHeaders::parse(field.text, field.column, &self.allowed_headers),
            None => Ok(RowHeaders::default()),
        };
        // Correlation and causation are part of an envelope: without them it would not be the one that was meant.
        let readable = readable && parsed.is_ok();
        let mut row_headers = parsed.unwrap_or_else(|poison| {
            note(Err(poison));
            RowHeaders::default()
        });
        note(row_headers.check_names());
        let captured = row_headers.captured.as_deref();
        let op = captured.and_then(|captured| captured.op).unwrap_or_else(|| Op::of(&values));
        let routed = match (rule.format, &table.router) {
            (Format::Debezium, Some(router)) if !opaque => Some(router.route(row)),
            _ => None,
        };
        let topic = routed.as_ref().and_then(|routed| routed.as_ref().ok()).map_or("", |routed| &routed.destination);
        let routing_key = routing_key(rule, table, &values, op, captured, topic);
        note(fits_short(id, "the id"));
        note(fits_short(values.kind, "the type"));
        note(fits_short(&routing_key, "the routing key"));
        note(fits_short(row_headers.correlation_id.as_deref().unwrap_or_default(), "the correlation_id"));

        let mut more = Vec::new();
        let made = match rule.format {
            _ if opaque => Ok(None),
            Format::Debezium => match routed {
                Some(Ok(routed)) => {
                    more = routed_headers(&routed);
                    Ok(Some((JSON, routed.body.unwrap_or_else(|| self.debezium.tombstone_body.clone().into_bytes()))))
                }
                Some(Err(poison)) => Err(poison),
                None => Ok(None),
            },
            Format::Cdc if readable => {
                cdc::envelope(&self.source, table, &values, &row_headers, op, context).map(|body| Some((JSON, body)))
            }
            Format::Cdc => Ok(None),
            Format::Payload => table.payload(row).and_then(payload::body).map(Some),
        };
        let (content_type, body) = match made {
            Ok(Some((content_type, body))) => {
                note(fits(&body, self.max_message_bytes));
                (content_type, body)
            }
            // A copy, as every body is one: a reference would keep all of the row in memory.
            Ok(None) => (payload::BINARY, table.payload_bytes(row).to_vec()),
            Err(poison) => {
                note(Err(poison));
                (payload::BINARY, table.payload_bytes(row).to_vec())
            }
        };
        let properties = Properties {
            message_id: Arc::clone(id),
            kind: values.kind.to_owned(),
            content_type,
            timestamp: u64::try_from(unix_micros(context.commit_time).div_euclid(1_000_000)).unwrap_or(0),
            correlation_id: row_headers.correlation_id.take(),
            headers: with(message_headers(&values, row_headers, position, table.resent), more),
        };
        note(headers::check_size(&properties));
        (Message { routing_key, properties, body: body.into() }, unfit)
    }
}

/// Refuses a body that is over `max_message_bytes`.
pub(super) fn fits(body: &[u8], max: usize) -> Result<(), Poison> {
    let size = body.len();
    if size <= max {
        return Ok(());
    }
    let detail = format!("a body of {size} bytes; `max_message_bytes` is {max}");
    Err(Poison::new(PoisonReason::TooLarge, detail))
}

/// The ordering key: `aggregatetype`, a unit separator, `aggregateid`.
///
/// U+001F is made for this and is in no sane name. Two pairs that share a key nevertheless, or that agree in all of the
/// first kilobyte (an index on the parked keys takes no more than 2,704 bytes), wait for each other without need: order
/// becomes stricter by it, never looser.
fn key(identity: &Identity<'_>) -> Arc<str> {
    const MAX_KEY: usize = 1_024;
    let parts = [&*identity.aggregatetype, "\u{1f}", &*identity.aggregateid];
    Arc::from(cut(&parts.concat(), MAX_KEY))
}

/// The longest start of a text that has at most so many bytes.
pub(super) fn cut(text: &str, max_bytes: usize) -> &str {
    let mut ends = (0..=max_bytes.min(text.len())).rev();
    ends.find_map(|end| text.get(..end)).unwrap_or_default()
}

/// What Debezium's router puts into headers, and the message key.
fn routed_headers(routed: &Routed) -> Vec<Header> {
    let text = |json: &[u8]| HeaderValue::Text(String::from_utf8_lossy(json).into_owned());
    let key = routed.key.iter().map(|key| (Cow::Borrowed(super::change::KEY), text(key)));
    let broker = |name: &str| ["cc", "bcc"].iter().any(|refused| name.eq_ignore_ascii_case(refused));
    let placed = routed.headers.iter().filter(|(name, _)| !broker(name));
    key.chain(placed.map(|(name, json)| (Cow::Owned(name.clone()), text(json)))).collect()
}

/// A later header of the same name takes the place of an earlier one.
fn with(mut headers: Vec<Header>, more: Vec<Header>) -> Vec<Header> {
    if more.is_empty() {
        return headers;
    }
    headers.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    headers.extend(more);
    headers
}

fn routing_key(
    rule: &Rule,
    table: &OutboxTable,
    row: &Row<'_>,
    op: Op,
    captured: Option<&Captured>,
    topic: &str,
) -> String {
    let captured = captured.and_then(|captured| captured.table.as_ref());
    let (schema, name) = captured.map_or((&table.schema, &table.table), |(schema, name)| (schema, name));
    let version = match row.version {
        Some(Scalar::Integer(number)) => Cow::Owned(number.to_string()),
        Some(Scalar::Text(text)) => Cow::Borrowed(text),
        None => Cow::Borrowed(""),
    };
    rule.routing_key(&KeyValues {
        aggregatetype: row.aggregatetype,
        aggregateid: row.aggregateid,
        kind: row.kind,
        version: &version,
        op: op.as_str(),
        schema,
        table: name,
        topic,
    })
}

pub(super) fn fits_short(text: &str, what: &str) -> Result<(), Poison> {
    let size = text.len();
    if size <= MAX_SHORT {
        return Ok(());
    }
    let detail = format!("{what} has {size} bytes, and AMQP allows {MAX_SHORT}");
    Err(Poison::new(PoisonReason::BadProperty, detail))
}

fn message_headers(row: &Row<'_>, row_headers: RowHeaders, position: Position, resent: bool) -> Vec<Header> {
    /// Ours: at most this many.
    const OWN: usize = 10;
    let mut headers = Vec::with_capacity(OWN + row_headers.others.len());
    let mut set = |name: &'static str, value: Option<HeaderValue>| {
        headers.extend(value.map(|value| (Cow::Borrowed(name), value)));
    };
    let text = |text: &str| Some(HeaderValue::Text(text.to_owned()));
    let scalar = |scalar| match scalar {
        Scalar::Integer(number) => HeaderValue::Integer(number),
        Scalar::Text(text) => HeaderValue::Text(text.to_owned()),
    };
    set("aggregatetype", text(row.aggregatetype));
    set("aggregateid", text(row.aggregateid));
    set("version", row.version.map(scalar));
    set("sequence", row.sequence.map(scalar));
    set("occurred_at", row.occurred_at.as_deref().and_then(text));
    set("causation_id", row_headers.causation_id.map(HeaderValue::Text));
    set("traceparent", row_headers.traceparent.map(HeaderValue::Text));
    set("tracestate", row_headers.tracestate.map(HeaderValue::Text));
    set(super::change::POSITION, Some(HeaderValue::Text(position.to_string())));
    set(REDELIVERED, resent.then_some(HeaderValue::Bool(true)));
    headers.extend(row_headers.others.into_iter().map(|(name, value)| (Cow::Owned(name), value)));
    headers
}

/// Microseconds since 1970, PostgreSQL's own resolution; saturating.
pub(super) fn unix_micros(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    }
}

#[cfg(test)]
mod tests;
