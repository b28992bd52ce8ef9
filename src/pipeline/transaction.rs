//! The transaction that is being received, and what is counted in it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::event::change::CollectionCount;
use crate::event::outbox::RowContext;
use crate::lsn::Lsn;
use crate::pgoutput::message::Begin;
use crate::postgres::state::Heartbeat;

pub(super) struct Transaction {
    pub(super) commit: Lsn,
    pub(super) commit_time: SystemTime,
    pub(super) xid: u32,
    pub(super) next_ordinal: u32,
    /// Of each table, and of messages (0).
    table_ordinals: BTreeMap<u32, u32>,
    pub(super) events: u64,
    pub(super) heartbeat: Option<Heartbeat>,
    /// What its metadata has counted so far (`debezium.transaction_metadata`), and how many that is.
    pub(super) collections: Vec<CollectionCount>,
    counted: u64,
    /// Where its Begin stands.
    pub(super) begin: Lsn,
}

impl Transaction {
    pub(super) fn new(begin: &Begin, lsn: Lsn) -> Transaction {
        Transaction {
            commit: begin.final_lsn,
            commit_time: begin.commit_time,
            xid: begin.xid,
            next_ordinal: 0,
            table_ordinals: BTreeMap::new(),
            events: 0,
            heartbeat: None,
            collections: Vec::new(),
            counted: 0,
            begin: lsn,
        }
    }

    pub(super) fn context(&self, epoch: u32, row_lsn: Lsn, ordinal: u32) -> RowContext {
        RowContext { epoch, commit_lsn: self.commit, commit_time: self.commit_time, xid: self.xid, row_lsn, ordinal }
    }

    /// The number of a table's next change.
    pub(super) fn next_of(&mut self, relation: u32) -> u32 {
        let next = self.table_ordinals.entry(relation).or_default();
        let number = *next;
        *next += 1;
        number
    }

    /// Counts a change for the metadata. Returns its number in all, and among those of its table.
    pub(super) fn count(&mut self, (schema, table): (&str, &str)) -> (u64, u64) {
        self.counted += 1;
        let same = |count: &&mut CollectionCount| count.schema == schema && count.table == table;
        if let Some(count) = self.collections.iter_mut().find(same) {
            count.events += 1;
            return (self.counted, count.events);
        }
        self.collections.push(CollectionCount { schema: schema.to_owned(), table: table.to_owned(), events: 1 });
        (self.counted, 1)
    }
}
