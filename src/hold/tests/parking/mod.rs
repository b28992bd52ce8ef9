//! Rules R3 and R4: into the dead letters and out of them.

mod damage;
mod exchanges;
mod into;
mod joint;
mod out;
mod people;
mod probes;

use std::collections::BTreeMap;

use super::*;
use crate::dead_letters::{Content, DeadLetter, Mark};

const HOLD_FOR: Duration = Duration::from_secs(10);

/// A hold with a table of dead letters beside it, that is written when a test says so. Events are named by their position.
struct Yard {
    bench: Bench,
    /// What has been given to the database, committed or not.
    rows: BTreeMap<u64, NewDeadLetter>,
    uncommitted: Vec<u64>,
}

/// One round of [`Hold::errands`].
#[derive(Debug, Default, PartialEq, Eq)]
struct Round {
    park: Vec<(u64, &'static str)>,
    remove: Vec<u64>,
    failed: Vec<(u64, &'static str)>,
    fetch: Vec<u64>,
}

impl Yard {
    fn new() -> Self {
        Yard::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let bench = Bench::with(|limits| {
            limits.hold_for = HOLD_FOR;
            limits.retry_max = 4 * SECOND;
            change(limits);
        });
        Yard { bench, rows: BTreeMap::new(), uncommitted: Vec::new() }
    }

    /// A relay that takes over: the rows are there, the rest is gone.
    fn restart(&mut self) {
        let letters = self.rows.values().map(|row| letter(row, None)).collect();
        self.restart_with(letters);
    }

    fn restart_with(&mut self, letters: Vec<DeadLetter>) {
        let limits = self.bench.hold.limits.clone();
        let now = self.bench.now;
        self.bench = Bench { now, ..Bench::after(&limits, Suspects::default()) };
        self.bench.hold.load(letters, |_| (Ordering::Key, OnUnroutable::Park), now);
        self.uncommitted.clear();
    }

    /// An event of `key` that goes to exchange `x` with routing key `kind`.
    fn add(&mut self, n: u64, key: &str, kind: &str) {
        self.add_with(n, key, kind, |_, _| {});
    }

    fn add_with(&mut self, n: u64, key: &str, kind: &str, change: impl FnOnce(&mut Route, &mut Event)) {
        let mut event = Spec { n, key, exchange: "x", ordering: Ordering::Key, content: Ok(10) }.event();
        kind.clone_into(&mut event.content.as_mut().unwrap().routing_key);
        let mut route = (*event.route).clone();
        change(&mut route, &mut event);
        event.route = Arc::new(route);
        self.bench.insert(event);
    }

    fn add_to(&mut self, n: u64, key: &str, exchange: &str) {
        self.add_with(n, key, exchange, |route, _| exchange.clone_into(&mut route.exchange));
    }

    fn poison(&mut self, n: u64, key: &str, policy: OnPoison) {
        self.add_with(n, key, "poison", |route, event| {
            route.on_poison = policy;
            let message = std::mem::replace(&mut event.content, Err(poison()));
            event.remains = message.ok().map(Box::new);
        });
    }

    /// Publishes what may go.
    fn go(&mut self) -> Vec<u64> {
        self.bench.take_all()
    }

    fn deliver(&mut self, n: u64) -> Delivered {
        self.bench.deliver(n)
    }

    fn refuse(&mut self, n: u64, refusal: Refusal) -> Decision {
        self.bench.hold.refused(position(n), refusal, self.bench.now).unwrap().decision
    }

    /// Publishes `n` and has it refused until it is parked; commits that.
    fn park(&mut self, n: u64, refusal: Refusal) {
        for _ in 0..100 {
            let going = self.go();
            assert!(going.is_empty() || going == [n], "{going:?}");
            if going == [n] && self.refuse(n, refusal) == Decision::Park {
                break;
            }
            if self.errands(false).park.iter().any(|(parked, _)| *parked == n) {
                break;
            }
            self.bench.pass(SECOND);
        }
        self.errands(false);
        self.commit_all();
    }

    fn errands(&mut self, releasing: bool) -> Round {
        let errands = self.bench.hold.errands(self.bench.now, releasing);
        let numbers = |positions: &[Position]| positions.iter().map(|position| position.commit.0).collect();
        let round = Round {
            park: errands.park.iter().map(|row| (row.event.position.commit.0, row.reason.as_str())).collect(),
            remove: numbers(&errands.remove),
            failed: errands.failed.iter().map(|row| (row.position.commit.0, row.reason.as_str())).collect(),
            fetch: numbers(&errands.fetch),
        };
        for row in errands.park {
            self.uncommitted.push(row.event.position.commit.0);
            self.rows.insert(row.event.position.commit.0, row);
        }
        self.rows.retain(|n, _| !round.remove.contains(n));
        self.bench.hold.recount().unwrap();
        round
    }

    fn write(&mut self) -> Round {
        self.errands(true)
    }

    /// The inserts of these are committed. Returns what that resolves.
    fn commit(&mut self, numbers: &[u64]) -> Vec<u64> {
        self.uncommitted.retain(|n| !numbers.contains(n));
        let tickets = self.bench.hold.stored(numbers.iter().copied().map(position));
        tickets.into_iter().map(|ticket| ticket.entry).collect()
    }

    fn commit_all(&mut self) -> Vec<u64> {
        let all = self.uncommitted.clone();
        self.commit(&all)
    }

    /// What was asked for comes from the database, as far as it is there.
    fn arrive(&mut self, numbers: &[u64]) {
        let asked: Vec<Position> = numbers.iter().copied().map(position).collect();
        let contents = numbers.iter().filter_map(|n| self.rows.get(n)).map(content).collect();
        self.bench.hold.fetched(&asked, contents, self.bench.now);
    }

    /// As long as the database has something to do and the broker accepts everything. Returns what is published meanwhile.
    fn flow(&mut self) -> Vec<u64> {
        let mut published = Vec::new();
        loop {
            let round = self.write();
            self.commit_all();
            self.arrive(&round.fetch);
            let going = self.go();
            if round == Round::default() && going.is_empty() {
                return published;
            }
            for n in &going {
                self.deliver(*n);
            }
            published.extend(going);
        }
    }

    /// As [`Self::flow`], until nothing is parked any more.
    fn flow_on(&mut self) -> Vec<u64> {
        let mut published = Vec::new();
        for _ in 0..1_000 {
            published.extend(self.flow());
            if self.bench.hold.lot().is_empty() {
                return published;
            }
            self.bench.pass(SECOND);
        }
        panic!("{} events do not leave; {published:?} did", self.bench.hold.lot().len());
    }

    /// When everything has been asked, nothing is due any more: the loop of the publisher may sleep.
    fn rests(&mut self, releasing: bool) {
        let wake = self.bench.hold.next_wake(releasing);
        assert!(wake.is_none_or(|at| at > self.bench.now), "a busy loop");
    }

    fn mark(&mut self, n: u64, mark: Mark) -> bool {
        let out = self.bench.hold.mark(position(n), mark, self.bench.now);
        if out {
            self.rows.remove(&n);
        }
        out
    }

    fn parked(&self) -> usize {
        self.bench.hold.lot().len()
    }

    fn keys(&self) -> usize {
        self.bench.hold.lot().parked_keys()
    }
}

fn letter(row: &NewDeadLetter, mark: Option<Mark>) -> DeadLetter {
    let message = row.event.message().unwrap();
    DeadLetter {
        id: 0,
        position: row.event.position,
        event_id: Arc::clone(&row.event.id),
        keys: row.event.keys().cloned().collect(),
        route: row.event.route.name.clone(),
        exchange: row.event.route.exchange.clone(),
        routing_key: message.routing_key.clone(),
        reason: row.reason,
        holds_key: row.holds_key,
        bytes: message.body.len() as u64,
        parked_at: SystemTime::UNIX_EPOCH,
        mark,
    }
}

fn content(row: &NewDeadLetter) -> Content {
    Content {
        position: row.event.position,
        event_id: Arc::clone(&row.event.id),
        commit_time: row.event.commit_time,
        message: row.event.message().unwrap().clone(),
    }
}
