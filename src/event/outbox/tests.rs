mod poison;
mod remains;

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::*;
use crate::config::{Columns, RouteRule};
use crate::event::{OnPoison, OnUnroutable, Ordering};
use crate::pgoutput;
use crate::pgoutput::message::{Column, Relation, ReplicaIdentity, Value};

const TEXT: u32 = 25;
const JSON: u32 = 114;
const JSONB: u32 = 3802;
const BYTEA: u32 = 17;
const UUID: u32 = 2950;
const TICKET: Ticket = Ticket { session: 1, entry: 2 };

/// Columns of our own table, in its order.
const OURS: [(&str, u32); 10] = [
    ("id", UUID),
    ("aggregatetype", TEXT),
    ("aggregateid", TEXT),
    ("type", TEXT),
    ("payload", JSONB),
    ("before", JSONB),
    ("version", 23),
    ("sequence", 20),
    ("headers", JSONB),
    ("occurred_at", 1184),
];

fn relation(columns: &[(&str, u32)]) -> Relation {
    let column = |&(name, type_oid): &(&str, u32)| Column {
        key: name == "id",
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
    };
    Relation {
        oid: 16_400,
        namespace: "public".to_owned(),
        name: "outbox".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    }
}

fn table(columns: &[(&str, u32)]) -> OutboxTable {
    OutboxTable::new(&relation(columns), &Columns::default()).unwrap()
}

fn row(values: &[Option<&str>]) -> Tuple {
    let value =
        |value: &Option<&str>| value.map_or(Value::Null, |text| Value::Text(Bytes::copy_from_slice(text.as_bytes())));
    Tuple(values.iter().map(value).collect())
}

fn context() -> RowContext {
    RowContext {
        commit_lsn: Lsn(0x1_0000_0000),
        commit_time: UNIX_EPOCH + Duration::from_micros(1_795_256_130_123_456),
        xid: 756,
        row_lsn: Lsn(24_000_000),
        ordinal: 3,
        epoch: 1,
    }
}

fn builder_with(format: Format, routing_key: &str, max_message_bytes: usize) -> EventBuilder {
    let rule = RouteRule {
        name: "default".to_owned(),
        aggregatetype: "*".to_owned(),
        kind: "*".to_owned(),
        table: None,
        exchange: "events".to_owned(),
        routing_key: routing_key.to_owned(),
        format,
        ordering: Ordering::Key,
        on_unroutable: OnUnroutable::Park,
        on_poison: OnPoison::ParkKey,
    };
    let router = Router::new(&[rule]).unwrap();
    EventBuilder::new("shop", "shopdb", router, &["tenant".to_owned(), "big*".to_owned()], max_message_bytes)
}

fn builder(format: Format) -> EventBuilder {
    builder_with(format, "{aggregatetype}.{type}", 16 * 1024 * 1024)
}

fn build(format: Format, columns: &[(&str, u32)], values: &[Option<&str>]) -> Event {
    builder(format).build(&table(columns), &row(values), &context(), TICKET)
}

fn message(event: Event) -> Message {
    event.content.unwrap()
}

/// The five columns that Debezium's router needs, with a payload of any type.
fn five(payload_type: u32) -> [(&'static str, u32); 5] {
    [("id", UUID), ("aggregatetype", TEXT), ("aggregateid", TEXT), ("type", TEXT), ("payload", payload_type)]
}

/// Body of the event that has this payload, in a table with the five columns.
fn body_of(format: Format, payload_type: u32, payload: Option<&str>) -> String {
    let event =
        build(format, &five(payload_type), &[Some("1"), Some("order"), Some("42"), Some("OrderPlaced"), payload]);
    String::from_utf8(message(event).body.to_vec()).unwrap()
}

/// `after` and `op` of the same.
fn after_and_op(payload_type: u32, payload: Option<&str>) -> (String, String) {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        after: &'a RawValue,
        op: String,
    }
    let body = body_of(Format::Cdc, payload_type, payload);
    // Not via `Option<&RawValue>`: it would not tell null from absent.
    let envelope: Envelope<'_> = serde_json::from_str(&body).unwrap();
    (envelope.after.get().to_owned(), envelope.op)
}

