//! One span: what became of one event, in the words of OpenTelemetry's conventions for messaging and RabbitMQ.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{self, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::context::TraceParent;
use crate::dead_letters::Reason;
use crate::event::{Position, Route};
use crate::hold::{Refusal, Released};

/// What the publisher leaves in the queue: no body, and nothing that is not needed. The rest is made of it by the exporter's
/// thread.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) parent: TraceParent,
    pub(super) trace_state: Option<String>,
    pub(super) event_id: Arc<str>,
    pub(super) position: Position,
    pub(super) route: Arc<Route>,
    pub(super) routing_key: String,
    pub(super) correlation_id: Option<String>,
    pub(super) body_bytes: usize,
    pub(super) refusals: Vec<(SystemTime, Refusal)>,
    pub(super) broker: Option<Arc<Server>>,
    pub(super) course: Course,
}

/// From when to when, and to what end.
#[derive(Debug)]
pub(super) struct Course {
    /// When its transaction was committed, or when it was taken from the dead letters. Perhaps by another machine's clock.
    pub(super) start: SystemTime,
    /// The last publish.
    pub(super) published: Option<SystemTime>,
    pub(super) end: SystemTime,
    /// Publishes of this session.
    pub(super) attempts: u32,
    pub(super) fate: Fate,
}

impl Course {
    /// Clocks may disagree: a span that ended before it began would be drawn anywhere, or refused.
    fn start(&self) -> SystemTime {
        if self.start <= self.end { self.start } else { self.published.unwrap_or(self.end).min(self.end) }
    }
}

/// What became of the event.
#[derive(Debug)]
pub(super) enum Fate {
    Delivered(Option<Released>),
    /// With the broker's words, or with what makes it a poison.
    Parked(Reason, String),
    Discarded,
}

/// A broker's address.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl Server {
    /// Of `host:port`.
    pub(super) fn new(address: &str) -> Server {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        Server { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok() }
    }
}

impl Span {
    pub(super) fn into_data(self, span_id: SpanId, scope: InstrumentationScope) -> SpanData {
        // A tracestate that is not valid is left out (W3C Trace Context, 3.3).
        let trace_state = self.trace_state.as_deref().and_then(|text| text.parse().ok()).unwrap_or(TraceState::NONE);
        let mut events = SpanEvents::default();
        events.events = self.events();
        SpanData {
            span_context: SpanContext::new(self.parent.trace_id, span_id, TraceFlags::SAMPLED, false, trace_state),
            parent_span_id: self.parent.span_id,
            parent_span_is_remote: true,
            // Not PRODUCER: that is the span whose context the message carries, and this one's is not.
            span_kind: SpanKind::Client,
            // Without the routing key, which may have an aggregate's id in it: names of spans become labels.
            name: match self.route.exchange.as_str() {
                "" => "send".into(),
                exchange => format!("send {exchange}").into(),
            },
            start_time: self.course.start(),
            end_time: self.course.end,
            attributes: self.attributes(),
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: match &self.course.fate {
                Fate::Delivered(_) => Status::Unset,
                Fate::Parked(reason, words) => Status::error(format!("parked: {reason}: {words}")),
                Fate::Discarded => Status::error("discarded: no queue is bound for it"),
            },
            instrumentation_scope: scope,
        }
    }

    fn events(&self) -> Vec<trace::Event> {
        let event = |name: &'static str, at, attributes| trace::Event::new(name, at, attributes, 0);
        let refusals = self.refusals.iter().map(|(at, refusal)| {
            let name = match refusal {
                Refusal::Returned => "returned",
                Refusal::Nacked => "nacked",
                Refusal::TimedOut => "not confirmed in time",
            };
            event(name, *at, Vec::new())
        });
        refusals.chain(self.course.published.map(|at| event("published", at, Vec::new()))).collect()
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let (outcome, error) = match &self.course.fate {
            Fate::Delivered(None) => ("delivered", None),
            Fate::Delivered(Some(Released::ByItself)) => ("released", None),
            Fate::Delivered(Some(Released::Redriven)) => ("redriven", None),
            Fate::Parked(reason, _) => ("parked", Some(reason.as_str())),
            Fate::Discarded => ("discarded", Some(Reason::Unroutable.as_str())),
        };
        let mut attributes = vec![
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", self.destination()),
            KeyValue::new("messaging.message.id", Arc::clone(&self.event_id)),
            KeyValue::new("messaging.message.body.size", number(self.body_bytes)),
            KeyValue::new("postrider.position", self.position.to_string()),
            KeyValue::new("postrider.route", self.route.name.clone()),
            KeyValue::new("postrider.attempts", i64::from(self.course.attempts)),
            KeyValue::new("postrider.outcome", outcome),
        ];
        if !self.routing_key.is_empty() {
            attributes.push(KeyValue::new("messaging.rabbitmq.destination.routing_key", self.routing_key.clone()));
        }
        attributes.extend(
            self.correlation_id.as_ref().map(|id| KeyValue::new("messaging.message.conversation_id", id.clone())),
        );
        if let Some(broker) = &self.broker {
            attributes.push(KeyValue::new("server.address", broker.host.clone()));
            attributes.extend(broker.port.map(|port| KeyValue::new("server.port", i64::from(port))));
        }
        attributes.extend(error.map(|reason| KeyValue::new("error.type", reason)));
        attributes
    }

    /// As the conventions for RabbitMQ have it for a producer.
    fn destination(&self) -> String {
        match (self.route.exchange.as_str(), self.routing_key.as_str()) {
            ("", "") => "amq.default".to_owned(),
            (exchange, "") => exchange.to_owned(),
            ("", routing_key) => routing_key.to_owned(),
            (exchange, routing_key) => format!("{exchange}:{routing_key}"),
        }
    }
}

#[cfg(test)]
mod tests;
