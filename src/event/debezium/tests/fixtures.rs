//! What Debezium sent of rows (`tests/fixtures/debezium`), against what is made of the texts that PostgreSQL sent of
//! them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::config::{Binary, Debezium, Decimals, Hstore, Intervals, Times};
use crate::event::debezium::values::Prepared;
use crate::event::shape::{self, CatalogKind, ColumnInfo, TableInfo, TypeInfo};
use crate::pgoutput::message::{Column, Relation, ReplicaIdentity};

pub(super) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium")
}

/// The lines of `CASE.SUFFIX`.
pub(super) fn lines(case: &str, suffix: &str) -> Vec<Value> {
    let text = fs::read_to_string(directory().join(format!("{case}.{suffix}"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `CASE.properties`, as far as they are about values.
pub(super) fn settings(case: &str) -> (Debezium, HashMap<String, String>) {
    let text = fs::read_to_string(directory().join(format!("{case}.properties"))).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let properties: HashMap<String, String> = pairs.map(|(name, value)| (name.into(), value.into())).collect();
    let mut settings = Debezium { unknown_types: true, ..Debezium::default() };
    for (name, value) in &properties {
        match (name.as_str(), value.as_str()) {
            ("decimal.handling.mode", "string") => settings.decimals = Decimals::String,
            ("decimal.handling.mode", "double") => settings.decimals = Decimals::Double,
            ("binary.handling.mode", "base64") => settings.binary = Binary::Base64,
            ("binary.handling.mode", "base64-url-safe") => settings.binary = Binary::Base64UrlSafe,
            ("binary.handling.mode", "hex") => settings.binary = Binary::Hex,
            ("hstore.handling.mode", "map") => settings.hstore = Hstore::Map,
            ("interval.handling.mode", "string") => settings.intervals = Intervals::String,
            ("time.precision.mode", "adaptive_time_microseconds") => settings.times = Times::AdaptiveTimeMicroseconds,
            ("time.precision.mode", "connect") => settings.times = Times::Connect,
            ("time.precision.mode", "isostring") => settings.times = Times::IsoString,
            ("time.precision.mode", "microseconds") => settings.times = Times::Microseconds,
            ("time.precision.mode", "nanoseconds") => settings.times = Times::Nanoseconds,
            ("include.unknown.datatypes", "false") => settings.unknown_types = false,
            ("unavailable.value.placeholder", text) => settings.unavailable_value = text.into(),
            _ => {}
        }
    }
    (settings, properties)
}

/// Row after row: the columns, and a text for each of them, null, or `{"unchanged": true}`.
pub(super) fn rows(case: &str) -> Vec<(Vec<shape::ColumnShape>, Vec<Value>)> {
    let lines = lines(case, "rows.jsonl");
    let catalog = &lines[0];
    let mut tables: HashMap<String, Vec<shape::ColumnShape>> = HashMap::new();
    let mut rows = Vec::new();
    for line in &lines[1..] {
        let table = line["table"].as_str().unwrap();
        if line.get("columns").is_some() {
            let columns = shape::columns(&relation(table, line), &table_info(catalog, table));
            tables.insert(table.into(), columns);
        }
        rows.push((tables[table].clone(), line["values"].as_array().unwrap().clone()));
    }
    rows
}

fn integer<T: TryFrom<i64>>(value: &Value) -> T {
    // OIDs are strings.
    let number = value.as_i64().or_else(|| value.as_str()?.parse().ok());
    T::try_from(number.unwrap()).ok().unwrap()
}

fn relation(name: &str, line: &Value) -> Relation {
    let column = |column: &Value| Column {
        key: column["key"].as_bool().unwrap(),
        name: column["name"].as_str().unwrap().into(),
        type_oid: integer(&column["oid"]),
        type_modifier: integer(&column["modifier"]),
    };
    Relation {
        oid: 1,
        namespace: String::new(),
        name: name.into(),
        replica_identity: ReplicaIdentity::Default,
        columns: line["columns"].as_array().unwrap().iter().map(column).collect(),
    }
}

fn table_info(catalog: &Value, table: &str) -> TableInfo {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let column = |(name, column): (&String, &Value)| {
        let not_null = column["not_null"].as_bool().unwrap();
        (name.clone(), ColumnInfo { not_null, default: text(&column["default"]) })
    };
    let kind = |found: &Value| match found["kind"].as_str().unwrap() {
        "d" => CatalogKind::Domain { base: integer(&found["base"]), modifier: integer(&found["modifier"]) },
        "e" => CatalogKind::Enum,
        "c" => CatalogKind::Composite,
        "r" => CatalogKind::Range,
        "m" => CatalogKind::Multirange,
        _ if found["array"].as_bool().unwrap() => CatalogKind::Array { element: integer(&found["element"]) },
        _ => CatalogKind::Base,
    };
    let type_info = |(oid, found): (&String, &Value)| {
        let info = TypeInfo {
            schema: text(&found["schema"]).unwrap(),
            name: text(&found["name"]).unwrap(),
            kind: kind(found),
            delimiter: found["delimiter"].as_str().unwrap().chars().next().unwrap(),
        };
        (oid.parse().unwrap(), info)
    };
    TableInfo {
        columns: catalog["tables"][table]["columns"].as_object().unwrap().iter().map(column).collect(),
        types: catalog["types"].as_object().unwrap().iter().map(type_info).collect(),
        ..TableInfo::default()
    }
}

/// The rows that Debezium's events have, in order.
fn expected(case: &str) -> Vec<Map<String, Value>> {
    let events = lines(case, "expected.jsonl").into_iter();
    let rows = events.flat_map(|event| [event["value"]["before"].clone(), event["value"]["after"].clone()]);
    rows.filter_map(|row| row.as_object().cloned()).collect()
}

/// Numbers that are equal are the same, however they are written.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64() && !one.is_i64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, one)| other.get(name).is_some_and(|other| same(one, other)))
        }
        // The address of a Java object: see `push_nested`.
        (_, Value::String(other)) if other.starts_with("[Ljava.lang") => true,
        _ => one == other,
    }
}

fn differences(case: &str) -> Vec<String> {
    let (settings, _) = settings(case);
    let (rows, expected) = (rows(case), expected(case));
    let mut differences = Vec::new();
    if rows.len() != expected.len() {
        differences.push(format!("{case}: {} rows, and {} of Debezium", rows.len(), expected.len()));
    }
    for (number, ((columns, values), expected)) in rows.iter().zip(&expected).enumerate() {
        for (at, (column, value)) in columns.iter().zip(values).enumerate() {
            let place = format!("{case} row {number} {}", column.name);
            let prepared = Prepared::new(column, &settings);
            if prepared.is_carried() != expected.contains_key(&column.name) {
                differences.push(format!("{place}: carried {}", prepared.is_carried()));
                continue;
            }
            if !prepared.is_carried() {
                continue;
            }
            let mut out = Vec::new();
            // Under replica identity FULL, which flags every column, the row before has what is not in the row after.
            let full = columns.iter().all(|column| column.identity) && value.is_object();
            let filled = number.checked_sub(1).filter(|_| full).and_then(|before| rows[before].1.get(at));
            let value = filled.unwrap_or(value);
            if value.is_object() {
                prepared.push_unavailable(&mut out);
            } else if let Err(poison) = prepared.push(&mut out, value.as_str()) {
                differences.push(format!("{place}: {poison} of {value}"));
                continue;
            }
            let ours: Value = serde_json::from_slice(&out).unwrap();
            if !same(&ours, &expected[&column.name]) {
                differences.push(format!("{place}: {value} is {ours}, not {}", expected[&column.name]));
            }
        }
    }
    differences
}

#[test]
fn every_value_is_the_one_that_debezium_sent() {
    let names = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".rows.jsonl")?.to_owned())).collect();
    cases.retain(|case| !case.starts_with("outbox_router"));
    cases.sort();
    assert!(cases.len() > 20, "{cases:?}");
    let differences: Vec<String> = cases.iter().flat_map(|case| differences(case)).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
