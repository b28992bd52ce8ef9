//! What the publisher says about itself: one log line a change of state, metrics and status.
//!
//! A line and the counter for the same incident come from the same function. A line about an event has its id, its position
//! and the id of its trace, if it has one. No payload, no header, no key of a row; the routing key of an unroutable message
//! is named, because without it nobody could bind a queue for it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::TraceId;
use tracing::field::{DisplayValue, display};
use tracing::{debug, error, info, warn};

use super::connection::Link;
use crate::dead_letters::{NewDeadLetter, Reason, Unreadable};
use crate::event::{Event, Poison, Position, shown};
use crate::hold::{
    ChannelFault, ChannelJudgement, Decision, Delivered, Displaced, Hold, Refusal, Refused, Released, Why,
};
use crate::metrics::Metrics;
use crate::status::{DeadLetters, DelayedKey, FailingExchange, FailingWay, Status};
use crate::traces::{Spans, TraceParent};

/// The same complaint about the same (exchange, routing key) is repeated at most this often.
const REPEAT: Duration = Duration::from_secs(60);
/// Distinct complaints that are remembered; beyond it they are forgotten and may repeat early.
const REMEMBERED: usize = 1_000;
/// The status is written at most this often.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// A key that waits for less is no news.
const NEWSWORTHY: Duration = Duration::from_secs(1);

pub(super) struct Journal {
    metrics: Metrics,
    status: Status,
    /// Where spans are exported.
    spans: Option<Spans>,
    complaints: HashMap<(&'static str, String, String), Instant>,
    status_written: Option<Instant>,
    /// As last said.
    stalled: Option<&'static str>,
}

impl Journal {
    pub(super) fn new(metrics: Metrics, status: Status, spans: Option<Spans>) -> Self {
        Journal { metrics, status, spans, complaints: HashMap::new(), status_written: None, stalled: None }
    }

    pub(super) fn connected(&mut self, link: &Link) {
        if let Some(spans) = &mut self.spans {
            spans.connected(link.address());
        }
        info!(broker = link.address(), vhost = link.vhost(), "connected to RabbitMQ");
        self.unblocked_state();
        self.status.update(|snapshot| {
            snapshot.broker_up = true;
            snapshot.problem = None;
        });
    }

    /// `reason` is one of [`crate::metrics::RECONNECT_REASONS`].
    pub(super) fn lost(&self, reason: &str, cause: &dyn std::error::Error) {
        warn!(error = %cause, "connection to RabbitMQ lost; connecting again, what is not confirmed will be sent again");
        self.disconnected(reason, format!("connection to RabbitMQ lost: {cause}"));
    }

    /// A connection that was given up, or could not be made. The caller logs it, or it belongs to an outage that is known.
    pub(super) fn disconnected(&self, reason: &str, problem: String) {
        debug!(reason, problem, "no connection to RabbitMQ");
        self.metrics.reconnects.with_label_values(&["rabbitmq", reason]).inc();
        self.unblocked_state();
        self.status.update(|snapshot| {
            snapshot.broker_up = false;
            snapshot.problem = Some(problem);
        });
    }

    pub(super) fn topology(&self, problem: String) {
        self.status.update(|snapshot| snapshot.problem = Some(problem));
    }

    pub(super) fn blocked(&self, reason: &str) {
        warn!(
            reason,
            "RabbitMQ blocks publishers; free memory or disk there (`rabbitmq-diagnostics alarms` tells), events wait until then"
        );
        self.metrics.broker_blocked.set(1);
        self.status.update(|snapshot| snapshot.broker_blocked = Some(reason.to_owned()));
    }

    pub(super) fn unblocked(&self) {
        info!("RabbitMQ takes publishes again");
        self.unblocked_state();
    }

    fn unblocked_state(&self) {
        self.metrics.broker_blocked.set(0);
        self.status.update(|snapshot| snapshot.broker_blocked = None);
    }

    pub(super) fn published(&self, again: bool) {
        self.metrics.events_published.inc();
        if again {
            self.metrics.publish_retries.inc();
        }
    }

