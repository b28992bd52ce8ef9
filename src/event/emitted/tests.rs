use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::{Columns, Format, RouteRule};
use crate::event::route::Router;
use crate::event::{Message, OnPoison, OnUnroutable, Ordering};
use crate::lsn::Lsn;

const TICKET: Ticket = Ticket { session: 1, entry: 2 };

fn build_as(format: Format, content: &[u8]) -> Event {
    let rule = RouteRule {
        name: "default".to_owned(),
        aggregatetype: "*".to_owned(),
        kind: "*".to_owned(),
        table: None,
        exchange: "events".to_owned(),
        routing_key: "{schema}.{table}.{aggregatetype}.{type}.{op}".to_owned(),
        format,
        ordering: Ordering::Key,
        on_unroutable: OnUnroutable::Park,
        on_poison: OnPoison::ParkKey,
    };
    let builder = EventBuilder::new("shop", "shop", Router::new(&[rule]).unwrap(), &["tenant".to_owned()], 1_000_000);
    let outbox = Outbox { schema: "app".to_owned(), table: "events".to_owned(), columns: Columns::default() };
    let context = RowContext {
        commit_lsn: Lsn(300),
        commit_time: UNIX_EPOCH + Duration::from_secs(1_795_256_130),
        xid: 7,
        row_lsn: Lsn(200),
        ordinal: 3,
        epoch: 1,
    };
    Emitted::new(&outbox, &builder).build(&builder, &Bytes::copy_from_slice(content), &context, TICKET)
}

fn build(content: &str) -> Event {
    build_as(Format::Cdc, content.as_bytes())
}

fn message(content: &str) -> Message {
    build(content).content.unwrap()
}

fn body(content: &str) -> String {
    String::from_utf8(message(content).body.to_vec()).unwrap()
}

/// The reason why there is no event of it, and what is kept.
fn poison(content: &[u8]) -> (String, Message) {
    let event = build_as(Format::Cdc, content);
    (event.content.unwrap_err().to_string(), *event.remains.unwrap())
}

/// With these members besides, or instead.
fn with(members: &serde_json::Value) -> String {
    let mut all = json!({"id": "a", "aggregatetype": "order", "aggregateid": "42", "type": "Placed"});
    for (name, value) in members.as_object().unwrap() {
        all[name] = value.clone();
    }
    all.to_string()
}

