use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(key: u8) -> RowKey {
    vec![key].into()
}

#[test]
fn a_snapshot_sees_what_had_ended() {
    let seen: Visible = "10:20:12,15".parse().unwrap();
    for (xid, sees) in
        [(9, true), (10, true), (12, false), (13, true), (15, false), (19, true), (20, false), (21, false)]
    {
        assert_eq!(seen.sees(xid), sees, "{xid}");
    }
    assert!(seen.ended(10) && !seen.ended(11));
    assert_eq!("1:2:".parse(), Ok(Visible { xmin: 1, xmax: 2, running: vec![] }));
    for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
        assert_eq!(text.parse::<Visible>(), Err(BadSnapshot), "{text}");
    }
}

#[test]
fn a_transaction_of_the_stream_is_of_the_epoch_that_is_nearest() {
    const EPOCH: u64 = 1 << 32;
    let near = 3 * EPOCH + 100;
    for (xid, full) in [(99, near - 1), (101, near + 1), (u32::MAX, 3 * EPOCH - 1), (100, near)] {
        assert_eq!(widened(xid, near), full);
    }
    assert_eq!(widened(5, 3 * EPOCH - 10), 3 * EPOCH + 5);
    let seen: Visible = format!("{near}:{near}:").parse().unwrap();
    assert!(seen.sees(u32::MAX) && seen.sees(99) && !seen.sees(100) && !seen.sees(1 << 20));
}

#[test]
fn what_cannot_be_kept_makes_the_chunk_be_read_again() {
    let mut window = Window::new(true, 2);
    window.offer(1, "5:5:".parse().unwrap(), vec![(key(1), 'a')]).unwrap();
    for xid in [4, 4, 4, 5, 6] {
        window.touch(xid, Touch::Row(key(9)));
    }
    assert_eq!(window.mark(1), Some(Passed::Rows(vec!['a'])), "seen changes take no room");
    window.touch(7, Touch::Row(key(9)));
    assert_eq!(window.offer(2, "9:9:".parse().unwrap(), vec![(key(1), 'a')]), Err(Lost));
    window.restart();
    window.offer(3, "9:9:".parse().unwrap(), vec![(key(1), 'a')]).unwrap();
    window.touch(9, Touch::Unknown);
    assert_eq!(window.mark(2), None);
    assert_eq!(window.mark(3), Some(Passed::Lost));
}

#[test]
fn of_rows_that_look_the_same_a_delete_takes_one() {
    let mut window = Window::new(false, 100);
    window.touch(7, Touch::Row(key(1)));
    window.offer(1, "7:7:".parse().unwrap(), vec![(key(1), 'a'), (key(1), 'b'), (key(2), 'c')]).unwrap();
    assert_eq!(window.mark(1), Some(Passed::Rows(vec!['a', 'c'])));
    window.offer(2, "7:7:".parse().unwrap(), vec![(key(1), 'd')]).unwrap();
    assert_eq!(window.mark(2), Some(Passed::Rows(vec!['d'])));
}

/// A small PostgreSQL: a commit is in the stream before it is visible.
#[derive(Default)]
struct Server {
    /// What everybody sees.
    rows: BTreeMap<u8, u32>,
    /// What will be there once everything that has committed is visible.
    newest: BTreeMap<u8, u32>,
    /// Transactions that have committed and are not visible yet, with their changes: none of them touches the others' keys, which row locks
    /// see to.
    hidden: Vec<(u64, Vec<Change>)>,
    stream: VecDeque<Entry>,
    next_xid: u64,
    value: u32,
}

#[derive(Clone, Debug)]
enum Change {
    Put(u8, u32),
    Delete(u8),
    Move(u8, u8, u32),
    Truncate,
}

#[derive(Clone, Debug)]
enum Entry {
    Transaction(u64, Vec<Change>),
    Mark(i64),
}

fn apply(rows: &mut BTreeMap<u8, u32>, change: &Change) {
    match *change {
        Change::Put(key, value) => drop(rows.insert(key, value)),
        Change::Delete(key) => drop(rows.remove(&key)),
        Change::Move(from, to, value) => {
            rows.remove(&from);
            rows.insert(to, value);
        }
        Change::Truncate => rows.clear(),
    }
}

/// What a transaction does: its keys, whether it deletes or moves, how long its commit is hidden.
#[derive(Clone, Debug)]
enum Step {
    Write {
        keys: Vec<(u8, u8)>,
        truncate: bool,
        hidden: bool,
    },
    Show(u8),
    Decode(u8),
    Chunk(u8),
    /// The relay is killed: it starts again from the first unacknowledged entry.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (prop::collection::vec((0..12_u8, 0..16_u8), 1..4), prop::bool::weighted(0.05), any::<bool>())
        .prop_map(|(keys, truncate, hidden)| Step::Write { keys, truncate, hidden });
    let step = prop_oneof![
        6 => write,
        3 => any::<u8>().prop_map(Step::Show),
        4 => (1..4_u8).prop_map(Step::Decode),
        4 => (1..5_u8).prop_map(Step::Chunk),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..80)
}

