//! Values of table columns in the format `cdc`: from PostgreSQL's text output to JSON (`docs/formats.md`).
//!
//! The session pins the output settings: ISO dates in UTC, ISO 8601 intervals, hexadecimal bytea, shortest exact floats
//! (manual, "Runtime Config: Client Connection Defaults").

use std::borrow::Cow;
use std::io::Write;

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::Serialize;

use super::Poison;
use super::payload::unhex;
use super::shape::{TypeKind, TypeShape};
use super::table::{self, ColumnType, Field};

/// What an array's text says, piece by piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// `{`, of any dimension.
    Open,
    /// `}`
    Close,
    /// Between two elements, or two arrays of a dimension.
    Next,
    Null,
    Element(Cow<'a, str>),
}

/// Appends the value. `column` names it in errors.
pub(super) fn push(out: &mut Vec<u8>, column: &str, shape: &TypeShape, text: &str) -> Result<(), Poison> {
    match &shape.kind {
        TypeKind::Array(delimiter, element) => push_array(out, column, *delimiter, element, text),
        TypeKind::Base => push_base(out, column, shape.oid, text),
        TypeKind::Enum | TypeKind::Composite | TypeKind::Range | TypeKind::Multirange => {
            push_json(out, text);
            Ok(())
        }
    }
}

/// OIDs: `pg_type.dat`.
fn push_base(out: &mut Vec<u8>, column: &str, oid: u32, text: &str) -> Result<(), Poison> {
    let field = |kind| Field { column, kind, text };
    match oid {
        // bool
        16 => out.extend_from_slice(if text == "t" { b"true" } else { b"false" }),
        // int8, int2, int4, oid
        20 | 21 | 23 | 26 => push_number(out, text),
        // float4, float8: NaN and the infinities have no number in JSON
        700 | 701 => push_number(out, text),
        // json, jsonb
        114 | 3802 => out.extend_from_slice(text.as_bytes()),
        17 => {
            out.push(b'"');
            let mut base64 = EncoderWriter::new(&mut *out, &STANDARD);
            let written = base64.write_all(&unhex(field(ColumnType::Bytea))?).and_then(|()| base64.finish().map(drop));
            debug_assert!(written.is_ok(), "a Vec takes everything");
            drop(base64);
            out.push(b'"');
        }
        1114 => push_json(out, &table::iso8601(field(ColumnType::Timestamp))),
        1184 => push_json(out, &table::iso8601(field(ColumnType::TimestampTz))),
        _ => push_json(out, text),
    }
    Ok(())
}

/// A text that is a number in JSON too goes in as it is.
fn push_number(out: &mut Vec<u8>, text: &str) {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if is_number && super::cdc::is_json(text) {
        out.extend_from_slice(text.as_bytes());
    } else {
        push_json(out, text);
    }
}

fn push_array(out: &mut Vec<u8>, column: &str, delimiter: char, element: &TypeShape, text: &str) -> Result<(), Poison> {
    let start = out.len();
    let wrong = |out: &mut Vec<u8>| {
        // int2vector and oidvector are arrays to the catalogue and lists of numbers to their output function.
        out.truncate(start);
        push_json(out, text);
    };
    let mut open = 0_usize;
    for piece in pieces(text, delimiter) {
        match piece {
            Some(Piece::Open) => {
                open += 1;
                out.push(b'[');
            }
            Some(Piece::Close) => {
                open -= 1;
                out.push(b']');
            }
            Some(Piece::Next) => out.push(b','),
            Some(Piece::Null) => out.extend_from_slice(b"null"),
            Some(Piece::Element(text)) => push(out, column, element, &text)?,
            None => {
                wrong(out);
                return Ok(());
            }
        }
    }
    if open > 0 || out.len() == start {
        wrong(out);
    }
    Ok(())
}

/// The pieces of an array's text form (manual, "Arrays: Array Input and Output Syntax"); `None` where it is not one. Bounds that
/// are not usual (`[0:1]={...}`) are left out: JSON has none.
pub(super) fn pieces(text: &str, delimiter: char) -> impl Iterator<Item = Option<Piece<'_>>> {
    let body = if text.starts_with('[') { text.split_once('=').map_or("", |(_, body)| body) } else { text };
    let mut rest = body;
    let mut depth = 0_usize;
    let mut failed = !body.starts_with('{');
    std::iter::from_fn(move || {
        if failed {
            let first = !rest.is_empty() || body.is_empty();
            rest = "";
            failed = false;
            return first.then_some(None);
        }
        let next = rest.chars().next()?;
        let (piece, after) = match next {
            '{' => {
                depth += 1;
                (Piece::Open, rest.get(1..)?)
            }
            '}' => {
                depth = depth.saturating_sub(1);
                (Piece::Close, rest.get(1..)?)
            }
            next if next == delimiter => (Piece::Next, rest.get(next.len_utf8()..)?),
            '"' => match quoted(rest.get(1..)?) {
                Some((element, after)) => (Piece::Element(element), after),
                None => {
                    rest = "";
                    return Some(None);
                }
            },
            _ => {
                let end = rest.find([delimiter, '}']).unwrap_or(rest.len());
                let (element, after) = rest.split_at(end);
                let piece = if element == "NULL" { Piece::Null } else { Piece::Element(Cow::Borrowed(element)) };
                (piece, after)
            }
        };
        // What follows the last brace is no part of it.
        if depth == 0 && !after.is_empty() {
            rest = "";
            return Some(None);
        }
        rest = after;
        Some(Some(piece))
    })
}

