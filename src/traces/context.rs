//! The producer's trace context, as W3C Trace Context writes it into `traceparent` and `tracestate`.

use opentelemetry::trace::{SpanId, TraceId};

use crate::event::{Event, HeaderValue};

/// Length of version 00: `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;
/// Bit of the flags: the producer records its spans, or may.
const SAMPLED: u8 = 0x01;

/// A valid `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceParent {
    pub(crate) trace_id: TraceId,
    /// Of the producer's span.
    pub(crate) span_id: SpanId,
    pub(crate) sampled: bool,
}

impl TraceParent {
    /// `None`: the event carries none, or one that is not valid. Consumers get it as it is, and ignore it by the same rules.
    pub(crate) fn of(event: &Event) -> Option<TraceParent> {
        TraceParent::parse(header(event, "traceparent")?)
    }

    /// Version 00 is exactly this; a later one may have more after another dash. Digits are lower-case, version ff and ids
    /// of zeros are not valid.
    fn parse(text: &str) -> Option<TraceParent> {
        let fields = text.get(..LENGTH)?;
        let more = text.get(LENGTH..)?;
        let mut fields = fields.split('-');
        let version = digits(fields.next()?, 2)?;
        let trace_id = TraceId::from(digits(fields.next()?, 32)?);
        let span_id = SpanId::from(u64::try_from(digits(fields.next()?, 16)?).ok()?);
        let flags = u8::try_from(digits(fields.next()?, 2)?).ok()?;
        let fits = match version {
            0xff => false,
            0 => more.is_empty(),
            _ => more.is_empty() || more.starts_with('-'),
        };
        let valid = fits && trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
        valid.then_some(TraceParent { trace_id, span_id, sampled: flags & SAMPLED != 0 })
    }
}

/// `tracestate`, as it came.
pub(super) fn trace_state(event: &Event) -> Option<&str> {
    header(event, "tracestate")
}

fn header<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    event.message()?.properties.headers.iter().find_map(|(header, value)| match value {
        HeaderValue::Text(text) if header == name => Some(text.as_str()),
        _ => None,
    })
}

fn digits(text: &str, count: usize) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != count || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn sampled(text: &str) -> Option<bool> {
        TraceParent::parse(text).map(|parent| parent.sampled)
    }

    #[test]
    fn a_valid_one_gives_its_ids_and_its_flag() {
        let parent = TraceParent::parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!((parent.trace_id.to_string(), parent.span_id.to_string()), (TRACE.to_owned(), SPAN.to_owned()));
        assert!(parent.sampled);
        assert_eq!(sampled(&format!("00-{TRACE}-{SPAN}-00")), Some(false));
        // Other flags say nothing of sampling.
        assert_eq!(sampled(&format!("00-{TRACE}-{SPAN}-02")), Some(false));
        assert_eq!(sampled(&format!("00-{TRACE}-{SPAN}-03")), Some(true));
    }

    #[test]
    fn of_a_later_version_what_is_known_is_read() {
        assert_eq!(sampled(&format!("01-{TRACE}-{SPAN}-01")), Some(true));
        assert_eq!(sampled(&format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like")), Some(true));
        assert_eq!(sampled(&format!("cc-{TRACE}-{SPAN}-01.what")), None);
        assert_eq!(sampled(&format!("cc-{TRACE}-{SPAN}-010")), None);
    }

    #[test]
    fn what_the_recommendation_calls_invalid_is_none() {
        let (zeros, short) = ("0".repeat(32), &TRACE[..31]);
        for text in [
            String::new(),
            "00".to_owned(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("0X-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{short}-{SPAN}-01"),
            format!("00-{short}-{SPAN}-011"),
            format!("00-{TRACE}0-{SPAN}-1"),
            format!("00-{TRACE}-+0f067aa0ba902b-01"),
            format!(" 0-{TRACE}-{SPAN}-01"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{short}ä{SPAN}-01"),
        ] {
            assert_eq!(TraceParent::parse(&text), None, "{text}");
        }
    }
}
