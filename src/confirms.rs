//! The judging of confirms (rule R2): verdicts belong to attempts, returns are matched by position, witnesses decide.
//!
//! # What lapin does
//! RabbitMQ sends the `basic.return` of an unroutable publish before that publish's ack; the return names no delivery tag.
//! lapin 4.12 puts returns into one FIFO a channel (`returned_messages.rs`) and takes one out for *whatever* confirm it
//! completes next, ack or nack, without comparing anything (`acknowledgement.rs`, `complete_pending`); a `multiple`
//! confirm completes its tags in the order of a hash map (`complete_pending_before`). So an `Ack` that carries nothing may
//! belong to an unroutable message, and one that carries a return may belong to a delivered one. lapin completes confirms
//! on a thread of its own: a pass over the futures sees a mixture of earlier and later states.
//!
//! # Why the judgement is sound
//! Write *c(X)* for the instant at which lapin completes attempt X. X's own return, if it has one, enters the FIFO before
//! *c(X)*, and leaves it with the completion of some attempt, its carrier.
//! * **`Ack(None)`**: the FIFO was empty at *c(X)*, so the carrier of X's return was completed before *c(X)*, hence before
//!   X was seen. An attempt that was polled Pending after X was seen, or published after it, is not the carrier. Once that
//!   holds for all that are pending (a *sweep*), the carrier, if there is one, has been seen, and with it the return.
//! * **`Ack(Some(another's))`**: the FIFO was not empty and X's return may still be in it. Take an attempt W that was polled
//!   Pending after X was seen, or published after it (so *c(W)* > *c(X)*), and that has ended with `None` (so the FIFO was
//!   empty at *c(W)*): X's return had left it by then, and the sweep after W was seen shows its carrier. W is X's
//!   **witness**. An attempt that ended before X but was *seen* after it is none: what counts is its last Pending poll.
//! * **All have ended**: each return enters before the completion of its own attempt and each completion takes one, so the
//!   FIFO is empty after the last completion: all returns have been seen.
//! * An attempt that ended in an error took nothing from the FIFO, so it proves nothing (no witness); after it, returns that
//!   still wait in the FIFO will never be handed out, so what is undecided stays unproven: undelivered.
//!
//! Time is a logical clock that advances with each call, so the calls must have the order of the polls: report the result
//! of one poll before making the next, and call [`Judge::published`] before the publish is handed to lapin.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::event::Position;
use crate::faults::{self, Bug};

/// Judges the attempts of one AMQP channel. A new channel gets a new one.
#[derive(Debug, Default)]
pub struct Judge {
    /// Attempts without a verdict. A slot is used again, so the length is bounded by the window.
    slots: Vec<Option<Attempt>>,
    free: Vec<usize>,
    /// The undecided attempt of each event: there is at most one.
    by_position: FxHashMap<Position, usize>,
    clock: u64,
    next_number: u64,
    /// Attempts without an outcome.
    pending: usize,
    /// Outcomes that carried nothing and are not yet swept, in the order in which they were seen.
    empty_handed: VecDeque<EmptyHanded>,
    /// When the newest outcome was seen.
    newest_outcome: u64,
    /// The latest last-Pending time of any swept witness: it speaks for every ack that was seen before it.
    witness: u64,
    closed: bool,
    unmatched_returns: u64,
}

/// One publish on the channel. Ordered like the publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    number: u64,
    slot: usize,
}

/// How an attempt's future ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The position is that of the returned message that came with it, which may be another event's.
    Ack(Option<Position>),
    Nack(Option<Position>),
    /// The future ended in an error: the channel is gone.
    Failed,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Confirmed and not returned.
    Delivered,
    /// No queue took it.
    Returned,
    /// A queue refused it.
    Nacked,
    /// Nothing is known of it: the channel was lost.
    Undelivered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    pub attempt: AttemptId,
    pub position: Position,
    pub verdict: Verdict,
}

