//! The second witness: what this process knows of its slot and, where `state_dir` is set, a file that says the same (rule R8).
//!
//! The record in `postrider.progress` is restored together with a database that is restored. This is what such a rewind cannot touch.
//! It is compared with, and never fed from, the record alone: numbers go up only.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::faults::{self, Point};
use crate::lsn::Lsn;
use crate::postgres::halt::Halt;
use crate::postgres::slot::Taken;

/// What is known of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub slot: String,
    pub system_identifier: u64,
    pub database_oid: u32,
    pub timeline: i32,
    /// The highest position that PostgreSQL was allowed to forget.
    pub intended: Lsn,
    /// The highest position that it was told to.
    pub acknowledged: Lsn,
    pub relay_epoch: i64,
    pub source_epoch: u32,
    /// The newest heartbeat that was committed.
    pub heartbeat_no: i64,
    /// The newest heartbeat before `intended`.
    pub recorded_heartbeat_no: Option<i64>,
    /// What this process has found and could not leave in `postrider.halts` yet.
    #[serde(skip)]
    pub halt: Option<Halt>,
}

impl Known {
    /// Of a session that begins.
    pub fn of(slot: &str, taken: &Taken, relay_epoch: i64) -> Known {
        let earlier = taken.known.clone().unwrap_or_default();
        Known {
            slot: slot.to_owned(),
            system_identifier: taken.identity.system_identifier,
            database_oid: taken.identity.database_oid,
            timeline: taken.identity.timeline,
            intended: earlier.intended.max(taken.confirmed),
            acknowledged: earlier.acknowledged.max(taken.confirmed),
            relay_epoch,
            source_epoch: taken.source_epoch,
            heartbeat_no: earlier.heartbeat_no.max(taken.heartbeat_no),
            recorded_heartbeat_no: earlier.recorded_heartbeat_no.max(taken.recorded_heartbeat_no),
            halt: None,
        }
    }
}

/// The file cannot be used. Nothing is carried until it can.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    #[error(
        "the state file {path} is damaged ({why}): it cannot be told whether the database is the one that was carried last. If you know that it is, move the file away; a new one is made then"
    )]
    Damaged { path: String, why: String },
    #[error(
        "the state file {path} is of slot {found} and this relay carries {slot}: give each slot a state_dir of its own"
    )]
    OtherSlot { path: String, found: String, slot: String },
    #[error("cannot read the state file {path} (state_dir): {source}")]
    Read { path: String, source: io::Error },
}

/// Shared by the relay's sessions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    known: Arc<Mutex<Option<Known>>>,
    /// Where the file is; `None` without `state_dir`.
    path: Option<PathBuf>,
}

/// A file is one line of JSON and one with its digest, so that a torn or edited one is told from an old one.
#[derive(Serialize, Deserialize)]
struct Sealed {
    known: String,
    sha256: String,
}

impl Witness {
    pub fn new(state_dir: Option<&Path>, slot: &str) -> Self {
        Witness { known: Arc::default(), path: state_dir.map(|directory| directory.join(format!("{slot}.json"))) }
    }

    /// What is known: by this process, else by the file.
    pub fn read(&self, slot: &str) -> Result<Option<Known>, WitnessError> {
        let mut known = self.lock();
        if known.is_none()
            && let Some(path) = &self.path
        {
            *known = load(path, slot)?;
        }
        Ok(known.clone())
    }

    /// The highest that is known of; 0 where nothing is, or where it cannot be read.
    pub fn source_epoch(&self, slot: &str) -> u32 {
        self.read(slot).ok().flatten().map_or(0, |known| known.source_epoch)
    }

    /// A session begins: what was known of the slot before is replaced.
    pub fn begin(&self, known: Known) {
        *self.lock() = Some(known);
    }

    pub fn heartbeat(&self, no: i64) {
        if let Some(known) = &mut *self.lock() {
            known.heartbeat_no = known.heartbeat_no.max(no);
        }
    }

    /// Raises what PostgreSQL may forget, and what it was told to.
    pub fn raise(&self, intended: Lsn, acknowledged: Lsn, heartbeat: Option<i64>) {
        if let Some(known) = &mut *self.lock() {
            known.intended = known.intended.max(intended);
            known.acknowledged = known.acknowledged.max(acknowledged);
            known.recorded_heartbeat_no = known.recorded_heartbeat_no.max(heartbeat);
        }
    }

    /// A halt that may not be found a second time: kept for the next session until it can be left in the database. Says whether one was
    /// kept already.
    pub fn halted(&self, halt: Option<Halt>) -> bool {
        self.lock().as_mut().is_some_and(|known| std::mem::replace(&mut known.halt, halt).is_some())
    }

