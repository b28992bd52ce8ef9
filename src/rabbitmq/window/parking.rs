//! What the window does for the parking lot: errands to the database, and what they bring back.

use std::time::Instant;

use super::Window;
use crate::dead_letters::desk::Answer;
use crate::event::Position;
use crate::faults::{self, Bug};
use crate::postgres::dead_letters::{Look, Marked};
use crate::rabbitmq::publisher::BrokerError;

impl Window<'_> {
    /// What the parking lot has for the database.
    pub(super) fn park_and_release(&mut self, now: Instant, releasing: bool) {
        let errands = self.hold.errands(now, releasing && self.desk.is_open());
        for letter in &errands.park {
            self.published.remove(&letter.event.position);
            self.broker.journal.parked(letter);
        }
        for failed in &errands.failed {
            self.published.remove(&failed.position);
        }
        let early: Vec<Position> = match faults::seeded(Bug::ResolveBeforeParking) {
            true => errands.park.iter().map(|letter| letter.event.position).collect(),
            false => Vec::new(),
        };
        self.desk.carry_out(errands);
        for displaced in self.hold.take_displaced() {
            self.broker.journal.displaced(&displaced);
        }
        let mut tickets = self.hold.take_resolved();
        tickets.extend(self.hold.stored(early));
        self.resolve(tickets);
    }

    pub(super) fn answered(&mut self, answer: Answer, now: Instant) -> Result<(), BrokerError> {
        match answer {
            Answer::Loaded { relay_epoch, letters } => {
                self.relay_epoch = relay_epoch;
                let routes = &self.broker.config.routes;
                let policy = |name: &str| {
                    let route = routes.iter().find(|route| route.name == name);
                    route.map_or_else(Default::default, |route| (route.ordering, route.on_unroutable))
                };
                self.hold.load(letters, policy, now);
            }
            Answer::Parked(positions) => {
                let tickets = self.hold.stored(positions);
                self.resolve(tickets);
            }
            Answer::Removed | Answer::FailedAgain => {}
            Answer::Fetched { asked, contents, unreadable } => {
                for letter in unreadable {
                    self.broker.journal.unreadable(&letter);
                    self.hold.unreadable(letter.position, letter.why, now);
                }
                self.hold.fetched(&asked, contents, now);
            }
            Answer::Looked(look) => self.looked(&look, now)?,
        }
        self.desk.go_on();
        Ok(())
    }

    fn looked(&mut self, look: &Look, now: Instant) -> Result<(), BrokerError> {
        let exact = self.desk.look_is_exact();
        if exact && usize::try_from(look.count) != Ok(self.hold.lot().stored()) {
            return Err(BrokerError::DeadLettersChanged);
        }
        let mut discarded = Vec::new();
        for Marked { position, event_id, mark } in &look.marks {
            let route = self.hold.lot().route(*position).map(str::to_owned);
            if self.hold.mark(*position, *mark, now) {
                self.broker.journal.discarded_by_a_person(event_id, *position, route.as_deref().unwrap_or_default());
                discarded.push(*position);
            }
        }
        self.desk.remove(discarded);
        Ok(())
    }
}
