//! `[source]`, `[[columns]]` and `[debezium]`.

use super::file::Value;
use super::reader::Reader;
use super::values::{self, Parsed};
use crate::config::{
    Binary, ColumnRule, Debezium, Decimals, Hstore, Intervals, OutboxRouter, Place, Placement, Redaction, RouteRule,
    Snapshot, Source, Times,
};
use crate::event::SourceOp;

/// The route of table changes that match no other.
pub(super) const TABLES_ROUTE: &str = "tables";

pub(super) fn source(reader: &mut Reader, publication: &str) -> Source {
    let tables = reader.or("source.tables", Vec::new(), table_patterns);
    let named = |suffix: &str| if tables.is_empty() { String::new() } else { format!("{publication}_{suffix}") };
    Source {
        publication: reader.or("source.publication", named("tables"), values::identifier),
        publication_inserts: reader.or("source.publication_inserts", named("inserts"), values::identifier),
        snapshot: reader.or("source.snapshot", Snapshot::default(), snapshot),
        skip: reader.or("source.skip", Vec::new(), ops),
        messages: reader.or("source.messages", Vec::new(), values::names),
        emit: reader.or("source.emit", false, values::boolean),
        columns: columns(reader),
        tables,
    }
}

/// Where changes of tables go that no `[[route]]` with a `table` takes; they inherit the rest from `[event]`.
pub(super) fn default_route(reader: &mut Reader, inherited: &RouteRule) -> RouteRule {
    RouteRule {
        name: TABLES_ROUTE.to_owned(),
        table: Some("*".to_owned()),
        exchange: reader.or("source.exchange", inherited.exchange.clone(), values::amqp_name),
        routing_key: reader.or("source.routing_key", "{schema}.{table}.{op}".to_owned(), values::routing_key),
        format: reader.or("source.format", inherited.format, values::format),
        ..inherited.clone()
    }
}

fn columns(reader: &mut Reader) -> Vec<ColumnRule> {
    let mut rules = Vec::new();
    for mut entry in reader.entries("columns") {
        rules.push(ColumnRule {
            table: reader.required(&mut entry, "table", table_pattern).unwrap_or_default(),
            include: reader.field(&mut entry, "include", values::names).unwrap_or_default(),
            exclude: reader.field(&mut entry, "exclude", values::names).unwrap_or_default(),
            redact: reader.field(&mut entry, "redact", redactions).unwrap_or_default(),
        });
        reader.close(entry);
    }
    rules
}

pub(super) fn debezium(reader: &mut Reader) -> Debezium {
    let default = Debezium::default();
    Debezium {
        tombstones: reader.or("debezium.tombstones", default.tombstones, values::boolean),
        tombstone_body: reader.or("debezium.tombstone_body", default.tombstone_body, values::any_text),
        transaction_metadata: reader.or("debezium.transaction_metadata", false, values::boolean),
        decimals: reader.or("debezium.decimals", default.decimals, |value| {
            values::one_of(
                value,
                &[("precise", Decimals::Precise), ("string", Decimals::String), ("double", Decimals::Double)],
            )
        }),
        binary: reader.or("debezium.binary", default.binary, |value| {
            let choices = [
                ("bytes", Binary::Bytes),
                ("base64", Binary::Base64),
                ("base64-url-safe", Binary::Base64UrlSafe),
                ("hex", Binary::Hex),
            ];
            values::one_of(value, &choices)
        }),
        hstore: reader.or("debezium.hstore", default.hstore, |value| {
            values::one_of(value, &[("json", Hstore::Json), ("map", Hstore::Map)])
        }),
        intervals: reader.or("debezium.intervals", default.intervals, |value| {
            values::one_of(value, &[("numeric", Intervals::Numeric), ("string", Intervals::String)])
        }),
        times: reader.or("debezium.times", default.times, times),
        unknown_types: reader.or("debezium.unknown_types", default.unknown_types, values::boolean),
        unavailable_value: reader.or("debezium.unavailable_value", default.unavailable_value, values::any_text),
        router: router(reader),
    }
}

