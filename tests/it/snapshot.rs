//! Snapshots of captured tables, between the changes of the stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::consumer::{Arrival, Consumer};
use crate::support::relay::{Program, Relay};
use crate::support::world::{World, connect};
use crate::support::{PATIENCE, eventually, within};

const TABLES: (&str, &str) = ("POSTRIDER_SOURCE_TABLES", "public.*");
const INITIAL: (&str, &str) = ("POSTRIDER_SOURCE_SNAPSHOT", "initial");

async fn world(name: &str, tables: &str, settings: &[(&str, &str)]) -> World {
    let world = World::bare(crate::support::servers::shared().await, name).await;
    world.sql.batch_execute(tables).await.unwrap();
    world.migrate_with(settings).await;
    world.queue("all", "#").await;
    world
}

/// Waits until the relay has finished the snapshot of a table.
async fn done(world: &World, table: &str) -> i64 {
    let statement = "select rows_read from postrider.snapshots where state = 'done' and table_name = $1";
    eventually(&format!("the snapshot of {table} is done"), || async {
        Some(world.sql.query_opt(statement, &[&table]).await.unwrap()?.get(0))
    })
    .await
}

/// Applies events by key, in the order of arrival.
fn apply(rows: &mut BTreeMap<i64, Value>, body: &Value) {
    match body["op"].as_str().unwrap() {
        "t" => rows.clear(),
        "d" => {
            rows.remove(&body["before"]["id"].as_i64().unwrap());
        }
        _ => {
            if let Some(old) = body["before"]["id"].as_i64() {
                rows.remove(&old);
            }
            rows.insert(body["after"]["id"].as_i64().unwrap(), body["after"].clone());
        }
    }
}

async fn rows(world: &World) -> BTreeMap<i64, Value> {
    let rows = world.sql.query("select id::bigint, to_jsonb(t)::text from t order by id", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), serde_json::from_str(row.get(1)).unwrap())).collect()
}

