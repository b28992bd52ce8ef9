//! The primary dies and a standby is promoted: with the slot synchronized the relay goes on there, without it it halts.

use std::time::Duration;

use crate::support::account::{self, Account, Load};
use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::own::Own;
use crate::support::relay::Program;
use crate::support::servers::{self, Servers};
use crate::support::world::{World, connect};

/// A primary and its standby.
struct Two {
    primary: Own,
    standby: Own,
    world: World,
    /// Leads to whichever of the two can be written to.
    database_url: String,
}

impl Two {
    async fn new(name: &str, settings: &[&str]) -> Self {
        let primary = Own::postgres(settings);
        let standby = Own::standby_of(&primary, settings);
        let servers = Servers { database_url: primary.url("DATABASE_URL"), ..servers::shared().await };
        let world = World::bare(servers, name).await;
        world.migrate().await;
        world.queue("all", "#").await;
        account::prepare(&world.sql).await;
        let host = |server: &Own| format!("127.0.0.1:{}", server.url("DATABASE_URL").port().unwrap());
        let hosts = [host(&primary), host(&standby)].join(",");
        let database_url =
            format!("postgres://postgres:postgres@{hosts}/{}?target_session_attrs=read-write", world.name);
        Two { primary, standby, world, database_url }
    }

    fn relay(&self) -> Program {
        Program::start(&self.world.settings(&[("DATABASE_URL", &self.database_url)]), &["run"])
    }

    fn ask_standby(&self, query: &str) -> String {
        self.standby.command("ctl", &[query]).trim().to_owned()
    }

    /// The primary is gone for good, and the standby takes its place. Connects to that.
    async fn fail_over(&self) -> tokio_postgres::Client {
        self.primary.command("stop", &["kill"]);
        assert_eq!(self.ask_standby("select pg_promote()"), "t");
        let mut url = self.standby.url("DATABASE_URL");
        url.set_path(&self.world.name);
        connect(url.as_str()).await
    }
}

/// F18, and the good case of a timeline that has changed.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_failover_slot_the_relay_goes_on_at_the_promoted_standby_without_a_loss() {
    let settings = ["-c", "hot_standby_feedback=on", "-c", "sync_replication_slots=on"];
    let shared = connect(servers::shared().await.database_url.as_str()).await;
    let version: i32 =
        shared.query_one("select current_setting('server_version_num')::integer", &[]).await.unwrap().get(0);
    if version < 170_000 {
        println!("left out: failover slots need PostgreSQL 17, this is {version}");
        return;
    }
    let two = Two::new("failover", &settings).await;
    let world = &two.world;
    // The primary sends a change to the relay only when the standby has it: what is published cannot be undone by the promotion.
    let wait_for = format!("alter system set synchronized_standby_slots = '{}'", two.standby.standby_slot());
    two.primary.command("ctl", &[&wait_for, "select pg_reload_conf()"]);
    let program = two.relay();
    program.says("carrying").await;
    let slot = &world.name;
    let failover = format!("select count(*) from pg_replication_slots where slot_name = '{slot}' and failover");
    assert_eq!(world.count(&failover).await, 1, "the slot was made as one that standbys keep");
    let load = Load::start(&two.database_url, 2, Duration::from_millis(10));
    let synced = format!("select synced and not temporary from pg_replication_slots where slot_name = '{slot}'");
    eventually("the standby has the slot", || async { (two.ask_standby(&synced) == "t").then_some(()) }).await;
    eventually("the load runs", || async { (load.committed() > 500).then_some(()) }).await;

    let before = load.committed();
    let sql = two.fail_over().await;
    eventually("the load runs at the new primary", || async { (load.committed() > before + 300).then_some(()) }).await;
    let row = sql.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    let written: String = row.get(0);
    let passed =
        "select count(*) from pg_replication_slots where slot_name = $1 and confirmed_flush_lsn >= $2::text::pg_lsn";
    eventually("the slot passes on the new primary", || async {
        let count: i64 = sql.query_one(passed, &[slot, &written]).await.unwrap().get(0);
        (count == 1).then_some(())
    })
    .await;
    load.stop().await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    Account::default().settle(&sql, &mut consumer).await;
    assert!(!program.log().contains("halted"), "a promotion with the slot is no reason to halt");
}

/// F19, its first half.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_promoted_standby_without_the_slot_the_relay_halts_and_publishes_nothing() {
    let two = Two::new("slotless", &[]).await;
    let world = &two.world;
    let program = two.relay();
    program.says("carrying").await;
    for n in 0..50 {
        world.insert(&n.to_string(), "Placed", "{}").await;
    }
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    consumer.take(50).await;
    let replayed = format!("select pg_last_wal_replay_lsn() >= '{}'", world.current_lsn().await);
    eventually("the standby has it all", || async { (two.ask_standby(&replayed) == "t").then_some(()) }).await;

    let sql = two.fail_over().await;
    sql.execute(
        "insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', '1', 'Late', '{}')",
        &[],
    )
    .await
    .unwrap();
    program.says("halted").await;
    let log = program.log();
    assert!(log.contains(&format!("slot {} is gone", world.name)), "{log}");
    let slots: i64 = sql.query_one("select count(*) from pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 0, "no slot is made by itself");
    assert!(consumer.next(Duration::from_secs(3)).await.is_none(), "nothing is published while it is undecided");
}