    pub(super) fn delivered(&mut self, delivered: &Delivered) {
        self.metrics.events_confirmed.inc();
        self.metrics.key_wait_seconds.observe(delivered.key_wait.as_secs_f64());
        self.metrics.publish_to_confirm_seconds.observe(delivered.confirm_wait.as_secs_f64());
        // A message outside of any transaction has no commit.
        if delivered.event.commit_time != SystemTime::UNIX_EPOCH {
            // Zero where the clocks of the two machines disagree.
            let since_commit = SystemTime::now().duration_since(delivered.event.commit_time).unwrap_or_default();
            self.metrics.commit_to_confirm_seconds.observe(since_commit.as_secs_f64());
        }
        if let Some(spans) = &mut self.spans {
            spans.delivered(delivered);
        }
        if delivered.freed {
            let event = &delivered.event;
            let (exchange, routing_key) = (event.route.exchange.as_str(), routing_key(event));
            info!(
                event_id = shown(&event.id),
                position = %event.position,
                trace_id = trace_id(event),
                exchange,
                routing_key,
                "events pass here again; the dead letters that waited for it go out"
            );
            self.complaints
                .retain(|(_, first, second), _| (first.as_str(), second.as_str()) != (exchange, routing_key));
        }
        if let Some(released) = delivered.released {
            let counter = match released {
                Released::ByItself => &self.metrics.released,
                Released::Redriven => &self.metrics.redriven,
            };
            counter.with_label_values(&[delivered.event.route.name.as_str()]).inc();
        }
        if delivered.overtook {
            self.overtaken(&delivered.event, 1);
        }
    }

    /// The event's publish was refused.
    pub(super) fn refused(&mut self, refused: &Refused, refusal: Refusal) {
        if let Some(spans) = &mut self.spans {
            spans.refused(refused, refusal);
        }
        self.overtaken(&refused.event, refused.overtaken_by);
        match refusal {
            Refusal::Returned => self.returned(refused),
            Refusal::Nacked => self.nacked(&refused.event),
            // Said of all of them together.
            Refusal::TimedOut => {}
        }
    }

    fn returned(&mut self, refused: &Refused) {
        self.metrics.events_returned.inc();
        let event = &refused.event;
        let (exchange, routing_key) = (event.route.exchange.as_str(), routing_key(event));
        if matches!(refused.decision, Decision::Discard(_)) {
            self.discarded(refused);
        } else if self.may_complain("returned", exchange, routing_key) {
            warn!(
                event_id = shown(&event.id),
                position = %event.position,
                trace_id = trace_id(event),
                exchange,
                routing_key,
                "no queue is bound for this routing key, the event came back; bind one (`rabbitmqctl list_bindings` shows \
                 what is bound; `rabbitmqadmin declare binding` or the management UI bind); its key waits and it is sent again"
            );
        }
    }

    fn nacked(&mut self, event: &Event) {
        self.metrics.events_nacked.inc();
        let (exchange, routing_key) = (event.route.exchange.as_str(), routing_key(event));
        if self.may_complain("nacked", exchange, routing_key) {
            warn!(
                event_id = shown(&event.id),
                position = %event.position,
                trace_id = trace_id(event),
                exchange,
                routing_key,
                "a queue behind this routing key refuses events (nack); it is probably full (overflow=reject-publish): \
                 see to its consumers or its limits; the key waits and the event is sent again"
            );
        }
    }

    /// `oldest`: the one that has waited longest. `answered`: other publishes were confirmed meanwhile.
    pub(super) fn timed_out(&self, count: usize, oldest: Option<&Event>, answered: bool) {
        let event_id = oldest.map(|event| shown(&event.id));
        let position = oldest.map(|event| display(event.position));
        let trace_id = oldest.and_then(trace_id);
        self.metrics.confirm_timeouts.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        let advice = "`rabbitmqctl list_queues name type state` shows queues that are down or without a majority";
        if answered {
            warn!(
                count,
                event_id,
                position,
                trace_id,
                "publishes were not confirmed in time while others were; {advice}; they are sent again over a new connection"
            );
        } else {
            warn!(
                count,
                event_id,
                position,
                trace_id,
                "RabbitMQ confirmed nothing in time; {advice}; everything is sent again over a new connection"
            );
        }
        self.disconnected("confirm_timeout", format!("{count} publishes were not confirmed in time"));
    }

    /// The broker closed the publishing channel.
    pub(super) fn channel_failed(
        &mut self,
        fault: ChannelFault,
        words: &str,
        judgement: &ChannelJudgement,
        vhost: &str,
    ) {
        self.disconnected("channel_error", format!("RabbitMQ closed the channel: {words}"));
        match judgement {
            ChannelJudgement::Nobody => {
                warn!(reason = words, "RabbitMQ closed the channel while nothing was published");
            }
            ChannelJudgement::ExchangeFailing(event) => {
                let exchange = event.route.exchange.as_str();
                if fault == ChannelFault::AccessRefused {
                    warn!(
                        event_id = shown(&event.id),
                        position = %event.position,
                        trace_id = trace_id(event),
                        exchange,
                        reason = words,
                        "the exchange refuses all events; grant write on it (`rabbitmqctl set_permissions -p '{vhost}' USER '' \
                         '^{exchange}$' ''`); its events wait, others go on"
                    );
                } else {
                    warn!(
                        event_id = shown(&event.id),
                        position = %event.position,
                        trace_id = trace_id(event),
                        exchange,
                        reason = words,
                        "the exchange does not exist; declare it (`rabbitmqadmin --vhost '{vhost}' declare exchange --name \
                         '{exchange}' --type topic --durable true`); its events wait, others go on"
                    );
                }
            }
            // Said when it is parked.
            ChannelJudgement::Poisoned(_) => {}
            ChannelJudgement::Refused(refused) => warn!(
                event_id = shown(&refused.event.id),
                position = %refused.event.position,
                trace_id = trace_id(&refused.event),
                exchange = refused.event.route.exchange,
                reason = words,
                "RabbitMQ closed the channel over one event; its key waits and it is sent again"
            ),
            ChannelJudgement::Suspects(count) => warn!(
                count,
                reason = words,
                "RabbitMQ closed the channel and does not say over which event; those in flight are sent again one by one"
            ),
        }
    }

