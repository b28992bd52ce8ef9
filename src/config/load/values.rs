//! What a value may look like: one function for each kind. Each says what would have been right.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::file::Value;
use crate::config::{Argument, DeadLetterDecl, Format, LogFormat};
use crate::event::{OnPoison, OnUnroutable, Ordering};

/// A value, or what is wrong with it ("must be ...").
pub(super) type Parsed<T> = Result<T, String>;

/// Longest name in AMQP (a short string), in bytes.
pub(super) const SHORT_STRING: usize = 255;
/// Longest identifier in PostgreSQL (NAMEDATALEN - 1), in bytes.
const IDENTIFIER: usize = 63;

pub(super) fn text(value: &Value) -> Parsed<String> {
    match value {
        Value::Text(text) if text.is_empty() => Err("must not be empty".to_owned()),
        _ => any_text(value),
    }
}

/// A text that may be empty.
pub(super) fn any_text(value: &Value) -> Parsed<String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        other => Err(format!("must be a text in quotes, not {}", other.kind())),
    }
}

pub(super) fn boolean(value: &Value) -> Parsed<bool> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Text(text) if text == "true" => Ok(true),
        Value::Text(text) if text == "false" => Ok(false),
        other => Err(format!("must be true or false, not {}", shown(other))),
    }
}

pub(super) fn count(range: RangeInclusive<usize>) -> impl Fn(&Value) -> Parsed<usize> {
    move |value| {
        let number = match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        let wanted = || format!("a whole number from {} to {}", range.start(), range.end());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("must be {}, not {}", wanted(), shown(value)))
    }
}

/// Bytes: a number, or a number and a unit.
pub(super) fn size(range: RangeInclusive<usize>) -> impl Fn(&Value) -> Parsed<usize> {
    const UNITS: [(&str, usize); 8] = [
        ("", 1),
        ("B", 1),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ];
    move |value| {
        let bytes = match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            Value::Text(text) => quantity(text, &UNITS),
            _ => None,
        };
        let wanted =
            || format!("a size from {} to {}, as in \"16MiB\"", bytes_shown(*range.start()), bytes_shown(*range.end()));
        bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| format!("must be {}, not {}", wanted(), shown(value)))
    }
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Parsed<Duration> {
    const UNITS: [(&str, usize); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    move |value| {
        let millis = match value {
            Value::Text(text) => quantity(text, &UNITS).and_then(|millis| u64::try_from(millis).ok()),
            _ => None,
        };
        let wanted =
            || format!("a time from {:?} to {:?}, as in \"500ms\", \"30s\" or \"2m\"", range.start(), range.end());
        millis
            .map(Duration::from_millis)
            .filter(|time| range.contains(time))
            .ok_or_else(|| format!("must be {}, not {}", wanted(), shown(value)))
    }
}

fn quantity(text: &str, units: &[(&str, usize)]) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<usize>().ok()?.checked_mul(*factor)
}

