//! The parking lot on real servers: what cannot be delivered waits in the dead letters and releases itself (rules R3, R4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio_postgres::types::ToSql;

use crate::support::consumer::{Arrival, Consumer};
use crate::support::eventually;
use crate::support::relay::{Program, Relay};
use crate::support::world::{World, connect};

/// Parks soon, and probes often.
pub(crate) const QUICK: [(&str, &str); 3] = [
    ("POSTRIDER_LIMITS_HOLD_FOR", "1s"),
    ("POSTRIDER_LIMITS_RETRY_MIN", "100ms"),
    ("POSTRIDER_LIMITS_RETRY_MAX", "1s"),
];

/// Rows in the dead letters.
pub(crate) async fn parked(world: &World) -> i64 {
    world.count("select count(*) from postrider.dead_letters").await
}

pub(crate) async fn until_parked(world: &World, what: &str, count: i64) {
    eventually(what, || async { (parked(world).await == count).then_some(()) }).await;
}

/// Waits until the slot has passed everything that is committed now.
pub(crate) async fn slot_passes(world: &World) {
    let written = world.current_lsn().await;
    eventually("the slot passes", || async { world.confirmed().await.filter(|lsn| *lsn >= written) }).await;
}

/// One row of `type` in a transaction of its own, for each (aggregateid, n).
pub(crate) async fn insert(world: &World, kind: &str, rows: impl IntoIterator<Item = (usize, usize)>) {
    let statement = "insert into outbox (aggregatetype, aggregateid, type, payload) \
                     values ('order', $1::bigint::text, $2, jsonb_build_object('n', $3::bigint))";
    let statement = world.sql.prepare(statement).await.unwrap();
    for (order, n) in rows {
        let values: [&(dyn ToSql + Sync); 3] = [&(order as i64), &kind, &(n as i64)];
        world.sql.execute(&statement, &values).await.unwrap();
    }
}

