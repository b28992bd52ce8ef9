//! The publisher against a real broker, with a proxy between them that misbehaves (rules R2, R3 and R5).

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::types::AMQPValue;
use postrider::event::Event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::publishing::{
    Relay, all, assert_account, assert_everything_arrived, config, deliverable, event, index, number_of, routing_key,
    shared, through,
};
use crate::rabbit::first_arrivals;
use crate::support::eventually;

/// F33: lapin hands a waiting return to whatever confirm completes next.
#[tokio::test(flavor = "multi_thread")]
async fn unroutable_events_among_500_in_flight_are_neither_lost_nor_counted_as_delivered() {
    let (vhost, proxy, seed) = shared("returns").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "routable").await;
    proxy.shuffle();

    let mut rng = StdRng::seed_from_u64(seed);
    let events: Vec<Event> = (0..6_000)
        .map(|number| {
            let routing_key = if rng.random_bool(0.1) { "unroutable" } else { "routable" };
            event(number, rng.random_range(0..2_000), "events", routing_key)
        })
        .collect();
    let expected = deliverable(&events, |event| routing_key(event) == "routable");

    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.window = 500;
        // Retries are the oldest events and go first. More than 500 keys are held: with less time between their retries they alone
        // are as many as a slow machine can publish, and leave the others next to nothing.
        limits.retry_min = Duration::from_secs(1);
        limits.retry_max = Duration::from_secs(3);
    }));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    publishing.send_all(&events).await;
    publishing.resolved("while nothing is bound for some", &expected).await;
    // Some rounds of retries later it is still so.
    let returned = metrics.events_returned.get();
    eventually("more returns", async || (metrics.events_returned.get() > returned + 1_000).then_some(())).await;
    publishing.resolved("after many retries", &expected).await;
    eventually("held keys in the status", async || (status.snapshot().held_keys > 0).then_some(())).await;

    vhost.bind("all", "events", "unroutable").await;
    publishing.resolved("after the binding", &all(events.len())).await;
    let done = publishing.done.clone();
    let (_, result) = publishing.end().await;
    result.unwrap();
    assert_account(&events, &done, &vhost.drain("all").await);
    let seen = proxy.counts();
    assert_eq!(seen.connections, 1, "nothing needed another connection");
    for (what, count) in [
        ("merged", seen.merged),
        ("reordered", seen.reordered),
        ("several returns inside one multiple", seen.returns_in_multiple),
    ] {
        assert!(count > 20, "the proxy was to do more of: {what} ({count})");
    }
    assert_eq!(metrics.events_confirmed.get(), events.len() as u64);
    vhost.remove().await;
}

/// A full queue refuses with a nack what it cannot take; quorum queues decide late, classic ones at once.
async fn nacks_of_a_full_queue(name: &str, kind: &str) {
    let (vhost, proxy, seed) = shared(name).await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "routable").await;
    let full = [
        ("x-queue-type", AMQPValue::LongString(kind.into())),
        ("x-max-length", AMQPValue::LongInt(20)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    vhost.queue("full", &full).await;
    vhost.bind("full", "events", "full").await;
    proxy.shuffle();

    let mut rng = StdRng::seed_from_u64(seed);
    let events: Vec<Event> = (0..3_000)
        .map(|number| {
            let routing_key =
                ["routable", "unroutable", "full"][[0, 0, 0, 0, 0, 0, 0, 0, 1, 2][rng.random_range(0..10)]];
            event(number, rng.random_range(0..1_000), "events", routing_key)
        })
        .collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| limits.window = 500));
    relay.ready().await;
    let (mut publishing, metrics, _) = relay.publish();
    publishing.send_all(&events).await;
    eventually("nacks", async || (metrics.events_nacked.get() > 100).then_some(())).await;
    eventually("returns", async || (metrics.events_returned.get() > 100).then_some(())).await;

    // Room comes back, then the binding.
    let full = vhost.collect("full").await;
    eventually("room in the full queue", async || (full.count() > 100).then_some(())).await;
    vhost.bind("all", "events", "unroutable").await;
    publishing.resolved("with room and binding", &all(events.len())).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    let arrivals = eventually("all confirmed messages with the consumer", async || {
        let arrived: BTreeSet<String> = first_arrivals(&full.arrivals()).into_iter().collect();
        let expected = events.iter().filter(|event| routing_key(event) == "full");
        expected
            .map(|event| event.position.to_string())
            .all(|position| arrived.contains(&position))
            .then(|| full.arrivals())
    });
    let arrivals = arrivals.await;
    assert!(arrivals.iter().all(|arrival| !arrival.redelivered), "the consumer saw the order of the queue");
    // One key's events are in both queues, so order is looked at in each.
    let all_queue = vhost.drain("all").await;
    assert_everything_arrived(&events, &done, all_queue.iter().chain(&arrivals));
    for (queue, arrivals) in [("all", &all_queue), ("full", &arrivals)] {
        let firsts = first_arrivals(arrivals);
        for key in 0..1_000 {
            let key = format!("thing/{key}");
            let of_key: Vec<&String> =
                firsts.iter().filter(|position| *events[number_of(position)].key == key).collect();
            assert!(of_key.is_sorted(), "{key} in queue {queue}: {of_key:?}");
        }
    }
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nacks_of_a_full_classic_queue_hold_their_keys_until_there_is_room() {
    nacks_of_a_full_queue("nack-classic", "classic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nacks_of_a_full_quorum_queue_hold_their_keys_until_there_is_room() {
    nacks_of_a_full_queue("nack-quorum", "quorum").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_exchange_holds_its_events_and_no_others_until_it_is_back() {
    let (vhost, proxy, seed) = shared("exchange").await;
    for exchange in ["events", "other"] {
        vhost.exchange(exchange).await;
        vhost.queue(exchange, &[]).await;
        vhost.bind(exchange, exchange, "#").await;
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let events: Vec<Event> = (0..3_000)
        .map(|number| {
            let exchange = if rng.random_bool(0.3) { "other" } else { "events" };
            // Keys of one exchange each, so that what the other one must deliver is known.
            event(number, rng.random_range(0..100) * 2 + usize::from(exchange == "other"), exchange, "key")
        })
        .collect();
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| limits.window = 200));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    publishing.send_all(&events[..1_000]).await;
    publishing.resolved("with both exchanges", &all(1_000)).await;
    vhost.delete_exchange("other").await;
    publishing.send_all(&events[1_000..]).await;
    let expected: BTreeSet<u64> =
        (0..3_000).filter(|number| *number < 1_000 || events[index(*number)].route.exchange == "events").collect();
    publishing.resolved("with one exchange", &expected).await;
    let failing =
        eventually("a failing exchange in the status", async || status.snapshot().failing_exchanges.first().cloned());
    let failing = failing.await;
    assert_eq!(failing.exchange, "other");
    assert!(failing.error.contains("NOT_FOUND"), "{}", failing.error);
    assert!(status.snapshot().held_keys > 0);

    vhost.exchange("other").await;
    vhost.bind("other", "other", "#").await;
    publishing.resolved("with the exchange back", &all(3_000)).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    let mut arrivals = vhost.drain("events").await;
    arrivals.extend(vhost.drain("other").await);
    assert_account(&events, &done, &arrivals);
    assert!(status.snapshot().failing_exchanges.is_empty());
    assert_eq!(metrics.events_nacked.get(), 0, "a missing exchange is nobody's nack");
    vhost.remove().await;
}
