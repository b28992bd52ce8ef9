//! Out of the lot and back into it (rule R4).

use std::sync::Arc;
use std::time::Instant;

use super::Lot;
use crate::event::Position;

/// Events of one key that are taken at once, so that a key leaves the lot although its events keep coming.
const CHUNK: usize = 256;
const CHUNK_BYTES: u64 = 4 << 20;
/// Parked events in the hold at a time, of all keys.
const TAKEN: usize = 1_000;
const TAKEN_BYTES: u64 = 16 << 20;

impl Lot {
    /// Takes what may go now: the probes that are due, then the heads whose way is free, each with what follows it.
    pub(in crate::hold) fn take(&mut self, now: Instant) -> Vec<Position> {
        let mut out = Vec::new();
        while self.has_budget()
            && let Some(probe) = self.ways.take_probe(now)
        {
            self.take_row(probe);
            out.push(probe);
        }
        while self.has_budget()
            && let Some(head) = self.free.first().copied()
        {
            self.take_chunk(head, &mut out);
        }
        out
    }

    pub(in crate::hold) fn has_head_for(&self, exchange: &str) -> bool {
        self.ways.head_of_exchange(exchange).is_some()
    }

    /// One head for an exchange that refuses everything, for its probe.
    pub(in crate::hold) fn take_for_exchange(&mut self, exchange: &str) -> Option<Position> {
        let position = self.ways.head_of_exchange(exchange)?;
        self.take_row(position);
        Some(position)
    }

    /// The head and what follows it in its key, as far as that may go without a person or a probe. Inserts that are not
    /// committed are taken too: they come before the read of what is taken.
    fn take_chunk(&mut self, head: Position, out: &mut Vec<Position>) {
        let Some(row) = self.rows.get(&head) else { return };
        let mut bytes = row.bytes;
        let mut chunk = vec![head];
        // A row of several keys is taken alone: its followers are heads only after it.
        if let [name] = row.keys.as_slice()
            && let Some(key) = self.keys.get(name)
        {
            let end = self.end_of_chunk(&row.keys);
            for position in key.queue.range(head..).skip(1).take(CHUNK - 1) {
                if end.is_some_and(|end| end < *position) {
                    break;
                }
                let Some(row) = self.rows.get(position) else { break };
                bytes += row.bytes;
                let stuck = row.reason.is_poison() && !row.redrive;
                let closed = self.ways.refuses(&row.way) || self.failure(&row.way).is_some();
                if stuck || row.keys.len() > 1 || bytes > CHUNK_BYTES || closed {
                    break;
                }
                chunk.push(*position);
            }
        }
        for position in &chunk {
            self.take_row(*position);
        }
        out.extend(chunk);
    }

    pub(super) fn has_budget(&self) -> bool {
        self.taken < TAKEN && self.taken_bytes < TAKEN_BYTES
    }

    fn take_row(&mut self, position: Position) {
        let Some(row) = self.rows.get_mut(&position).filter(|row| !row.taken) else { return };
        row.taken = true;
        self.taken += 1;
        self.taken_bytes += row.bytes;
        let names = row.keys.clone();
        for name in &names {
            let Some(key) = self.keys.get_mut(name) else { continue };
            let was_parked = key.is_parked();
            key.taken += 1;
            self.parked_keys -= usize::from(was_parked && !key.is_parked());
            let front = key.queue.first().copied();
            front.into_iter().for_each(|front| self.settle(front));
        }
        self.taken_of_table(position, &names, true);
        self.settle(position);
    }

    /// It is not in the hold any more, and stays parked.
    pub(in crate::hold) fn put_back(&mut self, position: Position, now: Instant) {
        let Some(row) = self.rows.get_mut(&position).filter(|row| row.taken) else { return };
        row.taken = false;
        self.taken -= 1;
        self.taken_bytes -= row.bytes;
        let (keys, way) = (row.keys.clone(), Arc::clone(&row.way));
        for name in &keys {
            let Some(key) = self.keys.get_mut(name) else { continue };
            let was_parked = key.is_parked();
            key.taken -= 1;
            self.parked_keys += usize::from(!was_parked);
            let front = key.queue.first().copied();
            front.into_iter().for_each(|front| self.settle(front));
        }
        self.taken_of_table(position, &keys, false);
        self.ways.probe_came_back(&way, position, now);
        self.settle(position);
    }

    /// The rows of a key that are in the hold, or on their way there.
    pub(super) fn taken_of_key(&self, key: &str) -> Vec<Position> {
        let Some(key) = self.keys.get(key) else { return Vec::new() };
        // What is taken is at the front, but for one that was parked late, before what was taken.
        key.queue.iter().filter(|position| self.is_taken(**position)).take(key.taken).copied().collect()
    }
}
