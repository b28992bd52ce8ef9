//! The halt rules (D1 to D10): where continuity cannot be proven nothing is published until a person has decided (guarantee G8).
//!
//! [`examine`] compares what the server shows with the witnesses: the record in `postrider.progress`, and what this process or the file in
//! `state_dir` knows. It has no I/O. What only the stream can tell (a gap in the heartbeats, a publication that is skipped) becomes a
//! [`Halt`] where it is found. Never healed by skipping.

use std::fmt;

use crate::lsn::Lsn;
use crate::postgres::halts::Left;
use crate::postgres::state::{Phase, Record, ServerIdentity};
use crate::postgres::witness::Known;

/// Why the relay has halted, and what is in doubt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Halt {
    pub slot: String,
    pub cause: Cause,
    /// Everything before it is accounted for; zero: nothing is known.
    pub from: Lsn,
    /// Where the doubt ends, as far as it is known now.
    pub to: Lsn,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// D1.
    SlotMissing,
    /// D3.
    UnknownSlot,
    /// D4. System identifier and database, as text.
    SourceChanged { recorded: String, observed: String },
    /// D5.
    SlotAdvanced,
    /// D6 and its like: WAL, or the record itself, ends before what was acknowledged.
    SourceRewound { proof: String },
    /// D7.
    SlotLost { why: String },
    /// D8.
    TimelineDiverged { recorded: i32, observed: i32, found: String },
    /// D9.
    WrongSlot { found: String },
    /// D9. `remedy`: a statement.
    PublicationMissing { publication: String, remedy: String },
    /// D9. What the publication was made of, and is.
    PublicationChanged { publication: String, recorded: String, observed: String, remedy: Option<String> },
    /// D10.
    HeartbeatGap { expected: i64, found: i64 },
    /// The file of the second witness cannot be used.
    StateFile { problem: String },
    /// As it was left in `postrider.halts` by a relay before.
    Left { reason: &'static str, message: String },
}

impl Cause {
    /// For `postrider_halted`: one of [`crate::metrics::HALTS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Cause::SlotMissing => "slot_missing",
            Cause::UnknownSlot => "unknown_slot",
            Cause::SourceChanged { .. } => "source_changed",
            Cause::SlotAdvanced => "slot_advanced",
            Cause::SourceRewound { .. } => "source_rewound",
            Cause::SlotLost { .. } => "slot_lost",
            Cause::TimelineDiverged { .. } => "timeline_diverged",
            Cause::WrongSlot { .. } => "wrong_slot",
            Cause::PublicationMissing { .. } => "publication_missing",
            Cause::PublicationChanged { .. } => "publication_changed",
            Cause::HeartbeatGap { .. } => "heartbeat_gap",
            Cause::StateFile { .. } => "state_file",
            Cause::Left { reason, .. } => reason,
        }
    }
}

impl Halt {
    /// As a relay before has left it.
    pub fn left(slot: &str, left: &Left) -> Halt {
        // A label of a metric is one of a closed set, whatever the table says.
        let reason = crate::metrics::HALTS.into_iter().find(|known| *known == left.reason).unwrap_or("heartbeat_gap");
        let cause = Cause::Left { reason, message: left.message.clone() };
        Halt { slot: slot.to_owned(), cause, from: left.from, to: left.to }
    }