fn reads(arrivals: &[Arrival]) -> Vec<Value> {
    arrivals.iter().map(Arrival::json).filter(|body| body["op"] == "r").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_that_a_table_has_are_read_when_it_is_captured_first() {
    let tables = r#"create table t (id int primary key, v text, at timestamptz, raw bytea, flag bool, c char(4), n numeric);
        insert into t values (1, 'a', '2026-01-02 03:04:05+06', '\x00ff', true, 'ab', 1.50), (2, null, null, null, null, null, null);
        create table parts (id int primary key, v text) partition by range (id);
        create table parts_low partition of parts for values from (0) to (10);
        create table parts_high partition of parts for values from (10) to (20);
        insert into parts values (1, 'low'), (11, 'high');
        create table two (a text, b date, v int, primary key (b, a));
        insert into two select chr(65 + i % 26), date '2026-01-01' + i / 26, i from generate_series(0, 999) as i;
        create table nothing (id int primary key)"#;
    let settings = [TABLES, INITIAL, ("POSTRIDER_LIMITS_SNAPSHOT_ROWS", "70")];
    let world = world("initial", tables, &settings).await;
    let relay = Relay::carrying(&world, &settings).await;
    for table in ["t", "parts", "two", "nothing"] {
        done(&world, table).await;
    }
    world.run_each("insert into t values (3, 'later'); update t set v = 'b' where id = 1").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let arrivals = consumer.take(2 + 2 + 1_000 + 2).await;
    let of = |table: &str| -> Vec<Value> {
        arrivals.iter().map(Arrival::json).filter(|body| body["source"]["table"] == table).collect()
    };
    let t = of("t");
    let first =
        json!({"id": 1, "v": "a", "at": "2026-01-01T21:04:05Z", "raw": "AP8=", "flag": true, "c": "ab  ", "n": "1.50"});
    assert_eq!((&t[0]["op"], &t[0]["before"], &t[0]["after"]), (&json!("r"), &Value::Null, &first));
    assert_eq!((&t[0]["source"]["snapshot"], &t[0]["source"]["txId"]), (&json!("true"), &Value::Null));
    assert_eq!(t[1]["after"], json!({"id": 2, "v": null, "at": null, "raw": null, "flag": null, "c": null, "n": null}));
    assert_eq!((t[2]["op"].as_str(), t[3]["op"].as_str()), (Some("c"), Some("u")));
    let mut updated = first;
    updated["v"] = json!("b");
    assert_eq!(t[3]["after"], updated, "a row that is read looks as one that comes in the stream");
    let parts: Vec<Value> = of("parts").into_iter().map(|body| body["after"]["v"].clone()).collect();
    assert_eq!(parts, ["low", "high"]);
    let mut values: Vec<i64> = of("two").iter().map(|body| body["after"]["v"].as_i64().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(values, (0..1_000).collect::<Vec<_>>());
    let read = arrivals.iter().find(|arrival| arrival.json()["source"]["table"] == "t").unwrap();
    assert_eq!((read.routing_key.as_str(), read.kind.as_str()), ("public.t.r", "public.t.r"));
    let mut ids: Vec<&str> = arrivals.iter().map(|arrival| arrival.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), arrivals.len(), "no two events have the same id");
    assert_eq!(relay.metric("postrider_snapshot_rows_total"), Some(1_004.0));
    relay.stop().await;

    // It is not read again.
    let relay = Relay::carrying(&world, &settings).await;
    world.run_each("insert into t values (4, 'last')").await;
    assert_eq!(consumer.take(1).await[0].json()["op"], "c");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_load_with_kills_on_its_way_ends_with_the_rows_of_the_table() {
    read_under_load("snapshot_load", 20_000, 500).await;
}

/// The same of a table as people have it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a quarter of an hour with ROWS=1000000"]
async fn a_large_snapshot_under_load_with_kills_on_its_way_ends_with_the_rows_of_the_table() {
    read_under_load("large_load", row_count(), 2_000).await;
}

/// ROWS=1000000 for the long runs.
fn row_count() -> usize {
    std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(100_000)
}

/// Three writers while the table is read in chunks of so many rows, and two kills.
async fn read_under_load(name: &str, count: usize, chunk: usize) {
    let tables = format!(
        "create table t (id bigint primary key, n bigint, v text);
         insert into t select i, 0, repeat('x', (i % 50)::int) from generate_series(1, {count}) as i; analyze t"
    );
    let settings = [TABLES, INITIAL, ("POSTRIDER_LIMITS_SNAPSHOT_ROWS", &*chunk.to_string())];
    let world = world(name, &tables, &settings).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut writers = JoinSet::new();
    for writer in 0..3_u64 {
        let (url, stop, written) = (world.database_url.clone(), Arc::clone(&stop), Arc::clone(&written));
        writers.spawn(async move {
            let client = connect(&url).await;
            let mut state = writer + 1;
            while !stop.load(Ordering::Relaxed) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Keys of its own, so that writers do not wait for each other.
                let id = i64::try_from((state >> 33) % (count as u64 / 3) * 3 + writer + 1).unwrap();
                let statement = match (state >> 20) % 8 {
                    0 => format!("delete from t where id = {id}"),
                    1 => format!("update t set id = id + 10000000 where id = {id}"),
                    2 => format!(
                        "insert into t values ({}, 1, 'new') on conflict (id) do update set n = t.n + 1",
                        id + 20_000_000
                    ),
                    3 => format!("begin; update t set n = -1 where id = {id}; rollback"),
                    _ => format!("update t set n = n + 1 where id between {id} and {id} + 2 and id % 3 = {id} % 3"),
                };
                client.batch_execute(&statement).await.unwrap();
                written.fetch_add(1, Ordering::Relaxed);
                // As fast as one consumer takes it.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }
    let environment = world.settings(&settings);
    let began = std::time::Instant::now();
    let mut program = Program::start(&environment, &["run"]);
    let (mut consumed, mut read) = (BTreeMap::new(), 0);
    for kill_at in [count / 4, count / 2] {
        while read < kill_at {
            let body = consumer.next(PATIENCE).await.expect("the snapshot goes on").json();
            read += usize::from(body["op"] == "r");
            apply(&mut consumed, &body);
        }
        program.kill();
        program = Program::start(&environment, &["run"]);
    }
    while world.count("select count(*) from postrider.snapshots where state = 'done'").await == 0 {
        for _ in 0..500 {
            let Some(arrival) = consumer.next(Duration::from_millis(500)).await else { break };
            let body = arrival.json();
            read += usize::from(body["op"] == "r");
            apply(&mut consumed, &body);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    for arrival in consumer.rest(Duration::from_secs(3)).await {
        let body = arrival.json();
        read += usize::from(body["op"] == "r");
        apply(&mut consumed, &body);
    }
    let expected = rows(&world).await;
    let differing = expected.iter().filter(|(id, row)| consumed.get(id) != Some(row)).count();
    assert_eq!((differing, consumed.len()), (0, expected.len()), "each row is right, and there are no others");
    let written = written.load(Ordering::Relaxed);
    println!("{written} writes in {seconds:.1} s, {read} rows read for {count}, {} there in the end", expected.len());
    assert!(read < count * 3 / 2, "{read} rows were read: after a kill it goes on where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_asks_for_a_snapshot_of_some_rows() {
    let settings = [TABLES];
    let tables = "create table t (id int primary key, v text); create table \"Ünü\" (id int primary key);
        insert into t select i, 'v' || i from generate_series(1, 100) as i; insert into \"Ünü\" values (7)";
    let world = world("where", tables, &settings).await;
    let program = Program::start(&world.settings(&settings), &["run"]);
    program.says("carrying").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let run = |arguments: &[&str]| {
        let output = Program::command(&world.settings(&settings), arguments).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (success, out, _) = run(&["snapshot", "t", "--where", "id > 10 and v <> 'v12' and id < 21 -- few"]);
    assert!(success && out == "the snapshot of public.t is done: 9 rows\n", "{out}");
    let mut ids: Vec<i64> =
        reads(&consumer.take(9).await).iter().map(|body| body["after"]["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [11, 13, 14, 15, 16, 17, 18, 19, 20]);
    assert!(run(&["snapshot", "public.Ünü"]).0, "again, and of another table");
    assert_eq!(consumer.take(1).await[0].json()["after"], json!({"id": 7}));
    let (_, list, _) = run(&["snapshot", "--list"]);
    assert!(list.contains("public.t  done, 9 rows") && list.contains("where id > 10"), "{list}");

    for (condition, problem) in [("nonsense", "nonsense"), ("true); select 1; select (1=1", "multiple commands")] {
        assert!(run(&["snapshot", "t", "--no-wait", "--where", condition]).0);
        eventually("the condition is refused", || async {
            let statement = "select problem from postrider.snapshots where table_name = 't' and problem is not null";
            let row = world.sql.query_opt(statement, &[]).await.unwrap()?;
            Some(row.get::<_, String>(0)).filter(|said| said.contains(problem))
        })
        .await;
        let (success, _, error) = run(&["snapshot", "t"]);
        assert!(!success && error.contains("is under way"), "{error}");
        assert!(run(&["snapshot", "--cancel", "t"]).0);
        assert!(!run(&["snapshot", "--cancel", "t"]).0, "there is nothing left to cancel");
    }
    let (_, _, error) = run(&["snapshot", "nowhere"]);
    assert!(error.contains("there is no table nowhere"), "{error}");
    let (_, _, error) = run(&["snapshot", "postrider.progress"]);
    assert!(error.contains("is not captured"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_is_read_in_one_go() {
    let settings = [TABLES, INITIAL, ("POSTRIDER_LIMITS_SNAPSHOT_ROWS", "300")];
    let tables = "create table log (line text); insert into log select 'l' || i from generate_series(1, 1000) as i;
        create table full_log (line text, n int); alter table full_log replica identity full;
        insert into full_log values ('same', null), ('same', null), ('other', 1)";
    let world = world("keyless", tables, &settings).await;
    let relay = Relay::carrying(&world, &settings).await;
    assert_eq!((done(&world, "log").await, done(&world, "full_log").await), (1_000, 3));
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let arrivals = consumer.take(1_003).await;
    let mut lines: Vec<String> =
        reads(&arrivals).iter().map(|body| body["after"]["line"].as_str().unwrap().to_owned()).collect();
    lines.sort();
    let mut expected: Vec<String> = (1..=1_000).map(|i| format!("l{i}")).collect();
    expected.extend(["same", "same", "other"].map(str::to_owned));
    expected.sort();
    assert_eq!(lines, expected);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_grant_is_said_with_the_statement_that_gives_it() {
    let settings = [TABLES, INITIAL];
    let tables = "create schema closed; create table closed.t (id int primary key); insert into closed.t values (1)";
    let settings = [("POSTRIDER_SOURCE_TABLES", "closed.*"), settings[1]];
    let mut world = world("grants", tables, &settings).await;
    let role = format!("{}_relay", world.name);
    // The script grants what a snapshot needs where one is configured.
    let config = world.config(&settings[..1]);
    let target = postrider::migrate::Target::from(&*config);
    world.sql.batch_execute(&postrider::migrate::roles_script(&target, &role)).await.unwrap();
    world.sql.batch_execute(&format!("alter role \"{role}\" password 'secret'")).await.unwrap();
    let mut url = url::Url::parse(&world.database_url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("secret")).unwrap();
    let owner = std::mem::replace(&mut world.database_url, url.to_string());
    let relay = Relay::carrying(&world, &settings).await;
    let problem = eventually("the grant is named", || async {
        let statement = "select problem from postrider.snapshots where problem is not null";
        Some(world.sql.query_opt(statement, &[]).await.unwrap()?.get::<_, String>(0))
    })
    .await;
    let grants =
        format!("grant usage on schema \"closed\" to \"{role}\"; grant select on \"closed\".\"t\" to \"{role}\"");
    assert!(problem.ends_with(&grants), "{problem}");
    world.sql.batch_execute(&grants).await.unwrap();
    assert_eq!(done(&world, "t").await, 1, "it is tried again");
    relay.stop().await;
    world.database_url = owner;
    world.sql.batch_execute(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_format_debezium_it_is_an_incremental_snapshot() {
    let settings = [TABLES, INITIAL, ("POSTRIDER_EVENT_FORMAT", "debezium")];
    let tables = "create table t (id int primary key, v text); insert into t values (1, 'a')";
    let world = world("dbz_read", tables, &settings).await;
    let relay = Relay::carrying(&world, &settings).await;
    done(&world, "t").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let arrival = consumer.take(1).await.remove(0);
    let body = arrival.json();
    assert_eq!(
        (&body["op"], &body["before"], &body["after"]),
        (&json!("r"), &Value::Null, &json!({"id": 1, "v": "a"}))
    );
    let source = &body["source"];
    assert_eq!((&source["snapshot"], &source["txId"]), (&json!("incremental"), &Value::Null));
    assert_eq!(body["transaction"], Value::Null);
    assert_eq!(arrival.header("x-postrider-key").unwrap(), r#"{"id":1}"#);
    relay.stop().await;
}

/// Says how long it took.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_large_table() {
    let count = row_count();
    let settings = [TABLES];
    let tables = format!(
        "create table t (id bigint primary key, n bigint, v text);
         insert into t select i, 0, repeat('x', 100) from generate_series(1, {count}) as i; analyze t"
    );
    let world = world("large", &tables, &settings).await;
    let program = Program::start(&world.settings(&settings), &["run"]);
    program.says("carrying").await;
    let began = std::time::Instant::now();
    let output = Program::command(&world.settings(&settings), &["snapshot", "t", "--no-wait"]).output().unwrap();
    assert!(output.status.success());
    within(Duration::from_secs(3_600), "every row is delivered", || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        (world.count("select count(*) from postrider.snapshots where state = 'done'").await == 1).then_some(())
    })
    .await;
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(usize::try_from(world.depth("all").await).unwrap(), count);
    println!(
        "{count} rows in {seconds:.1} s: {:.0} a second; the relay's memory was {} MiB at most",
        count as f64 / seconds,
        program.peak_rss_kib() / 1024
    );
}
