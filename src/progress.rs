//! Which LSN may be acknowledged (rule R1): a FIFO with an entry per commit, non-transactional message and keepalive.
//!
//! The acknowledged LSN is the end of the last entry before which everything is resolved. An entry that is resolved gives
//! its end to the entry before it, because from then on the two can only be passed together; the first entry passes to
//! the acknowledged LSN. So only unresolved entries are kept, and a keepalive behind something unresolved costs nothing.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::event::Ticket;
use crate::faults::{self, Bug};
use crate::lsn::Lsn;

/// The progress of one replication session. A new session makes a new one, with another number.
#[derive(Debug)]
pub struct Progress {
    session: u64,
    next_entry: u64,
    /// Closed entries with something unresolved, by number. Resolved ones have been merged into their predecessor.
    entries: BTreeMap<u64, Entry>,
    open: Option<OpenTransaction>,
    /// The highest LSN that any message named.
    received: Lsn,
    /// The end of the last entry. `acknowledged <= entered <= received`.
    entered: Lsn,
    acknowledged: Lsn,
    delivered_up_to: Option<SystemTime>,
    /// How far the WAL was at a time of PostgreSQL's; not passed yet.
    reading: Option<(Lsn, SystemTime)>,
    unresolved: u64,
}

#[derive(Debug)]
struct Entry {
    /// How far may be acknowledged once this entry and all before it are resolved.
    end: Lsn,
    time: Option<SystemTime>,
    unresolved: u64,
}

#[derive(Debug)]
struct OpenTransaction {
    entry: u64,
    unresolved: u64,
}

/// The stream does not have the shape that pgoutput gives it (manual, chapter "Logical Streaming Replication Protocol").
/// Nothing of it may be acknowledged: end the session and read again from the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgressError {
    #[error("the replication stream has a begin inside a transaction; the session has to start again from the slot")]
    BeginInTransaction,
    #[error("the replication stream has a row outside a transaction; the session has to start again from the slot")]
    EventWithoutBegin,
    #[error("the replication stream has a commit without a begin; the session has to start again from the slot")]
    CommitWithoutBegin,
    #[error(
        "the replication stream has a non-transactional message inside a transaction; the session has to start again \
         from the slot"
    )]
    MessageInTransaction,
    #[error("the replication stream went back from {after} to {end}; the session has to start again from the slot")]
    Backwards { end: Lsn, after: Lsn },
}

impl Progress {
    /// `start` is the slot's confirmed LSN: everything before it has been acknowledged.
    pub fn new(session: u64, start: Lsn) -> Self {
        Progress {
            session,
            next_entry: 0,
            entries: BTreeMap::new(),
            open: None,
            received: start,
            entered: start,
            acknowledged: start,
            delivered_up_to: None,
            reading: None,
            unresolved: 0,
        }
    }

    /// A transaction begins. Its events may be resolved before its commit is received; it is passed only after.
    pub fn begin(&mut self) -> Result<(), ProgressError> {
        if self.open.is_some() {
            return Err(ProgressError::BeginInTransaction);
        }
        self.open = Some(OpenTransaction { entry: self.number(), unresolved: 0 });
        Ok(())
    }

    /// An event of the open transaction. All events of a transaction have the same ticket, to be resolved once each.
    pub fn event(&mut self) -> Result<Ticket, ProgressError> {
        let open = self.open.as_mut().ok_or(ProgressError::EventWithoutBegin)?;
        open.unresolved += 1;
        self.unresolved += 1;
        Ok(Ticket { session: self.session, entry: open.entry })
    }

    /// The open transaction ends. `end` is the Commit message's end LSN (the first byte after the commit record).
    pub fn commit(&mut self, end: Lsn, time: SystemTime) -> Result<(), ProgressError> {
        let open = self.open.as_ref().ok_or(ProgressError::CommitWithoutBegin)?;
        let (entry, unresolved) = (open.entry, open.unresolved);
        self.enter(end)?;
        self.open = None;
        self.close(entry, Entry { end, time: Some(time), unresolved });
        Ok(())
    }

    /// A non-transactional message that is an event. `end` is its LSN, which is the end of its record.
    pub fn message(&mut self, end: Lsn) -> Result<Ticket, ProgressError> {
        let entry = self.enter_message(end, 1)?;
        self.unresolved += 1;
        Ok(Ticket { session: self.session, entry })
    }

    /// A non-transactional message that is none of ours.
    pub fn empty_message(&mut self, end: Lsn) -> Result<(), ProgressError> {
        self.enter_message(end, 0).map(|_| ())
    }

