//! The verdicts, from the files of a run alone. Their names are those of docs/faults.md.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::Outcome;
use crate::evidence::{
    ARRIVALS, Arrival, Attempt, COMMITTED, Committed, Event, Evidence, FLUSHES, JOURNAL, ORDER, PARKED, Parked, Placed,
    SCHEDULE, SLOT, SlotSample, StatusUpdate,
};
use crate::workload::POISON;

/// A write may fail so long after a fault of the database: its connection is found to be dead only then.
const AFTERMATH: f64 = 3.0;
/// Records of the WAL begin at multiples of it (MAXALIGN).
const ALIGNMENT: u64 = 8;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub check: &'static str,
    pub passed: bool,
    /// What was found: a minimal counterexample if it failed.
    pub says: String,
}

pub(crate) fn verdict(check: &'static str, passed: bool, says: impl Into<String>) -> Verdict {
    Verdict { check, passed, says: says.into() }
}

/// Everything that a run has left.
pub(crate) struct Account {
    pub committed: HashMap<String, Committed>,
    pub order: Vec<Placed>,
    pub arrivals: Vec<Arrival>,
    pub parked: HashMap<String, Parked>,
    journal: Vec<Attempt>,
    schedule: Vec<Event>,
    slot: Vec<SlotSample>,
    updates: Vec<StatusUpdate>,
    /// Number of the first arrival of each id.
    first: HashMap<String, usize>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Counts {
    pub transactions: usize,
    pub attempted: usize,
    pub committed: usize,
    /// COMMIT without an answer, and what became of it.
    pub unknown: usize,
    pub delivered: usize,
    pub parked: usize,
    pub lost: usize,
    pub unexpected: usize,
    pub duplicated: usize,
    /// By the broker, to its consumer.
    pub redelivered: usize,
    pub reordered: usize,
}

impl Account {
    pub(crate) fn read(evidence: &Evidence) -> Outcome<Self> {
        let committed: Vec<Committed> = evidence.read(COMMITTED)?;
        let parked: Vec<Parked> = evidence.read(PARKED)?;
        let arrivals: Vec<Arrival> = evidence.read(ARRIVALS)?;
        let mut first = HashMap::new();
        for (number, arrival) in arrivals.iter().enumerate() {
            first.entry(arrival.id.clone()).or_insert(number);
        }
        Ok(Account {
            committed: committed.into_iter().map(|row| (row.id.clone(), row)).collect(),
            order: evidence.read(ORDER)?,
            arrivals,
            parked: parked.into_iter().map(|row| (row.event_id.clone(), row)).collect(),
            journal: evidence.read(JOURNAL)?,
            schedule: evidence.read(SCHEDULE)?,
            slot: evidence.read(SLOT)?,
            updates: evidence.read(FLUSHES)?,
            first,
        })
    }

    pub(crate) fn counts(&self) -> Counts {
        let again = self.arrivals.len() - self.first.len();
        let redelivered = (self.arrivals.iter().enumerate())
            .filter(|(number, arrival)| arrival.redelivered && self.first.get(&arrival.id) != Some(number))
            .count();
        Counts {
            transactions: self.journal.len(),
            attempted: self.journal.iter().map(|attempt| attempt.ids.len()).sum(),
            committed: self.committed.len(),
            unknown: self.journal.iter().filter(|attempt| attempt.outcome == "info").count(),
            delivered: self.first.len(),
            parked: self.parked.len(),
            lost: self.lost().len(),
            unexpected: self.unexpected().len(),
            duplicated: again - redelivered,
            redelivered,
            reordered: self.reordered().len(),
        }
    }

    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        vec![
            self.nothing_lost(),
            self.nothing_unexpected(),
            self.in_order(),
            self.same_again(),
            self.position_moves_forward(),
            self.no_write_failed(),
            self.parked_is_poison(),
            self.oracle_agrees(),
        ]
    }

    fn lost(&self) -> Vec<&Committed> {
        let gone = |row: &&Committed| !self.first.contains_key(&row.id) && !self.parked.contains_key(&row.id);
        self.committed.values().filter(gone).collect()
    }

    fn nothing_lost(&self) -> Verdict {
        let lost = self.lost();
        let says = match lost.first() {
            None => format!("each of {} committed events was delivered or is parked", self.committed.len()),
            Some(row) => format!(
                "{} committed events were neither delivered nor parked; one: id {}, key {}, number {}",
                lost.len(),
                row.id,
                row.key,
                row.seq
            ),
        };
        verdict("I1 lost", lost.is_empty(), says)
    }

