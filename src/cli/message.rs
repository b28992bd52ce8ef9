//! AMQP messages as JSON and as text, for the commands that show some.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What tells one message from another; `null` where it is absent.
pub(super) fn properties_json(properties: &BasicProperties) -> Value {
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    json!({
        "message_id": text(properties.message_id()),
        "type": text(properties.kind()),
        "content_type": text(properties.content_type()),
        "timestamp": time(properties),
        "correlation_id": text(properties.correlation_id()),
        "app_id": text(properties.app_id()),
        "delivery_mode": properties.delivery_mode(),
    })
}

pub(super) fn headers_json(properties: &BasicProperties) -> Value {
    properties.headers().as_ref().map_or_else(|| json!({}), object)
}

/// `None`: it is no text, and has to be shown in base64.
pub(super) fn text_body(body: &[u8]) -> Option<Box<RawValue>> {
    std::str::from_utf8(body).ok().and_then(one_line)
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Its timestamp, in UTC. Of an event of ours that is the commit.
pub(super) fn time(properties: &BasicProperties) -> Option<String> {
    rfc3339((*properties.timestamp())?)
}

/// Seconds since 1970, in UTC.
pub(super) fn rfc3339(seconds: u64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?.format(&Rfc3339).ok()
}

/// A header as text.
pub(super) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match value(properties.headers().as_ref()?.inner().get(name)?) {
        Value::String(text) => Some(text),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// A text as JSON without line breaks: itself, digits and all, where it is JSON; else a string.
fn one_line(text: &str) -> Option<Box<RawValue>> {
    // Inside a JSON string a line break is escaped, so these stand between values.
    let joined = || text.replace(['\n', '\r'], " ");
    RawValue::from_string(joined()).or_else(|_| serde_json::value::to_raw_value(text)).ok()
}

fn object(table: &FieldTable) -> Value {
    let entries = table.inner().iter().map(|(name, found)| (name.to_string(), value(found)));
    Value::Object(entries.collect::<Map<_, _>>())
}

fn value(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Timestamp(number) => json!(number),
        AMQPValue::Float(number) => json!(number),
        AMQPValue::Double(number) => json!(number),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::FieldArray(list) => Value::Array(list.as_slice().iter().map(self::value).collect()),
        AMQPValue::FieldTable(table) => object(table),
        AMQPValue::ByteArray(bytes) => json!(STANDARD.encode(bytes.as_slice())),
        AMQPValue::DecimalValue(_) | AMQPValue::Void => Value::Null,
    }
}
