//! The main job on real servers: a committed row arrives as a confirmed before/after event, and the slot moves past it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::consumer::Consumer;
use crate::support::own::Own;
use crate::support::relay::Relay;
use crate::support::world::World;
use crate::support::{eventually, servers, within};

const SILENCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_row_arrives_as_a_confirmed_event_and_the_slot_moves_past_it() {
    let world = World::new("road").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;

    world.insert("42", "OrderPlaced", r#"{"total": 99.5}"#).await;
    world
        .sql
        .batch_execute(
            r#"insert into outbox (aggregatetype, aggregateid, type, payload, before, sequence, headers)
               values ('order', '42', 'OrderConfirmed', '{"status": "confirmed"}', '{"status": "pending"}', 7,
                       '{"correlation_id": "c-1", "causation_id": "c-0", "traceparent": "00-1-1-01", "tenant": "t"}');
               insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', '42', 'OrderWithdrawn', null)"#,
        )
        .await
        .unwrap();
    let written = world.current_lsn().await;

    let arrivals = consumer.take(3).await;
    let ops: Vec<Value> = arrivals.iter().map(|arrival| arrival.json()["op"].clone()).collect();
    assert_eq!(ops, ["c", "u", "d"]);
    let (created, updated, deleted) = (arrivals[0].json(), arrivals[1].json(), arrivals[2].json());
    assert_eq!((&created["before"], &created["after"]), (&Value::Null, &json!({"total": 99.5})));
    assert_eq!(
        (&updated["before"], &updated["after"]),
        (&json!({"status": "pending"}), &json!({"status": "confirmed"}))
    );
    assert_eq!(deleted["after"], Value::Null);
    assert_eq!(created["source"]["db"], world.name.as_str());
    assert_eq!(created["source"]["table"], "outbox");

    let update = &arrivals[1];
    let id: String =
        world.sql.query_one("select id::text from outbox where type = 'OrderConfirmed'", &[]).await.unwrap().get(0);
    assert_eq!(update.id, id);
    assert_eq!(update.kind, "OrderConfirmed");
    assert_eq!(update.routing_key, "order.OrderConfirmed");
    assert_eq!(*update.properties.delivery_mode(), Some(2));
    assert_eq!(update.properties.correlation_id().as_ref().map(|id| id.to_string()), Some("c-1".to_owned()));
    assert_eq!(update.properties.app_id().as_ref().map(|id| id.to_string()), Some("postrider".to_owned()));
    let expected = [
        ("aggregatetype", "order"),
        ("aggregateid", "42"),
        ("sequence", "7"),
        ("version", "1"),
        ("causation_id", "c-0"),
        ("traceparent", "00-1-1-01"),
    ];
    for (header, value) in expected {
        assert_eq!(update.header(header).as_deref(), Some(value), "header {header}");
    }
    assert_eq!(update.header("tenant"), None, "only allowed headers of the row pass");
    assert!(update.header("x-postrider-sent-at").is_some());
    let positions: Vec<String> =
        arrivals.iter().map(|arrival| arrival.header("x-postrider-position").unwrap()).collect();
    assert!(positions.is_sorted() && positions[0] != positions[1], "positions sort: {positions:?}");

    eventually("the slot passes the events", || async { (world.confirmed().await? >= written).then_some(()) }).await;
    assert_eq!(relay.metric("postrider_events_confirmed_total"), Some(3.0));
    assert_eq!(relay.metric("postrider_unresolved_events"), Some(0.0));
    assert!(consumer.rest(SILENCE).await.is_empty(), "each once");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_rolled_back_transaction_or_savepoint_is_published() {
    let world = World::new("rollback").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let insert = "insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', '1',";
    world
        .sql
        .batch_execute(&format!(
            "begin; {insert} 'Aborted', '{{}}'); rollback;
             begin; {insert} 'Kept', '{{}}'); savepoint s; {insert} 'Undone', '{{}}'); rollback to s; {insert} 'KeptToo', '{{}}'); commit;"
        ))
        .await
        .unwrap();
    let kinds: Vec<String> = consumer.take(2).await.into_iter().map(|arrival| arrival.kind).collect();
    assert_eq!(kinds, ["Kept", "KeptToo"]);
    assert!(consumer.rest(SILENCE).await.is_empty());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_cannot_send_copies_by_cc_and_bcc() {
    let world = World::new("steal").await;
    world.queue("all", "order.#").await;
    world.queue("planted", "stolen").await;
    // Allowing everything must not open this door.
    let relay = Relay::carrying(&world, &[("POSTRIDER_EVENT_HEADERS", "*")]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    for headers in [
        r#"{"CC": ["stolen"], "BCC": ["stolen"]}"#,
        r#"{"cc": ["stolen"], "Bcc": ["stolen"], "x-death": "x"}"#,
        r#"{"CC": "stolen", "BCC": "stolen", "tenant": "t"}"#,
    ] {
        let statement = "insert into outbox (aggregatetype, aggregateid, type, payload, headers) values ('order', '1', 'Placed', '{}', $1::text::jsonb)";
        world.sql.execute(statement, &[&headers]).await.unwrap();
    }
    let arrivals = consumer.take(3).await;
    assert_eq!(arrivals[2].header("tenant").as_deref(), Some("t"));
    for arrival in &arrivals {
        assert!(
            arrival
                .headers
                .inner()
                .keys()
                .all(|key| !key.as_str().eq_ignore_ascii_case("cc") && !key.as_str().eq_ignore_ascii_case("bcc"))
        );
    }
    assert_eq!(world.depth("planted").await, 0);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_for_debezium_is_relayed_with_two_settings() {
    let world = World::bare(servers::shared().await, "debezium").await;
    world
        .sql
        .batch_execute(
            "create schema shop;
             create table shop.outboxevent (id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
                                            event_type varchar(255) not null, payload jsonb)",
        )
        .await
        .unwrap();
    let settings = [("POSTRIDER_OUTBOX_TABLE", "shop.outboxevent"), ("POSTRIDER_OUTBOX_COLUMNS_TYPE", "event_type")];
    world.migrate_with(&settings).await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &settings).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    world
        .sql
        .batch_execute("insert into shop.outboxevent values ('7d1f3a9e-8a52-4f1e-9a3b-1c2d3e4f5a6b', 'order', '1', 'Placed', '{\"a\": 1}')")
        .await
        .unwrap();
    let arrival = consumer.take(1).await.remove(0);
    assert_eq!(arrival.id, "7d1f3a9e-8a52-4f1e-9a3b-1c2d3e4f5a6b");
    assert_eq!(arrival.routing_key, "order.Placed");
    assert_eq!(arrival.json()["after"], json!({"a": 1}));
    assert_eq!(arrival.json()["source"]["table"], "outboxevent");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_choose_exchange_key_format_and_ordering() {
    let world = World::new("routes").await;
    world.queue("all", "#").await;
    world.exchange("mail").await;
    world.servers.management("PUT", &format!("/api/queues/{}/mail", world.name), r#"{"durable":true}"#).await;
    world.bind("mail", "mail", "send.#").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        r#"
        [[route]]
        name = "mail"
        aggregatetype = "mail"
        type = "Mail*"
        exchange = "mail"
        routing_key = "send.{aggregateid}"
        format = "payload"
        ordering = "pipelined"
        "#,
    )
    .unwrap();
    let config = postrider::config::Config::load(Some(file.path()), world.settings(&[])).unwrap();
    let relay = Relay::start(std::sync::Arc::new(config));
    relay.until("the relay carries", postrider::status::Snapshot::carrying).await;
    let mut mails = Consumer::open(&world.amqp_url, "mail").await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    world
        .sql
        .batch_execute(
            r#"insert into outbox (aggregatetype, aggregateid, type, payload) values
               ('mail', 'welcome', 'MailWanted', '{"to": "a@b"}'), ('mail', '1', 'Other', '{}'), ('order', '1', 'MailWanted', '{}')"#,
        )
        .await
        .unwrap();
    let mail = mails.take(1).await.remove(0);
    assert_eq!((mail.routing_key.as_str(), mail.body.as_slice()), ("send.welcome", br#"{"to": "a@b"}"#.as_slice()));
    let keys: Vec<String> = all.take(2).await.into_iter().map(|arrival| arrival.routing_key).collect();
    assert_eq!(keys, ["mail.Other", "order.MailWanted"]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_makes_the_row_surely_delivered_and_then_the_database_comes_to_rest() {
    // WAL of other tests would be a reason for heartbeats: a server of its own.
    let postgres = Own::postgres(&[]);
    let servers = servers::Servers { database_url: postgres.url("DATABASE_URL"), ..servers::shared().await };
    let world = World::bare(servers, "heartbeat").await;
    world.migrate().await;
    world.queue("all", "#").await;
    world.insert("0", "BeforeTheSlot", "{}").await;
    let relay = Relay::carrying(&world, &[]).await;
    world.insert("1", "Placed", "{}").await;
    let state = |kind: &'static str| {
        let world = &world;
        async move {
            let statement = "select state from postrider.outbox_status s join outbox o on o.id::text = s.id::text where o.type = $1";
            world.sql.query_one(statement, &[&kind]).await.unwrap().get::<_, String>(0)
        }
    };
    eventually("the row is surely delivered", || async { (state("Placed").await == "delivered").then_some(()) }).await;
    assert_eq!(state("BeforeTheSlot").await, "unknown", "a row from before the slot was never sent");

    // Idle: no heartbeats, no writes of state.
    // Every write of state, a heartbeat's too, makes a new version of this row.
    let state = || async {
        world.sql.query_one("select xmin::text from postrider.progress", &[]).await.unwrap().get::<_, String>(0)
    };
    within(Duration::from_secs(40), "the state is no longer written", || {
        let state = &state;
        async move {
            let before = state().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            (state().await == before).then_some(())
        }
    })
    .await;
    let before = state().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(state().await, before, "an idle database stays idle");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_relay_stands_by_and_takes_over_when_the_first_is_gone() {
    let world = World::new("standby").await;
    world.queue("all", "#").await;
    let first = Relay::carrying(&world, &[]).await;
    let second = Relay::start(world.config(&[]));
    let standby = second.until("the second stands by, able to take over", postrider::status::Snapshot::ready).await;
    assert!(standby.standing_by && standby.problem.is_some_and(|problem| problem.contains("standing by")));
    assert_eq!(second.metrics.delivery_lag_seconds(), None, "how late the first one is it does not know");
    let epoch = first.status.snapshot().relay_epoch.unwrap();
    first.stop().await;
    let snapshot = second.until("the second takes over", postrider::status::Snapshot::carrying).await;
    assert!(snapshot.relay_epoch.unwrap() > epoch, "the epoch fences the first one's writes");
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    world.insert("1", "Placed", "{}").await;
    consumer.take(1).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_style_stop_acknowledges_everything_so_that_a_restart_repeats_nothing() {
    let world = World::new("clean_stop").await;
    world.queue("all", "#").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let relay = Relay::carrying(&world, &[]).await;
    for number in 0..200 {
        world.insert(&(number % 7).to_string(), "Placed", &format!("{{\"n\": {number}}}")).await;
    }
    relay.stop().await;
    let relay = Relay::carrying(&world, &[]).await;
    let arrivals = consumer.take(200).await;
    let again = consumer.rest(SILENCE).await.len();
    assert_eq!(again, 0, "duplicates after a clean stop");
    let mut ids: Vec<&str> = arrivals.iter().map(|arrival| arrival.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    relay.stop().await;
}
