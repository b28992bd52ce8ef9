//! What Debezium's Outbox Event Router made of rows, against what ours makes.

use std::fs;

use bytes::Bytes;
use serde_json::{Value, json};

use super::fixtures::{directory, lines, rows, same, settings};
use crate::config::{Columns, Debezium, Place, Placement};
use crate::event::debezium::router::EventRouter;
use crate::pgoutput::message::{self, Tuple};

fn router_settings(case: &str) -> (Debezium, Columns) {
    let (mut settings, properties) = settings(case);
    let mut names = Columns::default();
    let router = &mut settings.router;
    for (name, value) in &properties {
        // Java reads `\\` in a file of properties as one.
        let value = value.replace("\\\\", "\\");
        match name.strip_prefix("transforms.outbox.").unwrap_or_default() {
            "table.fields.additional.placement" => router.additional = value.split(',').map(placement).collect(),
            "table.field.additional.missing" => router.ignore_missing = value == "ignore",
            "table.expand.json.payload" => router.expand_json = value == "true",
            "route.tombstone.on.empty.payload" => router.tombstone_on_empty = value == "true",
            "route.by.field" => router.route_by_field = value,
            "route.topic.regex" => router.topic_regex = value,
            "route.topic.replacement" => router.topic_replacement = value,
            "table.field.event.id" => names.id = value,
            "table.field.event.key" => names.aggregateid = value,
            "table.field.event.payload" => names.payload = value,
            _ => {}
        }
    }
    (settings, names)
}

fn placement(text: &str) -> Placement {
    let mut parts = text.split(':');
    let column = parts.next().unwrap().to_owned();
    let place = match parts.next().unwrap() {
        "header" => Place::Header,
        "envelope" => Place::Envelope,
        _ => Place::Partition,
    };
    Placement { place, alias: parts.next().unwrap_or(&column).to_owned(), column }
}

fn value(text: &Value) -> message::Value {
    text.as_str().map_or(message::Value::Null, |text| message::Value::Text(Bytes::from(text.to_owned())))
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

fn routed(case: &str) -> Vec<Value> {
    let (settings, names) = router_settings(case);
    let inserts = lines(case, "rows.jsonl").into_iter().skip(1).map(|line| line["op"] == "I");
    let rows = rows(case).into_iter().zip(inserts).filter(|(_, insert)| *insert);
    rows.map(|((columns, values), _)| {
        let router = EventRouter::new(&columns, &names, &settings).unwrap();
        let routed = router.route(&Tuple(values.iter().map(value).collect())).unwrap();
        let headers = routed.headers.iter().map(|(name, json)| (name.clone(), parse(json)));
        json!({
            "destination": routed.destination,
            "key": routed.key.map_or(Value::Null, |key| parse(&key)),
            "headers": headers.collect::<serde_json::Map<String, Value>>(),
            "value": routed.body.map_or(Value::Null, |body| parse(&body)),
        })
    })
    .collect()
}

#[test]
fn every_row_is_routed_as_debezium_did() {
    let names = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".rows.jsonl")?.to_owned())).collect();
    cases.retain(|case| case.starts_with("outbox_router"));
    cases.sort();
    assert!(cases.len() > 8, "{cases:?}");
    let mut differences = Vec::new();
    for case in cases {
        let (ours, debezium) = (routed(&case), lines(&case, "expected.jsonl"));
        if ours.len() != debezium.len() {
            differences.push(format!("{case}: {} and {}", ours.len(), debezium.len()));
        }
        for (ours, debezium) in ours.iter().zip(&debezium) {
            if !same(ours, debezium) {
                differences.push(format!("{case}: {ours}\n  not {debezium}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
