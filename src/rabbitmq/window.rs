//! One session's publishing: a loop that awaits nothing but the next thing that happens.
//!
//! What may go next, and what a verdict means, the [`Hold`] decides; what a confirm proves, the judge of the
//! [`Wire`]; here is only what happens when (rule R5):
//! * **broker failure** (connection lost, or nothing confirmed in time): a new connection, everything unresolved again;
//! * **channel error**: the same, and the suspects go one by one;
//! * **blocked**: the connection is kept, nothing is published, no time runs out.

mod parking;

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustc_hash::FxHashSet;
use tokio::sync::mpsc;

use super::channel::{PublishError, Sending, Wire};
use super::connection::{self, Change, ConnectError, Link, Purpose, reply};
use super::outage::Outage;
use super::probe::{EventOutcome, Probed, probe};
use super::publisher::{Batch, Broker, BrokerError};
use crate::confirms::{Decided, Verdict};
use crate::dead_letters::desk::{Answer, Desk};
use crate::event::{Position, Ticket};
use crate::faults::{self, Point};
use crate::hold::{ChannelFault, Decision, Hold, ProbeOutcome, Refusal};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Opened = Result<(Option<Link>, Wire), OpenError>;

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("RabbitMQ opened no channel: {0}")]
    Channel(#[source] lapin::Error),
}

pub(super) struct Window<'a> {
    broker: &'a mut Broker,
    batches: mpsc::Receiver<Batch>,
    /// `batches` is not closed yet.
    reading: bool,
    resolved: mpsc::UnboundedSender<Vec<Ticket>>,
    desk: Desk,
    /// Of this relay, once the desk is open: nothing is published before.
    relay_epoch: i64,
    session_gone: bool,
    hold: Hold,
    /// Published at least once and not resolved: a further publish is a repetition.
    published: FxHashSet<Position>,
    wire: Option<Wire>,
    opening: Option<BoxFuture<Opened>>,
    probes: FuturesUnordered<BoxFuture<Probed>>,
    decided: Vec<Decided>,
    outage: Outage,
    blocked_since: Option<Instant>,
    /// No publish is overdue before this and `confirm_timeout`: the broker took none until then.
    clock_from: Instant,
}

/// What the loop waits for.
enum Wake {
    Swept,
    Link(Change),
    Opened(Box<Opened>),
    Probed(Probed),
    Batch(Option<Batch>),
    Desk(Answer),
    SessionGone,
    Time,
}

impl<'a> Window<'a> {
    pub(super) fn new(
        broker: &'a mut Broker,
        batches: mpsc::Receiver<Batch>,
        resolved: mpsc::UnboundedSender<Vec<Ticket>>,
        desk: Desk,
    ) -> Self {
        let hold = Hold::new(&broker.config.limits, broker.suspects.clone());
        Window {
            broker,
            batches,
            reading: true,
            resolved,
            desk,
            relay_epoch: 0,
            session_gone: false,
            hold,
            published: FxHashSet::default(),
            wire: None,
            opening: None,
            probes: FuturesUnordered::new(),
            decided: Vec::new(),
            outage: Outage::default(),
            blocked_since: None,
            clock_from: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) -> Result<(), BrokerError> {
        let result = self.drive().await;
        self.broker.suspects = self.hold.suspects().clone();
        self.broker.journal.window_now(&self.hold, Instant::now());
        result
    }

    async fn drive(&mut self) -> Result<(), BrokerError> {
        loop {
            let now = Instant::now();
            self.take_batches(now)?;
            self.run_out_of_time(now);
            self.reconnect(now);
            let publishing = self.wire.is_some() && self.blocked_since.is_none();
            self.hold.publishing(publishing, now);
            self.publish_what_may_go(now);
            self.park_and_release(now, publishing && self.reading);
            if self.session_gone || self.is_drained(now) {
                return Ok(());
            }
            if let Some(halted) = self.hold.halted().filter(|_| self.hold.idle(now) && self.desk.is_idle()) {
                return Err(BrokerError::Halted(halted.clone()));
            }
            self.patience(now)?;
            let look_due = if self.hold.lot().is_empty() { None } else { self.desk.look(now) };
            let status_due = self.broker.journal.window(&self.hold, now);
            let deadline = self.deadline().into_iter().chain(status_due).chain(look_due).min();
            let wake = self.next(deadline).await;
            let now = Instant::now();
            match wake {
                Wake::Swept => self.swept(now),
                Wake::Link(change) => self.link_changed(change, now),
                Wake::Opened(opened) => self.opened(*opened, now),
                Wake::Probed(probed) => self.probed(probed, now),
                Wake::Batch(Some(batch)) => self.insert(batch, now)?,
                Wake::Batch(None) => self.reading = false,
                Wake::Desk(answer) => self.answered(answer, now)?,
                Wake::SessionGone => self.session_gone = true,
                Wake::Time => {}
            }
        }
    }

    async fn next(&mut self, deadline: Option<Instant>) -> Wake {
        let Window { broker, batches, reading, resolved, desk, hold, wire, opening, probes, decided, .. } = self;
        let room = *reading && desk.is_open() && hold.wants_more();
        let swept = async {
            match wire {
                Some(wire) => {
                    if let Some(rest) = wire.rests_until() {
                        tokio::time::sleep_until(rest.into()).await;
                    }
                    poll_fn(|cx| wire.poll_sweep(cx, decided)).await;
                }
                None => pending().await,
            }
        };
        let changed = async {
            match &mut broker.link {
                Some(link) => link.changed().await,
                None => pending().await,
            }
        };
        let opened = async {
            match opening {
                Some(opening) => opening.await,
                None => pending().await,
            }
        };
        let time = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // Confirms first: whatever else happens to the channel, what it has confirmed counts.
            biased;
            () = swept => Wake::Swept,
            change = changed => Wake::Link(change),
            opened = opened => Wake::Opened(Box::new(opened)),
            Some(probed) = probes.next() => Wake::Probed(probed),
            answer = desk.answer() => Wake::Desk(answer),
            batch = batches.recv(), if room => Wake::Batch(batch),
            () = resolved.closed() => Wake::SessionGone,
            () = time => Wake::Time,
        }
    }

