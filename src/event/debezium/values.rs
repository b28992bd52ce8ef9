//! The values of a column, as Debezium sends them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::arrays::{Element, elements};
use super::form::{Array, Form, Unit};
use super::real::java_float;
use super::text::{java_double, json, push, push_double, push_json};
use super::times::{self, Place};
use super::{defaults, hstore, numbers, placeholder};
use crate::config::{Binary, Debezium, Decimals, Hstore, Intervals};
use crate::event::shape::ColumnShape;
use crate::event::{Poison, PoisonReason, payload};

/// All that is known of a column before its first value.
#[derive(Clone, Debug)]
pub(in crate::event) struct Prepared {
    pub(in crate::event) name: String,
    form: Option<Form>,
    /// JSON of its default, if Debezium knows one.
    default: Option<Vec<u8>>,
    /// JSON that SQL NULL is.
    null: Vec<u8>,
    unavailable: Vec<u8>,
}

impl Prepared {
    pub(in crate::event) fn new(column: &ColumnShape, settings: &Debezium) -> Prepared {
        let form = Form::of(&column.shape, settings);
        let none = || b"null".to_vec();
        let default = form.as_ref().and_then(|form| defaults::default(column, form));
        let null = match &form {
            // JsonConverter sends the default in the place of null, even where the row does have a null.
            Some(form) => default.clone().or_else(|| column.not_null.then(|| fallback(form))).unwrap_or_else(none),
            None => none(),
        };
        let unavailable = form.as_ref().map_or_else(none, |form| placeholder::unavailable(column, form, settings));
        Prepared { name: column.name.clone(), form, default, null, unavailable }
    }

    /// Debezium has the column in its events: its type is known, or unknown types are included.
    pub(in crate::event) fn is_carried(&self) -> bool {
        self.form.is_some()
    }

    /// Appends JSON. `text` is what PostgreSQL printed; none is SQL NULL, or a column that the old row does not have.
    ///
    /// # Errors
    /// The text is not one of the column's type. Nothing is appended then.
    pub(in crate::event) fn push(&self, out: &mut Vec<u8>, text: Option<&str>) -> Result<(), Poison> {
        let (Some(form), Some(text)) = (&self.form, text) else {
            out.extend_from_slice(&self.null);
            return Ok(());
        };
        let before = out.len();
        let written = push_text(out, form, text, Place::Column);
        if written.is_none() {
            out.truncate(before);
        } else if let Some(default) = &self.default
            && out.get(before..) == Some(b"null")
        {
            // A value that Debezium has no form for: it is JsonConverter that puts the default there.
            out.truncate(before);
            out.extend_from_slice(default);
        }
        let detail = || format!("column `{}` does not have the text form of its type", self.name);
        written.ok_or_else(|| Poison::new(PoisonReason::BadProperty, detail()))
    }

    /// The same, for a TOASTed value that the update left as it was.
    pub(in crate::event) fn push_unavailable(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.unavailable);
    }
}

/// What a NOT NULL column has that has no value: in the old row of a delete, as a rule.
fn fallback(form: &Form) -> Vec<u8> {
    const ZERO_POINT: &str = r#"{"x":0.0,"y":0.0,"wkb":"AQEAAAAAAAAAAAAAAAAAAAAAAAAA","srid":null}"#;
    let text = match form {
        Form::Bool | Form::Bit => "false",
        Form::Integer | Form::Interval(Intervals::Numeric) => "0",
        Form::Real | Form::Double | Form::Decimal(Decimals::Double, _) | Form::Money(Decimals::Double) => "0.0",
        Form::Decimal(decimals, scale) => {
            let mut out = Vec::new();
            let written = numbers::push_decimal(&mut out, "0", *decimals, *scale);
            debug_assert!(written.is_some(), "0 is a number");
            return out;
        }
        Form::Money(Decimals::Precise) => "\"AA==\"",
        Form::Money(Decimals::String) => "\"0.00\"",
        Form::Date(Unit::Iso) => "\"1970-01-01Z\"",
        Form::Time(Unit::Iso) | Form::TimeTz => "\"00:00:00Z\"",
        Form::Timestamp(Unit::Iso) | Form::TimestampTz(_) => "\"1970-01-01T00:00:00Z\"",
        Form::Date(_) | Form::Time(_) | Form::Timestamp(_) => "0",
        Form::Interval(Intervals::String) => "\"P0Y0M0DT0H0M0S\"",
        Form::Text | Form::Bytes(_) | Form::Unknown(_) | Form::Geometric(_) | Form::Bits => "\"\"",
        Form::Hstore(Hstore::Json) => "\"{}\"",
        Form::Hstore(Hstore::Map) => "{}",
        Form::Point => ZERO_POINT,
        Form::Array(_) | Form::Empty => "[]",
        Form::Null => "null",
    };
    text.as_bytes().to_vec()
}

