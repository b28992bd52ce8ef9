//! Everything that is counted as it goes, counted anew: for the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::tables::Of;
use super::{Lot, Stand, Taken};
use crate::event::Position;

impl Lot {
    /// What is in the hold or on its way there.
    pub(in crate::hold) fn all_taken(&self) -> impl Iterator<Item = (Taken, Position)> {
        let taken = self.rows.iter().filter(|(_, row)| row.taken);
        taken.filter_map(|(position, _)| Some((self.taken(*position)?, *position)))
    }

    /// What does not agree with what is there. Slow.
    pub(in crate::hold) fn recount(&self) -> Result<(), String> {
        let mut real = Lot::default();
        let (mut free, mut heads, mut rows_of) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        for (position, row) in &self.rows {
            *real.waiting.entry((row.reason, Arc::clone(&row.route))).or_default() += 1;
            real.bytes += row.bytes;
            real.stored += usize::from(row.stored);
            real.taken += usize::from(row.taken);
            real.taken_bytes += if row.taken { row.bytes } else { 0 };
            *rows_of.entry(Arc::clone(&row.way)).or_default() += 1_usize;
            for key in &row.keys {
                let key = real.keys.entry(Arc::clone(key)).or_default();
                key.queue.insert(*position);
                key.taken += usize::from(row.taken);
            }
            if let Of::Row(name) = Of::keys(&row.keys) {
                let table = real.tables.entry(name.into()).or_default();
                table.queue.insert(*position);
                table.taken.extend(row.taken.then_some(*position));
            }
        }
        real.parked_keys = real.keys.values().filter(|key| key.is_parked()).count();
        for (position, row) in &self.rows {
            let head = real.is_head(*position, &row.keys);
            let may_go = head && row.stored && !row.taken && (row.redrive || !row.reason.is_poison());
            let shut = self.ways.refuses(&row.way) || (self.ways.failure(&row.way).is_some() && !row.redrive);
            let stand = match (may_go, shut) {
                (false, _) => Stand::Nowhere,
                (true, false) => Stand::Free,
                (true, true) => Stand::Way,
            };
            if stand != row.stand {
                return Err(format!("{position} is {:?} and should be {stand:?}", row.stand));
            }
            match stand {
                Stand::Nowhere => {}
                Stand::Free => drop(free.insert(*position)),
                Stand::Way => drop(heads.entry(Arc::clone(&row.way)).or_insert_with(BTreeSet::new).insert(*position)),
            }
        }
        let counted = (self.bytes, self.stored, self.taken, self.taken_bytes, self.parked_keys, self.ages.len());
        let there = (real.bytes, real.stored, real.taken, real.taken_bytes, real.parked_keys, self.rows.len());
        if counted != there {
            return Err(format!("(bytes, stored, taken, bytes of these, keys, ages): {counted:?}, {there:?} there"));
        }
        let keys = |lot: &Lot| -> BTreeMap<Arc<str>, (BTreeSet<Position>, usize)> {
            lot.keys.iter().map(|(name, key)| (Arc::clone(name), (key.queue.clone(), key.taken))).collect()
        };
        if (keys(self), &self.waiting, &self.free) != (keys(&real), &real.waiting, &free) {
            return Err(format!("keys, reasons or free heads: {self:?}"));
        }
        if self.tables != real.tables {
            return Err(format!("rows of tables: {:?}, {:?} there", self.tables, real.tables));
        }
        self.ways.recount(&rows_of, &heads)
    }
}
