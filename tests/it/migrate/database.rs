//! A database of a test's own, on the shared server, owned by a role without any special right.

use std::process::{Command, Output, Stdio};

use postrider::config::{Columns, Outbox, Source};
use postrider::migrate::Target;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use crate::support::servers::{self, client_program};
use crate::support::unique;

pub(super) struct Database {
    admin: Config,
    /// Name of the database and of its owner; prefix of every other name that is one to a cluster.
    pub(super) name: String,
}

impl Database {
    pub(super) async fn new() -> Self {
        let url = servers::shared().await.database_url;
        let database = Database { admin: url.as_str().parse().unwrap(), name: unique("migrate") };
        let admin = connect(&database.admin).await;
        admin.batch_execute(&format!("create role {0} login password '{0}'", database.name)).await.unwrap();
        admin.batch_execute(&format!("create database {0} owner {0}", database.name)).await.unwrap();
        database
    }

    /// For a slot named after this test.
    pub(super) fn target(&self) -> Target {
        Target {
            outbox: Outbox { schema: "public".into(), table: "outbox".into(), columns: Columns::default() },
            publication: "postrider".into(),
            source: Source::default(),
            slot: self.name.clone(),
        }
    }

    fn config(&self, user: &str) -> Config {
        let mut config = self.admin.clone();
        config.dbname(&self.name).user(user).password(user);
        config
    }

    /// As the owner of the database, or as another role whose password is its name.
    pub(super) async fn connect_as(&self, role: &str) -> Client {
        connect(&self.config(role)).await
    }

    pub(super) async fn connect(&self) -> Client {
        self.connect_as(&self.name).await
    }

    pub(super) async fn connect_as_superuser(&self) -> Client {
        let mut config = self.admin.clone();
        connect(config.dbname(&self.name)).await
    }

    /// Runs `script` by psql as the owner, as an operator would.
    pub(super) fn psql(&self, script: &str) -> Output {
        psql(&self.config(&self.name), script)
    }

    pub(super) fn psql_as_superuser(&self, script: &str) -> Output {
        let mut config = self.admin.clone();
        psql(config.dbname(&self.name), script)
    }

    /// `pg_dump -s` without what differs from run to run.
    pub(super) async fn dump(&self, more: &[&str]) -> String {
        let row =
            self.connect().await.query_one("select current_setting('server_version_num')::int / 10000", &[]).await;
        let major: i32 = row.unwrap().get(0);
        let conninfo = conninfo(&self.config(&self.name));
        let output = run(pg_dump(major).args(["-s", "-d", &conninfo]).args(more), "");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let dump = String::from_utf8(output.stdout).unwrap();
        // Newer ones print a random key that guards the restore.
        dump.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), self.name.clone());
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(&admin).await;
                let slots = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1";
                client.execute(slots, &[&name]).await.unwrap();
                client.batch_execute(&format!("drop database {name} with (force)")).await.unwrap();
                let roles = "select rolname::text from pg_roles where rolname ~ ('^' || $1 || '(_|$)')";
                for role in client.query(roles, &[&name]).await.unwrap() {
                    client.batch_execute(&format!("drop role {}", role.get::<_, &str>(0))).await.unwrap();
                }
            });
        });
        if cleaning.join().is_err() {
            eprintln!("database {} was left behind", self.name);
        }
    }
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn conninfo(config: &Config) -> String {
    let host = match &config.get_hosts()[0] {
        Host::Tcp(name) => name.clone(),
        Host::Unix(directory) => directory.display().to_string(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let password = String::from_utf8(config.get_password().unwrap_or_default().to_vec()).unwrap();
    let [user, name] = [config.get_user(), config.get_dbname()].map(Option::unwrap);
    format!("host='{host}' port={port} user='{user}' password='{password}' dbname='{name}'")
}

/// psql of this machine, or of the image that the tests' server comes from.
fn psql(config: &Config, script: &str) -> Output {
    let here = Command::new("psql").arg("--version").output().is_ok();
    let mut command = if here { Command::new("psql") } else { client_program("psql", 17) };
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &conninfo(config), "-f", "-"]);
    run(&mut command, script)
}

/// A pg_dump that is not older than the server: one that is refuses.
fn pg_dump(server_major: i32) -> Command {
    let mut candidates = vec!["pg_dump".into()];
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        candidates.extend(versions.flatten().map(|version| version.path().join("bin/pg_dump")));
    }
    let new_enough = candidates.into_iter().find(|candidate| {
        let Ok(output) = Command::new(candidate).arg("--version").output() else { return false };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let major =
            text.split_whitespace().nth(2).and_then(|version| version.split(['.', 'b', 'r']).next()?.parse().ok());
        major.is_some_and(|major: i32| major >= server_major)
    });
    new_enough.map_or_else(|| client_program("pg_dump", server_major), Command::new)
}

fn run(command: &mut Command, input: &str) -> Output {
    let program = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // A program that ends before it has read everything says why on its standard error.
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}
