//! `postrider check` and the samplers against real servers: what a finding prints makes it go away.

use std::time::Duration;

use postrider::config::Config;
use postrider::lag;
use postrider::metrics::Metrics;
use postrider::migrate::{self, Target};
use postrider::postgres::sql::Sql;
use postrider::preflight::{self, Finding, Level, Remedy};
use postrider::status::Status;
use url::Url;

use crate::rabbit::{Server, Vhost};
use crate::support::own::Own;
use crate::support::{eventually, servers, unique};

const DEADLINE: Duration = Duration::from_secs(30);

/// A database and a role for a relay, which has no right but to replicate; its password is its name.
pub(crate) struct Database {
    server: Url,
    pub(crate) name: String,
}

impl Database {
    pub(crate) async fn new() -> Database {
        Database::on(servers::shared().await.database_url).await
    }

    /// On the server that this superuser's URL names.
    pub(crate) async fn on(mut server: Url) -> Database {
        server.set_query(Some("sslmode=disable"));
        let name = unique("check");
        let database = Database { server, name };
        let admin = connect(&database.server).await;
        let create = format!("create role {0} login replication password '{0}'; ", database.name);
        admin.client().batch_execute(&create).await.unwrap();
        admin.client().batch_execute(&format!("create database {}", database.name)).await.unwrap();
        database
    }

    fn url(&self, user: &str, password: &str) -> String {
        self.url_of(&self.name, user, password)
    }

    fn url_of(&self, database: &str, user: &str, password: &str) -> String {
        let mut url = self.server.clone();
        url.set_username(user).unwrap();
        url.set_password(Some(password)).unwrap();
        url.set_path(database);
        url.into()
    }

    /// For the relay's role.
    pub(crate) fn relay(&self) -> String {
        self.url(&self.name, &self.name)
    }

    pub(crate) async fn superuser(&self) -> Sql {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        connect(&url).await
    }

    pub(crate) async fn execute(&self, statement: &str) {
        let result = self.superuser().await.client().batch_execute(statement).await;
        result.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }

    /// Migrations, and the grants for the relay's role.
    pub(crate) async fn migrate(&self, config: &Config) {
        let target = Target::from(config);
        migrate::up(self.superuser().await.client_mut(), &target).await.unwrap();
        self.execute(&migrate::roles_script(&target, &self.name)).await;
    }

    pub(crate) async fn remove(self) {
        let admin = connect(&self.server).await;
        let slots = "select pg_catalog.pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots where database = $1";
        admin.client().query(slots, &[&self.name]).await.unwrap();
        admin.client().batch_execute(&format!("drop database {} with (force)", self.name)).await.unwrap();
        admin.client().batch_execute(&format!("drop role {}", self.name)).await.unwrap();
    }
}

async fn connect(url: &Url) -> Sql {
    let target = postrider::postgres::url::Target::parse(url.as_str(), false).unwrap();
    Sql::connect(&target, "it", DEADLINE).await.unwrap()
}

/// The configuration of a relay with these URLs; its slot is named after the database.
pub(crate) fn config(database: &Database, amqp: &str, more: &[(&str, &str)]) -> Config {
    let relay = database.relay();
    let given = [("DATABASE_URL", relay.as_str()), ("AMQP_URL", amqp), ("POSTRIDER_SLOT", &database.name)];
    let all = given.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(None, all).unwrap()
}

fn failures(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.level == Level::Fail).collect()
}

fn find<'f>(findings: &'f [Finding], check: &str) -> &'f Finding {
    findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

/// Does what the findings say, as a superuser of the database would.
async fn follow(database: &Database, config: &Config, findings: &[&Finding]) {
    for remedy in findings.iter().flat_map(|finding| &finding.remedies) {
        match remedy {
            Remedy::Sql(statement) => database.execute(statement).await,
            Remedy::Shell(command) if command == "postrider migrate" => {
                migrate::up(database.superuser().await.client_mut(), &Target::from(config)).await.unwrap();
            }
            Remedy::Shell(command) => panic!("not to be run here: {command}"),
            Remedy::Say(_) => {}
        }
    }
}