    /// Writes the file, where there is one. It is durable when this returns: another name, synchronised, renamed, and the directory
    /// synchronised too. Blocks for as long as the disk takes.
    pub fn save(&self) -> io::Result<()> {
        let (Some(path), Some(known)) = (&self.path, self.lock().clone()) else { return Ok(()) };
        let known = serde_json::to_string(&known)?;
        let sealed = Sealed { sha256: digest(&known), known };
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let next = path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(&serde_json::to_vec(&sealed)?)?;
        file.sync_all()?;
        faults::point(Point::WitnessWritten);
        fs::rename(&next, path)?;
        faults::point(Point::WitnessRenamed);
        File::open(directory)?.sync_all()
    }

    /// Removes the file, if there is one.
    pub fn remove(&self) -> io::Result<()> {
        match self.path.as_ref().map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub fn has_file(&self) -> bool {
        self.path.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        // A panic elsewhere does not make these numbers wrong.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(path: &Path, slot: &str) -> Result<Option<Known>, WitnessError> {
    let named = || path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) if source.kind() == io::ErrorKind::InvalidData => {
            return Err(WitnessError::Damaged { path: named(), why: source.to_string() });
        }
        Err(source) => return Err(WitnessError::Read { path: named(), source }),
    };
    let damaged = |why: String| WitnessError::Damaged { path: named(), why };
    let sealed: Sealed = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if digest(&sealed.known) != sealed.sha256 {
        return Err(damaged("its digest does not fit its contents".to_owned()));
    }
    let known: Known = serde_json::from_str(&sealed.known).map_err(|error| damaged(error.to_string()))?;
    if known.slot != slot {
        return Err(WitnessError::OtherSlot { path: named(), found: known.slot, slot: slot.to_owned() });
    }
    Ok(Some(known))
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::halt::Cause;

    fn known() -> Known {
        Known { slot: "s".into(), intended: Lsn(9), acknowledged: Lsn(8), heartbeat_no: 3, ..Known::default() }
    }

    #[test]
    fn what_is_saved_is_read_by_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let witness = Witness::new(Some(directory.path()), "s");
        assert_eq!(witness.read("s").unwrap(), None);
        witness.begin(known());
        witness.raise(Lsn(20), Lsn(19), Some(4));
        witness.heartbeat(5);
        witness.save().unwrap();
        let next = Witness::new(Some(directory.path()), "s").read("s").unwrap().unwrap();
        let expected = Known {
            intended: Lsn(20),
            acknowledged: Lsn(19),
            heartbeat_no: 5,
            recorded_heartbeat_no: Some(4),
            ..known()
        };
        assert_eq!(next, expected);
    }

    #[test]
    fn numbers_never_go_back() {
        let witness = Witness::new(None, "s");
        witness.begin(known());
        witness.raise(Lsn(1), Lsn(1), None);
        witness.heartbeat(1);
        assert_eq!(witness.read("s").unwrap(), Some(known()));
    }

    #[test]
    fn a_halt_that_was_not_left_is_remembered_until_the_relay_carries() {
        let witness = Witness::new(None, "s");
        witness.begin(known());
        let halt = Halt { slot: "s".into(), cause: Cause::SlotMissing, from: Lsn(8), to: Lsn(9) };
        assert!(!witness.halted(Some(halt.clone())));
        witness.raise(Lsn(20), Lsn(19), None);
        assert_eq!(witness.read("s").unwrap().unwrap().halt, Some(halt));
        witness.begin(known());
        assert_eq!(witness.read("s").unwrap().unwrap().halt, None);
    }

    #[test]
    fn a_file_with_any_byte_changed_or_cut_off_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let witness = Witness::new(Some(directory.path()), "s");
        witness.begin(known());
        witness.save().unwrap();
        let path = directory.path().join("s.json");
        let whole = fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            fs::write(&path, &flipped).unwrap();
            let read = Witness::new(Some(directory.path()), "s").read("s");
            assert!(matches!(read, Err(WitnessError::Damaged { .. })), "byte {place}: {read:?}");
            fs::write(&path, &whole[..place]).unwrap();
            let read = Witness::new(Some(directory.path()), "s").read("s");
            assert!(matches!(read, Err(WitnessError::Damaged { .. })), "cut at {place}: {read:?}");
        }
    }

    #[test]
    fn the_file_of_another_slot_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let witness = Witness::new(Some(directory.path()), "s");
        witness.begin(Known { slot: "t".into(), ..known() });
        witness.save().unwrap();
        let read = Witness::new(Some(directory.path()), "s").read("s");
        assert!(matches!(read, Err(WitnessError::OtherSlot { .. })));
    }
}
