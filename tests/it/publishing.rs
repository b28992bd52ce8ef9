//! A relay's side of the publisher, events for it, and the account of what became of them.
//!
//! The account is independent: what was resolved is compared with what another connection finds in the queues.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use postrider::config::{Config, Limits};
use postrider::dead_letters::desk::{Answer, Command, Registry, desk};
use postrider::dead_letters::{Content, NewDeadLetter};
use postrider::event::{Event, HeaderValue, Joins, Message, Position, Properties, Route, Ticket};
use postrider::lsn::Lsn;
use postrider::metrics::Metrics;
use postrider::postgres::dead_letters::Look;
use postrider::rabbitmq::publisher::{Batch, Broker, BrokerError};
use postrider::status::Status;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::proxy::Proxy;
use crate::rabbit::{Arrival, Server, Vhost, first_arrivals};
use crate::support::{PATIENCE, eventually};

/// A relay's side of the publisher.
pub(crate) struct Publishing {
    pub(crate) batches: Option<mpsc::Sender<Batch>>,
    pub(crate) resolved: mpsc::UnboundedReceiver<Vec<Ticket>>,
    /// Numbers of the events that were resolved.
    pub(crate) done: BTreeSet<u64>,
    /// What was parked and not delivered since.
    pub(crate) parked: Arc<Mutex<BTreeMap<Position, NewDeadLetter>>>,
    pub(crate) task: JoinHandle<(Broker, Result<(), BrokerError>)>,
}