impl Server {
    fn write(&mut self, keys: &[(u8, u8)], truncate: bool, hidden: bool) {
        let mut changes = Vec::new();
        // A lock that a hidden transaction still has: the writer would wait.
        let locked = |key: u8| {
            self.hidden.iter().flat_map(|(_, changes)| changes).any(|change| match change {
                Change::Put(held, _) | Change::Delete(held) => *held == key,
                Change::Move(from, to, _) => *from == key || *to == key,
                Change::Truncate => true,
            })
        };
        if truncate && self.hidden.is_empty() {
            changes.push(Change::Truncate);
        } else {
            for (key, what) in keys {
                let other = what % 12;
                if locked(*key) || locked(other) {
                    continue;
                }
                self.value += 1;
                let there = self.newest.contains_key(key);
                let change = match what % 4 {
                    0 if there => Change::Delete(*key),
                    1 if there && !self.newest.contains_key(&other) => Change::Move(*key, other, self.value),
                    _ => Change::Put(*key, self.value),
                };
                apply(&mut self.newest, &change);
                changes.push(change);
            }
        }
        if changes.iter().any(|change| matches!(change, Change::Truncate)) {
            self.newest.clear();
        }
        self.next_xid += 1;
        let xid = self.next_xid;
        self.stream.push_back(Entry::Transaction(xid, changes.clone()));
        if hidden {
            self.hidden.push((xid, changes));
        } else {
            changes.iter().for_each(|change| apply(&mut self.rows, change));
        }
    }

    fn show(&mut self, which: u8) {
        if !self.hidden.is_empty() {
            let (_, changes) = self.hidden.remove(usize::from(which) % self.hidden.len());
            changes.iter().for_each(|change| apply(&mut self.rows, change));
        }
    }

    fn snapshot(&self) -> Visible {
        let mut running: Vec<u64> = self.hidden.iter().map(|(xid, _)| *xid).collect();
        running.sort_unstable();
        let xmax = self.next_xid + 1;
        Visible { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
    }
}

/// The relay and its consumer, which applies what comes to a map.
struct Relay {
    window: Option<Window<(u8, u32)>>,
    /// What was decoded before the window was made has ended from this transaction on.
    settled_at: u64,
    last: Option<u8>,
    /// Of the chunk under way.
    reached: Option<Option<u8>>,
    no: i64,
    consumer: BTreeMap<u8, u32>,
    done: bool,
}

impl Relay {
    fn decode(&mut self, entry: Entry) {
        match entry {
            Entry::Transaction(xid, changes) => {
                for change in changes {
                    let touches = match change {
                        Change::Put(k, _) | Change::Delete(k) => vec![Touch::Row(key(k))],
                        Change::Move(from, to, _) => vec![Touch::Row(key(from)), Touch::Row(key(to))],
                        Change::Truncate => vec![Touch::Every],
                    };
                    for touch in touches {
                        if let Some(window) = &mut self.window {
                            window.touch(u32::try_from(xid).unwrap(), touch);
                        }
                    }
                    apply(&mut self.consumer, &change);
                }
            }
            Entry::Mark(no) => match self.window.as_mut().and_then(|window| window.mark(no)) {
                Some(Passed::Rows(rows)) => {
                    self.consumer.extend(rows);
                    match self.reached.take().flatten() {
                        Some(last) => self.last = Some(last),
                        None => self.done = true,
                    }
                }
                Some(Passed::Lost) => self.lost(),
                None => {}
            },
        }
    }

    fn lost(&mut self) {
        self.window = None;
        self.reached = None;
    }

    fn chunk(&mut self, server: &mut Server, rows: usize, bound: usize) {
        if self.done || self.reached.is_some() {
            return;
        }
        let snapshot = server.snapshot();
        let window = match &mut self.window {
            Some(window) => window,
            None => {
                server.next_xid += 1;
                self.settled_at = server.next_xid;
                self.window.insert(Window::new(true, bound))
            }
        };
        let snapshot = if snapshot.ended(self.settled_at) { snapshot } else { server.snapshot() };
        if !snapshot.ended(self.settled_at) {
            return;
        }
        let from = self.last.map_or(0, |last| last + 1);
        let read: Vec<(u8, u32)> = server.rows.range(from..).take(rows).map(|(key, value)| (*key, *value)).collect();
        let last = read.last().map(|(key, _)| *key);
        self.no += 1;
        let rows = read.into_iter().map(|row| (key(row.0), row)).collect();
        if window.offer(self.no, snapshot, rows) == Err(Lost) {
            self.lost();
            return;
        }
        self.reached = Some(last);
        server.stream.push_back(Entry::Mark(self.no));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_consumer_that_applies_events_by_key_ends_with_the_rows_of_the_table(
        first in prop::collection::btree_map(0..12_u8, 1_000..2_000_u32, 0..12),
        steps in steps(),
        bound in prop_oneof![Just(3_usize), Just(1_000)],
    ) {
        let mut server = Server { rows: first.clone(), newest: first, next_xid: 10, ..Server::default() };
        let mut relay = Relay {
            window: None, settled_at: 0, last: None, reached: None, no: 0, consumer: BTreeMap::new(), done: false,
        };
        for step in steps {
            match step {
                Step::Write { keys, truncate, hidden } => server.write(&keys, truncate, hidden),
                Step::Show(which) => server.show(which),
                Step::Decode(count) => {
                    for _ in 0..count {
                        if let Some(entry) = server.stream.pop_front() {
                            relay.decode(entry);
                        }
                    }
                }
                Step::Chunk(rows) => relay.chunk(&mut server, rows.into(), bound),
                Step::Restart => relay.lost(),
            }
        }
        while !server.hidden.is_empty() {
            server.show(0);
        }
        for _ in 0..40 {
            relay.chunk(&mut server, 3, bound);
            while let Some(entry) = server.stream.pop_front() {
                relay.decode(entry);
            }
        }
        prop_assert!(relay.done);
        prop_assert_eq!(relay.consumer, server.rows);
    }
}
