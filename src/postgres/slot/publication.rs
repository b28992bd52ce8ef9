//! What the publications are made of, and whether they have become less (D9).

use tokio_postgres::Client;

use super::{SlotError, quote_table};
use crate::config::Config;
use crate::postgres::capture::{self, Captured, Damaged};
use crate::postgres::quote::quote_ident;

/// What the publications are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    main: String,
    /// `None`: nothing is captured, or the slot is older than the publications.
    captured: Option<Captured>,
    /// How it is less than what was recorded.
    pub change: Option<String>,
}

impl Published {
    /// For the record.
    pub fn state(&self) -> String {
        Captured::join(&self.main, self.captured.as_ref())
    }

    /// The slot can be read with the publications of captured tables.
    pub fn has_captures(&self) -> bool {
        self.captured.is_some()
    }

    /// Their names, if the slot can be read with them.
    pub fn captures(&self, config: &Config) -> Option<[String; 2]> {
        let source = &config.source;
        self.captured.as_ref().map(|_| [source.publication.clone(), source.publication_inserts.clone()])
    }

    /// A slot waits for every transaction that was there before it, so it knows all that there is now.
    pub(super) async fn for_new_slot(self, sql: &Client, config: &Config) -> Result<Published, tokio_postgres::Error> {
        if self.captured.is_some() || !config.source.has_tables() {
            return Ok(self);
        }
        let found = capture::look(sql, &config.source, &config.slot).await?;
        Ok(Published { captured: found.ok().map(|found| found.captured), ..self })
    }
}

/// Without the publications (or with one that lost a table) changes would pass the slot unseen: PostgreSQL 18 only warns. What they are made
/// of, and whether that is less than `recorded`.
pub async fn check_publication(sql: &Client, config: &Config, recorded: Option<&str>) -> Result<Published, SlotError> {
    let main = check_outbox_publication(sql, config).await?;
    let (recorded_main, recorded) = recorded.map(Captured::split).unzip();
    let mut change = recorded_main.filter(|recorded| *recorded != main).map(|_| main.clone());
    let mut captured = None;
    if config.source.has_tables() {
        let found = capture::look(sql, &config.source, &config.slot).await?;
        let found = found.map_err(|publication| SlotError::CaptureMissing { publication })?;
        let recorded = recorded.flatten();
        captured = (found.settled || recorded.is_some()).then_some(found.captured);
        change = match (change, &captured, &recorded) {
            (None, Some(captured), Some(Ok(recorded))) => captured.lost(recorded, &config.source, sql).await?,
            // What it would have to be compared with is not known.
            (None, _, Some(Err(Damaged))) => Some("the record of captured tables cannot be read".to_owned()),
            (change, ..) => change,
        };
    }
    Ok(Published { main, captured, change })
}

async fn check_outbox_publication(sql: &Client, config: &Config) -> Result<String, SlotError> {
    let outbox = &config.outbox;
    let row = sql
        .query_one(
            include_str!("../../../sql/queries/publication.sql"),
            &[&config.publication, &outbox.schema, &outbox.table],
        )
        .await?;
    let publication = config.publication.clone();
    let (name, table) = (quote_ident(&publication), quote_table(config));
    if !row.get::<_, bool>("found") {
        return Err(SlotError::PublicationMissing { publication, statement: create_publication(config) });
    }
    let incomplete =
        |what: String, statement: String| Err(SlotError::PublicationIncomplete { publication, what, statement });
    if !row.get::<_, bool>("inserts") {
        incomplete("inserts".to_owned(), format!("alter publication {name} set (publish = 'insert')"))
    } else if !row.get::<_, bool>("outbox") {
        incomplete(format!("table {table}"), format!("alter publication {name} add table {table}"))
    } else if !row.get::<_, bool>("heartbeat") {
        let what = "table postrider.heartbeat".to_owned();
        incomplete(what, format!("alter publication {name} add table postrider.heartbeat"))
    } else if row.get::<_, bool>("leaves_out_rows") {
        incomplete(
            format!("all rows of {table}"),
            format!("alter publication {name} set table {table}, postrider.heartbeat, postrider.resend"),
        )
    } else {
        Ok(row.get("state"))
    }
}

/// The statement that makes the publication as the migrations do.
pub fn create_publication(config: &Config) -> String {
    let (name, table) = (quote_ident(&config.publication), quote_table(config));
    format!(
        "create publication {name} for table {table}, postrider.heartbeat, postrider.resend with (publish = 'insert', publish_via_partition_root = true)"
    )
}