pub(crate) fn config(url: &str, change: impl FnOnce(&mut Limits)) -> Config {
    let env = [("DATABASE_URL", "postgres://user@localhost/db"), ("AMQP_URL", url), ("POSTRIDER_SLOT", "test")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut config = Config::load(None, env).unwrap();
    config.limits.retry_min = Duration::from_millis(100);
    config.limits.retry_max = Duration::from_millis(400);
    change(&mut config.limits);
    config
}

pub(crate) struct Relay {
    pub(crate) metrics: Metrics,
    pub(crate) status: Status,
    pub(crate) broker: Broker,
}

impl Relay {
    pub(crate) fn new(config: Config) -> Relay {
        let metrics = Metrics::new("test", &["default".to_owned()]).unwrap();
        let status = Status::new("test", "postrider");
        let broker = Broker::new(Arc::new(config), metrics.clone(), status.clone(), None);
        Relay { metrics, status, broker }
    }

    pub(crate) async fn ready(&mut self) {
        self.broker.ready().await.unwrap();
    }

    pub(crate) fn publish(self) -> (Publishing, Metrics, Status) {
        let Relay { metrics, status, mut broker } = self;
        let (batches, batch_queue) = mpsc::channel(16);
        let (resolved, tickets) = mpsc::unbounded_channel();
        let (desk, registry) = desk();
        let task = tokio::spawn(async move {
            let result = broker.publish(batch_queue, resolved, desk).await;
            (broker, result)
        });
        let parked = Arc::default();
        tokio::spawn(keep_dead_letters(registry, Arc::clone(&parked)));
        let publishing = Publishing { batches: Some(batches), resolved: tickets, done: BTreeSet::new(), parked, task };
        (publishing, metrics, status)
    }
}

/// What a session does for the publisher, without a database.
async fn keep_dead_letters(mut registry: Registry, parked: Arc<Mutex<BTreeMap<Position, NewDeadLetter>>>) {
    registry.answers.send(Answer::Loaded { relay_epoch: 7, letters: Vec::new() }).ok();
    while let Some(command) = registry.commands.recv().await {
        let mut parked = parked.lock().unwrap();
        let answer = match command {
            Command::Park(letters) => {
                let positions = letters.iter().map(|letter| letter.event.position).collect();
                parked.extend(letters.into_iter().map(|letter| (letter.event.position, letter)));
                Answer::Parked(positions)
            }
            Command::Remove(positions) => {
                parked.retain(|position, _| !positions.contains(position));
                Answer::Removed
            }
            Command::FailedAgain(_) => Answer::FailedAgain,
            Command::Fetch(asked) => {
                let contents = asked.iter().filter_map(|position| content(parked.get(position)?)).collect();
                Answer::Fetched { asked, contents, unreadable: Vec::new() }
            }
            Command::Look => Answer::Looked(Look { marks: Vec::new(), count: parked.len() as u64 }),
        };
        registry.answers.send(answer).ok();
    }
}

fn content(letter: &NewDeadLetter) -> Option<Content> {
    let NewDeadLetter { event, .. } = letter;
    let message = event.message()?.clone();
    Some(Content { position: event.position, event_id: Arc::clone(&event.id), commit_time: event.commit_time, message })
}

impl Publishing {
    pub(crate) async fn send(&self, events: Vec<Event>) {
        self.batches.as_ref().unwrap().send(Batch { events }).await.unwrap();
    }

    pub(crate) async fn send_all(&self, events: &[Event]) {
        for events in events.chunks(100) {
            self.send(events.to_vec()).await;
        }
    }

    /// Looks at what has been resolved so far.
    pub(crate) fn take_resolved(&mut self) -> usize {
        while let Ok(tickets) = self.resolved.try_recv() {
            for ticket in tickets {
                assert!(self.done.insert(ticket.entry), "event {} was resolved twice", ticket.entry);
            }
        }
        self.done.len()
    }

    pub(crate) async fn resolved(&mut self, what: &str, expected: &BTreeSet<u64>) {
        let started = Instant::now();
        while self.take_resolved() < expected.len() {
            let missing: Vec<_> = expected.difference(&self.done).take(5).collect();
            let count = self.done.len();
            assert!(
                started.elapsed() < PATIENCE,
                "{what}: {count} of {} resolved, missing {missing:?}",
                expected.len()
            );
            assert!(!self.task.is_finished(), "{what}: the publisher has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(&self.done, expected, "{what}");
    }

    /// Waits for a fact that needs the publisher.
    pub(crate) async fn until(&self, what: &str, fact: impl Fn() -> bool) {
        eventually(what, async || {
            assert!(!self.task.is_finished(), "{what}: the publisher has ended");
            fact().then_some(())
        })
        .await;
    }

    pub(crate) async fn end(mut self) -> (Broker, Result<(), BrokerError>) {
        self.batches = None;
        tokio::time::timeout(PATIENCE, self.task).await.expect("the publisher does not end").unwrap()
    }
}

pub(crate) fn all(count: usize) -> BTreeSet<u64> {
    (0..count as u64).collect()
}

pub(crate) fn route(exchange: &str) -> Arc<Route> {
    Arc::new(Route { name: "default".to_owned(), exchange: exchange.to_owned(), ..Route::default() })
}

/// The `number`th event, of ordering key `key`.
pub(crate) fn event(number: usize, key: usize, exchange: &str, routing_key: &str) -> Event {
    let position = Position { epoch: 1, commit: Lsn(0x100 + number as u64), ordinal: 0, part: 0 };
    let id: Arc<str> = format!("id-{number}").into();
    let properties = Properties {
        message_id: Arc::clone(&id),
        kind: "Happened".to_owned(),
        content_type: "application/json",
        timestamp: 1_700_000_000,
        correlation_id: None,
        headers: vec![("aggregateid".into(), HeaderValue::Text(key.to_string()))],
    };
    Event {
        position,
        id,
        key: format!("thing/{key}").into(),
        joins: Joins::Nothing,
        route: route(exchange),
        commit_time: SystemTime::now(),
        ticket: Ticket { session: 1, entry: number as u64 },
        remains: None,
        content: Ok(Message {
            routing_key: routing_key.to_owned(),
            properties,
            body: Bytes::from(format!("{{\"number\": {number}}}")),
        }),
    }
}

pub(crate) fn with_body(mut event: Event, size: usize) -> Event {
    event.content.as_mut().unwrap().body = Bytes::from(vec![b'x'; size]);
    event
}

/// Everything that was resolved has arrived; first arrivals of each key are in order and without a gap; and nothing has
/// arrived of a key behind an event that has not.
pub(crate) fn assert_account(events: &[Event], resolved: &BTreeSet<u64>, arrivals: &[Arrival]) {
    let firsts = first_arrivals(arrivals);
    let arrived: BTreeSet<&str> = firsts.iter().map(String::as_str).collect();
    for number in resolved {
        let position = events[index(*number)].position.to_string();
        assert!(arrived.contains(position.as_str()), "event {number} counts as delivered, and has not arrived");
    }
    let mut of_key: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let keys: BTreeMap<String, &str> = events.iter().map(|event| (event.position.to_string(), &*event.key)).collect();
    for position in &firsts {
        of_key.entry(keys[position]).or_default().push(position.clone());
    }
    for (key, arrived) in of_key {
        let sent: Vec<String> =
            events.iter().filter(|event| &*event.key == key).map(|event| event.position.to_string()).collect();
        assert_eq!(arrived, sent[..arrived.len()], "first arrivals of {key}");
    }
}

/// The events that can be delivered as things stand: those before the first of their key that cannot.
pub(crate) fn deliverable(events: &[Event], can: impl Fn(&Event) -> bool) -> BTreeSet<u64> {
    let mut stuck = BTreeSet::new();
    let mut expected = BTreeSet::new();
    for event in events {
        if !can(event) {
            stuck.insert(Arc::clone(&event.key));
        }
        if !stuck.contains(&event.key) {
            expected.insert(event.ticket.entry);
        }
    }
    expected
}

pub(crate) fn routing_key(event: &Event) -> &str {
    &event.content.as_ref().unwrap().routing_key
}

pub(crate) async fn shared(name: &str) -> (Vhost, Proxy, u64) {
    let server = Server::shared().await;
    let seed = std::env::var("POSTRIDER_TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    eprintln!("{name}: POSTRIDER_TEST_SEED={seed}");
    let vhost = server.vhost(name).await;
    let proxy = Proxy::amqp_with_seed(&server.address(), seed).await;
    (vhost, proxy, seed)
}

pub(crate) fn through(proxy: &Proxy, vhost: &Vhost) -> String {
    vhost.url(&format!("127.0.0.1:{}", proxy.port))
}

pub(crate) fn number_of(position: &str) -> usize {
    usize::try_from(position.parse::<Position>().unwrap().commit.0 - 0x100).unwrap()
}

pub(crate) fn assert_everything_arrived<'a>(
    events: &[Event],
    resolved: &BTreeSet<u64>,
    arrivals: impl IntoIterator<Item = &'a Arrival>,
) {
    let arrived: BTreeSet<String> = first_arrivals(arrivals).into_iter().collect();
    let missing: Vec<_> =
        resolved.iter().filter(|number| !arrived.contains(&events[index(**number)].position.to_string())).collect();
    assert!(missing.is_empty(), "these count as delivered, and have not arrived: {missing:?}");
}

pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
