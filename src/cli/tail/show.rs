//! How `tail` shows a message: a line for a person, or an object for a program.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Time of the commit, routing key, operation, type, key, id, position.
pub(super) fn line(delivery: &Delivery) -> String {
    let properties = &delivery.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map_or("-".to_owned(), ToString::to_string);
    let header = |name| header(properties, name).unwrap_or_else(|| "-".to_owned());
    let shown = [
        time(properties).unwrap_or_else(|| "-".to_owned()),
        delivery.routing_key.to_string(),
        op(&delivery.data).unwrap_or_else(|| "-".to_owned()),
        text(properties.kind()),
        format!("{}/{}", header("aggregatetype"), header("aggregateid")),
        text(properties.message_id()),
        header("x-postrider-position"),
    ];
    printable(&shown.join("  "))
}

/// Whatever the row has in it: nothing that moves a terminal's cursor, and no second line.
fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Of an envelope (format `cdc`); other bodies do not say it.
fn op(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        op: String,
    }
    serde_json::from_slice::<Envelope>(body).ok().map(|envelope| envelope.op)
}

/// The commit, in UTC.
fn time(properties: &BasicProperties) -> Option<String> {
    let seconds = i64::try_from((*properties.timestamp())?).ok()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

/// A header as text.
pub(super) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match value(properties.headers().as_ref()?.inner().get(name)?) {
        Value::String(text) => Some(text),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    redelivered: bool,
    properties: Value,
    headers: Value,
    /// JSON as it is, other text as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    /// What is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// One line.
pub(super) fn json(delivery: &Delivery) -> String {
    let properties = &delivery.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    let body = std::str::from_utf8(&delivery.data).ok().and_then(one_line);
    let shown = Shown {
        exchange: delivery.exchange.as_str(),
        routing_key: delivery.routing_key.as_str(),
        redelivered: delivery.redelivered,
        properties: json!({
            "message_id": text(properties.message_id()),
            "type": text(properties.kind()),
            "content_type": text(properties.content_type()),
            "timestamp": time(properties),
            "correlation_id": text(properties.correlation_id()),
            "app_id": text(properties.app_id()),
            "delivery_mode": properties.delivery_mode(),
        }),
        headers: properties.headers().as_ref().map_or_else(|| json!({}), object),
        body_base64: body.is_none().then(|| STANDARD.encode(&delivery.data)),
        body,
    };
    // Nothing in it can fail: no maps with keys that are no text.
    serde_json::to_string(&shown).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(body: &[u8]) -> Delivery {
        let mut headers = FieldTable::default();
        headers.insert("aggregatetype".into(), AMQPValue::LongString("order".into()));
        headers.insert("aggregateid".into(), AMQPValue::LongString("4\u{1b}[2J2".into()));
        headers.insert("version".into(), AMQPValue::LongLongInt(1));
        let properties = BasicProperties::default()
            .with_message_id("id-1".into())
            .with_type("Placed".into())
            .with_timestamp(1_795_256_130)
            .with_headers(headers);
        let mut delivery = Delivery::mock(1, "events".into(), "order.Placed".into(), false, body.to_vec());
        delivery.properties = properties;
        delivery
    }

    #[test]
    fn a_line_has_what_a_person_looks_for_and_nothing_that_moves_the_cursor() {
        let body = br#"{"before": null, "after": {}, "op": "c"}"#;
        assert_eq!(line(&delivery(body)), r"2026-11-21T10:15:30Z  order.Placed  c  Placed  order/4\u{1b}[2J2  id-1  -");
        assert!(line(&delivery(b"plain")).contains("  order.Placed  -  Placed  "));
    }

    #[test]
    fn an_object_is_one_line_with_the_body_as_it_is() {
        let parsed = |body: &[u8]| {
            let line = json(&delivery(body));
            assert!(!line.contains('\n'), "{line}");
            serde_json::from_str::<Value>(&line).unwrap()
        };
        let shown = parsed(b"{\"total\": 1.50,\n\"a\": 2}");
        assert_eq!((&shown["exchange"], &shown["routing_key"]), (&json!("events"), &json!("order.Placed")));
        assert_eq!(shown["properties"]["message_id"], "id-1");
        assert_eq!((&shown["headers"]["version"], &shown["headers"]["aggregatetype"]), (&json!(1), &json!("order")));
        assert!(json(&delivery(b"{\"total\": 1.50}")).contains(r#""body":{"total": 1.50}"#), "digits are kept");
        assert_eq!(parsed(b"two\nlines")["body"], "two\nlines");
        assert_eq!(parsed(b"")["body"], "");
        let binary = parsed(b"\xff\x00");
        assert_eq!((&binary["body_base64"], binary.get("body")), (&json!("/wA="), None));
    }
}
