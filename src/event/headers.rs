//! What a row's `headers` may add to its message.
//!
//! A row is written by an application, perhaps from its own users' input; some headers mean something to the broker:
//! `CC` and `BCC` send copies to other queues, and a `CC` that is no array is a channel error (RabbitMQ, "Sender-selected
//! Distribution"). So nothing passes that the configuration does not name, and some names never do.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::outbox::Op;
use super::{HeaderValue, Poison, PoisonReason, Properties};

/// `frame_max` of RabbitMQ, unless the operator lowers it. A message's properties must fit one frame of that size
/// (AMQP 0-9-1, 4.2.6); a larger one makes the broker close the whole connection.
const FRAME_MAX: usize = 131_072;
/// Type, channel and size before a frame, and its end octet.
const FRAME_OVERHEAD: usize = 8;
/// For what is added at each send: `x-postrider-sent-at`, `x-postrider-relay-epoch` and `x-postrider-redelivered`.
const ADDED_LATER: usize = 256;
const MAX_ENCODED: usize = FRAME_MAX - FRAME_OVERHEAD - ADDED_LATER;
/// Of an AMQP short string, in bytes.
pub(super) const MAX_SHORT: usize = 255;

/// Set by us, or taken from the row's `headers` to a fixed place: the allow-list has no say in them.
const RESERVED: [&str; 10] = [
    "aggregateid",
    "aggregatetype",
    "causation_id",
    "correlation_id",
    "occurred_at",
    "postrider",
    "sequence",
    "traceparent",
    "tracestate",
    "version",
];

/// `allowed_headers` of the configuration: exact names, and prefixes that end in `*`.
#[derive(Debug)]
pub(super) struct AllowedHeaders {
    exact: Vec<String>,
    prefixes: Vec<String>,
}

impl AllowedHeaders {
    pub(super) fn new(patterns: &[String]) -> AllowedHeaders {
        let (mut exact, mut prefixes) = (Vec::new(), Vec::new());
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(prefix) => prefixes.push(prefix.to_owned()),
                None => exact.push(pattern.clone()),
            }
        }
        AllowedHeaders { exact, prefixes }
    }

    fn allows(&self, name: &str) -> bool {
        let starts_with = |prefix: &str| {
            name.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        };
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("cc") || is("bcc") || is("x-death") || starts_with("x-postrider-") || RESERVED.contains(&name) {
            return false;
        }
        // Names that begin with `x-` belong to the broker and its plugins: a prefix is too wide a permission for them.
        let by_prefix = !starts_with("x-") && self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()));
        by_prefix || self.exact.iter().any(|exact| exact == name)
    }
}

/// A row's `headers`, sorted out.
#[derive(Debug, Default, PartialEq)]
pub(super) struct RowHeaders {
    pub(super) correlation_id: Option<String>,
    pub(super) causation_id: Option<String>,
    pub(super) traceparent: Option<String>,
    pub(super) tracestate: Option<String>,
    /// `postrider`.
    pub(super) captured: Option<Box<Captured>>,
    /// What the allow-list lets through, sorted by name, each name once.
    pub(super) others: Vec<(String, HeaderValue)>,
}

/// What `postrider.capture` says of the table that an event is about. A row that an application writes could say it too, of itself.
#[derive(Debug, PartialEq)]
pub(super) struct Captured {
    /// Schema and name, in the place of the outbox's.
    pub(super) table: Option<(String, String)>,
    /// What payload and before alone cannot tell.
    pub(super) op: Option<Op>,
    /// Columns that are in neither image.
    pub(super) omitted: Vec<String>,
}

