//! Debezium's slot, before it becomes ours: what has to be so that nothing which it has not confirmed is lost.
//!
//! PostgreSQL decodes a change with the catalogue as it was then. A publication that is younger than the oldest change that a slot still has
//! to send does not exist for that change: PostgreSQL before 18 refuses to decode it, later ones leave it out. So the publications are made
//! while Debezium still reads, and the slot is taken over when its `catalog_xmin` has passed them.

use tokio_postgres::Client;

use crate::config::Config;

/// Why the slot cannot be taken over now.
#[derive(Debug, thiserror::Error)]
pub enum NotYours {
    #[error("there is no slot {0}: Debezium has not run on this server, or has dropped it (slot.drop.on.stop)")]
    NoSlot(String),
    #[error(
        "slot {slot} is one of {plugin} in database {database}: only a persistent slot of pgoutput in this database can be taken over"
    )]
    OfAnother { slot: String, plugin: String, database: String },
    #[error("slot {slot} has lost its WAL ({wal_status}): what Debezium had still to send is gone")]
    Lost { slot: String, wal_status: String },
    #[error("publication {0} is not there: run `postrider migrate` with the new configuration, while Debezium runs")]
    NotMigrated(String),
    #[error(
        "slot {slot} still has to send what was written before {publications}: PostgreSQL would refuse it, or leave it out. \
         Let Debezium read on (start it again if it is stopped) until catalog_xmin of the slot, now {catalog_xmin}, has passed that: it moves as \
         Debezium confirms what it reads, after the next checkpoint or within 15 s of a write"
    )]
    TooYoung { slot: String, publications: String, catalog_xmin: String },
    #[error("Debezium still reads slot {slot} (pid {pid}{}): stop it first", .reader.as_ref().map(|name| format!(", {name}")).unwrap_or_default())]
    Active { slot: String, pid: i32, reader: Option<String> },
    #[error("the database refused: {}", crate::error::chain(.0))]
    Database(#[from] tokio_postgres::Error),
}

/// The slot as it can be taken over.
#[derive(Debug)]
pub struct Ready {
    /// What Debezium has confirmed: the stream goes on behind it.
    pub confirmed: String,
}

/// Looks, in the order in which a person gets over each. Changes nothing.
pub async fn examine(sql: &Client, config: &Config) -> Result<Ready, NotYours> {
    let slot = &config.slot;
    let source = &config.source;
    let captured = if source.has_tables() {
        [&source.publication, &source.publication_inserts].map(String::as_str)
    } else {
        ["", ""]
    };
    let row = sql
        .query_opt(
            include_str!("../../sql/queries/debezium_slot.sql"),
            &[slot, &config.publication, &captured[0], &captured[1]],
        )
        .await?
        .ok_or_else(|| NotYours::NoSlot(slot.clone()))?;
    let text = |column: &str| row.get::<_, Option<String>>(column).unwrap_or_else(|| "nothing".to_owned());
    let plugin = text("plugin");
    if plugin != "pgoutput" || !row.get::<_, Option<bool>>("ours").unwrap_or(false) || row.get::<_, bool>("temporary") {
        return Err(NotYours::OfAnother { slot: slot.clone(), plugin, database: text("database") });
    }
    let wal_status = text("wal_status");
    if wal_status == "lost" {
        return Err(NotYours::Lost { slot: slot.clone(), wal_status });
    }
    if let Some(missing) = row.get::<_, Vec<String>>("missing").into_iter().next() {
        return Err(NotYours::NotMigrated(missing));
    }
    let too_young: Vec<String> = row.get("too_young");
    if !too_young.is_empty() {
        let publications = format!("publication {} was made", too_young.join(" and "));
        return Err(NotYours::TooYoung { slot: slot.clone(), publications, catalog_xmin: text("catalog_xmin") });
    }
    if let Some(pid) = row.get::<_, Option<i32>>("active_pid") {
        return Err(NotYours::Active { slot: slot.clone(), pid, reader: row.get("reader") });
    }
    Ok(Ready { confirmed: text("confirmed") })
}
