//! Harm to nobody (guarantee G7): connections, writers, disks and shutdowns of the database beside the relay.

use std::time::{Duration, Instant};

use postrider::postgres::replication::ReplicationConnection;
use postrider::postgres::url::Target;
use postrider::preflight::{self, Finding, Level, Remedy};

use crate::check::{self, Database};
use crate::parking::slot_passes;
use crate::rabbit::Server;
use crate::support::account::{self, Account, Load};
use crate::support::consumer::Consumer;
use crate::support::own::{Own, pair};
use crate::support::relay::{Program, Relay};
use crate::support::servers::{self, Servers};
use crate::support::world::{World, connect};
use crate::support::{eventually, within};

/// The most connections that PostgreSQL shows for each relay, over some of its samples, heartbeats and polls.
async fn most_connections(world: &World) -> i64 {
    let mut most = 0;
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let query =
            format!("select count(*) from pg_stat_activity where application_name = 'postrider/{}'", world.name);
        most = most.max(world.count(&query).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_has_three_connections_at_most_whatever_it_does() {
    let world = World::new("connections").await;
    world.queue("all", "#").await;
    let settings = world.settings(&[]);
    let mut active = Program::start(&settings, &["run"]);
    active.says("carrying").await;
    let carrying = most_connections(&world).await;
    assert!((2..=3).contains(&carrying), "carrying: {carrying}");
    let standby = Program::start(&settings, &["run"]);
    standby.says("standing by").await;
    let both = most_connections(&world).await;
    assert!((3..=6).contains(&both), "carrying and standing by: {both}");
    drop(standby);
    active.kill();
    eventually("the slot is free", || async {
        let drop = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{}' and not active",
            world.name
        );
        (world.admin.query(&drop, &[]).await.ok()?.len() == 1).then_some(())
    })
    .await;
    let halted = Program::start(&settings, &["run"]);
    halted.says("halted").await;
    let most = most_connections(&world).await;
    assert!(most <= 3, "halted: {most}");
    println!("connections: {carrying} carrying, {both} with a standby, {most} halted");
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_and_merge_work_on_the_outbox_and_publish_what_they_insert() {
    let world = World::new("upserts").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let id = |n: u32| format!("00000000-0000-0000-0000-00000000000{n}");
    let insert = |n: u32, conflict: &str| {
        format!(
            "insert into outbox (id, aggregatetype, aggregateid, type, payload) \
             values ('{}', 'order', '1', 'Upserted', '{{}}') {conflict}",
            id(n)
        )
    };
    let nothing = "on conflict (id) do nothing";
    let update = "on conflict (id) do update set payload = excluded.payload, type = excluded.type";
    for statement in [insert(1, nothing), insert(1, nothing), insert(2, update), insert(2, update)] {
        world.sql.batch_execute(&statement).await.unwrap();
    }
    let version: i32 =
        world.admin.query_one("select current_setting('server_version_num')::integer", &[]).await.unwrap().get(0);
    assert!(version >= 150_000);
    let merge = format!(
        "merge into outbox using (values ('{}'::uuid), ('{}'::uuid)) as given (id) on outbox.id = given.id
         when not matched then insert (id, aggregatetype, aggregateid, type, payload)
             values (given.id, 'order', '1', 'Inserted', '{{}}')",
        id(2),
        id(3)
    );
    world.sql.batch_execute(&merge).await.unwrap();
    world.insert("1", "Last", "{}").await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    let arrivals: Vec<(String, String)> = all.take(4).await.into_iter().map(|event| (event.id, event.kind)).collect();
    assert_eq!(arrivals[..3], [(id(1), "Upserted".into()), (id(2), "Upserted".into()), (id(3), "Inserted".into())]);
    assert_eq!(arrivals[3].1, "Last", "an update that changes nothing is no event");
    relay.stop().await;
}

async fn streams(world: &World) -> bool {
    let active = format!("select count(*) from pg_replication_slots where slot_name = '{}' and active", world.name);
    world.count(&active).await == 1
}

/// F38, F39.
#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_of_the_broker_longer_than_the_servers_patience_blocks_no_shutdown_and_no_memory() {
    let postgres = Own::postgres(&["-c", "wal_sender_timeout=5s"]);
    let rabbitmq = Own::rabbitmq(&[]);
    let mut world = World::bare(pair(&postgres, &rabbitmq), "alarm").await;
    world.migrate().await;
    world.queue("all", "#").await;
    account::prepare(&world.sql).await;
    let mut program = Program::start(&world.settings(&[]), &["run"]);
    program.says("carrying").await;
    let load = Load::start(&world.database_url, 2, Duration::from_millis(5));
    eventually("events flow", || async { (load.committed() > 200).then_some(()) }).await;
    let at_first = program.rss_kib();
    let log_before = postgres.command("logs", &[]).len();

    rabbitmq.block();
    let blocked = Instant::now();
    program.says("RabbitMQ blocks publishers").await;
    // Ten seconds of patience, and the session's end.
    within(Duration::from_secs(20), "the slot is let go", || async { (!streams(&world).await).then_some(()) }).await;
    println!("memory alarm: the slot was let go after {:.1} s", blocked.elapsed().as_secs_f64());
    assert!(blocked.elapsed() > Duration::from_secs(8), "feedback went on for as long as it was patient");
    let log = postgres.command("logs", &[]).split_off(log_before);
    assert!(!log.contains("replication timeout"), "the relay answered in time although it read nothing: {log}");
    let began = Instant::now();
    postgres.command("stop", &["fast"]);
    println!("fast shutdown during the alarm: {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(10));
    postgres.command("start-again", &[]);
    world.reconnect().await;
    while blocked.elapsed() < Duration::from_secs(25) {
        let now = program.rss_kib();
        assert!(now < at_first + 65_536, "memory stays flat: {at_first} KiB, then {now} KiB");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rabbitmq.unblock();
    slot_passes(&world).await;

    // The disk alarm, on and off.
    for _ in 0..4 {
        rabbitmq.command("ctl", &["set_disk_free_limit", "1000000000000000"]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        rabbitmq.command("ctl", &["set_disk_free_limit", "1000000"]);
    }
    slot_passes(&world).await;
    load.stop().await;
    let mut account = Account::default();
    account.settle(&world.sql, &mut Consumer::open(&world.amqp_url, "all").await).await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(25)).await.success());
}

/// F45.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_follows_wal_that_is_not_ours_and_makes_none_while_nothing_happens() {
    let settings = ["-c", "max_wal_size=4GB", "-c", "checkpoint_timeout=1h", "-c", "autovacuum=off"];
    let postgres = Own::postgres(&settings);
    let servers = Servers { database_url: postgres.url("DATABASE_URL"), ..servers::shared().await };
    let world = World::bare(servers, "idle").await;
    world.migrate().await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut other = postgres.url("DATABASE_URL");
    other.set_path("noise");
    world.admin.batch_execute("create database noise").await.unwrap();
    connect(other.as_str())
        .await
        .batch_execute("create table noise as select repeat('x', 1000) as x from generate_series(1, 300000)")
        .await
        .unwrap();
    let behind = |column: &str| {
        format!(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), {column})::bigint from pg_replication_slots where slot_name = '{}'",
            world.name
        )
    };
    for column in ["confirmed_flush_lsn", "restart_lsn"] {
        let few = 16 << 20;
        eventually(&format!("{column} follows"), || async { (world.count(&behind(column)).await < few).then_some(()) })
            .await;
    }

    let stands_still = || async {
        let before = world.current_lsn().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        world.current_lsn().await.bytes_since(before)
    };
    let grown =
        eventually("the WAL comes to rest", || async { Some(stands_still().await).filter(|grown| *grown < 4_096) })
            .await;
    println!("an idle database: {grown} bytes of WAL in ten intervals of the heartbeat");
    relay.stop().await;
}

