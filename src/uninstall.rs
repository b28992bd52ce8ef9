//! `postrider uninstall`: what there is and what would be lost, and its removal.
//!
//! The slot goes first, because it is what keeps WAL; then its record, so that the slot's absence is no halt for a later
//! installation; then the publication; and the rest only if its data may go. Each step finds its work done when it is run
//! again, also by another role: the right to drop a slot and the ownership of the publication may be two persons'.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::config::Config;
use crate::migrate::{self, MigrateError, Target};
use crate::postgres::quote::{fill, quote_literal};
use crate::postgres::witness::Witness;

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    pub slot: Slot,
    /// Replication connections of relays of this slot, whether they carry or stand by.
    pub relay_pids: Vec<i32>,
    pub publication: Publication,
    /// The publications of captured tables that are there, and whether migrate has made them. The others stay.
    pub captures: Vec<(String, bool)>,
    /// The tables are there.
    pub migrated: bool,
    /// The slot has a record in postrider.progress.
    pub recorded: bool,
    /// Slots of other relays on this database.
    pub other_slots: Vec<String>,
    /// Of this slot, and of all; `None` if the database has no such table.
    pub dead_letters: Option<(i64, i64)>,
    /// Tables that `postrider.capture` writes events for.
    pub captured: Vec<String>,
    /// Rows of the outbox that are not surely delivered; `None` if it could not be counted.
    pub undelivered: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    Absent,
    Ours {
        active_pid: Option<i32>,
        /// WAL between what is confirmed and the present, in bytes: undelivered events are in it, and much else.
        lag_bytes: Option<i64>,
        /// WAL that PostgreSQL keeps for it.
        retained_bytes: Option<i64>,
    },
    /// It reads this database as ours would, and there is no record of it.
    Unrecorded,
    /// Of this name, and nothing that Postrider makes. It stays.
    Foreign {
        what: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    Absent,
    /// Made by the migrations, with nothing else in it.
    Ours,
    /// Other relays of this database may read it.
    Shared,
    /// Made by the migrations, and somebody has added these tables: ours are taken out.
    Grown {
        tables: Vec<String>,
    },
    /// Made by somebody else. `has_ours`: what the migrations added is in it, and is taken out.
    Foreign {
        has_ours: bool,
    },
}

