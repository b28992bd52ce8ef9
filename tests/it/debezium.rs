//! The format `debezium`, compared with what Debezium itself has sent (`tests/fixtures/debezium`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::support::consumer::{Arrival, Consumer};
use crate::support::relay::Relay;
use crate::support::servers;
use crate::support::world::World;

/// What differs from run to run: compared for presence and type.
const VOLATILE: [&str; 11] =
    ["ts_ms", "ts_us", "ts_ns", "lsn", "txId", "sequence", "version", "connector", "name", "db", "id"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium")
}

/// A record: destination, key, headers, value.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    destination: String,
    key: Value,
    headers: Map<String, Value>,
    value: Value,
}

/// Settings of single cases, by the name that Debezium has for them.
fn settings(case: &str) -> Vec<(String, String)> {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut settings = vec![
        set("POSTRIDER_NAME", "shop"),
        set("POSTRIDER_EVENT_FORMAT", "debezium"),
        set("POSTRIDER_EVENT_ROUTING_KEY", "{topic}"),
        set("POSTRIDER_SOURCE_ROUTING_KEY", "{topic}"),
        set("POSTRIDER_DEBEZIUM_UNKNOWN_TYPES", "true"),
        set("POSTRIDER_SOURCE_SKIP", "truncate"),
    ];
    match case {
        "transactions" => settings.push(set("POSTRIDER_DEBEZIUM_TRANSACTION_METADATA", "true")),
        "truncate" => settings.retain(|(name, _)| name != "POSTRIDER_SOURCE_SKIP"),
        "messages" => settings.push(set("POSTRIDER_SOURCE_MESSAGES", "*")),
        "outbox_router" => {
            settings.push(set("POSTRIDER_DEBEZIUM_ROUTER_ADDITIONAL", "type:header:eventType"));
            settings.push(set("POSTRIDER_DEBEZIUM_ROUTER_EXPAND_JSON", "true"));
        }
        _ => {}
    }
    if !case.starts_with("outbox") {
        settings.push(set("POSTRIDER_SOURCE_TABLES", "public.*"));
        settings.push(set("POSTRIDER_OUTBOX_TABLE", "app.outbox"));
    }
    for (name, value) in properties(case) {
        settings.retain(|(set, _)| *set != name);
        settings.push((name, value));
    }
    settings
}

/// `CASE.properties`: Debezium's own settings of a case that differ from its defaults.
fn properties(case: &str) -> Vec<(String, String)> {
    let Ok(text) = std::fs::read_to_string(fixtures().join(format!("{case}.properties"))) else { return Vec::new() };
    let ours = |name: &str| {
        Some(match name {
            "decimal.handling.mode" => "POSTRIDER_DEBEZIUM_DECIMALS",
            "binary.handling.mode" => "POSTRIDER_DEBEZIUM_BINARY",
            "hstore.handling.mode" => "POSTRIDER_DEBEZIUM_HSTORE",
            "interval.handling.mode" => "POSTRIDER_DEBEZIUM_INTERVALS",
            "time.precision.mode" => "POSTRIDER_DEBEZIUM_TIMES",
            "tombstones.on.delete" => "POSTRIDER_DEBEZIUM_TOMBSTONES",
            "include.unknown.datatypes" => "POSTRIDER_DEBEZIUM_UNKNOWN_TYPES",
            "unavailable.value.placeholder" => "POSTRIDER_DEBEZIUM_UNAVAILABLE_VALUE",
            "provide.transaction.metadata" => "POSTRIDER_DEBEZIUM_TRANSACTION_METADATA",
            "transforms.outbox.table.fields.additional.placement" => "POSTRIDER_DEBEZIUM_ROUTER_ADDITIONAL",
            "transforms.outbox.table.expand.json.payload" => "POSTRIDER_DEBEZIUM_ROUTER_EXPAND_JSON",
            "transforms.outbox.table.field.additional.missing" => "POSTRIDER_DEBEZIUM_ROUTER_IGNORE_MISSING",
            "transforms.outbox.route.by.field" => "POSTRIDER_DEBEZIUM_ROUTER_ROUTE_BY_FIELD",
            "transforms.outbox.route.topic.regex" => "POSTRIDER_DEBEZIUM_ROUTER_TOPIC_REGEX",
            "transforms.outbox.route.topic.replacement" => "POSTRIDER_DEBEZIUM_ROUTER_TOPIC_REPLACEMENT",
            "transforms.outbox.route.tombstone.on.empty.payload" => "POSTRIDER_DEBEZIUM_ROUTER_TOMBSTONE_ON_EMPTY",
            _ => return None,
        })
    };
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter_map(|(name, value)| Some((ours(name.trim())?.to_owned(), unescaped(value.trim()))))
        .collect()
}

