//! Each halt, from the fault to a relay that carries again by nothing but what the messages say (guarantee G8).

mod left;

use std::collections::BTreeSet;
use std::time::Duration;

use postrider::lsn::Lsn;
use postrider::status::{Role, Snapshot};
use tokio_postgres::Client;

use crate::support::consumer::Consumer;
use crate::support::own::Own;
use crate::support::relay::{Program, Relay};
use crate::support::servers::{self, Servers};
use crate::support::world::World;
use crate::support::{eventually, within};

/// A relay that has carried an event, of which everybody knows that it is delivered.
struct Stage {
    world: World,
    consumer: Consumer,
}

impl Stage {
    async fn new(world: World) -> (Stage, Relay) {
        world.queue("all", "#").await;
        let consumer = Consumer::open(&world.amqp_url, "all").await;
        let relay = Relay::carrying(&world, &[]).await;
        let mut stage = Stage { world, consumer };
        stage.insert("before", 1).await;
        stage.consumer.take(1).await;
        stage.settled().await;
        (stage, relay)
    }

    async fn insert(&self, name: &str, rows: usize) {
        for row in 0..rows {
            self.world.insert(&format!("{name}{row}"), "Placed", "{}").await;
        }
    }

    /// Every row counts as delivered.
    async fn settled(&self) {
        let unknown = "select count(*) from postrider.outbox_status where state <> 'delivered'";
        eventually("every row is known to be delivered", async || (self.world.count(unknown).await == 0).then_some(()))
            .await;
    }

    /// Aggregates of the next events, as a set.
    async fn take(&mut self, events: usize) -> BTreeSet<String> {
        self.consumer.take(events).await.into_iter().map(|arrival| arrival.header("aggregateid").unwrap()).collect()
    }

