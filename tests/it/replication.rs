//! Connections to a real PostgreSQL: login, TLS, settings, the stream.
//!
//! On a server of this module's own, which its tests reconfigure (TLS, pg_hba.conf).

// A helper of a test fails the test like the test itself; clippy's exemption ends at the test function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod tls;

use std::sync::OnceLock;
use std::time::Duration;

use postrider::lsn::Lsn;
use postrider::postgres::error::ConnectError;
use postrider::postgres::replication::{Frame, ReplicationConnection, ReplicationError, ReplicationStream};
use postrider::postgres::sql::Sql;
use postrider::postgres::url::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::own::Own;
use crate::support::{eventually, unique};

pub(crate) const SECONDS_30: Duration = Duration::from_secs(30);

/// A database of its own on the scratch server, and a session of the superuser in it.
struct Scratch {
    base: url::Url,
    database: String,
    sql: Sql,
}

impl Scratch {
    async fn new() -> Scratch {
        static SERVER: OnceLock<&Own> = OnceLock::new();
        let mut base = SERVER.get_or_init(|| Own::postgres(&[]).keep_until_exit()).url("DATABASE_URL");
        base.set_query(Some("sslmode=disable"));
        let database = unique("it");
        let admin = Sql::connect(&target(base.as_str()), "it", SECONDS_30).await.unwrap();
        admin.client().batch_execute(&format!("create database {database}")).await.unwrap();
        base.set_path(&database);
        let sql = Sql::connect(&target(base.as_str()), "it", SECONDS_30).await.unwrap();
        Scratch { base, database, sql }
    }

    fn target(&self) -> Target {
        target(self.base.as_str())
    }

    /// The URL with another user and query.
    fn url(&self, user: &str, password: &str, query: &str) -> String {
        let mut url = self.base.clone();
        url.set_username(user).unwrap();
        url.set_password(Some(password)).unwrap();
        url.set_query(Some(query));
        url.into()
    }

    async fn execute(&self, sql: &str) {
        self.sql.client().batch_execute(sql).await.unwrap();
    }

    async fn text(&self, sql: &str) -> String {
        let rows = self.sql.client().query(sql, &[]).await.unwrap();
        rows[0].get(0)
    }

    /// A role that belongs to this database alone, with the password `right`.
    async fn role(&self, suffix: &str, attributes: &str) -> String {
        let role = format!("{}_{suffix}", self.database);
        self.execute(&format!("create role {role} login {attributes} password 'right'")).await;
        role
    }