/// As Java reads a value of a properties file; and our word for a choice.
fn unescaped(value: &str) -> String {
    if value == "ignore" { "true".to_owned() } else { value.replace("\\\\", "\\") }
}

fn expected(case: &str) -> Vec<Record> {
    let text = std::fs::read_to_string(fixtures().join(format!("{case}.expected.jsonl"))).unwrap();
    let record = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        Record {
            destination: record["destination"].as_str().unwrap().to_owned(),
            key: record["key"].take(),
            headers: record["headers"].as_object().cloned().unwrap_or_default(),
            value: record["value"].take(),
        }
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(record).collect()
}

fn found(arrival: &Arrival) -> Record {
    let header =
        |name: &str| arrival.header(name).map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
    // Those that every event of the outbox has are ours.
    const OURS: [&str; 4] = ["aggregatetype", "aggregateid", "version", "occurred_at"];
    let ours = |name: &str| !name.starts_with("x-postrider-") && !OURS.contains(&name);
    let names = arrival.headers.inner().keys().map(|name| name.to_string()).filter(|name| ours(name));
    Record {
        destination: arrival.routing_key.clone(),
        key: header("x-postrider-key").unwrap_or(Value::Null),
        headers: names.filter_map(|name| Some((name.clone(), header(&name)?))).collect(),
        // An empty body stands for null.
        value: if arrival.body.is_empty() { Value::Null } else { arrival.json() },
    }
}

/// With what is volatile replaced by its type.
fn steady(record: &Record) -> Record {
    let mut record = record.clone();
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let blur = |object: &mut Value, names: &[&str]| {
        let Some(object) = object.as_object_mut() else { return };
        for name in names {
            if let Some(value) = object.get_mut(*name) {
                *value = json!(kind(value));
            }
        }
    };
    let is_transaction = record.destination.ends_with(".transaction");
    if is_transaction {
        blur(&mut record.key, &["id"]);
        blur(&mut record.value, &["id", "ts_ms"]);
    } else if record.value.get("source").is_some() {
        blur(&mut record.value, &["ts_ms", "ts_us", "ts_ns"]);
        blur(&mut record.value["source"], &VOLATILE);
        if record.value["transaction"].is_object() {
            blur(&mut record.value["transaction"], &["id"]);
        }
    }
    record
}

/// Each place where two values differ, with what is found and what is expected there.
fn differences(found: &Value, expected: &Value) -> Vec<String> {
    fn compare(path: &str, found: &Value, expected: &Value, into: &mut Vec<String>) {
        match (found, expected) {
            (Value::Object(one), Value::Object(other)) => {
                let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
                for name in names {
                    let nothing = json!("absent");
                    let [one, other] = [one, other].map(|object| object.get(name).unwrap_or(&nothing));
                    compare(&format!("{path}/{name}"), one, other, into);
                }
            }
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                for (index, (one, other)) in one.iter().zip(other).enumerate() {
                    compare(&format!("{path}/{index}"), one, other, into);
                }
            }
            // An array of arrays is shown by Java as the address of an object.
            (_, Value::String(java)) if java.starts_with("[L") => {}
            _ if found == expected => {}
            _ => {
                let short = |value: &Value| value.to_string().chars().take(200).collect::<String>();
                into.push(format!("{path}: found {}, expected {}", short(found), short(expected)));
            }
        }
    }
    let mut into = Vec::new();
    compare("", found, expected, &mut into);
    into
}

/// In the order of each key: RabbitMQ's consumers are promised no more.
fn by_key(records: &[Record]) -> BTreeMap<String, Vec<Record>> {
    let mut by_key: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        by_key.entry(record.destination.clone()).or_default().push(steady(record));
    }
    by_key
}

