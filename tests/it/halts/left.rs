//! What a halt leaves in `postrider.halts` when writing there takes its time. Each is a halt that cannot be found a second time: the
//! publication is what it was by the time that anybody looks again.

use std::time::{Duration, Instant};

use postrider::status::Role;
use tokio_postgres::Client;

use super::Stage;
use crate::support::eventually;
use crate::support::relay::Relay;
use crate::support::world::{World, connect};

/// While it lives nobody writes into `postrider.halts`, and everybody reads it.
async fn nobody_writes_halts(world: &World) -> Client {
    let client = connect(world.database_url.as_str()).await;
    client.batch_execute("begin; lock table postrider.halts in exclusive mode").await.unwrap();
    client
}

/// Rows are committed that the publication leaves out, until a relay has seen it and wants to say so; then it is what it was.
async fn gap(stage: &Stage) {
    stage.world.sql.batch_execute("alter publication postrider set (publish = 'update')").await.unwrap();
    stage.insert("gap", 2).await;
    wants_to_write(&stage.world).await;
    stage.world.sql.batch_execute("alter publication postrider set (publish = 'insert')").await.unwrap();
}

async fn wants_to_write(world: &World) {
    waiting_to_write(world, 1, "a relay wants to leave its halt").await;
}

async fn waiting_to_write(world: &World, relays: i64, what: &str) {
    let waiting = "select count(*) from pg_locks where relation = 'postrider.halts'::regclass and not granted";
    eventually(what, async || (world.count(waiting).await == relays).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_does_not_take_the_slot_before_the_halt_of_the_other_is_left() {
    let (mut stage, active) = Stage::new(World::new("h_standby").await).await;
    let standby = Relay::start(stage.world.config(&[]));
    standby.until("it stands by", |snapshot| snapshot.standing_by).await;
    let lock = nobody_writes_halts(&stage.world).await;
    gap(&stage).await;
    // It asks for the lock twice in this time.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert!(standby.status.snapshot().standing_by, "{:?}", standby.status.snapshot());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lock.batch_execute("commit").await.unwrap();
    standby.until("the standby halts too", |snapshot| snapshot.role == Role::Halted).await;
    standby.stop().await;
    stage.get_over(&active, "publication_changed", &["gap0", "gap1"], &[]).await;
    active.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halt_that_could_not_be_left_when_it_was_found_is_left_later() {
    let (mut stage, relay) = Stage::new(World::new("h_later").await).await;
    let lock = nobody_writes_halts(&stage.world).await;
    gap(&stage).await;
    let halted = relay.until("it halts without having left it", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(stage.world.count("select count(*) from postrider.halts").await, 0);
    waiting_to_write(&stage.world, 0, "the relay gives up for now").await;
    wants_to_write(&stage.world).await;
    lock.batch_execute("commit").await.unwrap();
    eventually("it is left", async || {
        (stage.world.count("select count(*) from postrider.halts").await == 1).then_some(())
    })
    .await;
    let snapshot = relay.status.snapshot();
    assert_eq!((snapshot.role, snapshot.problem), (Role::Halted, halted.problem));
    stage.get_over(&relay, "publication_changed", &["gap0", "gap1"], &[]).await;
    relay.stop().await;
}