    pub fn reason(&self) -> &'static str {
        self.cause.reason()
    }

    /// It was found in the stream or in a comparison that cannot be made a second time: it lasts until a person has decided, whatever the
    /// next look says.
    pub fn decided_by_a_person(&self) -> bool {
        matches!(
            self.cause,
            Cause::PublicationMissing { .. }
                | Cause::PublicationChanged { .. }
                | Cause::HeartbeatGap { .. }
                | Cause::Left { .. }
        )
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Halt { slot, cause, from, to } = self;
        match cause {
            Cause::SlotMissing => write!(f, "slot {slot} is gone")?,
            Cause::UnknownSlot => write!(
                f,
                "slot {slot} exists, confirmed up to {to}, and there is no record of it in postrider.progress: something else made it (then choose another name by POSTRIDER_SLOT), or the record was lost"
            )?,
            Cause::SourceChanged { recorded, observed } => write!(
                f,
                "this is another database than the one that slot {slot} was made in (system identifier and database were {recorded}, are {observed}): DATABASE_URL leads elsewhere, or this is a copy or an upgrade"
            )?,
            Cause::SlotAdvanced => {
                write!(f, "slot {slot} has moved on without us: it has confirmed {to}, and we allowed {from} at most")?;
            }
            Cause::SourceRewound { proof } => {
                write!(f, "the database was restored or rewound to a time before what was acknowledged: {proof}")?;
            }
            Cause::SlotLost { why } => {
                write!(f, "PostgreSQL has invalidated slot {slot} ({why}): the WAL after {from} is gone")?;
            }
            Cause::TimelineDiverged { recorded, observed, found } => write!(
                f,
                "the server is on timeline {observed}, and what was acknowledged on timeline {recorded} is not part of its history ({found})"
            )?,
            Cause::WrongSlot { found } => {
                // Nothing is in doubt: it never was ours.
                return write!(
                    f,
                    "slot {slot} is not a persistent pgoutput slot of this database ({found}; nothing after {from} was looked for, the WAL ends at {to}): choose another name by POSTRIDER_SLOT, or drop it if nothing needs it"
                );
            }
            Cause::PublicationMissing { publication, remedy } => write!(
                f,
                "publication {publication} does not exist, or did not when a row was written: rows of that time were never sent. First make it again: `{remedy}`"
            )?,
            Cause::PublicationChanged { publication, recorded, observed, remedy } => {
                write!(
                    f,
                    "publication {publication} is not what it was ({recorded}; now {observed}): rows that were written meanwhile may never have been sent"
                )?;
                if let Some(remedy) = remedy {
                    write!(f, ". First run `{remedy}`")?;
                }
            }
            Cause::HeartbeatGap { expected, found } => write!(
                f,
                "heartbeat {found} came through slot {slot} where {expected} was due: part of the WAL was not sent, or the database was rewound"
            )?,
            // The interval is not known before the file is.
            Cause::StateFile { problem } => {
                return write!(f, "{problem}. Acknowledged by the record is {from}, the WAL ends at {to}");
            }
            // It says all of what follows already.
            Cause::Left { message, .. } => return f.write_str(message),
        }
        write!(
            f,
            ". In doubt is what was committed after {from} and up to {to}. Look: `postrider repair --dry-run` counts the rows. \
             Accept it: `postrider adopt --reason '...'`. Then send those rows again: `postrider repair`"
        )
    }
}

/// The slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug)]
pub struct SlotRow {
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub temporary: bool,
    pub confirmed: Lsn,
    pub wal_status: Option<String>,
    /// PostgreSQL 17 and later.
    pub invalidation_reason: Option<String>,
    pub active_pid: Option<i32>,
}

/// What the server shows, for [`examine`].
#[derive(Clone, Debug)]
pub struct Scene {
    pub identity: ServerIdentity,
    pub slot: Option<SlotRow>,
    pub record: Option<Record>,
    /// Where the server's WAL ends.
    pub flushed: Lsn,
    /// Where the recorded timeline ends in the history of the server's; asked for only where they differ. `Err`: why it is not part of
    /// it, or cannot be told. `None`: not asked.
    pub fork: Option<Result<Lsn, String>>,
}

