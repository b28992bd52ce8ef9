//! Format `payload`: the payload column alone, as a StringConverter behind Debezium's Outbox Event Router would send it.

use super::cdc::is_json;
use super::table::{ColumnType, Field};
use super::{Poison, PoisonReason};

pub(super) const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Also of a dead letter whose body is the payload column as PostgreSQL sent it.
pub(super) const BINARY: &str = "application/octet-stream";

/// Content type and body. SQL NULL is an empty body, which has no content type but binary.
pub(super) fn body(payload: Option<Field<'_>>) -> Result<(&'static str, Vec<u8>), Poison> {
    let Some(field) = payload else { return Ok((BINARY, Vec::new())) };
    let text = field.text;
    Ok(match field.kind {
        ColumnType::Json => (JSON, text.as_bytes().to_vec()),
        ColumnType::Bytea => (BINARY, unhex(field)?),
        ColumnType::Text if is_json(text) => (JSON, text.as_bytes().to_vec()),
        _ => (TEXT, text.as_bytes().to_vec()),
    })
}

/// The bytes of a `bytea`.
pub(super) fn unhex(field: Field<'_>) -> Result<Vec<u8>, Poison> {
    let not_hex = || {
        let detail = format!("column `{}` is not in the hexadecimal form of bytea", field.column);
        Poison::new(PoisonReason::BadProperty, detail)
    };
    bytes(field.text).ok_or_else(not_hex)
}

/// The bytes of a text that `bytea_output = hex` gives.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, odd) = text.strip_prefix("\\x")?.as_bytes().as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}