#[tokio::test]
async fn doing_what_check_says_makes_an_empty_database_ready() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-ready").await;
    let config = config(&database, &vhost.url(&vhost.server.address()), &[]);
    let first = preflight::check(&config).await;
    for check in ["postgres.migrations", "postgres.outbox", "postgres.publication"] {
        assert_eq!(find(&first, check).level, Level::Fail, "{first:#?}");
    }
    // What cannot be looked at before the migrations comes to light after them.
    follow(&database, &config, &[find(&first, "postgres.migrations")]).await;
    let second = preflight::check(&config).await;
    assert_eq!(find(&second, "postgres.publication").level, Level::Ok, "{second:#?}");
    follow(&database, &config, &failures(&second)).await;
    let third = preflight::check(&config).await;
    assert!(preflight::passed(&third), "{third:#?}");
    let warned = find(&third, "postgres.privileges");
    assert_eq!(warned.level, Level::Ok, "{third:#?}");
    let optional: Vec<_> = third.iter().filter(|finding| finding.check == "postgres.privileges").skip(1).collect();
    follow(&database, &config, &optional).await;
    let last = preflight::check(&config).await;
    assert_eq!(last.iter().filter(|finding| finding.check == "postgres.privileges").count(), 1, "{last:#?}");
    assert!(find(&last, "postgres.slot").what.contains("made at the first start"));
    vhost.remove().await;
    database.remove().await;
}

#[tokio::test]
async fn each_fault_of_the_publication_and_the_grants_is_mended_by_what_is_printed() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-publication").await;
    let config = config(&database, &vhost.url(&vhost.server.address()), &[]);
    database.migrate(&config).await;
    let ready = preflight::check(&config).await;
    assert!(preflight::passed(&ready), "{ready:#?}");

    let role = &database.name;
    let faults = [
        ("postgres.publication", "drop publication postrider".to_owned()),
        ("postgres.publication", "alter publication postrider set (publish = 'update')".to_owned()),
        ("postgres.publication", "alter publication postrider set (publish = 'insert, delete')".to_owned()),
        ("postgres.publication", "alter publication postrider set (publish_via_partition_root = false)".to_owned()),
        ("postgres.publication", "alter publication postrider drop table public.outbox".to_owned()),
        ("postgres.publication", "alter publication postrider drop table postrider.heartbeat".to_owned()),
        ("postgres.publication", "alter publication postrider add table postrider.dead_letters".to_owned()),
        (
            "postgres.publication",
            "alter publication postrider set table public.outbox where (aggregatetype = 'x'), postrider.heartbeat"
                .to_owned(),
        ),
        (
            "postgres.publication",
            "drop publication postrider; create publication postrider with (publish = 'truncate')".to_owned(),
        ),
        ("postgres.privileges", format!("revoke usage on schema postrider from {role}")),
        ("postgres.privileges", format!("revoke update on postrider.progress from {role}")),
        ("postgres.privileges", format!("revoke all on postrider.heartbeat, postrider.migrations from {role}")),
    ];
    for (check, fault) in faults {
        database.execute(&fault).await;
        let findings = preflight::check(&config).await;
        assert_eq!(find(&findings, check).level, Level::Fail, "after: {fault}\n{findings:#?}");
        follow(&database, &config, &failures(&findings)).await;
        let mended = preflight::check(&config).await;
        assert!(preflight::passed(&mended), "after: {fault}\n{mended:#?}");
    }
    vhost.remove().await;
    database.remove().await;
}

#[tokio::test]
async fn a_table_with_other_columns_is_named_with_what_it_lacks() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-columns").await;
    let amqp = vhost.url(&vhost.server.address());
    database
        .execute("create table public.events (id int primary key, aggregate_type text, aggregateid text, type text)")
        .await;
    let table = ("POSTRIDER_OUTBOX_TABLE", "events");
    let findings = preflight::check(&config(&database, &amqp, &[table])).await;
    let outbox = find(&findings, "postgres.outbox");
    assert_eq!(outbox.level, Level::Fail);
    assert!(
        outbox.what.contains("aggregatetype (outbox.columns.aggregatetype), payload (outbox.columns.payload)"),
        "{outbox:?}"
    );
    let mapped = [
        table,
        ("POSTRIDER_OUTBOX_COLUMNS_AGGREGATETYPE", "aggregate_type"),
        ("POSTRIDER_OUTBOX_COLUMNS_PAYLOAD", "type"),
    ];
    let findings = preflight::check(&config(&database, &amqp, &mapped)).await;
    assert_eq!(find(&findings, "postgres.outbox").level, Level::Ok);
    vhost.remove().await;
    database.remove().await;
}

