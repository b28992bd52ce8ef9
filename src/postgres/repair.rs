//! `postrider repair`: rows of the outbox that are not surely delivered (rule R7) go through the slot again.
//!
//! Copies of them pass through the table `postrider.resend`, which is in the publication: the relay publishes them as it publishes
//! every row, confirmed, held and parked in the same way, and the outbox is never written to. What has been sent again is remembered in
//! the same transaction, so that a repair may be stopped at any time and run again.

use tokio_postgres::Client;

use crate::config::Config;
use crate::postgres::adoption::{self, AdoptError, Diagnosis};
use crate::postgres::quote::{fill, outbox_values, quote_ident, quote_literal};

/// Rows in one transaction: the relay reads it whole.
const BATCH: usize = 1_000;

/// Why no row was sent again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("the relay of slot {slot} is halted ({halt}): decide first, by `postrider adopt --reason '...'`")]
    Halted { slot: String, halt: String },
    #[error("another repair of slot {0} is running")]
    Running(String),
    #[error("slot {0} has no open life: start the relay, which makes its slot and begins one, then run this again")]
    NoLife(String),
    #[error("publication {publication} does not publish postrider.resend: as its owner run `alter publication {name} add table postrider.resend`", name = quote_ident(.publication))]
    NotPublished { publication: String },
    #[error(
        "the outbox has other columns than when postrider.resend was made: as the owner run `select postrider.define_resend()`, then what `postrider migrate --print-roles` prints"
    )]
    OtherColumns,
    #[error(
        "the schema `postrider` is not there or not complete: run `postrider migrate` as the owner of the database"
    )]
    NotMigrated,
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    #[error("the database refused: {}", crate::error::chain(.0))]
    Database(#[from] tokio_postgres::Error),
}

/// What is not surely delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Why the relay is halted, if it is.
    pub halt: Option<String>,
    /// Written since the slot's first life began, and not surely delivered: what `repair` sends again.
    pub in_doubt: i64,
    /// Not surely delivered, and coming through the slot by themselves.
    pub under_way: i64,
    /// From before the slot's first life in this cluster.
    pub earlier: i64,
    pub order: Order,
    /// Whether the slot has an open life.
    pub lives: bool,
}

/// In which order the rows of one key go out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By commit time: `track_commit_timestamp` is on.
    Commit,
    /// By transaction number.
    #[default]
    Transaction,
    /// The table has no transaction numbers.
    Occurrence,
}

/// Counts. Changes nothing. Reads the whole outbox.
pub async fn survey(sql: &mut Client, config: &Config) -> Result<Survey, RepairError> {
    if crate::migrate::version(sql).await? < crate::migrate::LATEST {
        return Err(RepairError::NotMigrated);
    }
    let Diagnosis { halt, scene, .. } = adoption::diagnose(sql, config).await?;
    let way = halt.as_ref().and_then(|halt| adoption::way(halt, &scene));
    let in_slot = match way {
        Some(way) => adoption::in_slot(sql, config, way).await?,
        None => Vec::new(),
    };
    let halt = halt.map(|halt| halt.reason().to_owned());
    let values = values(sql, config).await?;
    let statement = fill(include_str!("../../sql/queries/repair_survey.sql"), &values);
    let row = sql.query_one(&statement, &[&config.slot, &halt.is_some(), &in_slot]).await?;
    let order = match (row.get("has_xid"), row.get("commit_timestamps")) {
        (false, _) => Order::Occurrence,
        (true, true) => Order::Commit,
        (true, false) => Order::Transaction,
    };
    Ok(Survey {
        halt,
        in_doubt: row.get("in_doubt"),
        under_way: row.get("under_way"),
        earlier: row.get("earlier"),
        lives: row.get("lives"),
        order,
    })
}

