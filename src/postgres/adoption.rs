//! `postrider adopt`: a person accepts an interval in doubt, and the relay goes on (guarantee G8).
//!
//! What it leaves is a record that the halt rules find right, in a new source epoch (positions of the source may repeat) and a new life
//! of the slot (rule R7: nothing of the gap may count as delivered). Why it was accepted is kept in `postrider.adoptions`.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use crate::config::Config;
use crate::lsn::Lsn;
use crate::postgres::halt::{self, Halt, Scene, SlotRow};
use crate::postgres::halts;
use crate::postgres::quote::{fill, outbox_values};
use crate::postgres::slot::{self, SlotError};
use crate::postgres::state::{self, ServerIdentity, StateError};
use crate::postgres::witness::Witness;

/// A halted relay holds the lock for the moment in which it looks.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("a relay carries slot {slot}{}: there is nothing to adopt", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Carried { slot: String, pid: Option<i32> },
    #[error("slot {0} is not in doubt: start the relay, it will carry")]
    NothingToAdopt(String),
    #[error("{0}")]
    NotToBeAdopted(Halt),
    #[error(
        "slot {slot} belongs to database {database}: choose another name by POSTRIDER_SLOT for this one, and leave that one alone"
    )]
    SlotOfAnother { slot: String, database: String },
    #[error("the publication is not complete yet: {0}")]
    Publication(#[source] SlotError),
    #[error(
        "the schema `postrider` is not there or not complete: run `postrider migrate` as the owner of the database"
    )]
    NotMigrated,
    #[error("the server is a standby (in recovery): adopt on the primary")]
    InRecovery,
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the database refused: {}{}", crate::error::chain(.0), permission(.0))]
    Database(#[from] tokio_postgres::Error),
}

/// What to do about a right that is missing.
fn permission(error: &tokio_postgres::Error) -> &'static str {
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            ". It takes the rights that `postrider migrate --print-roles` prints, REPLICATION among them: run it with the relay's own DATABASE_URL"
        }
        _ => "",
    }
}

/// What becomes of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It goes on from where it stands.
    Keep { confirmed: Lsn },
    /// It is dropped, if it exists, and the relay makes a new one, which starts at the present.
    Anew { exists: bool },
}

/// What an adoption would do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub halt: Halt,
    pub way: Way,
    pub source_epoch: u32,
    identity: ServerIdentity,
    publication: String,
}

/// What there is to decide, if anything.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    pub halt: Option<Halt>,
    pub scene: Scene,
    /// The highest source epoch that anybody knows of.
    source_epoch: u32,
}

/// What is there now tells best what has to become of the slot; what the relay has left tells of what cannot be looked up again. Changes
/// nothing.
pub async fn diagnose(sql: &Client, config: &Config) -> Result<Diagnosis, AdoptError> {
    let identity = state::server_identity(sql).await?;
    if identity.in_recovery {
        return Err(AdoptError::InRecovery);
    }
    let record = state::load(sql, &config.slot).await?;
    let left = halts::load(sql, &config.slot).await?;
    let witness = Witness::new(config.state_dir.as_deref(), &config.slot);
    let (scene, known) = slot::look(sql, None, config, &witness, identity, record).await?;
    let source_epoch = [
        scene.record.as_ref().map(|record| record.source_epoch),
        left.as_ref().map(|left| left.source_epoch),
        known.as_ref().map(|known| known.source_epoch),
        state::newest_adoption(sql, &config.slot).await?,
    ];
    // Of a slot that is in use the relay knows better, and what was read of it is old already.
    let in_use = scene.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
    let found = if in_use { None } else { halt::examine(&config.slot, &scene, known.as_ref()).err() };
    let halt = match (found, left) {
        (Some(found), _) => Some(found),
        (None, Some(left)) => Some(Halt::left(&config.slot, &left)),
        (None, None) if in_use => None,
        (None, None) => slot::missed_publication(sql, config, &scene).await?,
    };
    let source_epoch = source_epoch.into_iter().flatten().max().unwrap_or_default();
    Ok(Diagnosis { halt, scene, source_epoch })
}

/// Keeps every relay from the slot until the client is dropped, and says what there is to adopt.
pub async fn plan(sql: &mut Client, config: &Config) -> Result<Plan, AdoptError> {
    if crate::migrate::version(sql).await? < crate::migrate::LATEST {
        return Err(AdoptError::NotMigrated);
    }
    lock(sql, &config.slot).await?;
    let Diagnosis { halt, scene, source_epoch } = diagnose(sql, config).await?;
    let mut halt = halt.ok_or_else(|| AdoptError::NothingToAdopt(config.slot.clone()))?;
    // A copy of the database beside the original: the slot is the original's.
    if let Some(database) = scene.slot.as_ref().and_then(|slot| slot.database.as_ref())
        && *database != scene.identity.database
    {
        return Err(AdoptError::SlotOfAnother { slot: config.slot.clone(), database: database.clone() });
    }
    let way = way(&halt, &scene).ok_or_else(|| AdoptError::NotToBeAdopted(halt.clone()))?;
    if matches!(way, Way::Anew { .. }) {
        // What the slot would still have sent goes with it.
        halt.to = halt.to.max(scene.flushed);
    }
    let recorded = scene.record.as_ref().and_then(|record| record.publication_state.as_deref());
    let seen = slot::check_publication(sql, config, recorded).await.map_err(AdoptError::Publication)?;
    Ok(Plan { halt, way, source_epoch: source_epoch + 1, identity: scene.identity, publication: seen.state() })
}