    fn unexpected(&self) -> Vec<&str> {
        let ids = self.first.keys().chain(self.parked.keys()).map(String::as_str).collect::<HashSet<_>>();
        ids.into_iter().filter(|id| !self.committed.contains_key(*id)).collect()
    }

    fn nothing_unexpected(&self) -> Verdict {
        let unexpected = self.unexpected();
        let says = match unexpected.first() {
            None => "nothing came that was not committed".to_owned(),
            Some(id) => {
                let attempt = self.journal.iter().find(|attempt| attempt.ids.iter().any(|tried| tried == id));
                let of = attempt.map_or_else(
                    || "no transaction of the writers".to_owned(),
                    |attempt| format!("writer {}, {}, {}", attempt.writer, attempt.shape, attempt.outcome),
                );
                format!("{} events came that were not committed; one: {id} of {of}", unexpected.len())
            }
        };
        verdict("I2 unexpected", unexpected.is_empty(), says)
    }

    /// Keys with the first place where first deliveries leave the order of the commits: what came, and what should have come before.
    fn reordered(&self) -> Vec<(String, String, String)> {
        let mut expected: HashMap<&str, Vec<&str>> = HashMap::new();
        for placed in self.order.iter().filter(|placed| self.first.contains_key(&placed.id)) {
            expected.entry(&placed.key).or_default().push(&placed.id);
        }
        let mut wrong = Vec::new();
        for (key, ids) in expected {
            let later = ids.windows(2).find(|pair| self.first[pair[0]] > self.first[pair[1]]);
            if let Some(pair) = later {
                wrong.push((key.to_owned(), pair[1].to_owned(), pair[0].to_owned()));
            }
        }
        wrong.sort();
        wrong
    }

    fn in_order(&self) -> Verdict {
        let mut wrong: Vec<String> = self
            .reordered()
            .iter()
            .map(|(_, early, late)| {
                let show = |id: &str| {
                    let arrival = &self.arrivals[self.first[id]];
                    format!(
                        "number {} at {} (id {id}) came as arrival {} at {:.3} s",
                        arrival.seq, arrival.position, self.first[id], arrival.at
                    )
                };
                let key = &self.arrivals[self.first[early]].key;
                format!("key {key}: {}, before {}", show(early), show(late))
            })
            .collect();
        wrong.extend(self.positions_backwards());
        let says = match wrong.first() {
            None => {
                "first deliveries of every key are in the order of their commits, as test_decoding has it".to_owned()
            }
            Some(one) => format!("{} keys are out of order; one: {one}", wrong.len()),
        };
        verdict("I3 order", wrong.is_empty(), says)
    }

    /// The relay's own word for the order: positions of first deliveries rise within a key.
    fn positions_backwards(&self) -> Vec<String> {
        let mut last: HashMap<&str, &str> = HashMap::new();
        let mut wrong = Vec::new();
        for (number, arrival) in self.arrivals.iter().enumerate().filter(|(n, one)| self.first.get(&one.id) == Some(n))
        {
            match last.insert(&arrival.key, &arrival.position) {
                Some(before) if *before >= *arrival.position => {
                    wrong.push(format!(
                        "key {}: position {} came as arrival {number}, after {before}",
                        arrival.key, arrival.position
                    ));
                }
                _ => {}
            }
        }
        wrong
    }

    /// What comes again is the same, and what comes is what was committed.
    fn same_again(&self) -> Verdict {
        let mut wrong = Vec::new();
        for (number, arrival) in self.arrivals.iter().enumerate() {
            let first = &self.arrivals[self.first[&arrival.id]];
            let same = (&arrival.body, &arrival.key, &arrival.position, &arrival.routing_key)
                == (&first.body, &first.key, &first.position, &first.routing_key);
            if !same {
                wrong.push(format!("id {}: arrival {number} differs from its first", arrival.id));
            }
            let row = self.committed.get(&arrival.id);
            let (key, seq, hash) = (&arrival.key, arrival.seq, &arrival.hash);
            if row.is_some_and(|row| (&row.key, row.seq, &row.hash) != (key, seq, hash)) {
                wrong.push(format!(
                    "id {}: arrival {number} (key {key}, number {seq}) is not what was committed",
                    arrival.id
                ));
            }
        }
        let says = match wrong.first() {
            None => "every repetition has the same body, key, position and routing key, and every body is its row's"
                .to_owned(),
            Some(one) => format!("{} arrivals differ; one: {one}", wrong.len()),
        };
        verdict("I4 duplicates", wrong.is_empty(), says)
    }

