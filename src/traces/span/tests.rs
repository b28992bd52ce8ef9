use std::time::Duration;

use opentelemetry::Value;
use opentelemetry::trace::TraceId;

use super::*;
use crate::lsn::Lsn;

fn span(fate: Fate) -> Span {
    let end = SystemTime::now();
    Span {
        parent: TraceParent { trace_id: TraceId::from(7), span_id: SpanId::from(8), sampled: true },
        trace_state: Some("vendor=1,other=2".to_owned()),
        event_id: "event-1".into(),
        position: Position { epoch: 0, commit: Lsn(7), ordinal: 1, part: 0 },
        route: Arc::new(Route { name: "orders".to_owned(), exchange: "events".to_owned(), ..Route::default() }),
        routing_key: "order.OrderPlaced".to_owned(),
        correlation_id: Some("c-1".to_owned()),
        body_bytes: 12,
        refusals: vec![(end - Duration::from_secs(3), Refusal::Returned)],
        broker: Some(Arc::new(Server::new("rabbit.example:5671"))),
        course: Course {
            start: end - Duration::from_secs(5),
            published: Some(end - Duration::from_secs(1)),
            end,
            attempts: 2,
            fate,
        },
    }
}

fn data(span: Span) -> SpanData {
    span.into_data(SpanId::from(9), InstrumentationScope::default())
}

fn attribute(data: &SpanData, name: &str) -> Option<Value> {
    data.attributes.iter().find(|attribute| attribute.key.as_str() == name).map(|attribute| attribute.value.clone())
}

#[test]
fn a_delivered_event_is_a_send_to_rabbitmq_in_its_producers_trace() {
    let data = data(span(Fate::Delivered(None)));
    let context = &data.span_context;
    assert_eq!((context.trace_id(), context.span_id()), (TraceId::from(7), SpanId::from(9)));
    assert!(context.is_sampled() && data.parent_span_is_remote);
    assert_eq!(data.parent_span_id, SpanId::from(8));
    assert_eq!(context.trace_state().header(), "vendor=1,other=2");
    assert_eq!((data.name.as_ref(), &data.span_kind), ("send events", &SpanKind::Client));
    assert_eq!(data.status, Status::Unset);
    assert_eq!(data.end_time.duration_since(data.start_time).unwrap(), Duration::from_secs(5));
    let texts = [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.name", "send"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "events:order.OrderPlaced"),
        ("messaging.rabbitmq.destination.routing_key", "order.OrderPlaced"),
        ("messaging.message.id", "event-1"),
        ("messaging.message.conversation_id", "c-1"),
        ("server.address", "rabbit.example"),
        ("postrider.position", "00000000-0000000000000007-00000001-00"),
        ("postrider.route", "orders"),
        ("postrider.outcome", "delivered"),
    ];
    for (name, value) in texts {
        assert_eq!(attribute(&data, name), Some(value.into()), "{name}");
    }
    for (name, value) in [("messaging.message.body.size", 12), ("server.port", 5671), ("postrider.attempts", 2)] {
        assert_eq!(attribute(&data, name), Some(Value::I64(value)), "{name}");
    }
    assert_eq!(attribute(&data, "error.type"), None);
    let events: Vec<_> = data.events.iter().map(|event| event.name.as_ref()).collect();
    assert_eq!(events, ["returned", "published"]);
}

#[test]
fn what_was_not_delivered_is_an_error_with_its_reason() {
    let parked = data(span(Fate::Parked(Reason::Unroutable, "no queue".to_owned())));
    assert_eq!(parked.status, Status::error("parked: unroutable: no queue"));
    assert_eq!(attribute(&parked, "error.type"), Some("unroutable".into()));
    assert_eq!(attribute(&parked, "postrider.outcome"), Some("parked".into()));
    let discarded = data(span(Fate::Discarded));
    assert!(matches!(discarded.status, Status::Error { .. }));
    assert_eq!(attribute(&discarded, "postrider.outcome"), Some("discarded".into()));
    let released = data(span(Fate::Delivered(Some(Released::Redriven))));
    assert_eq!(attribute(&released, "postrider.outcome"), Some("redriven".into()));
}

#[test]
fn a_span_never_ends_before_it_begins() {
    let ahead = |published| {
        let mut span = span(Fate::Delivered(None));
        (span.course.start, span.course.published) = (span.course.end + Duration::from_secs(60), published);
        data(span)
    };
    let published = data(span(Fate::Delivered(None))).end_time - Duration::from_secs(1);
    let known = ahead(Some(published));
    assert_eq!(known.start_time, published);
    let unknown = ahead(None);
    assert_eq!(unknown.start_time, unknown.end_time);
    let odd = ahead(Some(published + Duration::from_secs(3_600)));
    assert!(odd.start_time <= odd.end_time);
}

#[test]
fn what_is_not_there_or_not_valid_is_left_out() {
    let mut span = span(Fate::Delivered(None));
    span.trace_state = Some("not a tracestate".to_owned());
    span.route = Arc::default();
    (span.routing_key, span.correlation_id) = (String::new(), None);
    span.broker = Some(Arc::new(Server::new("[::1]:5672")));
    let data = data(span);
    assert_eq!(data.span_context.trace_state().header(), "");
    assert_eq!(data.name, "send");
    assert_eq!(attribute(&data, "messaging.destination.name"), Some("amq.default".into()));
    assert_eq!(attribute(&data, "server.address"), Some("::1".into()));
    for name in ["messaging.rabbitmq.destination.routing_key", "messaging.message.conversation_id"] {
        assert_eq!(attribute(&data, name), None, "{name}");
    }
}
