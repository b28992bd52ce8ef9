//! What is left of a row that can't be published: all that its dead letter needs.

use super::*;

/// What remains of the event that a full row gives with some values changed.
fn remains_of(format: Format, columns: &[(&str, u32)], changes: &[(usize, Value)]) -> (Poison, Message) {
    let Tuple(mut values) = row(&FULL_ROW);
    for (index, value) in changes {
        values[*index] = value.clone();
    }
    remains(builder(format).build(&table(columns), &Tuple(values), &context(), TICKET))
}

fn remains(event: Event) -> (Poison, Message) {
    let message = event.message().unwrap().clone();
    assert_eq!(event.remains.as_deref(), Some(&message));
    (event.content.unwrap_err(), message)
}

fn text(text: &str) -> Value {
    Value::Text(Bytes::copy_from_slice(text.as_bytes()))
}

fn bytes(bytes: &'static [u8]) -> Value {
    Value::Text(Bytes::from_static(bytes))
}

fn header(message: &Message, name: &str) -> Option<HeaderValue> {
    message.properties.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone())
}

#[test]
fn an_event_that_can_be_published_has_nothing_beside_its_message() {
    let event = build(Format::Cdc, &OURS, &FULL_ROW);
    assert!(event.remains.is_none());
    assert_eq!(event.message(), event.content.as_ref().ok());
}

#[test]
fn a_body_over_the_limit_is_kept_whole_in_the_message_that_would_have_been_published() {
    for format in [Format::Cdc, Format::Payload] {
        let publishable = message(build(format, &OURS, &FULL_ROW));
        let limited = builder_with(format, "{aggregatetype}.{type}", 10);
        let (poison, message) = remains(limited.build(&table(&OURS), &row(&FULL_ROW), &context(), TICKET));
        assert_eq!(poison.reason, PoisonReason::TooLarge);
        assert_eq!(message, publishable);
    }
    let large = format!("\"{}\"", "x".repeat(17 << 20));
    let (poison, message) = remains_of(Format::Payload, &OURS, &[(4, text(&large))]);
    assert_eq!(poison.to_string(), "too_large: a body of 17825794 bytes; `max_message_bytes` is 16777216");
    assert!(message.body == large.as_bytes());
}

#[test]
fn what_is_too_long_for_a_short_string_is_kept_uncut() {
    let long = "ä".repeat(200);
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(0, text(&long)), (3, text(&long))]);
    assert_eq!(
        poison.to_string(),
        "bad_property: the id has 400 bytes, and AMQP allows 255",
        "the first reason is given"
    );
    assert_eq!((&*message.properties.message_id, &message.properties.kind), (long.as_str(), &long));
    assert_eq!(message.routing_key, format!("order.{long}"));
    let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
    assert_eq!((&body["id"], &body["type"]), (&long.as_str().into(), &long.as_str().into()), "the body is exact");

    let headers = serde_json::json!({ "correlation_id": long, "tenant": "acme" }).to_string();
    let (_, message) = remains_of(Format::Cdc, &OURS, &[(8, text(&headers))]);
    assert_eq!(message.properties.correlation_id.as_deref(), Some(long.as_str()));
    assert_eq!(header(&message, "tenant"), Some(HeaderValue::Text("acme".to_owned())));

    let name = format!("big{long}");
    let headers = serde_json::json!({ &name: 1, "tenant": "acme" }).to_string();
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(8, text(&headers))]);
    assert_eq!(poison.to_string(), "bad_property: the name of a header has 403 bytes, and AMQP allows 255");
    assert_eq!(header(&message, &name), Some(HeaderValue::Integer(1)));
}

#[test]
fn headers_that_no_frame_holds_are_all_kept() {
    let many: serde_json::Map<_, _> =
        (0..20_000).map(|number| (format!("big-{number}"), number.to_string().into())).collect();
    let headers = serde_json::Value::from(many).to_string();
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(8, text(&headers))]);
    assert_eq!(poison.reason, PoisonReason::HeadersTooLarge);
    let kept = message.properties.headers.iter().filter(|(name, _)| name.starts_with("big-")).count();
    assert_eq!(kept, 20_000);
    assert!(message.body.starts_with(br#"{"before":{"status": "pending"},"after":{"note""#), "the body is exact");

    let huge = "x".repeat(1 << 20);
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(2, text(&huge))]);
    assert_eq!(poison.reason, PoisonReason::HeadersTooLarge);
    assert_eq!(header(&message, "aggregateid"), Some(HeaderValue::Text(huge)));
}

#[test]
fn a_null_where_there_must_be_none_leaves_the_payload_as_it_was_sent() {
    for (index, routing_key) in [(0, "order.OrderConfirmed"), (1, ".OrderConfirmed"), (3, "order.")] {
        let (_, message) = remains_of(Format::Cdc, &OURS, &[(index, Value::Null)]);
        assert_eq!(message.body, FULL_ROW[4].unwrap());
        assert_eq!(message.properties.content_type, "application/octet-stream");
        assert_eq!(message.routing_key, routing_key);
        assert_eq!(message.properties.correlation_id.as_deref(), Some("c-1"));
        assert_eq!(header(&message, "version"), Some(HeaderValue::Integer(2)));
        let position = HeaderValue::Text("00000001-0000000100000000-00000003-00".to_owned());
        assert_eq!(header(&message, "x-postrider-position"), Some(position));
    }
    // The payload alone is a body of this format, whatever the rest of the row is.
    let (_, message) = remains_of(Format::Payload, &OURS, &[(2, Value::Null)]);
    assert_eq!(
        (message.properties.content_type, &message.body[..]),
        ("application/json", FULL_ROW[4].unwrap().as_bytes())
    );
}

