//! What is said of the consumers' queues, with a real broker and its management API.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions,
    ExchangeBindOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use postrider::lag::sample_queues;
use postrider::metrics::Metrics;
use postrider::status::{Snapshot, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::consumer::Consumer;
use crate::support::relay::Relay;
use crate::support::world::World;
use crate::support::{PATIENCE, eventually, servers, within};

/// A sampler at work on a thread of its own, with metrics of its own. It ends when this is dropped.
struct Watch {
    metrics: Metrics,
    status: Status,
    _stop: oneshot::Sender<()>,
}

impl Watch {
    fn start(world: &World, more: &[(&str, &str)]) -> Self {
        let management = world.servers.management_url.to_string();
        let settings = [("POSTRIDER_MANAGEMENT_URL", management.as_str()), ("POSTRIDER_CONSUMERS_PERIOD", "5s")];
        Watch::with(world, &[&settings, more].concat())
    }

    /// Without the management API, unless these settings name one.
    fn with(world: &World, settings: &[(&str, &str)]) -> Self {
        let config = world.config(settings);
        let metrics = Metrics::new(&config.slot, &[]).unwrap();
        let status = Status::default();
        let (their_metrics, their_status) = (metrics.clone(), status.clone());
        let (stop, stopped) = oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = sample_queues(&config, &their_metrics, &their_status) => {}
                }
            });
        });
        Watch { metrics, status, _stop: stop }
    }

    /// The value of `postrider_<metric>` of a queue.
    fn of(&self, metric: &str, queue: &str) -> Option<f64> {
        self.value(&format!("postrider_{metric}{{queue=\"{queue}\","))
    }

    /// By the start of its line.
    fn value(&self, start: &str) -> Option<f64> {
        let text = self.metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with(start))?.to_owned();
        line.rsplit(' ').next()?.parse().ok()
    }

    async fn until(&self, what: &str, fact: impl Fn(&Self) -> bool) {
        eventually(what, || async { fact(self).then_some(()) }).await;
    }

    fn last_success(&self) -> f64 {
        self.value("postrider_sampler_last_success_timestamp_seconds{target=\"management\"").unwrap_or_default()
    }

    fn errors(&self) -> f64 {
        self.value("postrider_sampler_errors_total{target=\"management\"").unwrap()
    }

    fn listed(&self) -> Vec<String> {
        let Snapshot { queues, .. } = self.status.snapshot();
        queues.into_iter().map(|queue| queue.queue).collect()
    }
}

async fn world(name: &str) -> World {
    World::bare(servers::shared().await, name).await
}

