//! Which event of a lane may go next, and where it stands until it does.

use std::ops::RangeBounds;
use std::sync::Arc;

use crate::event::{Event, Joins, Ordering, Position, keys_of};
use crate::faults::{self, Bug};

use super::lane::{Lane, Place};
use super::lanes::Tie;
use super::{Hold, Item, State};

/// The one event of a lane that may go next.
enum Next {
    Nobody,
    Candidate(Position),
    /// What is first here stands in its home lane, which is this one.
    Home(Arc<str>),
    /// It may go into the dead letters, behind others that are there.
    Follower,
}

impl Hold {
    /// Puts the lane's candidate where it belongs. To be called after each change to the lane, its events or its exchange; after
    /// a change to an event [`Self::settle_event`].
    pub(super) fn settle(&mut self, key: &Arc<str>) {
        if let Some(home) = self.settle_lane(key) {
            self.settle_lane(&home);
        }
    }

    /// The lanes of an event, and what waits for it in others.
    pub(super) fn settle_event(&mut self, event: &Event) {
        self.settle_keys(&event.key, &event.joins);
    }

    pub(super) fn settle_keys(&mut self, key: &Arc<str>, joins: &Joins) {
        for key in keys_of(key, joins) {
            self.settle(key);
        }
        let Some(table) = crate::event::table_of(key) else { return };
        if *joins == Joins::Table {
            // What is behind the next barrier waits for that one.
            match self.lanes.get(table).and_then(|lane| lane.queue.front().copied()) {
                Some(barrier) => self.settle_rows(table, ..barrier),
                None => self.settle_rows(table, ..),
            }
        } else if let Some(barriers) = self.lanes.key_of_barriers(table).cloned() {
            self.settle(&barriers);
        }
    }

    /// As [`Self::settle_event`], of one that is new here: what it is before of may have to wait for it now.
    pub(super) fn settle_new(&mut self, event: &Event) {
        for key in event.keys() {
            self.settle(key);
            // Until now that may have been a candidate, in its home lane. Only what comes from the dead letters, or is given again beside
            // that, is older than what is here.
            if self.released > 0
                && let Some(second) = self.lanes.second_after(key, event.position)
                && let Some(home) = self.items.get(&second).map(|item| Arc::clone(&item.event.key))
            {
                self.settle_lane(&home);
            }
        }
        let Some(table) = event.table() else { return };
        if event.joins == Joins::Table {
            self.settle_rows(table, event.position..);
        } else if let Some(barriers) = self.lanes.key_of_barriers(table).cloned() {
            self.settle(&barriers);
        }
    }

    fn settle_rows(&mut self, table: &str, range: impl RangeBounds<Position>) {
        for position in self.lanes.rows(table, range) {
            let Some(key) = self.items.get(&position).map(|item| Arc::clone(&item.event.key)) else { continue };
            self.settle_lane(&key);
        }
    }

    /// Returns the home of the lane's first event, if that is another lane: it may go by now, or no longer.
    fn settle_lane(&mut self, key: &Arc<str>) -> Option<Arc<str>> {
        let lane = self.lanes.get(key)?;
        let (was, was_held) = (lane.place, lane.held);
        let mut home = None;
        let place = match self.next(key, lane) {
            Next::Nobody => Place::Nowhere,
            Next::Candidate(position) => self.place(position).unwrap_or_default(),
            Next::Home(key) => {
                home = Some(key);
                Place::Nowhere
            }
            Next::Follower => {
                self.follower_lanes.push(Arc::clone(key));
                Place::Nowhere
            }
        };
        if was != place {
            self.leave(was);
            self.enter(place);
        }
        let lane = self.lanes.get_mut(key)?;
        lane.place = place;
        if lane.poisoned > 0 {
            self.poisoned_keys.push(Arc::clone(key));
        }
        lane.held = lane.is_stuck() || matches!(place, Place::Exchange(_));
        self.held_keys = self.held_keys + usize::from(lane.held) - usize::from(was_held);
        if lane.queue.is_empty() && lane.coming == 0 {
            self.lanes.remove(key);
        }
        home
    }