    /// When something has to be done though nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let limits = &self.broker.config.limits;
        let publishing = self.wire.is_some() && self.blocked_since.is_none();
        let retry = publishing.then(|| self.hold.next_wake(self.reading && self.desk.is_open())).flatten();
        let oldest = publishing.then(|| self.hold.oldest_on_wire()).flatten();
        let overdue =
            oldest.map(|since| since.max(self.clock_from) + limits.confirm_timeout + Duration::from_millis(1));
        let blocked = self.blocked_since.map(|since| since + limits.broker_patience);
        let connect = self.outage.retry_at().filter(|_| self.wire.is_none() && self.opening.is_none());
        let outage = self.outage.since().filter(|_| self.wire.is_none()).map(|since| since + limits.broker_patience);
        [retry, overdue, blocked, connect, outage].into_iter().flatten().min()
    }

    /// Nothing will come any more, and nothing can be done about what is left.
    fn is_drained(&mut self, now: Instant) -> bool {
        let idle = self.hold.idle(now);
        // While the hold is full nobody asks for batches, and so nobody hears that there will be no more.
        let closed = !self.reading || (self.batches.is_closed() && self.batches.is_empty());
        let drained = closed && self.desk.is_idle() && (idle || self.blocked_since.is_some());
        if drained && idle && self.wire.is_some() && self.probes.is_empty() {
            self.broker.clean = true;
        }
        drained
    }

    fn patience(&self, now: Instant) -> Result<(), BrokerError> {
        let patience = self.broker.config.limits.broker_patience;
        if let Some(waited) = self.blocked_since.map(|since| now.duration_since(since))
            && waited >= patience
        {
            let reason = self.broker.link.as_ref().and_then(Link::blocked).unwrap_or_default().to_owned();
            return Err(BrokerError::Blocked { reason, waited });
        }
        if self.wire.is_none()
            && let Some(waited) = self.outage.since().map(|since| now.duration_since(since))
            && waited >= patience
        {
            let last = self.outage.last().to_owned();
            self.broker.journal.disconnected("unavailable", last.clone());
            return Err(BrokerError::Unavailable { last, waited });
        }
        Ok(())
    }

    fn take_batches(&mut self, now: Instant) -> Result<(), BrokerError> {
        while self.reading && self.desk.is_open() && self.hold.wants_more() {
            match self.batches.try_recv() {
                Ok(batch) => self.insert(batch, now)?,
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => self.reading = false,
            }
        }
        Ok(())
    }

    fn insert(&mut self, batch: Batch, now: Instant) -> Result<(), BrokerError> {
        for event in batch.events {
            self.hold.insert(event, now)?;
        }
        Ok(())
    }

    fn publish_what_may_go(&mut self, now: Instant) {
        let Some(wire) = self.wire.as_mut().filter(|_| self.blocked_since.is_none()) else { return };
        while wire.failure().is_none()
            && let Some(event) = self.hold.take_next(now)
        {
            match wire.publish(&event, self.relay_epoch) {
                Ok(()) => {
                    faults::point(Point::Published);
                    self.broker.clean = false;
                    self.broker.journal.published(!self.published.insert(event.position));
                    if self.hold.suspects().contains(event.position) {
                        wire.suspect(event.position);
                    }
                }
                Err(PublishError::Poison(poison)) => {
                    self.hold.poisoned(event.position, poison, now);
                }
                Err(PublishError::Judge(error)) => return self.lose("lost", &error, now),
            }
        }
        let Some(link) = &self.broker.link else { return };
        let frame_max = usize::try_from(link.frame_max()).unwrap_or(usize::MAX);
        let sending = Sending { relay_epoch: self.relay_epoch, frame_max };
        while let Some(due) = self.hold.probe_due(now) {
            if let Some(event) = &due.event {
                self.broker.clean = false;
                self.broker.journal.published(!self.published.insert(event.position));
            }
            let confirm_timeout = self.broker.config.limits.confirm_timeout;
            self.probes.push(Box::pin(probe(link.channels(), due, sending, confirm_timeout)));
        }
    }

    /// The sweep has found verdicts, or the channel has failed.
    fn swept(&mut self, now: Instant) {
        if self.wire.as_ref().is_some_and(Wire::is_confused) {
            // Its verdicts prove nothing.
            let confused = std::io::Error::other("a returned message belongs to no publish of this channel");
            self.broker.journal.lost("lost", &confused);
            return self.replace(confused.to_string(), now);
        }
        self.hand_over_verdicts(now);
        let Some(wire) = &mut self.wire else { return };
        if wire.last_answer().is_some() {
            self.outage.answered();
        }
        if let Some(position) = wire.take_acquitted() {
            self.hold.acquitted(position);
        }
        if let Some(error) = wire.failure().cloned() {
            self.channel_failed(&error, now);
        }
    }

    fn hand_over_verdicts(&mut self, now: Instant) {
        let mut tickets = Vec::new();
        for Decided { position, verdict, .. } in std::mem::take(&mut self.decided) {
            faults::point(Point::Confirmed);
            match verdict {
                Verdict::Delivered => tickets.extend(self.delivered(position, now)),
                Verdict::Returned => self.refused(position, Refusal::Returned, now),
                Verdict::Nacked => self.refused(position, Refusal::Nacked, now),
                // It stays on the wire of the hold, until that hears of the channel's end.
                Verdict::Undelivered => {}
            }
        }
        self.resolve(tickets);
    }

    fn resolve(&mut self, tickets: Vec<Ticket>) {
        if !tickets.is_empty() && self.resolved.send(tickets).is_err() {
            self.session_gone = true;
        }
    }

    fn delivered(&mut self, position: Position, now: Instant) -> Option<Ticket> {
        let delivered = self.hold.delivered(position, now)?;
        self.published.remove(&position);
        self.broker.journal.delivered(&delivered);
        Some(delivered.ticket)
    }

    fn refused(&mut self, position: Position, refusal: Refusal, now: Instant) {
        let Some(refused) = self.hold.refused(position, refusal, now) else { return };
        self.broker.journal.refused(&refused, refusal);
        if let Decision::Discard(ticket) = refused.decision {
            self.published.remove(&position);
            self.resolve(vec![ticket]);
        }
    }

    fn probed(&mut self, probed: Probed, now: Instant) {
        let Probed { exchange, outcome, event } = probed;
        match event {
            Some((position, EventOutcome::Delivered)) => {
                let ticket = self.delivered(position, now);
                self.resolve(ticket.into_iter().collect());
            }
            Some((position, EventOutcome::Refused(refusal))) => self.refused(position, refusal, now),
            Some((position, EventOutcome::Poisoned(poison))) => {
                self.hold.poisoned(position, poison, now);
            }
            None => {}
        }
        if outcome == ProbeOutcome::Passed {
            self.broker.journal.exchange_recovered(&exchange);
        }
        self.hold.probe_ended(&exchange, outcome, now);
    }

    fn link_changed(&mut self, change: Change, now: Instant) {
        match change {
            Change::Blocked(reason) => {
                self.blocked_since.get_or_insert(now);
                self.broker.journal.blocked(&reason);
            }
            Change::Unblocked => {
                self.blocked_since = None;
                self.clock_from = now;
                self.broker.journal.unblocked();
            }
            Change::Lost(error) => self.lose("lost", &error, now),
        }
    }

    /// An attempt's future has ended in an error: the broker has closed the channel, or the connection is gone.
    fn channel_failed(&mut self, error: &lapin::Error, now: Instant) {
        let open = self.broker.link.as_ref().filter(|link| link.is_open());
        let Some((link, (code, words))) = open.zip(reply(error)).filter(|_| error.is_amqp_soft_error()) else {
            return self.lose("lost", error, now);
        };
        let fault = match code {
            403 => ChannelFault::AccessRefused,
            404 => ChannelFault::NotFound,
            406 => ChannelFault::PreconditionFailed,
            _ => ChannelFault::Other,
        };
        let vhost = link.vhost().to_owned();
        let judgement = self.hold.channel_failed(fault, words, now);
        self.broker.suspects = self.hold.suspects().clone();
        self.broker.journal.channel_failed(fault, words, &judgement, &vhost);
        // The broker answers, so this is no outage. The connection goes all the same: lapin may still hold publishes of
        // this channel, and the broker closes a connection that publishes on a closed channel.
        self.outage.refused(now, words);
        self.drop_link();
    }

    /// The connection is of no use any more: everything on the wire will be sent again over another one.
    fn lose(&mut self, reason: &str, cause: &dyn std::error::Error, now: Instant) {
        self.last_words(now);
        self.broker.journal.lost(reason, cause);
        self.replace(cause.to_string(), now);
    }

    /// What was confirmed before the end of the channel counts.
    fn last_words(&mut self, now: Instant) {
        if let Some(wire) = &mut self.wire {
            wire.last_sweep(&mut self.decided);
        }
        self.hand_over_verdicts(now);
    }

    fn replace(&mut self, last: String, now: Instant) {
        self.outage.failed(now, self.broker.config.limits.broker_patience, last);
        self.drop_link();
    }

    fn drop_link(&mut self) {
        self.hold.wire_lost();
        self.probes.clear();
        self.decided.clear();
        self.wire = None;
        self.opening = None;
        self.blocked_since = None;
        self.broker.link = None;
    }

    fn reconnect(&mut self, now: Instant) {
        if self.wire.is_some() || self.opening.is_some() || self.outage.retry_at().is_some_and(|at| at > now) {
            return;
        }
        self.opening = Some(match &self.broker.link {
            Some(link) => {
                let (channels, frame_max) = (link.channels(), link.frame_max());
                Box::pin(async move { Ok((None, Wire::open(&channels, frame_max).await.map_err(OpenError::Channel)?)) })
            }
            None => {
                let (config, last) = (Arc::clone(&self.broker.config), self.broker.last.clone());
                Box::pin(async move {
                    let link = connection::connect_again(&config, Purpose::Publish, last.as_deref()).await?;
                    let wire = Wire::open(&link.channels(), link.frame_max()).await.map_err(OpenError::Channel)?;
                    Ok((Some(link), wire))
                })
            }
        });
    }

    fn opened(&mut self, opened: Opened, now: Instant) {
        self.opening = None;
        match opened {
            Ok((link, wire)) => {
                if let Some(link) = link {
                    self.broker.adopt(link);
                }
                self.blocked_since = self.broker.link.as_ref().and_then(Link::blocked).map(|_| now);
                self.clock_from = now;
                self.wire = Some(wire);
                self.outage.connected(now);
            }
            Err(error) => {
                self.broker.journal.disconnected("connect", error.to_string());
                self.replace(error.to_string(), now);
            }
        }
    }

    /// Publishes that the broker has not confirmed in time (rule R5).
    fn run_out_of_time(&mut self, now: Instant) {
        let timeout = self.broker.config.limits.confirm_timeout;
        let Some(oldest) = self.hold.oldest_on_wire().filter(|_| self.wire.is_some() && self.blocked_since.is_none())
        else {
            return;
        };
        if now.saturating_duration_since(oldest.max(self.clock_from)) <= timeout {
            return;
        }
        let last_answer = self.wire.as_ref().and_then(Wire::last_answer);
        let answered = last_answer.is_some_and(|at| now.saturating_duration_since(at) <= timeout);
        self.last_words(now);
        let overdue = self.hold.overdue(now, timeout);
        let oldest = overdue.first().and_then(|position| self.hold.event(*position)).map(Arc::clone);
        if answered {
            // Others were confirmed, so it is theirs alone.
            for position in &overdue {
                self.refused(*position, Refusal::TimedOut, now);
            }
        }
        self.broker.journal.timed_out(overdue.len(), oldest.as_deref(), answered);
        let last = format!("{} publishes were not confirmed within {} s", overdue.len(), timeout.as_secs());
        self.replace(last, now);
    }
}