    /// A keepalive: an empty entry, because all data up to `wal_end` was sent before it.
    ///
    /// One that arrives inside a transaction, or that is behind what was received, is no entry. Both are ordinary: the
    /// walsender also sends keepalives while it writes a transaction, with the end of the record *before* the one that it
    /// decodes, and after a restart while it decodes again what was confirmed long ago (`walsender.c`, `sentPtr`).
    ///
    /// Its time says nothing of delivery: the walsender sends it whenever it is asked, also when what it has to send is hours
    /// behind the WAL's end. That is what [`Self::reading`] is for.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        if faults::seeded(Bug::AckKeepaliveInFlight) {
            self.entries.clear();
        }
        if self.open.is_none() && self.enter(wal_end).is_ok() {
            let entry = self.number();
            self.close(entry, Entry { end: wal_end, time: None, unresolved: 0 });
        }
    }

    /// At `at`, by PostgreSQL's clock, its WAL ended at `flushed`: once that is passed, nothing committed before is undelivered. This is
    /// how a database without traffic is not late (rule R10). While one is not passed, later ones are not needed.
    pub fn reading(&mut self, flushed: Lsn, at: SystemTime) {
        self.reading.get_or_insert((flushed, at));
        self.pass_reading();
    }

    /// One event of the ticket's entry is delivered (or parked). Returns whether it counted: the ticket of another session
    /// changes nothing, nor does one of an entry that has nothing unresolved.
    pub fn resolve(&mut self, ticket: Ticket) -> bool {
        if ticket.session != self.session {
            return false;
        }
        let open = self.open.as_mut().filter(|open| open.entry == ticket.entry);
        let left = match open {
            Some(open) => &mut open.unresolved,
            None => match self.entries.get_mut(&ticket.entry) {
                Some(entry) => &mut entry.unresolved,
                None => return false,
            },
        };
        let Some(fewer) = left.checked_sub(1) else { return false };
        *left = fewer;
        self.unresolved -= 1;
        if fewer == 0
            && let Some(entry) = self.entries.remove(&ticket.entry)
        {
            self.pass(ticket.entry, &entry);
        }
        true
    }

    /// What may be reported to PostgreSQL as flushed. Never goes back, never exceeds [`Self::received`].
    pub fn acknowledged(&self) -> Lsn {
        self.acknowledged
    }

    /// The highest LSN that was received. It says nothing about delivery.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Nothing that was committed before this time, by PostgreSQL's clock, is undelivered. `None`: nothing is known yet.
    pub fn delivered_up_to(&self) -> Option<SystemTime> {
        self.delivered_up_to
    }

    /// Events that are neither delivered nor parked.
    pub fn unresolved(&self) -> u64 {
        self.unresolved
    }

    /// Between a Begin and its Commit.
    pub fn is_transaction_open(&self) -> bool {
        self.open.is_some()
    }

    /// Entries kept, the open one included: at most [`Self::unresolved`] plus one.
    pub fn entries(&self) -> usize {
        self.entries.len() + usize::from(self.open.is_some())
    }

    fn enter_message(&mut self, end: Lsn, unresolved: u64) -> Result<u64, ProgressError> {
        // Protocol version 1 sends a transaction in one piece, so nothing can come in between.
        if self.open.is_some() {
            return Err(ProgressError::MessageInTransaction);
        }
        self.enter(end)?;
        let entry = self.number();
        self.close(entry, Entry { end, time: None, unresolved });
        Ok(entry)
    }

    fn number(&mut self) -> u64 {
        let entry = self.next_entry;
        self.next_entry += 1;
        entry
    }

    fn enter(&mut self, end: Lsn) -> Result<(), ProgressError> {
        if end < self.entered {
            return Err(ProgressError::Backwards { end, after: self.entered });
        }
        self.entered = end;
        self.received = self.received.max(end);
        Ok(())
    }

    fn close(&mut self, number: u64, entry: Entry) {
        if entry.unresolved == 0 {
            self.pass(number, &entry);
        } else {
            self.entries.insert(number, entry);
        }
    }

    /// `entry` is resolved: its end goes to the entry before it, or is acknowledged if there is none.
    fn pass(&mut self, number: u64, entry: &Entry) {
        if let Some((_, before)) = self.entries.range_mut(..number).next_back() {
            before.end = entry.end;
            before.time = entry.time.or(before.time);
        } else {
            debug_assert!(self.acknowledged <= entry.end && entry.end <= self.received);
            self.acknowledged = self.acknowledged.max(entry.end);
            self.delivered_up_to = entry.time.or(self.delivered_up_to);
            self.pass_reading();
        }
    }

    fn pass_reading(&mut self) {
        if let Some((_, at)) = self.reading.take_if(|(flushed, _)| *flushed <= self.acknowledged) {
            // A commit that came later has a later time.
            self.delivered_up_to = self.delivered_up_to.max(Some(at));
        }
    }
}

#[cfg(test)]
mod tests;