/// Why it is not removed, or not further. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error(
        "cannot remove the state file of the slot (state_dir): {0}. Remove it by hand, or a later relay halts at the missing slot"
    )]
    StateFile(std::io::Error),
    #[error(
        "slot {slot} is in use (pid {pid}): stop its relay first, as by systemctl stop or docker stop; if it is no relay that you know, `select pg_terminate_backend({pid})`"
    )]
    Active { slot: String, pid: i32 },
    #[error(
        "a relay of slot {slot} is connected (pid {}) and would make the slot again: stop it first", listed(.pids)
    )]
    Standby { slot: String, pids: Vec<i32> },
    #[error("a relay is about to take slot {slot}: stop it first")]
    Locked { slot: String },
    #[error(
        "slot {slot} is a pgoutput slot of this database and has no record in postrider.progress: it was made by something else, or the record was lost. Name another slot by POSTRIDER_SLOT, or drop it yourself: select pg_drop_replication_slot({literal})"
    )]
    Unknown { slot: String, literal: String },
    #[error("--drop-data would remove what the relays of other slots need ({}): uninstall those first (POSTRIDER_SLOT)", .0.join(", "))]
    OtherSlots(Vec<String>),
    #[error("this role may not {doing} ({message}): {remedy}. What was done before that stays done; run it again then")]
    Denied { doing: &'static str, message: String, remedy: &'static str },
    #[error("cannot {doing}")]
    Database { doing: &'static str, source: tokio_postgres::Error },
    #[error(transparent)]
    Migrate(#[from] MigrateError),
}

fn listed(pids: &[i32]) -> String {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    pids.join(", ")
}

fn during(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> UninstallError {
    move |source| UninstallError::Database { doing, source }
}

/// Looks and changes nothing. `application_name` is that of the relay's sessions.
pub async fn survey(client: &Client, config: &Config, application_name: &str) -> Result<Survey, UninstallError> {
    const DOING: &str = "see what there is";
    let (slot, publication) = (&config.slot, &config.publication);
    let row = client
        .query_typed_one(
            include_str!("../sql/queries/uninstall_survey.sql"),
            &[(slot, Type::TEXT), (publication, Type::TEXT), (&application_name, Type::TEXT)],
        )
        .await
        .map_err(during(DOING))?;
    let migrated: bool = row.get("migrated");
    let record = match migrated {
        true => Some(
            client
                .query_typed_one(
                    include_str!("../sql/queries/uninstall_record.sql"),
                    &[(slot, Type::TEXT), (publication, Type::TEXT)],
                )
                .await
                .map_err(during(DOING))?,
        ),
        false => None,
    };
    let dead_letters = match row.get::<_, bool>("has_dead_letters") {
        true => {
            let parked = client
                .query_typed_one(include_str!("../sql/queries/uninstall_parked.sql"), &[(slot, Type::TEXT)])
                .await
                .map_err(during(DOING))?;
            Some((parked.get("own"), parked.get("all")))
        }
        false => None,
    };
    let target = Target::from(config);
    let captures = client
        .query_typed(include_str!("../sql/queries/uninstall_captures.sql"), &[(&target.captures(), Type::TEXT_ARRAY)])
        .await
        .map_err(during(DOING))?;
    // The view may have been dropped for a change of the table, and the table may be too large to be counted in time.
    let undelivered = match migrated {
        true => client.query_one(include_str!("../sql/queries/uninstall_undelivered.sql"), &[]).await.ok(),
        false => None,
    };
    let recorded = record.as_ref().is_some_and(|record| record.get("recorded"));
    Ok(Survey {
        slot: slot_of(&row, recorded),
        relay_pids: row.get("relay_pids"),
        publication: publication_of(&row, record.as_ref()),
        captures: captures.iter().map(|row| (row.get("name"), row.get("made"))).collect(),
        migrated,
        recorded,
        other_slots: record.map_or_else(Vec::new, |record| record.get("other_slots")),
        dead_letters,
        captured: row.get("captured"),
        undelivered: undelivered.map(|row| row.get("count")),
    })
}

fn slot_of(row: &Row, recorded: bool) -> Slot {
    match (row.get("slot_found"), row.get("slot_usable"), recorded) {
        (false, _, _) => Slot::Absent,
        (true, false, _) => Slot::Foreign { what: row.get("slot_is") },
        (true, true, false) => Slot::Unrecorded,
        (true, true, true) => Slot::Ours {
            active_pid: row.get("active_pid"),
            lag_bytes: row.get("lag_bytes"),
            retained_bytes: row.get("retained_bytes"),
        },
    }
}

fn publication_of(row: &Row, record: Option<&Row>) -> Publication {
    if !row.get::<_, bool>("publication_found") {
        return Publication::Absent;
    }
    let Some(record) = record else { return Publication::Foreign { has_ours: false } };
    if !record.get::<_, Vec<String>>("other_slots").is_empty() {
        return Publication::Shared;
    }
    let tables: Vec<String> = record.get("other_tables");
    match record.get("publication_made") {
        true if tables.is_empty() => Publication::Ours,
        true => Publication::Grown { tables },
        false => Publication::Foreign { has_ours: record.get("has_ours") },
    }
}

impl Survey {
    /// Whether nothing of this slot is left.
    pub fn is_done(&self, drop_data: bool) -> bool {
        let slot_gone = matches!(self.slot, Slot::Absent | Slot::Foreign { .. }) && !self.recorded;
        slot_gone && !self.publication_changes() && self.dropped_captures().is_empty() && !(drop_data && self.migrated)
    }

    /// The publications of captured tables that go. Where relays of other slots are they may read them.
    pub fn dropped_captures(&self) -> Vec<&str> {
        let made = self.captures.iter().filter(|(_, made)| *made && self.other_slots.is_empty());
        made.map(|(name, _)| name.as_str()).collect()
    }

    fn publication_changes(&self) -> bool {
        match self.publication {
            Publication::Absent | Publication::Shared | Publication::Foreign { has_ours: false } => false,
            Publication::Ours | Publication::Grown { .. } | Publication::Foreign { has_ours: true } => true,
        }
    }

    /// Refuses while a relay is there, or where something would be removed that is not of this slot.
    pub fn check(&self, slot: &str, drop_data: bool) -> Result<(), UninstallError> {
        let slot = slot.to_owned();
        match &self.slot {
            Slot::Ours { active_pid: Some(pid), .. } => return Err(UninstallError::Active { slot, pid: *pid }),
            Slot::Unrecorded => {
                let literal = quote_literal(&slot);
                return Err(UninstallError::Unknown { slot, literal });
            }
            Slot::Ours { active_pid: None, .. } | Slot::Absent | Slot::Foreign { .. } => {}
        }
        if !self.relay_pids.is_empty() {
            return Err(UninstallError::Standby { slot, pids: self.relay_pids.clone() });
        }
        if drop_data && !self.other_slots.is_empty() {
            return Err(UninstallError::OtherSlots(self.other_slots.clone()));
        }
        Ok(())
    }
}

/// Removes what the survey has found and [`Survey::check`] has not refused.
pub async fn remove(
    client: &mut Client,
    config: &Config,
    survey: &Survey,
    drop_data: bool,
) -> Result<(), UninstallError> {
    let slot = &config.slot;
    // Held until the session ends: a relay that starts meanwhile waits for it as it would for another relay.
    let locked = client
        .query_typed_one(include_str!("../sql/queries/try_slot_lock.sql"), &[(slot, Type::TEXT)])
        .await
        .map_err(during("take the lock of the slot"))?;
    if !locked.get::<_, bool>("got") {
        return Err(UninstallError::Locked { slot: slot.clone() });
    }
    if let Slot::Ours { .. } = survey.slot {
        client
            .execute_typed(include_str!("../sql/queries/drop_slot.sql"), &[(slot, Type::TEXT)])
            .await
            .map_err(|error| denied(error, "drop the slot", "run it as a role with REPLICATION"))?;
    }
    if survey.recorded {
        client.execute_typed(include_str!("../sql/queries/forget_slot.sql"), &[(slot, Type::TEXT)]).await.map_err(
            |error| denied(error, "remove the slot's record", "run it as the owner of the schema postrider"),
        )?;
    }
    // A later slot of its name begins anew; the file would say that this one is missing.
    if let Some(directory) = &config.state_dir {
        Witness::new(Some(directory), slot).remove().map_err(UninstallError::StateFile)?;
    }
    if survey.publication_changes() {
        let statement = fill(
            include_str!("../sql/queries/drop_publication.sql"),
            &[("publication_text", quote_literal(&config.publication))],
        );
        client
            .batch_execute(&statement)
            .await
            .map_err(|error| denied(error, "change the publication", "run it as the owner of the publication"))?;
    }
    if !survey.dropped_captures().is_empty() {
        client.batch_execute(&migrate::capture::removal(&Target::from(config))).await.map_err(|error| {
            denied(error, "drop the publications of captured tables", "run it as the owner of the publications")
        })?;
    }
    if drop_data && survey.migrated {
        migrate::down(client, &Target::from(config), true).await?;
    }
    Ok(())
}

fn denied(error: tokio_postgres::Error, doing: &'static str, remedy: &'static str) -> UninstallError {
    match error.as_db_error() {
        Some(refusal) if *refusal.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            UninstallError::Denied { doing, message: refusal.message().to_owned(), remedy }
        }
        _ => UninstallError::Database { doing, source: error },
    }
}