    pub(super) fn poisoned(&mut self, event: &Event, poison: &Poison) {
        if self.may_complain("poisoned", &event.route.name, poison.reason.as_str()) {
            error!(
                event_id = shown(&event.id),
                position = %event.position,
                trace_id = trace_id(event),
                route = event.route.name,
                reason = poison.reason.as_str(),
                detail = poison.detail,
                "an event can never be published as it is; it goes into the dead letters and waits for a person: `postrider dlq show` \
                 shows it, `postrider dlq redrive` sends it once the cause is mended, `postrider dlq discard` gives it up"
            );
        }
    }

    pub(super) fn parked(&mut self, letter: &NewDeadLetter) {
        let NewDeadLetter { event, reason, error, .. } = letter;
        self.metrics.parked.with_label_values(&[reason.as_str(), event.route.name.as_str()]).inc();
        if let Some(spans) = &mut self.spans {
            spans.parked(letter);
        }
        let routing_key = event.message().map_or("", |message| message.routing_key.as_str());
        if let Reason::Poison(reason) = reason {
            self.poisoned(event, &Poison { reason: *reason, detail: error.clone() });
        } else if *reason != Reason::Behind && self.may_complain("parked", &event.route.exchange, routing_key) {
            warn!(
                event_id = shown(&event.id),
                position = %event.position,
                trace_id = trace_id(event),
                exchange = event.route.exchange,
                routing_key,
                reason = reason.as_str(),
                error,
                "events that cannot be delivered go into the dead letters now, and their keys' later events behind them; they \
                 are sent by themselves once the way is free (`postrider dlq list`)"
            );
        }
    }

    fn discarded(&mut self, refused: &Refused) {
        let event = &refused.event;
        self.metrics.discarded.with_label_values(&["route", event.route.name.as_str()]).inc();
        if let Some(spans) = &mut self.spans {
            spans.discarded(refused);
        }
        let (exchange, routing_key) = (event.route.exchange.as_str(), routing_key(event));
        if self.may_complain("discarded", exchange, routing_key) {
            warn!(
                event_id = shown(&event.id),
                position = %event.position,
                trace_id = trace_id(event),
                exchange,
                routing_key,
                "no queue is bound for this routing key, and its route says on_unroutable = \"discard\": its events are gone"
            );
        }
    }

    pub(super) fn discarded_by_a_person(&self, event_id: &str, position: Position, route: &str) {
        self.metrics.discarded.with_label_values(&["operator", route]).inc();
        info!(event_id = shown(event_id), %position, route, "a dead letter was discarded, as it was marked");
    }

    /// `letter.why` names columns, never values.
    pub(super) fn unreadable(&self, letter: &Unreadable) {
        let Unreadable { id, position, why } = letter;
        error!(
            dead_letter = id,
            %position,
            why,
            "a dead letter cannot be read: somebody has changed its row. It stays, with the later events of its key behind it, and \
             all else is carried. Mend the row and mark it (`postrider dlq redrive {id}`), or give it up (`postrider dlq discard {id}`)"
        );
    }

    pub(super) fn displaced(&self, displaced: &Displaced) {
        let Displaced { id, from, to } = displaced;
        error!(
            event_id = shown(id),
            position = %from,
            carried_as = %to,
            "at the position of this event is the dead letter of another one: somebody has changed that row, or the database was \
             rewound and its record was not. The event is carried under a position of its own, and the dead letter stays: see what it \
             is (`postrider dlq list`), then redrive or discard it"
        );
    }

    pub(super) fn exchange_recovered(&self, exchange: &str) {
        info!(exchange, "the exchange takes events again");
    }

    fn overtaken(&self, event: &Event, count: usize) {
        if count > 0 {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.metrics.order_overtakes.with_label_values(&[event.route.name.as_str()]).inc_by(count);
        }
    }