/// F48.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_connection_is_waited_for_and_said_once() {
    let postgres = Own::postgres(&["-c", "max_wal_senders=1", "-c", "max_connections=20"]);
    let servers = Servers { database_url: postgres.url("DATABASE_URL"), ..servers::shared().await };
    let world = World::bare(servers, "full_up").await;
    world.migrate().await;
    world.queue("all", "#").await;
    let target = Target::parse(&world.database_url, false).unwrap();
    let other = ReplicationConnection::connect(&target, "somebody else").await.unwrap();
    let relay = Relay::start(world.config(&[]));
    let problem = relay.problem().await;
    assert!(problem.contains("max_wal_senders"), "{problem}");
    drop(other);
    relay.until("it carries once there is room", |snapshot| snapshot.carrying()).await;
    relay.stop().await;

    let mut others = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&world.database_url, tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        others.push(client);
    }
    let program = Program::start(&world.settings(&[]), &["run"]);
    program.says("not carrying").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = program.log();
    assert!(log.contains("too many clients") || log.contains("remaining connection slots"), "{log}");
    assert_eq!(log.matches("not carrying").count(), 1, "said once: {log}");
    drop(others);
    program.says("carrying\"").await;
    world.insert("1", "Placed", "{}").await;
    Consumer::open(&world.amqp_url, "all").await.take(1).await;
}

fn find<'f>(findings: &'f [Finding], check: &str) -> &'f Finding {
    findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

