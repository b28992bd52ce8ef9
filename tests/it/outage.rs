//! One server is away, full or shutting down. These tests break their servers, so they own them.

use std::time::{Duration, Instant};

use postrider::status::Snapshot;

use crate::support::consumer::Consumer;
use crate::support::own::{Own, pair};
use crate::support::relay::{Program, Relay};
use crate::support::world::World;
use crate::support::{eventually, within};

/// What an operator allows `pg_ctl stop -m fast` (guarantee G7).
const FAST: Duration = Duration::from_secs(10);

/// Stops PostgreSQL in fast mode, says how long it took, and starts it again.
fn fast_shutdown(postgres: &Own, situation: &str) {
    let began = Instant::now();
    postgres.command("stop", &["fast"]);
    let took = began.elapsed();
    println!("fast shutdown, {situation}: {:.1} s", took.as_secs_f64());
    assert!(took < FAST, "fast shutdown took {took:?}: {situation}");
    postgres.command("start-again", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_of_postgresql_never_waits_for_the_relay() {
    let postgres = Own::postgres(&["-c", "max_wal_size=4GB"]);
    let rabbitmq = Own::rabbitmq(&[]);
    let mut world = World::bare(pair(&postgres, &rabbitmq), "fast").await;
    world.migrate().await;
    world.queue("all", "order.Placed").await;
    // No heartbeat is due again: nothing but the end of the SQL session tells the relay of the shutdown.
    let quiet = [("POSTRIDER_LIMITS_HEARTBEAT_INTERVAL", "1h")];
    let relay = Relay::carrying(&world, &quiet).await;

    world.insert("1", "NobodyIsBound", "{}").await;
    relay.until("an event is held", |snapshot| snapshot.held_keys == 1).await;
    fast_shutdown(&postgres, "an event held");
    relay.until("the relay carries again", Snapshot::carrying).await;
    world.bind("events", "all", "order.#").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    consumer.take(1).await;

    world.reconnect().await;
    rabbitmq.block();
    world.insert("2", "Placed", "{}").await;
    relay.until("the broker is blocked", |snapshot| snapshot.broker_blocked.is_some()).await;
    fast_shutdown(&postgres, "broker blocked");
    rabbitmq.unblock();
    relay.until("the relay carries again", Snapshot::carrying).await;
    consumer.take(1).await;

    world.reconnect().await;
    rabbitmq.command("stop", &[]);
    world.insert("3", "Placed", "{}").await;
    relay.until("the broker is missed", |snapshot| !snapshot.broker_up).await;
    fast_shutdown(&postgres, "broker down");
    rabbitmq.command("start-again", &[]);
    relay.until("the relay carries again", Snapshot::carrying).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    consumer.take(1).await;
    relay.stop().await;

    world.reconnect().await;
    world
        .sql
        .batch_execute(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select 'order', (n % 1000)::text, 'Backlog', '{}' from generate_series(1, 1000000) n;
             checkpoint",
        )
        .await
        .unwrap();
    let relay = Relay::carrying(&world, &quiet).await;
    eventually("the backlog is being delivered", || async {
        relay.metric("postrider_events_published_total").filter(|count| *count > 100.0)
    })
    .await;
    fast_shutdown(&postgres, "a backlog of a million rows");
    let delivered = relay.metric("postrider_events_confirmed_total").unwrap();
    assert!(delivered < 1_000_000.0, "the backlog was still there");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_for_a_minute_loses_nothing_and_memory_stays_flat() {
    let rabbitmq = Own::rabbitmq(&[]);
    let postgres = Own::postgres(&[]);
    let world = World::bare(pair(&postgres, &rabbitmq), "away").await;
    world.migrate().await;
    world.queue("all", "#").await;
    let mut program = Program::start(&world.settings(&[]), &["run"]);
    program.says("carrying").await;

    // 100 rows in each of many transactions, from before the outage until after it: were they kept, memory would grow by 80 MB or more.
    let writer = crate::support::world::connect(&world.database_url).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let load = tokio::spawn(async move {
        let mut stopped = stopped;
        let statement = "insert into outbox (aggregatetype, aggregateid, type, payload, sequence)
            select 'order', n::text, 'Placed', pg_catalog.jsonb_build_object('pad', repeat('x', 1200)), $1 from generate_series(1, 100) n";
        let mut sequence = 0_i64;
        while stopped.try_recv().is_err() {
            sequence += 1;
            writer.execute(statement, &[&sequence]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        sequence
    });
    within(Duration::from_secs(30), "events arrive", || async { (world.depth("all").await > 1000).then_some(()) })
        .await;

    rabbitmq.command("stop", &[]);
    let down = Instant::now();
    // What was confirmed before the broker went may still be acknowledged; then the slot must stand still.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let stood_at = world.confirmed().await.unwrap();
    let mut peak = 0;
    let at_first = program.rss_kib();
    while down.elapsed() < Duration::from_secs(60) {
        peak = peak.max(program.rss_kib());
        assert_eq!(world.confirmed().await, Some(stood_at), "the slot waits for the undelivered rows");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("memory during the outage: {at_first} KiB at first, {peak} KiB at most");
    assert!(peak < at_first + 65_536, "memory stays flat: {at_first} KiB, then {peak} KiB");
    rabbitmq.command("start-again", &[]);
    stop.send(()).unwrap();
    let transactions = load.await.unwrap();

    let total = usize::try_from(transactions * 100).unwrap();
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let mut seen = std::collections::HashSet::new();
    let mut sequences = std::collections::HashMap::<String, i64>::new();
    while seen.len() < total {
        let arrival = consumer.next(Duration::from_secs(60)).await;
        let arrival = arrival.unwrap_or_else(|| panic!("{} of {total} events came", seen.len()));
        if seen.insert(arrival.id.clone()) {
            let sequence: i64 = arrival.header("sequence").unwrap().parse().unwrap();
            let last = sequences.insert(arrival.header("aggregateid").unwrap(), sequence).unwrap_or(0);
            assert_eq!(sequence, last + 1, "first arrivals of a key are in commit order");
        }
    }
    eventually("the slot moves on", || async { (world.confirmed().await? > stood_at).then_some(()) }).await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(20)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_program_in_time_while_the_broker_is_blocked() {
    let rabbitmq = Own::rabbitmq(&[]);
    let postgres = Own::postgres(&[]);
    let world = World::bare(pair(&postgres, &rabbitmq), "blocked").await;
    world.migrate().await;
    world.queue("all", "#").await;
    let mut program = Program::start(&world.settings(&[]), &["run"]);
    program.says("carrying").await;
    rabbitmq.block();
    world.insert("1", "Placed", "{}").await;
    program.says("blocked").await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(20)).await.success(), "{}", program.log());

    rabbitmq.unblock();
    let relay = Relay::carrying(&world, &[]).await;
    Consumer::open(&world.amqp_url, "all").await.take(1).await;
    relay.stop().await;
}
