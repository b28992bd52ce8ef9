//! Bounded memory (guarantee G6): at most 128 MiB and four times the largest row, whatever the load and however long an outage.

use std::time::Duration;

use crate::parking::{QUICK, until_parked};
use crate::support::consumer::Consumer;
use crate::support::own::Own;
use crate::support::relay::Program;
use crate::support::servers::{self, Servers};
use crate::support::within;
use crate::support::world::World;

const MIB: u64 = 1024;
const BASE: u64 = 128 * MIB;

/// In KiB, and for whom.
fn stays_within(program: &Program, largest_row: u64, when: &str) {
    let (peak, bound) = (program.peak_rss_kib(), BASE + 4 * largest_row);
    println!("{when}: {:.1} MiB at most, of {} allowed", peak as f64 / 1024.0, bound / MIB);
    assert!(peak <= bound, "{when}: {peak} KiB, {bound} allowed");
}

async fn passes(world: &World, patience: Duration) {
    let written = world.current_lsn().await;
    within(patience, "the slot passes", || async { world.confirmed().await.filter(|lsn| *lsn >= written) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_after_an_outage_and_large_rows_take_no_more_memory_than_is_said() {
    let rabbitmq = Own::rabbitmq(&[]);
    let servers = Servers {
        amqp_url: rabbitmq.url("AMQP_URL"),
        management_url: rabbitmq.url("MANAGEMENT_URL"),
        ..servers::shared().await
    };
    let world = World::bare(servers, "memory").await;
    world.migrate().await;
    world.queue("all", "#").await;
    let program = Program::start(&world.settings(&[]), &["run"]);
    program.says("carrying").await;

    // One transaction of 200,000 keys, committed while there is no broker.
    rabbitmq.command("stop", &["kill"]);
    let rows = 200_000;
    let insert = format!(
        "insert into outbox (aggregatetype, aggregateid, type, payload)
         select 'order', n::text, 'Placed', jsonb_build_object('n', n, 'pad', repeat('x', 300)) from generate_series(1, {rows}) n"
    );
    world.sql.batch_execute(&insert).await.unwrap();
    program.says("no usable connection to RabbitMQ").await;
    stays_within(&program, 1, "an outage with a transaction of 200,000 rows behind it");
    rabbitmq.command("start-again", &[]);
    passes(&world, Duration::from_secs(180)).await;
    stays_within(&program, 1, "a transaction of 200,000 rows and keys");

    // Next to the largest that RabbitMQ takes.
    for mib in [1_u64, 4, 8, 15] {
        for _ in 0..6 {
            let insert = "insert into outbox (aggregatetype, aggregateid, type, payload)
                select 'order', n::text, 'Large', jsonb_build_object('pad', repeat('x', $1::integer)) from generate_series(1, 2) n";
            world.sql.execute(insert, &[&i32::try_from(mib << 20).unwrap()]).await.unwrap();
        }
        passes(&world, Duration::from_secs(60)).await;
        stays_within(&program, mib * MIB, &format!("rows of {mib} MiB"));
    }
    let left = world.depth("all").await;
    assert_eq!(left, rows + 4 * 12, "each of them once: nothing failed on the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_parked_keys_take_no_more_memory_than_is_said() {
    let world = World::new("lotmemory").await;
    world.exchange("events").await;
    let program = Program::start(&world.settings(&QUICK), &["run"]);
    program.says("carrying").await;
    world
        .sql
        .batch_execute(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select 'order', (n % 10000)::text, 'Unread', jsonb_build_object('n', n, 'pad', repeat('x', 1000)) from generate_series(0, 19999) n",
        )
        .await
        .unwrap();
    passes(&world, Duration::from_secs(120)).await;
    until_parked(&world, "all are parked", 20_000).await;
    stays_within(&program, 1, "10,000 parked keys");
    world.queue("all", "#").await;
    within(Duration::from_secs(120), "the table is empty", || async {
        (world.count("select count(*) from postrider.dead_letters").await == 0).then_some(())
    })
    .await;
    stays_within(&program, 1, "10,000 keys released");
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(all.take(20_000).await.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_a_captured_table_takes_no_more_memory_than_is_said() {
    let world = World::bare(servers::shared().await, "table_memory").await;
    world.sql.batch_execute("create table wide (id int primary key, pad text)").await.unwrap();
    let settings = [
        ("POSTRIDER_SOURCE_TABLES", "wide"),
        ("POSTRIDER_EVENT_FORMAT", "debezium"),
        ("POSTRIDER_DEBEZIUM_TRANSACTION_METADATA", "true"),
    ];
    world.migrate_with(&settings).await;
    world.queue("all", "#").await;
    let program = Program::start(&world.settings(&settings), &["run"]);
    program.says("carrying").await;
    // Keys that change, and a barrier behind them all.
    world
        .sql
        .batch_execute(
            "begin; insert into wide select n, repeat('x', 300) from generate_series(1, 50000) n;
             update wide set pad = pad || 'y'; update wide set id = -id; truncate wide; insert into wide values (1, 'after'); commit",
        )
        .await
        .unwrap();
    passes(&world, Duration::from_secs(300)).await;
    stays_within(&program, 1, "a transaction of 150,000 changes");
    // A key that changes is a delete, a tombstone and a create; one truncate, one row, BEGIN and END.
    assert_eq!(world.depth("all").await, 50_000 * (1 + 1 + 3) + 4);
}
