//! The application: writers with transactions of many shapes, whose truth is the table `audit`, written in the same ones.

mod rows;
mod writer;

pub(crate) use rows::{Row, insert};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;

use crate::Outcome;
use crate::evidence::{Evidence, JOURNAL, Lines};
use writer::Writer;

/// Writers.
const WRITERS: u32 = 8;
/// In payloads; looked for in everything that the relay writes.
pub(crate) const SECRET: &str = "card-4929-1234-never-printed";
/// Keys of events that can never be published begin so, and those of what waits behind them.
pub(crate) const POISON: &str = "poison-";

pub(crate) struct Workload {
    shared: Arc<Shared>,
    writers: JoinSet<()>,
}

pub(crate) struct Shared {
    pub url: String,
    /// Rows a second of one writer.
    pub rate: f64,
    pub began: Instant,
    pub stop: AtomicBool,
    /// Nothing new is begun for the time being.
    pub rest: AtomicBool,
    pub journal: Lines,
    /// Of keys without a lock.
    pub next_free: AtomicI64,
    pub largest_row: AtomicU64,
}

impl Workload {
    /// `rate`: rows a second of all writers together.
    pub(crate) fn start(url: &str, evidence: &Evidence, began: Instant, seed: u64, rate: f64) -> Outcome<Self> {
        let shared = Arc::new(Shared {
            url: url.to_owned(),
            rate: rate / f64::from(WRITERS),
            began,
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            journal: evidence.lines(JOURNAL)?,
            next_free: AtomicI64::new(1),
            largest_row: AtomicU64::new(0),
        });
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            writers.spawn(Writer::new(Arc::clone(&shared), number, seed).write());
        }
        Ok(Workload { shared, writers })
    }

    pub(crate) fn largest_row(&self) -> u64 {
        self.shared.largest_row.load(Ordering::Relaxed)
    }

    /// Holds the writers back, or lets them go on.
    pub(crate) fn rest(&self, rest: bool) {
        self.shared.rest.store(rest, Ordering::Relaxed);
    }

    /// Ends the writers between two transactions.
    pub(crate) async fn stop(&mut self) -> Outcome<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(writer) = self.writers.join_next().await {
            writer?;
        }
        self.shared.journal.flush()
    }
}

impl Shared {
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn resting(&self) -> bool {
        self.rest.load(Ordering::Relaxed)
    }
}
