//! The judge alone, on one channel of lapin.

use std::collections::{BTreeMap, BTreeSet};

use postrider::confirms::{AttemptId, Decided, Judge, Verdict};
use postrider::event::Position;
use postrider::lsn::Lsn;
use proptest::prelude::*;

use crate::core_properties::config;
use crate::lapin::Lapin;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Routed,
    Unroutable,
    Refused,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(Fate),
    /// The broker confirms one publish, any of those that wait.
    Confirm(u8),
    /// ... or the first ones of the same kind, in any order.
    Multiple(u8, u64),
    /// Polls so many attempts, going on where the last step stopped.
    Poll(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![4 => Just(Fate::Routed), 4 => Just(Fate::Unroutable), 1 => Just(Fate::Refused)].prop_map(Step::Publish),
        3 => any::<u8>().prop_map(Step::Confirm),
        2 => (any::<u8>(), any::<u64>()).prop_map(|(length, seed)| Step::Multiple(length, seed)),
        6 => (1..6_u8).prop_map(Step::Poll),
    ]
}

#[derive(Default)]
struct Channel {
    judge: Judge,
    lapin: Lapin,
    /// Published, and not yet confirmed by the broker.
    at_broker: BTreeMap<u64, Fate>,
    fates: BTreeMap<Position, Fate>,
    attempts: Vec<(AttemptId, u64)>,
    ended: BTreeSet<AttemptId>,
    next_poll: usize,
    decided: BTreeMap<Position, Verdict>,
    history: Vec<String>,
}

impl Channel {
    fn publish(&mut self, fate: Fate) {
        let commit = Lsn(self.fates.len() as u64);
        let position = Position { epoch: 0, commit, ordinal: 0, part: 0 };
        self.fates.insert(position, fate);
        let attempt = self.judge.published(position).unwrap();
        let tag = self.lapin.publish();
        self.history.push(format!("publish {}: {fate:?}", commit.0));
        self.attempts.push((attempt, tag));
        self.at_broker.insert(tag, fate);
        // The return always comes before the publish's own ack.
        if fate == Fate::Unroutable {
            self.lapin.on_return(position);
        }
    }

    fn confirm(&mut self, pick: u8) {
        let Some((tag, fate)) = self.at_broker.iter().nth(usize::from(pick) % self.at_broker.len().max(1)) else {
            return;
        };
        let (tag, ack) = (*tag, *fate != Fate::Refused);
        self.history.push(format!("confirm {}: {ack}", tag - 1));
        self.at_broker.remove(&tag);
        self.lapin.on_confirm(tag, ack);
    }

    fn multiple(&mut self, length: u8, seed: u64) {
        let Some(ack) = self.at_broker.values().next().map(|fate| *fate != Fate::Refused) else { return };
        let same = self.at_broker.iter().take_while(|(_, fate)| (**fate != Fate::Refused) == ack);
        let tags: Vec<u64> = same.map(|(tag, _)| *tag).take(1 + usize::from(length % 8)).collect();
        self.history.push(format!("confirm {tags:?} (tags from 1): {ack}, order {seed}"));
        self.at_broker.retain(|tag, _| !tags.contains(tag));
        self.lapin.on_multiple(tags, ack, seed);
    }

    fn poll(&mut self) -> Result<(), TestCaseError> {
        if let Some((attempt, tag)) = self.attempts.get(self.next_poll).copied() {
            self.next_poll += 1;
            let outcome = self.lapin.poll(tag);
            self.history.push(format!("poll {}: {outcome:?}", tag - 1));
            match outcome {
                Some(outcome) => {
                    self.judge.outcome(attempt, outcome);
                    self.ended.insert(attempt);
                }
                None => self.judge.pending(attempt),
            }
        }
        if self.next_poll < self.attempts.len() {
            return Ok(());
        }
        self.next_poll = 0;
        self.attempts.retain(|(attempt, _)| !self.ended.contains(attempt));
        let mut verdicts: Vec<Decided> = Vec::new();
        self.judge.verdicts(&mut verdicts);
        for decided in verdicts {
            let truth = match self.fates[&decided.position] {
                Fate::Routed => Verdict::Delivered,
                Fate::Unroutable => Verdict::Returned,
                Fate::Refused => Verdict::Nacked,
            };
            prop_assert_eq!(decided.verdict, truth, "event {}\n{}", decided.position.commit.0, self.history.join("\n"));
            let first = self.decided.insert(decided.position, decided.verdict).is_none();
            prop_assert!(first, "event {} was decided twice\n{}", decided.position.commit.0, self.history.join("\n"));
        }
        Ok(())
    }

    /// Whole passes, until another would change nothing.
    fn sweep(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..3 {
            self.poll()?;
            while self.next_poll != 0 {
                self.poll()?;
            }
        }
        prop_assert!(!self.judge.needs_another_pass(), "passes without end\n{}", self.history.join("\n"));
        Ok(())
    }

    fn play(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        for step in steps {
            match *step {
                Step::Publish(fate) => self.publish(fate),
                Step::Confirm(pick) => self.confirm(pick),
                Step::Multiple(length, seed) => self.multiple(length, seed),
                Step::Poll(times) => (0..times).try_for_each(|_| self.poll())?,
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(10))]

    #[test]
    fn verdicts_are_true_and_none_is_missing_in_the_end(steps in prop::collection::vec(step(), 1..60)) {
        let mut channel = Channel::default();
        channel.play(&steps)?;
        while !channel.at_broker.is_empty() {
            channel.confirm(0);
        }
        channel.sweep()?;
        prop_assert_eq!(channel.decided.len(), channel.fates.len(), "undecided\n{}", channel.history.join("\n"));
        prop_assert_eq!((channel.judge.undecided(), channel.judge.unmatched_returns()), (0, 0));
    }

    #[test]
    fn a_stuck_attempt_freezes_no_verdict_but_its_own(steps in prop::collection::vec(step(), 1..60)) {
        let mut channel = Channel::default();
        channel.publish(Fate::Routed);
        let stuck = channel.at_broker.pop_first().unwrap().0;
        channel.play(&steps)?;
        while !channel.at_broker.is_empty() {
            channel.confirm(0);
        }
        channel.sweep()?;
        // Ordinary traffic goes on: the witness.
        channel.publish(Fate::Routed);
        channel.confirm(0);
        channel.sweep()?;
        prop_assert_eq!(channel.decided.len() + 1, channel.fates.len(), "frozen\n{}", channel.history.join("\n"));
        prop_assert_eq!(stuck, 1);
    }

    #[test]
    fn on_a_failed_channel_only_what_is_proven_counts_as_delivered(
        steps in prop::collection::vec(step(), 1..60),
        polled in any::<u8>(),
    ) {
        let mut channel = Channel::default();
        channel.play(&steps)?;
        channel.lapin.on_error();
        channel.history.push(format!("the channel fails, {polled} polls follow"));
        let mut verdicts = Vec::new();
        for (attempt, tag) in channel.attempts.iter().take(usize::from(polled)) {
            if let Some(outcome) = channel.lapin.poll(*tag) {
                channel.judge.outcome(*attempt, outcome);
            }
        }
        channel.judge.channel_closed();
        channel.judge.verdicts(&mut verdicts);
        for decided in verdicts {
            let fate = channel.fates[&decided.position];
            let honest = decided.verdict != Verdict::Delivered || fate == Fate::Routed;
            prop_assert!(honest, "event {}\n{}", decided.position.commit.0, channel.history.join("\n"));
        }
        prop_assert_eq!(channel.judge.undecided(), 0);
    }
}