impl Captured {
    /// What is of another type than it should be is as if it were not there.
    fn parse(json: &str) -> Option<Box<Captured>> {
        #[derive(Deserialize)]
        struct Members<'a> {
            #[serde(borrow)]
            schema: Option<&'a RawValue>,
            #[serde(borrow)]
            table: Option<&'a RawValue>,
            #[serde(borrow)]
            op: Option<&'a RawValue>,
            #[serde(borrow)]
            omitted: Option<&'a RawValue>,
        }
        fn read<T: DeserializeOwned>(json: Option<&RawValue>) -> Option<T> {
            serde_json::from_str(json?.get()).ok()
        }
        // An array would be taken for the members in their order.
        let members: Members<'_> = json.starts_with('{').then(|| serde_json::from_str(json).ok())??;
        Some(Box::new(Captured {
            table: read(members.schema).zip(read(members.table)),
            op: read::<String>(members.op).and_then(|op| Op::named(&op)),
            omitted: read(members.omitted).unwrap_or_default(),
        }))
    }
}

impl RowHeaders {
    /// `text` is a JSON object, JSON null, or blank. `column` names it in errors.
    pub(super) fn parse(text: &str, column: &str, allowed: &AllowedHeaders) -> Result<RowHeaders, Poison> {
        let text = text.trim_ascii();
        if matches!(text, "" | "{}" | "null") {
            return Ok(RowHeaders::default());
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let collector = Collector { allowed, found: RowHeaders::default() };
        let collected = json.deserialize_map(collector).and_then(|found| json.end().map(|()| found));
        // The parser's own message could quote the value.
        let not_an_object =
            || Poison::new(PoisonReason::BadProperty, format!("column `{column}` is not a JSON object"));
        let mut found = collected.map_err(|_| not_an_object())?;
        // `json`, unlike `jsonb`, keeps repeated names: the last one counts, as everywhere in PostgreSQL.
        found.others.reverse();
        found.others.sort_by(|(a, _), (b, _)| a.cmp(b));
        found.others.dedup_by(|(later, _), (kept, _)| later == kept);
        Ok(found)
    }

    /// Refuses names that AMQP can't carry. Whether all of it fits a frame, [`check_size`] says.
    pub(super) fn check_names(&self) -> Result<(), Poison> {
        match self.others.iter().map(|(name, _)| name.len()).find(|size| *size > MAX_SHORT) {
            None => Ok(()),
            Some(size) => {
                let detail = format!("the name of a header has {size} bytes, and AMQP allows {MAX_SHORT}");
                Err(Poison::new(PoisonReason::BadProperty, detail))
            }
        }
    }
}

struct Collector<'a> {
    allowed: &'a AllowedHeaders,
    found: RowHeaders,
}

impl<'de> Visitor<'de> for Collector<'_> {
    type Value = RowHeaders;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value::<&'de RawValue>()?.get();
            let place = match name.as_str() {
                "correlation_id" => &mut self.found.correlation_id,
                "causation_id" => &mut self.found.causation_id,
                "traceparent" => &mut self.found.traceparent,
                "tracestate" => &mut self.found.tracestate,
                "postrider" => {
                    self.found.captured = Captured::parse(value);
                    continue;
                }
                // All of it, also beyond what a frame holds: then it goes into a dead letter.
                _ if self.allowed.allows(&name) => {
                    self.found.others.extend(header_value(value).map(|value| (name, value)));
                    continue;
                }
                _ => continue,
            };
            *place = header_text(value);
        }
        Ok(self.found)
    }
}

/// `json` is valid JSON text.
fn header_value(json: &str) -> Option<HeaderValue> {
    Some(match json {
        "null" => return None,
        "true" => HeaderValue::Bool(true),
        "false" => HeaderValue::Bool(false),
        _ => match json.parse() {
            Ok(integer) => HeaderValue::Integer(integer),
            Err(_) => HeaderValue::Text(header_text(json)?),
        },
    })
}

/// The content of a JSON string; of anything else its JSON text; nothing for null.
fn header_text(json: &str) -> Option<String> {
    if json == "null" {
        return None;
    }
    // A string of type `json` may hold half a surrogate pair, which is no text: then as it is written.
    let string = json.starts_with('"').then(|| serde_json::from_str(json).ok()).flatten();
    Some(string.unwrap_or_else(|| json.to_owned()))
}

