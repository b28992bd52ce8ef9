//! Which rows of a snapshot may be published between the changes of the stream (rule R11). No I/O.
//!
//! A table is read in chunks, each in a transaction of its own, while its changes go on. Behind each chunk a mark is written into the WAL;
//! where the mark comes in the stream the chunk's rows are published. A row whose key was changed by a transaction that has come in the
//! stream and that the chunk did not see is older than what was published of it: it is left out, for the stream has said it better.
//!
//! **Never by LSN.** A commit that waits for a synchronous standby is decoded before anybody can see it. So changes are kept from before the
//! first chunk on, with their transactions, until a chunk has seen those; what was decoded even before is waited for ([`Visible::ended`]).

use std::collections::{HashMap, VecDeque};
use std::fmt;

/// What tells a row among those of its table: see `CapturedTable::row_key`.
pub type RowKey = Box<[u8]>;

/// A `pg_snapshot`: which transactions a statement sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    xmin: u64,
    xmax: u64,
    /// Those between that were running. Sorted.
    running: Vec<u64>,
}

/// The text is no `pg_snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL has sent a snapshot that is none")]
pub struct BadSnapshot;

impl std::str::FromStr for Visible {
    type Err = BadSnapshot;

    /// `xmin:xmax:xip_list` (manual, "Transaction ID and Snapshot Information Functions").
    fn from_str(text: &str) -> Result<Visible, BadSnapshot> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| BadSnapshot);
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or(BadSnapshot);
        let (xmin, xmax, list) = (number(part()?)?, number(part()?)?, part()?);
        let mut running = list.split(',').filter(|text| !text.is_empty()).map(number).collect::<Result<Vec<_>, _>>()?;
        running.sort_unstable();
        Ok(Visible { xmin, xmax, running })
    }
}

impl fmt::Display for Visible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running: Vec<String> = self.running.iter().map(u64::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, running.join(","))
    }
}

impl Visible {
    /// As `pg_visible_in_snapshot`, of a committed transaction whose number comes without its epoch.
    pub fn sees(&self, xid: u32) -> bool {
        let xid = widened(xid, self.xmax);
        xid < self.xmin || xid < self.xmax && self.running.binary_search(&xid).is_err()
    }

    /// Every transaction older than this one has ended: what of them has committed is seen, by this and every later snapshot.
    pub fn ended(&self, xid: u64) -> bool {
        self.xmin >= xid
    }
}

/// The number nearest to `near` that ends in `xid`. Transactions that are alive are within 2^31 of each other.
fn widened(xid: u32, near: u64) -> u64 {
    let low = u32::try_from(near & u64::from(u32::MAX)).unwrap_or_default();
    near.saturating_add_signed(i64::from(xid.wrapping_sub(low).cast_signed()))
}

/// What a change of the stream did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    /// To the row of this key; of a table without a key: it took a row away that looked so.
    Row(RowKey),
    /// TRUNCATE.
    Every,
    /// To a row whose key the stream does not say.
    Unknown,
}

/// What became of a chunk at its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed<T> {
    /// These of its rows are to be published, in their order.
    Rows(Vec<T>),
    /// It has to be read again: more was changed than can be kept.
    Lost,
}

/// More was changed than can be kept. What came before must have ended before the next chunk is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// One table while it is read: its changes, and the chunk that waits for its mark.
#[derive(Debug)]
pub struct Window<T> {
    /// Rows have keys: one row each.
    keyed: bool,
    bound: usize,
    touches: VecDeque<(u32, Touch)>,
    /// Of the newest chunk. What it sees every later one sees.
    seen: Option<Visible>,
    pending: Option<Pending<T>>,
    lost: bool,
}

#[derive(Debug)]
struct Pending<T> {
    no: i64,
    rows: Vec<Option<T>>,
    places: HashMap<RowKey, Vec<usize>>,
}

impl<T> Window<T> {
    /// At most `bound` changes are kept.
    pub fn new(keyed: bool, bound: usize) -> Window<T> {
        Window { keyed, bound, touches: VecDeque::new(), seen: None, pending: None, lost: false }
    }

    /// Begins again after [`Lost`].
    pub fn restart(&mut self) {
        *self = Window::new(self.keyed, self.bound);
    }

    /// A change of the table, of a transaction that has committed.
    pub fn touch(&mut self, xid: u32, touch: Touch) {
        if self.lost || self.seen.as_ref().is_some_and(|seen| seen.sees(xid)) {
            return;
        }
        if touch == Touch::Unknown || self.touches.len() >= self.bound {
            self.lost = true;
            self.touches.clear();
            return;
        }
        let used = self.pending.as_mut().is_some_and(|pending| pending.leave_out(&touch, self.keyed));
        if !used {
            self.touches.push_back((xid, touch));
        }
    }

    /// A chunk that was read: its mark, in the WAL, comes later. One at a time.
    pub fn offer(&mut self, no: i64, seen: Visible, rows: Vec<(RowKey, T)>) -> Result<(), Lost> {
        if self.lost {
            return Err(Lost);
        }
        self.touches.retain(|(xid, _)| !seen.sees(*xid));
        self.seen = Some(seen);
        let mut pending = Pending { no, rows: Vec::with_capacity(rows.len()), places: HashMap::new() };
        for (at, (key, row)) in rows.into_iter().enumerate() {
            pending.places.entry(key).or_default().push(at);
            pending.rows.push(Some(row));
        }
        self.touches.retain(|(_, touch)| !pending.leave_out(touch, self.keyed));
        self.pending = Some(pending);
        Ok(())
    }

    /// The mark of a chunk has come. `None`: of one that is not known, as after a restart.
    pub fn mark(&mut self, no: i64) -> Option<Passed<T>> {
        let pending = self.pending.take_if(|pending| pending.no == no)?;
        if self.lost {
            return Some(Passed::Lost);
        }
        Some(Passed::Rows(pending.rows.into_iter().flatten().collect()))
    }
}

impl<T> Pending<T> {
    /// Whether the change is spent: without a key it takes away one row of those that look the same.
    fn leave_out(&mut self, touch: &Touch, keyed: bool) -> bool {
        match touch {
            Touch::Every => {
                self.rows.fill_with(|| None);
                self.places.clear();
                false
            }
            Touch::Unknown => false,
            Touch::Row(key) => {
                let Some(place) = self.places.get_mut(key).and_then(Vec::pop) else { return false };
                if let Some(row) = self.rows.get_mut(place) {
                    *row = None;
                }
                !keyed
            }
        }
    }
}

#[cfg(test)]
mod tests;
