//! What waits behind parked events, and goes into the dead letters after them.
//!
//! An event of several keys may have to wait for the dead letters because of one of them, while an earlier event of another is
//! still here. It stays here with it, and what is behind it stays too: after a crash the slot gives the earlier one again, and by
//! then what is in the dead letters may have gone out of them. So everything that is before a dead letter is decided, or is one.

use std::sync::Arc;
use std::time::Instant;

use crate::dead_letters::Reason;
use crate::event::{Event, Joins, Position, keys_of, table_of};

use super::lot::Way;
use super::{Hold, Item, State};

impl Hold {
    /// An event that has just come belongs into the dead letters if something there is before it.
    pub(super) fn park_new(&mut self, event: &Event, now: Instant) {
        if !self.lot.is_empty() && self.lot.holds(event) {
            self.follow(event.position, now);
        }
    }

    /// Parks what waits for these keys if they are parked, and what waits for that in turn.
    pub(super) fn park_behind(&mut self, key: &Arc<str>, joins: &Joins, now: Instant) {
        let mut scopes = Vec::new();
        for key in keys_of(key, joins) {
            self.add_scope(&mut scopes, key);
        }
        while let Some(key) = scopes.pop() {
            let lane = self.lanes.get(&key).map(|lane| lane.queue.iter().copied().collect());
            self.follow_all(&key, lane.unwrap_or_default(), &mut scopes, now);
            if let Some(first) = self.lot.first_barrier(&key) {
                let mut table = self.lanes.rows(&key, first..);
                table.extend(self.lanes.get(&key).into_iter().flat_map(|lane| lane.queue.iter()));
                table.sort_unstable();
                self.follow_all(&key, table, &mut scopes, now);
            }
            self.settle(&key);
        }
    }

    /// Those of a scope that are held by the dead letters, in the order of positions. Adds what may have to follow them.
    fn follow_all(&mut self, scope: &str, all: Vec<Position>, scopes: &mut Vec<Arc<str>>, now: Instant) {
        for position in all {
            let Some(event) = self.items.get(&position).map(|item| &item.event) else { continue };
            if !self.lot.holds(event) {
                continue;
            }
            let event = Arc::clone(event);
            // What is behind a barrier, or a row of its table, is looked at with the table.
            if self.follow(position, now) && event.table() != Some(scope) {
                event.keys().filter(|other| ***other != *scope).for_each(|other| self.add_scope(scopes, other));
                self.add_barriers(scopes, scope);
            }
        }
    }

    fn add_scope(&self, scopes: &mut Vec<Arc<str>>, key: &Arc<str>) {
        if !scopes.contains(key) {
            scopes.push(Arc::clone(key));
        }
        self.add_barriers(scopes, key);
    }

    /// The barriers of its table may have to wait too, or others for them.
    fn add_barriers(&self, scopes: &mut Vec<Arc<str>>, key: &str) {
        let Some(table) = table_of(key) else { return };
        if let Some(barriers) = self.lanes.key_of_barriers(table).or_else(|| self.lot.key_of_barriers(table))
            && !scopes.contains(barriers)
        {
            scopes.push(Arc::clone(barriers));
        }
    }

    /// Into the dead letters, or, while something is before it that is in none, on the list of those that are to go there.
    /// Returns whether it went.
    fn follow(&mut self, position: Position, now: Instant) -> bool {
        let Some(item) = self.items.get(&position) else { return false };
        if item.is_out() || item.parked || matches!(item.state, State::Parking) {
            return false;
        }
        if self.waits_for_others(position, item) {
            self.followers.insert(position);
            return false;
        }
        self.park_follower(position, now);
        true
    }

    /// Something before it is here that is not in the dead letters.
    fn waits_for_others(&self, position: Position, item: &Item) -> bool {
        let strict = item.tie.is_strict();
        let stays = |earlier: &Position| {
            let item = self.items.get(earlier).filter(|item| !item.parked);
            item.is_some_and(|item| strict || item.tie.is_strict() || self.followers.contains(earlier))
        };
        let stays_in = |key: &str| {
            let lane = self.lanes.get(key).map(|lane| lane.queue.iter().take_while(|earlier| **earlier < position));
            lane.is_some_and(|mut earlier| earlier.any(stays))
        };
        // As nearly always: nothing is looked up for it.
        let simple = !strict && self.followers.is_empty();
        if !simple && item.event.keys().any(|key| stays_in(key)) {
            return true;
        }
        match (item.event.table(), &item.event.joins) {
            (None, _) => false,
            (Some(table), Joins::Table) => {
                self.lanes.table(table).is_some_and(|table| table.rows.range(..position).any(stays))
            }
            (Some(table), _) => stays_in(table),
        }
    }

    fn park_follower(&mut self, position: Position, now: Instant) {
        let Some(item) = self.items.get(&position) else { return };
        match (&item.state, item.last_refusal) {
            (State::Poisoned(poison), _) => {
                let poison = poison.clone();
                self.park_item(position, Reason::Poison(poison.reason), &poison.detail);
            }
            (_, Some(refusal)) => {
                let way = Way::of(&item.event);
                self.park_item(position, refusal.reason(), refusal.words());
                self.lot.refused_there(&way, refusal.reason(), refusal.words(), &mut self.backoff, now);
            }
            _ => self.park_item(position, Reason::Behind, "an earlier event of its key is parked"),
        }
    }

    /// Those that were to follow, and are first now: into the dead letters, or on their way if those before them have left.
    pub(super) fn park_followers(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.follower_lanes) {
            let head = self.lanes.get(&key).and_then(|lane| lane.queue.front().copied());
            let Some(head) = head.filter(|head| self.followers.contains(head)) else { continue };
            let Some(event) = self.items.get(&head).map(|item| Arc::clone(&item.event)) else { continue };
            if !self.lanes.is_head(head, &event) {
                continue;
            }
            if self.lot.holds(&event) {
                self.park_behind(&event.key, &event.joins, now);
            } else {
                self.stay(&event);
            }
        }
    }

    /// It need not follow, and neither may those behind it.
    fn stay(&mut self, event: &Event) {
        let (lanes, items, lot) = (&self.lanes, &self.items, &self.lot);
        let here = event.keys().filter_map(|key| lanes.get(key)).flat_map(|lane| lane.queue.iter());
        let stays = |position: &&Position| items.get(position).is_some_and(|item| !lot.holds(&item.event));
        for position in here.filter(stays) {
            self.followers.remove(position);
        }
        self.settle_event(event);
    }

    /// The parked events of these keys that are in the window go back to the lot, but for what is on the wire.
    pub(super) fn give_back(&mut self, key: &Arc<str>, joins: &Joins, now: Instant) {
        for position in self.lot.taken_of(key, joins) {
            match self.items.get(&position).filter(|item| item.parked) {
                Some(item) if item.is_out() => continue,
                Some(_) => self.drop_parked(position),
                // What is still to come will not be looked at.
                None => self.has_come(position),
            }
            self.lot.put_back(position, now);
        }
        self.park_behind(key, joins, now);
    }
}