/// A slot is kept where its stream is whole from where it stands. Past WAL that is gone, that was rewound, that was written without the
/// publication, or that lacks a heartbeat only a new one gets. `None`: it is not for an adoption to decide.
pub fn way(halt: &Halt, scene: &Scene) -> Option<Way> {
    let anew = Way::Anew { exists: scene.slot.is_some() };
    match halt.reason() {
        "unknown_slot" | "slot_advanced" | "source_changed" => {
            let ours = |slot: &&SlotRow| {
                slot.plugin.as_deref() == Some("pgoutput")
                    && slot.database.as_deref() == Some(&scene.identity.database)
                    && slot.wal_status.as_deref() != Some("lost")
                    && slot.invalidation_reason.is_none()
                    && slot.confirmed <= scene.flushed
            };
            let kept = scene.slot.as_ref().filter(ours);
            Some(kept.map_or(anew, |slot| Way::Keep { confirmed: slot.confirmed }))
        }
        "slot_missing"
        | "slot_lost"
        | "source_rewound"
        | "timeline_diverged"
        | "publication_missing"
        | "publication_changed"
        | "heartbeat_gap" => Some(anew),
        _ => None,
    }
}

/// Carries it out. `reason`: in the words of the one who accepts.
pub async fn adopt(sql: &mut Client, config: &Config, plan: &Plan, reason: &str) -> Result<(), AdoptError> {
    // First: a record that says "about to be made" beside the old slot would be taken for a crash in the making of a new one.
    if plan.way == (Way::Anew { exists: true }) {
        sql.execute("select pg_catalog.pg_drop_replication_slot($1::text::name)", &[&config.slot]).await?;
    }
    // What a slot that is kept still sends is in no doubt.
    let in_slot = in_slot(sql, config, plan.way).await?;
    let (phase, position) = match plan.way {
        Way::Keep { confirmed } => ("ready", Some(PgLsn::from(confirmed.0))),
        Way::Anew { .. } => ("creating", None),
    };
    let Plan { halt, identity, source_epoch, publication, .. } = plan;
    let transaction = sql.transaction().await?;
    transaction
        .execute(
            include_str!("../../sql/queries/adopt.sql"),
            &[
                &config.slot,
                &config.publication,
                &identity.system_identifier.cast_signed(),
                &identity.database_oid,
                &identity.timeline,
                &phase,
                &position,
                &source_epoch.cast_signed(),
                &publication,
                &halt.reason(),
                &PgLsn::from(halt.from.0),
                &PgLsn::from(halt.to.0),
                &reason,
            ],
        )
        .await?;
    match plan.way {
        Way::Keep { .. } => {
            state::start_life(&transaction, &config.slot, &config.outbox).await?;
        }
        // The life of a slot that is made begins when it is there.
        Way::Anew { .. } => {
            transaction.execute(include_str!("../../sql/queries/end_life.sql"), &[&config.slot]).await?;
        }
    }
    transaction.commit().await?;
    if !in_slot.is_empty() {
        // After the life has begun, so that this transaction is one of it.
        let note = fill(include_str!("../../sql/queries/in_slot_note.sql"), &outbox_values(&config.outbox));
        sql.execute(&note, &[&config.slot, &in_slot]).await?;
    }
    Ok(())
}

/// The transactions that the slot still has to send, by the lower 32 bits of their number. Nobody may stream from it. Empty where the outbox
/// has no transaction numbers to compare with.
pub async fn in_slot(sql: &Client, config: &Config, way: Way) -> Result<Vec<String>, tokio_postgres::Error> {
    if !matches!(way, Way::Keep { .. }) {
        return Ok(Vec::new());
    }
    let outbox = &config.outbox;
    let readable: bool = sql
        .query_one(
            include_str!("../../sql/queries/outbox_xid_readable.sql"),
            &[&outbox.schema, &outbox.table, &outbox.columns.xid],
        )
        .await?
        .get(0);
    if !readable {
        return Ok(Vec::new());
    }
    let rows = sql.query(include_str!("../../sql/queries/in_slot.sql"), &[&config.slot, &config.publication]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The lock of [`slot::try_lock`], for as long as this session lasts.
async fn lock(sql: &Client, name: &str) -> Result<(), AdoptError> {
    let mut pid = None;
    for _ in 0..LOCK_ATTEMPTS {
        let got: bool = sql.query_one(&slot::lock_statement(name), &[]).await?.get(0);
        pid = slot::find(sql, name).await?.and_then(|slot| slot.active_pid);
        if got && pid.is_none() {
            return Ok(());
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    Err(AdoptError::Carried { slot: name.to_owned(), pid })
}
