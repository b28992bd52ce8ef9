//! Spans of sampled events, as a collector gets them, and what a collector may not do to the relay.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use postrider::lsn::Lsn;

use crate::parking::{QUICK, until_parked};
use crate::support::collector::{Collector, attribute};
use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::http;
use crate::support::relay::Program;
use crate::support::world::World;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const SECRET: &str = "planted-payload-5c1e";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// One event; its id.
async fn insert(world: &World, kind: &str, traceparent: &str) -> String {
    let statement = "insert into outbox (aggregatetype, aggregateid, type, payload, headers) \
                     values ('order', '1', $1, jsonb_build_object('secret', $2::text), \
                             jsonb_build_object('traceparent', $3::text, 'tracestate', 'vendor=t61rcWkgMzE', 'correlation_id', 'c-1')) \
                     returning id::text";
    world.sql.query_one(statement, &[&kind, &SECRET, &traceparent]).await.unwrap().get(0)
}

/// Waits until the slot has passed what was committed at `written`. What is written later, without events, may be left.
async fn passes(world: &World, written: Lsn) {
    eventually("the slot passes", || async { world.confirmed().await.filter(|lsn| *lsn >= written) }).await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of(span: &Span, name: &str) -> Option<String> {
    attribute(&span.attributes, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_event_has_one_span_in_its_producers_trace_and_every_traceparent_arrives_as_it_was() {
    let (world, collector) = (World::new("traces").await, Collector::start().await);
    world.queue("all", "#").await;
    let more = [
        (ENDPOINT, collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20planted-token"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("POSTRIDER_LOG", "trace"),
    ];
    let mut program = Program::start(&world.settings(&more), &["run"]);
    program.says("carrying").await;
    // Sampled, not sampled, and not valid: no consumer should see anything but what the producer wrote.
    let sent = [
        SAMPLED,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "nonsense",
    ];
    let mut ids = Vec::new();
    for traceparent in sent {
        ids.push(insert(&world, "Placed", traceparent).await);
    }
    let written = world.current_lsn().await;
    let arrivals = Consumer::open(&world.amqp_url, "all").await.take(sent.len()).await;
    for ((arrival, traceparent), id) in arrivals.iter().zip(sent).zip(&ids) {
        assert_eq!(arrival.header("traceparent").as_deref(), Some(traceparent));
        assert_eq!(arrival.header("tracestate").as_deref(), Some("vendor=t61rcWkgMzE"));
        assert_eq!(&arrival.id, id);
    }
    passes(&world, written).await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(20)).await.success());

    let requests = collector.requests();
    let spans = collector.spans();
    assert_eq!(spans.len(), 1, "{spans:?}");
    let (request, span) = (&requests[0], &spans[0]);
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert!(hex(&span.span_id) != PARENT && hex(&span.span_id) != "0".repeat(16));
    assert_eq!((span.name.as_str(), span.kind), ("send events", SpanKind::Client as i32));
    assert_eq!(span.trace_state, "vendor=t61rcWkgMzE");
    assert_eq!(span.status.clone().unwrap_or_default().code(), StatusCode::Unset);
    assert!(span.start_time_unix_nano > 0 && span.start_time_unix_nano <= span.end_time_unix_nano);
    let position = arrivals[0].header("x-postrider-position").unwrap();
    for (name, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "events:order.Placed"),
        ("messaging.rabbitmq.destination.routing_key", "order.Placed"),
        ("messaging.message.id", &ids[0]),
        ("messaging.message.conversation_id", "c-1"),
        ("server.address", world.servers.amqp_url.host_str().unwrap()),
        ("postrider.position", &position),
        ("postrider.route", "default"),
        ("postrider.attempts", "1"),
        ("postrider.outcome", "delivered"),
    ] {
        assert_eq!(of(span, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!((request.path.as_str(), request.authorization.as_str()), ("/v1/traces", "Bearer planted-token"));
    for (name, value) in
        [("service.name", "postrider"), ("postrider.slot", &world.name), ("deployment.environment.name", "test")]
    {
        assert_eq!(attribute(&request.resource, name).as_deref(), Some(value), "{name}");
    }
    assert!(!request.body.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "no payload in a span");
    let log = program.log();
    assert!(!log.contains("planted-token") && !log.contains(SECRET), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_returned_and_parked_has_an_error_span_and_another_one_when_it_goes_out() {
    let (world, collector) = (World::new("traces_parked").await, Collector::start().await);
    world.exchange("events").await;
    let settings = world.settings(&[QUICK.as_slice(), &[(ENDPOINT, collector.url.as_str())]].concat());
    let program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    let id = insert(&world, "Unread", SAMPLED).await;
    until_parked(&world, "it is parked", 1).await;
    let parked = eventually("a span of what was parked", || async { collector.spans().first().cloned() }).await;
    assert_eq!(hex(&parked.trace_id), TRACE);
    let status = parked.status.clone().unwrap();
    assert_eq!(status.code(), StatusCode::Error);
    assert!(status.message.starts_with("parked: unroutable"), "{}", status.message);
    assert_eq!(of(&parked, "error.type").as_deref(), Some("unroutable"));
    assert_eq!(of(&parked, "messaging.message.id").as_deref(), Some(id.as_str()));
    let refusals = parked.events.iter().filter(|event| event.name == "returned").count();
    assert_eq!(of(&parked, "postrider.attempts"), Some(refusals.to_string()), "each refusal is told");
    assert!(refusals > 1);

    world.queue("unread", "order.Unread").await;
    until_parked(&world, "it is released", 0).await;
    let released = eventually("its second span", || async { collector.spans().get(1).cloned() }).await;
    assert_eq!((hex(&released.trace_id), hex(&released.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_ne!(released.span_id, parked.span_id);
    assert_eq!(of(&released, "postrider.outcome").as_deref(), Some("released"));
    assert_eq!(released.status.unwrap_or_default().code(), StatusCode::Unset);
    assert!(released.start_time_unix_nano >= parked.end_time_unix_nano, "of its own time");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_its_route_discards_has_an_error_span_and_is_not_said_to_be_sent_again() {
    let (world, collector) = (World::new("traces_discard").await, Collector::start().await);
    world.exchange("events").await;
    let more = [(ENDPOINT, collector.url.as_str()), ("POSTRIDER_EVENT_ON_UNROUTABLE", "discard")];
    let program = Program::start(&world.settings(&more), &["run"]);
    program.says("carrying").await;
    let id = insert(&world, "Unread", SAMPLED).await;
    let span = eventually("its span", || async { collector.spans().first().cloned() }).await;
    assert_eq!(span.status.clone().unwrap_or_default().code(), StatusCode::Error);
    assert_eq!(of(&span, "postrider.outcome").as_deref(), Some("discarded"));
    assert_eq!(of(&span, "messaging.message.id").as_deref(), Some(id.as_str()));
    program.says("its events are gone").await;
    assert!(!program.log().contains("it is sent again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_flow_as_before_while_the_collector_is_away_or_never_answers() {
    let silent = Collector::silent().await;
    for (name, url, timeout) in [("away", "http://127.0.0.1:1", "10000"), ("silent", silent.url.as_str(), "300")] {
        let world = World::new(&format!("traces_{name}")).await;
        world.queue("all", "#").await;
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let settings = world.settings(&[
            (ENDPOINT, url),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout),
            ("POSTRIDER_ADMIN_LISTEN", &admin),
        ]);
        let mut program = Program::start(&settings, &["run"]);
        program.says("carrying").await;
        let mut consumer = Consumer::open(&world.amqp_url, "all").await;
        insert(&world, "First", SAMPLED).await;
        consumer.take(1).await;
        program.says("the collector takes no spans").await;
        // More than the queue holds.
        let many = "insert into outbox (aggregatetype, aggregateid, type, payload, headers) \
                    select 'order', number::text, 'Many', '{}', jsonb_build_object('traceparent', $1::text) \
                    from generate_series(1, 5000) as number";
        world.sql.execute(many, &[&SAMPLED]).await.unwrap();
        let written = world.current_lsn().await;
        assert_eq!(consumer.take(5_000).await.len(), 5_000);
        passes(&world, written).await;
        let (_, metrics) = http::get(&admin, "/metrics").await.unwrap();
        let dropped = metrics.lines().find(|line| line.starts_with("postrider_spans_dropped_total")).unwrap();
        let dropped: u64 = dropped.rsplit(' ').next().unwrap().parse().unwrap();
        // All but what is in the queue and in one request.
        assert!(dropped >= 5_000 - 2_048 - 512, "{name}: {dropped}");
        program.signal("-TERM");
        assert!(program.exit(Duration::from_secs(20)).await.success(), "{name}");
        assert_eq!(program.log().matches("the collector takes no spans").count(), 1, "once for each change");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_holds_up_the_end_for_a_second_at_most() {
    let (world, silent) = (World::new("traces_end").await, Collector::silent().await);
    world.queue("all", "#").await;
    let mut program = Program::start(&world.settings(&[(ENDPOINT, silent.url.as_str())]), &["run"]);
    program.says("carrying").await;
    insert(&world, "Placed", SAMPLED).await;
    eventually("it has the span, and answers nothing", || async { silent.spans().first().cloned() }).await;
    program.signal("-TERM");
    program.says("stopped").await;
    // The request itself would go on for ten.
    assert!(program.exit(Duration::from_secs(5)).await.success());
    assert!(program.log().contains("the last spans were not exported in time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_that_cannot_work_are_said_once_and_the_relay_carries_without_spans() {
    let world = World::new("traces_wrong").await;
    world.queue("all", "#").await;
    let settings = world
        .settings(&[(ENDPOINT, "http://u:planted-password@127.0.0.1:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    let program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    insert(&world, "Placed", SAMPLED).await;
    Consumer::open(&world.amqp_url, "all").await.take(1).await;
    let log = program.log();
    assert!(log.contains("no spans are exported") && log.contains("http/protobuf"), "{log}");
    assert!(!log.contains("planted-password"), "{log}");
}