    /// The one event of the lane that may go next (rule R3).
    ///
    /// That is its head, or, while nothing of the lane is held, the first pipelined event behind a run of pipelined events
    /// that are all on the wire. An event of ordering `key`, or of several keys, neither overtakes nor is overtaken.
    ///
    /// While parked events of the key are on their way from the database, nothing goes: they come first.
    fn next(&self, key: &Arc<str>, lane: &Lane) -> Next {
        self.head(key, lane).unwrap_or(Next::Nobody)
    }

    fn head(&self, key: &Arc<str>, lane: &Lane) -> Option<Next> {
        if lane.coming > 0 {
            return None;
        }
        let tried_again = |event: &Position| self.items.get(event).is_some_and(|item| item.retry_at.is_some());
        let passed = |event: &&Position| faults::seeded(Bug::RetryWithoutHold) && tried_again(event);
        let head = *lane.queue.iter().find(|event| !passed(event)).or(lane.queue.front())?;
        let item = self.items.get(&head)?;
        match item.state {
            State::Waiting if item.tie == Tie::Pair && *key != item.event.key => {
                Some(Next::Home(Arc::clone(&item.event.key)))
            }
            State::Waiting if self.is_to_follow(head) => {
                self.lanes.is_head(head, &item.event).then_some(Next::Follower)
            }
            // A parked event may come before what is on the wire: what is older than it, and was seen again.
            State::Waiting if lane.on_wire > 0 && item.ordering() == Ordering::Key => None,
            State::Waiting => self.is_open(head, item).then_some(Next::Candidate(head)),
            State::OnWire { .. } if !lane.is_stuck() && item.ordering() == Ordering::Pipelined => {
                let next = *lane.queue.get(lane.on_wire)?;
                let item = self.items.get(&next)?;
                let free = matches!(item.state, State::Waiting)
                    && item.ordering() == Ordering::Pipelined
                    && !self.is_to_follow(next)
                    && self.is_open(next, item);
                free.then_some(Next::Candidate(next))
            }
            State::OnWire { .. } | State::Probing { .. } | State::Poisoned(_) | State::Parking => None,
        }
    }

    fn is_to_follow(&self, position: Position) -> bool {
        !self.followers.is_empty() && self.followers.contains(&position)
    }

    fn is_open(&self, position: Position, item: &Item) -> bool {
        item.tie == Tie::Alone || self.lanes.is_open(position, item)
    }

    /// Where the lane's candidate belongs.
    pub(super) fn place_of_candidate(&self, key: &Arc<str>, lane: &Lane) -> Place {
        match self.next(key, lane) {
            Next::Candidate(position) => self.place(position).unwrap_or_default(),
            Next::Nobody | Next::Home(_) | Next::Follower => Place::Nowhere,
        }
    }

    fn place(&self, position: Position) -> Option<Place> {
        let item = self.items.get(&position)?;
        Some(match item.retry_at {
            _ if !self.failing.is_empty() && self.failing.contains_key(&item.event.route.exchange) => {
                Place::Exchange(position)
            }
            Some(at) => Place::Timer(at, position),
            None => Place::Ready(position),
        })
    }

    fn enter(&mut self, place: Place) {
        match place {
            Place::Nowhere => {}
            Place::Ready(position) if self.suspects.contains(position) => {
                self.ready_suspects.insert(position);
            }
            Place::Ready(position) => {
                self.ready.insert(position);
            }
            Place::Timer(at, position) => {
                self.timers.insert((at, position));
            }
            Place::Exchange(position) => {
                let Some(item) = self.items.get(&position) else { return };
                let Some(failing) = self.failing.get_mut(&item.event.route.exchange) else { return };
                failing.waiting.insert(position);
                if item.parked && failing.fed != Some(position) {
                    self.stranded.push(position);
                }
            }
        }
    }

    fn leave(&mut self, place: Place) {
        match place {
            Place::Nowhere => {}
            Place::Ready(position) => {
                self.ready.remove(&position);
                self.ready_suspects.remove(&position);
            }
            Place::Timer(at, position) => {
                self.timers.remove(&(at, position));
            }
            // The item, which knows the exchange, may be gone by now.
            Place::Exchange(position) => {
                for failing in self.failing.values_mut() {
                    failing.waiting.remove(&position);
                }
            }
        }
    }
}