#[tokio::test]
async fn a_slot_is_told_as_it_is() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-slot").await;
    let config = config(&database, &vhost.url(&vhost.server.address()), &[]);
    database.migrate(&config).await;
    let name = &database.name;
    let slot = async || find(&preflight::check(&config).await, "postgres.slot").clone();

    database.execute(&format!("select pg_catalog.pg_create_physical_replication_slot('{name}')")).await;
    assert!(slot().await.what.contains("belongs to something else (plugin physical)"), "{:?}", slot().await);
    database.execute(&format!("select pg_catalog.pg_drop_replication_slot('{name}')")).await;
    database.execute(&format!("select pg_catalog.pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
    assert_eq!(slot().await.level, Level::Ok);
    let other = Database::new().await;
    let elsewhere = [("DATABASE_URL", other.relay())].map(|(name, value)| (name.to_owned(), value));
    let from_elsewhere = Config::load(
        None,
        elsewhere.into_iter().chain([
            ("AMQP_URL".to_owned(), vhost.url(&vhost.server.address())),
            ("POSTRIDER_SLOT".to_owned(), name.clone()),
        ]),
    );
    let findings = preflight::check(&from_elsewhere.unwrap()).await;
    assert!(
        find(&findings, "postgres.slot").what.contains(&format!("belongs to the database {name}")),
        "{findings:#?}"
    );
    other.remove().await;

    let insert = format!(
        "insert into postrider.progress (slot, publication, system_identifier, database_oid, timeline, phase, intended_lsn, acknowledged_lsn)
         values ('{name}', 'postrider', 1, 1, 1, 'ready', '0/10', '0/10');
         select pg_catalog.pg_drop_replication_slot('{name}')"
    );
    database.execute(&insert).await;
    let gone = slot().await;
    assert!(gone.level == Level::Fail && gone.what.contains("was there and is gone"), "{gone:?}");
    vhost.remove().await;
    database.remove().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_one_finding_that_says_what_to_do() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-refused").await;
    let amqp = vhost.url(&vhost.server.address());
    let refused = async |database_url: String, amqp_url: String| {
        let env = [("DATABASE_URL", database_url), ("AMQP_URL", amqp_url), ("POSTRIDER_SLOT", database.name.clone())];
        let config = Config::load(None, env.map(|(name, value)| (name.to_owned(), value))).unwrap();
        preflight::check(&config).await
    };
    let findings = refused(database.url(&database.name, "wrong"), amqp.replace("guest:guest", "guest:wrong")).await;
    assert!(find(&findings, "postgres.connection").what.contains("password in DATABASE_URL is wrong"), "{findings:#?}");
    assert!(
        find(&findings, "rabbitmq.connection").what.contains("check user and password in AMQP_URL"),
        "{findings:#?}"
    );
    assert_eq!(failures(&findings).len(), 2, "nothing is said twice: {findings:#?}");

    let nowhere = format!("{amqp}-nowhere");
    let findings = refused(database.url_of("nowhere", &database.name, &database.name), nowhere).await;
    assert!(find(&findings, "postgres.connection").what.contains("create the database"), "{findings:#?}");
    assert!(find(&findings, "rabbitmq.connection").what.contains("rabbitmqctl add_vhost"), "{findings:#?}");

    database.execute(&format!("alter role {} noreplication", database.name)).await;
    let findings = refused(database.relay(), "amqp://guest:guest@127.0.0.1:1".to_owned()).await;
    let replication = find(&findings, "postgres.replication");
    assert!(replication.level == Level::Fail && replication.what.contains("with replication"), "{findings:#?}");
    assert!(find(&findings, "rabbitmq.connection").what.contains("is RabbitMQ running there"), "{findings:#?}");
    vhost.remove().await;
    database.remove().await;
}

/// A user of the vhost with these rights, whose password is its name.
async fn user(vhost: &Vhost, configure: &str) -> (String, String) {
    let name = format!("{}-user", vhost.name);
    vhost
        .server
        .management("PUT", &format!("users/{name}"), &format!(r#"{{"password": "{name}", "tags": "monitoring"}}"#))
        .await;
    let rights = format!(r#"{{"configure": "{configure}", "write": ".*", "read": ""}}"#);
    vhost.server.management("PUT", &format!("permissions/{}/{name}", vhost.name), &rights).await;
    let url = format!("amqp://{name}:{name}@{}/{}", vhost.server.address(), vhost.name);
    (name, url)
}

#[tokio::test]
async fn a_missing_exchange_fails_only_if_it_may_not_be_made_and_is_not_made() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-exchange").await;
    for (configure, level) in [("", Level::Fail), ("events", Level::Ok), ("other", Level::Fail)] {
        let (_, amqp) = user(&vhost, configure).await;
        let findings = preflight::check(&config(&database, &amqp, &[])).await;
        let exchange = find(&findings, "rabbitmq.exchange");
        assert_eq!(exchange.level, level, "with the right to configure {configure:?}: {exchange:?}");
        let declare = exchange
            .remedies
            .iter()
            .any(|remedy| matches!(remedy, Remedy::Shell(command) if command.contains("declare")));
        assert_eq!(declare, level == Level::Fail, "{exchange:?}");
        let exchanges = vhost.server.management("GET", &format!("exchanges/{}", vhost.name), "").await;
        assert!(!exchanges.contains("\"events\""), "check makes nothing");
    }
    vhost.exchange("events").await;
    let (name, amqp) = user(&vhost, "").await;
    let findings = preflight::check(&config(&database, &amqp, &[])).await;
    assert_ne!(find(&findings, "rabbitmq.exchange").level, Level::Fail, "{findings:#?}");
    vhost.server.management("DELETE", &format!("users/{name}"), "").await;
    vhost.remove().await;
    database.remove().await;
}

#[tokio::test]
async fn the_management_api_tells_what_a_routing_key_reaches() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("check-routing").await;
    let amqp = vhost.url(&vhost.server.address());
    let unasked = preflight::check(&config(&database, &amqp, &[])).await;
    assert_eq!(find(&unasked, "rabbitmq.routing").level, Level::Skipped);

    let management = servers::shared().await.management_url.to_string();
    let asked = config(&database, &amqp, &[("POSTRIDER_MANAGEMENT_URL", &management)]);
    vhost.exchange("events").await;
    let findings = preflight::check(&asked).await;
    assert!(find(&findings, "rabbitmq.routing").what.contains("nothing is bound to events"), "{findings:#?}");
    vhost.queue("billing", &[]).await;
    vhost.bind("billing", "events", "order.*").await;
    // The management database follows the broker a moment later.
    eventually("the binding in the management API", async || {
        let findings = preflight::check(&asked).await;
        find(&findings, "rabbitmq.routing").what.contains("events (topic) reaches billing (order.*)").then_some(())
    })
    .await;
    let fixed = [("POSTRIDER_MANAGEMENT_URL", management.as_str()), ("POSTRIDER_EVENT_ROUTING_KEY", "invoice")];
    let findings = preflight::check(&config(&database, &amqp, &fixed)).await;
    let judged = findings.iter().filter(|finding| finding.check == "rabbitmq.routing").nth(1).unwrap();
    assert!(judged.level == Level::Warn && judged.what.contains("the key invoice reaches nothing"), "{judged:?}");
    let refused = [("POSTRIDER_MANAGEMENT_URL", "http://nobody:wrong@127.0.0.1:1")];
    let findings = preflight::check(&config(&database, &amqp, &refused)).await;
    let routing = find(&findings, "rabbitmq.routing");
    assert!(routing.level == Level::Warn && !format!("{findings:?}").contains("wrong@"), "{routing:?}");
    vhost.remove().await;
    database.remove().await;
}

#[tokio::test]
async fn what_the_server_is_set_to_is_mended_by_what_is_printed() {
    let settings = ["-c", "wal_level=replica", "-c", "max_replication_slots=1", "-c", "max_wal_senders=3"];
    let server = Own::postgres(&settings);
    let database = Database::on(server.url("DATABASE_URL")).await;
    let vhost = Server::shared().await.vhost("check-server").await;
    let config = config(&database, &vhost.url(&vhost.server.address()), &[]);
    database.migrate(&config).await;
    database.execute("select pg_catalog.pg_create_physical_replication_slot('other')").await;
    let findings = preflight::check(&config).await;
    for check in ["postgres.wal_level", "postgres.slots"] {
        assert_eq!(find(&findings, check).level, Level::Fail, "{findings:#?}");
    }
    assert!(find(&findings, "postgres.slots").what.contains("idle: other"));
    assert_eq!(find(&findings, "postgres.wal_keep").level, Level::Warn);
    assert_eq!(find(&findings, "postgres.replication").level, Level::Ok, "{findings:#?}");
    follow(&database, &config, &failures(&findings)).await;
    // This server has its settings on its command line, where they win; an operator's has them in its files.
    for (name, value) in [("wal_level", "logical"), ("max_replication_slots", "11")] {
        let written = "select setting from pg_catalog.pg_file_settings where name = $1 order by seqno desc limit 1";
        let admin = database.superuser().await;
        let setting: String = admin.client().query_one(written, &[&name]).await.unwrap().get(0);
        assert_eq!(setting, value, "{name}");
    }

    let name = config.application_name();
    database.execute(&format!("alter system set synchronous_standby_names = 'first 1 (a, \"{name}\")'")).await;
    database.execute("select pg_catalog.pg_reload_conf()").await;
    eventually("synchronous_standby_names is found", async || {
        let findings = preflight::check(&config).await;
        (find(&findings, "postgres.synchronous").level == Level::Fail).then_some(())
    })
    .await;
    vhost.remove().await;
}

#[tokio::test]
async fn the_samplers_export_slot_and_queues_and_say_what_is_missing() {
    let database = Database::new().await;
    let vhost = Server::shared().await.vhost("lag").await;
    let config = config(&database, &vhost.url(&vhost.server.address()), &[("POSTRIDER_QUEUES", "there,missing")]);
    database
        .execute(&format!("select pg_catalog.pg_create_logical_replication_slot('{}', 'pgoutput')", database.name))
        .await;
    vhost.queue("there", &[]).await;
    let channel = vhost.channel().await;
    for _ in 0..10 {
        let publish = lapin::options::BasicPublishOptions::default();
        channel
            .basic_publish("".into(), "there".into(), publish, b"x", lapin::BasicProperties::default())
            .await
            .unwrap();
    }
    let metrics = Metrics::new(&config.slot, &[]).unwrap();
    let status = Status::new(&config.slot, &config.publication);
    let watched = async {
        eventually("ten messages and the slot in the metrics", async || {
            let text = metrics.render().unwrap();
            let slot = &config.slot;
            let vhost = &vhost.name;
            let queue = |name: &str, value: u32| {
                format!("{name}{{queue=\"there\",vhost=\"{vhost}\",slot=\"{slot}\"}} {value}\n")
            };
            [
                queue("postrider_queue_messages_ready", 10),
                queue("postrider_queue_consumers", 0),
                format!("postrider_slot_active{{slot=\"{slot}\"}} 0\n"),
                format!("postrider_slot_wal_status{{status=\"reserved\",slot=\"{slot}\"}} 1\n"),
                "postrider_sampler_last_success_timestamp_seconds{".to_owned(),
            ]
            .iter()
            .all(|line| text.contains(line))
            .then(|| assert!(!text.contains("queue=\"missing\"")))
        })
        .await;
    };
    tokio::select! {
        () = watched => {}
        () = lag::sample_slot(&config, &metrics, &status) => {}
        () = lag::sample_queues(&config, &metrics, &status) => {}
    }
    vhost.remove().await;
    database.remove().await;
}
