//! The disk of PostgreSQL is full (F49).

use std::time::Duration;

use crate::parking::{QUICK, slot_passes};
use crate::support::account::{self, Account, Load};
use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::own::{Own, pair};
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

/// The usual way there: the broker is away, and the slot keeps the WAL.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_that_ends_the_server_costs_no_row_that_was_committed() {
    if std::env::var("POSTRIDER_TEST_ENGINE").is_ok_and(|engine| engine == "local") {
        println!("left out: private servers have no disk of their own");
        return;
    }
    // One that starts itself again would do so with whatever room there is.
    let postgres = Own::postgres(&[
        "--disk",
        "192",
        "-c",
        "restart_after_crash=off",
        "-c",
        "max_wal_size=64MB",
        "-c",
        "min_wal_size=32MB",
    ]);
    let rabbitmq = Own::rabbitmq(&[]);
    let mut world = World::bare(pair(&postgres, &rabbitmq), "full").await;
    world.migrate().await;
    world.queue("all", "#").await;
    account::prepare(&world.sql).await;
    let mut program = Program::start(&world.settings(&[]), &["run"]);
    program.says("carrying").await;
    let load = Load::start(&world.database_url, 4, Duration::from_millis(2));
    eventually("events flow", || async { (load.committed() > 500).then_some(()) }).await;

    rabbitmq.command("stop", &[]);
    let before = load.committed();
    eventually("rows are committed meanwhile", || async { (load.committed() > before + 500).then_some(()) }).await;
    postgres.command("fill", &[]);
    // Each of them wants a segment that nobody has made yet.
    let switch = "select pg_logical_emit_message(false, 'full', 'x'); select pg_switch_wal()";
    eventually("the server has given up", || async {
        world.admin.batch_execute(switch).await.ok();
        world.admin.is_closed().then_some(())
    })
    .await;
    let ended = || async { postgres.command("logs", &[]).contains("database system is shut down").then_some(()) };
    eventually("the server has ended", ended).await;
    let log = postgres.command("logs", &[]);
    assert!(log.contains("PANIC") && log.contains("No space left on device"), "{log}");
    let committed = load.committed();

    postgres.command("spare", &[]);
    postgres.command("start-again", &[]);
    rabbitmq.command("start-again", &[]);
    world.reconnect().await;
    slot_passes(&world).await;
    eventually("the writers go on", || async { (load.committed() > committed + 200).then_some(()) }).await;
    load.stop().await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    Account::default().settle(&world.sql, &mut consumer).await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(25)).await.success());
}

/// Rule R8. The cause is a trigger that answers as a full disk does: its own UPDATE needs no new page, so that on a real
/// one the server's WAL would end first.
#[tokio::test(flavor = "multi_thread")]
async fn progress_that_cannot_be_written_does_not_keep_wal() {
    let world = World::new("disk_full").await;
    world.queue("all", "#").await;
    let mut program = Program::start(&world.settings(&QUICK), &["run"]);
    program.says("carrying").await;
    world
        .sql
        .batch_execute(
            "create function full_disk() returns trigger language plpgsql as $$
                begin raise exception 'could not extend file: No space left on device' using errcode = 'disk_full'; end $$;
             create trigger full_disk before update on postrider.progress for each row execute function full_disk()",
        )
        .await
        .unwrap();
    let recorded = "select intended_lsn::text from postrider.progress";
    let before: String = world.sql.query_one(recorded, &[]).await.unwrap().get(0);
    for n in 0..200 {
        world.insert(&n.to_string(), "Placed", "{}").await;
    }
    slot_passes(&world).await;
    let after: String = world.sql.query_one(recorded, &[]).await.unwrap().get(0);
    assert_eq!(before, after, "nothing could be written");
    program.says("cannot write postrider.progress; acknowledging without it").await;
    world.sql.batch_execute("drop trigger full_disk on postrider.progress").await.unwrap();
    world.insert("1", "Placed", "{}").await;
    let written = world.current_lsn().await;
    let caught_up = format!("select count(*) from postrider.progress where intended_lsn >= '{written}'");
    slot_passes(&world).await;
    eventually("the record is written again", || async { (world.count(&caught_up).await == 1).then_some(()) }).await;
    Consumer::open(&world.amqp_url, "all").await.take(201).await;
    // The record that has caught up lets another process go on.
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(25)).await.success());
    Relay::carrying(&world, &[]).await.stop().await;
}