/// Refuses properties that a frame cannot hold.
pub(super) fn check_size(properties: &Properties) -> Result<(), Poison> {
    let size = encoded_size(properties);
    if size <= MAX_ENCODED {
        return Ok(());
    }
    let detail = format!("properties and headers need {size} bytes, and {MAX_ENCODED} fit one frame");
    Err(Poison::new(PoisonReason::HeadersTooLarge, detail))
}

/// Bytes of the content header's payload (AMQP 0-9-1, 4.2.6.1): class, weight, body size and flags, then the properties.
fn encoded_size(properties: &Properties) -> usize {
    const FIXED: usize = 2 + 2 + 8 + 2 + DELIVERY_MODE + TIMESTAMP + APP_ID;
    const DELIVERY_MODE: usize = 1;
    const TIMESTAMP: usize = 8;
    const APP_ID: usize = 1 + "postrider".len();
    let short = |text: &str| 1 + text.len();
    FIXED
        + short(&properties.message_id)
        + short(&properties.kind)
        + short(properties.content_type)
        + properties.correlation_id.as_deref().map_or(0, short)
        + 4
        + properties.headers.iter().map(|(name, value)| short(name) + encoded_value(value)).sum::<usize>()
}

/// A type octet, and a long string (`S`), a 64-bit integer (`l`) or a boolean (`t`).
fn encoded_value(value: &HeaderValue) -> usize {
    1 + match value {
        HeaderValue::Text(text) => 4 + text.len(),
        HeaderValue::Integer(_) => 8,
        HeaderValue::Bool(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, allowed: &[&str]) -> Result<RowHeaders, Poison> {
        let allowed: Vec<_> = allowed.iter().map(|&name| name.to_owned()).collect();
        RowHeaders::parse(text, "headers", &AllowedHeaders::new(&allowed))
    }

    fn names(text: &str, allowed: &[&str]) -> Vec<String> {
        parse(text, allowed).unwrap().others.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn nothing_passes_that_is_not_allowed() {
        let text = r#"{"tenant": "a", "region": "b", "tenant_id": 1}"#;
        assert_eq!(names(text, &[]), [""; 0]);
        assert_eq!(names(text, &["tenant"]), ["tenant"]);
        assert_eq!(names(text, &["tenant*"]), ["tenant", "tenant_id"]);
        assert_eq!(names(text, &["*"]), ["region", "tenant", "tenant_id"]);
    }

    #[test]
    fn names_that_mean_something_to_the_broker_never_pass_by_accident() {
        let never = r#"{"CC": ["a"], "cc": "a", "BCC": "a", "bCc": "a", "x-postrider-position": "a",
            "X-Postrider-Sent-At": "a", "x-death": "a", "X-Death": "a"}"#;
        let exactly = ["CC", "cc", "BCC", "bCc", "x-postrider-position", "X-Postrider-Sent-At", "x-death", "X-Death"];
        assert_eq!(names(never, &exactly), [""; 0]);
        assert_eq!(names(never, &["*", "x-*", "C*", "B*"]), [""; 0]);
        let delay = r#"{"x-delay": 5000, "X-Other": 1}"#;
        assert_eq!(names(delay, &["*", "x-*", "x-del*", "X-*"]), [""; 0]);
        assert_eq!(names(delay, &["x-delay"]), ["x-delay"]);
    }

    #[test]
    fn our_own_names_are_ours() {
        let text = r#"{"aggregatetype": "x", "aggregateid": "x", "version": 9, "sequence": 9, "occurred_at": "x"}"#;
        let found = parse(text, &["*", "aggregatetype", "version"]).unwrap();
        assert_eq!(found, RowHeaders::default());
    }

    #[test]
    fn what_capture_says_is_read_and_never_a_header() {
        let captured = |value: &str| {
            let found = parse(&format!(r#"{{"postrider": {value}}}"#), &["*", "postrider"]).unwrap();
            assert_eq!(found.others, []);
            found.captured.map(|captured| (captured.table, captured.op, captured.omitted.join(" ")))
        };
        let table = Some(("public".to_owned(), "orders".to_owned()));
        assert_eq!(captured(r#"{"schema": "public", "table": "orders"}"#), Some((table.clone(), None, String::new())));
        let whole = r#"{"schema": "public", "table": "orders", "op": "t", "omitted": ["a", "b"], "later": {}}"#;
        assert_eq!(captured(whole), Some((table.clone(), Some(Op::Truncate), "a b".to_owned())));
        let wrong = r#"{"schema": "public", "table": "orders", "op": "x", "omitted": [1]}"#;
        assert_eq!(captured(wrong), Some((table, None, String::new())));
        for half in [r#"{"schema": "public"}"#, r#"{"schema": "public", "table": 1}"#, r#"{"table": null, "op": 5}"#] {
            assert_eq!(captured(half), Some((None, None, String::new())), "{half}");
        }
        for nothing in ["null", "true", "\"orders\"", r#"["a", "b", "t", []]"#] {
            assert_eq!(captured(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn correlation_and_tracing_need_no_permission() {
        let text = r#"{"correlation_id": "c", "causation_id": 7, "traceparent": "00-x", "tracestate": null}"#;
        let found = parse(text, &["*"]).unwrap();
        assert_eq!(found.correlation_id.as_deref(), Some("c"));
        assert_eq!(found.causation_id.as_deref(), Some("7"));
        assert_eq!(found.traceparent.as_deref(), Some("00-x"));
        assert_eq!(found.tracestate, None);
        assert_eq!(found.others, []);
    }

    #[test]
    fn values_keep_their_kind_where_amqp_has_it() {
        let text = r#"{"a": "te\"xt", "b": -5, "c": true, "d": null, "e": 1.50, "f": {"x": [1, 2]},
            "g": 9223372036854775808, "h": false, "i": "\ud800"}"#;
        let written = |text: &str| HeaderValue::Text(text.to_owned());
        let expected = [
            ("a", written("te\"xt")),
            ("b", HeaderValue::Integer(-5)),
            ("c", HeaderValue::Bool(true)),
            ("e", written("1.50")),
            ("f", written(r#"{"x": [1, 2]}"#)),
            ("g", written("9223372036854775808")),
            ("h", HeaderValue::Bool(false)),
            ("i", written(r#""\ud800""#)),
        ];
        assert_eq!(parse(text, &["*"]).unwrap().others, expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn of_repeated_names_the_last_counts() {
        let found = parse(r#"{"a": 1, "b": 2, "a": 3, "correlation_id": "x", "correlation_id": "y"}"#, &["*"]).unwrap();
        let integer = |name: &str, value| (name.to_owned(), HeaderValue::Integer(value));
        assert_eq!(found.others, [integer("a", 3), integer("b", 2)]);
        assert_eq!(found.correlation_id.as_deref(), Some("y"));
    }

    #[test]
    fn nothing_is_no_headers_and_anything_else_but_an_object_is_poison() {
        for nothing in ["", " ", "{}", "null", "{ }"] {
            assert_eq!(parse(nothing, &["*"]), Ok(RowHeaders::default()));
        }
        for wrong in ["[]", "1", "\"secret\"", "{", "{} x", "true"] {
            let poison = parse(wrong, &["*"]).unwrap_err();
            assert_eq!(poison.to_string(), "bad_property: column `headers` is not a JSON object", "{wrong}");
        }
    }

    #[test]
    fn a_name_over_255_bytes_is_poison_only_where_it_would_pass() {
        let text = format!(r#"{{"{}": 1}}"#, "n".repeat(256));
        assert_eq!(parse(&text, &[]), Ok(RowHeaders::default()));
        let poison = parse(&text, &["n*"]).unwrap().check_names().unwrap_err();
        assert_eq!(poison.to_string(), "bad_property: the name of a header has 256 bytes, and AMQP allows 255");
    }

    #[test]
    fn deep_nesting_is_a_header_like_any_other() {
        let nested = format!(r#"{{"a": {}{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        assert_eq!(names(&nested, &["a"]), ["a"]);
    }
}
