//! `Float.toString` as Java has it up to version 18, which Debezium runs on: it may write more digits than the
//! shortest text has, and those are another number to whoever reads them as a double.
//!
//! Digits are taken one after the other until what is left is less than half the distance to the next float, in the
//! manner of Steele and White; integers are printed exactly, but for digits that the float does not determine.

use std::cmp::Ordering;
use std::f64::consts::LOG10_2;

/// Of a significand with its leading bit.
const BITS: i32 = 24;

/// Of a number that is finite, and not 0: digits with a point behind the first, and an exponent.
pub(super) fn java_float(number: f32) -> String {
    let bits = number.abs().to_bits();
    let (exponent, fraction) = (bits >> 23, bits & 0x7f_ffff);
    let exponent = i32::try_from(exponent).unwrap_or_default();
    // Of the leading bit, and how many bits there are from it on.
    let (significand, scale, significant) = match exponent {
        0 => (fraction, -149, BITS - (i32::try_from(fraction.leading_zeros()).unwrap_or_default() - 8)),
        _ => (fraction | 0x80_0000, exponent - 150, BITS),
    };
    let trailing = i32::try_from(significand.trailing_zeros()).unwrap_or_default();
    let (significand, scale) = (significand >> trailing, scale + trailing);
    let length = 32 - i32::try_from(significand.leading_zeros()).unwrap_or_default();
    let leading = scale + length - 1;
    let (digits, point) = if scale >= 0 && leading <= 62 {
        integer(u64::from(significand) << scale, leading - significant - 1)
    } else {
        fractional(significand, scale, length, leading, significant)
    };
    let sign = if number < 0.0 { "-" } else { "" };
    let (first, rest) = digits.split_at_checked(1).unwrap_or((&digits, ""));
    format!("{sign}{first}.{}e{}", if rest.is_empty() { "0" } else { rest }, point - 1)
}

/// `spare`: the power of two below which the digits say nothing.
fn integer(number: u64, spare: i32) -> (String, i32) {
    let mut number = number;
    let mut point = 0;
    // So many decimal digits are less than that power of two.
    let digits = if spare > 1 { u32::try_from(spare).unwrap_or_default() * 30_103 / 100_000 } else { 0 };
    if let Some(unit) = 10_u64.checked_pow(digits).filter(|unit| *unit > 1) {
        let up = number % unit >= unit / 2;
        number = number / unit + u64::from(up);
        point += i32::try_from(digits).unwrap_or_default();
    }
    let text = number.to_string();
    point += i32::try_from(text.len()).unwrap_or_default();
    (text.trim_end_matches('0').to_owned(), point)
}

/// The number is `significand * 2^scale`.
fn fractional(significand: u32, scale: i32, length: i32, leading: i32, significant: i32) -> (String, i32) {
    let mut point = estimate(significand, length, leading);
    // value / 10^point as a fraction, and half the distance to the next float over the same denominator.
    let mut value = Big::from(significand);
    let mut unit = Big::from(1);
    let mut half = Big::from(1);
    let half_scale = leading - significant - i32::from(length == 1);
    // All three times a power of two that makes them integers.
    let lowest = scale.min(half_scale).min(0);
    value.scale(2, scale - lowest);
    half.scale(2, half_scale - lowest);
    unit.scale(2, -lowest);
    if point >= 0 {
        unit.scale(10, point);
    } else {
        value.scale(10, -point);
        half.scale(10, -point);
    }
    let mut tens = unit.clone();
    tens.scale(10, 1);

    let mut digits = Vec::new();
    let digit = value.take(&unit);
    value.scale(10, 1);
    half.scale(10, 1);
    let (mut low, mut high) = (value.less(&half), value.reaches(&half, &tens));
    if digit == 0 && !high {
        point -= 1;
    } else {
        digits.push(digit);
    }
    // With an exponent, one digit is never enough.
    if !(-3..8).contains(&point) {
        (low, high) = (false, false);
    }
    while !low && !high {
        digits.push(value.take(&unit));
        value.scale(10, 1);
        half.scale(10, 1);
        (low, high) = (value.less(&half), value.reaches(&half, &tens));
    }
    let odd = digits.last().is_some_and(|last| last % 2 == 1);
    let up = match value.doubled_cmp(&tens) {
        _ if !high => false,
        _ if !low => true,
        Ordering::Equal => odd,
        ordering => ordering == Ordering::Greater,
    };
    if up {
        round_up(&mut digits, &mut point);
    }
    let text: String = digits.iter().filter_map(|digit| char::from_digit(*digit, 10)).collect();
    (text.trim_end_matches('0').to_owned(), point + 1)
}