fn remedies(finding: &Finding) -> String {
    let text = |remedy: &Remedy| match remedy {
        Remedy::Sql(text) | Remedy::Shell(text) | Remedy::Say(text) => text.clone(),
    };
    finding.remedies.iter().map(text).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn check_knows_what_may_harm_the_database_or_the_slot() {
    let server = Own::postgres(&["-c", "wal_sender_timeout=0"]);
    let database = Database::on(server.url("DATABASE_URL")).await;
    let vhost = Server::shared().await.vhost("check-harm").await;
    let config = check::config(&database, &vhost.url(&vhost.server.address()), &[]);
    database.migrate(&config).await;
    let findings = preflight::check(&config).await;
    assert_eq!(find(&findings, "postgres.sender_timeout").level, Level::Warn);
    let keep = find(&findings, "postgres.wal_keep");
    // Each by itself: ALTER SYSTEM runs in no transaction, and several statements in one call are one.
    assert_eq!(
        keep.remedies[..2],
        [
            Remedy::Sql("alter system set max_slot_wal_keep_size = '50GB'".into()),
            Remedy::Sql("select pg_reload_conf()".into()),
        ]
    );
    for remedy in &keep.remedies[..2] {
        let Remedy::Sql(statement) = remedy else { panic!("{remedy:?}") };
        database.execute(statement).await;
    }
    eventually("the bound is there", async || {
        (find(&preflight::check(&config).await, "postgres.wal_keep").level == Level::Ok).then_some(())
    })
    .await;

    // A slot that is about to be lost.
    database.execute("alter system set max_slot_wal_keep_size = '48MB'").await;
    database.execute("select pg_reload_conf()").await;
    database.execute(&format!("select pg_create_logical_replication_slot('{}', 'pgoutput')", database.name)).await;
    for _ in 0..4 {
        database.execute("select pg_logical_emit_message(false, 'noise', 'x')").await;
        database.execute("select pg_switch_wal()").await;
    }
    let slot = preflight::check(&config).await;
    let slot = find(&slot, "postgres.slot");
    assert_eq!(slot.level, Level::Warn, "{slot:?}");
    assert!(slot.what.contains("max_slot_wal_keep_size"), "{slot:?}");

    // A standby, by its slot.
    database.execute("select pg_create_physical_replication_slot('standby_1')").await;
    let findings = preflight::check(&config).await;
    let failover = find(&findings, "postgres.failover");
    assert_eq!(failover.level, Level::Warn, "{failover:?}");
    assert!(failover.what.contains("1 standby") && failover.what.contains("halts"), "{failover:?}");

    // Patroni's own connections say so.
    let mut patroni = server.url("DATABASE_URL");
    patroni.set_query(Some("application_name=Patroni"));
    let _patroni = connect(patroni.as_str()).await;
    let findings = preflight::check(&config).await;
    let entry = remedies(find(&findings, "postgres.patroni"));
    let expected = format!("slots:\n  {0}:\n    type: logical\n    database: {0}\n    plugin: pgoutput", database.name);
    assert!(entry.contains(&expected), "{entry}");

    // A provider's role, and a role that may not replicate.
    database.execute(&format!("create role rds_replication; alter role {} noreplication", database.name)).await;
    let findings = preflight::check(&config).await;
    let replication = find(&findings, "postgres.replication");
    assert_eq!(replication.level, Level::Fail);
    assert!(
        remedies(replication).contains(&format!("grant rds_replication to \"{}\"", database.name)),
        "{replication:?}"
    );
    vhost.remove().await;
}

/// Between the two it changes the process id that the server announces, as each pooler does.
async fn pooler(upstream: String) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(&upstream).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    // BackendKeyData: its type, its length, the process id.
                    let key = buffer[..count].windows(5).position(|bytes| bytes == [b'K', 0, 0, 0, 12]);
                    if let Some(at) = key {
                        buffer[at + 8] ^= 0x55;
                    }
                    if to_client.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn check_refuses_a_pooler() {
    let world = World::new("pooled").await;
    let server = &world.servers.database_url;
    let port = pooler(format!("{}:{}", server.host_str().unwrap(), server.port().unwrap())).await;
    let mut url = url::Url::parse(&world.database_url).unwrap();
    url.set_port(Some(port)).unwrap();
    url.set_query(Some("sslmode=disable"));
    let findings = preflight::check(&world.config(&[("DATABASE_URL", url.as_str())])).await;
    assert_eq!(find(&findings, "postgres.pooler").level, Level::Fail);
    let findings = preflight::check(&world.config(&[])).await;
    assert!(!findings.iter().any(|finding| finding.check == "postgres.pooler"), "{findings:#?}");
}
