//! Why a message is a dead letter, and where it was before: what RabbitMQ adds to its headers.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

/// As the headers tell it. RabbitMQ keeps an entry of `x-death` for each pair of queue and reason, the latest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Death {
    pub first_queue: Option<String>,
    pub first_reason: Option<String>,
    pub first_exchange: Option<String>,
    /// How often it has died, of all entries.
    pub count: u64,
    /// Seconds since 1970 of the latest entry.
    pub time: Option<u64>,
    /// With which it was published before it died first.
    pub routing_keys: Vec<String>,
}

impl Death {
    pub fn of(properties: &BasicProperties) -> Death {
        let Some(headers) = properties.headers() else { return Death::default() };
        let entries: Vec<&FieldTable> = match headers.inner().get("x-death") {
            Some(AMQPValue::FieldArray(entries)) => entries.as_slice().iter().filter_map(table).collect(),
            _ => Vec::new(),
        };
        let oldest = entries.last().copied();
        // The fixed headers never change; of the array others may have taken entries away.
        let first = |fixed: &str, name: &str| {
            let known = headers.inner().get(fixed).and_then(text);
            known.or_else(|| oldest?.inner().get(name).and_then(text))
        };
        Death {
            first_queue: first("x-first-death-queue", "queue").filter(|queue| !queue.is_empty()),
            first_reason: first("x-first-death-reason", "reason"),
            first_exchange: first("x-first-death-exchange", "exchange"),
            count: entries.iter().map(|entry| entry.inner().get("count").and_then(number).unwrap_or(1)).sum(),
            time: entries.first().and_then(|entry| entry.inner().get("time")).and_then(number),
            routing_keys: match oldest.and_then(|entry| entry.inner().get("routing-keys")) {
                Some(AMQPValue::FieldArray(keys)) => keys.as_slice().iter().filter_map(text).collect(),
                _ => Vec::new(),
            },
        }
    }
}

fn table(value: &AMQPValue) -> Option<&FieldTable> {
    match value {
        AMQPValue::FieldTable(table) => Some(table),
        _ => None,
    }
}

fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::LongLongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongUInt(number) => Some(u64::from(*number)),
        AMQPValue::Timestamp(seconds) => Some(*seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(queue: &str, reason: &str, count: i64, time: u64) -> AMQPValue {
        let long = |text: &str| AMQPValue::LongString(text.into());
        let mut table = FieldTable::default();
        for (name, value) in [
            ("queue", long(queue)),
            ("reason", long(reason)),
            ("exchange", long("events")),
            ("count", AMQPValue::LongLongInt(count)),
            ("time", AMQPValue::Timestamp(time)),
            ("routing-keys", AMQPValue::FieldArray(vec![long(&format!("to.{queue}"))].into())),
        ] {
            table.insert(name.into(), value);
        }
        AMQPValue::FieldTable(table)
    }

    fn death(headers: &[(&str, AMQPValue)]) -> Death {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        Death::of(&BasicProperties::default().with_headers(table))
    }

    #[test]
    fn the_first_death_says_where_it_was_and_the_latest_when() {
        let deaths =
            AMQPValue::FieldArray(vec![entry("retry", "expired", 2, 20), entry("billing", "rejected", 3, 10)].into());
        let found = death(&[("x-death", deaths.clone())]);
        assert_eq!((found.first_queue.as_deref(), found.first_reason.as_deref()), (Some("billing"), Some("rejected")));
        assert_eq!((found.count, found.time, found.routing_keys), (5, Some(20), vec!["to.billing".to_owned()]));
        let fixed = ("x-first-death-queue", AMQPValue::LongString("orders".into()));
        assert_eq!(
            death(&[("x-death", deaths), fixed]).first_queue.as_deref(),
            Some("orders"),
            "the fixed header wins"
        );
    }

    #[test]
    fn what_is_not_there_or_something_else_is_not_known() {
        assert_eq!(Death::of(&BasicProperties::default()), Death::default());
        let odd = AMQPValue::FieldArray(vec![AMQPValue::Void].into());
        assert_eq!(death(&[("x-death", odd), ("x-first-death-queue", AMQPValue::Boolean(true))]), Death::default());
        assert_eq!(death(&[("x-first-death-queue", AMQPValue::LongString("".into()))]).first_queue, None);
    }
}
