//! Poison: what can never be published as it is waits for a person, and harms nobody else (rules R3 to R5).

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::types::ToSql;

use crate::parking::{QUICK, by_order, insert, parked, slot_passes, until_parked};
use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

/// A row whose body is over `max_message_bytes` of 16 MiB, and beyond what the broker takes too.
async fn insert_large(world: &World, order: i64, megabytes: i32) {
    let statement = "insert into outbox (aggregatetype, aggregateid, type, payload) values \
                     ('order', $1::bigint::text, 'Large', jsonb_build_object('n', 0, 'pad', repeat('x', $2 * 1024 * 1024)))";
    let values: [&(dyn ToSql + Sync); 2] = [&order, &megabytes];
    world.sql.execute(statement, &values).await.unwrap();
}

async fn body_of_the_dead_letter(world: &World) -> Vec<u8> {
    let statement = "select postrider.dead_letter_body(id) from postrider.dead_letters order by position limit 1";
    world.sql.query_one(statement, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_17_mib_among_1000_rows_is_one_dead_letter_with_its_exact_body() {
    let world = World::new("large").await;
    world.queue("all", "#").await;
    let mut program = Program::start(&world.settings(&QUICK), &["run"]);
    program.says("carrying").await;
    insert(&world, "Good", (0..500).map(|n| (n, n))).await;
    insert_large(&world, 5_000, 17).await;
    insert(&world, "Good", (500..1_000).map(|n| (n, n))).await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(by_order(&all.take(1_000).await).len(), 1_000);
    slot_passes(&world).await;
    let row =
        world.sql.query_one("select reason, body_bytes, event_id from postrider.dead_letters", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>("reason"), "too_large");
    let body = body_of_the_dead_letter(&world).await;
    assert_eq!(i64::try_from(body.len()).unwrap(), row.get::<_, i64>("body_bytes"));
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(event["after"]["pad"].as_str().unwrap().len(), 17 * 1024 * 1024);
    assert_eq!(event["id"], row.get::<_, String>("event_id"));
    // The row as it was read, its body and the copy that goes to the database; nothing grows with the rest.
    let rss = program.rss_kib() / 1024;
    assert!(rss < 200, "{rss} MiB");

    // Whoever raises both limits, or has made them fit, redrives it. The broker of this test still refuses: it stays.
    program.kill();
    let raised = ["MAX_MESSAGE_BYTES", "WINDOW_BYTES", "WAITING_BYTES"].map(|name| format!("POSTRIDER_LIMITS_{name}"));
    let raised = raised.iter().map(|name| (name.as_str(), "64MiB"));
    program = Program::start(&world.settings(&QUICK.into_iter().chain(raised).collect::<Vec<_>>()), &["run"]);
    program.says("carrying").await;
    world.sql.execute("select postrider.redrive(reason => 'too_large')", &[]).await.unwrap();
    eventually("it was tried", || async {
        let tried = "select count(*) from postrider.dead_letters where attempts > 0 and mark is null";
        let gone = parked(&world).await == 0;
        (gone || world.count(tried).await == 1).then_some(())
    })
    .await;
    insert(&world, "Good", (0..10).map(|n| (n, 2_000 + n))).await;
    let numbers = |arrivals: Vec<_>| by_order(&arrivals).len();
    let rest = all.rest(Duration::from_secs(3)).await;
    assert!(numbers(rest) >= 10, "the others flow on");
}

/// One poison and fifty followers of its key, and as many of another key.
async fn poison_and_followers(world: &World, relay: &Relay) -> Consumer {
    insert_large(world, 1, 2).await;
    insert(world, "Follower", (1..51).flat_map(|n| [(1, n), (2, n)])).await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    let others = all.take(50).await;
    assert_eq!(by_order(&others).keys().collect::<Vec<_>>(), ["2"], "other keys are not delayed");
    slot_passes(world).await;
    assert_eq!(parked(world).await, 51);
    let status = relay.until("status", |snapshot| snapshot.dead_letters.waiting == 51).await.dead_letters;
    assert_eq!(status.by_reason.into_iter().collect::<Vec<_>>(), [("behind", 50), ("too_large", 1)]);
    // Nothing of it goes by itself, nor does a follower that somebody marks.
    world.sql.execute("select postrider.redrive(reason => 'behind')", &[]).await.unwrap();
    assert!(all.next(Duration::from_secs(3)).await.is_none());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_poison_is_followed_by_its_key_in_order() {
    let world = World::new("redriven").await;
    world.queue("all", "#").await;
    let small = [&QUICK[..], &[("POSTRIDER_LIMITS_MAX_MESSAGE_BYTES", "1MiB")]].concat();
    let relay = Relay::carrying(&world, &small).await;
    let mut all = poison_and_followers(&world, &relay).await;
    // What the dead letter keeps is published as it is: the limit is the relay's own, the broker takes more.
    world.sql.execute("select postrider.redrive(reason => 'too_large')", &[]).await.unwrap();
    let arrivals = all.take(51).await;
    assert_eq!(by_order(&arrivals)["1"], (0..51).collect::<Vec<_>>());
    assert_eq!(arrivals[0].header("x-postrider-redelivered").as_deref(), Some("true"));
    until_parked(&world, "the table is empty", 0).await;
    let counted = |name: &str| relay.metric(&format!("postrider_dead_letters_{name}_total"));
    // The followers were marked too.
    assert_eq!((counted("redriven"), counted("released")), (Some(51.0), Some(0.0)));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_poison_lets_its_key_go_on_in_order() {
    let world = World::new("discarded").await;
    world.queue("all", "#").await;
    let small = [&QUICK[..], &[("POSTRIDER_LIMITS_MAX_MESSAGE_BYTES", "1MiB")]].concat();
    let relay = Relay::carrying(&world, &small).await;
    let mut all = poison_and_followers(&world, &relay).await;
    world.sql.execute("select postrider.discard(reason => 'too_large')", &[]).await.unwrap();
    let arrivals = all.take(50).await;
    assert_eq!(by_order(&arrivals)["1"], (1..51).collect::<Vec<_>>());
    until_parked(&world, "the table is empty", 0).await;
    assert_eq!(relay.metric("postrider_dead_letters_discarded_total{by=\"operator\""), Some(1.0));
    // A new event of the key is not parked.
    insert(&world, "Follower", [(1, 51)]).await;
    assert_eq!(all.take(1).await.len(), 1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_skip_a_poison_is_parked_alone_and_its_key_goes_on() {
    let world = World::new("skip").await;
    world.queue("all", "#").await;
    let skip = [("POSTRIDER_LIMITS_MAX_MESSAGE_BYTES", "1MiB"), ("POSTRIDER_EVENT_ON_POISON", "skip")];
    let relay = Relay::carrying(&world, &[&QUICK[..], &skip].concat()).await;
    insert_large(&world, 1, 2).await;
    insert(&world, "Follower", (1..11).map(|n| (1, n))).await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(by_order(&all.take(10).await)["1"], (1..11).collect::<Vec<_>>());
    slot_passes(&world).await;
    assert_eq!(parked(&world).await, 1);
    world.sql.execute("select postrider.redrive(everything => true)", &[]).await.unwrap();
    assert_eq!(by_order(&all.take(1).await)["1"], [0]);
    until_parked(&world, "the table is empty", 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_halt_nothing_after_a_poison_is_carried_until_the_setting_is_changed() {
    let world = World::new("halt").await;
    world.queue("all", "#").await;
    let small = [&QUICK[..], &[("POSTRIDER_LIMITS_MAX_MESSAGE_BYTES", "1MiB")]].concat();
    let halt = [&small[..], &[("POSTRIDER_EVENT_ON_POISON", "halt")]].concat();
    let relay = Relay::carrying(&world, &halt).await;
    insert(&world, "Before", (0..10).map(|n| (n, n))).await;
    let before = world.current_lsn().await;
    insert_large(&world, 1, 2).await;
    insert(&world, "After", (0..10).map(|n| (n, 10 + n))).await;
    relay.until("it halts", |snapshot| snapshot.role.as_str() == "halted").await;
    let problem = relay.problem().await;
    assert!(problem.contains("on_poison") && problem.contains("too_large"), "{problem}");
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    let arrivals = all.rest(Duration::from_secs(2)).await;
    assert!(arrivals.iter().all(|arrival| arrival.kind == "Before"));
    assert_eq!(by_order(&arrivals).len(), 10);
    eventually("the slot stands before it", || async { world.confirmed().await.filter(|lsn| *lsn >= before) }).await;
    assert_eq!(parked(&world).await, 0);
    relay.stop().await;

    let relay = Relay::carrying(&world, &small).await;
    assert_eq!(all.take(9).await.len(), 9, "the other keys");
    slot_passes(&world).await;
    assert_eq!(parked(&world).await, 2);
    relay.stop().await;
}