    fn position_moves_forward(&self) -> Verdict {
        let back = self.slot.windows(2).find(|pair| {
            let [before, after] = pair else { return false };
            before.server_started == after.server_started && after.confirmed < before.confirmed
        });
        let mut last: HashMap<u64, u64> = HashMap::new();
        let wrong = self.updates.iter().find(|update| {
            let before = last.insert(update.connection, update.flushed).unwrap_or_default();
            update.flushed < before || update.flushed > update.received || update.flushed % ALIGNMENT != 0
        });
        let says = match (back, wrong) {
            (None, None) => format!(
                "neither confirmed_flush_lsn ({} samples) nor what the relay acknowledges ({} status updates) ever went back, or past what was received",
                self.slot.len(),
                self.updates.len()
            ),
            (None, Some(update)) => {
                format!("a status update goes back, past what was received, or into a record: {update:?}")
            }
            (Some(pair), _) => format!(
                "confirmed_flush_lsn went from {} at {:.2} s to {} at {:.2} s",
                pair[0].confirmed, pair[0].at, pair[1].confirmed, pair[1].at
            ),
        };
        verdict("I5 positions", back.is_none() && wrong.is_none() && !self.slot.is_empty(), says)
    }

    fn no_write_failed(&self) -> Verdict {
        let down = |at: f64| {
            let during = |event: &&Event| event.database_down && event.from <= at && at <= event.to + AFTERMATH;
            self.schedule.iter().any(|event| during(&event))
        };
        let failed: Vec<&Attempt> = (self.journal.iter())
            .filter(|attempt| attempt.outcome == "failed" || attempt.outcome == "info")
            .filter(|attempt| !down(attempt.at))
            .collect();
        let says = match failed.first() {
            None => "no write of the application failed while the database was up".to_owned(),
            Some(attempt) => format!(
                "{} writes failed; one: writer {} at {:.2} s, {}: {}",
                failed.len(),
                attempt.writer,
                attempt.at,
                attempt.shape,
                attempt.error.clone().unwrap_or_default()
            ),
        };
        verdict("I7 harm", failed.is_empty(), says)
    }

    fn parked_is_poison(&self) -> Verdict {
        let poison = |id: &str| self.committed.get(id).is_some_and(|row| row.key.starts_with(POISON));
        let missing =
            self.committed.values().find(|row| row.key.starts_with(POISON) && !self.parked.contains_key(&row.id));
        let other = self.parked.values().find(|row| !poison(&row.event_id));
        let says = match (missing, other) {
            (None, None) => {
                format!("the {} dead letters are the planted poison and what waits behind it", self.parked.len())
            }
            (Some(row), _) => format!("planted poison is not parked: id {}, key {}", row.id, row.key),
            (None, Some(row)) => {
                format!("parked though nothing is wrong with it: id {}, reason {}", row.event_id, row.reason)
            }
        };
        verdict("I9 poison", missing.is_none() && other.is_none(), says)
    }

    /// If the oracle had lost something, it would say nothing of the order.
    fn oracle_agrees(&self) -> Verdict {
        let known: HashSet<&str> = self.order.iter().map(|placed| placed.id.as_str()).collect();
        let missing = self.committed.keys().filter(|id| !known.contains(id.as_str())).count();
        let backwards = self.locked_keys_backwards();
        let says = format!("the oracle lacks {missing} committed rows, and has {backwards} locked keys out of order");
        verdict("oracle", missing == 0 && backwards == 0, says)
    }

    /// Numbers of locked keys rise from commit to commit: a check of the oracle by the workload.
    fn locked_keys_backwards(&self) -> usize {
        let mut last: HashMap<&str, i64> = HashMap::new();
        let mut wrong = HashSet::new();
        for placed in self.order.iter().filter(|placed| placed.key.starts_with("locked-")) {
            let Some(row) = self.committed.get(&placed.id) else { continue };
            if last.insert(&placed.key, row.seq).is_some_and(|before| before >= row.seq) {
                wrong.insert(placed.key.as_str());
            }
        }
        wrong.len()
    }
}
