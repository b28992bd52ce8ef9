//! Faults of PostgreSQL.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::NoTls;

use crate::Outcome;
use crate::chaos::Chaos;
use crate::database::{MAX_CONNECTIONS, SLOT};

pub(super) async fn inject(name: &str, chaos: &Chaos, length: Duration) -> Outcome<()> {
    let server = &chaos.database.server;
    let some = length.min(Duration::from_secs(4));
    match name {
        "walsender" => terminate(chaos, WALSENDER, Duration::from_secs(1), length).await,
        "sessions" => terminate(chaos, SESSIONS, Duration::from_millis(1_500), length).await,
        "pg-restart" => down(chaos, "fast", Duration::ZERO).await,
        "pg-immediate" => down(chaos, "immediate", some).await,
        "pg-kill" => down(chaos, "kill", some).await,
        "pg-pause" => {
            server.command("pause", &[]).await?;
            sleep(length).await;
            server.command("unpause", &[]).await.map(drop)
        }
        "connections" => use_up_connections(chaos, length).await,
        "long-transaction" => {
            let client = chaos.database.connect().await?;
            client.batch_execute("begin; select pg_current_xact_id()").await?;
            sleep(length).await;
            Ok(client.batch_execute("commit").await?)
        }
        "ddl" => change_the_table(chaos, length).await,
        _ => Err("unknown".into()),
    }
}

const WALSENDER: &str =
    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active";
const SESSIONS: &str = "select pg_terminate_backend(pid) from pg_stat_activity
    where usename = 'postrider' and backend_type = 'client backend' and $1::text is not null";

async fn terminate(chaos: &Chaos, statement: &str, pause: Duration, length: Duration) -> Outcome<()> {
    let client = chaos.database.connect().await?;
    let began = Instant::now();
    while began.elapsed() < length {
        client.execute(statement, &[&SLOT]).await?;
        sleep(pause).await;
    }
    Ok(())
}

async fn down(chaos: &Chaos, how: &str, length: Duration) -> Outcome<()> {
    chaos.database.server.command("stop", &[how]).await?;
    sleep(length).await;
    chaos.database.server.command("start-again", &[]).await.map(drop)
}

/// What people do to a table in use. The stream describes it anew after each, and rows that are gone have been published.
async fn change_the_table(chaos: &Chaos, length: Duration) -> Outcome<()> {
    let client = chaos.database.connect().await?;
    let statements = [
        "alter table outbox add column extra text default 'x'",
        "truncate outbox",
        "alter table outbox drop column extra",
        "vacuum outbox",
    ];
    let began = Instant::now();
    while began.elapsed() < length {
        for statement in statements {
            client.batch_execute(statement).await?;
            sleep(Duration::from_millis(300)).await;
        }
    }
    Ok(())
}

/// As another role that is no superuser, so that the writers and the harness keep what is reserved for them.
async fn use_up_connections(chaos: &Chaos, length: Duration) -> Outcome<()> {
    let client = chaos.database.connect().await?;
    client
        .batch_execute(
            "do $$ begin create role filler login password 'filler'; exception when duplicate_object then null; end $$",
        )
        .await?;
    let url = format!("postgres://filler:filler@{}/postgres?sslmode=disable", chaos.database.address());
    let mut taken = Vec::new();
    let began = Instant::now();
    let mut told = false;
    while began.elapsed() < length {
        while began.elapsed() < length
            && taken.len() < MAX_CONNECTIONS
            && let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await
        {
            taken.push(client);
            tokio::spawn(connection);
        }
        if !told {
            told = true;
            client.execute(SESSIONS, &[&SLOT]).await?;
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
