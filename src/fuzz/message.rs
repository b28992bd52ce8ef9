//! From a row of the outbox to what goes onto the wire: what is published fits AMQP, sends no copies, and has the payload's own
//! bytes; what does not fit is a poison that keeps them.

use std::time::UNIX_EPOCH;

use bytes::{BufMut, Bytes};
use lapin::BasicProperties;
use lapin::protocol::basic::parse_properties;
use lapin::types::AMQPValue;

use crate::config::{Columns, Format, RouteRule};
use crate::event::outbox::{EventBuilder, OutboxTable, RowContext};
use crate::event::route::Router;
use crate::event::{Event, Message, OnPoison, OnUnroutable, Ordering, Position, Ticket};
use crate::lsn::Lsn;
use crate::pgoutput::message::{Column, Relation, ReplicaIdentity, Tuple, Value};
use crate::rabbitmq::channel::{Sending, properties};

/// `frame_max` of RabbitMQ, and what a frame has around its payload.
const FRAME_MAX: u32 = 131_072;
const FRAME_OVERHEAD: usize = 8;

/// Type OIDs that a payload may have: text, json, jsonb, bytea, and one of a user's.
const TEXT: u32 = 25;
const JSON: u32 = 114;
const JSONB: u32 = 3802;
const BYTEA: u32 = 17;
const PAYLOADS: [u32; 5] = [TEXT, JSON, JSONB, BYTEA, 16_400];
const COLUMNS: [(&str, u32); 10] = [
    ("id", 2950),
    ("aggregatetype", TEXT),
    ("aggregateid", TEXT),
    ("type", TEXT),
    ("payload", 0),
    ("before", 0),
    ("version", 23),
    ("sequence", 20),
    ("headers", JSONB),
    ("occurred_at", 1184),
];
const PAYLOAD: usize = 4;
const BEFORE: usize = 5;

/// A byte for the format and the payload's type, then for each column a byte for its kind and, for a text, a length of two bytes
/// and the text.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let format = if choice & 1 == 0 { Format::Cdc } else { Format::Payload };
    let payload_type = PAYLOADS.get(usize::from(choice >> 1) % PAYLOADS.len()).copied().unwrap_or(TEXT);
    check_row(format, payload_type, &row(rest));
}

fn row(mut rest: &[u8]) -> Tuple {
    let mut values = Vec::new();
    for _ in COLUMNS {
        let Some((kind, more)) = rest.split_first() else { break };
        rest = more;
        values.push(match kind % 16 {
            0 => Value::Null,
            1 => Value::Unchanged,
            2 => Value::Binary(Bytes::new()),
            _ => {
                let Some((length, more)) = rest.split_first_chunk() else { break };
                let length = usize::from(u16::from_be_bytes(*length)).min(more.len());
                let (text, more) = more.split_at(length);
                rest = more;
                Value::Text(Bytes::copy_from_slice(text))
            }
        });
    }
    Tuple(values)
}

fn check_row(format: Format, payload_type: u32, row: &Tuple) {
    let Some((builder, table)) = outbox(format, payload_type) else { return };
    let context =
        RowContext { commit_lsn: Lsn(7), commit_time: UNIX_EPOCH, xid: 1, row_lsn: Lsn(6), ordinal: 0, epoch: 0 };
    let build = || builder.build(&table, row, &context, Ticket::NONE);
    let event = build();
    let again = build();
    assert!(event.content == again.content && event.remains == again.remains, "the same row");
    assert!(event.key.len() <= 1_024);
    match &event.content {
        Ok(message) => {
            fits_amqp(&event, message);
            has_the_bytes(format, payload_type, row, message);
        }
        Err(poison) => assert!(!poison.detail.is_empty()),
    }
    if let Some(Value::Text(payload)) = row.get(PAYLOAD)
        && let Err(_) = &event.content
        && let Some(remains) = &event.remains
        && remains.properties.content_type == "application/octet-stream"
        && payload_type != BYTEA
    {
        assert_eq!(&remains.body, payload, "what could not be made into a message is kept as it came");
    }
}

fn outbox(format: Format, payload_type: u32) -> Option<(EventBuilder, OutboxTable)> {
    let rule = RouteRule {
        name: "default".to_owned(),
        aggregatetype: "*".to_owned(),
        kind: "*".to_owned(),
        table: None,
        exchange: "events".to_owned(),
        routing_key: "{aggregatetype}.{type}".to_owned(),
        format,
        ordering: Ordering::Key,
        on_unroutable: OnUnroutable::Park,
        on_poison: OnPoison::ParkKey,
    };
    // As generous as a configuration can be.
    let allowed = ["*", "x-delay", "CC", "BCC", "cc", "x-death"].map(str::to_owned);
    let builder = EventBuilder::new("shop", "shop", Router::new(&[rule]).ok()?, &allowed, 1 << 20);
    let column = |(name, type_oid): (&str, u32)| Column {
        key: name == "id",
        name: name.to_owned(),
        type_oid: if type_oid == 0 { payload_type } else { type_oid },
        type_modifier: -1,
    };
    let relation = Relation {
        oid: 1,
        namespace: "public".to_owned(),
        name: "outbox".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: COLUMNS.map(column).to_vec(),
    };
    Some((builder, OutboxTable::new(&relation, &Columns::default()).ok()?))
}

