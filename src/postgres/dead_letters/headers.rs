//! AMQP headers as JSON: an object that keeps its order, of texts, integers and booleans.
//!
//! Whatever is not ASCII is escaped. So the JSON has the same characters in a database of any encoding, and a text that
//! such a database cannot hold (a NUL, or a letter that LATIN1 has not) is kept all the same.

use std::borrow::Cow;
use std::fmt::{self, Write};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::event::{Header, HeaderValue};

pub(super) fn to_json(headers: &[Header]) -> String {
    let mut json = String::from("{");
    for (at, (name, value)) in headers.iter().enumerate() {
        if at > 0 {
            json.push_str(", ");
        }
        push_text(&mut json, name);
        json.push_str(": ");
        match value {
            HeaderValue::Text(text) => push_text(&mut json, text),
            HeaderValue::Integer(number) => push(&mut json, format_args!("{number}")),
            HeaderValue::Bool(flag) => push(&mut json, format_args!("{flag}")),
        }
    }
    json.push('}');
    json
}

pub(super) fn text_to_json(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    push_text(&mut json, text);
    json
}

fn push_text(json: &mut String, text: &str) {
    json.push('"');
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte @ (b'"' | b'\\')) => json.extend(['\\', char::from(byte)]),
            Ok(byte @ b' '..=b'~') => json.push(char::from(byte)),
            _ => push(json, format_args!("\\u{unit:04x}")),
        }
    }
    json.push('"');
}

fn push(json: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    json.write_fmt(text).ok();
}

/// An error if it is nothing that [`to_json`] writes.
pub(crate) fn from_json(json: &str) -> Result<Vec<Header>, serde_json::Error> {
    serde_json::from_str(json).map(|Headers(headers)| headers)
}

pub(crate) fn text_from_json(json: &str) -> Result<String, serde_json::Error> {
    serde_json::from_str(json)
}

/// A map would forget the order.
struct Headers(Vec<Header>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts, integers and booleans")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, Scalar(value))) = map.next_entry()? {
                    headers.push((Cow::Owned(name), value));
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

struct Scalar(HeaderValue);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Any {
            Text(String),
            Integer(i64),
            Bool(bool),
        }
        Ok(Scalar(match Any::deserialize(deserializer)? {
            Any::Text(text) => HeaderValue::Text(text),
            Any::Integer(number) => HeaderValue::Integer(number),
            Any::Bool(flag) => HeaderValue::Bool(flag),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = HeaderValue> {
        prop_oneof![
            any::<String>().prop_map(HeaderValue::Text),
            any::<i64>().prop_map(HeaderValue::Integer),
            any::<bool>().prop_map(HeaderValue::Bool),
        ]
    }

    proptest! {
        #[test]
        fn headers_come_back_in_their_order_and_as_they_were(
            headers in proptest::collection::vec((any::<String>().prop_map(Cow::Owned), value()), 0..8)
        ) {
            let json = to_json(&headers);
            prop_assert!(json.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{json}");
            prop_assert_eq!(from_json(&json).unwrap(), headers);
        }

        #[test]
        fn texts_come_back_as_they_were(text in any::<String>()) {
            prop_assert_eq!(text_from_json(&text_to_json(&text)).unwrap(), text);
        }
    }

    #[test]
    fn what_text_cannot_hold_is_escaped() {
        let headers = [("a".into(), HeaderValue::Text("\0ä😀\"\\/".to_owned()))];
        assert_eq!(to_json(&headers), r#"{"a": "\u0000\u00e4\ud83d\ude00\"\\/"}"#);
        assert!(from_json(r#"{"a": [1]}"#).is_err() && from_json(r#"{"a": 1.5}"#).is_err());
    }
}
