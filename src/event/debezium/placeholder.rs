//! What stands for a TOASTed value that an update left as it was (`unavailable.value.placeholder`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

use super::form::{Form, Unit, oid};
use super::hstore::push_hstore;
use super::text::{json, push_json};
use crate::config::{Binary, Debezium, Decimals, Hstore};
use crate::event::shape::{ColumnShape, TypeKind, TypeShape};

/// JSON. Null where Debezium's placeholder does not fit its schema.
pub(super) fn unavailable(column: &ColumnShape, form: &Form, settings: &Debezium) -> Vec<u8> {
    let text = settings.unavailable_value.as_str();
    let value = match form {
        Form::Text => Some(json(text)),
        // It is made of the placeholder as if that were a number.
        Form::Decimal(Decimals::String, _) => Some(json(text)),
        Form::Bytes(binary) | Form::Unknown(binary) | Form::Geometric(binary) => bytes(text, *binary),
        Form::Hstore(handling) => hstore(column, text, *handling),
        Form::Array(_) if !column.shape.domain => elements(&column.shape, form, text),
        _ => None,
    };
    value.unwrap_or_else(|| b"null".to_vec())
}

fn bytes(text: &str, binary: Binary) -> Option<Vec<u8>> {
    match binary {
        Binary::Bytes => Some(json(&STANDARD.encode(text))),
        Binary::Hex => Some(json(text)),
        Binary::Base64 | Binary::Base64UrlSafe => None,
    }
}

fn hstore(column: &ColumnShape, text: &str, handling: Hstore) -> Option<Vec<u8>> {
    if column.shape.domain {
        return (handling == Hstore::Json).then(|| json(text));
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out = Vec::new();
    push_hstore(&mut out, &format!("\"{escaped}\"=>\"{escaped}\""), handling)?;
    Some(out)
}

fn elements(shape: &TypeShape, form: &Form, text: &str) -> Option<Vec<u8>> {
    let (TypeKind::Array(_, element), Form::Array(array)) = (&shape.kind, form) else { return None };
    let one = match element.oid {
        _ if element.domain => return None,
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::JSON | oid::JSONB => json(text),
        oid::BYTEA if *array.element == Form::Bytes(Binary::Bytes) => json(&STANDARD.encode(text)),
        oid::INT4 | oid::INT8 => return Some(numbers(text)),
        oid::DATE if *array.element == Form::Date(Unit::Days) => return Some(numbers(text)),
        oid::UUID => json(&uuid(text)),
        _ => return None,
    };
    Some([b"[".as_slice(), &one, b"]"].concat())
}

/// The bytes of the text, signed as Java's are.
fn numbers(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let numbers: Vec<i8> = text.bytes().map(|byte| i8::from_ne_bytes([byte])).collect();
    push_json(&mut out, &numbers);
    out
}

/// `UUID.nameUUIDFromBytes`: version 3.
fn uuid(text: &str) -> String {
    let hash = u128::from_be_bytes(Md5::digest(text).into());
    let version = hash & !(0xf << 76) | 3 << 76;
    let hex = format!("{:032x}", version & !(3 << 62) | 2 << 62);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}
