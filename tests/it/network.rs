//! A network between relay and servers that slows, splits, cuts and swallows.

use std::time::Duration;

use postrider::event::Event;
use postrider::status::Snapshot;

use crate::proxy::{Counts, Direction, Mischief, Proxy, Which};
use crate::publishing::{Publishing, Relay, all, assert_account, config, event, shared, through};
use crate::rabbit::Vhost;
use crate::support::consumer::Consumer;
use crate::support::relay;
use crate::support::world::World;
use crate::support::{PATIENCE, eventually, within};

const KEYS: usize = 70;

/// A vhost with a queue that gets everything, and a proxy before it.
async fn all_bound(name: &str) -> (Vhost, Proxy) {
    let (vhost, proxy, _) = shared(name).await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    (vhost, proxy)
}

fn events(count: usize) -> Vec<Event> {
    (0..count).map(|number| event(number, number % KEYS, "events", "key")).collect()
}

/// Everything has been resolved; it has arrived, in order.
async fn ends_well(mut publishing: Publishing, events: &[Event], vhost: Vhost) {
    publishing.resolved("everything", &all(events.len())).await;
    let done = publishing.done.clone();
    publishing.end().await.1.unwrap();
    assert_account(events, &done, &vhost.drain("all").await);
    vhost.remove().await;
}

/// F44.
#[tokio::test(flavor = "multi_thread")]
async fn one_byte_at_a_time_is_understood_as_well() {
    let (vhost, proxy) = all_bound("slices").await;
    proxy.set(Mischief::Slices);
    let events = events(300);
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |_| {}));
    relay.ready().await;
    let (publishing, metrics, _) = relay.publish();
    publishing.send_all(&events).await;
    publishing.until("all of them", || metrics.events_confirmed.get() == events.len() as u64).await;
    assert_eq!(proxy.counts().connections, 1);
    ends_well(publishing, &events, vhost).await;
}

/// F44: with a window of a hundred each round trip takes a second, and nothing is sent twice for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_costs_time_only() {
    let (vhost, proxy) = all_bound("latency").await;
    let events = events(400);
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| limits.window = 100));
    relay.ready().await;
    proxy.set(Mischief::Latency(Duration::from_millis(500)));
    let (publishing, metrics, _) = relay.publish();
    publishing.send_all(&events).await;
    publishing.until("all of them", || metrics.events_confirmed.get() == events.len() as u64).await;
    assert_eq!((proxy.counts().connections, proxy.counts().published), (1, events.len() as u64));
    ends_well(publishing, &events, vhost).await;
}

/// F44: whichever byte of a publish is the last one that gets through, half a publish is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_after_any_byte_of_a_publish_loses_nothing() {
    let (vhost, proxy) = all_bound("cut-after").await;
    // Of one publish on this connection; what comes before them is a handshake, and the cut counts from where it is set.
    let sizes = async || {
        let mut relay = Relay::new(config(&through(&proxy, &vhost), |_| {}));
        relay.ready().await;
        let (mut publishing, ..) = relay.publish();
        publishing.send(events(1)).await;
        publishing.resolved("one", &all(1)).await;
        let before = proxy.counts().bytes_to_server;
        publishing.send(vec![event(1, 1, "events", "key")]).await;
        publishing.resolved("two", &all(2)).await;
        let size = proxy.counts().bytes_to_server - before;
        publishing.end().await.1.unwrap();
        size
    };
    let size = sizes().await;
    vhost.drain("all").await;
    assert!((100..2_000).contains(&size), "a publish has {size} bytes");

    let step = 7;
    let cuts = usize::try_from(2 * size / step).unwrap();
    let events = events(10 * (cuts + 1));
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        // What a cut leaves behind is sent again at once.
        limits.broker_patience = PATIENCE;
    }));
    relay.ready().await;
    let (mut publishing, ..) = relay.publish();
    for (number, part) in (1..).zip(events.chunks(10)) {
        let (connections, struck) = (proxy.counts().connections, proxy.counts().cuts);
        let last = number > cuts;
        if !last {
            proxy.set(Mischief::CutAfter(step * number as u64));
        }
        publishing.send(part.to_vec()).await;
        if !last {
            // Cleared as soon as it has struck: the next connection is not to be cut in its handshake.
            publishing.until("the cut", || proxy.counts().cuts > struck).await;
            proxy.clear();
            publishing.until("the next connection", || proxy.counts().connections > connections).await;
        }
        publishing.resolved("what was cut", &all(10 * number)).await;
    }
    assert!(proxy.counts().cuts >= cuts as u64);
    ends_well(publishing, &events, vhost).await;
}

/// F44.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_closed_on_one_side_is_replaced() {
    for (name, direction) in [("half-up", Direction::ToServer), ("half-down", Direction::ToClient)] {
        let (vhost, proxy) = all_bound(name).await;
        let events = events(2_000);
        let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| limits.window = 100));
        relay.ready().await;
        let (publishing, metrics, _) = relay.publish();
        publishing.send_all(&events[..1_000]).await;
        publishing.until("some of them", || metrics.events_confirmed.get() > 100).await;
        proxy.set(Mischief::HalfClose(direction));
        publishing.until("another connection", || proxy.counts().connections == 2).await;
        publishing.send_all(&events[1_000..]).await;
        ends_well(publishing, &events, vhost).await;
    }
}