    fn may_complain(&mut self, kind: &'static str, first: &str, second: &str) -> bool {
        let now = Instant::now();
        let complaint = (kind, first.to_owned(), second.to_owned());
        if self.complaints.get(&complaint).is_some_and(|at| now.duration_since(*at) < REPEAT) {
            return false;
        }
        if self.complaints.len() >= REMEMBERED {
            self.complaints.clear();
        }
        self.complaints.insert(complaint, now);
        true
    }

    /// Writes gauges and status, unless that was done a moment ago. Returns when it is due again: waits grow by themselves.
    pub(super) fn window(&mut self, hold: &Hold, now: Instant) -> Option<Instant> {
        if let Some(due) = self.status_written.map(|written| written + STATUS_INTERVAL).filter(|due| *due > now) {
            return Some(due);
        }
        self.window_now(hold, now);
        let stats = hold.stats();
        (stats.on_wire + stats.waiting > 0).then_some(now + NEWSWORTHY)
    }

    pub(super) fn window_now(&mut self, hold: &Hold, now: Instant) {
        self.status_written = Some(now);
        let stats = hold.stats();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let bytes = stats.on_wire_bytes + stats.waiting_bytes;
        self.metrics.unresolved_bytes.set(gauge(bytes));
        self.metrics.held_keys.set(gauge(stats.held_keys));
        let delayed =
            hold.most_delayed(now).filter(|delayed| delayed.waited >= NEWSWORTHY || !is_routine(&delayed.why));
        let dead_letters = self.dead_letters(hold);
        self.status.update(|snapshot| {
            snapshot.dead_letters = dead_letters;
            snapshot.unresolved_bytes = count(bytes);
            snapshot.held_keys = count(stats.held_keys);
            snapshot.failing_exchanges = hold
                .failing_exchanges()
                .map(|(exchange, error)| FailingExchange { exchange: exchange.to_owned(), error: error.to_owned() })
                .collect();
            snapshot.most_delayed = delayed.map(|delayed| DelayedKey {
                key: delayed.key.to_string(),
                seconds: delayed.waited.as_secs_f64(),
                reason: delayed.why.to_string(),
            });
        });
    }
}

/// Failing ways that `/status` shows. There may be as many as routing keys.
const WAYS_SHOWN: usize = 20;

impl Journal {
    /// Gauges and status of the parking lot, and a word when reading stops or goes on.
    fn dead_letters(&mut self, hold: &Hold) -> DeadLetters {
        let lot = hold.lot();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.metrics.set_dead_letters(lot.waiting());
        self.metrics.dead_letters_bytes.set(i64::try_from(lot.bytes()).unwrap_or(i64::MAX));
        self.metrics.parked_keys.set(i64::try_from(lot.parked_keys()).unwrap_or(i64::MAX));
        self.metrics.set_oldest_dead_letter(lot.oldest());
        let stalled = hold.stalled();
        self.metrics.set_stalled(stalled);
        if stalled != self.stalled {
            match stalled {
                Some(setting) => error!(
                    setting,
                    dead_letters = lot.len(),
                    bytes = lot.bytes(),
                    "the dead letters have reached their bound: nothing is read any more, and PostgreSQL keeps its WAL. See to \
                     what keeps them (`postrider dlq list`), discard what nobody needs, or raise the bound"
                ),
                None => info!("there is room for dead letters again: reading goes on"),
            }
            self.stalled = stalled;
        }
        DeadLetters {
            waiting: count(lot.len()),
            bytes: lot.bytes(),
            keys: count(lot.parked_keys()),
            oldest_seconds: lot
                .oldest()
                .map(|at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs_f64()),
            by_reason: lot.waiting().fold(BTreeMap::new(), |mut all, (reason, _, waiting)| {
                *all.entry(reason.as_str()).or_default() += count(waiting);
                all
            }),
            failing: lot
                .failing_ways()
                .take(WAYS_SHOWN)
                .map(|(way, reason, error)| FailingWay {
                    exchange: way.exchange.clone(),
                    routing_key: way.routing_key.clone(),
                    reason: reason.as_str(),
                    error: error.to_owned(),
                })
                .collect(),
            stalled,
        }
    }
}

fn is_routine(why: &Why) -> bool {
    matches!(why, Why::Ready | Why::Unconfirmed)
}

fn routing_key(event: &Event) -> &str {
    event.content.as_ref().map_or("", |message| message.routing_key.as_str())
}

/// Of a valid `traceparent`, sampled or not.
fn trace_id(event: &Event) -> Option<DisplayValue<TraceId>> {
    TraceParent::of(event).map(|parent| display(parent.trace_id))
}
