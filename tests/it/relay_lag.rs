//! How late the relay is, and what the slot keeps, by PostgreSQL's own account (rule R10).

use std::time::Duration;

use postrider::lag;

use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::relay::Relay;
use crate::support::world::{World, connect};

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_shows_its_age_from_the_first_delivery_on_and_none_at_its_end() {
    const OLD: f64 = 8.0;
    let world = World::new("backlog").await;
    world.queue("all", "#").await;
    Relay::carrying(&world, &[]).await.stop().await;
    // Of one key, so that it takes a while.
    let statement = "insert into outbox (aggregatetype, aggregateid, type, payload) select 'order', '1', 'Placed', '{}' from generate_series(1, 2000)";
    world.sql.batch_execute(statement).await.unwrap();
    eventually("the backlog is old", || async {
        let age = "select extract(epoch from clock_timestamp() - max(occurred_at))::float8 from outbox";
        (world.sql.query_one(age, &[]).await.unwrap().get::<_, f64>(0) > OLD).then_some(())
    })
    .await;
    // A later transaction, so that something is delivered while the last is not.
    world.sql.batch_execute(statement).await.unwrap();

    let relay = Relay::start(world.config(&[]));
    let first = eventually("something is delivered", || async { relay.metrics.delivery_lag_seconds() }).await;
    let oldest = "select extract(epoch from clock_timestamp() - min(occurred_at))::float8 from outbox";
    let oldest = world.sql.query_one(oldest, &[]).await.unwrap().get::<_, f64>(0);
    // The two clocks are compared to some hundredths of a second.
    assert!(
        (OLD..oldest + 1.0).contains(&first),
        "{first} s, as old as what was delivered first, and that is {oldest} s"
    );
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    consumer.take(4_000).await;
    eventually("nothing is late", || async { relay.metrics.delivery_lag_seconds().filter(|lag| *lag < 2.0) }).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_grows_behind_an_event_that_is_held_and_ends_with_it() {
    let world = World::new("late").await;
    world.queue("all", "order.Placed").await;
    let relay = Relay::carrying(&world, &[("POSTRIDER_EVENT_ON_UNROUTABLE", "hold")]).await;
    world.insert("1", "Placed", "{}").await;
    world.insert("2", "Unbound", "{}").await;
    eventually("the lag grows", || async { relay.metrics.delivery_lag_seconds().filter(|lag| *lag > 5.0) }).await;
    // What is delivered behind it does not hide it.
    world.insert("3", "Placed", "{}").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    consumer.take(2).await;
    assert!(relay.metrics.delivery_lag_seconds().unwrap() > 5.0);
    world.bind("events", "all", "order.Unbound").await;
    consumer.take(1).await;
    eventually("nothing is late", || async { relay.metrics.delivery_lag_seconds().filter(|lag| *lag < 2.0) }).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_holds_the_restart_lsn_back_is_named() {
    let world = World::new("held_back").await;
    let relay = Relay::carrying(&world, &[]).await;
    let holder = connect(&world.database_url).await;
    // Only one that has written something is waited for.
    holder.batch_execute("begin; select pg_logical_emit_message(true, 'noise', 'x')").await.unwrap();
    let own = holder.query_one("select pg_backend_pid(), pg_current_xact_id()::xid::text", &[]).await.unwrap();
    let (pid, xid): (i32, String) = (own.get(0), own.get(1));
    let config = world.config(&[]);
    let named = async {
        eventually("the holder is named", || async {
            // Three segments more than the slot may be behind without anybody's doing.
            world.admin.batch_execute("select pg_logical_emit_message(false, 'noise', 'x')").await.unwrap();
            world.admin.batch_execute("select pg_switch_wal()").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let holders = relay.status.snapshot().slot_state?.restart_held_by;
            holders.into_iter().find(|holder| holder.pid == Some(pid))
        })
        .await
    };
    let holder_found = tokio::select! {
        found = named => found,
        () = lag::sample_slot(&config, &relay.metrics, &relay.status) => panic!("the sampler ended"),
    };
    assert_eq!(holder_found.xid, xid);
    assert!(holder_found.description.contains(&format!("pg_terminate_backend({pid})")), "{holder_found:?}");
    let age = relay.metric("postrider_slot_catalog_xmin_age").unwrap();
    assert!(age >= 0.0, "{age}");
    assert!(relay.metric("postrider_slot_retained_bytes").unwrap() > 16.0 * 1024.0 * 1024.0);
    relay.stop().await;
}
