//! The core, glued together as the session and the publisher do it, between the WAL and the broker.

mod checks;
mod lot;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use postrider::config::Limits;
use postrider::confirms::{AttemptId, Decided, Judge, Outcome, Verdict};
use postrider::event::{Poison, PoisonReason, Position, Ticket};
use postrider::hold::{ChannelFault, ChannelJudgement, Decision, Hold, Probe, ProbeOutcome, Refusal, Suspects};
use postrider::lsn::Lsn;
use postrider::progress::Progress;

use crate::account::Account;
use crate::broker::{Broker, ExchangeState, Fate, QueueState};
use crate::lapin::Lapin;
use crate::wal::{self, Row, Wal};
use crate::world::lot::Lot;

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// What was broken, and the history that shows it.
pub(crate) type Checked<T = ()> = Result<T, String>;

pub(crate) struct World {
    pub(crate) wal: Wal,
    pub(crate) broker: Broker,
    limits: Limits,
    now: Instant,
    // The session.
    session: u64,
    pub(crate) progress: Progress,
    /// The slot's confirmed LSN.
    confirmed: Lsn,
    next_record: usize,
    /// Rows of the open transaction that have been read.
    read_rows: usize,
    /// Given in this session, and in the sessions before.
    tickets: Vec<Ticket>,
    old_tickets: Vec<Ticket>,
    // The publisher.
    pub(crate) hold: Hold,
    channel: u64,
    judge: Judge,
    lapin: Lapin,
    attempts: Vec<Attempt>,
    /// By attempt, until its verdict: its tag, and whether its future has ended.
    tags: BTreeMap<AttemptId, (u64, bool)>,
    next_poll: usize,
    fault: Option<ChannelFault>,
    probes: VecDeque<Probe>,
    pub(crate) lot: Lot,
    // The account.
    account: Account,
    seen_accepted: usize,
    acknowledged: Lsn,
    pub(crate) history: Vec<String>,
}