/// None: the text is not one of that form. What was appended until then is to be thrown away.
pub(super) fn push_text(out: &mut Vec<u8>, form: &Form, text: &str, place: Place) -> Option<()> {
    match form {
        Form::Bool => push(out, if text == "t" { "true" } else { "false" }),
        Form::Integer => push(out, text.parse::<i64>().ok().map(|_| text)?),
        Form::Real => push_real(out, text)?,
        Form::Double => push_double(out, text.parse().ok()?),
        Form::Decimal(decimals, scale) => numbers::push_decimal(out, text, *decimals, *scale)?,
        Form::Money(decimals) => numbers::push_money(out, text, *decimals)?,
        Form::Text => push_json(out, text),
        Form::Date(unit) => times::push_date(out, text, *unit, place)?,
        Form::Time(unit) => times::push_time_of_day(out, text, *unit, place)?,
        Form::TimeTz => times::push_time_tz(out, text, place)?,
        Form::Timestamp(unit) => times::push_timestamp(out, text, *unit, place)?,
        Form::TimestampTz(digits) => times::push_timestamp_tz(out, text, *digits, place)?,
        Form::Interval(intervals) => times::push_interval(out, text, *intervals)?,
        Form::Bytes(binary) => push_bytes(out, &payload::bytes(text)?, *binary),
        Form::Unknown(binary) => push_bytes(out, text.as_bytes(), *binary),
        Form::Geometric(binary) => push_bytes(out, with_java_numbers(text)?.as_bytes(), *binary),
        Form::Bit => push(out, if text == "1" { "true" } else { "false" }),
        Form::Bits => push_bytes(out, &numbers::bits(text), Binary::Bytes),
        Form::Hstore(handling) => hstore::push_hstore(out, text, *handling)?,
        Form::Point => push_point(out, text)?,
        Form::Array(array) => push_array(out, array, text)?,
        Form::Empty => push(out, "[]"),
        Form::Null => push(out, "null"),
    }
    Some(())
}

fn push_real(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let number: f32 = text.parse().ok()?;
    if number == 0.0 || !number.is_finite() {
        push_double(out, f64::from(number));
    } else {
        // Of as many digits as a float has, a double has the same.
        push_double(out, java_float(number).parse().ok()?);
    }
    Some(())
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8], binary: Binary) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    match binary {
        Binary::Bytes | Binary::Base64 => push(out, &STANDARD.encode(bytes)),
        Binary::Base64UrlSafe => push(out, &URL_SAFE.encode(bytes)),
        Binary::Hex => {
            let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
            out.extend(digits.filter_map(|digit| HEX.get(usize::from(digit))));
        }
    }
    out.push(b'"');
}

/// The numbers in the text of a geometric type, as the JDBC driver prints them again.
fn with_java_numbers(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() * 2);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let of_number = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.');
        if of_number(first) {
            let end = rest.find(|letter| !of_number(letter)).unwrap_or(rest.len());
            let (number, behind) = rest.split_at_checked(end)?;
            out.push_str(&java_double(number.parse().ok()?));
            rest = behind;
        } else {
            out.push(first);
            rest = rest.get(first.len_utf8()..)?;
        }
    }
    Some(out)
}

fn push_point(out: &mut Vec<u8>, text: &str) -> Option<()> {
    /// Little-endian, and the number of the type.
    const HEAD: [u8; 5] = [1, 1, 0, 0, 0];
    let (x, y) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let (x, y): (f64, f64) = (x.parse().ok()?, y.parse().ok()?);
    push(out, r#"{"x":"#);
    push_double(out, x);
    push(out, r#","y":"#);
    push_double(out, y);
    push(out, r#","wkb":"#);
    out.extend_from_slice(&json(&STANDARD.encode([HEAD.as_slice(), &x.to_le_bytes(), &y.to_le_bytes()].concat())));
    push(out, r#","srid":null}"#);
    Some(())
}

fn push_array(out: &mut Vec<u8>, array: &Array, text: &str) -> Option<()> {
    let before = out.len();
    let null = |out: &mut Vec<u8>| {
        out.truncate(before);
        push(out, "null");
    };
    out.push(b'[');
    for (index, element) in elements(text, array.delimiter)?.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match element {
            Element::Null if array.nullable => push(out, "null"),
            Element::Null => {
                null(out);
                return Some(());
            }
            // The driver has no such numbers in arrays.
            Element::Text(text) if matches!(*array.element, Form::Decimal(..)) && numbers::is_special(text) => {
                null(out);
                return Some(());
            }
            Element::Text(text) => push_text(out, &array.element, text, Place::Element)?,
            Element::Nested(text) => push_nested(out, &array.element, text),
        }
    }
    out.push(b']');
    Some(())
}

/// A further dimension. Debezium has null, or, as a string, the address of a Java object, which tells nobody
/// anything: here it is the text.
fn push_nested(out: &mut Vec<u8>, element: &Form, text: &str) {
    match element {
        Form::Text => push_json(out, text),
        Form::Unknown(binary) | Form::Geometric(binary) => push_bytes(out, text.as_bytes(), *binary),
        _ => push(out, "null"),
    }
}
