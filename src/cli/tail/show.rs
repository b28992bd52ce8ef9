//! How `tail` shows a message: a line for a person, or an object for a program.

use lapin::message::Delivery;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::message::{base64, header, headers_json, properties_json, text_body, time};

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
    let body = text_body(&delivery.data);
    let shown = Shown {
        exchange: delivery.exchange.as_str(),
        routing_key: delivery.routing_key.as_str(),
        redelivered: delivery.redelivered,
        properties: properties_json(properties),
        headers: headers_json(properties),
        body_base64: body.is_none().then(|| base64(&delivery.data)),
        body,
    };
    // Nothing in it can fail: no maps with keys that are no text.
    serde_json::to_string(&shown).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};
    use serde_json::json;

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