/// Columns of single cases whose values are made by the server, or by a setting that differs.
fn made_by_the_server(case: &str) -> &'static [&'static str] {
    match case {
        // gen_random_uuid() and now().
        "defaults" => &["u:", "ts:", "z:"],
        case if case.starts_with("toast") => &["ua/"],
        // PostgreSQL 18 has generated columns in the stream; what is compared with was recorded on 17.
        case if case.starts_with("identities") => &["ts2:", "gen:"],
        "defaults_more" => &["ac:", "ad:", "ai:", "an:", "l:"],
        // A regclass: its text depends on the search path, and ours is empty.
        "scalars" => &["rc:"],
        "arraynulls" => &["rc/0:"],
        _ => &[],
    }
}

async fn compare(case: &str) {
    let setup = std::fs::read_to_string(fixtures().join(format!("{case}.setup.sql"))).unwrap();
    let changes = std::fs::read_to_string(fixtures().join(format!("{case}.sql"))).unwrap();
    let expected = expected(case);
    let settings = settings(case);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();

    let world = World::bare(servers::shared().await, &format!("dbz_{case}")).await;
    if !case.starts_with("outbox") {
        world.sql.batch_execute("create schema app").await.unwrap();
    }
    // PostgreSQL 15 does not read hexadecimal numbers; the catalogue shows the default as 31 everywhere.
    world.sql.batch_execute(&setup.replace("0x1F", "31")).await.unwrap();
    world.migrate_with(&settings).await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &settings).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    world.run_each(&changes).await;
    let mut arrivals = consumer.take(expected.len()).await;
    arrivals.extend(consumer.rest(std::time::Duration::from_secs(1)).await);
    let position = |arrival: &Arrival| arrival.header("x-postrider-position").unwrap();
    arrivals.sort_by_key(position);
    let found: Vec<Record> = arrivals.iter().map(found).collect();

    let (found, expected) = (by_key(&found), by_key(&expected));
    for (destination, expected) in &expected {
        let found = found.get(destination).cloned().unwrap_or_default();
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let skipped = |difference: &String| {
                made_by_the_server(case).iter().any(|column| {
                    ["/before/", "/after/"].iter().any(|image| difference.starts_with(&format!("{image}{column}")))
                })
            };
            let mut differences = differences(&found.value, &expected.value);
            differences.retain(|difference| !skipped(difference));
            assert!(differences.is_empty(), "{case}: value {index} of {destination}: {differences:#?}");
            assert_eq!(
                (&found.key, &found.headers),
                (&expected.key, &expected.headers),
                "{case}: {index} of {destination}"
            );
        }
        assert_eq!(found.len(), expected.len(), "{case}: records of {destination}");
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    relay.stop().await;
}

macro_rules! cases {
    ($($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                compare(stringify!($case)).await;
            }
        )*

        #[test]
        fn every_case_is_compared() {
            let compared = [$(stringify!($case)),*];
            for entry in std::fs::read_dir(fixtures()).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                // Rows without an aggregate, or with other columns in its place: compared by the unit tests of the router.
                const ROUTER: [&str; 6] = ["bytes", "envelope", "envelope_expand", "field", "keys", "placement"];
                let of_router = |case: &str| ROUTER.iter().any(|name| case == format!("outbox_router_{name}"));
                if let Some(case) = name.strip_suffix(".expected.jsonl").filter(|case| !of_router(case)) {
                    assert!(compared.contains(&case), "{case} is not compared");
                }
            }
        }
    };
}

cases! {
    arraynulls arrays arrays_double arrays_string arraytypes basic binary_base64 binary_base64_url_safe binary_hex
    decimal_double decimal_string defaults defaults_more domains extremes fallbacks floats hstore_map hstores
    identities identities_string identity_full interval_string key_change messages misc no_key numbers
    numericspecial outbox_router outbox_router_expand outbox_router_plain outbox_router_route outbox_router_text
    scalars time_adaptive_time_microseconds time_connect time_isostring time_microseconds time_nanoseconds times
    toast toast_connect toast_hex toasttypes transactions truncate unknown_off
}
