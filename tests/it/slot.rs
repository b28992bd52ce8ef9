//! The slot: its making at first start, and what the relay refuses to resume from.

use std::time::Duration;

use postrider::dead_letters::desk::desk;
use postrider::postgres::sql::Sql;
use postrider::postgres::state::{self, Reached, Source};
use postrider::postgres::url::Target;
use postrider::postgres::witness::Witness;
use postrider::state_writer::{StateWriter, Watched, Written};
use postrider::status::{Role, Snapshot};

use crate::support::consumer::Consumer;
use crate::support::own::Own;
use crate::support::relay::{Program, Relay};
use crate::support::world::{World, connect};
use crate::support::{eventually, servers};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_says_how_many_rows_were_committed_before_the_slot() {
    let world = World::new("earlier").await;
    world.queue("all", "#").await;
    for number in 0..3 {
        world.insert(&number.to_string(), "TooEarly", "{}").await;
    }
    let program = Program::start(&world.settings(&[]), &["run"]);
    program.says("3 rows of public.outbox were committed before it existed").await;
    program.says("carrying").await;
    world.insert("9", "InTime", "{}").await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(consumer.take(1).await[0].kind, "InTime");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_cannot_be_made_names_the_session_and_the_prepared_transaction_in_its_way() {
    // Prepared transactions have to be allowed, and nobody else's transaction may be in the way: a server of its own.
    let postgres = Own::postgres(&["-c", "max_prepared_transactions=5"]);
    let shared = servers::shared().await;
    let database_url = postgres.url("DATABASE_URL");
    let world = World::bare(servers::Servers { database_url, ..shared }, "blockers").await;
    world.migrate().await;
    world
        .sql
        .batch_execute("begin; insert into outbox (aggregatetype, aggregateid, type, payload) values ('o', '1', 'X', '{}'); prepare transaction 'forgotten'")
        .await
        .unwrap();
    let idle = connect(&format!("{}?application_name=sleepy", world.database_url)).await;
    idle.batch_execute("begin; select pg_current_xact_id()").await.unwrap();

    let relay = Relay::start(world.config(&[]));
    let problem = relay
        .until("it names them", |snapshot| {
            snapshot.problem.as_deref().is_some_and(|problem| problem.contains("forgotten"))
        })
        .await
        .problem
        .unwrap();
    assert!(problem.contains("sleepy") && problem.contains("pg_terminate_backend"), "{problem}");
    assert_eq!(world.confirmed().await, None, "no half-made slot is left");

    idle.batch_execute("rollback").await.unwrap();
    world.sql.batch_execute("rollback prepared 'forgotten'").await.unwrap();
    relay.until("the relay carries", Snapshot::carrying).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_is_not_made_again_in_silence() {
    let world = World::new("gone").await;
    Relay::carrying(&world, &[]).await.stop().await;
    world.admin.execute("select pg_drop_replication_slot($1)", &[&world.name]).await.unwrap();
    world.insert("1", "InTheGap", "{}").await;
    let relay = Relay::start(world.config(&[]));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    let problem = snapshot.problem.unwrap();
    assert!(problem.contains("is gone") && problem.contains("postrider adopt"), "{problem}");
    assert_eq!(world.confirmed().await, None);

    // What the message says is the way out.
    world.postrider(&["adopt", "--reason", "test"]);
    relay.until("the relay carries", Snapshot::carrying).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_broker_does_not_end_a_halt() {
    let world = World::new("still_halted").await;
    Relay::carrying(&world, &[]).await.stop().await;
    world.admin.execute("select pg_drop_replication_slot($1)", &[&world.name]).await.unwrap();
    let relay = Relay::start(world.config(&[]));
    relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    world.servers.management("DELETE", &format!("/api/vhosts/{}", world.name), "").await;
    let other = |snapshot: &Snapshot| snapshot.problem.as_ref().is_some_and(|problem| !problem.contains("is gone"));
    let snapshot = relay.until("the broker is the trouble now", other).await;
    assert_eq!(snapshot.role, Role::Halted, "{:?}", snapshot.problem);
    assert_eq!(relay.metric(r#"postrider_halted{reason="slot_missing","#), Some(1.0));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halt_ends_for_the_relay_that_carries_and_for_the_one_that_stands_by() {
    let world = World::new("halts").await;
    Relay::carrying(&world, &[]).await.stop().await;
    world.admin.execute("select pg_drop_replication_slot($1)", &[&world.name]).await.unwrap();
    let relays = [Relay::start(world.config(&[])), Relay::start(world.config(&[]))];
    let halted = r#"postrider_halted{reason="slot_missing","#;
    for relay in &relays {
        eventually("it halts", async || relay.metric(halted).filter(|&halted| halted == 1.0)).await;
    }
    world.postrider(&["adopt", "--reason", "test"]);
    for relay in &relays {
        eventually("its halt ends", async || relay.metric(halted).filter(|&halted| halted == 0.0)).await;
        relay.until("it is not halted", |snapshot| snapshot.role != Role::Halted).await;
    }
    eventually("one carries", async || relays.iter().find(|relay| relay.status.snapshot().ready())).await;
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_advanced_is_not_resumed_from() {
    let world = World::new("advanced").await;
    Relay::carrying(&world, &[]).await.stop().await;
    world.insert("1", "Skipped", "{}").await;
    world.sql.execute("select pg_replication_slot_advance($1, pg_current_wal_lsn())", &[&world.name]).await.unwrap();
    let confirmed = world.confirmed().await.unwrap().to_string();
    let relay = Relay::start(world.config(&[]));
    let problem = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await.problem.unwrap();
    assert!(problem.contains(&confirmed), "the message holds the interval: {problem}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_something_else_made_is_not_taken() {
    let world = World::new("foreign").await;
    world.sql.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&world.name]).await.unwrap();
    let relay = Relay::start(world.config(&[]));
    let problem = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await.problem.unwrap();
    assert!(problem.contains("POSTRIDER_SLOT"), "{problem}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_loses_its_table_is_named_with_the_statement_that_mends_it() {
    let world = World::new("shrunk").await;
    world.sql.batch_execute("alter publication postrider drop table outbox").await.unwrap();
    let relay = Relay::start(world.config(&[]));
    let problem = relay.problem().await;
    let statement = problem.split('`').nth(1).unwrap_or_default().to_owned();
    assert!(statement.starts_with("alter publication"), "{problem}");
    world.sql.batch_execute(&statement).await.unwrap();
    relay.until("the relay carries", Snapshot::carrying).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_a_relay_that_was_overtaken_are_refused_and_end_its_session() {
    let world = World::new("fenced").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let epoch = relay.status.snapshot().relay_epoch.unwrap();
    // As if another relay had taken over while this one was frozen.
    world
        .sql
        .execute("update postrider.progress set relay_epoch = relay_epoch + 1 where slot = $1", &[&world.name])
        .await
        .unwrap();
    world.insert("1", "Placed", "{}").await;
    let snapshot = relay
        .until("a new session with a new epoch", |snapshot| {
            snapshot.relay_epoch.is_some_and(|now| now > epoch) && snapshot.carrying()
        })
        .await;
    assert_eq!(snapshot.relay_epoch, Some(epoch + 2));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_replication_or_sql_session_starts_again_and_loses_nothing() {
    let world = World::new("terminated").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    for (number, backend) in ["walsender", "client backend"].iter().enumerate() {
        let epoch = relay.status.snapshot().relay_epoch;
        let statement = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1 and backend_type = $2";
        let ended: i64 =
            world.admin.query_one(statement, &[&format!("postrider/{}", world.name), backend]).await.unwrap().get(0);
        assert!(ended >= 1, "there is a {backend}");
        world.insert(&number.to_string(), "Placed", "{}").await;
        eventually("a new session", || async { (relay.status.snapshot().relay_epoch > epoch).then_some(()) }).await;
        consumer.take(1).await;
    }
    let connections = "select count(*) from pg_stat_activity where application_name like '%' || $1 || '%'";
    let count: i64 = world.admin.query_one(connections, &[&world.name]).await.unwrap().get(0);
    assert!(count <= 3, "three steady connections at most, not {count}");
    relay.stop().await;
    assert!(consumer.rest(Duration::from_secs(1)).await.len() <= 2);
}

/// On one thread, so that the writer waits for its next command whenever the test waits for its answer.
#[tokio::test]
async fn the_last_acknowledgement_can_be_recorded_when_the_publisher_is_gone() {
    let world = World::new("lastwords").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    relay.stop().await;
    let target = Target::parse(&world.database_url, false).unwrap();
    let mut sql = Sql::connect(&target, "it", Duration::from_secs(30)).await.unwrap();
    let source = Source { timeline: 1, epoch: 0, publication: "as it was" };
    let (epoch, _) = state::take_over(sql.client_mut(), &world.name, source).await.unwrap();
    let (desk, registry) = desk();
    let watched = Watched { witness: Witness::new(None, &world.name), publication: "as it was".to_owned() };
    let mut writer = StateWriter::start(sql, world.config(&[]), watched, epoch, registry);
    drop(desk);
    let lsn = world.current_lsn().await;
    for _ in 0..3 {
        assert!(writer.progress(Reached { intended: lsn, acknowledged: lsn, heartbeat: None }));
        let written = tokio::time::timeout(Duration::from_secs(30), writer.written()).await.expect("an answer");
        assert!(matches!(written, Written::Progress { result: Ok(()), .. }), "{written:?}");
    }
}
