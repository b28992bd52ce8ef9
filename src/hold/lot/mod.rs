//! The parking lot in memory: which events are in the dead letters, in what order, and which of them may be released
//! (rules R3 and R4). Their contents stay in the database.
//!
//! A *way* is an (exchange, routing key). While it is failing its events are parked without a publish, and one parked
//! event at a time goes out to probe it. Of a key only the *head* may go: the first of its parked events.

mod audit;
mod tables;
mod take;
mod ways;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::dead_letters::{DeadLetter, Mark, NewDeadLetter, Reason};
use crate::event::{Joins, OnUnroutable, Ordering, Position};

use super::backoff::Backoff;
use ways::Ways;

pub use ways::Way;

/// The dead letters of one slot, as far as order and release need them.
#[derive(Debug, Default)]
pub struct Lot {
    rows: BTreeMap<Position, Row>,
    keys: HashMap<Arc<str>, Key>,
    tables: HashMap<Arc<str>, tables::Table>,
    ways: Ways,
    /// Heads that may go now.
    free: BTreeSet<Position>,
    waiting: BTreeMap<(Reason, Arc<str>), usize>,
    ages: BTreeSet<(SystemTime, Position)>,
    stored: usize,
    bytes: u64,
    taken: usize,
    taken_bytes: u64,
    parked_keys: usize,
    ids: RandomState,
}

#[derive(Debug)]
struct Row {
    /// See [`Lot::event`].
    event: u64,
    /// Empty if it holds none (`on_poison = skip`).
    keys: Vec<Arc<str>>,
    /// What orders it in the hold.
    lane: Arc<str>,
    joins: Joins,
    way: Arc<Way>,
    route: Arc<str>,
    policy: (Ordering, OnUnroutable),
    reason: Reason,
    bytes: u64,
    parked_at: SystemTime,
    redrive: bool,
    /// Its insert is committed.
    stored: bool,
    /// In the hold, or on its way there from the database.
    taken: bool,
    stand: Stand,
}

/// Where a row stands that may be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stand {
    #[default]
    Nowhere,
    Free,
    /// Among the heads of its way, which is failing, or whose exchange refuses everything.
    Way,
}

#[derive(Debug, Default)]
struct Key {
    queue: BTreeSet<Position>,
    taken: usize,
}

/// What the hold needs to know of a row that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) lane: Arc<str>,
    pub(super) joins: Joins,
    pub(super) route: Arc<str>,
    pub(super) policy: (Ordering, OnUnroutable),
    pub(super) exchange: String,
    pub(super) redrive: bool,
}

impl Lot {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Parked events, those included whose insert is not committed yet.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of their bodies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Those whose insert is committed.
    pub fn stored(&self) -> usize {
        self.stored
    }

    /// Keys whose new events are parked too.
    pub fn parked_keys(&self) -> usize {
        self.parked_keys
    }

    /// When the oldest of them was parked.
    pub fn oldest(&self) -> Option<SystemTime> {
        self.ages.first().map(|(parked_at, _)| *parked_at)
    }

    /// How many, by reason and route.
    pub fn waiting(&self) -> impl Iterator<Item = (Reason, &str, usize)> {
        self.waiting.iter().map(|((reason, route), count)| (*reason, &**route, *count))
    }

    pub fn route(&self, position: Position) -> Option<&str> {
        self.rows.get(&position).map(|row| &*row.route)
    }

    /// The failing ways, with the reason and the words of it.
    pub fn failing_ways(&self) -> impl Iterator<Item = (&Way, Reason, &str)> {
        self.ways.all_failing()
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.rows.contains_key(&position)
    }

    /// What stands for an event here. Of the id itself there would be a copy for each of a hundred thousand rows.
    pub(super) fn event(&self, id: &str) -> u64 {
        self.ids.hash_one(id)
    }

    pub(super) fn event_at(&self, position: Position) -> Option<u64> {
        self.rows.get(&position).map(|row| row.event)
    }

    /// The events at these positions.
    pub(super) fn events(&self, first: Position, last: Position) -> impl Iterator<Item = u64> {
        self.rows.range(first..=last).map(|(_, row)| row.event)
    }

    pub(super) fn nothing_fails(&self) -> bool {
        self.ways.nothing_fails()
    }

    /// Why its events are parked without a publish.
    pub(super) fn failure(&self, way: &Way) -> Option<(Reason, &str)> {
        self.ways.failure(way)
    }

    /// Whether a row that was taken may be published now.
    pub(super) fn may_go(&self, position: Position) -> bool {
        let Some(row) = self.rows.get(&position) else { return true };
        row.redrive || self.ways.failure(&row.way).is_none() || self.ways.is_probe(&row.way, position)
    }