/// The numbers of each aggregate's events, in the order of their first arrivals.
pub(crate) fn by_order(arrivals: &[Arrival]) -> BTreeMap<String, Vec<u64>> {
    let mut orders: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for arrival in arrivals {
        let event = arrival.json();
        let numbers = orders.entry(event["aggregateid"].as_str().unwrap().to_owned()).or_default();
        let number = event["after"]["n"].as_u64().unwrap();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    orders
}

fn in_order(arrivals: &[Arrival]) {
    for (order, numbers) in by_order(arrivals) {
        assert!(numbers.is_sorted(), "order {order}: {numbers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_a_queue_are_parked_with_their_keys_and_come_by_themselves_once_one_is_bound() {
    let world = World::new("parking").await;
    world.queue("placed", "order.Placed").await;
    world.queue("shipped", "order.Shipped").await;
    let relay = Relay::carrying(&world, &QUICK).await;
    // Three types; nobody reads `Paid`. Order 0 has no such event.
    insert(&world, "Placed", (0..10).map(|order| (order, 1))).await;
    insert(&world, "Paid", (1..10).map(|order| (order, 2))).await;
    insert(&world, "Shipped", (0..10).map(|order| (order, 3))).await;
    let mut placed = Consumer::open(&world.amqp_url, "placed").await;
    let mut shipped = Consumer::open(&world.amqp_url, "shipped").await;
    assert_eq!(placed.take(10).await.len(), 10);
    assert_eq!(shipped.take(1).await[0].json()["aggregateid"], "0", "a key without such an event flows");
    slot_passes(&world).await;
    // Of the nine other orders, the event that nobody reads and the one behind it.
    assert_eq!(parked(&world).await, 18);
    assert_eq!(world.count("select count(*) from postrider.dead_letters where reason = 'behind'").await, 9);
    let status = relay.until("status", |snapshot| snapshot.dead_letters.waiting == 18).await;
    assert_eq!((status.dead_letters.keys, status.dead_letters.failing.len()), (9, 1));
    assert_eq!(relay.metric("postrider_parked_keys"), Some(9.0));
    // While that way is failing its new events are parked without a publish, those of new keys too.
    let published = relay.metrics.events_returned.get();
    insert(&world, "Paid", (10..200).map(|order| (order, 1))).await;
    slot_passes(&world).await;
    let probes = relay.metrics.events_returned.get() - published;
    assert!(probes < 100, "{probes} of 190 were published");

    world.queue("paid", "order.Paid").await;
    let mut paid = Consumer::open(&world.amqp_url, "paid").await;
    assert_eq!(paid.take(199).await.len(), 199);
    assert_eq!(shipped.take(9).await.len(), 9);
    until_parked(&world, "the table is empty", 0).await;
    assert_eq!(relay.metric("postrider_dead_letters_released_total"), Some(208.0));
    relay.until("no key is parked", |snapshot| snapshot.dead_letters.keys == 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_full_queue_refuses_are_parked_and_come_in_order_once_it_is_drained() {
    let world = World::new("full").await;
    let arguments = r#"{"x-queue-type":"classic","x-max-length":5,"x-overflow":"reject-publish"}"#;
    world.queue_with("small", "order.Small", arguments).await;
    world.queue("large", "order.Large").await;
    let relay = Relay::carrying(&world, &QUICK).await;
    insert(&world, "Small", (0..40).map(|n| (n % 4, n))).await;
    insert(&world, "Large", (0..40).map(|n| (100 + n % 4, n))).await;
    let mut large = Consumer::open(&world.amqp_url, "large").await;
    assert_eq!(large.take(40).await.len(), 40);
    slot_passes(&world).await;
    assert!(parked(&world).await >= 30);
    assert!(relay.metrics.events_nacked.get() > 0);

    let mut small = Consumer::open(&world.amqp_url, "small").await;
    let arrivals = small.take(40).await;
    assert_eq!(by_order(&arrivals).values().map(Vec::len).sum::<usize>(), 40);
    in_order(&arrivals);
    until_parked(&world, "the table is empty", 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_deleted_exchange_are_parked_and_come_in_order_once_it_is_made_again() {
    let world = World::new("deleted").await;
    world.queue("all", "#").await;
    world.exchange("other").await;
    let mut settings = QUICK.to_vec();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postrider.toml");
    std::fs::write(&file, "[[route]]\nname = \"other\"\ntype = \"Other\"\nexchange = \"other\"\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    let config = postrider::config::Config::load(Some(file.as_ref()), world.settings(&settings)).unwrap();
    settings.clear();
    let relay = Relay::start(std::sync::Arc::new(config));
    relay.until("the relay carries", |snapshot| snapshot.carrying()).await;
    world.servers.management("DELETE", &format!("/api/exchanges/{}/other", world.name), "").await;

    insert(&world, "Other", (0..20).map(|n| (n % 4, n))).await;
    insert(&world, "Mine", (20..40).map(|n| (100 + n % 4, n))).await;
    // Behind what cannot be delivered, though its own exchange is there.
    insert(&world, "Mine", (40..44).map(|n| (n % 4, n))).await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(all.take(20).await.len(), 20);
    slot_passes(&world).await;
    assert_eq!(parked(&world).await, 24);
    let missing = "select count(*) from postrider.dead_letters where reason = 'exchange_missing'";
    assert!(world.count(missing).await > 0);

    world.exchange("other").await;
    world.servers.management("PUT", &format!("/api/queues/{}/others", world.name), r#"{"durable":true}"#).await;
    world.bind("other", "others", "#").await;
    let mut others = Consumer::open(&world.amqp_url, "others").await;
    let arrivals = others.take(20).await;
    in_order(&arrivals);
    assert_eq!(all.take(4).await.len(), 4);
    until_parked(&world, "the table is empty", 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_exchange_that_may_not_be_written_to_are_parked_and_come_in_order_once_it_may() {
    let mut world = World::new("revoked").await;
    world.queue("all", "#").await;
    world.queue("unread", "nothing").await;
    let user = format!("relay_{}", world.name);
    world.servers.management("PUT", &format!("/api/users/{user}"), r#"{"password":"pw","tags":""}"#).await;
    let permissions = format!("/api/permissions/{}/{user}", world.name);
    let may = r#"{"configure":"","write":"^events$","read":""}"#;
    world.servers.management("PUT", &permissions, may).await;
    let mut url = url::Url::parse(&world.amqp_url).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("pw")).unwrap();
    let (own, theirs) = (world.amqp_url.clone(), url.to_string());
    world.amqp_url = theirs;
    let relay = Relay::carrying(&world, &QUICK).await;
    insert(&world, "Before", [(0, 0)]).await;
    let mut all = Consumer::open(&own, "all").await;
    assert_eq!(all.take(1).await.len(), 1);
    relay.stop().await;

    // The broker remembers for each channel what it may do, so only a new one is refused.
    let may_not = r#"{"configure":"","write":"^$","read":""}"#;
    world.servers.management("PUT", &permissions, may_not).await;
    let relay = Relay::carrying(&world, &QUICK).await;
    insert(&world, "After", (1..81).map(|n| (n % 4, n))).await;
    slot_passes(&world).await;
    assert_eq!(parked(&world).await, 80);
    // Each probe is on a channel of its own: the connection that publishes stays.
    let lost = || relay.metric("postrider_reconnects_total{peer=\"rabbitmq\",reason=\"channel_error\"");
    let before = lost();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(before, lost(), "a failing exchange is probed without harm to the others");

    world.servers.management("PUT", &permissions, may).await;
    let arrivals = all.take(80).await;
    in_order(&arrivals);
    until_parked(&world, "the table is empty", 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_max_parked_nothing_is_read_until_there_is_room() {
    let world = World::new("maxparked").await;
    world.queue("all", "order.Routed").await;
    let settings =
        [&QUICK[..], &[("POSTRIDER_LIMITS_MAX_PARKED", "20"), ("POSTRIDER_LIMITS_WAITING", "1000")]].concat();
    let relay = Relay::carrying(&world, &settings).await;
    insert(&world, "Unroutable", (0..40).map(|n| (n, n))).await;
    let snapshot = relay.until("it stalls", |snapshot| snapshot.dead_letters.stalled.is_some()).await;
    assert_eq!((snapshot.dead_letters.stalled, snapshot.carrying()), (Some("max_parked"), false));
    assert_eq!(relay.metric("postrider_stalled{reason=\"max_parked\""), Some(1.0));
    // Whatever was read by then is safe; what is committed now stays where it is.
    insert(&world, "Routed", (0..10).map(|n| (100 + n, n))).await;
    let written = world.current_lsn().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.confirmed().await.unwrap() < written);
    assert_eq!(world.depth("all").await, 0);

    world.bind("events", "all", "order.Unroutable").await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(by_order(&all.take(50).await).len(), 50);
    slot_passes(&world).await;
    relay.until("it is ready again", |snapshot| snapshot.carrying()).await;
    assert_eq!(relay.metric("postrider_stalled{reason=\"max_parked\""), Some(0.0));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_that_was_parked_leaves_the_lot_while_its_events_keep_coming() {
    let world = World::new("hotkey").await;
    world.exchange("events").await;
    // A key of ordering "key" can have no more than one event a confirm, parked or not.
    let settings = [&QUICK[..], &[("POSTRIDER_EVENT_ORDERING", "pipelined")]].concat();
    let relay = Relay::carrying(&world, &settings).await;
    let client = connect(&world.database_url).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // A thousand a second, each in a transaction of its own, and never waits for the relay, unless that is so slow here that
    // thousands wait.
    let status = relay.status.clone();
    let writer = tokio::spawn(async move {
        let statement = "insert into outbox (aggregatetype, aggregateid, type, payload) \
                         values ('order', '0', 'Hot', jsonb_build_object('n', $1::bigint))";
        let statement = client.prepare(statement).await.unwrap();
        let mut clock = tokio::time::interval(Duration::from_millis(1));
        let mut n = 0_usize;
        while !stopped.load(SeqCst) {
            clock.tick().await;
            if status.snapshot().dead_letters.waiting < 6_000 {
                client.execute(&statement, &[&i64::try_from(n).unwrap()]).await.unwrap();
                n += 1;
            }
        }
        n
    });
    eventually("the key is parked, and a part of its events", || async {
        (parked(&world).await > 2_000).then_some(())
    })
    .await;
    world.queue("hot", "order.Hot").await;
    relay.until("the key has left the lot", |snapshot| snapshot.dead_letters.keys == 0).await;
    assert!(!writer.is_finished(), "its events keep coming");
    stop.store(true, SeqCst);
    let rows = writer.await.unwrap();
    let mut hot = Consumer::open(&world.amqp_url, "hot").await;
    let arrivals = hot.take(rows).await;
    let numbers = by_order(&arrivals).remove("0").unwrap();
    assert_eq!(numbers.len(), rows);
    assert!(numbers.is_sorted(), "nothing was refused on the wire, so nothing overtook");
    until_parked(&world, "the table is empty", 0).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_while_events_are_parked_released_and_redriven_lose_nothing_and_reorder_nothing() {
    const ORDERS: usize = 40;
    const EACH: usize = 50;
    let world = World::new("lotkills").await;
    world.queue("all", "order.Routed").await;
    let settings = world.settings(&QUICK);
    let mut program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    // Each order begins with an event that has no queue.
    insert(&world, "Unrouted", (0..ORDERS).map(|order| (order, 0))).await;
    insert(&world, "Routed", (1..EACH).flat_map(|n| (0..ORDERS).map(move |order| (order, n)))).await;
    // While they are being parked.
    for share in [1, 500, 1_500] {
        eventually("some are parked", || async { (parked(&world).await >= share).then_some(()) }).await;
        program.kill();
        program = Program::start(&settings, &["run"]);
    }
    slot_passes(&world).await;
    until_parked(&world, "all are parked", i64::try_from(ORDERS * EACH).unwrap()).await;
    world.bind("events", "all", "order.Unrouted").await;
    // While they are being released: the probes, the followers, the deletes; and while a person marks some.
    let mut left = i64::try_from(ORDERS * EACH).unwrap();
    for round in 0..8 {
        if round % 3 == 1 {
            world.sql.execute("select postrider.redrive(reason => 'behind')", &[]).await.unwrap();
        }
        eventually("some are released", || async { (parked(&world).await < left).then_some(()) }).await;
        program.kill();
        left = parked(&world).await;
        if left == 0 {
            break;
        }
        program = Program::start(&settings, &["run"]);
    }
    program.kill();
    let _program = Program::start(&settings, &["run"]);
    until_parked(&world, "the table is empty", 0).await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    let arrivals = all.rest(Duration::from_secs(3)).await;
    let orders = by_order(&arrivals);
    assert_eq!(orders.len(), ORDERS);
    for (order, numbers) in orders {
        assert_eq!(numbers, (0..EACH as u64).collect::<Vec<_>>(), "first arrivals of order {order}");
    }
    println!("{} of {} arrived again", arrivals.len() - ORDERS * EACH, ORDERS * EACH);
}