fn fits_amqp(event: &Event, message: &Message) {
    let given = &message.properties;
    let texts = [&*given.message_id, &given.kind, given.content_type, &message.routing_key];
    let correlation = given.correlation_id.as_deref();
    assert!(texts.into_iter().chain(correlation).all(|text| text.len() <= 255), "{given:?}");
    let mut names: Vec<&str> = given.headers.iter().map(|(name, _)| &**name).collect();
    assert!(names.iter().all(|name| name.len() <= 255), "{names:?}");
    assert!(!names.iter().any(|name| name.eq_ignore_ascii_case("cc") || name.eq_ignore_ascii_case("bcc")), "{names:?}");
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name twice: {names:?}");
    // The channel may find that it is too much for the frame that was negotiated; nothing else may be wrong any more.
    let sent =
        match properties(event.position, message, Sending { relay_epoch: i64::MAX, frame_max: FRAME_MAX as usize }) {
            Ok(sent) => sent,
            Err(poison) => return assert_eq!(poison.reason.as_str(), "headers_too_large", "{poison}"),
        };
    let encoded = encode(&sent);
    // Class, weight and the body's size go before the properties.
    assert!(2 + 2 + 8 + encoded.len() + FRAME_OVERHEAD <= FRAME_MAX as usize, "{} bytes", encoded.len());
    let Ok((rest, read)) = parse_properties(&encoded[..]) else { return assert!(encoded.is_empty(), "unreadable") };
    assert!(rest.is_empty());
    assert_eq!(read, sent, "as a consumer reads it");
    let position: Option<Position> = sent.headers().as_ref().and_then(|headers| {
        let AMQPValue::LongString(text) = headers.inner().get("x-postrider-position")? else { return None };
        text.to_string().parse().ok()
    });
    assert_eq!(position, Some(event.position));
}