fn times(value: &Value) -> Parsed<Times> {
    let choices = [
        ("adaptive", Times::Adaptive),
        ("adaptive_time_microseconds", Times::AdaptiveTimeMicroseconds),
        ("connect", Times::Connect),
        ("isostring", Times::IsoString),
        ("microseconds", Times::Microseconds),
        ("nanoseconds", Times::Nanoseconds),
    ];
    values::one_of(value, &choices)
}

fn router(reader: &mut Reader) -> OutboxRouter {
    let default = OutboxRouter::default();
    OutboxRouter {
        route_by_field: reader.or("debezium.router.route_by_field", default.route_by_field, values::identifier),
        topic_regex: reader.or("debezium.router.topic_regex", default.topic_regex, regex),
        topic_replacement: reader.or("debezium.router.topic_replacement", default.topic_replacement, values::text),
        additional: reader.or("debezium.router.additional", default.additional, placements),
        ignore_missing: reader.or("debezium.router.ignore_missing", false, values::boolean),
        expand_json: reader.or("debezium.router.expand_json", false, values::boolean),
        tombstone_on_empty: reader.or("debezium.router.tombstone_on_empty", false, values::boolean),
    }
}

fn snapshot(value: &Value) -> Parsed<Snapshot> {
    values::one_of(value, &[("initial", Snapshot::Initial), ("never", Snapshot::Never)])
}

fn ops(value: &Value) -> Parsed<Vec<SourceOp>> {
    let names = values::names(value)?;
    let one = |name: &String| {
        let wrong = || format!("{name:?} must be one of \"insert\", \"update\", \"delete\" and \"truncate\"");
        SourceOp::ALL.into_iter().find(|op| op.name() == name).ok_or_else(wrong)
    };
    names.iter().map(one).collect()
}

fn regex(value: &Value) -> Parsed<String> {
    let text = values::text(value)?;
    crate::event::router_regex(&text).map(|_| text).map_err(|error| format!("is no regular expression: {error}"))
}

fn table_patterns(value: &Value) -> Parsed<Vec<String>> {
    values::names(value)?.into_iter().map(|name| table_pattern(&Value::Text(name))).collect()
}

/// `schema.table`, exactly as the catalogue has the names, with `*` for any run of characters. Without a schema: `public`.
pub(super) fn table_pattern(value: &Value) -> Parsed<String> {
    let text = values::text(value)?;
    if text.contains('\0') {
        return Err("must not contain NUL".to_owned());
    }
    Ok(if text.contains('.') { text } else { format!("public.{text}") })
}

fn redactions(value: &Value) -> Parsed<Vec<(String, Redaction)>> {
    let Value::Table(table) = value else {
        return Err(format!("must be a table, as in {{ email = \"sha256\" }}, not {}", value.kind()));
    };
    let choices = [
        ("drop", Redaction::Drop),
        ("null", Redaction::Null),
        ("mask", Redaction::Mask),
        ("sha256", Redaction::Sha256),
    ];
    let one = |(name, item): (&String, &super::file::Item)| {
        let redaction = values::one_of(&item.value, &choices).map_err(|problem| format!("{name} {problem}"))?;
        Ok((name.clone(), redaction))
    };
    table.iter().map(one).collect()
}

fn placements(value: &Value) -> Parsed<Vec<Placement>> {
    let one = |text: String| {
        let wrong = || format!("{text:?} must be column:header, column:envelope or column:header:alias");
        let mut parts = text.split(':');
        let (column, place) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(wrong)?);
        let alias = parts.next().unwrap_or(column);
        let place = match place {
            "header" => Place::Header,
            "envelope" => Place::Envelope,
            "partition" => Place::Partition,
            _ => return Err(wrong()),
        };
        if column.is_empty() || alias.is_empty() || parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Placement { column: column.to_owned(), place, alias: alias.to_owned() })
    };
    values::names(value)?.into_iter().map(one).collect()
}
