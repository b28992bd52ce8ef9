//! `postrider dlq show`.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::Args;
use tokio_postgres::types::Type;

use super::{DlqError, Parked};
use crate::cli::text::{bytes, harmless};
use crate::event::HeaderValue;
use crate::postgres::dead_letters::headers;
use crate::postgres::sql::Sql;

/// Of the body, on a terminal. `--body` gives all of it.
const SHOWN_TEXT: i32 = 64 * 1024;
const SHOWN_BINARY: usize = 256;

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Number of the dead letter
    #[arg(value_name = "ID")]
    pub id: i64,
    /// Write the exact bytes of the body to standard output, and nothing else
    #[arg(long)]
    pub body: bool,
}

pub(super) async fn run(args: &ShowArgs, sql: &Sql) -> Result<(), DlqError> {
    let not_found = || DlqError::NoSuch(args.id);
    if args.body {
        let row = sql
            .client()
            .query_typed_one("select postrider.dead_letter_body($1) as body", &[(&args.id, Type::INT8)])
            .await?;
        let body: &[u8] = row.get::<_, Option<&[u8]>>("body").ok_or_else(not_found)?;
        let mut out = io::stdout().lock();
        return Ok(out.write_all(body).and_then(|()| out.flush())?);
    }
    let row = sql
        .client()
        .query_typed_opt(
            include_str!("../../../sql/queries/dlq_show.sql"),
            &[(&args.id, Type::INT8), (&SHOWN_TEXT, Type::INT4)],
        )
        .await?
        .ok_or_else(not_found)?;
    let letter: Parked = serde_json::from_str(row.get("letter"))?;
    let mut text = facts(&letter);
    let mut line = |name: &str, value: &str| writeln!(text, "{name:<16}{}", harmless(value, &[])).ok();
    line("content type", row.get::<_, Option<&str>>("content_type").unwrap_or("-"));
    if let Some(correlation_id) = row.get::<_, Option<&str>>("correlation_id") {
        line("correlation id", &headers::text_from_json(correlation_id)?);
    }
    text.push_str("\nheaders\n");
    for (name, value) in headers::from_json(row.get("headers"))? {
        let value = match value {
            HeaderValue::Text(text) => harmless(&text, &[]),
            HeaderValue::Integer(number) => number.to_string(),
            HeaderValue::Bool(flag) => flag.to_string(),
        };
        writeln!(text, "  {}: {value}", harmless(&name, &[])).ok();
    }
    write!(text, "\nbody, {}\n{}", bytes(letter.body_bytes), body(row.get("body"), letter.body_bytes)).ok();
    crate::cli::print(&text)?;
    Ok(())
}

/// What the table says, but for the content.
fn facts(letter: &Parked) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &str| writeln!(text, "{name:<16}{}", harmless(value, &[])).ok();
    line("id", &letter.id.to_string());
    line("slot", &letter.slot);
    line("position", &letter.position);
    line("event id", &letter.event_id);
    line("aggregatetype", letter.aggregatetype.as_deref().unwrap_or("-"));
    line("aggregateid", letter.aggregateid.as_deref().unwrap_or("-"));
    line("type", letter.r#type.as_deref().unwrap_or("-"));
    for key in &letter.keys {
        line("key", &key.replace('\u{1f}', " / "));
    }
    line("route", &letter.route);
    line("exchange", &letter.exchange);
    line("routing key", &letter.routing_key);
    line("reason", &letter.reason);
    line("error", &letter.error);
    line("holds its key", if letter.holds_key { "yes: later events of its key wait behind it" } else { "no" });
    line("attempts", &letter.attempts.to_string());
    line("committed", &letter.committed_at);
    line("parked", &letter.parked_at);
    line("last attempt", letter.last_attempt_at.as_deref().unwrap_or("none since it was parked"));
    match (&letter.mark, &letter.marked_at, &letter.marked_by) {
        (Some(mark), Some(at), by) => {
            line("marked", &format!("{mark}, {at}, by {}", by.as_deref().unwrap_or("somebody")));
        }
        _ => line("marked", "no").unwrap_or_default(),
    }
    text
}

/// The start of a body: text if it is one, else hexadecimal.
fn body(start: &[u8], size: i64) -> String {
    let (shown, mut text) = match std::str::from_utf8(start) {
        Ok(text) => (start.len(), harmless(text, &['\n', '\t', '\r'])),
        // A character that the end of the piece has cut in two.
        Err(error) if error.error_len().is_none() => {
            let whole = start.get(..error.valid_up_to()).unwrap_or_default();
            (whole.len(), harmless(&String::from_utf8_lossy(whole), &['\n', '\t', '\r']))
        }
        Err(_) => {
            let head = start.get(..SHOWN_BINARY).unwrap_or(start);
            (head.len(), hex(head))
        }
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let more = size.saturating_sub(i64::try_from(shown).unwrap_or(i64::MAX));
    if more > 0 {
        writeln!(text, "... and {more} bytes more: --body writes all of it").ok();
    }
    text
}

/// Sixteen bytes a line.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (number, line) in bytes.chunks(16).enumerate() {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{:08x}  {}", number * 16, digits.join(" ")).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_text_if_it_can_be() {
        assert_eq!(body(b"{\"a\": 1}", 8), "{\"a\": 1}\n");
        assert_eq!(body("aä".as_bytes().get(..2).unwrap(), 90), "a\n... and 89 bytes more: --body writes all of it\n");
        assert_eq!(body(b"", 0), "");
        assert_eq!(body(b"\xff\x00", 2), "00000000  ff 00\n");
    }
}
