//! `postrider snapshot`: have the rows of a captured table read once, by the relay that carries.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::ConnectError;
use super::text::harmless;
use crate::config::Config;
use crate::postgres::snapshot;
use crate::postgres::sql::{Sql, SqlError};

const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
pub struct SnapshotArgs {
    /// The table, as schema.table; without a schema that of `public`
    #[arg(required_unless_present = "list")]
    pub table: Option<String>,
    /// Only the rows for which this SQL condition holds; it is run with the rights of the relay
    #[arg(long = "where", value_name = "CONDITION", conflicts_with_all = ["list", "cancel"])]
    pub condition: Option<String>,
    /// Ask for it and return at once
    #[arg(long, conflicts_with_all = ["list", "cancel"])]
    pub no_wait: bool,
    /// Show the snapshots of the slot
    #[arg(long, conflicts_with_all = ["table", "cancel"])]
    pub list: bool,
    /// Stop the table's snapshot; what was read of it has been published
    #[arg(long)]
    pub cancel: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotCommandError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("there is no table {0}")]
    NoTable(String),
    #[error("{0} is not captured: put it into source.tables and run postrider migrate")]
    NotCaptured(String),
    #[error("a snapshot of {0} is under way: see postrider snapshot --list, or stop it by --cancel")]
    UnderWay(String),
    #[error("no snapshot of {0} is under way")]
    Nothing(String),
    #[error("the snapshot of {0} was cancelled")]
    Cancelled(String),
    #[error("{0}{1}")]
    Sql(SqlError, &'static str),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

impl From<tokio_postgres::Error> for SnapshotCommandError {
    fn from(error: tokio_postgres::Error) -> Self {
        let advice = match error.code() {
            Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => {
                ": the database is not migrated (postrider migrate)"
            }
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                ": it needs usage on schema postrider, and select, insert and update on postrider.snapshots"
            }
            _ => "",
        };
        SnapshotCommandError::Sql(error.into(), advice)
    }
}

pub async fn run(args: &SnapshotArgs, config: &Config) -> Result<ExitCode, SnapshotCommandError> {
    let sql = super::connect(config, "postrider snapshot", STATEMENT_TIMEOUT).await?;
    let Some(named) = &args.table else {
        super::print(&list(&sql, config).await?)?;
        return Ok(ExitCode::SUCCESS);
    };
    let (schema, table, captured) = find(&sql, config, named).await?;
    let name = format!("{schema}.{table}");
    if args.cancel {
        const CANCEL: &str = include_str!("../../sql/queries/snapshot_cancel.sql");
        if sql.client().execute(CANCEL, &[&config.slot, &schema, &table]).await? == 0 {
            return Err(SnapshotCommandError::Nothing(name));
        }
        super::print(&format!("the snapshot of {name} is cancelled: what was read of it has been published\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !captured || !snapshot::is_meant(config, &schema, &table) {
        return Err(SnapshotCommandError::NotCaptured(name));
    }
    const REQUEST: &str = include_str!("../../sql/queries/snapshot_request.sql");
    let asked = sql.client().query_opt(REQUEST, &[&config.slot, &schema, &table, &args.condition]).await?;
    let Some(asked) = asked else { return Err(SnapshotCommandError::UnderWay(name)) };
    if args.no_wait {
        super::print(&format!(
            "asked for a snapshot of {name}: the relay that carries slot {} takes it up\n",
            config.slot
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    wait(&sql, config, (&schema, &table), asked.get(0)).await
}

/// Until it is done.
async fn wait(
    sql: &Sql,
    config: &Config,
    (schema, table): (&String, &String),
    request: i32,
) -> Result<ExitCode, SnapshotCommandError> {
    let (name, terminal) = (format!("{schema}.{table}"), std::io::stderr().is_terminal());
    let mut told = String::new();
    loop {
        let rows = sql
            .client()
            .query(include_str!("../../sql/queries/snapshot_list.sql"), &[&config.slot, &Some(schema), table])
            .await?;
        let Some(row) = rows.first().filter(|row| row.get::<_, i32>("request") == request) else {
            return Err(SnapshotCommandError::Cancelled(name));
        };
        let line = progress(row);
        if line != told {
            // On a terminal one line that is written again; elsewhere a line for each step.
            if terminal {
                eprint!("\r\u{1b}[K{name}: {line}");
            } else {
                eprintln!("{name}: {line}");
            }
            told = line;
        }
        match row.get::<_, &str>("state") {
            "done" => {
                if terminal {
                    eprintln!();
                }
                let read: i64 = row.get("rows_read");
                super::print(&format!("the snapshot of {name} is done: {read} rows\n"))?;
                return Ok(ExitCode::SUCCESS);
            }
            "cancelled" => return Err(SnapshotCommandError::Cancelled(name)),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

fn progress(row: &Row) -> String {
    let (read, expected): (i64, Option<i64>) = (row.get("rows_read"), row.get("rows_expected"));
    if let Some(problem) = row.get::<_, Option<&str>>("problem") {
        return harmless(problem, &[]);
    }
    match (row.get::<_, &str>("state"), expected.filter(|expected| *expected > 0)) {
        ("wanted", _) => "waiting for the relay to take it up".to_owned(),
        ("running", Some(expected)) => {
            let share = (read.saturating_mul(100) / expected).min(99);
            let tenths = usize::try_from(share / 5).unwrap_or_default();
            format!("[{:<20}] {share} %, {read} rows of about {expected}", "#".repeat(tenths))
        }
        (state, _) => format!("{state}, {read} rows"),
    }
}

async fn list(sql: &Sql, config: &Config) -> Result<String, SnapshotCommandError> {
    const NONE: Option<&str> = None;
    let rows =
        sql.client().query(include_str!("../../sql/queries/snapshot_list.sql"), &[&config.slot, &NONE, &""]).await?;
    if rows.is_empty() {
        return Ok(format!("slot {} has no snapshots\n", config.slot));
    }
    let mut text = String::new();
    for row in rows {
        let (schema, table, by, at): (&str, &str, &str, &str) =
            (row.get("schema_name"), row.get("table_name"), row.get("requested_by"), row.get("requested_at"));
        let condition = row.get::<_, Option<&str>>("condition");
        let condition = condition.map(|condition| format!(", where {condition}")).unwrap_or_default();
        let line = format!("{schema}.{table}  {}  asked for by {by} at {at}{condition}", progress(&row));
        text.push_str(&harmless(&line, &[]));
        text.push('\n');
    }
    Ok(text)
}

/// Schema and name, and whether it is captured.
async fn find(sql: &Sql, config: &Config, named: &String) -> Result<(String, String, bool), SnapshotCommandError> {
    let source = &config.source;
    let publications = [source.publication.as_str(), source.publication_inserts.as_str()];
    let row = sql
        .client()
        .query_opt(include_str!("../../sql/queries/snapshot_name.sql"), &[named, &&publications[..]])
        .await?
        .ok_or_else(|| SnapshotCommandError::NoTable(named.clone()))?;
    Ok((row.get("schema_name"), row.get("table_name"), row.get("captured")))
}
