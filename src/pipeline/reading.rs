//! The table that is read for a snapshot, while its changes come by (rule R11; [`crate::snapshot`]).
//!
//! A mark is a row of `postrider.heartbeat`, which every publication of ours has had from the start: one under a name that no slot can have.
//! A relay that does not know of it takes it for a heartbeat of another slot.

use std::collections::VecDeque;

use super::{Pipeline, PipelineError};
use crate::event::Event;
use crate::event::captured::CapturedTable;
use crate::event::change::{ChangeContext, RowChange};
use crate::event::shape::TableInfo;
use crate::lsn::Lsn;
use crate::pgoutput::message::{Relation, Tuple};
use crate::postgres::state::Heartbeat;
use crate::progress::ProgressError;
use crate::snapshot::{Lost, Passed, Touch, Visible, Window};

/// Changes that are kept, at most. Each has its row's key.
const KEPT: usize = 100_000;

/// Rows of a table, as a chunk of a snapshot has them.
#[derive(Debug)]
pub struct Chunk {
    pub no: i64,
    pub seen: Visible,
    pub relation: Relation,
    pub info: TableInfo,
    /// In the order of the relation's columns.
    pub rows: Vec<Tuple>,
}

#[derive(Debug)]
pub(super) struct Reading {
    relation: u32,
    mark: String,
    window: Window<Tuple>,
    /// As the newest chunk has it: the stream may be at another shape.
    table: Option<CapturedTable>,
    /// What became of chunks at their marks: how many rows were published, or `None`: read it again.
    passed: Vec<(i64, Option<u64>)>,
    /// Chunks whose mark's transaction has ended, with its end; and the one that has not.
    ends: VecDeque<(Lsn, i64)>,
    ending: Option<i64>,
}

impl Reading {
    pub(super) fn touch(&mut self, relation: u32, xid: u32, touches: impl FnOnce() -> Vec<Touch>) {
        if relation == self.relation {
            for touch in touches() {
                self.window.touch(xid, touch);
            }
        }
    }

    pub(super) fn committed(&mut self, end: Lsn) {
        self.ends.extend(self.ending.take().map(|no| (end, no)));
    }
}

impl Pipeline {
    /// From now on changes of the table are kept; again, after [`Lost`]. `mark` names the marks of its chunks; `keyed`: its rows have keys.
    pub fn begin_reading(&mut self, relation: u32, mark: &str, keyed: bool) {
        if let Some(reading) = self.reading.as_mut().filter(|reading| reading.relation == relation) {
            return reading.window.restart();
        }
        self.reading = Some(Reading {
            relation,
            mark: mark.to_owned(),
            window: Window::new(keyed, KEPT),
            table: None,
            passed: Vec::new(),
            ends: VecDeque::new(),
            ending: None,
        });
    }

    pub fn end_reading(&mut self) {
        self.reading = None;
    }

    /// A chunk, whose mark will come.
    pub fn offer(&mut self, chunk: Chunk) -> Result<(), Lost> {
        let Some(reading) = &mut self.reading else { return Err(Lost) };
        let Chunk { no, seen, relation, info, rows } = chunk;
        let table = self.changes.table(&relation, &info);
        let mut keyed = Vec::with_capacity(rows.len());
        for row in rows {
            keyed.push((table.row_key(&row).ok_or(Lost)?, row));
        }
        reading.table = Some(table);
        reading.window.offer(no, seen, keyed)
    }

    /// The chunks whose marks have come since the last call, with how many of their rows were published; `None`: read it again.
    pub fn passed_chunks(&mut self) -> Vec<(i64, Option<u64>)> {
        self.reading.as_mut().map(|reading| std::mem::take(&mut reading.passed)).unwrap_or_default()
    }

    /// The newest chunk with everything up to its mark resolved, once.
    pub fn resolved_chunk(&mut self) -> Option<i64> {
        let acknowledged = self.progress.acknowledged();
        let reading = self.reading.as_mut()?;
        let mut newest = None;
        while let Some((_, no)) = reading.ends.front().filter(|(end, _)| *end <= acknowledged) {
            newest = Some(*no);
            reading.ends.pop_front();
        }
        newest
    }

    /// The rows of a chunk, in the mark's transaction.
    pub(super) fn take_mark(
        &mut self,
        mark: &Heartbeat,
        row_lsn: Lsn,
        events: &mut Vec<Event>,
    ) -> Result<(), PipelineError> {
        let Some(reading) = self.reading.as_mut().filter(|reading| reading.mark == mark.slot) else { return Ok(()) };
        let (rows, table) = match (reading.window.mark(mark.no), &reading.table) {
            (Some(Passed::Rows(rows)), Some(table)) => (rows, table),
            (Some(_), _) => {
                reading.passed.push((mark.no, None));
                return Ok(());
            }
            (None, _) => return Ok(()),
        };
        let transaction = self.transaction.as_mut().ok_or(ProgressError::EventWithoutBegin)?;
        reading.passed.push((mark.no, Some(u64::try_from(rows.len()).unwrap_or(u64::MAX))));
        reading.ending = Some(mark.no);
        for row in &rows {
            let ordinal = transaction.next_ordinal;
            transaction.next_ordinal += 1;
            let table_ordinal = transaction.next_of(reading.relation);
            let row_context = transaction.context(self.source_epoch, row_lsn, ordinal);
            let context = ChangeContext { row: row_context, table_ordinal, transaction: None };
            let before = events.len();
            self.changes.build(table, RowChange::Read(row), &context, || self.progress.event(), events)?;
            transaction.events += u64::try_from(events.len() - before).unwrap_or(u64::MAX);
        }
        Ok(())
    }
}