fn bytes_shown(bytes: usize) -> String {
    const UNITS: [(usize, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

pub(super) fn listen_address(value: &Value) -> Parsed<SocketAddr> {
    let address = any_text(value)?.parse();
    address.map_err(|_| format!("must be an IP address and a port, as in \"127.0.0.1:9750\", not {}", shown(value)))
}

pub(super) fn log_format(value: &Value) -> Parsed<LogFormat> {
    one_of(value, &[("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)])
}

pub(super) fn format(value: &Value) -> Parsed<Format> {
    one_of(value, &[("cdc", Format::Cdc), ("payload", Format::Payload), ("debezium", Format::Debezium)])
}

pub(super) fn ordering(value: &Value) -> Parsed<Ordering> {
    one_of(value, &[("key", Ordering::Key), ("pipelined", Ordering::Pipelined)])
}

pub(super) fn on_unroutable(value: &Value) -> Parsed<OnUnroutable> {
    let choices = [("park", OnUnroutable::Park), ("hold", OnUnroutable::Hold), ("discard", OnUnroutable::Discard)];
    one_of(value, &choices)
}

pub(super) fn on_poison(value: &Value) -> Parsed<OnPoison> {
    one_of(value, &[("park_key", OnPoison::ParkKey), ("skip", OnPoison::Skip), ("halt", OnPoison::Halt)])
}

pub(super) fn one_of<T: Copy>(value: &Value, choices: &[(&str, T)]) -> Parsed<T> {
    let chosen = match value {
        Value::Text(text) => choices.iter().find(|(name, _)| name == text),
        _ => None,
    };
    let names = || choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    chosen.map(|(_, choice)| *choice).ok_or_else(|| format!("must be {}, not {}", names(), shown(value)))
}

/// Directives of `tracing-subscriber`.
pub(super) fn log_filter(value: &Value) -> Parsed<String> {
    let filter = text(value)?;
    match crate::logging::check(&filter) {
        Ok(()) => Ok(filter),
        Err(error) => Err(format!("must be log directives, as in \"info\" or \"postrider=debug\": {error}")),
    }
}

/// A replication slot: PostgreSQL allows nothing else (`ReplicationSlotValidateName`), and it can be put into a
/// replication command, which takes no parameters, without quoting.
pub(super) fn slot(value: &Value) -> Parsed<String> {
    let name = text(value)?;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.len() <= IDENTIFIER && name.bytes().all(allowed) {
        return Ok(name);
    }
    Err(format!("must be at most {IDENTIFIER} lower-case letters, digits and underscores, not {}", shown(value)))
}

/// A name in PostgreSQL, exactly as the catalogue has it.
pub(super) fn identifier(value: &Value) -> Parsed<String> {
    let name = text(value)?;
    if name.len() > IDENTIFIER || name.contains('\0') {
        return Err(format!("must be a name of at most {IDENTIFIER} bytes, not {}", shown(value)));
    }
    Ok(name)
}

/// As [`identifier`]; empty means "not used".
pub(super) fn optional_identifier(value: &Value) -> Parsed<String> {
    if matches!(value, Value::Text(text) if text.is_empty()) { Ok(String::new()) } else { identifier(value) }
}

/// `table`, `schema.table`, with double quotes as in SQL. The schema, if not given, is `public`.
///
/// Letters in upper case outside quotes are refused: SQL would fold them, a reader of the file would not expect it.
pub(super) fn table(value: &Value) -> Parsed<(String, String)> {
    let text = text(value)?;
    let wrong = || format!("must be a table, as in \"public.outbox\" or 'app.\"Outbox\"', not {}", shown(value));
    let (first, rest) = name(&text).ok_or_else(wrong)?;
    let names = match rest.strip_prefix('.') {
        None if rest.is_empty() => ("public".to_owned(), first),
        None => return Err(wrong()),
        Some(rest) => match name(rest) {
            Some((second, "")) => (first, second),
            _ => return Err(wrong()),
        },
    };
    let folded = text.split('"').step_by(2).any(|outside| outside.bytes().any(|byte| byte.is_ascii_uppercase()));
    if folded {
        return Err(format!(
            "put names with capitals into double quotes, as in 'app.\"Outbox\"', not {}",
            shown(value)
        ));
    }
    Ok(names)
}

/// One name of SQL at the start of `text`, and what follows it.
fn name(text: &str) -> Option<(String, &str)> {
    let (name, rest) = match text.strip_prefix('"') {
        None => text.split_at(text.find('.').unwrap_or(text.len())),
        Some(_) => {
            // A doubled quote inside is a quote; the name ends at the first one that stands alone.
            let mut end = 1;
            loop {
                end += text.get(end..)?.find('"')?;
                if !text.get(end + 1..)?.starts_with('"') {
                    break;
                }
                end += 2;
            }
            (text.get(1..end)?, text.get(end + 1..)?)
        }
    };
    let bare = !text.starts_with('"');
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let good = !name.is_empty() && !name.contains('\0') && (!bare || name.chars().all(plain));
    let name = if bare { name.to_owned() } else { name.replace("\"\"", "\"") };
    (good && name.len() <= IDENTIFIER).then_some((name, rest))
}

/// The name of an exchange or a queue.
pub(super) fn amqp_name(value: &Value) -> Parsed<String> {
    let name = text(value)?;
    if name.len() > SHORT_STRING {
        return Err(format!("must be at most {SHORT_STRING} bytes, not {}", name.len()));
    }
    Ok(name)
}

/// A text that AMQP can carry as a short string; may be empty.
pub(super) fn short_text(value: &Value) -> Parsed<String> {
    let text = any_text(value)?;
    if text.len() > SHORT_STRING {
        Err(format!("must be at most {SHORT_STRING} bytes, not {}", text.len()))
    } else {
        Ok(text)
    }
}

/// A template of a routing key. Empty is right for a fanout exchange.
pub(super) fn routing_key(value: &Value) -> Parsed<String> {
    let template = short_text(value)?;
    crate::event::route::check(&template).map(|()| template).map_err(|error| error.to_string())
}

/// The name of a route: a metric label.
pub(super) fn label(value: &Value) -> Parsed<String> {
    let name = text(value)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.len() > IDENTIFIER || !name.bytes().all(allowed) {
        return Err(format!(
            "must be at most {IDENTIFIER} letters, digits, dots, dashes and underscores, not {}",
            shown(value)
        ));
    }
    Ok(name)
}

pub(super) fn exchange_type(value: &Value) -> Parsed<String> {
    let kind = short_text(value)?;
    if ["topic", "direct", "fanout", "headers"].contains(&kind.as_str()) || kind.starts_with("x-") {
        return Ok(kind);
    }
    Err(format!("must be \"topic\", \"direct\", \"fanout\", \"headers\" or a plugin's \"x-...\", not {}", shown(value)))
}

/// Arguments of a declaration: texts, whole numbers, true and false.
pub(super) fn arguments(value: &Value) -> Parsed<Vec<(String, Argument)>> {
    let Value::Table(table) = value else {
        return Err(format!("must be a table, as in {{ x-max-length = 1000 }}, not {}", value.kind()));
    };
    let argument = |name: &String, value: &Value| match value {
        _ if name.len() > SHORT_STRING => Err(format!("{name} is longer than {SHORT_STRING} bytes")),
        Value::Text(text) => Ok(Argument::Text(text.clone())),
        Value::Integer(number) => Ok(Argument::Integer(*number)),
        Value::Bool(value) => Ok(Argument::Bool(*value)),
        other => Err(format!("{name} must be a text, a whole number, true or false, not {}", other.kind())),
    };
    table.iter().map(|(name, item)| Ok((name.clone(), argument(name, &item.value)?))).collect()
}

/// `dead_letter` of a queue: true, false, or a table of what is not as usual.
pub(super) fn dead_letter(value: &Value, queue: &str) -> Parsed<Option<DeadLetterDecl>> {
    const LONGEST: Duration = Duration::from_secs(49 * 86_400);
    let mut found = DeadLetterDecl::usual(queue);
    let table = match value {
        Value::Bool(false) => return Ok(None),
        Value::Bool(true) => return Ok(Some(found)),
        Value::Table(table) => table,
        other => {
            let wanted = "true, false, or a table as in { delivery_limit = 5, retention = \"30d\" }";
            return Err(format!("must be {wanted}, not {}", shown(other)));
        }
    };
    for (key, item) in table {
        let named = |problem: String| format!("{key} {problem}");
        match key.as_str() {
            "delivery_limit" => found.delivery_limit = count(0..=10_000)(&item.value).map_err(named)?,
            // RabbitMQ takes 2^32 - 1 ms, which is 49.7 days.
            "retention" => {
                found.retention = duration(Duration::from_secs(1)..=LONGEST)(&item.value).map_err(named)?;
            }
            "queue" => found.queue = amqp_name(&item.value).map_err(named)?,
            "exchange" => found.exchange = amqp_name(&item.value).map_err(named)?,
            _ => return Err(format!("unknown key {key}: known are delivery_limit, retention, queue and exchange")),
        }
    }
    Ok(Some(found))
}

/// Names, in a list or with commas between them.
pub(super) fn names(value: &Value) -> Parsed<Vec<String>> {
    match value {
        Value::Text(text) => {
            Ok(text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
        }
        Value::List(items) => items.iter().map(|item| self::text(&item.value)).collect(),
        other => Err(format!("must be a list of names, not {}", other.kind())),
    }
}

/// The value as it was given, for a message. Never something that may have a password in it, and never a page of text.
fn shown(value: &Value) -> String {
    const ENOUGH: usize = 60;
    match value {
        Value::Text(text) if text.contains('@') || text.chars().count() > ENOUGH => "what it is".to_owned(),
        Value::Text(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        other => other.kind().to_owned(),
    }
}