#[derive(Clone, Copy)]
struct Attempt {
    id: AttemptId,
    tag: u64,
    ended: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        let limits = Limits {
            window: 5,
            waiting: 6,
            confirm_timeout: CONFIRM_TIMEOUT,
            retry_max: Duration::from_secs(4),
            hold_for: Duration::from_secs(3),
            max_parked: 12,
            ..Limits::default()
        };
        let mut lapin = Lapin::default();
        let mut broker = Broker::new();
        let start = Lsn(100);
        World {
            wal: Wal::new(),
            channel: broker.new_channel(0, &mut lapin),
            broker,
            hold: Hold::with_seed(&limits, Suspects::default(), 1),
            limits,
            now: Instant::now(),
            session: 1,
            progress: Progress::new(1, start),
            confirmed: start,
            next_record: 0,
            read_rows: 0,
            tickets: Vec::new(),
            old_tickets: Vec::new(),
            judge: Judge::new(),
            lapin,
            attempts: Vec::new(),
            tags: BTreeMap::new(),
            next_poll: 0,
            fault: None,
            probes: VecDeque::new(),
            lot: Lot::default(),
            account: Account::default(),
            seen_accepted: 0,
            acknowledged: start,
            history: Vec::new(),
        }
    }

    fn note(&mut self, what: String) {
        self.history.push(what);
    }

    fn check(&self, holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(format!("{}\n  {}", otherwise(), self.history.join("\n  "))) }
    }

    // The session: reads, reports, ends.

    /// Reads one message of the stream, if there is room. Returns whether it did.
    pub(crate) fn read(&mut self) -> Checked<bool> {
        let Some(record) = self.wal.records.get(self.next_record).cloned() else { return Ok(false) };
        if !self.hold.has_room() {
            return Ok(false);
        }
        if !record.transactional {
            self.note(format!("read message {} ({} rows)", record.end, record.rows.len()));
            match record.rows.first() {
                Some(row) => {
                    let ticket = self.progress.message(record.end).unwrap();
                    self.insert(*row, wal::position(record.lsn, 0), ticket)?;
                }
                None => self.progress.empty_message(record.end).unwrap(),
            }
            self.next_record += 1;
        } else if !self.progress.is_transaction_open() {
            self.note(format!("read begin {}", record.lsn));
            self.progress.begin().unwrap();
        } else if let Some(row) = record.rows.get(self.read_rows) {
            let ticket = self.progress.event().unwrap();
            self.insert(*row, wal::position(record.lsn, self.read_rows), ticket)?;
            self.read_rows += 1;
        } else {
            self.note(format!("read commit, end {}", record.end));
            self.progress.commit(record.end, wal::time(record.end)).unwrap();
            self.read_rows = 0;
            self.next_record += 1;
        }
        Ok(true)
    }

    fn insert(&mut self, row: Row, position: Position, ticket: Ticket) -> Checked {
        self.note(format!("read {} of k{} {:?}, {:?}", short(position), row.key, row.joins, row.ordering()));
        self.tickets.push(ticket);
        let inserted = self.hold.insert(row.event(position, ticket, !self.broker.tolerant), self.now);
        self.check(inserted.is_ok(), || format!("an event was refused: {inserted:?}"))?;
        if row.unfit {
            self.account.judged(position, &self.wal);
        }
        self.resolved_by_themselves()
    }

    /// The walsender's keepalive: the end of what it has decoded, which inside a transaction is before that one.
    pub(crate) fn keepalive(&mut self) {
        let next = self.wal.records.get(self.next_record);
        let end = match next {
            Some(next) if next.transactional => Lsn(next.lsn.0 - 5),
            Some(next) => Lsn(next.end.0 - 10),
            None => self.wal.end,
        };
        self.note(format!("keepalive {end}"));
        self.progress.keepalive(end);
    }

    pub(crate) fn feedback(&mut self) {
        self.confirmed = self.progress.acknowledged();
    }

    pub(crate) fn end_session(&mut self, processed: usize) {
        let suspects = self.hold.suspects().clone();
        self.note(format!("session {} ends, confirmed {}", self.session, self.confirmed));
        self.session += 1;
        self.progress = Progress::new(self.session, self.confirmed);
        self.acknowledged = self.confirmed;
        self.next_record = self.wal.first_after(self.confirmed);
        self.read_rows = 0;
        self.hold = Hold::with_seed(&self.limits, suspects, self.session);
        self.probes.clear();
        let letters = self.lot.take_over(processed);
        self.hold.load(letters, wal::policy, self.now);
        self.account.session_ended();
        self.new_channel(processed);
        self.old_tickets.append(&mut self.tickets);
    }

    /// What the publishers of old sessions still have to say.
    pub(crate) fn late_tickets(&mut self) -> Checked {
        for ticket in std::mem::take(&mut self.old_tickets) {
            let counted = self.progress.resolve(ticket);
            self.check(!counted, || format!("{ticket:?} of an old session was resolved"))?;
        }
        Ok(())
    }

    // The publisher: publishes, polls, judges, probes.

    pub(crate) fn publish(&mut self) -> Checked<bool> {
        if self.judge.is_closed() {
            return Ok(false);
        }
        let Some(event) = self.hold.take_next(self.now) else { return Ok(false) };
        // What had left the lot by then goes on.
        let halted = self.hold.halted().filter(|_| event.ticket != Ticket::NONE);
        let halted = halted.is_some_and(|halted| halted.position <= event.position);
        self.check(!halted, || format!("{} was published after what halts", short(event.position)))?;
        self.publishing(event.position, false)?;
        let id = self.judge.published(event.position);
        self.check(id.is_ok(), || format!("{id:?}"))?;
        let (id, tag) = (id.unwrap(), self.lapin.publish());
        self.note(format!("publish {} of {} as {}/{tag}", short(event.position), event.key, self.channel));
        self.attempts.push(Attempt { id, tag, ended: false });
        self.tags.insert(id, (tag, false));
        if self.fault.is_none() {
            self.broker.publish(tag, event.position, self.wal.rows[&event.position]);
        }
        Ok(true)
    }

    fn publishing(&mut self, position: Position, probe: bool) -> Checked {
        let allowed = self.account.publish(position, &self.wal, self.now, probe);
        self.check(allowed.is_ok(), || format!("{} {}", short(position), allowed.unwrap_err()))
    }

    /// Polls one attempt; after the last one come the verdicts.
    pub(crate) fn poll(&mut self) -> Checked {
        if let Some(attempt) = self.attempts.get_mut(self.next_poll) {
            self.next_poll += 1;
            let outcome = self.lapin.poll(attempt.tag);
            match outcome {
                Some(outcome) => {
                    attempt.ended = true;
                    self.tags.insert(attempt.id, (attempt.tag, true));
                    self.judge.outcome(attempt.id, outcome);
                }
                None => self.judge.pending(attempt.id),
            }
            let seen = format!("poll {}/{}: {}", self.channel, attempt.tag, describe(outcome));
            self.note(seen);
        }
        if self.next_poll < self.attempts.len() {
            return Ok(());
        }
        self.next_poll = 0;
        let failed = self.attempts.iter().any(|attempt| attempt.ended) && self.fault.is_some();
        self.attempts.retain(|attempt| !attempt.ended);
        self.verdicts()?;
        if failed && let Some(fault) = self.fault.take() {
            self.account.channel_lost(true);
            let judgement = self.hold.channel_failed(fault, "refused", self.now);
            match &judgement {
                ChannelJudgement::ExchangeFailing(event) | ChannelJudgement::Poisoned(event) => {
                    self.account.judged(event.position, &self.wal);
                }
                ChannelJudgement::Refused(_) | ChannelJudgement::Suspects(_) | ChannelJudgement::Nobody => {}
            }
            self.note(format!("channel {} failed, {fault:?}: {judgement:?}", self.channel).chars().take(100).collect());
            self.new_channel(0);
        }
        Ok(())
    }

    pub(crate) fn sweep(&mut self) -> Checked {
        self.poll()?;
        while self.next_poll != 0 {
            self.poll()?;
        }
        Ok(())
    }

    pub(crate) fn needs_another_pass(&self) -> bool {
        self.judge.needs_another_pass()
    }

    fn verdicts(&mut self) -> Checked {
        let mut verdicts: Vec<Decided> = Vec::new();
        self.judge.verdicts(&mut verdicts);
        for Decided { attempt, position, verdict } in verdicts {
            let (tag, ended) = self.tags.remove(&attempt).unwrap();
            self.note(format!("verdict on {}: {verdict:?}", short(position)));
            let fate = self.broker.fates.get(&(self.channel, tag)).copied();
            let (truth, refusal) = match verdict {
                Verdict::Delivered => (Some(Fate::Accepted), None),
                Verdict::Returned => (Some(Fate::Returned), Some(Refusal::Returned)),
                Verdict::Nacked => (Some(Fate::Nacked), Some(Refusal::Nacked)),
                Verdict::Undelivered => continue,
            };
            self.check(ended, || format!("{} was decided before its attempt had ended", short(position)))?;
            self.check(fate == truth, || format!("{} is {verdict:?} and was {fate:?}", short(position)))?;
            self.decide(position, refusal)?;
        }
        let unmatched = self.judge.unmatched_returns();
        self.check(unmatched == 0, || format!("{unmatched} returns were not matched"))
    }

    fn decide(&mut self, position: Position, refusal: Option<Refusal>) -> Checked {
        let Some(refusal) = refusal else {
            self.account.delivered(position);
            let delivered = self.hold.delivered(position, self.now);
            self.check(delivered.is_some(), || format!("{} was delivered and not on the wire", short(position)))?;
            let delivered = delivered.unwrap();
            let counted = self.progress.resolve(delivered.ticket) != delivered.released.is_some();
            return self.check(counted, || format!("{} was resolved and did not count", short(position)));
        };
        let refused = self.hold.refused(position, refusal, self.now);
        self.check(refused.is_some(), || format!("{} was refused and not on the wire", short(position)))?;
        let refused = refused.unwrap();
        self.note(format!("{} is refused: {:?}", short(position), refused.decision));
        match refused.decision {
            Decision::Retry { at } => self.account.refused(position, at),
            Decision::Park => {
                self.account.acquit(position);
                self.account.parked(position, true);
            }
            Decision::Discard(ticket) => {
                self.account.give_up(position);
                let counted = self.progress.resolve(ticket) != (ticket == Ticket::NONE);
                return self.check(counted, || format!("{} was discarded and did not count", short(position)));
            }
        }
        Ok(())
    }

    pub(crate) fn lose_connection(&mut self, processed: usize) -> Checked {
        self.note(format!("connection of channel {} lost", self.channel));
        self.judge.channel_closed();
        self.verdicts()?;
        self.hold.wire_lost();
        self.probes.clear();
        self.account.channel_lost(false);
        self.new_channel(processed);
        Ok(())
    }

    fn new_channel(&mut self, processed: usize) {
        self.channel = self.broker.new_channel(processed, &mut self.lapin);
        self.lapin = Lapin::default();
        self.judge = Judge::new();
        self.attempts.clear();
        self.tags.clear();
        self.next_poll = 0;
        self.fault = None;
    }

    pub(crate) fn tick(&mut self, time: Duration) -> Checked {
        self.now += time;
        if !self.hold.overdue(self.now, CONFIRM_TIMEOUT).is_empty() {
            // What can be proven counts; what is still late then is refused, the rest only lost.
            self.judge.channel_closed();
            self.verdicts()?;
            let late = self.hold.overdue(self.now, CONFIRM_TIMEOUT);
            self.note(format!("{} confirms are late", late.len()));
            for position in late {
                self.decide(position, Some(Refusal::TimedOut))?;
            }
            self.lose_connection(0)?;
        }
        Ok(())
    }

    /// One turn of the publisher's loop. `releasing`: it is not to stop. When everything has been asked nothing is due.
    pub(crate) fn turn(&mut self, releasing: bool) -> Checked {
        while self.publish()? {}
        if self.judge.is_closed() {
            return Ok(());
        }
        while let Some(due) = self.hold.probe_due(self.now) {
            self.probes.push_back(due);
        }
        self.errands(releasing)?;
        let wake = self.hold.next_wake(releasing);
        self.check(wake.is_none_or(|at| at > self.now), || "something is due that nobody does".to_owned())
    }

    /// The publisher, the database and the broker do so much each, and what is confirmed is swept.
    pub(crate) fn go_on(&mut self, much: u8) -> Checked {
        for _ in 0..much {
            self.read()?;
        }
        self.turn(true)?;
        for _ in 0..much {
            self.process();
            self.confirm(0);
            self.database();
            self.hear()?;
        }
        self.sweep()?;
        self.probe()
    }

    pub(crate) fn tick_to_next(&mut self) -> Checked {
        let next = self.hold.next_wake(true).map_or(Duration::ZERO, |at| at.saturating_duration_since(self.now));
        self.tick(next)
    }

    /// Begins a probe, or ends the one that has begun.
    pub(crate) fn probe(&mut self) -> Checked {
        if let Some(due) = self.hold.probe_due(self.now) {
            self.probes.push_back(due);
            return Ok(());
        }
        let Some(Probe { exchange, event }) = self.probes.pop_front() else { return Ok(()) };
        let index = wal::EXCHANGES.iter().position(|name| *name == exchange).unwrap();
        if self.broker.exchanges[index] != ExchangeState::Present {
            self.hold.probe_ended(&exchange, ProbeOutcome::StillFailing("missing".to_owned()), self.now);
            return Ok(());
        }
        if let Some(position) = event.map(|event| event.position) {
            self.note(format!("probe {exchange} with {}", short(position)));
            self.publishing(position, true)?;
            let row = self.wal.rows[&position];
            if self.broker.fault(row).is_some() {
                let poison = Poison { reason: PoisonReason::Refused, detail: "refused".to_owned() };
                self.hold.poisoned(position, poison, self.now);
                self.account.judged(position, &self.wal);
            } else {
                let refusal = match self.broker.probe(position, row) {
                    Some(Fate::Accepted) => None,
                    Some(Fate::Returned) => Some(Refusal::Returned),
                    Some(Fate::Nacked) => Some(Refusal::Nacked),
                    None => Some(Refusal::TimedOut),
                };
                self.decide(position, refusal)?;
            }
        }
        self.hold.probe_ended(&exchange, ProbeOutcome::Passed, self.now);
        Ok(())
    }

    // The broker.

    pub(crate) fn process(&mut self) {
        if let Some(fault) = self.broker.process(&mut self.lapin) {
            self.note(format!("the broker closes channel {}: {fault:?}", self.channel));
            self.fault = Some(fault);
        }
    }

    pub(crate) fn confirm(&mut self, pick: u8) {
        self.broker.confirm(pick, &mut self.lapin);
    }

    pub(crate) fn multiple(&mut self, length: u8, seed: u64) {
        self.broker.multiple(length, seed, &mut self.lapin);
    }

    pub(crate) fn set_queue(&mut self, queue: usize, state: QueueState) {
        self.note(format!("queue q{queue} is {state:?}"));
        self.broker.set_queue(queue, state);
    }

    pub(crate) fn set_exchange(&mut self, exchange: usize, state: ExchangeState) {
        self.note(format!("exchange x{exchange} is {state:?}"));
        self.broker.exchanges[exchange] = state;
    }
}

fn describe(outcome: Option<Outcome>) -> String {
    match outcome {
        None => "pending".to_owned(),
        Some(Outcome::Ack(returned)) => format!("ack {}", returned.map(short).unwrap_or_default()),
        Some(Outcome::Nack(returned)) => format!("nack {}", returned.map(short).unwrap_or_default()),
        Some(Outcome::Failed) => "failed".to_owned(),
    }
}

fn short(position: Position) -> String {
    format!("{}.{}", position.commit.0, position.ordinal)
}
