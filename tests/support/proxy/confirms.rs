//! The confirms of one connection: lost, late, merged, out of order.
//!
//! Returns are let through as they come, and only confirms that have come are released, so no confirm gets ahead of a return.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Shared;
use super::amqp::{Frame, confirm_frame};
use super::evidence::What;
use super::mischief::Active;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ack,
    Nack,
}

pub(super) struct Confirms {
    connection: u64,
    shared: Arc<Shared>,
    channels: HashMap<u16, Channel>,
    rng: StdRng,
}

/// Tags count from 1 on each channel, without gaps.
#[derive(Default)]
struct Channel {
    /// Came from the broker, neither dropped nor released yet. Their returns have been let through.
    waiting: BTreeMap<u64, Kind>,
    come: Tags,
    released: Tags,
    /// Returned messages in lapin's queue, if it takes one with each confirm.
    returns: u64,
}

/// A set of tags that has few gaps.
struct Tags {
    /// It has all below this.
    below: u64,
    above: BTreeSet<u64>,
}

impl Default for Tags {
    fn default() -> Self {
        Tags { below: 1, above: BTreeSet::new() }
    }
}

impl Tags {
    fn contains(&self, tag: u64) -> bool {
        tag < self.below || self.above.contains(&tag)
    }

    fn insert(&mut self, tag: u64) {
        if tag >= self.below {
            self.above.insert(tag);
        }
        while self.above.remove(&self.below) {
            self.below += 1;
        }
    }
}

impl Confirms {
    pub(super) fn new(connection: u64, shared: Arc<Shared>) -> Self {
        let rng = StdRng::seed_from_u64(shared.seed.wrapping_add(connection));
        Confirms { connection, shared, channels: HashMap::new(), rng }
    }

    pub(super) fn returned(&mut self, number: u16) {
        self.channels.entry(number).or_default().returns += 1;
        self.shared.evidence().note(self.connection, number, What::Return);
    }

    pub(super) fn forget(&mut self, number: u16) {
        self.channels.remove(&number);
    }

    pub(super) fn take(&mut self, frame: &Frame, kind: Kind, out: &mut Vec<u8>) {
        let number = frame.channel();
        let (tag, multiple) = frame.confirm();
        let shared = Arc::clone(&self.shared);
        let mut active = shared.active();
        let channel = self.channels.entry(number).or_default();
        let first = if multiple { channel.come.below } else { tag };
        let passes = !active.touches_confirms() && channel.waiting.is_empty() && channel.has_lost_nothing();
        if passes {
            for tag in first..=tag {
                channel.come.insert(tag);
                channel.released.insert(tag);
            }
            channel.returns = 0;
            let what = what(kind, tag, multiple);
            shared.evidence().note(self.connection, number, what);
            return out.extend_from_slice(&frame.bytes);
        }
        for tag in first..=tag {
            if channel.come.contains(tag) {
                continue;
            }
            channel.come.insert(tag);
            if active.drop_all || active.drop_next > 0 {
                active.drop_next = active.drop_next.saturating_sub(1);
                shared.evidence().counts.dropped += 1;
            } else {
                channel.waiting.insert(tag, kind);
            }
        }
        if !active.holds_confirms() {
            let active = active.clone();
            self.release(number, usize::MAX, &active, out);
        }
    }

    pub(super) fn release_channel(&mut self, number: u16, out: &mut Vec<u8>) {
        let active = self.shared.active().clone();
        self.release(number, usize::MAX, &active, out);
        self.channels.remove(&number);
    }

    pub(super) fn release_all(&mut self, out: &mut Vec<u8>) {
        let numbers: Vec<u16> = self.channels.keys().copied().collect();
        for number in numbers {
            self.release_channel(number, out);
        }
    }

    /// Releases some of what waits; all of it, once nothing holds it back.
    pub(super) fn tick(&mut self, out: &mut Vec<u8>) {
        let active = self.shared.active().clone();
        let mut numbers: Vec<u16> = self.channels.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let steps = match (active.holds_confirms(), active.delay) {
                (false, _) => usize::MAX,
                (true, false) => self.rng.random_range(0..=12),
                (true, true) if self.rng.random_bool(0.8) => 0,
                (true, true) => self.rng.random_range(0..=60),
            };
            self.release(number, steps, &active, out);
        }
    }

    /// In `steps` frames at most.
    fn release(&mut self, number: u16, steps: usize, active: &Active, out: &mut Vec<u8>) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let mut evidence = self.shared.evidence();
        for _ in 0..steps {
            let Some((&first, &kind)) = channel.waiting.first_key_value() else { return };
            let run = if active.merge { channel.run(first, kind) } else { Vec::new() };
            let (tag, kind, multiple) = if run.len() > 1 && self.rng.random_bool(0.4) {
                let count = self.rng.random_range(2..=run.len());
                let popped = channel.returns.min(count as u64);
                channel.returns -= popped;
                evidence.counts.merged += count as u64;
                evidence.counts.returns_in_multiple += u64::from(popped > 1);
                for tag in &run[..count] {
                    channel.waiting.remove(tag);
                    channel.released.insert(*tag);
                }
                (run[count - 1], kind, true)
            } else {
                let index = if active.reorder { self.rng.random_range(0..channel.waiting.len()) } else { 0 };
                let (&tag, &kind) = channel.waiting.iter().nth(index).unwrap();
                channel.returns = channel.returns.saturating_sub(1);
                evidence.counts.reordered += u64::from(index > 0);
                channel.waiting.remove(&tag);
                channel.released.insert(tag);
                (tag, kind, false)
            };
            out.extend(confirm_frame(number, tag, kind, multiple));
            evidence.note(self.connection, number, what(kind, tag, multiple));
        }
    }
}

fn what(kind: Kind, tag: u64, multiple: bool) -> What {
    match kind {
        Kind::Ack => What::Ack { tag, multiple },
        Kind::Nack => What::Nack { tag, multiple },
    }
}

impl Channel {
    /// A `multiple` of the broker's would confirm what was dropped.
    fn has_lost_nothing(&self) -> bool {
        self.come.below == self.released.below
    }

    /// The confirms that one `multiple` could give: equal ones, from the oldest publish on whose confirm has not been released, none of
    /// which is missing. One that was dropped ends it: a `multiple` above would confirm it after all.
    fn run(&self, first: u64, kind: Kind) -> Vec<u64> {
        let mut run = Vec::new();
        if first != self.released.below {
            return run;
        }
        let mut tag = first;
        loop {
            match self.waiting.get(&tag) {
                Some(other) if *other == kind => run.push(tag),
                _ if self.released.contains(tag) => {}
                _ => return run,
            }
            tag += 1;
        }
    }
}
