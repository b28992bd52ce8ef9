use std::collections::HashMap;

use super::*;
use crate::lsn::Lsn;

const A: u64 = 1;
const B: u64 = 2;
const P: u64 = 3;
const W: u64 = 4;

fn position(commit: u64) -> Position {
    Position { epoch: 0, commit: Lsn(commit), ordinal: 0, part: 0 }
}

/// A judge whose attempts are named by the commit of their event.
#[derive(Default)]
struct Court {
    judge: Judge,
    attempts: HashMap<u64, AttemptId>,
}

impl Court {
    fn with(events: &[u64]) -> Self {
        let mut court = Court::default();
        for event in events {
            court.publish(*event);
        }
        court
    }

    fn publish(&mut self, event: u64) {
        let attempt = self.judge.published(position(event)).unwrap();
        self.attempts.insert(event, attempt);
    }

    fn pending(&mut self, event: u64) {
        self.judge.pending(self.attempts[&event]);
    }

    fn ack(&mut self, event: u64) {
        self.judge.outcome(self.attempts[&event], Outcome::Ack(None));
    }

    fn ack_with(&mut self, event: u64, returned: u64) {
        self.judge.outcome(self.attempts[&event], Outcome::Ack(Some(position(returned))));
    }

    fn outcome(&mut self, event: u64, outcome: Outcome) {
        self.judge.outcome(self.attempts[&event], outcome);
    }

    fn verdicts(&mut self) -> Vec<(u64, Verdict)> {
        let mut out = Vec::new();
        self.judge.verdicts(&mut out);
        out.iter().map(|decided| (decided.position.commit.0, decided.verdict)).collect()
    }
}

use Verdict::{Delivered, Nacked, Returned, Undelivered};

#[test]
fn an_unroutable_event_whose_return_came_with_anothers_ack_is_not_delivered() {
    let mut court = Court::with(&[A, B]);
    court.ack_with(A, B);
    court.ack(B);
    assert_eq!(court.verdicts(), [(A, Delivered), (B, Returned)]);
}

#[test]
fn an_empty_ack_says_nothing_while_the_carrier_of_its_return_may_be_unseen() {
    let mut court = Court::with(&[A, B]);
    // lapin has completed A with B's return after A was polled; B is seen first.
    court.pending(A);
    court.ack(B);
    assert_eq!(court.verdicts(), []);
    assert!(court.judge.needs_another_pass());
    court.ack_with(A, B);
    assert_eq!(court.verdicts(), [(A, Delivered), (B, Returned)]);
    assert!(!court.judge.needs_another_pass());
}

#[test]
fn a_sweep_makes_an_empty_ack_final() {
    let mut court = Court::with(&[A, B]);
    court.ack(A);
    assert_eq!(court.verdicts(), []);
    assert!(court.judge.needs_another_pass());
    court.pending(B);
    assert!(!court.judge.needs_another_pass());
    assert_eq!(court.verdicts(), [(A, Delivered)]);
}

#[test]
fn two_unroutable_events_under_one_multiple_carry_each_others_return() {
    let mut court = Court::with(&[A, B]);
    court.ack_with(A, B);
    court.ack_with(B, A);
    assert_eq!(court.verdicts(), [(A, Returned), (B, Returned)]);
}

#[test]
fn an_event_whose_own_return_still_waits_when_the_channel_fails_is_not_delivered() {
    let mut court = Court::with(&[P, B]);
    court.pending(P);
    court.ack(B);
    court.ack_with(P, B);
    court.publish(W);
    assert_eq!(court.verdicts(), [(B, Returned)]);
    // A 406: nothing is in flight any more, and P's return will never be handed out.
    court.outcome(W, Outcome::Failed);
    assert_eq!(court.verdicts(), [(P, Undelivered), (W, Undelivered)]);
}

#[test]
fn the_end_of_the_channel_decides_nothing_for_an_event_whose_own_return_may_wait() {
    let mut court = Court::with(&[P, B]);
    court.ack_with(P, B);
    court.judge.channel_closed();
    assert_eq!(court.verdicts(), [(P, Undelivered), (B, Undelivered)]);
    assert_eq!(court.judge.published(position(A)), Err(JudgeError::ChannelClosed(position(A))));
}

#[test]
fn an_attempt_that_ended_before_the_ack_but_was_seen_after_it_is_no_witness() {
    let mut court = Court::with(&[W, P, A, B]);
    // W and then P are completed, P with B's return, while P's own return waits. P is seen first.
    court.pending(W);
    court.ack_with(P, B);
    court.ack(W);
    court.pending(A);
    court.pending(B);
    assert_eq!(court.verdicts(), [(W, Delivered)]);
    assert!(!court.judge.needs_another_pass());
    court.ack_with(A, P);
    court.pending(B);
    assert_eq!(court.verdicts(), [(P, Returned)]);
}

#[test]
fn a_witness_polled_pending_after_the_ack_decides_once_it_has_been_swept() {
    let mut court = Court::with(&[P, B, W, A]);
    court.ack_with(P, B);
    court.pending(B);
    court.pending(W);
    court.pending(A);
    court.ack(W);
    // The carrier of P's return may have been completed before W: B and A were polled before W was seen.
    assert_eq!(court.verdicts(), []);
    assert!(court.judge.needs_another_pass());
    court.pending(B);
    court.pending(A);
    assert_eq!(court.verdicts(), [(P, Delivered), (W, Delivered)]);
}

