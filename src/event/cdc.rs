//! Format `cdc`: an envelope in the shape of Debezium's change event (`docs/formats.md`).
//!
//! A body is a function of the WAL alone, so that an event that is sent again is the same byte for byte: every time in it
//! is the commit time, and the version is that of the format, not of the program.

use std::io::Write;

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::Serialize;
use serde::de::IgnoredAny;

use super::Poison;
use super::headers::RowHeaders;
use super::outbox::{Op, RowContext};
use super::payload::unhex;
use super::table::{ColumnType, Field, OutboxTable, Row, Scalar};

/// The parts of `source` that never change while the program runs.
#[derive(Debug)]
pub(super) struct Source {
    /// Up to the value of `ts_ms`.
    head: Vec<u8>,
    /// From behind it up to the first LSN in `sequence`.
    middle: Vec<u8>,
}

impl Source {
    pub(super) fn new(name: &str, database: &str) -> Source {
        let mut head = br#"{"version":"1","connector":"postrider","name":"#.to_vec();
        push_json(&mut head, name);
        head.extend_from_slice(br#","ts_ms":"#);
        let mut middle = br#","snapshot":"false","db":"#.to_vec();
        push_json(&mut middle, database);
        middle.extend_from_slice(br#","sequence":"[\""#);
        Source { head, middle }
    }
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
    let micros = super::outbox::unix_micros(context.commit_time);
    let millis = micros.div_euclid(1_000);
    let nanos = micros.saturating_mul(1_000);

    push(out, r#"{"before":"#);
    push_field(out, row.before)?;
    push(out, r#","after":"#);
    push_field(out, row.payload)?;

    push(out, r#","source":"#);
    out.extend_from_slice(&source.head);
    push_json(out, &millis);
    out.extend_from_slice(&source.middle);
    push_json(out, &context.commit_lsn.0);
    push(out, r#"\",\""#);
    push_json(out, &context.row_lsn.0);
    push(out, r#"\"]","ts_us":"#);
    push_json(out, &micros);
    push(out, r#","ts_ns":"#);
    push_json(out, &nanos);
    out.extend_from_slice(&table.source_fragment);
    push(out, r#","txId":"#);
    push_json(out, &context.xid);
    push(out, r#","lsn":"#);
    push_json(out, &context.row_lsn.0);

    push(out, r#","xmin":null},"op":""#);
    push(out, op.as_str());
    push(out, r#"","ts_ms":"#);
    push_json(out, &millis);
    push(out, r#","ts_us":"#);
    push_json(out, &micros);
    push(out, r#","ts_ns":"#);
    push_json(out, &nanos);

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

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn push_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "a Vec takes everything, and every text and integer has a form in JSON");
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