    /// Looks, accepts and repairs, as the message says. `gap`: what has to come then, and what comes besides, by itself.
    async fn get_over(&mut self, relay: &Relay, reason: &str, gap: &[&str], besides: &[&str]) -> Snapshot {
        let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
        let problem = snapshot.problem.clone().unwrap();
        let doubt = snapshot.halt.clone().unwrap();
        println!("{problem}");
        assert_eq!(doubt.reason, reason, "{problem}");
        assert!(
            problem.contains(&doubt.from_lsn) && problem.contains(&doubt.to_lsn),
            "both ends of the interval: {problem}"
        );
        doubt.from_lsn.parse::<Lsn>().unwrap();
        assert_eq!(relay.metric(&format!(r#"postrider_halted{{reason="{reason}","#)), Some(1.0));
        assert!(!snapshot.ready());
        no_walsender(&self.world).await;
        let nothing: Vec<_> = self.consumer.rest(Duration::from_millis(500)).await;
        assert!(nothing.is_empty(), "a halted relay publishes nothing: {nothing:?}");

        let counted = self.world.postrider(&["repair", "--dry-run"]);
        assert!(counted.contains(&format!("in doubt    {} rows", gap.len())), "{counted}");
        let refused = self.world.refused(&["repair"]);
        assert!(refused.contains("adopt"), "{refused}");
        println!("{}", self.world.postrider(&["adopt", "--reason", "the test says so"]));
        let snapshot = relay.until("the relay carries again", Snapshot::carrying).await;
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(self.take(besides.len()).await, set(besides));
        let repaired = self.world.postrider(&["repair"]);
        assert!(repaired.contains(&format!("{} rows sent again", gap.len())), "{repaired}");
        assert_eq!(self.take(gap.len()).await, set(gap));
        self.settled().await;
        assert!(self.world.postrider(&["repair", "--dry-run"]).contains("in doubt    0 rows"));
        let kept = "select count(*) from postrider.adoptions where reason = 'the test says so' and halt = $1";
        assert_eq!(self.world.sql.query_one(kept, &[&reason]).await.unwrap().get::<_, i64>(0), 1);
        assert_eq!(self.world.count("select count(*) from postrider.halts").await, 0);
        self.insert("after", 1).await;
        let after = self.consumer.take(1).await;
        assert!(after[0].header("x-postrider-position").unwrap().as_str() > "00000001", "a new source epoch");
        snapshot
    }
}

async fn no_walsender(world: &World) {
    let walsenders = "select count(*) from pg_stat_activity where backend_type = 'walsender' and datname = $1";
    eventually("the replication connection is closed", async || {
        let count: i64 = world.admin.query_one(walsenders, &[&world.name]).await.unwrap().get(0);
        (count == 0).then_some(())
    })
    .await;
}

async fn drop_slot(world: &World) {
    eventually("the slot is dropped", async || {
        let statement = "select pg_drop_replication_slot($1::text)";
        world.sql.execute(statement, &[&world.name]).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_dropped_under_the_running_relay_halts_it() {
    let (mut stage, relay) = Stage::new(World::new("h_dropped").await).await;
    let statement = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1";
    // Whoever is faster: the relay takes its slot back within a moment.
    let world = &stage.world;
    eventually("the slot is dropped", async || {
        world.admin.query(statement, &[&world.name]).await.unwrap();
        world.sql.execute("select pg_drop_replication_slot($1::text)", &[&world.name]).await.ok()
    })
    .await;
    stage.insert("gap", 3).await;
    stage.get_over(&relay, "slot_missing", &["gap0", "gap1", "gap2"], &[]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_made_again_by_somebody_halts_and_what_it_still_has_comes_by_itself() {
    let (mut stage, relay) = Stage::new(World::new("h_again").await).await;
    relay.stop().await;
    drop_slot(&stage.world).await;
    stage.insert("gap", 3).await;
    let made = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    stage.world.sql.execute(made, &[&stage.world.name]).await.unwrap();
    stage.insert("later", 2).await;
    let relay = Relay::start(stage.world.config(&[]));
    stage.get_over(&relay, "slot_advanced", &["gap0", "gap1", "gap2"], &["later0", "later1"]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_advanced_halts() {
    let (mut stage, relay) = Stage::new(World::new("h_advanced").await).await;
    relay.stop().await;
    stage.insert("gap", 2).await;
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    stage.world.sql.execute(advance, &[&stage.world.name]).await.unwrap();
    let relay = Relay::start(stage.world.config(&[]));
    stage.get_over(&relay, "slot_advanced", &["gap0", "gap1"], &[]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_a_record_halts_and_everything_that_it_still_has_comes_by_itself() {
    let (mut stage, relay) = Stage::new(World::new("h_unknown").await).await;
    relay.stop().await;
    stage.insert("kept", 2).await;
    // Heartbeats of before are in the slot, with numbers that a new record does not know.
    let beats = "insert into postrider.heartbeat (slot, no, snapshot) values ($1, 57, pg_current_snapshot())";
    stage.world.sql.execute(beats, &[&stage.world.name]).await.unwrap();
    stage.world.sql.execute("delete from postrider.progress where slot = $1", &[&stage.world.name]).await.unwrap();
    let relay = Relay::start(stage.world.config(&[]));
    stage.get_over(&relay, "unknown_slot", &[], &["kept0", "kept1"]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_slot_has_delivered_is_in_doubt_for_this_one() {
    let (mut stage, relay) = Stage::new(World::new("h_two").await).await;
    relay.stop().await;
    let other = format!("{}_other", stage.world.name);
    let beside = Relay::carrying(&stage.world, &[("POSTRIDER_SLOT", &other)]).await;
    drop_slot(&stage.world).await;
    stage.insert("gap", 2).await;
    assert_eq!(stage.take(2).await.len(), 2, "the other relay delivers them");
    stage.settled().await;
    let counted = stage.world.postrider(&["repair", "--dry-run"]);
    assert!(counted.contains("in doubt    2 rows"), "{counted}");
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_wal_is_gone_halts() {
    let postgres =
        Own::postgres(&["-c", "max_slot_wal_keep_size=1MB", "-c", "max_wal_size=32MB", "-c", "min_wal_size=32MB"]);
    let shared = servers::shared().await;
    let world = World::bare(Servers { database_url: postgres.url("DATABASE_URL"), ..shared }, "h_lost").await;
    world.migrate().await;
    let (mut stage, relay) = Stage::new(world).await;
    relay.stop().await;
    stage.insert("gap", 2).await;
    let world = &stage.world;
    eventually("the slot is lost", async || {
        world
            .admin
            .batch_execute(
                "select pg_logical_emit_message(false, 'x', repeat('x', 2000000)); select pg_switch_wal(); checkpoint",
            )
            .await
            .ok();
        let lost = "select count(*) from pg_replication_slots where wal_status = 'lost'";
        (world.count(lost).await == 1).then_some(())
    })
    .await;
    let relay = Relay::start(world.config(&[]));
    stage.get_over(&relay, "slot_lost", &["gap0", "gap1"], &[]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_restored_into_another_cluster_halts() {
    let (stage, relay) = Stage::new(World::new("h_elsewhere").await).await;
    relay.stop().await;
    stage.insert("gap", 2).await;
    drop_slot(&stage.world).await;
    // What a dump brings along: records of a cluster that this one is not.
    let world = &stage.world;
    world
        .sql
        .batch_execute(
            "update postrider.progress set system_identifier = 7; update postrider.lives set system_identifier = 7",
        )
        .await
        .unwrap();
    let relay = Relay::start(world.config(&[]));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(snapshot.halt.unwrap().reason, "source_changed");
    world.postrider(&["adopt", "--reason", "restored into the new cluster"]);
    relay.until("the relay carries", Snapshot::carrying).await;
    // Nothing is known of any row here: that is said, and decided by the operator.
    let counted = world.postrider(&["repair", "--dry-run"]);
    assert!(counted.contains("in doubt    0 rows") && counted.contains("earlier     3 more"), "{counted}");
    let repaired = world.postrider(&["repair", "--earlier"]);
    assert!(repaired.contains("3 rows sent again"), "{repaired}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_database_beside_the_original_leaves_its_slot_alone() {
    let (stage, relay) = Stage::new(World::new("h_copy").await).await;
    relay.stop().await;
    let original = stage.world;
    let copy = format!("{}_copy", original.name);
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    original.admin.query(end, &[&original.name]).await.unwrap();
    original.admin.batch_execute(&format!("create database {copy} template {}", original.name)).await.unwrap();
    let url = original.servers.database(&copy);
    let relay = Relay::start(original.config(&[("DATABASE_URL", &url)]));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(snapshot.halt.unwrap().reason, "source_changed");
    let output =
        Program::command(&original.settings(&[("DATABASE_URL", &url)]), &["adopt", "--reason", "no"]).output().unwrap();
    let refused = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && refused.contains("POSTRIDER_SLOT"), "{refused}");
    let beside = format!("{}_beside", original.name);
    relay.stop().await;
    let relay = Relay::carrying_on(original.config(&[("DATABASE_URL", &url), ("POSTRIDER_SLOT", &beside)])).await;
    relay.stop().await;
    original.admin.execute("select pg_drop_replication_slot($1::text)", &[&original.name]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_went_back_in_time_halts_the_relay_that_remembers() {
    let (mut stage, relay) = Stage::new(World::new("h_rewound").await).await;
    stage.insert("gap", 2).await;
    stage.take(2).await;
    stage.settled().await;
    // As a restored copy of the volume would have it.
    let back = "update postrider.progress set relay_epoch = relay_epoch - 1 where slot = $1";
    stage.world.sql.execute(back, &[&stage.world.name]).await.unwrap();
    let snapshot = stage.get_over(&relay, "source_rewound", &[], &[]).await;
    assert!(snapshot.carrying());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_went_back_in_time_halts_a_new_process_by_the_file_in_its_state_dir() {
    let directory = tempfile::tempdir().unwrap();
    let state_dir = [("POSTRIDER_STATE_DIR", directory.path().to_str().unwrap())];
    let world = World::new("h_file").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &state_dir).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    world.insert("1", "Placed", "{}").await;
    consumer.take(1).await;
    relay.stop().await;
    let back = "update postrider.progress set relay_epoch = relay_epoch - 1 where slot = $1";
    world.sql.execute(back, &[&world.name]).await.unwrap();
    let unaware = Relay::carrying(&world, &[]).await;
    unaware.stop().await;
    world.sql.execute("update postrider.progress set relay_epoch = 0 where slot = $1", &[&world.name]).await.unwrap();
    let relay = Relay::start(world.config(&state_dir));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(snapshot.halt.unwrap().reason, "source_rewound");
    // Where adopt runs the file need not be: the relay has left what it knows.
    world.postrider(&["adopt", "--reason", "restored from last night's copy"]);
    relay.until("the relay carries", Snapshot::carrying).await;
    relay.stop().await;

    let path = directory.path().join(format!("{}.json", world.name));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let relay = Relay::start(world.config(&state_dir));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    let problem = snapshot.problem.unwrap();
    assert!(problem.contains("damaged") && problem.contains("move the file away"), "{problem}");
    // Without the file nothing seems wrong from elsewhere: there is nothing to accept, and the slot is not touched.
    let refused = world.refused(&["adopt", "--reason", "no"]);
    assert!(refused.contains("move the file away"), "{refused}");
    assert!(world.confirmed().await.is_some());
    std::fs::rename(&path, directory.path().join("away")).unwrap();
    relay.until("the relay carries", Snapshot::carrying).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_dropped_under_the_running_relay_halts_it() {
    let (mut stage, relay) = Stage::new(World::new("h_publication").await).await;
    stage.world.sql.batch_execute("drop publication postrider").await.unwrap();
    stage.insert("gap", 2).await;
    let halted = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(halted.halt.unwrap().reason, "publication_missing");
    let problem = halted.problem.unwrap();
    assert!(problem.contains("publication postrider"), "{problem}");
    let refused = stage.world.refused(&["adopt", "--reason", "too early"]);
    let remedy = refused
        .split('`')
        .find(|part| part.starts_with("create publication"))
        .unwrap_or_else(|| panic!("{refused}"))
        .to_owned();
    stage.world.sql.batch_execute(&remedy).await.unwrap();
    stage.get_over(&relay, "publication_missing", &["gap0", "gap1"], &[]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_lost_its_table_for_a_moment_halts_whether_the_relay_ran_or_not() {
    let (mut stage, relay) = Stage::new(World::new("h_moment").await).await;
    let away = "alter publication postrider drop table outbox";
    let back = "alter publication postrider add table outbox";
    stage.world.sql.batch_execute(away).await.unwrap();
    stage.insert("gap", 2).await;
    stage.world.sql.batch_execute(back).await.unwrap();
    stage.get_over(&relay, "publication_changed", &["gap0", "gap1"], &[]).await;
    relay.stop().await;

    stage.world.sql.batch_execute(away).await.unwrap();
    stage.insert("again", 1).await;
    stage.world.sql.batch_execute(back).await.unwrap();
    let relay = Relay::start(stage.world.config(&[]));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(snapshot.halt.unwrap().reason, "publication_changed");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_is_missing_in_the_stream_halts_and_a_restart_does_not_get_over_it() {
    let (mut stage, relay) = Stage::new(World::new("h_gap").await).await;
    // The next one is written with a number too high: one is missing before it.
    let skip = "update postrider.progress set heartbeat_no = heartbeat_no + 1 where slot = $1";
    stage.world.sql.execute(skip, &[&stage.world.name]).await.unwrap();
    stage.insert("event", 1).await;
    let came = stage.consumer.take(1).await;
    assert_eq!(came.len(), 1);
    let halted = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    relay.stop().await;
    let relay = Relay::start(stage.world.config(&[]));
    let again = relay.until("it halts again", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(again.problem, halted.problem);
    // It came, and nobody can prove it.
    stage.get_over(&relay, "heartbeat_gap", &["event0"], &[]).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_kind_halts_and_is_not_adopted() {
    let (stage, relay) = Stage::new(World::new("h_kind").await).await;
    relay.stop().await;
    drop_slot(&stage.world).await;
    let made = "select pg_create_logical_replication_slot($1, 'test_decoding')";
    stage.world.sql.execute(made, &[&stage.world.name]).await.unwrap();
    let relay = Relay::start(stage.world.config(&[]));
    let snapshot = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    assert_eq!(snapshot.halt.unwrap().reason, "wrong_slot");
    let refused = stage.world.refused(&["adopt", "--reason", "no"]);
    assert!(refused.contains("POSTRIDER_SLOT"), "{refused}");
    drop_slot(&stage.world).await;
    relay
        .until("it is missing now", |snapshot| snapshot.halt.as_ref().is_some_and(|halt| halt.reason == "slot_missing"))
        .await;
    stage.world.postrider(&["adopt", "--reason", "the other one is gone"]);
    relay.until("the relay carries", Snapshot::carrying).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_adopted_while_a_relay_carries_or_nothing_is_in_doubt() {
    let (stage, relay) = Stage::new(World::new("h_nothing").await).await;
    let refused = stage.world.refused(&["adopt", "--reason", "no"]);
    assert!(refused.contains("a relay carries"), "{refused}");
    relay.stop().await;
    let refused = stage.world.refused(&["adopt", "--reason", "no"]);
    assert!(refused.contains("not in doubt"), "{refused}");
    let refused = stage.world.refused(&["adopt"]);
    assert!(refused.contains("--reason"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_stopped_on_its_way_is_finished_by_the_next_one() {
    let (mut stage, relay) = Stage::new(World::new("h_resume").await).await;
    relay.stop().await;
    drop_slot(&stage.world).await;
    let many = "insert into outbox (aggregatetype, aggregateid, type, payload)
                select 'order', 'gap' || n, 'Placed', '{}' from generate_series(0, 4999) n";
    stage.world.sql.batch_execute(many).await.unwrap();
    stage.world.postrider(&["adopt", "--reason", "test"]);
    let relay = Relay::carrying(&stage.world, &[]).await;
    let mut first = Program::start(&stage.world.settings(&[]), &["repair"]);
    let sent = "select count(*) from postrider.repaired";
    within(Duration::from_secs(30), "some are sent again", async || (stage.world.count(sent).await > 0).then_some(()))
        .await;
    first.kill();
    eventually("its transaction has ended", async || idle(&stage.world.admin, &stage.world.name).await.then_some(()))
        .await;
    let already = stage.world.count(sent).await;
    let finished = stage.world.postrider(&["repair"]);
    assert!(finished.contains(&format!("{} rows sent again", 5_000 - already)), "{already} were sent: {finished}");
    assert_eq!(stage.take(5_000).await.len(), 5_000, "each once");
    assert!(stage.consumer.rest(Duration::from_secs(1)).await.is_empty());
    relay.stop().await;
}

async fn idle(admin: &Client, database: &str) -> bool {
    let repairs = "select count(*) from pg_stat_activity where datname = $1 and application_name = 'postrider repair'";
    admin.query_one(repairs, &[&database]).await.unwrap().get::<_, i64>(0) == 0
}