/// An element behind its opening quote, and what follows its closing one.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let plain = text.find(['"', '\\'])?;
    if text.get(plain..)?.starts_with('"') {
        return Some((Cow::Borrowed(text.get(..plain)?), text.get(plain + 1..)?));
    }
    let mut element = String::with_capacity(text.len().min(2 * plain + 64));
    let mut chars = text.char_indices();
    while let Some((at, next)) = chars.next() {
        match next {
            '\\' => element.push(chars.next()?.1),
            '"' => return Some((Cow::Owned(element), text.get(at + 1..)?)),
            other => element.push(other),
        }
    }
    None
}

pub(super) fn push_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "a Vec takes everything, and every text and number has a form in JSON");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32) -> TypeShape {
        TypeShape { oid, modifier: -1, name: String::new(), kind: TypeKind::Base, domain: false }
    }

    fn array(element: u32) -> TypeShape {
        let kind = TypeKind::Array(',', Box::new(base(element)));
        TypeShape { oid: 0, modifier: -1, name: String::new(), kind, domain: false }
    }

    fn json(shape: &TypeShape, text: &str) -> String {
        let mut out = Vec::new();
        push(&mut out, "c", shape, text).unwrap();
        let json = String::from_utf8(out).unwrap();
        assert!(super::super::cdc::is_json(&json), "{json}");
        json
    }

    #[test]
    fn numbers_are_numbers_where_json_has_them() {
        assert_eq!(json(&base(20), "-9223372036854775808"), "-9223372036854775808");
        assert_eq!(json(&base(26), "4294967295"), "4294967295");
        for float in ["0.1", "1e-45", "1.7976931348623157e+308", "-0", "5e-324", "1e+20"] {
            assert_eq!(json(&base(701), float), float);
        }
        for word in ["NaN", "Infinity", "-Infinity"] {
            assert_eq!(json(&base(700), word), format!("\"{word}\""));
        }
        assert_eq!(json(&base(1700), "12345678901234567890.10"), r#""12345678901234567890.10""#);
    }

    #[test]
    fn json_is_embedded_as_postgresql_sent_it() {
        assert_eq!(json(&base(114), r#"{"a" : 1,  "a":2}"#), r#"{"a" : 1,  "a":2}"#);
        assert_eq!(json(&base(3802), "null"), "null");
    }

    #[test]
    fn times_bytes_and_the_rest() {
        assert_eq!(json(&base(16), "t"), "true");
        assert_eq!(json(&base(16), "f"), "false");
        assert_eq!(json(&base(17), "\\x00ff10"), r#""AP8Q""#);
        assert_eq!(json(&base(17), "\\x"), r#""""#);
        assert_eq!(json(&base(1184), "2026-11-21 10:15:30.5+00"), r#""2026-11-21T10:15:30.5Z""#);
        assert_eq!(json(&base(1114), "2026-11-21 10:15:30"), r#""2026-11-21T10:15:30""#);
        assert_eq!(json(&base(1114), "infinity"), r#""infinity""#);
        assert_eq!(json(&base(1186), "P-1Y2M-3DT4H5M6.789S"), r#""P-1Y2M-3DT4H5M6.789S""#);
        assert_eq!(json(&base(25), "a\"b\u{1}"), r#""a\"b\u0001""#);
    }

    #[test]
    fn arrays_are_arrays_of_any_dimension() {
        assert_eq!(json(&array(23), "{1,2,NULL}"), "[1,2,null]");
        assert_eq!(json(&array(23), "{}"), "[]");
        assert_eq!(json(&array(23), "{{1,2},{3,4}}"), "[[1,2],[3,4]]");
        assert_eq!(json(&array(23), "[0:1]={1,2}"), "[1,2]");
        assert_eq!(json(&array(23), "[-1:0][2:3]={{1,2},{3,4}}"), "[[1,2],[3,4]]");
        let text = r#"{a,"b c","d,e","quo\"te","{brace}",NULL,"NULL","","back\\slash"}"#;
        assert_eq!(json(&array(25), text), r#"["a","b c","d,e","quo\"te","{brace}",null,"NULL","","back\\slash"]"#);
        assert_eq!(json(&array(3802), r#"{"{\"a\": 1}",NULL}"#), r#"[{"a": 1},null]"#);
        assert_eq!(json(&array(1184), r#"{"2026-11-21 10:15:30+00"}"#), r#"["2026-11-21T10:15:30Z"]"#);
        assert_eq!(json(&array(17), r#"{"\\x00ff"}"#), r#"["AP8="]"#);
    }

    #[test]
    fn another_delimiter_divides_boxes() {
        let mut boxes = array(603);
        boxes.kind = TypeKind::Array(';', Box::new(base(603)));
        assert_eq!(json(&boxes, "{(1,1),(0,0);(2,2),(1,1)}"), r#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    }

    #[test]
    fn what_is_no_array_is_a_text() {
        for text in ["1 2", "", "{1", "{1}x", "{\"a", "[0:1]"] {
            let mut out = Vec::new();
            push(&mut out, "c", &array(23), text).unwrap();
            let made = String::from_utf8(out).unwrap();
            assert_eq!(made, serde_json::to_string(text).unwrap());
        }
    }
}
