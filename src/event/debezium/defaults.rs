//! Default expressions as Debezium evaluates them: the first literal in them, or, for a function, a value that stands
//! for it.

use std::sync::LazyLock;

use regex::Regex;

use super::form::{Form, Unit, oid};
use super::text::json;
use super::times::Place;
use super::values::push_text;
use crate::config::Decimals;
use crate::event::shape::{ColumnShape, TypeKind};

static FUNCTION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[(]?[A-Za-z0-9_.]+\((?:.+(?:, ?.+)*)?\)").ok());

/// JSON of the column's default. None: it has none, or Debezium cannot make anything of it.
pub(super) fn default(column: &ColumnShape, form: &Form) -> Option<Vec<u8>> {
    let expression = column.default.as_deref()?;
    // By name Debezium finds how to read a default, and a domain has another one.
    if column.shape.domain {
        return None;
    }
    match &column.shape.kind {
        TypeKind::Enum => return enum_label(expression, &column.shape.name),
        TypeKind::Base => {}
        _ => return None,
    }
    let placeholder = match column.shape.oid {
        oid::BIT => "00",
        oid::VARBIT | oid::INT2 | oid::INT4 | oid::INT8 => "0",
        oid::BOOL => "false",
        oid::BPCHAR | oid::VARCHAR | oid::TEXT | oid::XML => "",
        oid::NUMERIC | oid::FLOAT4 | oid::FLOAT8 => "0.0",
        oid::JSON | oid::JSONB => "{}",
        oid::UUID => "00000000-0000-0000-0000-000000000000",
        oid::DATE => "1970-01-01",
        oid::TIMESTAMP | oid::TIMESTAMPTZ => "1970-01-01 00:00:00",
        oid::TIME => "00:00:00",
        oid::INTERVAL => "PT0S",
        _ => return None,
    };
    let text = value_of(expression, placeholder)?;
    let mut out = Vec::new();
    match (form, column.shape.oid) {
        (Form::Bool, _) => out.extend_from_slice(if text.eq_ignore_ascii_case("true") { b"true" } else { b"false" }),
        (Form::Bit, _) => out.extend_from_slice(if text == "1" { b"true" } else { b"false" }),
        (Form::Integer, oid::INT2) => integer::<i16>(&mut out, &text)?,
        (Form::Integer, oid::INT4) => integer::<i32>(&mut out, &text)?,
        (Form::Integer, _) => integer::<i64>(&mut out, &text)?,
        // Debezium has them as a struct, which Kafka Connect takes for no default.
        (Form::Decimal(Decimals::Precise, None), _) => return None,
        (Form::Decimal(..), _) if super::numbers::is_special(&text) => return None,
        (Form::Date(_) | Form::Timestamp(_) | Form::TimestampTz(_), _) if text.ends_with("infinity") => {
            return infinity(form, &text).map(|json| json.as_bytes().to_vec());
        }
        // The last moment that Java's `LocalTime` has.
        (Form::Time(_), _) if text.starts_with("24:") => push_text(&mut out, form, "23:59:59.999999", Place::Column)?,
        _ => push_text(&mut out, form, &text, Place::Column)?,
    }
    Some(out)
}

/// The ends of what Java's `LocalDateTime` holds, as far as they have a form.
fn infinity(form: &Form, text: &str) -> Option<&'static str> {
    let positive = !text.starts_with('-');
    match form {
        Form::Date(Unit::Iso) if positive => Some("\"+999999999-12-31Z\""),
        Form::Date(Unit::Iso) => Some("\"-999999999-01-01Z\""),
        // Days, cut to 32 bits.
        Form::Date(_) if positive => Some("169560311"),
        Form::Timestamp(Unit::Iso) if positive => Some("\"+999999999-12-31T23:59:59.999999999Z\""),
        Form::Timestamp(Unit::Micros) if positive => Some("-9223372036853775810"),
        _ => None,
    }
}

fn integer<T: std::str::FromStr>(out: &mut Vec<u8>, text: &str) -> Option<()> {
    text.parse::<T>().ok()?;
    out.extend_from_slice(text.trim_start_matches('+').as_bytes());
    Some(())
}

fn value_of(expression: &str, placeholder: &str) -> Option<String> {
    const CURRENT: [&str; 5] = ["current_timestamp", "current_time", "current_date", "localtime", "localtimestamp"];
    let function = FUNCTION.as_ref().is_some_and(|function| function.is_match(expression));
    if function || CURRENT.iter().any(|name| name.eq_ignore_ascii_case(expression)) {
        return Some(placeholder.to_owned());
    }
    let Some((_, literal)) = expression.split_once('\'') else {
        return (!expression.starts_with("NULL::")).then(|| expression.to_owned());
    };
    if expression.starts_with("NULL::") {
        return None;
    }
    let mut value = String::new();
    let mut rest = literal;
    loop {
        let (before, behind) = rest.split_once('\'')?;
        value.push_str(before);
        let Some(more) = behind.strip_prefix('\'') else { return Some(value) };
        value.push('\'');
        rest = more;
    }
}

/// `'label'::type`
fn enum_label(expression: &str, name: &str) -> Option<Vec<u8>> {
    let (literal, cast) = expression.rsplit_once("::")?;
    let cast = cast.rsplit_once('.').map_or(cast, |(_, cast)| cast);
    if cast.trim_matches('"') != name {
        return None;
    }
    Some(json(literal.strip_prefix('\'')?.strip_suffix('\'')?))
}