/// What PostgreSQL sent is in the body, byte for byte: digits, order, repeated names and half surrogates as they were.
fn has_the_bytes(format: Format, payload_type: u32, row: &Tuple, message: &Message) {
    let text = |index: usize| match row.get(index) {
        Some(Value::Text(text)) => Some(text.as_ref()),
        _ => None,
    };
    let (payload, before) = (text(PAYLOAD), text(BEFORE));
    match (format, payload_type) {
        (Format::Payload, BYTEA) => {
            let digits: String = message.body.iter().map(|byte| format!("{byte:02x}")).collect();
            let sent = payload.map(|payload| String::from_utf8_lossy(payload).to_ascii_lowercase());
            assert_eq!(sent.unwrap_or_else(|| "\\x".to_owned()), format!("\\x{digits}"));
        }
        (Format::Payload, _) => assert_eq!(message.body.as_ref(), payload.unwrap_or_default()),
        (Format::Cdc, JSON | JSONB) => {
            let (payload, before) = (payload.unwrap_or(b"null"), before.unwrap_or(b"null"));
            let start = [br#"{"before":"#, before, br#","after":"#, payload, br#","source":{"#].concat();
            assert!(message.body.starts_with(&start), "{:?}", String::from_utf8_lossy(&message.body));
        }
        (Format::Cdc, _) => assert!(crate::event::cdc::is_json(&String::from_utf8_lossy(&message.body))),
        // What Debezium makes of it is compared in tests/it/debezium.rs.
        (Format::Debezium, _) => {}
    }
}

/// AMQP 0-9-1, 4.2.6.1, for the properties that are set.
fn encode(properties: &BasicProperties) -> Vec<u8> {
    let short = |out: &mut Vec<u8>, text: &str| {
        out.put_u8(u8::try_from(text.len()).unwrap_or(u8::MAX));
        out.put_slice(text.as_bytes());
    };
    let long = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        out.put_slice(bytes);
    };
    let (mut flags, mut out) = (0u16, Vec::new());
    if let Some(text) = properties.content_type() {
        flags |= 1 << 15;
        short(&mut out, text.as_str());
    }
    if let Some(headers) = properties.headers() {
        flags |= 1 << 13;
        let mut table = Vec::new();
        for (name, value) in headers.inner() {
            short(&mut table, name.as_str());
            match value {
                AMQPValue::LongString(text) => {
                    table.put_u8(b'S');
                    long(&mut table, text.as_bytes());
                }
                AMQPValue::LongLongInt(number) => {
                    table.put_u8(b'l');
                    table.put_i64(*number);
                }
                AMQPValue::Boolean(flag) => {
                    table.put_u8(b't');
                    table.put_u8((*flag).into());
                }
                other => assert!(out.is_empty() && table.is_empty(), "no header of ours is {other:?}"),
            }
        }
        long(&mut out, &table);
    }
    if let Some(mode) = properties.delivery_mode() {
        flags |= 1 << 12;
        out.put_u8(*mode);
    }
    if let Some(text) = properties.correlation_id() {
        flags |= 1 << 10;
        short(&mut out, text.as_str());
    }
    if let Some(text) = properties.message_id() {
        flags |= 1 << 7;
        short(&mut out, text.as_str());
    }
    if let Some(time) = properties.timestamp() {
        flags |= 1 << 6;
        out.put_u64(*time);
    }
    if let Some(text) = properties.kind() {
        flags |= 1 << 5;
        short(&mut out, text.as_str());
    }
    if let Some(text) = properties.app_id() {
        flags |= 1 << 3;
        short(&mut out, text.as_str());
    }
    [&flags.to_be_bytes(), &out[..]].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn with(payload: &str, headers: &str) -> Tuple {
        let fixed = ["6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11", "order", "42", "Placed", payload, "{}", "1", "7", headers];
        Tuple(fixed.into_iter().map(text).chain([Value::Null]).collect())
    }

    fn headers() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            proptest::sample::select(vec![
                "CC",
                "bcc",
                "x-death",
                "x-delay",
                "tenant",
                "correlation_id",
                "version",
                "traceparent"
            ])
            .prop_map(str::to_owned),
            "[a-zA-Z-]{0,8}",
            Just("n".repeat(255)),
            Just("n".repeat(256)),
        ];
        let value = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            Just("1e400".to_owned()),
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just(r#""\ud800""#.to_owned()),
            Just(format!("\"{}\"", "x".repeat(70_000))),
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
        proptest::collection::vec((name, value), 0..6).prop_map(|pairs| {
            let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
            format!("{{{}}}", pairs.join(", "))
        })
    }

    proptest! {
        #[test]
        fn whatever_bytes_a_row_has(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            check(&data);
        }

        #[test]
        fn whatever_texts_a_row_has(texts in proptest::collection::vec("[ -~äß\\u{0}]{0,300}", 10), choice in 0..10u8) {
            let format = if choice % 2 == 0 { Format::Cdc } else { Format::Payload };
            check_row(format, PAYLOADS[usize::from(choice / 2)], &Tuple(texts.iter().map(|each| text(each)).collect()));
        }

        #[test]
        fn whatever_headers_a_row_has(headers in headers()) {
            check_row(Format::Cdc, JSONB, &with("{}", &headers));
        }
    }

    /// What an application's JSON may hold and a parser would change, refuse or die of.
    #[test]
    fn payloads_pass_byte_for_byte() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let payloads = [
            r#"{"nul": "\u0000"}"#,
            deep.as_str(),
            r#"{"large": 1e400, "exact": 0.1000000000000000055511151231257827, "big": 123456789012345678901234567890}"#,
            r#"{"a": 1, "a": 2, "": 3}"#,
            r#"["\ud800", "\udc00\ud800", "\ud83d\ude00"]"#,
            "  {\"spaces\" :\t1\n}  ",
            "\"\u{2028}\u{feff}ß\u{10ffff}\"",
            "-0.0",
        ];
        for payload in payloads {
            for payload_type in [JSON, TEXT] {
                for format in [Format::Cdc, Format::Payload] {
                    let row = with(payload, r#"{"deep": [[[[]]]]}"#);
                    check_row(format, payload_type, &row);
                    let (builder, table) = outbox(format, payload_type).unwrap();
                    let context = RowContext {
                        commit_lsn: Lsn(7),
                        commit_time: UNIX_EPOCH,
                        xid: 1,
                        row_lsn: Lsn(6),
                        ordinal: 0,
                        epoch: 0,
                    };
                    let message = builder.build(&table, &row, &context, Ticket::NONE).content.unwrap();
                    let found = message.body.windows(payload.len()).any(|window| window == payload.as_bytes());
                    assert!(found, "{format:?} {payload_type} {payload:.60}");
                }
            }
        }
    }

    #[test]
    fn binary_payloads_of_all_bytes_pass_byte_for_byte() {
        let all: Vec<u8> = (0..=255).collect();
        let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
        let row = with(&format!("\\x{hex}"), "{}");
        for format in [Format::Cdc, Format::Payload] {
            check_row(format, BYTEA, &row);
        }
    }
}
