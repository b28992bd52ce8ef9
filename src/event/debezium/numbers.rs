//! `numeric`, `money` and bits: as bytes, big-endian or little-endian, in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::text::{push, push_double, push_json};
use crate::config::Decimals;

/// A decimal number: its digits as an integer, and how many of them are behind the point.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Without leading zeros; empty is 0.
    digits: String,
    scale: usize,
}

impl Decimal {
    /// As PostgreSQL prints them: never with an exponent.
    fn parse(text: &str) -> Option<Decimal> {
        let (negative, unsigned) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let mut digits = String::with_capacity(whole.len() + fraction.len());
        digits.push_str(whole.trim_start_matches('0'));
        digits.push_str(if digits.is_empty() { fraction.trim_start_matches('0') } else { fraction });
        let numeric = digits.bytes().all(|digit| digit.is_ascii_digit()) && !unsigned.is_empty();
        numeric.then_some(Decimal { negative, digits, scale: fraction.len() })
    }

    /// None if digits would be lost.
    fn rescaled(mut self, scale: usize) -> Option<Decimal> {
        while self.scale > scale && (self.digits.is_empty() || self.digits.ends_with('0')) {
            self.digits.pop();
            self.scale -= 1;
        }
        if self.scale < scale && !self.digits.is_empty() {
            self.digits.extend(std::iter::repeat_n('0', scale - self.scale));
            self.scale = scale;
        }
        (self.scale == scale || self.digits.is_empty()).then_some(Decimal { scale, ..self })
    }

    /// Without zeros at the end of the fraction.
    fn stripped(mut self) -> Decimal {
        while self.scale > 0 && (self.digits.is_empty() || self.digits.ends_with('0')) {
            self.digits.pop();
            self.scale -= 1;
        }
        self
    }

    fn push_plain(&self, out: &mut String) {
        if self.negative && !self.digits.is_empty() {
            out.push('-');
        }
        let whole = self.digits.len().saturating_sub(self.scale);
        let (before, behind) = self.digits.split_at_checked(whole).unwrap_or(("", ""));
        out.push_str(if before.is_empty() { "0" } else { before });
        if self.scale > 0 {
            out.push('.');
            out.extend(std::iter::repeat_n('0', self.scale - behind.len()));
            out.push_str(behind);
        }
    }

    fn push_base64(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        push(out, &STANDARD.encode(self.twos_complement()));
        out.push(b'"');
    }

    /// `BigInteger.toByteArray`: as few bytes as can be.
    fn twos_complement(&self) -> Vec<u8> {
        let mut bytes = match self.digits.parse::<u128>() {
            Ok(number) => number.to_be_bytes().to_vec(),
            Err(_) => magnitude(&self.digits),
        };
        bytes.insert(0, 0);
        if self.negative {
            let mut carry = true;
            for byte in bytes.iter_mut().rev() {
                (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
            }
        }
        let sign = if self.negative && !self.digits.is_empty() { 0xff } else { 0 };
        // A byte that only repeats the sign bit of the next one says nothing.
        let idle = |pair: &[u8]| matches!(pair, [first, second] if *first == sign && (second ^ sign) < 0x80);
        let spare = bytes.windows(2).take_while(|pair| idle(pair)).count();
        bytes.split_off(spare)
    }
}

/// Of any number of digits, big-endian. Empty digits are 0.
fn magnitude(digits: &str) -> Vec<u8> {
    /// Digits that are taken at a time.
    const STEP: usize = 9;
    let mut limbs: Vec<u32> = Vec::new();
    for chunk in digits.as_bytes().chunks(STEP) {
        let value = chunk.iter().fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
        let factor = chunk.iter().fold(1_u64, |factor, _| factor * 10);
        let mut carry = value;
        for limb in &mut limbs {
            let product = u64::from(*limb) * factor + carry;
            let [a, b, c, d, e, f, g, h] = product.to_le_bytes();
            *limb = u32::from_le_bytes([a, b, c, d]);
            carry = u64::from(u32::from_le_bytes([e, f, g, h]));
        }
        if let Some(limb) = u32::try_from(carry).ok().filter(|limb| *limb > 0) {
            limbs.push(limb);
        }
    }
    limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect()
}

/// A value that no decimal number can be, as Debezium names it in the mode `string`.
fn special(text: &str) -> Option<(&'static str, &'static str)> {
    match text {
        "NaN" => Some(("NaN", "NAN")),
        "Infinity" => Some(("Infinity", "POSITIVE_INFINITY")),
        "-Infinity" => Some(("-Infinity", "NEGATIVE_INFINITY")),
        _ => None,
    }
}

pub(super) fn is_special(text: &str) -> bool {
    special(text).is_some()
}

/// None: the text is not a number, or has more digits than the scale.
pub(super) fn push_decimal(out: &mut Vec<u8>, text: &str, decimals: Decimals, scale: Option<usize>) -> Option<()> {
    if let Some((java, debezium)) = special(text) {
        match decimals {
            Decimals::Precise => push(out, "null"),
            Decimals::String => push_json(out, debezium),
            Decimals::Double => push_json(out, java),
        }
        return Some(());
    }
    let decimal = Decimal::parse(text)?;
    let decimal = if let Some(scale) = scale { decimal.rescaled(scale)? } else { decimal };
    push_form(out, decimal, text, decimals, scale.is_none())
}

fn push_form(out: &mut Vec<u8>, decimal: Decimal, text: &str, decimals: Decimals, variable: bool) -> Option<()> {
    match decimals {
        Decimals::Precise if variable => {
            let decimal = decimal.stripped();
            push(out, r#"{"scale":"#);
            push_json(out, &decimal.scale);
            push(out, r#","value":"#);
            decimal.push_base64(out);
            out.push(b'}');
        }
        Decimals::Precise => decimal.push_base64(out),
        Decimals::String => {
            let mut plain = String::with_capacity(decimal.digits.len() + 3);
            decimal.push_plain(&mut plain);
            push_json(out, &plain);
        }
        Decimals::Double => push_double(out, text.parse().ok()?),
    }
    Some(())
}

/// `-$1,234.56`, in the locale of the server: two digits behind the last mark that is no digit.
pub(super) fn push_money(out: &mut Vec<u8>, text: &str, decimals: Decimals) -> Option<()> {
    const FRACTION: usize = 2;
    let negative = text.contains('-') || text.contains('(');
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let split = digits.len().checked_sub(FRACTION)?;
    let (whole, fraction) = digits.split_at_checked(split)?;
    let plain = format!("{}{whole}.{fraction}", if negative { "-" } else { "" });
    push_form(out, Decimal::parse(&plain)?, &plain, decimals, false)
}

/// The last digit is the lowest bit of the first byte; bytes of zeros at the end are not there. As in Debezium all
/// that is no 1 is a 0, which shows in defaults.
pub(super) fn bits(text: &str) -> Vec<u8> {
    let significant = text.find('1').and_then(|first| text.get(first..)).unwrap_or_default();
    let byte = |chunk: &[u8]| chunk.iter().fold(0, |byte, digit| byte << 1 | u8::from(*digit == b'1'));
    significant.as_bytes().rchunks(8).map(byte).collect()
}