    /// What was in the database when this relay took over.
    pub(super) fn load(
        &mut self,
        letters: Vec<DeadLetter>,
        policy: impl Fn(&str) -> (Ordering, OnUnroutable),
        now: Instant,
    ) {
        for mut letter in letters {
            // People edit rows.
            letter.keys.dedup();
            let way = Way { exchange: letter.exchange, routing_key: letter.routing_key };
            let Some(lane) = letter.keys.first().cloned() else { continue };
            let row = Row {
                event: self.event(&letter.event_id),
                joins: Joins::of(&letter.keys),
                keys: if letter.holds_key { letter.keys } else { Vec::new() },
                lane,
                way: self.ways.add(way),
                policy: policy(&letter.route),
                route: letter.route.into(),
                reason: letter.reason,
                bytes: letter.bytes,
                parked_at: letter.parked_at,
                redrive: letter.mark == Some(Mark::Redrive),
                stored: true,
                taken: false,
                stand: Stand::Nowhere,
            };
            let (way, reason) = (Arc::clone(&row.way), letter.reason);
            self.insert(letter.position, row);
            if !reason.is_poison() && reason != Reason::Behind {
                self.fail(&way, reason, "as it was before the restart", |_| now);
            }
        }
    }

    /// It is going to be parked.
    pub(super) fn add(&mut self, letter: &NewDeadLetter) {
        let event = &letter.event;
        let row = Row {
            event: self.event(&event.id),
            keys: if letter.holds_key { event.keys().cloned().collect() } else { Vec::new() },
            lane: Arc::clone(&event.key),
            joins: event.joins.clone(),
            way: self.ways.add(Way::of(event)),
            route: event.route.name.as_str().into(),
            policy: (event.route.ordering, event.route.on_unroutable),
            reason: letter.reason,
            bytes: event.message().map_or(0, |message| message.body.len() as u64),
            parked_at: SystemTime::now(),
            redrive: false,
            stored: false,
            taken: false,
            stand: Stand::Nowhere,
        };
        self.insert(event.position, row);
    }

    fn insert(&mut self, position: Position, row: Row) {
        *self.waiting.entry((row.reason, Arc::clone(&row.route))).or_default() += 1;
        self.bytes += row.bytes;
        self.stored += usize::from(row.stored);
        self.ages.insert((row.parked_at, position));
        let mut fronts = Vec::new();
        for key in &row.keys {
            let key = self.keys.entry(Arc::clone(key)).or_default();
            fronts.extend(key.queue.first().copied());
            let was_parked = key.is_parked();
            key.queue.insert(position);
            self.parked_keys += usize::from(!was_parked);
        }
        self.enter_table(position, &row.keys);
        self.rows.insert(position, row);
        // What was a head may be none any more.
        for front in fronts {
            self.settle(front);
        }
        self.settle(position);
    }

    /// Its insert is committed.
    pub(super) fn stored_now(&mut self, position: Position) {
        if let Some(row) = self.rows.get_mut(&position).filter(|row| !row.stored) {
            row.stored = true;
            self.stored += 1;
            self.settle(position);
        }
    }

    /// It has been delivered or discarded, or is gone for another reason.
    pub(super) fn remove(&mut self, position: Position, now: Instant) -> bool {
        self.put_back(position, now);
        self.leave(position);
        let Some(row) = self.rows.remove(&position) else { return false };
        self.uncount(row.reason, &row.route);
        self.bytes -= row.bytes;
        self.stored -= usize::from(row.stored);
        self.ages.remove(&(row.parked_at, position));
        for name in &row.keys {
            let Some(key) = self.keys.get_mut(name) else { continue };
            let was_parked = key.is_parked();
            key.queue.remove(&position);
            self.parked_keys -= usize::from(was_parked && !key.is_parked());
            match key.queue.first().copied() {
                Some(front) => self.settle(front),
                None => {
                    self.keys.remove(name);
                }
            }
        }
        self.leave_table(position, &row.keys);
        self.ways.remove(&row.way);
        true
    }

    /// A person wants it to be published. The same mark is seen again until that has been tried.
    pub(super) fn redrive(&mut self, position: Position) {
        if let Some(row) = self.rows.get_mut(&position).filter(|row| !row.redrive) {
            row.redrive = true;
            self.settle(position);
        }
    }

    pub(super) fn is_taken(&self, position: Position) -> bool {
        self.rows.get(&position).is_some_and(|row| row.taken)
    }

    pub(super) fn is_redriven(&self, position: Position) -> bool {
        self.rows.get(&position).is_some_and(|row| row.redrive)
    }

    pub(super) fn taken(&self, position: Position) -> Option<Taken> {
        let row = self.rows.get(&position).filter(|row| row.taken)?;
        Some(Taken {
            lane: Arc::clone(&row.lane),
            joins: row.joins.clone(),
            route: Arc::clone(&row.route),
            policy: row.policy,
            exchange: row.way.exchange.clone(),
            redrive: row.redrive,
        })
    }