    /// A table, its publication, and a slot named like the database.
    async fn with_slot(&self) {
        self.execute("create table public.t (id int primary key, v text); create publication p for table public.t")
            .await;
        let slot = &self.database;
        self.execute(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    }

    async fn stream(&self) -> ReplicationStream {
        let connection = ReplicationConnection::connect(&self.target(), "it").await.unwrap();
        connection.start(&self.database, &["p"], false, SECONDS_30).await.unwrap()
    }

    async fn confirmed(&self) -> Lsn {
        let sql =
            format!("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{}'", self.database);
        self.text(&sql).await.parse().unwrap()
    }
}

fn target(url: &str) -> Target {
    Target::parse(url, false).unwrap()
}

/// Kinds of the pgoutput messages, up to `commits` Commits, and the end LSN of the last one.
async fn read_commits(stream: &mut ReplicationStream, mut commits: usize) -> (String, Lsn) {
    let mut kinds = String::new();
    let mut end = Lsn::ZERO;
    while commits > 0 {
        let mut frames = Vec::new();
        tokio::time::timeout(SECONDS_30, stream.next_batch(&mut frames, 1 << 20)).await.expect("a batch").unwrap();
        for frame in frames {
            let Frame::Data { data, .. } = frame else { continue };
            kinds.push(char::from(data[0]));
            if data[0] == b'C' {
                commits -= 1;
                end = Lsn(u64::from_be_bytes(data[10..18].try_into().unwrap()));
            }
        }
    }
    (kinds, end)
}

#[tokio::test]
async fn an_insert_arrives_and_its_acknowledgement_moves_the_slot() {
    let scratch = Scratch::new().await;
    scratch.with_slot().await;
    let mut stream = scratch.stream().await;
    let before = scratch.confirmed().await;
    scratch.execute("insert into public.t values (1, 'a'), (2, 'b')").await;
    let (kinds, end) = read_commits(&mut stream, 1).await;
    assert_eq!(kinds, "BRIIC");
    assert!(end > before);

    stream.send_status(end, Lsn::ZERO, false).await.unwrap();
    stream.send_status(end, end, true).await.unwrap();
    eventually("the slot is at the commit's end", async || (scratch.confirmed().await == end).then_some(())).await;
    // The keepalive that was asked for.
    let mut frames = Vec::new();
    while !frames.iter().any(|frame| matches!(frame, Frame::Keepalive { .. })) {
        stream.next_batch(&mut frames, 1 << 20).await.unwrap();
    }

    stream.close().await;
    let active = format!("select active::text from pg_replication_slots where slot_name = '{}'", scratch.database);
    assert_eq!(scratch.text(&active).await, "false", "close waits until the walsender is gone");
    // What is acknowledged does not come again.
    let mut stream = scratch.stream().await;
    scratch.execute("insert into public.t values (3, 'c')").await;
    assert_eq!(read_commits(&mut stream, 1).await.0, "BRIC");
}

#[tokio::test]
async fn a_row_of_many_megabytes_and_a_wait_that_is_dropped_lose_nothing() {
    let scratch = Scratch::new().await;
    scratch.with_slot().await;
    let mut stream = scratch.stream().await;
    scratch.execute("insert into public.t values (1, repeat('x', 20000000)); insert into public.t select n, 'y' from generate_series(2, 3000) n").await;
    let mut frames = Vec::new();
    let mut commits = 0;
    let mut seen = 0;
    while commits < 1 {
        tokio::select! {
            biased;
            result = stream.next_batch(&mut frames, 1 << 20) => result.unwrap(),
            () = tokio::task::yield_now() => continue,
        }
        for frame in frames.drain(..) {
            let Frame::Data { data, .. } = frame else { continue };
            match data[0] {
                b'I' => seen += data.len(),
                b'C' => commits += 1,
                _ => {}
            }
        }
    }
    // Insert: kind, relation, 'N', columns, and for each of two columns kind and length (manual, "Logical Replication Message Formats").
    let digits: usize = (1..=3000).map(|n: u32| n.to_string().len()).sum();
    assert_eq!(seen, 3000 * (1 + 4 + 1 + 2 + 2 * 5) + digits + 20_000_000 + 2999);
}

#[tokio::test]
async fn the_settings_hold_whatever_the_role_says() {
    let scratch = Scratch::new().await;
    let role = scratch.role("r", "replication").await;
    // Version 17 has it.
    let has_transaction_timeout =
        scratch.text("select count(*)::text from pg_settings where name = 'transaction_timeout'").await == "1";
    for setting in [
        "datestyle = 'SQL, DMY'",
        "intervalstyle = postgres",
        "timezone = 'Asia/Tokyo'",
        "extra_float_digits = 0",
        "bytea_output = escape",
        "statement_timeout = 1000",
        "lock_timeout = 1000",
        "idle_session_timeout = 1000",
        "search_path = public",
        "client_min_messages = debug1",
        "wal_sender_timeout = 0",
    ] {
        scratch.execute(&format!("alter role {role} set {setting}")).await;
    }
    if has_transaction_timeout {
        scratch.execute(&format!("alter role {role} set transaction_timeout = 1000")).await;
    }
    // Nor what the URL's own options say.
    let target = target(&scratch.url(&role, "right", "sslmode=disable&options=-c%20IntervalStyle%3Dsql_standard"));
    let mut connection = ReplicationConnection::connect(&target, "it").await.unwrap();
    let shown = "select '2026-11-21 10:00+00'::timestamptz, interval '1 day 2 hours', 0.1::float8 + 0.2::float8, '\\x01'::bytea, coalesce(current_setting('transaction_timeout', true), '0'), current_setting('wal_sender_timeout')";
    let rows = connection.query(shown, SECONDS_30).await.unwrap();
    let shown: Vec<&str> = rows[0].iter().map(|value| value.as_deref().unwrap()).collect();
    assert_eq!(shown, ["2026-11-21 10:00:00+00", "P1DT2H", "0.30000000000000004", "\\x01", "0", "1min"]);

    let sql = Sql::connect(&target, "it", Duration::from_secs(7)).await.unwrap();
    let row = sql
        .client()
        .query_one(
            "select current_setting('statement_timeout'), current_setting('idle_session_timeout'), current_setting('search_path'), current_setting('synchronous_commit'), current_setting('application_name')",
            &[],
        )
        .await
        .unwrap();
    let shown: Vec<String> = (0..5).map(|at| row.get(at)).collect();
    assert_eq!(shown, ["7s", "0", "\"\"", "on", "it"]);
}

#[tokio::test]
async fn a_setting_that_is_lost_on_the_way_is_noticed() {
    let scratch = Scratch::new().await;
    // A proxy that changes one word of the startup message, as a pooler with ideas of its own would.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = format!("{}:{}", scratch.base.host_str().unwrap(), scratch.base.port().unwrap_or(5432));
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(server).await.unwrap();
        let length = client.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        client.read_exact(&mut startup).await.unwrap();
        let at = startup.windows(12).position(|word| word == b"TimeZone\0UTC").unwrap();
        startup[at + 9..at + 12].copy_from_slice(b"GMT");
        server.write_u32(length).await.unwrap();
        server.write_all(&startup).await.unwrap();
        copy_bidirectional(&mut client, &mut server).await.ok();
    });
    let mut url = scratch.base.clone();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(port)).unwrap();
    let error = ReplicationConnection::connect(&target(url.as_str()), "it").await.err().unwrap();
    assert!(
        matches!(&error, ConnectError::Setting { setting, actual, .. } if setting == "TimeZone" && actual == "GMT")
    );
    assert!(error.to_string().contains("connect to the server itself"), "{error}");
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    let scratch = Scratch::new().await;
    let role = scratch.role("r", "").await;
    let connect = async |url: String| {
        let target = target(&url);
        let sql = Sql::connect(&target, "it", SECONDS_30).await.err();
        let replication = ReplicationConnection::connect(&target, "it").await.err();
        (sql, replication)
    };
    let both = |errors: (Option<ConnectError>, Option<ConnectError>), state: &str, words: &str| {
        for error in [errors.0.expect("sql"), errors.1.expect("replication")] {
            assert_eq!(error.sqlstate(), Some(state).filter(|state| !state.is_empty()), "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.to_string().contains("wr0ng"), "{error}");
        }
    };
    both(connect(scratch.url(&role, "wr0ng", "sslmode=disable")).await, "28P01", "password in DATABASE_URL is wrong");
    both(connect(scratch.url(&role, "", "sslmode=disable")).await, "", "DATABASE_URL has none");
    let mut missing = scratch.base.clone();
    missing.set_path("no_such_db");
    both(connect(missing.into()).await, "3D000", "create the database");
    both(connect("postgres://u:wr0ng@127.0.0.1:1/d".to_owned()).await, "", "is the server running");
    both(connect("postgres://u:wr0ng@no.such.host.invalid/d".to_owned()).await, "", "cannot be resolved");
    both(connect("postgres://u:wr0ng@/d?host=/no/such/directory".to_owned()).await, "", "no such Unix socket");

    let (sql, replication) = connect(scratch.url(&role, "right", "sslmode=disable")).await;
    assert!(sql.is_none(), "{sql:?}");
    let replication = replication.unwrap();
    let statement = format!("alter role \"{role}\" with replication");
    assert!(replication.to_string().contains(&statement), "{replication}");
    scratch.execute(&statement).await;
    assert!(connect(scratch.url(&role, "right", "sslmode=disable")).await.1.is_none(), "what was printed helps");
}