const FULL_ROW: [Option<&str>; 10] = [
    Some("6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11"),
    Some("order"),
    Some("42"),
    Some("OrderConfirmed"),
    Some(r#"{"note": "Straße", "total": 99.50}"#),
    Some(r#"{"status": "pending"}"#),
    Some("2"),
    Some("7"),
    Some(
        r#"{"tenant": "acme", "correlation_id": "c-1", "causation_id": "c-0", "traceparent": "00-ab-cd-01", "CC": ["x"]}"#,
    ),
    Some("2026-11-21 10:15:30.123456+00"),
];

#[test]
fn a_full_row_becomes_the_whole_envelope() {
    let message = message(build(Format::Cdc, &OURS, &FULL_ROW));
    let expected = concat!(
        r#"{"before":{"status": "pending"},"after":{"note": "Straße", "total": 99.50},"#,
        r#""source":{"version":"1","connector":"postrider","name":"shop","ts_ms":1795256130123,"snapshot":"false","#,
        r#""db":"shopdb","sequence":"[\"4294967296\",\"24000000\"]","ts_us":1795256130123456,"#,
        r#""ts_ns":1795256130123456000,"schema":"public","table":"outbox","txId":756,"lsn":24000000,"xmin":null},"#,
        r#""op":"u","ts_ms":1795256130123,"ts_us":1795256130123456,"ts_ns":1795256130123456000,"transaction":null,"#,
        r#""id":"6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11","type":"OrderConfirmed","version":2,"aggregatetype":"order","#,
        r#""aggregateid":"42","sequence":7,"occurred_at":"2026-11-21T10:15:30.123456Z","correlation_id":"c-1","#,
        r#""causation_id":"c-0"}"#,
    );
    assert_eq!(message.body, expected);
    assert_eq!(message.routing_key, "order.OrderConfirmed");
    let text = |text: &str| HeaderValue::Text(text.to_owned());
    let headers = [
        ("aggregatetype", text("order")),
        ("aggregateid", text("42")),
        ("version", HeaderValue::Integer(2)),
        ("sequence", HeaderValue::Integer(7)),
        ("occurred_at", text("2026-11-21T10:15:30.123456Z")),
        ("causation_id", text("c-0")),
        ("traceparent", text("00-ab-cd-01")),
        ("x-postrider-position", text("00000001-0000000100000000-00000003-00")),
        ("tenant", text("acme")),
    ];
    let properties = Properties {
        message_id: Arc::from("6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11"),
        kind: "OrderConfirmed".to_owned(),
        content_type: "application/json",
        timestamp: 1_795_256_130,
        correlation_id: Some("c-1".to_owned()),
        headers: headers.map(|(name, value)| (name.into(), value)).to_vec(),
    };
    assert_eq!(message.properties, properties);
}

#[test]
fn a_table_with_five_columns_has_the_same_fields_with_null() {
    let expected = concat!(
        r#"{"before":null,"after":{},"#,
        r#""source":{"version":"1","connector":"postrider","name":"shop","ts_ms":1795256130123,"snapshot":"false","#,
        r#""db":"shopdb","sequence":"[\"4294967296\",\"24000000\"]","ts_us":1795256130123456,"#,
        r#""ts_ns":1795256130123456000,"schema":"public","table":"outbox","txId":756,"lsn":24000000,"xmin":null},"#,
        r#""op":"c","ts_ms":1795256130123,"ts_us":1795256130123456,"ts_ns":1795256130123456000,"transaction":null,"#,
        r#""id":"1","type":"OrderPlaced","version":1,"aggregatetype":"order","aggregateid":"42","sequence":null,"#,
        r#""occurred_at":null,"correlation_id":null,"causation_id":null}"#,
    );
    assert_eq!(body_of(Format::Cdc, JSONB, Some("{}")), expected);
    let event = build(Format::Cdc, &OURS, &{
        let mut values = [None; 10];
        values[..5].copy_from_slice(&[Some("1"), Some("order"), Some("42"), Some("OrderPlaced"), Some("{}")]);
        values
    });
    let message = message(event);
    assert_eq!(message.body, expected, "a NULL in an optional column is the same as no such column");
    let names: Vec<_> = message.properties.headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["aggregatetype", "aggregateid", "version", "x-postrider-position"]);
    assert_eq!(message.properties.correlation_id, None);
}

#[test]
fn a_row_captured_from_a_server_becomes_a_message() {
    let unhex = |line: &str| -> Bytes {
        (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
    };
    let fixture = include_str!("../../../tests/fixtures/pgoutput/insert.hex");
    let messages: Vec<_> = fixture.lines().map(|line| pgoutput::decode(unhex(line)).unwrap()).collect();
    let [_, pgoutput::Message::Relation(relation), pgoutput::Message::Insert(insert), _] = &messages[..] else {
        panic!("not one insert")
    };
    let table = OutboxTable::new(relation, &Columns::default()).unwrap();
    let message = message(builder(Format::Cdc).build(&table, &insert.new, &context(), TICKET));
    let body = std::str::from_utf8(&message.body).unwrap();
    assert!(body.starts_with(r#"{"before":null,"after":{"note": "Straße", "total": 99.5},"source":{"#), "{body}");
    assert!(body.contains(r#""schema":"shop","table":"outbox""#), "{body}");
    let end = concat!(
        r#""op":"c","ts_ms":1795256130123,"ts_us":1795256130123456,"ts_ns":1795256130123456000,"transaction":null,"#,
        r#""id":"6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11","type":"OrderPlaced","version":1,"aggregatetype":"order","#,
        r#""aggregateid":"42","sequence":null,"occurred_at":"2026-11-21T10:15:30.123456Z","correlation_id":null,"#,
        r#""causation_id":null}"#,
    );
    assert!(body.ends_with(end), "{body}");
    assert_eq!(message.routing_key, "order.OrderPlaced");
}

#[test]
fn an_event_is_known_by_its_row() {
    let event = build(Format::Cdc, &OURS, &FULL_ROW);
    assert_eq!(&*event.id, "6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11");
    assert_eq!(&*event.key, "order\u{1f}42");
    assert_eq!(event.position, Position { epoch: 1, commit: Lsn(0x1_0000_0000), ordinal: 3, part: 0 });
    assert_eq!(event.ticket, TICKET);
    assert_eq!(event.commit_time, context().commit_time);
    assert_eq!(event.route.exchange, "events");
}

#[test]
fn op_tells_created_changed_and_gone_apart() {
    let op = |payload, before| {
        let mut values = FULL_ROW;
        (values[4], values[5]) = (payload, before);
        let body: serde_json::Value =
            serde_json::from_slice(&message(build(Format::Cdc, &OURS, &values)).body).unwrap();
        body["op"].as_str().unwrap().to_owned()
    };
    assert_eq!(op(Some("{}"), None), "c");
    assert_eq!(op(Some("{}"), Some("{}")), "u");
    assert_eq!(op(Some("null"), None), "c", "JSON null is a value");
    assert_eq!(op(Some("{}"), Some("null")), "u", "JSON null is a value");
    assert_eq!(op(None, Some("{}")), "d");
    assert_eq!(op(None, None), "d");
}

#[test]
fn values_are_embedded_by_the_type_of_their_column() {
    let embedded = |payload_type, payload| after_and_op(payload_type, Some(payload)).0;
    // As PostgreSQL sent it: digits, order and repeated names stay.
    let json = r#"{"b": 1.10, "a": 12345678901234567890.123, "a":  2}"#;
    assert_eq!(embedded(JSON, json), json);
    assert_eq!(embedded(JSONB, json), json);
    assert_eq!(embedded(TEXT, json), json);
    assert_eq!(after_and_op(JSONB, Some("null")), ("null".to_owned(), "c".to_owned()));
    assert_eq!(after_and_op(JSONB, None), ("null".to_owned(), "d".to_owned()));
    assert_eq!(embedded(TEXT, "plain \"text\"\n"), r#""plain \"text\"\n""#);
    assert_eq!(embedded(TEXT, ""), r#""""#);
    assert_eq!(embedded(TEXT, "{} {}"), r#""{} {}""#);
    assert_eq!(embedded(1043, "[1]"), "[1]");
    assert_eq!(embedded(20_000, "[1]"), "[1]", "a domain over jsonb has an OID of its own");
    assert_eq!(embedded(BYTEA, "\\x00ff10"), r#""AP8Q""#);
    assert_eq!(embedded(BYTEA, "\\x"), r#""""#);
    assert_eq!(embedded(23, "42"), r#""42""#);
    assert_eq!(embedded(1700, "1.50"), r#""1.50""#);
}

#[test]
fn nesting_has_no_limit() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    for payload_type in [JSON, JSONB, TEXT] {
        let body = body_of(Format::Cdc, payload_type, Some(&deep));
        assert!(body.contains(&format!(r#""after":{deep},"source""#)));
    }
}

#[test]
fn format_payload_is_the_payload_alone() {
    let body = |payload_type, payload| {
        let values = [Some("1"), Some("order"), Some("42"), Some("OrderPlaced"), payload];
        let message = message(build(Format::Payload, &five(payload_type), &values));
        (message.properties.content_type, message.body)
    };
    let (json, text, binary) = ("application/json", "text/plain; charset=utf-8", "application/octet-stream");
    assert_eq!(body(JSONB, Some("{\"a\": 1.0}")), (json, Bytes::from_static(b"{\"a\": 1.0}")));
    assert_eq!(body(JSON, Some("null")), (json, Bytes::from_static(b"null")));
    assert_eq!(body(TEXT, Some("{}")), (json, Bytes::from_static(b"{}")));
    assert_eq!(body(TEXT, Some("hello")), (text, Bytes::from_static(b"hello")));
    assert_eq!(body(BYTEA, Some("\\x00FfaB")), (binary, Bytes::from_static(b"\x00\xff\xab")));
    assert_eq!(body(1700, Some("1.50")), (text, Bytes::from_static(b"1.50")));
    assert_eq!(body(JSONB, None), (binary, Bytes::new()));
}

#[test]
fn numbers_are_numbers_only_where_the_column_is_an_integer() {
    let columns = [five(JSONB).as_slice(), &[("version", TEXT), ("sequence", 1700)]].concat();
    let values = [Some("1"), Some("order"), Some("42"), Some("OrderPlaced"), Some("{}"), Some("v2"), Some("7")];
    let message = message(build(Format::Cdc, &columns, &values));
    let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
    assert_eq!((&body["version"], &body["sequence"]), (&"v2".into(), &"7".into()));
    let header = |name: &str| message.properties.headers.iter().find(|(header, _)| header == name).unwrap().1.clone();
    assert_eq!(header("version"), HeaderValue::Text("v2".to_owned()));
    assert_eq!(header("sequence"), HeaderValue::Text("7".to_owned()));
}

#[test]
fn every_placeholder_of_a_routing_key_has_its_value() {
    let builder =
        builder_with(Format::Cdc, "{schema}.{table}.{aggregatetype}.{aggregateid}.{type}.{version}.{op}", 10_000);
    let event = builder.build(&table(&OURS), &row(&FULL_ROW), &context(), TICKET);
    assert_eq!(message(event).routing_key, "public.outbox.order.42.OrderConfirmed.2.u");
    let values = [Some("1"), Some("order"), Some("42"), Some("OrderPlaced"), None];
    let event = builder.build(&table(&five(JSONB)), &row(&values), &context(), TICKET);
    assert_eq!(message(event).routing_key, "public.outbox.order.42.OrderPlaced.1.d");
}

#[test]
fn columns_may_have_other_names() {
    let columns = [("key", 20), ("kind", TEXT), ("ref", TEXT), ("event", TEXT), ("body", TEXT), ("old", JSONB)];
    let name = |name: &str| name.to_owned();
    let mapped = Columns {
        id: name("key"),
        aggregatetype: name("kind"),
        aggregateid: name("ref"),
        kind: name("event"),
        payload: name("body"),
        before: name("old"),
        ..Columns::default()
    };
    let table = OutboxTable::new(&relation(&columns), &mapped).unwrap();
    let values = row(&[Some("17"), Some("order"), Some("42"), Some("OrderPlaced"), Some("text"), Some("{}")]);
    let event = builder(Format::Cdc).build(&table, &values, &context(), TICKET);
    assert_eq!(&*event.id, "17");
    let message = message(event);
    assert!(message.body.starts_with(br#"{"before":{},"after":"text","source""#));
    assert!(message.body.windows(9).any(|window| window == br#""id":"17""#));
}

#[test]
fn a_table_that_is_no_outbox_is_an_error_that_says_what_to_set() {
    for (missing, setting) in
        [("id", "id"), ("aggregatetype", "aggregatetype"), ("type", "type"), ("payload", "payload")]
    {
        let columns: Vec<_> = OURS.into_iter().filter(|(name, _)| *name != missing).collect();
        let error = OutboxTable::new(&relation(&columns), &Columns::default()).unwrap_err();
        let expected = format!("table `public.outbox` has no column `{missing}`: set `outbox.columns.{setting}` to");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    let columns = |before: &str, headers: &str| Columns {
        before: before.to_owned(),
        headers: headers.to_owned(),
        ..Columns::default()
    };
    let new = |relation: &Relation, columns: &Columns| OutboxTable::new(relation, columns).map(drop);
    let error = new(&relation(&OURS), &columns("befoer", "headers")).unwrap_err();
    assert!(error.to_string().contains("no column `befoer`: set `outbox.columns.before`"), "{error}");

    let binary_headers = relation(&[five(JSONB).as_slice(), &[("headers", BYTEA)]].concat());
    let error = new(&binary_headers, &Columns::default()).unwrap_err();
    assert!(error.to_string().contains("column `headers` of table `public.outbox`"), "{error}");
    assert!(error.to_string().contains("type OID 17"), "{error}");
    assert_eq!(new(&binary_headers, &columns("before", "")), Ok(()), "the empty name leaves a column out");
}

#[test]
fn times_before_1970_and_far_away_have_a_form() {
    let at = |time| {
        let context = RowContext { commit_time: time, ..context() };
        message(builder(Format::Cdc).build(&table(&OURS), &row(&FULL_ROW), &context, TICKET))
    };
    let before = at(UNIX_EPOCH - Duration::from_micros(1));
    assert_eq!(before.properties.timestamp, 0);
    let body: serde_json::Value = serde_json::from_slice(&before.body).unwrap();
    assert_eq!((body["ts_ms"].as_i64(), body["ts_us"].as_i64()), (Some(-1), Some(-1)));
    let far = at(UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 1_000));
    let body: serde_json::Value = serde_json::from_slice(&far.body).unwrap();
    assert_eq!(body["ts_ns"].as_i64(), Some(i64::MAX));
}

#[derive(Deserialize)]
struct Parsed<'a> {
    #[serde(borrow)]
    before: &'a RawValue,
    #[serde(borrow)]
    after: &'a RawValue,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    aggregatetype: String,
    aggregateid: String,
    version: String,
    occurred_at: String,
    correlation_id: String,
}

/// What went into a text column, read back out of the envelope.
fn embedded_is(embedded: &RawValue, text: &str) -> bool {
    if super::cdc::is_json(text) {
        embedded.get() == text.trim_ascii()
    } else {
        serde_json::from_str::<String>(embedded.get()).is_ok_and(|string| string == text)
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let tricky = prop_oneof![
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just("{\"a\":[1,\"\\u0000\"]}".to_owned()),
        Just("null".to_owned()),
        Just("\u{0}\u{1f}\u{7f}\u{2028}\u{10ffff}".to_owned()),
    ];
    prop_oneof![4 => proptest::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter), 1 => tricky]
}

proptest! {
    #[test]
    fn any_text_in_any_column_gives_json_that_reads_back(texts in proptest::collection::vec(any_text(), 8)) {
        let columns = [
            ("id", TEXT), ("aggregatetype", TEXT), ("aggregateid", TEXT), ("type", TEXT), ("payload", TEXT),
            ("before", TEXT), ("version", TEXT), ("occurred_at", TEXT), ("headers", JSONB),
        ];
        let headers = serde_json::json!({ "correlation_id": texts[0] }).to_string();
        let values: Vec<_> = texts.iter().map(String::as_str).chain([headers.as_str()]).map(Some).collect();
        let (table, row) = (table(&columns), row(&values));
        let builder = builder_with(Format::Cdc, "", 1 << 20);
        let built = message(builder.build(&table, &row, &context(), TICKET));
        prop_assert_eq!(&built, &message(builder.build(&table, &row, &context(), TICKET)), "the same when built again");

        let parsed: Parsed<'_> = serde_json::from_slice(&built.body).unwrap();
        prop_assert!(embedded_is(parsed.after, &texts[4]));
        prop_assert!(embedded_is(parsed.before, &texts[5]));
        let read = [
            parsed.id, parsed.aggregatetype, parsed.aggregateid, parsed.kind, parsed.version, parsed.occurred_at,
            parsed.correlation_id,
        ];
        prop_assert_eq!(&read[..4], &texts[..4]);
        prop_assert_eq!(&read[4..6], &texts[6..8]);
        prop_assert_eq!(&read[6], &texts[0]);
    }

    #[test]
    fn any_bytes_in_any_column_make_an_event(
        values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)), 0..12),
        payload_type in proptest::sample::select(vec![TEXT, JSON, BYTEA, 23]),
        format in proptest::sample::select(vec![Format::Cdc, Format::Payload]),
    ) {
        let mut columns = OURS;
        columns[4].1 = payload_type;
        let values = values.into_iter().map(|value| value.map_or(Value::Null, |bytes| Value::Text(bytes.into())));
        let row = Tuple(values.collect());
        let event = builder(format).build(&table(&columns), &row, &context(), TICKET);
        prop_assert_eq!(event.position.ordinal, 3);
        prop_assert!(event.message().is_some(), "there is always something for a dead letter");
        prop_assert_eq!(event.content.is_ok(), event.remains.is_none());
    }
}