async fn channel(world: &World) -> (Connection, Channel) {
    let connection = Connection::connect(&world.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

async fn declare(world: &World, queue: &str, arguments: &str) {
    let declaration = format!(r#"{{"durable":true,"arguments":{arguments}}}"#);
    world.servers.management("PUT", &format!("/api/queues/{}/{queue}", world.name), &declaration).await;
}

async fn publish(channel: &Channel, queue: &str) {
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish("".into(), queue.into(), options, b"x", BasicProperties::default());
    confirm.await.unwrap().await.unwrap();
}

/// Without a limit of what it holds at a time.
async fn consume(channel: &Channel, queue: &str) -> lapin::Consumer {
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "test".into(), options, FieldTable::default()).await.unwrap()
}

/// Of the slow consumer. `POSTRIDER_TEST_DELAY`, in seconds, is for a longer look than every run can afford: with 30 the lag has to be
/// right within 20 %.
fn delay() -> Duration {
    let seconds = std::env::var("POSTRIDER_TEST_DELAY").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Ten messages a second, each acknowledged when it has been in the queue for [`delay`].
async fn the_lag_of_a_delayed_consumer_is_right(kind: &str) {
    let (world, delay) = (world("delayed").await, delay());
    declare(&world, "slow", &format!(r#"{{"x-queue-type":"{kind}"}}"#)).await;
    let watch = Watch::start(&world, &[("POSTRIDER_QUEUES", "slow")]);
    watch.until("the empty queue is seen", |watch| watch.of("queue_lag_seconds", "slow") == Some(0.0)).await;

    let inside = Arc::new(Mutex::new(VecDeque::<Instant>::new()));
    let (_publishing, publisher) = channel(&world).await;
    let entered = Arc::clone(&inside);
    let publishing = tokio::spawn(async move {
        loop {
            entered.lock().unwrap().push_back(Instant::now());
            publish(&publisher, "slow").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let (_consuming, subscriber) = channel(&world).await;
    let mut deliveries = consume(&subscriber, "slow").await;
    let left = Arc::clone(&inside);
    let consuming = tokio::spawn(async move {
        while let Some(delivery) = deliveries.next().await {
            let entered = *left.lock().unwrap().front().unwrap();
            tokio::time::sleep_until((entered + delay).into()).await;
            delivery.unwrap().ack(BasicAckOptions::default()).await.unwrap();
            left.lock().unwrap().pop_front();
        }
    });

    let error = || {
        let truth = inside.lock().unwrap().front().map_or(0.0, |entered| entered.elapsed().as_secs_f64());
        let lag = watch.of("queue_lag_seconds", "slow").unwrap();
        (lag - truth, truth)
    };
    // RabbitMQ refreshes its figures every 5 s, so that they are wrong by that whatever the delay is; half a second more for a busy machine.
    let part = if delay >= Duration::from_secs(30) { 0.2 } else { 0.25 };
    let tolerance = delay.mul_f64(part).as_secs_f64().max(5.5);
    within(delay + Duration::from_secs(30), "the lag is the delay", || async {
        let (error, truth) = error();
        (truth >= delay.as_secs_f64() - 0.5 && error.abs() <= tolerance).then_some(())
    })
    .await;
    // And stays so, for two more samples at least.
    let since = Instant::now();
    let (mut least, mut most) = (f64::MAX, f64::MIN);
    while since.elapsed() < delay / 2 {
        let (error, truth) = error();
        assert!(error.abs() <= tolerance, "{kind}: wrong by {error} s, the truth is {truth} s");
        (least, most) = (least.min(error), most.max(error));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{kind}: the lag of {delay:?} was wrong by {least:+.2} to {most:+.2} s");
    assert_eq!(watch.of("queue_lag_is_lower_bound", "slow"), Some(0.0));
    assert!(watch.of("queue_stalled_seconds", "slow").unwrap() < 10.0);
    publishing.abort();
    consuming.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_a_delayed_consumer_of_a_classic_and_of_a_quorum_queue_is_right() {
    let both = ["classic", "quorum"].map(the_lag_of_a_delayed_consumer_is_right);
    futures_util::future::join_all(both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_everything_and_acknowledges_nothing_is_stalled() {
    let world = world("stuck").await;
    declare(&world, "stuck", r#"{"x-queue-type":"quorum"}"#).await;
    let (_connection, channel) = channel(&world).await;
    let _deliveries = consume(&channel, "stuck").await;
    let watch = Watch::start(&world, &[("POSTRIDER_QUEUES", "stuck")]);
    watch.until("the empty queue is seen", |watch| watch.of("queue_lag_seconds", "stuck") == Some(0.0)).await;
    for _ in 0..20 {
        publish(&channel, "stuck").await;
    }
    watch.until("twenty are unacknowledged", |watch| watch.of("queue_messages_unacked", "stuck") == Some(20.0)).await;
    let stalled = |watch: &Watch| watch.of("queue_stalled_seconds", "stuck").unwrap();
    let before = stalled(&watch);
    watch.until("it stalls for longer and longer", |watch| stalled(watch) >= before + 9.0).await;
    assert!(watch.of("queue_lag_seconds", "stuck").unwrap() >= 9.0, "and its lag grows");
    assert_eq!(watch.of("queue_messages_ready", "stuck"), Some(0.0));
    assert_eq!(watch.of("queue_consumers", "stuck"), Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_rejects_every_tenth_has_no_lag_once_its_queue_is_empty() {
    let world = world("rejects").await;
    declare(&world, "work.failed", r#"{"x-queue-type":"quorum"}"#).await;
    let dead_letters =
        r#"{"x-queue-type":"quorum","x-dead-letter-exchange":"","x-dead-letter-routing-key":"work.failed"}"#;
    declare(&world, "work", dead_letters).await;
    // The pattern matches the dead-letter queue too.
    let watch = Watch::start(&world, &[("POSTRIDER_QUEUES", "work*"), ("POSTRIDER_CONSUMERS_MAX_LAG", "30s")]);
    watch
        .until("both are seen", |watch| {
            watch.of("queue_lag_seconds", "work") == Some(0.0)
                && watch.of("dead_letter_queue_messages", "work.failed") == Some(0.0)
        })
        .await;
    let (_connection, channel) = channel(&world).await;
    for _ in 0..100 {
        publish(&channel, "work").await;
    }
    watch.until("a backlog", |watch| watch.of("queue_messages_ready", "work") == Some(100.0)).await;
    let mut deliveries = consume(&channel, "work").await;
    for number in 0..100 {
        let delivery = deliveries.next().await.unwrap().unwrap();
        if number % 10 == 9 {
            delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap();
        } else {
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
    }
    watch
        .until("ten dead letters and no lag", |watch| {
            watch.of("dead_letter_queue_messages", "work.failed") == Some(10.0)
                && watch.of("queue_lag_seconds", "work") == Some(0.0)
                && watch.of("queue_stalled_seconds", "work") == Some(0.0)
        })
        .await;
    watch
        .until("the dead letters stay", |watch| {
            watch.of("dead_letter_queue_nonempty_seconds", "work.failed").unwrap() >= 5.0
        })
        .await;
    assert_eq!(watch.of("queue_lag_seconds", "work"), Some(0.0));
    assert_eq!(watch.of("queue_lag_objective_seconds", "work"), Some(30.0));
    assert_eq!(watch.of("queue_messages_ready", "work.failed"), None, "nobody is expected to read it in time");
    assert_eq!(watch.listed(), ["work"]);
    let dead_letter_queues = watch.status.snapshot().dead_letter_queues;
    assert_eq!((dead_letter_queues[0].queue.as_str(), dead_letter_queues[0].sample.messages), ("work.failed", 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_found_through_exchanges_and_forgotten_when_they_are_gone() {
    let world = world("discovery").await;
    world.queue("direct", "order.#").await;
    let (_connection, channel) = channel(&world).await;
    world.exchange("audit").await;
    world.exchange("elsewhere").await;
    let (key, options) = ("#", ExchangeBindOptions::default());
    for (to, from) in [("audit", "events"), ("events", "audit")] {
        channel.exchange_bind(to.into(), from.into(), key.into(), options, FieldTable::default()).await.unwrap();
    }
    declare(&world, "archive", r#"{"x-queue-type":"classic"}"#).await;
    declare(&world, "unrelated", r#"{"x-queue-type":"classic"}"#).await;
    world.bind("audit", "archive", "#").await;
    world.bind("elsewhere", "unrelated", "#").await;
    for (queue, exclusive) in [("own", true), ("passing", false)] {
        let options =
            QueueDeclareOptions { exclusive, auto_delete: !exclusive, durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(queue.into(), "events".into(), key.into(), bind, FieldTable::default()).await.unwrap();
    }
    let watch = Watch::start(&world, &[]);
    watch
        .until("both queues are found", |watch| {
            ["archive", "direct"].iter().all(|queue| watch.of("queue_lag_seconds", queue) == Some(0.0))
        })
        .await;
    assert_eq!(watch.listed(), ["archive", "direct"]);
    assert_eq!(watch.value("postrider_queues_left_out{"), Some(0.0));
    world.servers.management("DELETE", &format!("/api/queues/{}/archive", world.name), "").await;
    watch
        .until("the deleted queue has no series", |watch| {
            !watch.metrics.render().unwrap().contains("queue=\"archive\"") && watch.listed() == ["direct"]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_the_broker_refuses_by_amqp_costs_no_other_one_its_samples() {
    let world = world("refused").await;
    declare(&world, "billing", r#"{"x-queue-type":"quorum"}"#).await;
    let (_connection, channel) = channel(&world).await;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("another's".into(), options, FieldTable::default()).await.unwrap();
    let watch = Watch::with(&world, &[("POSTRIDER_QUEUES", "another's,billing")]);
    let errors = |watch: &Watch| watch.value("postrider_sampler_errors_total{target=\"queues\"").unwrap();
    watch.until("a refusal is an error", |watch| errors(watch) >= 1.0).await;
    watch.until("the other is seen", |watch| watch.of("queue_messages_ready", "billing") == Some(0.0)).await;
    for _ in 0..3 {
        publish(&channel, "billing").await;
    }
    watch.until("and seen again", |watch| watch.of("queue_messages_ready", "billing") == Some(3.0)).await;
    assert_eq!(watch.of("queue_messages_ready", "another's"), None);
    let success = watch.value("postrider_sampler_last_success_timestamp_seconds{target=\"queues\"");
    assert!(success.is_some(), "what is shown of the other is fresh");
}

/// Stands before the management API, and behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Manners {
    Good,
    Absent,
    Slow,
    Lies(&'static str),
}

struct Api {
    url: String,
    manners: Arc<Mutex<Manners>>,
    task: JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Api {
    async fn before(world: &World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut url = world.servers.management_url.clone();
        let real = format!("{}:{}", url.host_str().unwrap(), url.port_or_known_default().unwrap());
        url.set_ip_host([127, 0, 0, 1].into()).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        let manners = Arc::new(Mutex::new(Manners::Good));
        let theirs = Arc::clone(&manners);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let manners = theirs.lock().unwrap().clone();
                tokio::spawn(serve(stream, manners, real.clone()));
            }
        });
        Api { url: url.to_string(), manners, task }
    }

    fn becomes(&self, manners: Manners) {
        *self.manners.lock().unwrap() = manners;
    }
}

async fn serve(mut stream: TcpStream, manners: Manners, real: String) {
    match manners {
        Manners::Absent => {}
        Manners::Good => {
            let mut server = TcpStream::connect(real).await.unwrap();
            copy_bidirectional(&mut stream, &mut server).await.ok();
        }
        Manners::Slow => tokio::time::sleep(PATIENCE).await,
        Manners::Lies(body) => {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            // A connection that is closed without a request gets no answer.
            if read == 0 {
                return;
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_management_api_that_is_absent_slow_or_lying_shows_as_stale_and_slows_nothing() {
    let world = World::new("manners").await;
    world.queue("billing", "order.#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "billing").await;

    let bad = [
        Manners::Absent,
        Manners::Slow,
        Manners::Lies("<html>It works!</html>"),
        Manners::Lies(r#"{"name":"billing","messages":-5,"messages_ready":-5,"messages_unacknowledged":0}"#),
    ];
    let mut watches = Vec::new();
    for manners in bad {
        let api = Api::before(&world).await;
        let watch = Watch::start(&world, &[("POSTRIDER_MANAGEMENT_URL", &api.url)]);
        watches.push((manners, api, watch));
    }
    for (manners, api, watch) in &watches {
        watch.until("the API is asked", |watch| watch.of("queue_lag_seconds", "billing").is_some()).await;
        api.becomes(manners.clone());
    }
    let mut stale = Vec::new();
    for (manners, _, watch) in &watches {
        watch.until(&format!("an error: {manners:?}"), |watch| watch.errors() >= 1.0).await;
        stale.push(watch.last_success());
    }
    for number in 0..5 {
        world.insert(&number.to_string(), "OrderPlaced", "{}").await;
    }
    // Meanwhile no answer of the API is a good one, as is seen below.
    tokio::time::timeout(Duration::from_secs(30), consumer.take(5)).await.expect("they are delivered");
    for ((manners, _, watch), stale) in watches.iter().zip(&stale) {
        watch.until("another error", |watch| watch.errors() >= 2.0).await;
        assert_eq!(watch.last_success(), *stale, "no success is claimed: {manners:?}");
        let ready = watch.of("queue_messages_ready", "billing");
        assert_eq!(ready, Some(0.0), "the last values stand: {manners:?}");
        assert!(relay.status.snapshot().ready());
    }
    for (_, api, _) in &watches {
        api.becomes(Manners::Good);
    }
    for ((manners, _, watch), stale) in watches.iter().zip(&stale) {
        watch.until(&format!("it recovers: {manners:?}"), |watch| watch.last_success() > *stale).await;
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_permission_is_told_apart_from_queues_that_do_not_exist() {
    let world = world("forbidden").await;
    declare(&world, "billing", r#"{"x-queue-type":"quorum"}"#).await;
    let user = r#"{"password":"monitor","tags":"monitoring"}"#;
    world.servers.management("PUT", &format!("/api/users/{}", world.name), user).await;
    let mut url = world.servers.management_url.clone();
    url.set_username(&world.name).unwrap();
    url.set_password(Some("monitor")).unwrap();
    let settings = [
        ("POSTRIDER_MANAGEMENT_URL", url.as_str()),
        ("POSTRIDER_QUEUES", "billing"),
        ("POSTRIDER_CONSUMERS_DISCOVER", "false"),
    ];
    let watch = Watch::start(&world, &settings);
    watch.until("an error", |watch| watch.errors() >= 1.0).await;
    assert_eq!(watch.last_success(), 0.0);
    let nothing = r#"{"configure":"^$","write":"^$","read":"^$"}"#;
    world.servers.management("PUT", &format!("/api/permissions/{0}/{0}", world.name), nothing).await;
    watch
        .until("a permission to do nothing is enough", |watch| watch.of("queue_lag_seconds", "billing").is_some())
        .await;
    world.servers.management("DELETE", &format!("/api/users/{}", world.name), "").await;
}
