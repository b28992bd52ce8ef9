//! PostgreSQL as the run needs it: the outbox, its unpublished twin, the oracle's slot, and a role for the relay.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use crate::servers::Server;
use crate::{Failure, Outcome};

pub(crate) const SLOT: &str = "chaos";
/// Looked for in everything that the relay writes.
pub(crate) const PASSWORD: &str = "pg-pw-never-printed-c2d9";
const ORACLE: &str = "oracle";
/// Rows of a key with a row here are numbered in the order of their commits: the row stays locked until then.
pub(crate) const LOCKED_KEYS: i32 = 150;
/// Connections that the faults may use up; what is left over is for superusers, who are the harness and the writers.
pub(crate) const MAX_CONNECTIONS: usize = 60;

pub(crate) struct Database {
    pub server: Server,
    /// Superuser.
    pub url: String,
    address: String,
}

impl Database {
    pub(crate) async fn start() -> Outcome<Self> {
        let connections = format!("max_connections={MAX_CONNECTIONS}");
        let settings = [
            "-c",
            &connections,
            "-c",
            "max_prepared_transactions=30",
            // A relay that stands still loses the slot within this time.
            "-c",
            "wal_sender_timeout=10s",
            "-c",
            "log_checkpoints=off",
            // Many of the harness's connections are short, and SCRAM is slow on purpose. The relay has to do it.
            "--hba",
            "host all postgres all trust",
            "--hba",
            "host all filler all trust",
            "-c",
            "max_wal_size=256MB",
        ];
        let server = Server::start("postgres", "postgres", &settings).await?;
        let url = server.value("DATABASE_URL")?.to_owned();
        let address =
            url.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/')).map(|(address, _)| address.to_owned());
        let database = Database {
            address: address.ok_or("DATABASE_URL has no address")?,
            url: format!("{url}?sslmode=disable"),
            server,
        };
        database.prepare().await?;
        Ok(database)
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn relay_url(&self, address: &str) -> String {
        format!("postgres://postrider:{PASSWORD}@{address}/postgres?sslmode=disable")
    }

    pub(crate) async fn connect(&self) -> Outcome<Client> {
        connect(&self.url).await
    }

    async fn prepare(&self) -> Outcome<()> {
        let client = self.connect().await?;
        client
            .batch_execute(&format!(
                "create table chaos_keys (key text primary key, seq bigint not null);
                 insert into chaos_keys select 'locked-' || n, 0 from generate_series(1, {LOCKED_KEYS}) as n;
                 create table audit (
                     id uuid primary key, key text not null, seq bigint not null, hash text not null,
                     xid xid8 not null default pg_current_xact_id()
                 );
                 create table unrelated (id bigint generated always as identity, note text)"
            ))
            .await?;
        let url = self.url.clone();
        postrider(&["migrate"], &[("DATABASE_URL", &url)])?;
        let roles = postrider(&["migrate", "--print-roles"], &[("DATABASE_URL", &url)])?;
        client.batch_execute(&roles).await?;
        client.batch_execute(&format!("alter role postrider password '{PASSWORD}'")).await?;
        client.execute("select pg_create_logical_replication_slot($1, 'test_decoding')", &[&ORACLE]).await?;
        Ok(())
    }

    /// Ids and keys in the order in which PostgreSQL's own plugin gives their transactions. Consumes the oracle's slot.
    pub(crate) async fn commit_order(&self) -> Outcome<Vec<(String, String)>> {
        let statement = r"
            select substring(data from 'id\[uuid\]:''([0-9a-f-]{36})'''), substring(data from ' key\[text\]:''([^'']*)''')
            from pg_logical_slot_get_changes($1, null, null, 'include-xids', '1', 'skip-empty-xacts', '1')
            where data like 'table public.audit: INSERT:%'";
        let rows = self.connect().await?.query(statement, &[&ORACLE]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

pub(crate) async fn connect(url: &str) -> Outcome<Client> {
    let (client, connection) =
        tokio::time::timeout(Duration::from_secs(10), tokio_postgres::connect(url, NoTls)).await??;
    tokio::spawn(async move {
        // Its end shows in the client.
        connection.await.ok();
    });
    Ok(client)
}

/// One of the program's other commands.
pub(crate) fn postrider(arguments: &[&str], settings: &[(&str, &str)]) -> Outcome<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(arguments)
        .env_remove("AMQP_URL")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(Failure::from(format!("postrider {}: {}\n{text}{error}", arguments.join(" "), output.status)))
}