/// F40: the broker has taken the publishes, and its word comes after we have given up waiting for it. On the next channel the same
/// tags stand for other publishes.
#[tokio::test(flavor = "multi_thread")]
async fn confirms_that_come_after_the_time_out_confirm_nothing_on_the_next_channel() {
    let (vhost, proxy) = all_bound("late").await;
    let events = events(1_000);
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.confirm_timeout = Duration::from_secs(1);
        limits.broker_patience = PATIENCE;
        limits.window = 100;
    }));
    relay.ready().await;
    let (publishing, metrics, _) = relay.publish();
    publishing.send_all(&events[..200]).await;
    publishing.until("some of them", || metrics.events_confirmed.get() > 100).await;
    proxy.set(Mischief::Stall(Direction::ToClient));
    publishing.send_all(&events[200..]).await;
    publishing.until("time-outs", || metrics.confirm_timeouts.get() > 0).await;
    proxy.clear();
    publishing.until("another connection", || proxy.counts().connections > 1).await;
    ends_well(publishing, &events, vhost).await;
}

/// F40: all of them, on every connection for a while.
#[tokio::test(flavor = "multi_thread")]
async fn confirms_that_are_dropped_on_several_connections_are_asked_for_again() {
    let (vhost, proxy) = all_bound("dropped").await;
    let events = events(300);
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.confirm_timeout = Duration::from_millis(500);
        limits.broker_patience = PATIENCE;
    }));
    relay.ready().await;
    let (publishing, ..) = relay.publish();
    proxy.set(Mischief::DropAcks(Which::All));
    publishing.send_all(&events).await;
    publishing.until("a third connection", || proxy.counts().connections > 2).await;
    proxy.clear();
    let Counts { dropped, .. } = proxy.counts();
    assert!(dropped > 0);
    ends_well(publishing, &events, vhost).await;
}

/// F55: neither side would send anything but heartbeats; each alone must notice that the other's do not come.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_heartbeats_is_found_dead() {
    for (name, direction) in [("mute", Direction::ToServer), ("deaf", Direction::ToClient)] {
        let (vhost, proxy) = all_bound(name).await;
        let url = format!("{}?heartbeat=2", through(&proxy, &vhost));
        let mut relay = Relay::new(config(&url, |_| {}));
        relay.ready().await;
        let (mut publishing, ..) = relay.publish();
        let events = events(20);
        publishing.send(events[..10].to_vec()).await;
        publishing.resolved("before", &all(10)).await;
        proxy.set(Mischief::SwallowHeartbeats(direction));
        within(Duration::from_secs(15), "another connection", async || (proxy.counts().connections > 1).then_some(()))
            .await;
        proxy.clear();
        publishing.send(events[10..].to_vec()).await;
        ends_well(publishing, &events, vhost).await;
    }
}

/// Nobody answers, and nobody says that he has gone: a balancer that keeps connections to a dead server.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_has_fallen_silent_is_found_dead() {
    tokio::join!(
        silent("silent_both", Mischief::Stall(Direction::Both)),
        silent("silent_down", Mischief::Stall(Direction::ToClient)),
        // The stream goes on, and nothing can be recorded: the WAL would be kept for ever.
        silent("silent_sql", Mischief::StallSql),
    );
}

/// F22. `wal_sender_timeout` is 60 s (the relay sets it): twice that is what it may take, and 120 s for a connection for SQL.
async fn silent(name: &str, silence: Mischief) {
    let world = World::new(name).await;
    world.queue("all", "#").await;
    let server = &world.servers.database_url;
    let proxy = Proxy::postgres(&format!("{}:{}", server.host_str().unwrap(), server.port().unwrap_or(5432))).await;
    let mut url: url::Url = world.database_url.parse().unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.port)).unwrap();
    let relay = relay::Relay::carrying(&world, &[("DATABASE_URL", url.as_str())]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    world.insert("1", "Placed", "{}").await;
    consumer.take(1).await;
    eventually("a status update", async || proxy.evidence().flushes.last().copied()).await;

    proxy.set(silence);
    world.insert("2", "Placed", "{}").await;
    within(Duration::from_secs(150), "the relay finds that PostgreSQL is silent", async || {
        (!relay.status.snapshot().carrying()).then_some(())
    })
    .await;
    proxy.clear();
    relay.until("the relay carries again", Snapshot::carrying).await;
    assert_eq!(consumer.take(1).await[0].kind, "Placed");
    let flushes = proxy.evidence().flushes;
    assert!(flushes.windows(2).all(|pair| pair[0].flushed <= pair[1].flushed), "an acknowledgement went back");
    relay.stop().await;
}