    /// The attempt of a row was refused: it stays, and what a person asked for is done.
    pub(super) fn failed_again(&mut self, position: Position, reason: Reason) -> Option<Reason> {
        let row = self.rows.get_mut(&position)?;
        row.redrive = false;
        let was = row.reason;
        // A poison that cannot be routed either stays a poison.
        if !was.is_poison() || reason.is_poison() {
            row.reason = reason;
        }
        let (reason, route) = (row.reason, Arc::clone(&row.route));
        self.uncount(was, &route);
        *self.waiting.entry((reason, route)).or_default() += 1;
        self.settle(position);
        Some(reason)
    }

    pub(super) fn way_of(&self, position: Position) -> Option<Arc<Way>> {
        self.rows.get(&position).map(|row| Arc::clone(&row.way))
    }

    /// An event was refused there. Events of a way that has no rows are not counted as failing: there is nothing to probe
    /// it with.
    pub(super) fn refused_there(
        &mut self,
        way: &Way,
        reason: Reason,
        error: &str,
        backoff: &mut Backoff,
        now: Instant,
    ) {
        self.fail(way, reason, error, |failures| backoff.after(failures, now));
    }

    fn fail(&mut self, way: &Way, reason: Reason, error: &str, due: impl FnOnce(u32) -> Instant) {
        if !self.ways.fail(way, reason, error, due) {
            return;
        }
        let free = self.free.iter().filter(|position| self.rows.get(position).is_some_and(|row| *row.way == *way));
        for position in free.copied().collect::<Vec<_>>() {
            self.settle(position);
        }
    }

    /// The exchange refuses everything: its ways are probed once it does no longer.
    pub(super) fn exchange_failed(&mut self, exchange: &str, reason: Reason, error: &str, now: Instant) {
        self.ways.refuse(exchange);
        for way in self.ways.of_exchange(exchange) {
            self.fail(&way, reason, error, |_| now);
        }
        // What a person wants to be published waits too.
        let free =
            self.free.iter().filter(|position| self.way_of(**position).is_some_and(|way| way.exchange == exchange));
        for position in free.copied().collect::<Vec<_>>() {
            self.settle(position);
        }
    }

    /// It refuses no longer what it has refused for `reason`. Each of its ways is probed.
    pub(super) fn exchange_passed(&mut self, exchange: &str, reason: Reason, error: &str, now: Instant) {
        let heads = self.ways.refuse_no_longer(exchange);
        for way in self.ways.of_exchange(exchange) {
            self.fail(&way, reason, error, |_| now);
        }
        for head in heads {
            self.settle(head);
        }
    }

    /// Whatever was said of it holds no longer: an event has passed there.
    pub(super) fn passed(&mut self, way: &Way) -> bool {
        let Some(heads) = self.ways.passed(way) else { return false };
        for position in heads {
            self.settle(position);
        }
        true
    }

    /// When a probe will be due that is not now.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.ways.next_probe().filter(|_| self.has_budget())
    }

    /// Puts a row where it belongs. To be called after each change to it, its keys or its way.
    fn settle(&mut self, position: Position) {
        self.leave(position);
        let Some(row) = self.rows.get(&position) else { return };
        let head = self.is_head(position, &row.keys);
        let waits_for_a_person = row.reason.is_poison() && !row.redrive;
        if row.taken || !row.stored || !head || waits_for_a_person {
            return;
        }
        let way = Arc::clone(&row.way);
        let failing = self.ways.failure(&way).is_some() && !row.redrive;
        let stand = if failing || self.ways.refuses(&way) {
            self.ways.insert_head(&way, position);
            Stand::Way
        } else {
            self.free.insert(position);
            Stand::Free
        };
        if let Some(row) = self.rows.get_mut(&position) {
            row.stand = stand;
        }
    }

    fn leave(&mut self, position: Position) {
        let Some(row) = self.rows.get_mut(&position) else { return };
        match std::mem::take(&mut row.stand) {
            Stand::Nowhere => {}
            Stand::Free => {
                self.free.remove(&position);
            }
            Stand::Way => {
                let way = Arc::clone(&row.way);
                self.ways.remove_head(&way, position);
            }
        }
    }

    fn uncount(&mut self, reason: Reason, route: &Arc<str>) {
        let kind = (reason, Arc::clone(route));
        if let Some(count) = self.waiting.get_mut(&kind) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&kind);
            }
        }
    }
}

impl Key {
    /// Rule R4: until its last row, inserts that are not committed included, has been taken.
    fn is_parked(&self) -> bool {
        self.taken < self.queue.len()
    }
}