#[test]
fn a_message_becomes_the_event_of_the_row_that_it_stands_for() {
    let message = message(
        r#"{"id": "a", "type": "Placed", "before": {"n": 1}, "headers": {"tenant": "t", "correlation_id": "c"}, "payload": {"b": 1.50, "a": [1,  2]},
            "version": 2, "sequence": 7, "aggregateid": "42", "occurred_at": "2026-11-21 10:15:30.123456+00", "aggregatetype": "order", "new": {}}"#,
    );
    assert_eq!(message.routing_key, "app.events.order.Placed.u");
    assert_eq!(message.properties.correlation_id.as_deref(), Some("c"));
    let body = String::from_utf8(message.body.to_vec()).unwrap();
    assert!(body.starts_with(r#"{"before":{"n": 1},"after":{"b": 1.50, "a": [1,  2]},"source":{"#), "{body}");
    assert!(body.contains(r#""schema":"app","table":"events","txId":7,"lsn":200"#), "{body}");
    assert!(
        body.ends_with(
            r#""id":"a","type":"Placed","version":2,"aggregatetype":"order","aggregateid":"42","sequence":7,"occurred_at":"2026-11-21T10:15:30.123456Z","correlation_id":"c","causation_id":null}"#
        ),
        "{body}"
    );
}

#[test]
fn a_payload_that_is_not_there_says_that_the_thing_is_gone_and_null_does_not() {
    let op = |content: &str| message(content).routing_key.rsplit('.').next().unwrap().to_owned();
    assert_eq!(op(&with(&json!({}))), "d");
    assert_eq!(op(&with(&json!({"payload": null}))), "c");
    assert_eq!(op(&with(&json!({"payload": {}, "before": null}))), "u");
    assert!(body(&with(&json!({"version": null, "sequence": null, "headers": null}))).contains(r#""version":1,"#));
}

#[test]
fn other_formats_take_the_payload_as_they_do_of_a_row() {
    let event = build_as(Format::Payload, with(&json!({"payload": {"a": 1}})).as_bytes());
    let message = event.content.unwrap();
    assert_eq!((message.properties.content_type, &message.body[..]), ("application/json", &b"{\"a\":1}"[..]));
}

#[test]
fn what_is_malformed_is_poison_with_the_content_as_its_remains() {
    let object = "bad_property: an emitted message is not one JSON object that has each member once";
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for content in [
        "",
        "hello",
        "[]",
        r#"["a", "order", "42", "Placed"]"#,
        "null",
        "{",
        "{} {}",
        r#"{"id": "a", "id": "b"}"#,
        &nested,
    ] {
        let (reason, remains) = poison(content.as_bytes());
        assert_eq!((reason.as_str(), &remains.body[..]), (object, content.as_bytes()));
        assert_eq!(remains.properties.content_type, "application/octet-stream");
    }
    let (reason, remains) = poison(b"{\"id\": \"\xff\"}");
    assert_eq!(reason, "not_utf8: an emitted message is not UTF-8");
    assert_eq!(&remains.body[..], b"{\"id\": \"\xff\"}");
    for format in [Format::Cdc, Format::Payload] {
        let event = build_as(format, b"{\"payload\": 1}");
        assert_eq!(&event.remains.unwrap().body[..], b"{\"payload\": 1}");
    }
}

#[test]
fn a_member_of_another_type_is_poison_that_names_it_and_not_its_value() {
    let wrong = [
        (json!({"id": 5}), "`id` of an emitted message is not a text"),
        (json!({"aggregatetype": null}), "`aggregatetype` of an emitted message is not a text"),
        (json!({"aggregateid": ["secret"]}), "`aggregateid` of an emitted message is not a text"),
        (json!({"type": {}}), "`type` of an emitted message is not a text"),
        (json!({"version": "secret"}), "`version` of an emitted message is not a whole number"),
        (json!({"sequence": 1.5}), "`sequence` of an emitted message is not a whole number"),
        (json!({"occurred_at": 5}), "`occurred_at` of an emitted message is not a text"),
        (json!({"headers": [1]}), "column `headers` is not a JSON object"),
    ];
    for (members, detail) in wrong {
        let (reason, remains) = poison(with(&members).as_bytes());
        assert_eq!(reason, format!("bad_property: {detail}"));
        // What names it is kept where it is right, so that the order of its key is.
        let named = |member: &str| members.get(member).is_none();
        assert_eq!(&*remains.properties.message_id == "a", named("id"));
        assert_eq!(remains.properties.kind == "Placed", named("type"));
    }
    let (reason, _) = poison(br#"{"id": "\ud800", "aggregatetype": "a", "aggregateid": "1", "type": "T"}"#);
    assert_eq!(reason, "bad_property: `id` of an emitted message is not a text");
}

#[test]
fn an_id_that_does_not_fit_is_poison_as_that_of_a_row_is() {
    let (reason, _) = poison(with(&json!({"id": "x".repeat(256), "payload": 1})).as_bytes());
    assert_eq!(reason, "bad_property: the id has 256 bytes, and AMQP allows 255");
}

proptest! {
    #[test]
    fn no_content_is_too_strange(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let event = build_as(Format::Cdc, &content);
        prop_assert!(event.content.is_ok() || event.remains.is_some());
    }

    #[test]
    fn texts_arrive_as_they_were(id in "\\PC{1,40}", aggregateid in "\\PC{0,40}", payload in "\\PC{0,40}") {
        let body = body(&with(&json!({"id": id, "aggregateid": aggregateid, "payload": payload})));
        let envelope: serde_json::Value = serde_json::from_str(&body).unwrap();
        prop_assert_eq!(&envelope["id"], &json!(id));
        prop_assert_eq!(&envelope["aggregateid"], &json!(aggregateid));
        prop_assert_eq!(&envelope["after"], &json!(payload));
    }
}
