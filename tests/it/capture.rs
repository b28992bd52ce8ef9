//! `postrider.capture`: the changes of an ordinary table become events, and its writes never fail for it.

mod outboxes;
mod strangers;
pub(crate) mod types;

use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

use crate::support::consumer::Consumer;
use crate::support::relay::{Program, Relay};
use crate::support::servers;
use crate::support::world::World;
use types::{CASES, MAKE};

/// Type, aggregateid, before, payload and what capture says, of each row of the outbox, oldest first.
async fn events(sql: &Client) -> Vec<[Value; 5]> {
    let statement = "select jsonb_build_array(type, aggregateid, before, payload, headers -> 'postrider')::text from outbox order by xmin::text::bigint, ctid";
    let rows = sql.query(statement, &[]).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
}

async fn takes(sql: &Client, statements: &str) {
    sql.batch_execute(statements).await.unwrap();
}

async fn refused(sql: &Client, statement: &str) -> String {
    let error = sql.batch_execute(statement).await.unwrap_err();
    let error = error.as_db_error().unwrap().clone();
    format!("{}. {}", error.message(), error.hint().unwrap_or_default())
}

/// Another session, as a role whose password is its name.
async fn as_role(world: &World, role: &str) -> Client {
    let mut config: tokio_postgres::Config = world.database_url.parse().unwrap();
    let (client, connection) = config.user(role).password(role).connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A table with a column for each case.
async fn make_wide(sql: &Client) {
    takes(sql, MAKE).await;
    let columns: Vec<String> =
        CASES.iter().enumerate().map(|(n, case)| format!("\"Spalte {n} ü\" {}", case.kind)).collect();
    takes(sql, &format!("create table wide (id int primary key, {})", columns.join(", "))).await;
}

/// Its row, written by a session that prints everything in another way.
async fn insert_wide(sql: &Client) {
    let settings = "set timezone = 'Asia/Kathmandu'; set datestyle = 'German, DMY'; set intervalstyle = sql_standard; \
        set bytea_output = escape; set extra_float_digits = -15; set search_path = pg_temp, public; set quote_all_identifiers = on;";
    let values: Vec<&str> = CASES.iter().map(|case| case.value).collect();
    let insert = format!("insert into public.wide values (1, {})", values.join(", "));
    takes(sql, &format!("prepare write as {insert}; {settings} execute write; reset all")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_by_a_trigger_and_from_the_wal_write_the_same_values() {
    let settings = [("POSTRIDER_SOURCE_TABLES", "public.wide")];
    let world = World::bare(servers::shared().await, "capture_twice").await;
    make_wide(&world.sql).await;
    world.migrate_with(&settings).await;
    takes(&world.sql, "select postrider.capture('wide')").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &settings).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    insert_wide(&world.sql).await;
    let bodies: Vec<Value> = consumer.take(2).await.iter().map(|arrival| arrival.json()).collect();
    let (by_trigger, from_wal): (Vec<_>, Vec<_>) = bodies.iter().partition(|body| body.get("aggregatetype").is_some());
    assert_eq!((by_trigger.len(), from_wal.len()), (1, 1), "{bodies:#?}");
    assert_eq!(by_trigger[0]["source"]["table"], from_wal[0]["source"]["table"]);
    for (n, case) in CASES.iter().enumerate() {
        let column = format!("Spalte {n} ü");
        let [trigger, wal] = [&by_trigger[0], &from_wal[0]].map(|body| &body["after"][&column]);
        assert_eq!(trigger, wal, "{}: {}", case.kind, case.value);
    }
    assert_eq!(by_trigger[0]["after"], from_wal[0]["after"]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_every_type_arrives_as_the_server_itself_says_whatever_the_session_is_set_to() {
    let world = World::new("capture_types").await;
    make_wide(&world.sql).await;
    takes(&world.sql, "select postrider.capture('wide')").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    insert_wide(&world.sql).await;

    let row = consumer.take(1).await.remove(0).json();
    takes(
        &world.sql,
        "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = iso_8601; set bytea_output = hex; \
         set extra_float_digits = 3",
    )
    .await;
    for (n, case) in CASES.iter().enumerate() {
        let query = format!("select ({})::text from (select \"Spalte {n} ü\" as x from wide) as t", case.expected);
        let expected: Option<String> = world.sql.query_one(&query, &[]).await.unwrap().get(0);
        let expected: Value = expected.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
        assert_eq!(row["after"][format!("Spalte {n} ü")], expected, "{}: {}", case.kind, case.value);
    }
    assert_eq!(row["after"].as_object().unwrap().len(), CASES.len() + 1);
    assert_eq!(world.count("select count(*) from postrider.captures where up_to_date").await, 1);
    assert_eq!(row["source"].get("omitted"), None, "nothing took the slow way");

    // The slow way, which is taken after a change of the table, gives the same.
    takes(&world.sql, "alter table wide add column later int; update wide set later = 1").await;
    let later = consumer.take(1).await.remove(0).json();
    let mut images = [later["before"].clone(), later["after"].clone()];
    for (image, added) in images.iter_mut().zip([Value::Null, json!(1)]) {
        assert_eq!(image.as_object_mut().unwrap().remove("later"), Some(added));
        assert_eq!(*image, row["after"]);
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_change_is_an_event_in_the_name_of_the_table() {
    let world = World::new("capture_ops").await;
    takes(
        &world.sql,
        "create schema shop; create table shop.\"order items\" (id int primary key, note text);
         select postrider.capture('shop.\"order items\"', aggregatetype => 'order_item', updated => 'ItemChanged')",
    )
    .await;
    world.queue("all", "#").await;
    let relay =
        Relay::carrying(&world, &[("POSTRIDER_EVENT_ROUTING_KEY", "{schema}.{table}.{op}.{aggregatetype}")]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    takes(
        &world.sql,
        "begin; insert into shop.\"order items\" values (1, 'a'); update shop.\"order items\" set note = 'b';
         update shop.\"order items\" set id = 2; delete from shop.\"order items\"; truncate shop.\"order items\"; commit;
         begin; insert into shop.\"order items\" values (3, 'never'); rollback;
         insert into outbox (aggregatetype, aggregateid, type, payload) values ('order_item', '*', 'ByHand', '{}')",
    )
    .await;
    let arrivals = consumer.take(7).await;
    let (row, changed, moved) =
        (json!({"id": 1, "note": "a"}), json!({"id": 1, "note": "b"}), json!({"id": 2, "note": "b"}));
    let expected = [
        ("OrderItemCreated", "c", "1", Value::Null, row.clone()),
        ("ItemChanged", "u", "1", row, changed.clone()),
        ("OrderItemDeleted", "d", "1", changed, Value::Null),
        ("OrderItemCreated", "c", "2", Value::Null, moved.clone()),
        ("OrderItemDeleted", "d", "2", moved, Value::Null),
        ("OrderItemTruncated", "t", "*", Value::Null, Value::Null),
    ];
    // Aggregates may overtake each other; positions say the order.
    let mut sorted: Vec<_> = arrivals.iter().collect();
    sorted.sort_by_key(|arrival| arrival.header("x-postrider-position"));
    for (arrival, (kind, op, id, before, after)) in sorted.iter().zip(expected) {
        let body = arrival.json();
        assert_eq!((arrival.kind.as_str(), &body["op"]), (kind, &json!(op)));
        assert_eq!((&body["aggregateid"], &body["before"], &body["after"]), (&json!(id), &before, &after), "{kind}");
        assert_eq!((&body["source"]["schema"], &body["source"]["table"]), (&json!("shop"), &json!("order items")));
        assert_eq!(arrival.routing_key, format!("shop.order items.{op}.order_item"));
        assert_eq!(arrival.header("postrider"), None);
    }
    assert_eq!(sorted[6].routing_key, "public.outbox.c.order_item");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_and_no_change_of_the_table_makes_a_write_fail() {
    let world = World::new("capture_harm").await;
    let sql = &world.sql;
    takes(
        sql,
        "create table t (id int primary key, a numeric, secret text, j json, \"Groß \"\"x\"\".y'\" text, by bytea, twice int generated always as (id * 2) stored);
         select postrider.capture('t', exclude => '{secret}');
         insert into t values (1, 'NaN', 's', '{\"a\": \"\\u0000\"}', 'g', null);",
    )
    .await;
    let first = events(sql).await.remove(0);
    assert_eq!(first[3], json!({"id": 1, "a": "NaN", "Groß \"x\".y'": "g", "by": null, "twice": 2}));
    assert_eq!(first[4]["omitted"], json!(["j"]), "jsonb cannot hold it");

    // Excluded by name: under its new name it is not known, and so left out too.
    takes(
        sql,
        "truncate outbox; alter table t rename secret to open; alter table t drop column a; alter table t add column extra numeric;
         alter table t alter column \"Groß \"\"x\"\".y'\" type varchar(9); update t set extra = 1.50, j = '1e200000';",
    )
    .await;
    let update = events(sql).await.remove(0);
    assert_eq!(update[3], json!({"id": 1, "Groß \"x\".y'": "g", "by": null, "twice": 2}));
    assert_eq!(update[4]["omitted"], json!(["extra", "j", "open"]));
    assert_eq!(world.count("select count(*) from postrider.captures where not up_to_date").await, 1);
    takes(sql, "select postrider.capture('t', exclude => '{open}'); truncate outbox; update t set j = null").await;
    let update = events(sql).await.remove(0);
    assert_eq!(update[3], json!({"id": 1, "j": null, "extra": "1.50", "Groß \"x\".y'": "g", "by": null, "twice": 2}));
    assert_eq!(update[0], "TUpdated");
    assert_eq!(world.count("select count(*) from postrider.captures where up_to_date").await, 1);

    // The key is renamed, and then gone.
    takes(sql, "truncate outbox; alter table t rename id to number; update t set extra = 2").await;
    assert_eq!(events(sql).await[0][1], "1");
    takes(sql, "truncate outbox; alter table t drop constraint t_pkey; update t set extra = 3").await;
    assert_eq!(events(sql).await[0][1], "*");

    // 50 MB, and what jsonb cannot hold at all.
    takes(
        sql,
        "create table big (id int primary key, b bytea, t text); select postrider.capture('big'); truncate outbox",
    )
    .await;
    takes(sql, "insert into big values (1, decode(repeat('00ff', 25000000), 'hex'), 'small')").await;
    let size = "select octet_length(payload ->> 'b')::bigint from outbox";
    assert_eq!(world.count(size).await, 66_666_668, "base64 of 50 MB, without line breaks");
    takes(sql, "truncate outbox; update big set t = repeat('x', 270000000)").await;
    let row =
        "select headers -> 'postrider' -> 'omitted' = '[\"t\"]' and payload ? 'b' and not payload ? 't' from outbox";
    assert!(sql.query_one(row, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_need_no_right_on_the_outbox_and_only_the_owner_captures() {
    let world = World::new("capture_rights").await;
    let [owner, writer] = ["owner", "writer"].map(|who| format!("{}_{who}", world.name));
    takes(
        &world.sql,
        &format!(
            "create role {owner} login password '{owner}'; create role {writer} login password '{writer}';
             create schema app authorization {owner}; grant usage on schema app to {writer}"
        ),
    )
    .await;
    let theirs = as_role(&world, &owner).await;
    takes(&theirs, &format!("create table app.t (id int primary key, n numeric); grant insert, update, delete, truncate on app.t to {writer}")).await;
    assert!(refused(&theirs, "select postrider.capture('app.t')").await.contains("permission denied"));
    takes(
        &world.sql,
        &format!(
            "grant usage on schema postrider to {owner};
             grant execute on function postrider.capture, postrider.define_capture, postrider.release, postrider.drop_unused_captures to {owner};
             create table mine (id int primary key); grant all on mine to {owner}"
        ),
    )
    .await;
    for call in ["capture('mine')", "release('mine')"] {
        let said = refused(&theirs, &format!("select postrider.{call}")).await;
        assert!(said.contains("must be owner of table"), "{said}");
    }
    takes(&theirs, "select postrider.capture('app.t')").await;
    let nobody = as_role(&world, &writer).await;
    takes(&nobody, "insert into app.t values (1, 2.50); update app.t set n = 3; delete from app.t; truncate app.t")
        .await;
    let kinds: Vec<Value> = events(&world.sql).await.into_iter().map(|[kind, ..]| kind).collect();
    assert_eq!(kinds, ["TCreated", "TUpdated", "TDeleted", "TTruncated"]);
    takes(&theirs, "select postrider.release('app.t'); insert into app.t values (1, 1)").await;
    assert_eq!(world.count("select count(*) from outbox").await, 4);
    assert_eq!(world.count("select count(*) from pg_proc where proname ~ '^captured_'").await, 0);
    takes(&world.sql, &format!("drop owned by {owner}, {writer} cascade; drop role {owner}, {writer}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_captured_in_the_name_of_their_table() {
    let world = World::new("capture_partitions").await;
    takes(
        &world.sql,
        "create table p (id int primary key, v numeric) partition by range (id);
         create table \"P1\" (v numeric, gone text, id int not null); alter table \"P1\" drop column gone;
         alter table p attach partition \"P1\" for values from (0) to (10);
         select postrider.capture('p');
         create table p2 partition of p for values from (10) to (20);
         insert into p values (1, 1.50); insert into p2 values (11, 2); update p set id = 12 where id = 1; truncate p;",
    )
    .await;
    let events = events(&world.sql).await;
    let kinds: Vec<String> = events.iter().map(|[kind, id, ..]| format!("{kind} {id}").replace('"', "")).collect();
    assert_eq!(kinds, ["PCreated 1", "PCreated 11", "PDeleted 1", "PCreated 12", "PTruncated *"]);
    assert_eq!(events[0][3], json!({"id": 1, "v": "1.50"}));
    assert!(events.iter().all(|event| event[4]["schema"] == "public" && event[4]["table"] == "p"));
    assert_eq!(world.count("select count(*) from postrider.captures").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_somebody_else_made_takes_the_images_too() {
    let world = World::bare(servers::shared().await, "capture_foreign").await;
    takes(
        &world.sql,
        "create table \"Ereignisse\" (id varchar(64) primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
             \"Art\" varchar(255) not null, payload text, before text, headers json)",
    )
    .await;
    let settings = [("POSTRIDER_OUTBOX_TABLE", "public.\"Ereignisse\""), ("POSTRIDER_OUTBOX_COLUMNS_TYPE", "Art")];
    world.migrate_with(&settings).await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &settings).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    takes(&world.sql, "create table t (id int primary key, n numeric); select postrider.capture('t')").await;
    takes(&world.sql, "insert into t values (1, 1.50); update t set n = null; truncate t").await;
    let arrivals = consumer.take(3).await;
    let updated = arrivals.iter().find(|arrival| arrival.kind == "TUpdated").unwrap().json();
    assert_eq!((&updated["before"], &updated["after"]), (&json!({"id": 1, "n": "1.50"}), &json!({"id": 1, "n": null})));
    assert_eq!(updated["source"]["table"], "t");
    assert!(arrivals.iter().all(|arrival| arrival.id.len() == 36));

    takes(&world.sql, "alter table \"Ereignisse\" drop column before").await;
    let refusal = refused(&world.sql, "select postrider.capture('t')").await;
    assert!(refusal.contains("before") && refusal.contains("jsonb, json or text"), "{refusal}");
    takes(&world.sql, "select postrider.release('t'); insert into t values (2, 2)").await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_captured_is_refused_with_what_to_do() {
    let world = World::new("capture_refused").await;
    takes(
        &world.sql,
        "create table keyless (a int, b int); create view v as select 1 as a; create temporary table temp (id int primary key);
         create table t (id int primary key, a int)",
    )
    .await;
    let refusals = [
        ("'keyless'", "has no primary key. Name the columns"),
        ("'outbox'", "cannot be captured"),
        ("'postrider.progress'", "cannot be captured"),
        ("'pg_catalog.pg_class'", "cannot be captured"),
        ("'v'", "is not a table"),
        ("'temp'", "is not a table"),
        ("'t', exclude => '{nope}'", "no column \"nope\""),
        ("'t', aggregateid => '{nope}'", "no column \"nope\""),
        ("'t', aggregateid => '{}'", "no column"),
    ];
    for (arguments, said) in refusals {
        let refusal = refused(&world.sql, &format!("select postrider.capture({arguments})")).await;
        assert!(refusal.contains(said), "{arguments}: {refusal}");
    }
    takes(
        &world.sql,
        "select postrider.capture('keyless', aggregateid => '{a,b}', skip_unchanged => true);
         insert into keyless values (1, null); update keyless set a = 1; update keyless set a = 2; drop table keyless;
         select postrider.release('t')",
    )
    .await;
    let kinds: Vec<String> = events(&world.sql).await.iter().map(|[kind, id, ..]| format!("{kind} {id}")).collect();
    let expected =
        ["KeylessCreated", "KeylessDeleted", "KeylessCreated"].iter().zip(["[1, null]", "[1, null]", "[2, null]"]);
    assert_eq!(kinds, expected.map(|(kind, id)| format!("\"{kind}\" \"{id}\"")).collect::<Vec<_>>());
    assert_eq!(
        world.count("select count(*) from pg_proc where proname ~ '^captured_'").await,
        0,
        "of a dropped table too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_postrider_leaves_tables_that_can_be_written() {
    let world = World::new("capture_uninstall").await;
    takes(
        &world.sql,
        "create table t (id int primary key); create table p (id int primary key) partition by range (id);
         create table p1 partition of p default; select postrider.capture('t'), postrider.capture('p'); insert into t values (1)",
    )
    .await;
    let settings = world.settings(&[]);
    let output = Program::command(&settings, &["uninstall", "--yes", "--drop-data"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.count("select count(*) from pg_trigger where tgname ~ 'postrider'").await, 0);
    takes(&world.sql, "insert into t values (2); insert into p values (1); truncate t, p").await;
}
