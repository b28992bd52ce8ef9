//! Storms: nothing but poison for a while, everything refused for a while, and ten thousand dead letters redriven under fire.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::parking::{QUICK, by_order, parked, slot_passes};
use crate::support::account::{self, Account, Load};
use crate::support::consumer::Consumer;
use crate::support::relay::{Program, Relay};
use crate::support::world::{World, connect};
use crate::support::{eventually, within};

/// Larger than this is poison here.
const SMALL: (&str, &str) = ("POSTRIDER_LIMITS_MAX_MESSAGE_BYTES", "2000");

/// `keys` times `each` events, of which those with a number below `poison` are too large. In one transaction for each number.
async fn rows(world: &World, keys: usize, each: usize, poison: usize) {
    for n in 0..each {
        let pad = if n < poison { 4_000 } else { 10 };
        let insert = format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select 'order', key::text, 'Stormy', jsonb_build_object('n', {n}, 'pad', repeat('x', {pad})) from generate_series(1, {keys}) key"
        );
        world.sql.batch_execute(&insert).await.unwrap();
    }
}

async fn empty(world: &World) {
    within(Duration::from_secs(120), "the table is empty", || async { (parked(world).await == 0).then_some(()) }).await;
}

/// F70, its first half.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_poison_is_parked_up_to_the_bound_and_the_relay_lives() {
    let world = World::new("poisonstorm").await;
    world.queue("all", "#").await;
    let settings =
        [&QUICK[..], &[SMALL, ("POSTRIDER_LIMITS_MAX_PARKED", "3000"), ("POSTRIDER_LIMITS_WAITING", "1000")]].concat();
    let relay = Relay::carrying(&world, &settings).await;
    rows(&world, 2_000, 2, 2).await;
    relay.until("it stalls at the bound", |snapshot| snapshot.dead_letters.stalled == Some("max_parked")).await;
    // What was read already is parked too; no more is read. The bound counts what is on its way to the table.
    let bound = 3_000 + 1_000 + 1_000;
    eventually("all that it counts are in the table", || async { (parked(&world).await >= 3_000).then_some(()) }).await;
    let stored = parked(&world).await;
    assert!(stored < bound, "{stored} are parked");
    // A key's second event is behind its first, if that was parked before it came.
    let others = "select count(*) from postrider.dead_letters where reason not in ('too_large', 'behind')";
    assert_eq!(world.count(others).await, 0);
    assert!(world.count("select count(*) from postrider.dead_letters where reason = 'too_large'").await >= 2_000);
    assert_eq!(world.depth("all").await, 0);
    // A person decides, and the rest comes.
    world.sql.execute("select postrider.discard(everything => true)", &[]).await.unwrap();
    relay.until("it reads again", |snapshot| snapshot.dead_letters.stalled.is_none()).await;
    slot_passes(&world).await;
    eventually("the rest is discarded too", || async {
        world.sql.execute("select postrider.discard(everything => true)", &[]).await.unwrap();
        (parked(&world).await == 0).then_some(())
    })
    .await;
    world.insert("1", "Placed", "{}").await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(all.take(1).await[0].kind, "Placed");
    relay.stop().await;
}

/// F70, its second half.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_topology_leaves_nothing_parked_once_it_is_mended() {
    let world = World::new("topologystorm").await;
    world.queue("all", "#").await;
    account::prepare(&world.sql).await;
    let settings = world.settings(&QUICK);
    let mut program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    let load = Load::start(&world.database_url, 4, Duration::from_millis(5));
    eventually("events flow", || async { (load.committed() > 200).then_some(()) }).await;
    world.servers.management("DELETE", &format!("/api/exchanges/{}/events", world.name), "").await;
    eventually("events are parked", || async { (parked(&world).await > 1_000).then_some(()) }).await;
    // Nor does a restart in the middle of it keep anything.
    program.kill();
    program = Program::start(&settings, &["run"]);
    let now = parked(&world).await;
    eventually("more are parked", || async { (parked(&world).await > now + 500).then_some(()) }).await;
    world.exchange("events").await;
    world.bind("events", "all", "#").await;
    load.stop().await;
    empty(&world).await;
    slot_passes(&world).await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    Account::default().settle(&world.sql, &mut all).await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(25)).await.success());
}

/// F59.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_dead_letters_are_redriven_under_load_and_kills_and_asked_for_twice_without_a_loss() {
    const KEYS: usize = 500;
    const EACH: usize = 20;
    let world = World::new("redrivestorm").await;
    world.queue("all", "#").await;
    account::prepare(&world.sql).await;
    let small = world.settings(&[&QUICK[..], &[SMALL]].concat());
    let mut program = Program::start(&small, &["run"]);
    program.says("carrying").await;
    // The first of each key is too large; the others wait behind it.
    rows(&world, KEYS, EACH, 1).await;
    eventually("all are parked", || async { (parked(&world).await == 10_000).then_some(()) }).await;
    let stored: HashMap<String, ()> = world
        .sql
        .query("select event_id from postrider.dead_letters", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), ()))
        .collect();
    program.kill();

    let settings = world.settings(&QUICK);
    program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    let load = Load::start(&world.database_url, 2, Duration::from_millis(5));
    // Asked for twice at once, and again after each kill.
    let ask = async || {
        let client = connect(&world.database_url).await;
        client.execute("select postrider.redrive(everything => true)", &[]).await.unwrap();
    };
    tokio::join!(ask(), ask());
    for _ in 0..5 {
        let left = parked(&world).await;
        if left == 0 {
            break;
        }
        eventually("some are gone", || async { (parked(&world).await < left).then_some(()) }).await;
        program.kill();
        tokio::join!(ask(), ask());
        program = Program::start(&settings, &["run"]);
    }
    empty(&world).await;
    load.stop().await;
    slot_passes(&world).await;

    let mut all = Consumer::open(&world.amqp_url, "all").await;
    let arrivals = all.rest(Duration::from_secs(3)).await;
    let (stormy, live): (Vec<_>, Vec<_>) = arrivals.into_iter().partition(|arrival| arrival.kind == "Stormy");
    assert!(stormy.iter().all(|arrival| stored.contains_key(&arrival.id)), "the ids are those that were parked");
    let orders: BTreeMap<String, Vec<u64>> = by_order(&stormy);
    assert_eq!(orders.len(), KEYS);
    for (order, numbers) in orders {
        assert_eq!(numbers, (0..EACH as u64).collect::<Vec<_>>(), "first arrivals of order {order}");
    }
    println!("{} of {} redriven ones arrived again", stormy.len() - KEYS * EACH, KEYS * EACH);
    let mut account = Account::default();
    live.into_iter().for_each(|arrival| account.enter(arrival));
    // The audit knows of the load only; the queue is empty.
    account.settle(&world.sql, &mut all).await;
}
