//! Format `cdc`: an envelope in the shape of Debezium's change event (`docs/formats.md`).
//!
//! A body is a function of the WAL alone, so that an event that is sent again is the same byte for byte: every time in it
//! is the commit time, and the version is that of the format, not of the program.

use std::io::Write;
use std::time::SystemTime;

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::de::IgnoredAny;

use super::Poison;
use super::headers::RowHeaders;
use super::outbox::{Op, RowContext};
use super::payload::unhex;
use super::table::{ColumnType, Field, OutboxTable, Row, Scalar};
use super::values::push_json;

/// The block `source`: what never changes while the program runs.
#[derive(Debug)]
pub(super) struct Source {
    /// Up to the value of `ts_ms`.
    head: Vec<u8>,
    /// From behind `snapshot` up to the first LSN in `sequence`.
    middle: Vec<u8>,
    /// Behind `xmin`.
    tail: &'static [u8],
}

/// Whose envelope it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Cdc,
    Debezium,
}

impl Source {
    pub(super) fn new(dialect: Dialect, name: &str, database: &str) -> Source {
        /// Of Debezium's format: the release that it was compared with.
        const DEBEZIUM: &[u8] = br#"{"version":"3.6.3.Final","connector":"postgresql","name":"#;
        let (head, tail): (&[u8], &'static [u8]) = match dialect {
            Dialect::Cdc => (br#"{"version":"1","connector":"postrider","name":"#, b""),
            Dialect::Debezium => (DEBEZIUM, br#","origin":null,"origin_lsn":null"#),
        };
        let mut head = head.to_vec();
        push_json(&mut head, name);
        head.extend_from_slice(br#","ts_ms":"#);
        let mut middle = br#"","db":"#.to_vec();
        push_json(&mut middle, database);
        middle.extend_from_slice(br#","sequence":"[\""#);
        Source { head, middle, tail }
    }

    /// Appends the block. `snapshot` is `false` for what comes from the WAL; `list` is a list of columns with its
    /// name, left out where it is empty.
    pub(super) fn push(
        &self,
        out: &mut Vec<u8>,
        context: &RowContext,
        table_fragment: &[u8],
        snapshot: &str,
        (list, names): (&str, &[&str]),
    ) {
        let times = Times::of(context.commit_time);
        out.extend_from_slice(&self.head);
        push_json(out, &times.millis);
        push(out, r#","snapshot":""#);
        push(out, snapshot);
        out.extend_from_slice(&self.middle);
        push_json(out, &context.commit_lsn.0);
        push(out, r#"\",\""#);
        push_json(out, &context.row_lsn.0);
        push(out, r#"\"]","ts_us":"#);
        push_json(out, &times.micros);
        push(out, r#","ts_ns":"#);
        push_json(out, &times.nanos);
        out.extend_from_slice(table_fragment);
        push(out, r#","txId":"#);
        push_json(out, &Some(context.xid).filter(|xid| *xid != 0));
        push(out, r#","lsn":"#);
        push_json(out, &context.row_lsn.0);
        push(out, r#","xmin":null"#);
        out.extend_from_slice(self.tail);
        if !names.is_empty() {
            push(out, ",");
            push_json(out, list);
            push(out, ":");
            push_json(out, names);
        }
        push(out, "}");
    }
}

/// The commit time as the envelope has it. The clock of PostgreSQL has microseconds.
#[derive(Clone, Copy)]
struct Times {
    millis: i64,
    micros: i64,
    nanos: i64,
}

impl Times {
    fn of(time: SystemTime) -> Times {
        let micros = super::outbox::unix_micros(time);
        Times { millis: micros.div_euclid(1_000), micros, nanos: micros.saturating_mul(1_000) }
    }
}

/// `"ts_ms":..,"ts_us":..,"ts_ns":..`: of the envelope itself.
pub(super) fn push_times(out: &mut Vec<u8>, time: SystemTime) {
    let times = Times::of(time);
    push(out, r#""ts_ms":"#);
    push_json(out, &times.millis);
    push(out, r#","ts_us":"#);
    push_json(out, &times.micros);
    push(out, r#","ts_ns":"#);
    push_json(out, &times.nanos);
}

/// The parts of `source` that change only with the table.
pub(super) fn table_fragment(schema: &str, table: &str) -> Vec<u8> {
    let mut fragment = br#","schema":"#.to_vec();
    push_json(&mut fragment, schema);
    fragment.extend_from_slice(br#","table":"#);
    push_json(&mut fragment, table);
    fragment
}

/// The body of one event.
pub(super) fn envelope(
    source: &Source,
    table: &OutboxTable,
    row: &Row<'_>,
    headers: &RowHeaders,
    op: Op,
    context: &RowContext,
) -> Result<Vec<u8>, Poison> {
    /// What the rest of an envelope usually takes.
    const USUAL: usize = 768;
    let length = |field: Option<Field<'_>>| field.map_or(0, |field| field.text.len());
    let mut body = Vec::with_capacity(USUAL + length(row.before) + length(row.payload));
    let out = &mut body;

    push(out, r#"{"before":"#);
    push_field(out, row.before)?;
    push(out, r#","after":"#);
    push_field(out, row.payload)?;

    push(out, r#","source":"#);
    let captured = headers.captured.as_deref();
    let fragment =
        captured.and_then(|captured| captured.table.as_ref()).map(|(schema, table)| table_fragment(schema, table));
    let omitted: Vec<&str> =
        captured.map(|captured| captured.omitted.iter().map(|name| &**name).collect()).unwrap_or_default();
    let fragment = fragment.as_deref().unwrap_or(&table.source_fragment);
    source.push(out, context, fragment, "false", ("omitted", &omitted));
    push(out, r#","op":""#);
    push(out, op.as_str());
    push(out, r#"","#);
    push_times(out, context.commit_time);
    push(out, r#","transaction":null,"id":"#);
    push_json(out, row.id);
    push(out, r#","type":"#);
    push_json(out, row.kind);
    push(out, r#","version":"#);
    push_scalar(out, row.version);
    push(out, r#","aggregatetype":"#);
    push_json(out, row.aggregatetype);
    push(out, r#","aggregateid":"#);
    push_json(out, row.aggregateid);
    push(out, r#","sequence":"#);
    push_scalar(out, row.sequence);
    push(out, r#","occurred_at":"#);
    push_json(out, &row.occurred_at);
    push(out, r#","correlation_id":"#);
    push_json(out, &headers.correlation_id);
    push(out, r#","causation_id":"#);
    push_json(out, &headers.causation_id);
    push(out, "}");
    Ok(body)
}

/// Whether a text is one JSON value. Neither recursive nor bounded in depth: `IgnoredAny` keeps its stack on the heap.
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

pub(super) fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn push_scalar(out: &mut Vec<u8>, scalar: Option<Scalar<'_>>) {
    match scalar {
        Some(Scalar::Integer(number)) => push_json(out, &number),
        Some(Scalar::Text(text)) => push_json(out, text),
        None => push(out, "null"),
    }
}

/// JSON goes in as PostgreSQL sent it: parsed and printed again it could lose digits, order and repeated names.
fn push_field(out: &mut Vec<u8>, field: Option<Field<'_>>) -> Result<(), Poison> {
    let Some(field) = field else {
        push(out, "null");
        return Ok(());
    };
    match field.kind {
        ColumnType::Json => push(out, field.text),
        ColumnType::Text if is_json(field.text) => push(out, field.text),
        ColumnType::Bytea => {
            out.push(b'"');
            // Straight into the body: the value may be huge.
            let mut base64 = EncoderWriter::new(&mut *out, &STANDARD);
            let written = base64.write_all(&unhex(field)?).and_then(|()| base64.finish().map(drop));
            debug_assert!(written.is_ok(), "a Vec takes everything");
            drop(base64);
            out.push(b'"');
        }
        _ => push_json(out, field.text),
    }
    Ok(())
}