#[tokio::test]
async fn hosts_are_tried_in_turn_and_a_read_only_one_is_not_taken() {
    let scratch = Scratch::new().await;
    let url = scratch.base.as_str().replacen('@', "@127.0.0.1:1,", 1);
    ReplicationConnection::connect(&target(&url), "it").await.unwrap();
    Sql::connect(&target(&url), "it", SECONDS_30).await.unwrap();

    let read_only = format!("{}&options=-c%20default_transaction_read_only%3Don", scratch.base);
    let error = Sql::connect(&target(&read_only), "it", SECONDS_30).await.unwrap_err();
    assert!(matches!(error, ConnectError::ReadOnly { .. }), "{error}");
    let error = ReplicationConnection::connect(&target(&read_only), "it").await.err().unwrap();
    assert!(matches!(error, ConnectError::ReadOnly { .. }), "{error}");
    for attrs in ["any", "primary"] {
        Sql::connect(&target(&format!("{read_only}&target_session_attrs={attrs}")), "it", SECONDS_30).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u@{}/d?connect_timeout=1", silent.local_addr().unwrap());
    let error = ReplicationConnection::connect(&target(&url), "it").await.err().unwrap();
    assert!(matches!(error, ConnectError::Timeout { seconds: 1, .. }), "{error}");
}

#[tokio::test]
async fn a_query_past_its_deadline_is_cancelled_on_the_server_too() {
    let scratch = Scratch::new().await;
    let mut connection = ReplicationConnection::connect(&scratch.target(), "it").await.unwrap();
    let error = connection.query("select pg_sleep(60)", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Timeout { .. }), "{error}");
    let rows = connection.query("select 1, null; show statement_timeout", SECONDS_30).await.unwrap();
    assert_eq!(rows, [vec![Some("1".to_owned()), None], vec![Some("0".to_owned())]]);

    let error = connection.query("select 1/0", SECONDS_30).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"));
    connection.query("do $$ begin raise warning 'look here'; end $$", SECONDS_30).await.unwrap();
    assert!(connection.take_notices()[0].contains("look here"));
    let locked = connection.query("select pg_try_advisory_lock(4711)", SECONDS_30).await.unwrap();
    assert_eq!(locked, [[Some("t".to_owned())]]);
}

#[tokio::test]
async fn an_end_is_noticed_at_once_and_says_why() {
    let scratch = Scratch::new().await;
    scratch.with_slot().await;
    let mut stream = scratch.stream().await;
    let sql = Sql::connect(&scratch.target(), "victim", SECONDS_30).await.unwrap();
    let mut ended = sql.ended();
    let pid: i32 = sql.client().query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    // Behind the closing of the statement, which would be told the reason.
    sql.client().simple_query("select 1").await.unwrap();
    scratch.execute(&format!("select pg_terminate_backend({pid})")).await;
    let reason = tokio::time::timeout(SECONDS_30, ended.wait()).await.unwrap();
    assert!(reason.is_shutting_down(), "{reason}");
    assert!(ended.wait().await.is_closed(), "and every later wait ends at once");

    let slot = &scratch.database;
    scratch
        .execute(&format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{slot}'"
        ))
        .await;
    let mut frames = Vec::new();
    let error = loop {
        if let Err(error) = stream.next_batch(&mut frames, 1 << 20).await {
            break error;
        }
    };
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    assert!(error.is_shutting_down());
}