fn round_up(digits: &mut [u32], point: &mut i32) {
    for digit in digits.iter_mut().rev() {
        if *digit < 9 {
            *digit += 1;
            return;
        }
        *digit = 0;
    }
    if let Some(first) = digits.first_mut() {
        *first = 1;
    }
    *point += 1;
}

/// Of the power of ten, by a tangent to the logarithm. It may be one too high.
fn estimate(significand: u32, length: i32, leading: i32) -> i32 {
    let normal = f64::from(significand) / 2_f64.powi(length - 1);
    let logarithm = (normal - 1.5) * 0.289_529_654 + 0.176_091_259 + f64::from(leading) * LOG10_2;
    // Within ±46.
    format!("{:.0}", logarithm.floor()).parse().unwrap_or_default()
}

/// An integer of any size, in limbs, the lowest first.
#[derive(Clone, Debug)]
struct Big(Vec<u32>);

impl Big {
    fn from(number: u32) -> Big {
        Big(vec![number])
    }

    /// Times a power; of a negative one nothing is left out, because it is never asked for.
    fn scale(&mut self, base: u32, power: i32) {
        for _ in 0..power {
            let mut carry = 0_u64;
            for limb in &mut self.0 {
                let product = u64::from(*limb) * u64::from(base) + carry;
                let [a, b, c, d, ..] = product.to_le_bytes();
                *limb = u32::from_le_bytes([a, b, c, d]);
                carry = product >> 32;
            }
            if let Some(limb) = u32::try_from(carry).ok().filter(|limb| *limb > 0) {
                self.0.push(limb);
            }
        }
    }

    fn cmp(&self, other: &Big) -> Ordering {
        let longest = self.0.len().max(other.0.len());
        let limb = |big: &Big, index: usize| big.0.get(index).copied().unwrap_or_default();
        let differ = (0..longest).rev().map(|index| limb(self, index).cmp(&limb(other, index)));
        differ.into_iter().find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
    }

    fn less(&self, other: &Big) -> bool {
        self.cmp(other).is_lt()
    }

    /// Whether this and `more` come to `limit`.
    fn reaches(&self, more: &Big, limit: &Big) -> bool {
        let mut sum = self.clone();
        sum.add(more);
        sum.cmp(limit).is_gt()
    }

    fn doubled_cmp(&self, other: &Big) -> Ordering {
        let mut doubled = self.clone();
        doubled.scale(2, 1);
        doubled.cmp(other)
    }

    fn add(&mut self, other: &Big) {
        self.0.resize(self.0.len().max(other.0.len()) + 1, 0);
        let mut carry = false;
        for (index, limb) in self.0.iter_mut().enumerate() {
            let (sum, first) = limb.overflowing_add(other.0.get(index).copied().unwrap_or_default());
            let (sum, second) = sum.overflowing_add(u32::from(carry));
            (*limb, carry) = (sum, first || second);
        }
    }

    /// Of two numbers the first is at least as large.
    fn subtract(&mut self, other: &Big) {
        let mut borrow = false;
        for (index, limb) in self.0.iter_mut().enumerate() {
            let (rest, first) = limb.overflowing_sub(other.0.get(index).copied().unwrap_or_default());
            let (rest, second) = rest.overflowing_sub(u32::from(borrow));
            (*limb, borrow) = (rest, first || second);
        }
    }

    /// Divides, which leaves the rest here. The quotient is a digit.
    fn take(&mut self, divisor: &Big) -> u32 {
        let mut digit = 0;
        while !self.less(divisor) {
            self.subtract(divisor);
            digit += 1;
        }
        digit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_java_17_writes() {
        // Recorded.
        for (number, text) in [
            (1.5_f32, "1.5e0"),
            (0.1, "1.0e-1"),
            (-2.0, "-2.0e0"),
            (f32::from_bits(1), "1.4e-45"),
            (f32::from_bits(7), "9.8e-45"),
            (f32::from_bits(8), "1.1e-44"),
            (f32::from_bits(16), "2.24e-44"),
            (f32::MIN_POSITIVE, "1.17549435e-38"),
            (f32::MAX, "3.4028235e38"),
            (123_456_792.0, "1.23456792e8"),
            ("1.18846831e13".parse().unwrap(), "1.18846831e13"),
            ("2.17212777e15".parse().unwrap(), "2.17212777e15"),
            (160_043_808.0, "1.60043808e8"),
        ] {
            assert_eq!(java_float(number), text);
        }
    }
}
