//! `postrider dlq`: shows the dead letters, and marks what is to become of them. It needs the database and no running relay:
//! whatever it marks is done by the relay that carries the slot. With `--queue` it looks after a dead-letter queue of consumers
//! instead, which needs the broker alone.

mod list;
mod mark;
mod queue;
mod show;
mod text;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde::Deserialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::ConnectError;
use crate::config::Config;
use crate::dead_letters::Reason;
use crate::postgres::sql::Sql;

/// A hundred thousand of them are read in less.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
#[command(
    after_help = "Two things are called dead letters. Events that RabbitMQ does not take wait in the database: without --queue this is \
about them, and needs DATABASE_URL. Messages that consumers cannot handle wait in a queue of RabbitMQ: with --queue NAME it is about \
that queue, needs AMQP_URL alone, and knows list and redrive. Both are described in docs/dead-letters.md."
)]
pub struct DlqArgs {
    #[command(subcommand)]
    pub command: DlqCommand,
    /// The replication slot whose dead letters are meant [default: what the configuration says]
    #[arg(long, global = true, value_name = "NAME")]
    pub slot: Option<String>,
    /// A dead-letter queue of consumers in RabbitMQ, instead of the relay's own dead letters: list, redrive
    #[arg(long, global = true, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub queue: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Say how many there are and why, and list them in the order of their events
    List(list::ListArgs),
    /// Show everything that is known of one, with headers and body
    Show(show::ShowArgs),
    /// Mark them to be published again by the relay that carries the slot; with --queue, send them back to where they were
    Redrive(queue::RedriveArgs),
    /// Mark them to be taken out, unpublished, by the relay that carries the slot
    Discard(mark::MarkArgs),
}

/// Which dead letters are meant: those that all of this is true of.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Numbers of dead letters
    #[arg(value_name = "ID")]
    pub ids: Vec<i64>,
    /// Why they were parked: unroutable, nacked, timed_out, behind, too_large, ...
    #[arg(long)]
    pub reason: Option<Reason>,
    /// Name of a route of the configuration
    #[arg(long)]
    pub route: Option<String>,
    /// Exchange that they are for
    #[arg(long)]
    pub exchange: Option<String>,
    /// Routing key, whole
    #[arg(long)]
    pub routing_key: Option<String>,
    /// Kind of the thing that changed
    #[arg(long)]
    pub aggregatetype: Option<String>,
    /// Which thing changed
    #[arg(long)]
    pub aggregateid: Option<String>,
    /// Type of the event, as in OrderPlaced
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// Parked longer ago than this: an interval of PostgreSQL, as in 2h or '3 days'
    #[arg(long, value_name = "INTERVAL")]
    pub older_than: Option<String>,
    /// Parked since then
    #[arg(long, value_name = "INTERVAL")]
    pub newer_than: Option<String>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Filter {
            ids,
            reason,
            route,
            exchange,
            routing_key,
            aggregatetype,
            aggregateid,
            kind,
            older_than,
            newer_than,
        } = self;
        let texts = [route, exchange, routing_key, aggregatetype, aggregateid, kind, older_than, newer_than];
        ids.is_empty() && reason.is_none() && texts.iter().all(|text| text.is_none())
    }

    /// Calls `each` with the first twelve parameters of the statements, which are the arguments of the SQL functions.
    fn parameters<'a>(&'a self, slot: &'a String, chosen: &'a mut Chosen<'a>) -> Parameters<'a> {
        *chosen = Chosen {
            ids: (!self.ids.is_empty()).then_some(self.ids.as_slice()),
            reason: self.reason.map(Reason::as_str),
            everything: self.is_empty(),
        };
        vec![
            (&chosen.ids, Type::INT8_ARRAY),
            (slot, Type::TEXT),
            (&chosen.reason, Type::TEXT),
            (&self.route, Type::TEXT),
            (&self.exchange, Type::TEXT),
            (&self.routing_key, Type::TEXT),
            (&self.aggregatetype, Type::TEXT),
            (&self.aggregateid, Type::TEXT),
            (&self.kind, Type::TEXT),
            (&self.older_than, Type::TEXT),
            (&self.newer_than, Type::TEXT),
            (&chosen.everything, Type::BOOL),
        ]
    }
}

type Parameters<'a> = Vec<(&'a (dyn ToSql + Sync), Type)>;