#[test]
fn a_witness_does_not_clear_an_event_whose_return_comes_to_light_in_the_sweep() {
    let mut court = Court::with(&[P, B, W, A]);
    court.ack_with(P, B);
    court.pending(B);
    court.pending(W);
    court.pending(A);
    court.ack(W);
    assert_eq!(court.verdicts(), []);
    court.ack_with(A, P);
    court.pending(B);
    assert_eq!(court.verdicts(), [(P, Returned), (W, Delivered)]);
}

#[test]
fn a_witness_published_after_the_ack_decides() {
    let mut court = Court::with(&[P, B]);
    court.ack_with(P, B);
    court.publish(W);
    court.pending(B);
    court.ack(W);
    court.pending(B);
    assert_eq!(court.verdicts(), [(P, Delivered), (W, Delivered)]);
}

#[test]
fn an_unroutable_event_with_an_empty_ack_is_a_witness_as_well() {
    let mut court = Court::with(&[P, B, A]);
    court.ack_with(P, B);
    court.pending(B);
    court.pending(A);
    court.ack(B);
    // B is decided at once by its return; as a witness it still needs its sweep.
    assert_eq!(court.verdicts(), [(B, Returned)]);
    assert!(court.judge.needs_another_pass());
    court.pending(A);
    assert_eq!(court.verdicts(), [(P, Delivered)]);
}

#[test]
fn an_error_is_no_witness() {
    let mut court = Court::with(&[P, B]);
    court.ack_with(P, B);
    court.publish(W);
    court.pending(B);
    court.outcome(W, Outcome::Failed);
    court.outcome(B, Outcome::Failed);
    assert_eq!(court.verdicts(), [(P, Undelivered), (B, Undelivered), (W, Undelivered)]);
}

#[test]
fn an_ack_with_anothers_return_is_no_witness() {
    let mut court = Court::with(&[P, B, A, W]);
    court.ack_with(P, B);
    for event in [B, A, W] {
        court.pending(event);
    }
    court.ack_with(A, W);
    court.pending(B);
    court.pending(W);
    assert_eq!(court.verdicts(), []);
    assert!(!court.judge.needs_another_pass());
    court.ack_with(W, P);
    court.pending(B);
    assert_eq!(court.verdicts(), [(P, Returned), (W, Returned)]);
}

#[test]
fn when_every_attempt_has_ended_nothing_waits_for_a_witness() {
    let mut court = Court::with(&[A, B]);
    court.ack_with(A, B);
    assert_eq!(court.verdicts(), []);
    court.outcome(B, Outcome::Nack(None));
    assert_eq!(court.verdicts(), [(A, Delivered), (B, Nacked)]);
}

#[test]
fn a_nack_is_final_at_once_and_what_it_carries_decides_the_other() {
    let mut court = Court::with(&[A, B, W]);
    court.outcome(A, Outcome::Nack(Some(position(B))));
    assert_eq!(court.verdicts(), [(A, Nacked)]);
    court.pending(W);
    court.ack(B);
    assert_eq!(court.verdicts(), [(B, Returned)]);
}

#[test]
fn a_returned_event_has_no_verdict_before_its_own_attempt_has_ended() {
    let mut court = Court::with(&[A, B]);
    court.ack_with(A, B);
    court.pending(B);
    assert_eq!(court.verdicts(), []);
    assert_eq!(court.judge.published(position(B)), Err(JudgeError::AlreadyInFlight(position(B))));
    court.ack(B);
    assert_eq!(court.verdicts(), [(A, Delivered), (B, Returned)]);
    court.publish(B);
    court.ack(B);
    assert_eq!(court.verdicts(), [(B, Delivered)]);
}

#[test]
fn a_stuck_attempt_does_not_freeze_the_others() {
    let stuck = 1000;
    let mut court = Court::with(&[stuck]);
    for event in 0..100 {
        court.publish(event);
        court.ack(event);
        court.pending(stuck);
        assert_eq!(court.verdicts(), [(event, Delivered)]);
    }
    // Slots are used again: the stuck one does not make the judge grow.
    assert_eq!(court.judge.slots.len(), 2);
    assert_eq!(court.judge.undecided(), 1);
}

#[test]
fn acks_that_are_proven_in_the_pass_that_shows_the_failure_count() {
    let mut court = Court::with(&[A, B, W]);
    court.ack(A);
    court.outcome(B, Outcome::Failed);
    court.outcome(W, Outcome::Failed);
    assert_eq!(court.verdicts(), [(A, Delivered), (B, Undelivered), (W, Undelivered)]);
}

#[test]
fn an_empty_ack_that_is_not_swept_when_the_channel_fails_is_not_delivered() {
    let mut court = Court::with(&[A, B, W]);
    court.pending(B);
    court.ack(A);
    court.outcome(W, Outcome::Failed);
    assert_eq!(court.verdicts(), [(A, Undelivered), (B, Undelivered), (W, Undelivered)]);
}

#[test]
fn a_return_that_belongs_to_nobody_is_counted() {
    let mut court = Court::with(&[A, B]);
    court.ack_with(A, P);
    assert_eq!(court.judge.unmatched_returns(), 1);
    court.ack_with(B, B);
    assert_eq!(court.judge.unmatched_returns(), 1);
    assert_eq!(court.verdicts(), [(A, Delivered), (B, Returned)]);
}

#[test]
fn what_comes_after_the_verdict_changes_nothing() {
    let mut court = Court::with(&[A, B]);
    court.judge.channel_closed();
    assert_eq!(court.verdicts(), [(A, Undelivered), (B, Undelivered)]);
    court.ack(A);
    court.pending(B);
    assert_eq!(court.verdicts(), []);
}