#[test]
fn bytes_that_are_not_utf8_stay_as_they_are_in_the_body_and_only_there() {
    for format in [Format::Cdc, Format::Payload] {
        let (poison, message) = remains_of(format, &OURS, &[(4, bytes(b"{\"a\": \"\xe4\"}"))]);
        assert_eq!(poison.to_string(), "not_utf8: column `payload` is not UTF-8");
        assert_eq!(&message.body[..], b"{\"a\": \"\xe4\"}");
        assert_eq!(message.properties.content_type, "application/octet-stream");
        assert_eq!(&*message.properties.message_id, FULL_ROW[0].unwrap());
        assert_eq!(message.routing_key, "order.OrderConfirmed");
    }
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(2, bytes(b"M\xfcller")), (3, bytes(b"Pl\xe4tze"))]);
    assert_eq!(poison.to_string(), "not_utf8: column `aggregateid` is not UTF-8");
    assert_eq!(header(&message, "aggregateid"), Some(HeaderValue::Text("M\u{fffd}ller".to_owned())));
    assert_eq!(
        (message.properties.kind.as_str(), message.routing_key.as_str()),
        ("Pl\u{fffd}tze", "order.Pl\u{fffd}tze")
    );
    assert_eq!(message.body, FULL_ROW[4].unwrap());
    let (poison, message) =
        remains_of(Format::Cdc, &OURS, &[(8, bytes(b"{\"tenant\": \"M\xfcller\", \"correlation_id\": \"c\"}"))]);
    assert_eq!(poison.to_string(), "not_utf8: column `headers` is not UTF-8");
    assert_eq!(header(&message, "tenant"), Some(HeaderValue::Text("M\u{fffd}ller".to_owned())));
    assert_eq!(message.properties.correlation_id.as_deref(), Some("c"));
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(5, bytes(b"\xff"))]);
    assert_eq!(poison.to_string(), "not_utf8: column `before` is not UTF-8");
    assert_eq!(message.body, FULL_ROW[4].unwrap());
}

#[test]
fn the_operation_in_a_routing_key_outlives_a_row_that_cannot_be_read() {
    let by_op = builder_with(Format::Cdc, "{op}", 10_000);
    let key = |payload: Value, before: Value| {
        let Tuple(mut values) = row(&FULL_ROW);
        (values[0], values[4], values[5]) = (bytes(b"\xff"), payload, before);
        remains(by_op.build(&table(&OURS), &Tuple(values), &context(), TICKET)).1.routing_key
    };
    assert_eq!(key(text("{}"), text("{}")), "u");
    assert_eq!(key(bytes(b"\xff"), Value::Null), "c");
    assert_eq!(key(Value::Null, bytes(b"\xff")), "d");
}

#[test]
fn headers_that_are_no_object_leave_the_payload_as_it_was_sent() {
    let (poison, message) = remains_of(Format::Cdc, &OURS, &[(8, text("[1]"))]);
    assert_eq!(poison.to_string(), "bad_property: column `headers` is not a JSON object");
    assert_eq!(
        (message.properties.content_type, &message.body[..]),
        ("application/octet-stream", FULL_ROW[4].unwrap().as_bytes())
    );
    assert_eq!(message.routing_key, "order.OrderConfirmed");
    let (_, message) = remains_of(Format::Payload, &OURS, &[(8, text("[1]"))]);
    assert_eq!(message.properties.content_type, "application/json", "no header is part of this format's body");
}

#[test]
fn bytea_that_is_not_hexadecimal_and_values_that_never_came_leave_what_there_is() {
    for format in [Format::Cdc, Format::Payload] {
        let event = build(format, &five(BYTEA), &[Some("1"), Some("a"), Some("b"), Some("C"), Some("\\x0")]);
        let (_, message) = remains(event);
        assert_eq!((message.properties.content_type, &message.body[..]), ("application/octet-stream", &b"\\x0"[..]));
        let (_, message) = remains_of(format, &OURS, &[(4, Value::Binary(Bytes::from_static(b"\x00\x01")))]);
        assert_eq!(&message.body[..], b"\x00\x01");
        let (_, message) = remains_of(format, &OURS, &[(4, Value::Unchanged)]);
        assert!(message.body.is_empty());
    }
    let short = builder(Format::Cdc).build(&table(&OURS), &row(&FULL_ROW[..2]), &context(), TICKET);
    let (poison, message) = remains(short);
    assert_eq!(poison.to_string(), "bad_property: column `aggregateid` is beyond the end of the row");
    assert_eq!((message.routing_key.as_str(), message.body.len()), ("order.", 0));
}