/// What of a filter has to be put into another form for PostgreSQL.
#[derive(Default)]
struct Chosen<'a> {
    ids: Option<&'a [i64]>,
    reason: Option<&'static str>,
    everything: bool,
}

/// A row of `postrider.parked`, from its JSON.
#[derive(Debug, Deserialize)]
struct Parked {
    id: i64,
    slot: String,
    position: String,
    event_id: String,
    keys: Vec<String>,
    aggregatetype: Option<String>,
    aggregateid: Option<String>,
    r#type: Option<String>,
    route: String,
    exchange: String,
    routing_key: String,
    reason: String,
    error: String,
    holds_key: bool,
    attempts: i32,
    body_bytes: i64,
    committed_at: String,
    parked_at: String,
    last_attempt_at: Option<String>,
    mark: Option<String>,
    marked_at: Option<String>,
    marked_by: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum DlqError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0} goes with --queue NAME: it is about a dead-letter queue of consumers")]
    NeedsQueue(&'static str),
    #[error(transparent)]
    Queue(#[from] queue::QueueError),
    #[error("nothing says which dead letters are meant: give their numbers or a filter (see --help), or --all")]
    NoFilter,
    #[error("--all and a filter exclude each other")]
    AllAndFilter,
    #[error("slot {slot} has no dead letter {}; postrider dlq list shows what there is", list(.ids))]
    NotFound { slot: String, ids: Vec<i64> },
    #[error("there is no dead letter {0}; postrider dlq list shows what there is")]
    NoSuch(i64),
    #[error("{0}")]
    Refused(String),
    #[error("the connection to PostgreSQL failed: {0}")]
    Connection(#[source] tokio_postgres::Error),
    #[error("PostgreSQL answered something else than postrider.parked: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

impl From<tokio_postgres::Error> for DlqError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else { return DlqError::Connection(error) };
        let advice = match *refusal.code() {
            SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_FUNCTION | SqlState::INVALID_SCHEMA_NAME => {
                Some("this database has no dead letters, or is not migrated far enough: run postrider migrate")
            }
            SqlState::INSUFFICIENT_PRIVILEGE => Some(
                "postrider migrate --print-roles prints what the relay's role needs; docs/dead-letters.md what another role needs",
            ),
            SqlState::LOCK_NOT_AVAILABLE => {
                Some("another session has marked some of them and not committed yet; try again")
            }
            _ => refusal.hint(),
        };
        DlqError::Refused(match advice {
            Some(advice) => format!("{}: {advice}", refusal.message()),
            None => refusal.message().to_owned(),
        })
    }
}

fn list(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

pub async fn run(args: &DlqArgs, config: &Config) -> Result<ExitCode, DlqError> {
    if let Some(queue) = &args.queue {
        return Ok(queue::run(args, queue, config).await?);
    }
    let slot = args.slot.clone().unwrap_or_else(|| config.slot.clone());
    match &args.command {
        DlqCommand::List(list::ListArgs { peek: Some(_), .. }) => return Err(DlqError::NeedsQueue("--peek")),
        DlqCommand::Redrive(queue::RedriveArgs { to: Some(_), .. }) => return Err(DlqError::NeedsQueue("--to")),
        DlqCommand::Redrive(queue::RedriveArgs { limit: Some(_), .. }) => return Err(DlqError::NeedsQueue("--limit")),
        DlqCommand::Redrive(queue::RedriveArgs { mark, .. }) | DlqCommand::Discard(mark) => mark.check()?,
        DlqCommand::List(_) | DlqCommand::Show(_) => {}
    }
    let sql = super::connect(config, "postrider dlq", STATEMENT_TIMEOUT).await?;
    match &args.command {
        DlqCommand::List(args) => list::run(args, &slot, &sql).await?,
        DlqCommand::Show(args) => show::run(args, &sql).await?,
        DlqCommand::Redrive(args) => mark::run(mark::Verb::Redrive, &args.mark, &slot, &sql).await?,
        DlqCommand::Discard(args) => mark::run(mark::Verb::Discard, args, &slot, &sql).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The JSON that a statement gives, row by row.
async fn letters(sql: &Sql, statement: &str, parameters: &Parameters<'_>) -> Result<Vec<String>, DlqError> {
    let rows = sql.client().query_typed(statement, parameters).await?;
    Ok(rows.iter().map(|row| row.get("letter")).collect())
}