/// Sends again what [`Survey::in_doubt`] counts, and with `earlier` what that counts too. `done` is told of each batch. The number of rows.
pub async fn repair(
    sql: &mut Client,
    config: &Config,
    survey: &Survey,
    earlier: bool,
    mut done: impl FnMut(usize),
) -> Result<usize, RepairError> {
    if let Some(halt) = &survey.halt {
        return Err(RepairError::Halted { slot: config.slot.clone(), halt: halt.clone() });
    }
    if !survey.lives {
        return Err(RepairError::NoLife(config.slot.clone()));
    }
    let alone: bool = sql.query_one(include_str!("../../sql/queries/repair_lock.sql"), &[&config.slot]).await?.get(0);
    if !alone {
        return Err(RepairError::Running(config.slot.clone()));
    }
    let columns = columns(sql, config).await?;
    let mut values = values(sql, config).await?;
    values.push(("columns", columns.names.iter().map(|name| quote_ident(name)).collect::<Vec<_>>().join(", ")));
    values.push((
        "written_columns",
        columns.names.iter().map(|name| format!("written.{}", quote_ident(name))).collect::<Vec<_>>().join(", "),
    ));
    values.push(("id_type", columns.id_type));
    values.push(("slot_text", quote_literal(&config.slot)));
    values.push(("earlier", earlier.to_string()));
    values.push(("order", order(config, survey.order, &columns.names)));

    sql.batch_execute(&fill(include_str!("../../sql/queries/repair_forget.sql"), &values)).await?;
    // The list is made once, so that the order is that of all of it. WITH HOLD: each batch is a transaction of its own.
    sql.batch_execute(&fill(include_str!("../../sql/queries/repair_list.sql"), &values)).await?;
    let batch = fill(include_str!("../../sql/queries/repair_batch.sql"), &values);
    let gone = fill("delete from postrider.resend where {{id}} = any ($1::text[]::{{id_type}}[])", &values);
    let mut sent = 0;
    loop {
        let rows = sql.query(&format!("fetch {BATCH} from postrider_repair"), &[]).await?;
        if rows.is_empty() {
            sql.batch_execute("close postrider_repair").await?;
            return Ok(sent);
        }
        let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let transaction = sql.transaction().await?;
        transaction.execute(&batch, &[&ids]).await?;
        transaction.execute(&gone, &[&ids]).await?;
        transaction.execute(include_str!("../../sql/queries/repair_note.sql"), &[&config.slot, &ids]).await?;
        transaction.commit().await?;
        sent += ids.len();
        done(sent);
    }
}

/// Those of the outbox that can be written to the copy.
struct TableColumns {
    names: Vec<String>,
    id_type: String,
}

async fn columns(sql: &Client, config: &Config) -> Result<TableColumns, RepairError> {
    let statement = fill(include_str!("../../sql/queries/repair_columns.sql"), &outbox_values(&config.outbox));
    let row = sql.query_one(&statement, &[&config.publication]).await?;
    if !row.get::<_, bool>("published") {
        return Err(RepairError::NotPublished { publication: config.publication.clone() });
    }
    if !row.get::<_, bool>("equal") {
        return Err(RepairError::OtherColumns);
    }
    Ok(TableColumns { names: row.get("names"), id_type: row.get("id_type") })
}

/// `{{written_by}}`: the transaction of a row, or the one that has sent it again since.
async fn values(sql: &Client, config: &Config) -> Result<Vec<(&'static str, String)>, RepairError> {
    let outbox = &config.outbox;
    let readable = include_str!("../../sql/queries/outbox_xid_readable.sql");
    let has_xid: bool = sql.query_one(readable, &[&outbox.schema, &outbox.table, &outbox.columns.xid]).await?.get(0);
    let own = if has_xid { format!(", written.{}", quote_ident(&outbox.columns.xid)) } else { String::new() };
    let mut values = outbox_values(outbox);
    values.push(("written_by", format!("greatest(sent.xid{own})")));
    Ok(values)
}

/// For ORDER BY. The number that the producer keeps decides inside a transaction, then the place in the table.
fn order(config: &Config, order: Order, names: &[String]) -> String {
    let columns = &config.outbox.columns;
    let here = |name: &str| names.iter().any(|each| each == name).then(|| format!("written.{}", quote_ident(name)));
    let by = match order {
        Order::Commit => {
            here(&columns.xid).map(|xid| format!("pg_catalog.pg_xact_commit_timestamp({xid}::xid) nulls first, {xid}"))
        }
        Order::Transaction => here(&columns.xid),
        Order::Occurrence => here(&columns.occurred_at),
    };
    let parts = [by, here(&columns.sequence), Some("written.postrider_place".to_owned())];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
