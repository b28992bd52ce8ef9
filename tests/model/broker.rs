//! A broker that can lose bindings, run full, stand still and forget exchanges, and that knows what it accepted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use postrider::event::Position;
use postrider::hold::ChannelFault;

use crate::lapin::Lapin;
use crate::wal::{EXCHANGES, QUEUES, Row};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ExchangeState {
    #[default]
    Present,
    Missing,
    Forbidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueState {
    Open,
    Unbound,
    /// `reject-publish`.
    Full,
    /// A quorum queue without its majority: takes publishes and does not confirm them.
    Stuck,
}

/// What really became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Accepted,
    Returned,
    Nacked,
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) state: QueueState,
    /// Publishes that stand still, of channels that may be gone.
    backlog: VecDeque<(u64, u64, Position)>,
}

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) exchanges: [ExchangeState; EXCHANGES.len()],
    pub(crate) queues: [Queue; QUEUES.len()],
    /// In the order of acceptance, repeats included.
    pub(crate) accepted: Vec<Position>,
    /// By channel and tag.
    pub(crate) fates: BTreeMap<(u64, u64), Fate>,
    /// The limit that some rows exceed has been raised.
    pub(crate) tolerant: bool,
    channel: u64,
    inbox: VecDeque<(u64, Position, Row)>,
    /// Confirms that have not been sent: of the open channel, with `true` for an ack.
    unsent: BTreeMap<u64, bool>,
    /// Processed and standing still.
    held: BTreeSet<u64>,
}

impl Broker {
    pub(crate) fn new() -> Self {
        let queue = || Queue { state: QueueState::Open, backlog: VecDeque::new() };
        Broker {
            exchanges: Default::default(),
            queues: [queue(), queue(), queue()],
            accepted: Vec::new(),
            fates: BTreeMap::new(),
            tolerant: false,
            channel: 0,
            inbox: VecDeque::new(),
            unsent: BTreeMap::new(),
            held: BTreeSet::new(),
        }
    }

    /// The old channel is gone, after `processed` more of its publishes have been read.
    pub(crate) fn new_channel(&mut self, processed: usize, lapin: &mut Lapin) -> u64 {
        for _ in 0..processed {
            if self.process(lapin).is_some() {
                break;
            }
        }
        self.inbox.clear();
        self.unsent.clear();
        self.held.clear();
        self.channel += 1;
        self.channel
    }

    pub(crate) fn publish(&mut self, tag: u64, position: Position, row: Row) {
        self.inbox.push_back((tag, position, row));
    }

    /// Reads one publish. A fault closes the channel: what follows in it is dropped.
    pub(crate) fn process(&mut self, lapin: &mut Lapin) -> Option<ChannelFault> {
        let (tag, position, row) = self.inbox.pop_front()?;
        let fault = self.fault(row);
        if fault.is_some() {
            self.inbox.clear();
            self.unsent.clear();
            self.held.clear();
            lapin.on_error();
            return fault;
        }
        let queue = &mut self.queues[usize::from(row.queue)];
        let fate = match queue.state {
            QueueState::Stuck => {
                queue.backlog.push_back((self.channel, tag, position));
                self.held.insert(tag);
                return None;
            }
            QueueState::Open => Fate::Accepted,
            QueueState::Full => Fate::Nacked,
            QueueState::Unbound => Fate::Returned,
        };
        if fate == Fate::Returned {
            lapin.on_return(position);
        }
        self.record(self.channel, tag, position, fate);
        self.unsent.insert(tag, fate != Fate::Nacked);
        None
    }

    /// The probe's publish, on a channel of its own and awaited. `None`: no answer.
    pub(crate) fn probe(&mut self, position: Position, row: Row) -> Option<Fate> {
        let queue = &mut self.queues[usize::from(row.queue)];
        match queue.state {
            QueueState::Stuck => {
                queue.backlog.push_back((u64::MAX, 0, position));
                None
            }
            QueueState::Open => {
                self.accepted.push(position);
                Some(Fate::Accepted)
            }
            QueueState::Full => Some(Fate::Nacked),
            QueueState::Unbound => Some(Fate::Returned),
        }
    }

    pub(crate) fn fault(&self, row: Row) -> Option<ChannelFault> {
        match self.exchanges[usize::from(row.exchange)] {
            ExchangeState::Missing => Some(ChannelFault::NotFound),
            ExchangeState::Forbidden => Some(ChannelFault::AccessRefused),
            ExchangeState::Present if row.refused && !self.tolerant => Some(ChannelFault::PreconditionFailed),
            ExchangeState::Present => None,
        }
    }

    pub(crate) fn set_queue(&mut self, queue: usize, state: QueueState) {
        self.queues[queue].state = state;
        if state != QueueState::Stuck {
            // What has stood still was routed before the binding went.
            let fate = if state == QueueState::Full { Fate::Nacked } else { Fate::Accepted };
            for (channel, tag, position) in std::mem::take(&mut self.queues[queue].backlog) {
                self.record(channel, tag, position, fate);
                if channel == self.channel && self.held.remove(&tag) {
                    self.unsent.insert(tag, fate == Fate::Accepted);
                }
            }
        }
    }

    /// Sends one confirm, any of those that are due.
    pub(crate) fn confirm(&mut self, pick: u8, lapin: &mut Lapin) {
        if let Some((tag, ack)) = self.unsent.iter().nth(usize::from(pick) % self.unsent.len().max(1)) {
            let (tag, ack) = (*tag, *ack);
            self.unsent.remove(&tag);
            lapin.on_confirm(tag, ack);
        }
    }

    /// Sends one confirm for the first publishes of the channel, as long as all of them are due and of one kind.
    pub(crate) fn multiple(&mut self, length: u8, seed: u64, lapin: &mut Lapin) {
        let Some(kind) = self.unsent.values().next().copied() else { return };
        let before = self.held.first().copied().unwrap_or(u64::MAX);
        let alike = self.unsent.iter().take_while(|(tag, ack)| **ack == kind && **tag < before);
        let tags: Vec<u64> = alike.map(|(tag, _)| *tag).take(1 + usize::from(length)).collect();
        self.unsent.retain(|tag, _| !tags.contains(tag));
        lapin.on_multiple(tags, kind, seed);
    }

    fn record(&mut self, channel: u64, tag: u64, position: Position, fate: Fate) {
        self.fates.insert((channel, tag), fate);
        if fate == Fate::Accepted {
            self.accepted.push(position);
        }
    }
}
