//! From a message of `postrider.emit` to the row of the outbox that it stands for.
//!
//! Whoever may call `pg_logical_emit_message` can write such a message, past the function and its checks: nothing of it is trusted.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::value::RawValue;

use super::outbox::{EventBuilder, OutboxTable, RowContext};
use super::shape::{ColumnShape, TypeKind, TypeShape};
use super::{Event, Poison, PoisonReason, Ticket};
use crate::config::{Columns, Outbox};
use crate::pgoutput::message::{Tuple, Value};

/// Prefix of the messages that are ours; another one, however similar, is somebody else's.
pub const PREFIX: &str = "postrider";

/// Makes events of messages. They look like those of the outbox's rows.
#[derive(Debug)]
pub struct Emitted {
    table: OutboxTable,
}

impl Emitted {
    pub fn new(outbox: &Outbox, builder: &EventBuilder) -> Emitted {
        let table = OutboxTable::of_emitted(&outbox.schema, &outbox.table);
        let router = builder.event_router(&columns(), &Columns::default());
        Emitted { table: table.routed(router) }
    }

    /// Never fails, as [`EventBuilder::build`]. The remains of what is malformed are the content itself.
    pub fn build(&self, builder: &EventBuilder, content: &Bytes, context: &RowContext, ticket: Ticket) -> Event {
        match row(content) {
            Ok(row) => builder.build(&self.table, &row, context, ticket),
            Err((poison, row)) => builder.build_poison(&self.table, &row, context, ticket, poison),
        }
    }
}

/// The columns of [`row`], for Debezium's router. OIDs: `pg_type.dat`.
fn columns() -> Vec<ColumnShape> {
    const TEXT: u32 = 25;
    const INT4: u32 = 23;
    const INT8: u32 = 20;
    const JSONB: u32 = 3802;
    let columns = [
        ("id", TEXT),
        ("aggregatetype", TEXT),
        ("aggregateid", TEXT),
        ("type", TEXT),
        ("payload", JSONB),
        ("before", JSONB),
        ("version", INT4),
        ("sequence", INT8),
        ("headers", JSONB),
        ("occurred_at", TEXT),
    ];
    let shape = |(name, oid): (&str, u32)| ColumnShape {
        name: name.to_owned(),
        shape: TypeShape { oid, modifier: -1, name: String::new(), kind: TypeKind::Base, domain: false },
        not_null: false,
        default: None,
        identity: false,
    };
    columns.into_iter().map(shape).collect()
}

/// The members that count; those of other names are ignored. As they are written: the type of each is looked at here.
#[derive(Default, Deserialize)]
struct Members<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    aggregatetype: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    aggregateid: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present", rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    before: Option<&'a RawValue>,
    #[serde(borrow, default)]
    version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sequence: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    #[serde(borrow, default)]
    occurred_at: Option<&'a RawValue>,
}

/// JSON null is a value here: without one the member is not there.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The row, in the order of [`OutboxTable::of_emitted`]. Or why there is none, and what is left: what names the event, and the whole
/// content as its payload.
fn row(content: &Bytes) -> Result<Tuple, (Poison, Tuple)> {
    let members = match std::str::from_utf8(content) {
        Err(_) => Err(Poison::new(PoisonReason::NotUtf8, "an emitted message is not UTF-8")),
        // The parser's own message could quote a value. An array would be taken for the members in their order.
        Ok(text) => Some(text)
            .filter(|text| text.trim_ascii_start().starts_with('{'))
            .and_then(|text| serde_json::from_str::<Members<'_>>(text).ok())
            .ok_or_else(|| {
                let detail = "an emitted message is not one JSON object that has each member once";
                Poison::new(PoisonReason::BadProperty, detail)
            }),
    };
    let (members, mut unfit) = match members {
        Ok(members) => (members, None),
        Err(poison) => (Members::default(), Some(poison)),
    };
    let mut checked = |name: &str, is: &str, value: Result<Value, Value>| {
        value.unwrap_or_else(|instead| {
            unfit.get_or_insert_with(|| {
                Poison::new(PoisonReason::BadProperty, format!("`{name}` of an emitted message is not {is}"))
            });
            instead
        })
    };
    let id = checked("id", "a text", text(members.id));
    let aggregatetype = checked("aggregatetype", "a text", text(members.aggregatetype));
    let aggregateid = checked("aggregateid", "a text", text(members.aggregateid));
    let kind = checked("type", "a text", text(members.kind));
    let version = checked("version", "a whole number", optional(members.version, integer));
    let sequence = checked("sequence", "a whole number", optional(members.sequence, integer));
    let occurred_at = checked("occurred_at", "a text", optional(members.occurred_at, text));
    let (payload, before, headers) = match &unfit {
        None => (verbatim(members.payload), verbatim(members.before), verbatim(members.headers)),
        Some(_) => (Value::Text(content.clone()), Value::Null, Value::Null),
    };
    let row =
        Tuple(vec![id, aggregatetype, aggregateid, kind, payload, before, version, sequence, headers, occurred_at]);
    match unfit {
        None => Ok(row),
        Some(poison) => Err((poison, row)),
    }
}

/// `Err`: what stands in for a value that is not of the type.
type Checked = Result<Value, Value>;

fn text(json: Option<&RawValue>) -> Checked {
    match json.and_then(|json| serde_json::from_str::<String>(json.get()).ok()) {
        // No column of the outbox could hold it, and no dead letter either.
        Some(text) if text.contains('\0') => Err(Value::Text(text.replace('\0', "\u{fffd}").into())),
        Some(text) => Ok(Value::Text(text.into())),
        None => Err(Value::Null),
    }
}

fn integer(json: Option<&RawValue>) -> Checked {
    let integer = json.and_then(|json| serde_json::from_str::<i64>(json.get()).ok());
    integer.map(|integer| Value::Text(integer.to_string().into())).ok_or(Value::Null)
}

fn optional(json: Option<&RawValue>, read: fn(Option<&RawValue>) -> Checked) -> Checked {
    if json.is_some() { read(json) } else { Ok(Value::Null) }
}

/// The bytes that were emitted: parsed and printed again a value could lose digits and order.
fn verbatim(json: Option<&RawValue>) -> Value {
    json.map_or(Value::Null, |json| Value::Text(Bytes::copy_from_slice(json.get().as_bytes())))
}

#[cfg(test)]
mod tests;
