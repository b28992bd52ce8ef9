//! A test's own database, virtual host and slot.

use std::sync::Arc;

use postrider::config::Config;
use postrider::lsn::Lsn;
use tokio_postgres::{Client, NoTls};

use super::relay::Program;
use super::servers::{self, Servers};
use super::unique;

/// Names are lower-case letters, digits and underscores, so that one name serves for database, vhost and slot.
pub(crate) struct World {
    pub servers: Servers,
    pub name: String,
    pub database_url: String,
    pub amqp_url: String,
    /// As the owner of the database.
    pub sql: Client,
    /// As the superuser, in the maintenance database.
    pub admin: Client,
}

impl World {
    /// On the shared pair, migrated.
    pub(crate) async fn new(name: &str) -> Self {
        let world = Self::bare(servers::shared().await, name).await;
        world.migrate().await;
        world
    }

    /// An empty database and an empty virtual host on `servers`.
    pub(crate) async fn bare(servers: Servers, name: &str) -> Self {
        Self::bare_with(servers, name, "").await
    }

    /// The same; `options` are those of `create database`.
    pub(crate) async fn bare_with(servers: Servers, name: &str, options: &str) -> Self {
        let name = unique(name);
        let admin = connect(servers.database_url.as_str()).await;
        admin.batch_execute(&format!("create database {name} {options}")).await.unwrap();
        servers.management("PUT", &format!("/api/vhosts/{name}"), "").await;
        let user = servers.amqp_url.username().to_owned();
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        servers.management("PUT", &format!("/api/permissions/{name}/{user}"), everything).await;
        let database_url = servers.database(&name);
        let amqp_url = servers.vhost(&name);
        let sql = connect(&database_url).await;
        World { servers, name, database_url, amqp_url, sql, admin }
    }

    pub(crate) async fn migrate(&self) {
        self.migrate_with(&[]).await;
    }

    pub(crate) async fn migrate_with(&self, more: &[(&str, &str)]) {
        let mut owner = connect(&self.database_url).await;
        let config = self.config(more);
        postrider::migrate::up(&mut owner, &postrider::migrate::Target::from(&*config)).await.unwrap();
    }

    /// After the server was restarted.
    pub(crate) async fn reconnect(&mut self) {
        self.sql = connect(&self.database_url).await;
        self.admin = connect(self.servers.database_url.as_str()).await;
    }

    /// What a user would put into the environment, and `more`.
    pub(crate) fn settings(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = [
            ("DATABASE_URL", self.database_url.as_str()),
            ("AMQP_URL", self.amqp_url.as_str()),
            ("POSTRIDER_SLOT", self.name.as_str()),
            ("POSTRIDER_ADMIN_LISTEN", "127.0.0.1:0"),
            // Fast enough for a test to see several.
            ("POSTRIDER_LIMITS_HEARTBEAT_INTERVAL", "1s"),
            ("POSTRIDER_LIMITS_RETRY_MIN", "200ms"),
            ("POSTRIDER_LIMITS_RETRY_MAX", "2s"),
        ];
        own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    pub(crate) fn config(&self, more: &[(&str, &str)]) -> Arc<Config> {
        Arc::new(Config::load(None, self.settings(more)).unwrap())
    }

    /// A command of the program as an operator would run it; panics unless it succeeds. What it printed.
    pub(crate) fn postrider(&self, arguments: &[&str]) -> String {
        let (success, out, err) = self.run(arguments);
        assert!(success, "postrider {}:\n{out}{err}", arguments.join(" "));
        out
    }

    /// The same, of a command that has to fail. What it said.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let (success, out, err) = self.run(arguments);
        assert!(!success, "postrider {} did it:\n{out}", arguments.join(" "));
        err
    }

    fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = Program::command(&self.settings(&[]), arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// Statements one by one, as psql sends them: together they would be one transaction.
    pub(crate) async fn run_each(&self, statements: &str) {
        for statement in split(statements) {
            self.sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    }

    /// One event in a transaction of its own.
    pub(crate) async fn insert(&self, aggregate: &str, kind: &str, payload: &str) {
        self.sql
            .execute(
                "insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', $1, $2, $3::text::jsonb)",
                &[&aggregate, &kind, &payload],
            )
            .await
            .unwrap();
    }

    pub(crate) async fn count(&self, query: &str) -> i64 {
        self.sql.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Where the slot stands; `None` while there is none.
    pub(crate) async fn confirmed(&self) -> Option<Lsn> {
        let statement = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1";
        let row = self.admin.query_opt(statement, &[&self.name]).await.unwrap()?;
        Some(row.get::<_, String>(0).parse().unwrap())
    }

    pub(crate) async fn current_lsn(&self) -> Lsn {
        let row = self.admin.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        row.get::<_, String>(0).parse().unwrap()
    }

    /// A quorum queue bound to the exchange `events` (declared like the relay does), through the management API.
    pub(crate) async fn queue(&self, queue: &str, routing_key: &str) {
        self.queue_with(queue, routing_key, r#"{"x-queue-type":"quorum"}"#).await;
    }

    pub(crate) async fn queue_with(&self, queue: &str, routing_key: &str, arguments: &str) {
        self.exchange("events").await;
        let declaration = format!(r#"{{"durable":true,"arguments":{arguments}}}"#);
        self.servers.management("PUT", &format!("/api/queues/{}/{queue}", self.name), &declaration).await;
        self.bind("events", queue, routing_key).await;
    }

    pub(crate) async fn exchange(&self, exchange: &str) {
        let declaration = r#"{"type":"topic","durable":true}"#;
        self.servers.management("PUT", &format!("/api/exchanges/{}/{exchange}", self.name), declaration).await;
    }

    pub(crate) async fn bind(&self, exchange: &str, queue: &str, routing_key: &str) {
        let binding = format!(r#"{{"routing_key":"{routing_key}","arguments":{{}}}}"#);
        self.servers.management("POST", &format!("/api/bindings/{}/e/{exchange}/q/{queue}", self.name), &binding).await;
    }

    /// Ready messages, by passive declare on a connection of its own.
    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let connection =
            lapin::Connection::connect(&self.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let declared = channel.queue_declare(queue.into(), options, lapin::types::FieldTable::default()).await.unwrap();
        let depth = declared.message_count();
        connection.close(200, "done".into()).await.unwrap();
        depth
    }
}

/// Connects and drives the connection in the background.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(async move {
        // Its end shows in the client.
        connection.await.ok();
    });
    client
}

/// At semicolons outside of quotes and dollar quotes.
fn split(statements: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut dollars) = (0, false, false);
    for (at, c) in statements.char_indices() {
        match c {
            '\'' if !dollars => quoted = !quoted,
            '$' if !quoted && statements[at..].starts_with("$$") => dollars = !dollars,
            ';' if !quoted && !dollars => {
                parts.push(statements[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(statements[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}
