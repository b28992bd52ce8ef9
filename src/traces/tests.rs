use std::time::Instant;

use bytes::Bytes;
use prometheus::IntCounter;

use super::*;
use crate::dead_letters::Reason;
use crate::event::{HeaderValue, Joins, Message, Properties, Route};
use crate::hold::Released;
use crate::lsn::Lsn;

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn event(traceparent: Option<&str>) -> Arc<Event> {
    let headers = traceparent.map(|text| ("traceparent".into(), HeaderValue::Text(text.to_owned())));
    let properties = Properties {
        message_id: "event-1".into(),
        kind: "OrderPlaced".to_owned(),
        content_type: "application/json",
        timestamp: 0,
        correlation_id: None,
        headers: headers.into_iter().collect(),
    };
    Arc::new(Event {
        position: Position { epoch: 0, commit: Lsn(7), ordinal: 0, part: 0 },
        id: "event-1".into(),
        key: "order/1".into(),
        joins: Joins::Nothing,
        route: Arc::new(Route { name: "default".to_owned(), exchange: "events".to_owned(), ..Route::default() }),
        commit_time: SystemTime::now() - Duration::from_secs(60),
        ticket: Ticket { session: 1, entry: 1 },
        content: Ok(Message {
            routing_key: "order.OrderPlaced".to_owned(),
            properties,
            body: Bytes::from_static(b"{}"),
        }),
        remains: None,
    })
}

fn delivered(event: &Arc<Event>, released: Option<Released>) -> Delivered {
    Delivered {
        ticket: event.ticket,
        event: Arc::clone(event),
        released,
        freed: false,
        overtook: false,
        key_wait: Duration::from_secs(2),
        confirm_wait: Duration::from_secs(1),
        attempts: 3,
    }
}

fn refused(event: &Arc<Event>, decision: Decision) -> Refused {
    Refused { event: Arc::clone(event), decision, overtaken_by: 0, attempts: 1 }
}

fn retry() -> Decision {
    Decision::Retry { at: Instant::now() }
}

fn spans(room: usize) -> (Spans, mpsc::Receiver<Span>, IntCounter) {
    let (queue, left) = mpsc::channel(room);
    let dropped = IntCounter::new("dropped", "Dropped.").unwrap();
    (Spans::new(queue, dropped.clone()), left, dropped)
}

fn seconds(from: SystemTime, to: SystemTime) -> u64 {
    to.duration_since(from).unwrap().as_secs()
}

#[test]
fn only_what_the_producer_has_sampled_leaves_a_span() {
    let (mut spans, mut left, dropped) = spans(10);
    for traceparent in [None, Some("nonsense"), Some(&SAMPLED.replace("-01", "-00")), Some(&SAMPLED.to_uppercase())] {
        let event = event(traceparent);
        spans.refused(&refused(&event, retry()), Refusal::Returned);
        spans.delivered(&delivered(&event, None));
        spans.discarded(&refused(&event, Decision::Discard(event.ticket)));
        let letter =
            NewDeadLetter { event, reason: Reason::Nacked, error: String::new(), holds_key: true, attempts: 1 };
        spans.parked(&letter);
    }
    assert!(left.try_recv().is_err() && spans.refusals.is_empty());
    spans.delivered(&delivered(&event(Some(SAMPLED)), None));
    let span = left.try_recv().unwrap();
    assert_eq!((span.course.attempts, seconds(span.course.start, span.course.end)), (3, 60), "from the commit on");
    assert_eq!(seconds(span.course.published.unwrap(), span.course.end), 1);
    assert_eq!(dropped.get(), 0);
}

#[test]
fn a_full_queue_costs_spans_that_are_counted_and_nothing_else() {
    let (mut spans, mut left, dropped) = spans(2);
    let event = event(Some(SAMPLED));
    for _ in 0..5 {
        spans.delivered(&delivered(&event, None));
    }
    assert_eq!(dropped.get(), 3);
    left.try_recv().unwrap();
    spans.delivered(&delivered(&event, None));
    assert_eq!(dropped.get(), 3);
    // Nobody is there any more.
    drop(left);
    spans.delivered(&delivered(&event, None));
    assert_eq!(dropped.get(), 4);
}

#[test]
fn a_span_tells_the_refusals_of_its_event_and_they_are_bounded() {
    let (mut spans, mut left, _) = spans(10);
    let event = event(Some(SAMPLED));
    for _ in 0..100 {
        spans.refused(&refused(&event, retry()), Refusal::Nacked);
    }
    spans.refused(&refused(&event, Decision::Park), Refusal::Returned);
    let letter = NewDeadLetter {
        event: Arc::clone(&event),
        reason: Reason::Nacked,
        error: "full".into(),
        holds_key: true,
        attempts: 9,
    };
    spans.parked(&letter);
    let span = left.try_recv().unwrap();
    assert_eq!(span.refusals.len(), REFUSALS);
    assert!(matches!(&span.course.fate, Fate::Parked(Reason::Nacked, words) if words == "full"));
    assert!(spans.refusals.is_empty());

    for number in 0..3 * REFUSED as u64 {
        let mut other = Event::clone(&event);
        other.position.commit = Lsn(number);
        spans.refused(&refused(&Arc::new(other), retry()), Refusal::Nacked);
    }
    assert!(spans.refusals.len() <= REFUSED);
}

#[test]
fn what_comes_from_the_dead_letters_has_a_span_of_its_own_time() {
    let (mut spans, mut left, _) = spans(10);
    let mut parked = Event::clone(&event(Some(SAMPLED)));
    parked.ticket = Ticket::NONE;
    let parked = Arc::new(parked);
    // Its probes may go on for days.
    spans.refused(&refused(&parked, Decision::Park), Refusal::Returned);
    assert!(spans.refusals.is_empty());
    spans.delivered(&delivered(&parked, Some(Released::ByItself)));
    let span = left.try_recv().unwrap();
    assert_eq!(seconds(span.course.start, span.course.end), 3, "from when it was taken out");
    spans.discarded(&refused(&parked, Decision::Discard(Ticket::NONE)));
    let span = left.try_recv().unwrap();
    assert_eq!(seconds(span.course.start, span.course.end), 0);
}

#[test]
fn what_a_poison_has_too_much_of_does_not_wait_in_the_queue() {
    let (mut spans, mut left, _) = spans(10);
    let mut poison = Event::clone(&event(Some(SAMPLED)));
    poison.id = "ä".repeat(500).into();
    let mut message = poison.content.clone().unwrap();
    message.routing_key = "x".repeat(1_000_000);
    message.properties.correlation_id = Some("x".repeat(1_000_000));
    message.properties.headers.push(("tracestate".into(), HeaderValue::Text("x".repeat(1_000_000))));
    poison.content = Ok(message);
    spans.delivered(&delivered(&Arc::new(poison), None));
    let span = left.try_recv().unwrap();
    assert_eq!((span.event_id.len(), span.routing_key.len()), (254, 255), "not in the middle of a character");
    assert_eq!((span.correlation_id.unwrap().len(), span.trace_state), (255, None));
}
