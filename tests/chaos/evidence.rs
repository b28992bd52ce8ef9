//! What a run leaves in its directory, and what the checks read: files of one JSON object a line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Outcome;

/// Every transaction that a writer has tried.
pub(crate) const JOURNAL: &str = "journal.jsonl";
/// What the table `audit` holds at the end: the truth.
pub(crate) const COMMITTED: &str = "committed.jsonl";
/// The same in the order of the oracle's slot.
pub(crate) const ORDER: &str = "order.jsonl";
/// What the consumer got.
pub(crate) const ARRIVALS: &str = "arrivals.jsonl";
/// What is left in `postrider.dead_letters`.
pub(crate) const PARKED: &str = "parked.jsonl";
/// Faults with their times.
pub(crate) const SCHEDULE: &str = "schedule.jsonl";
/// Positions of the slot.
pub(crate) const SLOT: &str = "slot.jsonl";
/// Status updates that the proxy has let through to PostgreSQL.
pub(crate) const FLUSHES: &str = "flushes.jsonl";
/// What the relay has said over HTTP.
pub(crate) const SCRAPES: &str = "scrapes.txt";

/// One transaction of a writer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub at: f64,
    pub writer: u32,
    pub shape: String,
    pub ids: Vec<String>,
    /// `ok`, `rolled back`, `failed`, or `info`: the connection was lost during COMMIT.
    pub outcome: String,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub id: String,
    pub key: String,
    pub seq: i64,
    pub hash: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub id: String,
    pub key: String,
}

/// One message. Its number is its line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Arrival {
    pub at: f64,
    pub id: String,
    pub key: String,
    pub seq: i64,
    /// Of what the row's payload became.
    pub hash: String,
    /// Of the whole body.
    pub body: String,
    pub position: String,
    pub routing_key: String,
    /// The broker's own word that it has delivered this before.
    pub redelivered: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Parked {
    pub event_id: String,
    pub reason: String,
}

/// A fault or a wait after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    pub from: f64,
    pub to: f64,
    pub what: String,
    /// An application may see its writes fail meanwhile.
    pub database_down: bool,
    /// What followed a fault: seconds until everything was delivered.
    pub recovery: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SlotSample {
    pub at: f64,
    /// A slot goes back to its last checkpoint when its server crashes.
    pub server_started: String,
    pub confirmed: u64,
}

/// One status update of the relay to PostgreSQL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StatusUpdate {
    pub connection: u64,
    pub received: u64,
    /// What the server may forget.
    pub flushed: u64,
}

/// The directory of a run.
#[derive(Clone, Debug)]
pub(crate) struct Evidence(pub PathBuf);

impl Evidence {
    /// Empty.
    pub(crate) fn create(path: &Path) -> Outcome<Self> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::create_dir_all(path)?;
        Ok(Evidence(path.to_owned()))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn lines(&self, name: &str) -> Outcome<Lines> {
        Ok(Lines(Mutex::new(BufWriter::new(File::create(self.file(name))?))))
    }

    pub(crate) fn write<T: Serialize>(&self, name: &str, all: &[T]) -> Outcome<()> {
        let lines = self.lines(name)?;
        for one in all {
            lines.add(one)?;
        }
        lines.flush()
    }

    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Outcome<Vec<T>> {
        let file = BufReader::new(File::open(self.file(name))?);
        file.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
    }
}

/// A file that grows by lines.
pub(crate) struct Lines(Mutex<BufWriter<File>>);

impl Lines {
    pub(crate) fn add<T: Serialize>(&self, one: &T) -> Outcome<()> {
        let mut line = serde_json::to_vec(one)?;
        line.push(b'\n');
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)?)
    }

    pub(crate) fn flush(&self) -> Outcome<()> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()?)
    }

    /// On the disk, so that what it says may be relied on.
    pub(crate) fn sync(&self) -> Outcome<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush()?;
        Ok(file.get_ref().sync_data()?)
    }
}

/// FNV-1a, 64 bits: tells bodies apart, no more.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}
