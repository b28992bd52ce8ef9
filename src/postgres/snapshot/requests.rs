//! `postrider.snapshots`: what is asked for, and how far it is.

use tokio_postgres::Client;

use crate::config::{Config, Snapshot};
use crate::event::route::Pattern;
use crate::postgres::state::StateError;

/// A snapshot that is to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub schema: String,
    pub table: String,
    /// A condition on its rows.
    pub condition: Option<String>,
    pub no: i32,
    /// The primary key, as text, up to which everything is delivered.
    pub last_key: Option<Vec<String>>,
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub done: bool,
    pub last_key: Option<&'a [String]>,
    /// Since the last step.
    pub rows: i64,
    pub expected: Option<i64>,
    pub problem: Option<&'a str>,
    /// It begins from the start.
    pub afresh: bool,
}

impl Step<'_> {
    pub(super) const RUNNING: Step<'static> =
        Step { done: false, last_key: None, rows: 0, expected: None, problem: None, afresh: false };
}

/// The snapshot to take now, if any. Where the configuration says so, tables that never had one are asked for first.
pub async fn next(client: &Client, config: &Config) -> Result<Option<Request>, StateError> {
    const DOING: &str = "look for snapshots to take";
    let source = &config.source;
    if source.snapshot == Snapshot::Initial {
        let publications = [source.publication.as_str(), source.publication_inserts.as_str()];
        client
            .execute(include_str!("../../../sql/queries/snapshot_initial.sql"), &[&config.slot, &&publications[..]])
            .await
            .map_err(StateError::during(DOING))?;
    }
    let row = client
        .query_opt(include_str!("../../../sql/queries/snapshot_next.sql"), &[&config.slot])
        .await
        .map_err(StateError::during(DOING))?;
    Ok(row.map(|row| Request {
        schema: row.get("schema_name"),
        table: row.get("table_name"),
        condition: row.get("condition"),
        no: row.get("request"),
        last_key: row.get("last_key"),
    }))
}

/// Records a step; false if the request is there no more, or another relay has taken over.
pub(super) async fn step(
    client: &Client,
    slot: &str,
    epoch: i64,
    request: &Request,
    step: &Step<'_>,
) -> Result<bool, tokio_postgres::Error> {
    let state = if step.done { "done" } else { "running" };
    let written = client
        .execute(
            include_str!("../../../sql/queries/snapshot_step.sql"),
            &[
                &slot,
                &request.schema,
                &request.table,
                &request.no,
                &epoch,
                &state,
                &step.last_key,
                &step.rows,
                &step.expected,
                &step.problem,
                &step.afresh,
            ],
        )
        .await?;
    Ok(written == 1)
}

/// Whether the relay carries changes of the table, as far as the configuration goes.
pub fn is_meant(config: &Config, schema: &str, table: &str) -> bool {
    let name = format!("{schema}.{table}");
    config.source.tables.iter().any(|pattern| Pattern::new(pattern).matches(&name))
}