/// The rules for a slot that is to be resumed. `Ok` where there is nothing to resume (no slot, no witness) or nothing to doubt.
pub fn examine(name: &str, scene: &Scene, known: Option<&Known>) -> Result<(), Halt> {
    // A record that was never completed says only that the slot was about to be made.
    let record = scene.record.as_ref();
    let begun = record.filter(|record| record.phase == Phase::Ready);

    let acknowledged = begun.and_then(|record| record.acknowledged).unwrap_or_default();
    let acknowledged = known.map_or(acknowledged, |known| acknowledged.max(known.acknowledged));
    let halt = |cause, from, to| Err(Halt { slot: name.to_owned(), cause, from, to });

    if let Some((recorded, observed)) = changed_source(scene, known) {
        return halt(Cause::SourceChanged { recorded, observed }, acknowledged, scene.flushed);
    }
    let rewound = |proof: String, at: Lsn| {
        halt(Cause::SourceRewound { proof }, at.min(acknowledged), scene.flushed.max(acknowledged))
    };
    if let Some(known) = known
        && let Some(proof) = rewound_record(begun, known, &scene.identity)
    {
        let recorded = begun.and_then(|record| record.acknowledged).unwrap_or_default();
        return rewound(proof, recorded);
    }
    let Some(slot) = &scene.slot else {
        let anything = begun.is_some() || (record.is_none() && known.is_some());
        return if anything { halt(Cause::SlotMissing, acknowledged, scene.flushed) } else { Ok(()) };
    };
    if slot.plugin.as_deref() != Some("pgoutput")
        || slot.temporary
        || slot.database.as_deref() != Some(&scene.identity.database)
    {
        let found = format!("plugin {:?}, database {:?}, temporary {}", slot.plugin, slot.database, slot.temporary);
        return halt(Cause::WrongSlot { found }, acknowledged, scene.flushed);
    }
    let Some(record) = record else { return halt(Cause::UnknownSlot, Lsn::ZERO, slot.confirmed) };
    if slot.wal_status.as_deref() == Some("lost") || slot.invalidation_reason.is_some() {
        let why = match slot.invalidation_reason.as_deref() {
            Some(reason) => reason.to_owned(),
            None => "wal_status is `lost`".to_owned(),
        };
        return halt(Cause::SlotLost { why }, acknowledged, scene.flushed);
    }
    // A slot whose making was announced and not yet recorded has acknowledged nothing: there is no bound to compare with.
    let Some(intended) = record.intended else { return Ok(()) };
    let intended = known.map_or(intended, |known| intended.max(known.intended));
    if slot.confirmed > intended {
        return halt(Cause::SlotAdvanced, intended, slot.confirmed);
    }
    // Behind what was acknowledged is normal, because PostgreSQL saves a slot's position at checkpoints only; but not on WAL
    // that ends before it.
    if scene.flushed < acknowledged {
        let proof = format!("its WAL ends at {}, and {acknowledged} was acknowledged", scene.flushed);
        return rewound(proof, scene.flushed);
    }
    let timeline = known.map_or(record.timeline, |known| known.timeline.max(record.timeline));
    if timeline == scene.identity.timeline {
        return Ok(());
    }
    let found = match &scene.fork {
        Some(Ok(fork)) if *fork >= acknowledged => return Ok(()),
        Some(Ok(fork)) => format!("it was left at {fork}, and {acknowledged} was acknowledged"),
        Some(Err(why)) => why.clone(),
        // Only a replication connection can ask, and only the relay has one: it decides.
        None => return Ok(()),
    };
    let observed = scene.identity.timeline;
    halt(Cause::TimelineDiverged { recorded: timeline, observed, found }, acknowledged, scene.flushed)
}

/// Whether this is another cluster or database than a witness knows: what it knows, and what is there.
fn changed_source(scene: &Scene, known: Option<&Known>) -> Option<(String, String)> {
    let observed = (scene.identity.system_identifier, scene.identity.database_oid);
    let recorded = scene.record.as_ref().map(|record| (record.system_identifier, record.database_oid));
    let known = known.map(|known| (known.system_identifier, known.database_oid));
    let say = |(system, database): (u64, u32)| format!("{system} and {database}");
    let other = [recorded, known].into_iter().flatten().find(|each| *each != observed)?;
    Some((say(other), say(observed)))
}

/// Whether the record is older than what it once was: numbers that only grow, each told by PostgreSQL after its commit.
fn rewound_record(record: Option<&Record>, known: &Known, identity: &ServerIdentity) -> Option<String> {
    if known.timeline > identity.timeline {
        let (now, then) = (identity.timeline, known.timeline);
        return Some(format!("the server is on timeline {now}, and timeline {then} was carried already"));
    }
    let record = record?;
    let numbers = [
        ("takeover", record.relay_epoch, known.relay_epoch),
        ("heartbeat", record.heartbeat_no, known.heartbeat_no),
        ("source epoch", record.source_epoch.into(), known.source_epoch.into()),
    ];
    let (what, recorded, known) = numbers.into_iter().find(|(_, recorded, known)| known > recorded)?;
    Some(format!("postrider.progress knows of {what} {recorded}, and {what} {known} was committed"))
}

#[cfg(test)]
mod tests;
