//! `hstore`: pairs in the order in which Java's `HashMap` has them, which shows where the pairs are JSON in a string.

use super::text::{jackson, push, push_json};
use crate::config::Hstore;

type Pair = (String, Option<String>);

/// None: the text is not an hstore.
pub(super) fn push_hstore(out: &mut Vec<u8>, text: &str, handling: Hstore) -> Option<()> {
    let pairs = in_order_of_hash_map(parse(text)?);
    let mut object = String::with_capacity(text.len() + 2);
    object.push('{');
    for (index, (key, value)) in pairs.iter().enumerate() {
        if index > 0 {
            object.push(',');
        }
        jackson(&mut object, key);
        object.push(':');
        match value {
            Some(value) => jackson(&mut object, value),
            None => object.push_str("null"),
        }
    }
    object.push('}');
    match handling {
        Hstore::Json => push_json(out, &object),
        Hstore::Map => push(out, &object),
    }
    Some(())
}

/// `"a"=>"b", "c"=>NULL`; `"` and `\` have a `\` before them.
fn parse(text: &str) -> Option<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, behind) = quoted(rest)?;
        let behind = behind.strip_prefix("=>")?;
        let (value, behind) = match behind.strip_prefix("NULL") {
            Some(behind) => (None, behind),
            None => quoted(behind).map(|(value, behind)| (Some(value), behind))?,
        };
        pairs.push((key, value));
        rest = if behind.is_empty() { behind } else { behind.strip_prefix(", ")? };
    }
    Some(pairs)
}

/// The text between quotes, and what is behind them.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut letters = inside.char_indices();
    while let Some((index, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, inside.get(index + 1..)?)),
            '\\' => value.push(letters.next()?.1),
            _ => value.push(letter),
        }
    }
    None
}

/// By bucket, in each in the order in which they came.
fn in_order_of_hash_map(mut pairs: Vec<Pair>) -> Vec<Pair> {
    const SMALLEST: u32 = 16;
    let mut buckets = SMALLEST;
    while u64::try_from(pairs.len()).unwrap_or(u64::MAX) * 4 > u64::from(buckets) * 3 {
        buckets = buckets.saturating_mul(2);
    }
    pairs.sort_by_key(|(key, _)| {
        let hash = key.encode_utf16().fold(0_u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()));
        (hash ^ hash >> 16) & (buckets - 1)
    });
    pairs
}
