//! Pieces of JSON, and numbers in Java's form.

use serde::Serialize;

pub(super) fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// Strings, and numbers that have a form in JSON.
pub(super) fn push_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "a Vec takes everything, and every text and number has a form in JSON");
}

pub(super) fn json(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    push_json(&mut out, text);
    out
}

/// As Jackson writes it: what JSON has no numbers for is a string.
pub(super) fn push_double(out: &mut Vec<u8>, number: f64) {
    push_non_finite_or(out, &java_double(number));
}

fn push_non_finite_or(out: &mut Vec<u8>, text: &str) {
    if text.ends_with(|last: char| last.is_ascii_digit()) {
        push(out, text);
    } else {
        push_json(out, text);
    }
}

/// `Double.toString`
pub(super) fn java_double(number: f64) -> String {
    /// From here on, and below the next one, Java writes an exponent.
    const LARGE: f64 = 1e7;
    const SMALL: f64 = 1e-3;
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = number.abs();
    if size == 0.0 || (SMALL..LARGE).contains(&size) {
        let text = number.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let point = if digits.contains('.') { "" } else { ".0" };
    format!("{digits}{point}E{exponent}")
}

/// A string of JSON as Jackson writes it, which matters where JSON is itself inside a string.
pub(super) fn jackson(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            control if control < ' ' => out.push_str(&format!("\\u{:04X}", u32::from(control))),
            _ => out.push(letter),
        }
    }
    out.push('"');
}
