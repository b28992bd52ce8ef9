//! The publisher when the broker or the network fails (rule R5).

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use lapin::types::AMQPValue;
use postrider::config::Limits;
use postrider::dead_letters::{NewDeadLetter, Reason};
use postrider::event::{Event, PoisonReason};
use postrider::rabbitmq::connection::connect_to;
use postrider::rabbitmq::publisher::BrokerError;
use postrider::rabbitmq::url::Target;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::timeout;

use crate::proxy::{Direction, Mischief, Which};
use crate::publishing::{Relay, all, assert_account, config, deliverable, event, shared, through, with_body};
use crate::rabbit::Arrival;
use crate::support::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_again_and_again_costs_repetitions_only() {
    let (vhost, proxy, seed) = shared("cut").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    proxy.shuffle();
    let mut rng = StdRng::seed_from_u64(seed);
    let events: Vec<Event> =
        (0..10_000).map(|number| event(number, rng.random_range(0..700), "events", "key")).collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| limits.window = 300));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    let connections = || proxy.counts().connections;
    // Nine parts, a cut in the middle of each but the last. What an earlier connection still confirmed was counted before the next
    // one was made.
    for (cuts, part) in (0..).zip(events.chunks(events.len().div_ceil(9))) {
        publishing.until("a connection after the cut", || connections() == cuts + 1).await;
        let before = metrics.events_confirmed.get();
        publishing.send_all(part).await;
        publishing.until("progress", || metrics.events_confirmed.get() > before + 300).await;
        if cuts < 8 {
            proxy.cut();
        }
    }
    publishing.resolved("after the cuts", &all(events.len())).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    let arrivals = vhost.drain("all").await;
    assert_account(&events, &done, &arrivals);
    assert!(metrics.publish_retries.get() > 0);
    assert_eq!(connections(), 9);
    assert!(status.snapshot().broker_up);
    // Repetitions are byte for byte the same, but for the time of the publish.
    let mut first: BTreeMap<String, Arrival> = BTreeMap::new();
    let mut repeated = 0;
    for arrival in arrivals {
        let known = first.entry(arrival.position.clone()).or_insert_with(|| arrival.clone());
        repeated += usize::from(known.properties != arrival.properties);
        assert_eq!((&known.message_id, &known.body), (&arrival.message_id, &arrival.body));
    }
    assert!(repeated > 0, "something was sent twice");
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_in_the_handshake_is_given_up_at_once() {
    let (vhost, proxy, _) = shared("handshake").await;
    let target = Target::parse(&through(&proxy, &vhost)).unwrap();
    for frames in 1..=3 {
        proxy.set(Mischief::EndAfterFrames(frames));
        // lapin does not miss the end every time.
        let tries = (0..10).map(async |_| {
            let started = Instant::now();
            let error = match connect_to(&target, "handshake").await {
                Ok(link) => link.channel().await.unwrap_err().to_string(),
                Err(error) => error.to_string(),
            };
            (started.elapsed(), error)
        });
        for (took, error) in join_all(tries).await {
            assert!(took < Duration::from_secs(5), "cut after {frames} frames: {took:?}: {error}");
        }
    }
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_while_it_is_being_made_does_not_end_the_session() {
    let (vhost, proxy, _) = shared("cut-again").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let events: Vec<Event> = (0..300).map(|number| event(number, number % 70, "events", "key")).collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |_| {}));
    relay.ready().await;
    let (mut publishing, _, status) = relay.publish();
    let connections = || proxy.counts().connections;
    for frames in 1..=3 {
        let before = connections();
        proxy.set(Mischief::EndAfterFrames(frames as u64));
        proxy.cut();
        publishing.until("the next connection", || connections() > before).await;
        proxy.clear();
        publishing.send_all(&events[(frames - 1) * 100..frames * 100]).await;
        publishing.resolved("after two cuts", &all(frames * 100)).await;
        assert!(connections() >= before + 2, "the next connection was cut too");
    }
    assert!(status.snapshot().broker_up);
    publishing.end().await.1.unwrap();
    assert_account(&events, &all(events.len()), &vhost.drain("all").await);
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_the_publisher_gives_up_after_its_patience_and_the_next_session_delivers() {
    let (vhost, proxy, _) = shared("patience").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let events: Vec<Event> = (0..100).map(|number| event(number, number, "events", "key")).collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.broker_patience = Duration::from_secs(2);
    }));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    publishing.send_all(&events[..50]).await;
    publishing.resolved("before", &all(50)).await;
    proxy.serve(false);
    proxy.cut();
    publishing.send_all(&events[50..]).await;
    let started = Instant::now();
    let (broker, result) = timeout(PATIENCE, publishing.task).await.expect("the publisher does not end").unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, BrokerError::Unavailable { .. }), "{error}");
    assert!(
        (Duration::from_millis(1_500)..Duration::from_secs(5)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
    assert!(!status.snapshot().broker_up && status.snapshot().problem.is_some());

    proxy.serve(true);
    let mut relay = Relay { metrics, status, broker };
    relay.ready().await;
    let (mut publishing, _, status) = relay.publish();
    publishing.send_all(&events[50..]).await;
    publishing.resolved("after", &(50..100).collect()).await;
    assert!(status.snapshot().broker_up && status.snapshot().problem.is_none());
    publishing.end().await.1.unwrap();
    assert_account(&events, &all(100), &vhost.drain("all").await);
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn confirms_that_never_come_are_a_broker_failure_if_none_comes() {
    let (vhost, proxy, _) = shared("no-confirms").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let events: Vec<Event> = (0..1_000).map(|number| event(number, number % 300, "events", "key")).collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.confirm_timeout = Duration::from_secs(1);
        limits.window = 200;
        // Long enough that held events would be seen.
        limits.retry_min = PATIENCE / 3;
        limits.retry_max = PATIENCE / 3;
    }));
    relay.ready().await;
    let (mut publishing, metrics, _) = relay.publish();
    proxy.set(Mischief::DropAcks(Which::All));
    publishing.send_all(&events).await;
    eventually("a second connection", async || (proxy.counts().connections > 1).then_some(())).await;
    proxy.clear();
    let started = Instant::now();
    publishing.resolved("all", &all(events.len())).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    assert_account(&events, &done, &vhost.drain("all").await);
    assert!(metrics.confirm_timeouts.get() > 0);
    assert!(started.elapsed() < PATIENCE / 3, "none of them was held: {:?}", started.elapsed());
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_is_missing_among_others_holds_its_event_alone() {
    let (vhost, proxy, _) = shared("one-confirm").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let events: Vec<Event> = (0..2_000).map(|number| event(number, number % 500, "events", "key")).collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        // Longer than a loaded machine's broker is silent: if nothing at all is confirmed, it is the connection that is given up.
        limits.confirm_timeout = Duration::from_secs(4);
        limits.window = 100;
        limits.retry_min = Duration::from_secs(4);
        limits.retry_max = Duration::from_secs(4);
    }));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    proxy.set(Mischief::DropAcks(Which::Next(3)));
    // Others are confirmed all the time until the three are overdue.
    for events in events.chunks(20) {
        publishing.send(events.to_vec()).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    eventually("three held keys", async || (metrics.held_keys.get() == 3).then_some(())).await;
    publishing.resolved("all", &all(events.len())).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    assert_account(&events, &done, &vhost.drain("all").await);
    assert_eq!(metrics.confirm_timeouts.get(), 3);
    assert_eq!(proxy.counts().connections, 2, "a new connection, once");
    assert!(status.snapshot().most_delayed.is_none());
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_broker_refuses_is_isolated_from_500_good_ones() {
    let (vhost, proxy, seed) = shared("poison").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    proxy.shuffle();
    let mut rng = StdRng::seed_from_u64(seed);
    // RabbitMQ's max_message_size is 16 MiB.
    let too_large = |number| with_body(event(number, 250, "events", "key"), 17 * 1024 * 1024);
    let events: Vec<Event> = (0..600)
        .map(|number| match number {
            250 => too_large(number),
            _ => event(number, rng.random_range(0..600), "events", "key"),
        })
        .collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.window = 500;
        limits.window_bytes = 64 << 20;
        limits.waiting_bytes = 64 << 20;
    }));
    relay.ready().await;
    let (mut publishing, metrics, _) = relay.publish();
    publishing.send(events.clone()).await;
    publishing.resolved("delivered, or parked with its key", &all(events.len())).await;
    let parked: Vec<NewDeadLetter> = publishing.parked.lock().unwrap().values().cloned().collect();
    let (poison, behind) = parked.split_first().unwrap();
    assert_eq!((poison.event.position, poison.reason), (events[250].position, Reason::Poison(PoisonReason::Refused)));
    assert!(poison.error.contains("PRECONDITION_FAILED"), "{}", poison.error);
    assert!(behind.iter().all(|letter| letter.reason == Reason::Behind && letter.event.key == poison.event.key));
    publishing.end().await.1.unwrap();
    let delivered = deliverable(&events, |event| event.position != events[250].position);
    assert_eq!(delivered.len() + parked.len(), events.len());
    assert_account(&events, &delivered, &vhost.drain("all").await);
    let channel_errors = metrics.reconnects.with_label_values(&["rabbitmq", "channel_error"]).get();
    assert_eq!(channel_errors, 2, "once among others, once alone");
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_with_suspects_sends_them_one_by_one_in_the_next() {
    let (vhost, proxy, _) = shared("suspects").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let mut events: Vec<Event> = (0..300).map(|number| event(number, number, "events", "key")).collect();
    events[100] = with_body(event(100, 100, "events", "key"), 17 * 1024 * 1024);
    let limits = |limits: &mut Limits| {
        limits.window_bytes = 64 << 20;
        limits.waiting_bytes = 64 << 20;
    };
    let mut relay = Relay::new(config(&through(&proxy, &vhost), limits));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    publishing.send(events.clone()).await;
    let errors = metrics.reconnects.with_label_values(&["rabbitmq", "channel_error"]);
    eventually("a channel error", async || (errors.get() == 1).then_some(())).await;
    // The session goes away in the middle.
    publishing.resolved.close();
    let (broker, result) = timeout(PATIENCE, publishing.task).await.expect("the publisher does not end").unwrap();
    result.unwrap();
    publishing.done.clear();
    while let Ok(tickets) = publishing.resolved.try_recv() {
        publishing.done.extend(tickets.iter().map(|ticket| ticket.entry));
    }
    let rest: Vec<Event> =
        events.iter().filter(|event| !publishing.done.contains(&event.ticket.entry)).cloned().collect();
    let before = publishing.done.clone();
    let failed = errors.get();

    let mut relay = Relay { metrics, status, broker };
    relay.ready().await;
    let (mut publishing, ..) = relay.publish();
    publishing.send(rest.clone()).await;
    publishing.resolved("the rest", &rest.iter().map(|event| event.ticket.entry).collect()).await;
    let parked: Vec<u64> = publishing.parked.lock().unwrap().values().map(|letter| letter.event.ticket.entry).collect();
    assert_eq!(parked, [100]);
    let expected = publishing.done.iter().copied().filter(|number| *number != 100).collect();
    assert!(errors.get() - failed <= 1, "the culprit fails alone, and nothing with it");
    publishing.end().await.1.unwrap();
    let delivered = before.union(&expected).copied().collect();
    assert_account(&events, &delivered, &vhost.drain("all").await);
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_network_neither_loses_nor_reorders() {
    let (vhost, proxy, _) = shared("stall").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let events: Vec<Event> = (0..2_000).map(|number| event(number, number % 300, "events", "key")).collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.confirm_timeout = Duration::from_secs(1);
        limits.window = 200;
    }));
    relay.ready().await;
    let (mut publishing, metrics, _) = relay.publish();
    publishing.send_all(&events[..500]).await;
    eventually("half of them", async || (metrics.events_confirmed.get() > 250).then_some(())).await;
    proxy.set(Mischief::Stall(Direction::Both));
    publishing.send_all(&events[500..]).await;
    eventually("time-outs", async || (metrics.confirm_timeouts.get() > 0).then_some(())).await;
    proxy.clear();
    publishing.resolved("all", &all(events.len())).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    assert_account(&events, &done, &vhost.drain("all").await);
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_message_has_reaches_the_queue() {
    let (vhost, _proxy, _) = shared("properties").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let mut relay = Relay::new(config(&vhost.url(&vhost.server.address()), |_| {}));
    relay.ready().await;
    let (mut publishing, ..) = relay.publish();
    publishing.send(vec![event(0, 0, "events", "key")]).await;
    publishing.resolved("it", &all(1)).await;
    publishing.end().await.1.unwrap();
    let arrival = vhost.drain("all").await.remove(0);
    let headers = arrival.properties.headers().clone().unwrap();
    let names: Vec<String> = headers.inner().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["aggregateid", "x-postrider-position", "x-postrider-relay-epoch", "x-postrider-sent-at"]);
    assert_eq!(headers.inner().get("x-postrider-relay-epoch"), Some(&AMQPValue::LongLongInt(7)));
    let Some(AMQPValue::LongLongInt(sent_at)) = headers.inner().get("x-postrider-sent-at") else {
        panic!("x-postrider-sent-at is no number")
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    assert!((i64::try_from(now).unwrap() - sent_at).abs() < 60_000, "milliseconds since the epoch: {sent_at}");
    let expected = lapin::BasicProperties::default()
        .with_delivery_mode(2)
        .with_app_id("postrider".into())
        .with_message_id("id-0".into())
        .with_type("Happened".into())
        .with_content_type("application/json".into())
        .with_timestamp(1_700_000_000)
        .with_headers(headers);
    assert_eq!(arrival.properties, expected);
    assert_eq!(arrival.body, b"{\"number\": 0}");
    vhost.remove().await;
}
