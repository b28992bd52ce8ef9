//! What cannot be published, and what is said of it.

use super::*;

fn poison(event: &Event) -> String {
    event.content.as_ref().unwrap_err().to_string()
}

/// The event of a full row with one value changed.
fn with(index: usize, value: Value) -> Event {
    let Tuple(mut values) = row(&FULL_ROW);
    values[index] = value;
    builder(Format::Cdc).build(&table(&OURS), &Tuple(values), &context(), TICKET)
}

fn with_text(index: usize, text: &str) -> Event {
    with(index, Value::Text(Bytes::copy_from_slice(text.as_bytes())))
}

#[test]
fn a_null_where_there_must_be_none_is_poison_and_keeps_its_place() {
    for (index, column) in ["id", "aggregatetype", "aggregateid", "type"].into_iter().enumerate() {
        let event = with(index, Value::Null);
        assert_eq!(poison(&event), format!("bad_property: column `{column}` is null"));
        assert_eq!(event.position.ordinal, 3);
    }
    assert_eq!(&*with(0, Value::Null).id, "");
    assert_eq!(&*with(1, Value::Null).key, "\u{1f}42");
    assert_eq!(&*with(2, Value::Null).key, "order\u{1f}");
}

#[test]
fn bytes_that_are_not_utf8_are_poison_in_every_column() {
    for (index, (column, _)) in OURS.into_iter().enumerate() {
        let event = with(index, Value::Text(Bytes::from_static(b"a\xffb")));
        assert_eq!(poison(&event), format!("not_utf8: column `{column}` is not UTF-8"));
    }
    let event = with(2, Value::Text(Bytes::from_static(b"a\xffb")));
    assert_eq!(&*event.key, "order\u{1f}a\u{fffd}b");
}

#[test]
fn what_the_session_did_not_ask_for_is_poison() {
    assert_eq!(poison(&with(4, Value::Unchanged)), "bad_property: column `payload` came without its value");
    assert_eq!(poison(&with(4, Value::Binary(Bytes::new()))), "bad_property: column `payload` came in binary format");
    let short = builder(Format::Cdc).build(&table(&OURS), &row(&FULL_ROW[..4]), &context(), TICKET);
    assert_eq!(poison(&short), "bad_property: column `payload` is beyond the end of the row");
    for bad in ["00ff", "\\x0", "\\xzz", "\\x+1"] {
        let event = build(Format::Cdc, &five(BYTEA), &[Some("1"), Some("a"), Some("b"), Some("C"), Some(bad)]);
        assert_eq!(poison(&event), "bad_property: column `payload` is not in the hexadecimal form of bytea");
    }
}

#[test]
fn what_amqp_calls_a_short_string_has_255_bytes() {
    let (fits, too_long) = ("ä".repeat(127) + "a", "ä".repeat(128));
    assert!(with_text(0, &fits).content.is_ok());
    let event = with_text(0, &too_long);
    assert_eq!(poison(&event), "bad_property: the id has 256 bytes, and AMQP allows 255");
    assert_eq!(*event.id, *too_long, "a dead letter is known by all of it");
    assert_eq!(poison(&with_text(3, &too_long)), "bad_property: the type has 256 bytes, and AMQP allows 255");
    let event = with_text(3, &fits);
    assert_eq!(poison(&event), "bad_property: the routing key has 261 bytes, and AMQP allows 255");
    let headers = format!(r#"{{"correlation_id": "{too_long}"}}"#);
    assert_eq!(poison(&with_text(8, &headers)), "bad_property: the correlation_id has 256 bytes, and AMQP allows 255");
}

#[test]
fn headers_that_are_no_object_are_poison() {
    assert_eq!(poison(&with_text(8, "[1]")), "bad_property: column `headers` is not a JSON object");
}

#[test]
fn a_body_over_the_limit_is_poison() {
    let exact = message(build(Format::Cdc, &OURS, &FULL_ROW)).body.len();
    let limited = |max| {
        let builder = builder_with(Format::Cdc, "{type}", max);
        builder.build(&table(&OURS), &row(&FULL_ROW), &context(), TICKET)
    };
    assert!(limited(exact).content.is_ok());
    let expected = format!("too_large: a body of {exact} bytes; `max_message_bytes` is {}", exact - 1);
    assert_eq!(poison(&limited(exact - 1)), expected);

    let values = [Some("1"), Some("a"), Some("b"), Some("C"), Some("\\x00ff10")];
    let payload =
        |max| builder_with(Format::Payload, "", max).build(&table(&five(BYTEA)), &row(&values), &context(), TICKET);
    assert!(payload(3).content.is_ok());
    assert_eq!(poison(&payload(2)), "too_large: a body of 3 bytes; `max_message_bytes` is 2");
}

#[test]
fn headers_that_no_frame_holds_are_poison() {
    let headers = |length: usize| format!(r#"{{"big": "{}"}}"#, "x".repeat(length));
    assert!(with_text(8, &headers(128 * 1024 - 1_024)).content.is_ok());
    let event = with_text(8, &headers(128 * 1024 - 300));
    assert!(poison(&event).starts_with("headers_too_large: properties and headers need 131"), "{}", poison(&event));
    let many: Vec<_> = (0..20_000).map(|number| format!(r#""big-{number}": "{number}""#)).collect();
    let event = with_text(8, &format!("{{{}}}", many.join(",")));
    assert!(poison(&event).starts_with("headers_too_large: properties and headers need 37"), "{}", poison(&event));
    let event = with_text(2, &"x".repeat(128 * 1024));
    assert!(poison(&event).starts_with("headers_too_large"), "{}", poison(&event));
    assert_eq!(event.key.len(), 1_024);
}