/// The caller broke the contract of [`Judge::published`]; publishing would make returns ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JudgeError {
    #[error("event {0} is already in flight on this channel; the channel has to be replaced")]
    AlreadyInFlight(Position),
    #[error("the channel is closed; event {0} has to be published on a new one")]
    ChannelClosed(Position),
}

#[derive(Debug)]
struct Attempt {
    number: u64,
    position: Position,
    /// When it was last polled Pending, or published.
    last_pending: u64,
    ended: Option<Ended>,
    /// Its own return has been seen, whoever carried it.
    returned: bool,
}

#[derive(Clone, Copy, Debug)]
enum Ended {
    AckAlone { seen: u64 },
    AckWithReturn { seen: u64 },
    Nack,
    Failed,
}

#[derive(Debug)]
struct EmptyHanded {
    seen: u64,
    last_pending: u64,
}

impl Judge {
    pub fn new() -> Self {
        Judge::default()
    }

    /// The event is about to be published. Call it before lapin gets the message.
    pub fn published(&mut self, position: Position) -> Result<AttemptId, JudgeError> {
        if self.closed {
            return Err(JudgeError::ChannelClosed(position));
        }
        if self.by_position.contains_key(&position) {
            return Err(JudgeError::AlreadyInFlight(position));
        }
        let (number, last_pending) = (self.next_number, self.tick());
        let attempt = Attempt { number, position, last_pending, ended: None, returned: false };
        self.next_number += 1;
        self.pending += 1;
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(attempt),
            None => self.slots.push(Some(attempt)),
        }
        self.by_position.insert(position, slot);
        Ok(AttemptId { number, slot })
    }

    /// The attempt was polled and had no result. One that has its verdict is ignored.
    pub fn pending(&mut self, id: AttemptId) {
        let now = self.tick();
        if let Some(attempt) = self.attempt(id) {
            attempt.last_pending = now;
        }
    }

    /// The attempt was polled and has ended. One that has ended before, or has its verdict, is ignored.
    pub fn outcome(&mut self, id: AttemptId, outcome: Outcome) {
        let seen = self.tick();
        self.newest_outcome = seen;
        let Some(attempt) = self.attempt(id) else { return };
        let (last_pending, own) = (attempt.last_pending, attempt.position);
        let (ended, carried) = match outcome {
            Outcome::Ack(None) => (Ended::AckAlone { seen }, None),
            Outcome::Ack(returned) => (Ended::AckWithReturn { seen }, returned),
            Outcome::Nack(returned) => (Ended::Nack, returned),
            Outcome::Failed => (Ended::Failed, None),
        };
        attempt.ended = Some(ended);
        self.pending -= 1;
        match (outcome, carried) {
            (Outcome::Failed, _) => self.closed = true,
            (_, None) => self.empty_handed.push_back(EmptyHanded { seen, last_pending }),
            (_, Some(position)) => self.returned(if faults::seeded(Bug::ReturnsInFifo) { own } else { position }),
        }
    }

    /// The channel is gone: everything that is undecided becomes [`Verdict::Undelivered`].
    pub fn channel_closed(&mut self) {
        self.closed = true;
    }

    /// Appends what is decided now, in the order of the publishes. To be called after each pass over the pending attempts;
    /// an attempt's verdict is given once.
    ///
    /// In the pass that shows that the channel has failed, acks that are proven without the failed attempts still count.
    pub fn verdicts(&mut self, out: &mut Vec<Decided>) {
        let horizon = self.horizon();
        while let Some(swept) = self.empty_handed.front().filter(|outcome| outcome.seen < horizon) {
            self.witness = self.witness.max(swept.last_pending);
            self.empty_handed.pop_front();
        }
        let first = out.len();
        for slot in 0..self.slots.len() {
            let Some(Some(attempt)) = self.slots.get(slot) else { continue };
            let Some(verdict) = self.verdict(attempt, horizon) else { continue };
            let (number, position) = (attempt.number, attempt.position);
            if attempt.ended.is_none() {
                self.pending -= 1;
            }
            out.push(Decided { attempt: AttemptId { number, slot }, position, verdict });
            self.by_position.remove(&position);
            self.free.push(slot);
            if let Some(decided) = self.slots.get_mut(slot) {
                *decided = None;
            }
        }
        if let Some(decided) = out.get_mut(first..) {
            decided.sort_unstable_by_key(|decided| decided.attempt);
        }
    }

    /// Polling the pending attempts once more would make something final that has been seen already. To be asked after
    /// [`Self::verdicts`]. A pass that sees no further outcome ends it.
    pub fn needs_another_pass(&self) -> bool {
        // A sweep is what every ack without a return waits for, and every witness: without any there is nothing to gain.
        let Some(latest) = self.empty_handed.iter().map(|outcome| outcome.last_pending).max() else { return false };
        let horizon = self.horizon();
        !self.closed
            && self.slots.iter().flatten().any(|attempt| match attempt.ended {
                Some(Ended::AckAlone { seen }) => seen > horizon,
                Some(Ended::AckWithReturn { seen }) => seen < latest,
                Some(Ended::Nack | Ended::Failed) | None => false,
            })
    }

    /// An attempt has failed, or the channel was closed: nothing can be published on it any more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether another pass has to poll this attempt: the newest outcome was seen after its last poll. Polling the others again
    /// would prove nothing more.
    pub fn is_behind(&self, id: AttemptId) -> bool {
        let attempt = self.slots.get(id.slot).and_then(Option::as_ref);
        attempt.is_some_and(|attempt| attempt.number == id.number && attempt.last_pending < self.newest_outcome)
    }

    /// Attempts without a verdict.
    pub fn undecided(&self) -> usize {
        self.by_position.len()
    }

    /// Returns of events that have no undecided attempt here, or whose return was seen before. Not zero: the channel does
    /// not keep to what the judgement rests on, and is to be treated as broken.
    pub fn unmatched_returns(&self) -> u64 {
        self.unmatched_returns
    }

    /// The oldest last-Pending time of all attempts without an outcome: what was seen before it has been swept.
    fn horizon(&self) -> u64 {
        if self.pending == 0 {
            return u64::MAX;
        }
        let pending = self.slots.iter().flatten().filter(|attempt| attempt.ended.is_none());
        pending.map(|attempt| attempt.last_pending).min().unwrap_or(u64::MAX)
    }

    fn verdict(&self, attempt: &Attempt, horizon: u64) -> Option<Verdict> {
        let all_ended = self.pending == 0 && !self.closed;
        match attempt.ended {
            None if faults::seeded(Bug::AckBeforeConfirm) => Some(Verdict::Delivered),
            Some(Ended::Nack) if faults::seeded(Bug::NackIsAck) => Some(Verdict::Delivered),
            Some(Ended::Nack) => Some(Verdict::Nacked),
            Some(Ended::AckAlone { .. } | Ended::AckWithReturn { .. }) if attempt.returned => Some(Verdict::Returned),
            Some(Ended::AckAlone { seen }) if seen < horizon => Some(Verdict::Delivered),
            Some(Ended::AckWithReturn { seen }) if seen < self.witness || all_ended => Some(Verdict::Delivered),
            Some(_) | None => self.closed.then_some(Verdict::Undelivered),
        }
    }

    fn returned(&mut self, position: Position) {
        let slot = self.by_position.get(&position).and_then(|slot| self.slots.get_mut(*slot)).and_then(Option::as_mut);
        match slot {
            Some(attempt) if !attempt.returned => attempt.returned = true,
            _ => self.unmatched_returns += 1,
        }
    }

    /// The attempt, if it has no outcome yet.
    fn attempt(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let attempt = self.slots.get_mut(id.slot)?.as_mut()?;
        (attempt.number == id.number && attempt.ended.is_none()).then_some(attempt)
    }

    /// Strictly increasing, from 1: no two things happen at the same time, and `witness` 0 speaks for none.
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests;
