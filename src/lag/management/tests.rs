use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What the management API tells: the same of every vhost.
#[derive(Default)]
struct Facts {
    queues: Vec<Value>,
    /// Missing from listings, as one that moves between two pages meanwhile.
    unlisted: BTreeSet<String>,
    /// It puts everything on one page.
    pages_are_long: bool,
    /// `None`: the plugin fails.
    stream_consumers: Option<Value>,
    /// The queues that were asked for by name.
    asked: Vec<String>,
}

impl Facts {
    fn answer(&mut self, target: &str) -> (u16, Value) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parameter = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
        let number = |key: &str| parameter(key).map(|text| text.parse::<usize>().unwrap());
        let named = |name: &str| self.queues.iter().find(|queue| queue["name"] == name).cloned();
        match path.trim_start_matches("/api/").split('/').collect::<Vec<_>>()[..] {
            ["stream", "consumers", _] => self.stream_consumers.clone().map_or((500, json!({})), |list| (200, list)),
            ["queues", _, name] => {
                let name = name.replace("%2E", ".");
                let queue = named(&name);
                self.asked.push(name);
                queue.map_or((404, json!({})), |queue| (200, queue))
            }
            ["queues", _] => {
                let (page, size) = (number("page").unwrap(), number("page_size").unwrap());
                let size = if self.pages_are_long { usize::MAX } else { size };
                let listed = |queue: &&Value| !self.unlisted.contains(queue["name"].as_str().unwrap());
                let listed: Vec<&Value> = self.queues.iter().filter(listed).collect();
                let items: Vec<&Value> =
                    listed.iter().copied().skip((page - 1).saturating_mul(size)).take(size).collect();
                (200, json!({"items": items, "page_count": listed.len().div_ceil(size)}))
            }
            _ => (404, json!({})),
        }
    }
}

/// A management API that says what it is told to.
struct Broker {
    facts: Arc<Mutex<Facts>>,
    config: Config,
    metrics: Metrics,
    status: Status,
}

impl Broker {
    /// Watched are the queues that `queues` names, or matches.
    async fn watched(queues: &str, more: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let management = format!("http://{}", listener.local_addr().unwrap());
        let facts = Arc::new(Mutex::new(Facts { stream_consumers: Some(json!([])), ..Facts::default() }));
        let theirs = Arc::clone(&facts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&theirs)));
            }
        });
        let mut settings = vec![
            ("DATABASE_URL", "postgres://app@localhost/shop"),
            ("POSTRIDER_MANAGEMENT_URL", management.as_str()),
            ("POSTRIDER_QUEUES", queues),
            ("POSTRIDER_CONSUMERS_DISCOVER", "false"),
        ];
        settings.extend(more);
        if !more.iter().any(|(name, _)| name.starts_with("AMQP_URL")) {
            settings.push(("AMQP_URL", "amqp://localhost"));
        }
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::load(None, settings).unwrap();
        Broker { facts, config, metrics: Metrics::new("postrider", &[]).unwrap(), status: Status::default() }
    }

    fn watch(&self) -> Watch<'_> {
        let url = self.config.management_url.as_ref().unwrap();
        Watch::new(&self.config, url, &self.metrics, &self.status)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }

    /// From now on it has these queues alone.
    fn has(&self, queues: impl IntoIterator<Item = Value>) {
        self.facts().queues = queues.into_iter().collect();
    }

    /// The value of `postrider_<metric>` of a queue.
    fn value(&self, metric: &str, queue: &str) -> Option<f64> {
        self.line(&format!("postrider_{metric}{{queue=\"{queue}\","))
    }

    fn ready(&self, queue: &str) -> Option<f64> {
        self.value("queue_messages_ready", queue)
    }

    fn line(&self, start: &str) -> Option<f64> {
        let text = self.metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with(start))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

async fn serve(mut stream: TcpStream, facts: Arc<Mutex<Facts>>) {
    let mut request = Vec::new();
    loop {
        while !request.ends_with(b"\r\n\r\n") {
            let mut more = [0; 4096];
            match stream.read(&mut more).await {
                Ok(read) if read > 0 => request.extend_from_slice(&more[..read]),
                _ => return,
            }
        }
        let target = String::from_utf8(std::mem::take(&mut request)).unwrap();
        let target = target.split(' ').nth(1).unwrap().to_owned();
        let (status, body) = facts.lock().unwrap().answer(&target);
        let body = body.to_string();
        let answer = format!("HTTP/1.1 {status} as told\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn queue(name: &str, ready: u64) -> Value {
    json!({"name": name, "type": "quorum", "leader": "rabbit@a", "messages": ready, "messages_ready": ready,
        "messages_unacknowledged": 0, "consumers": 1})
}

fn leaderless(name: &str) -> Value {
    json!({"name": name, "type": "quorum", "leader": null, "messages": 0, "messages_ready": 0,
        "messages_unacknowledged": 0, "consumers": 0})
}

/// Whose dead letters go to the queue `to`.
fn dead_lettering(name: &str, to: &str) -> Value {
    let mut queue = queue(name, 0);
    queue["arguments"] = json!({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": to});
    queue
}

fn many(count: usize) -> impl Iterator<Item = Value> {
    (0..count).map(|number| queue(&format!("q{number:03}"), 1))
}

async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

/// Asserts that nothing is doubted.
async fn round(watch: &mut Watch<'_>) {
    let doubts = watch.round().await.unwrap();
    assert!(doubts.is_empty(), "{doubts:?}");
}

async fn doubtful_round(watch: &mut Watch<'_>) {
    assert_eq!(watch.round().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_doubtful_queue_keeps_its_last_values_for_a_while_and_the_others_go_on() {
    let broker = Broker::watched("billing,mail", &[]).await;
    let mut watch = broker.watch();
    broker.has([queue("billing", 0), queue("mail", 0)]);
    round(&mut watch).await;
    broker.has([leaderless("billing"), queue("mail", 7)]);
    for _ in 0..2 {
        pass(25).await;
        doubtful_round(&mut watch).await;
        assert_eq!((broker.ready("billing"), broker.ready("mail")), (Some(0.0), Some(7.0)));
    }
    pass(11).await;
    doubtful_round(&mut watch).await;
    assert_eq!((broker.ready("billing"), broker.ready("mail")), (None, Some(7.0)), "old, and the others are fresh");
    broker.has([queue("billing", 3), queue("mail", 7)]);
    round(&mut watch).await;
    assert_eq!(broker.ready("billing"), Some(3.0));
    assert_eq!(broker.value("queue_lag_is_lower_bound", "billing"), Some(0.0), "what was known of it is known");
    assert!(broker.value("queue_lag_seconds", "billing").unwrap() >= 30.0);
}

#[tokio::test]
async fn a_doubt_is_an_error_and_a_fresh_sample() {
    let broker = Broker::watched("billing,mail", &[]).await;
    broker.has([leaderless("billing"), queue("mail", 7)]);
    let url = broker.config.management_url.as_ref().unwrap();
    let sampled = async {
        while broker.line("postrider_sampler_errors_total{target=\"management\"") != Some(1.0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = sample_by_management(&broker.config, url, &broker.metrics, &broker.status) => {}
        () = sampled => {}
    }
    let at = broker.line("postrider_sampler_last_success_timestamp_seconds{target=\"management\"");
    assert!(at.is_some_and(|at| at > 1e9), "{at:?}");
}

#[tokio::test]
async fn the_consumers_of_streams_are_shown_for_a_while_when_their_plugin_fails() {
    let broker = Broker::watched("log,mail", &[]).await;
    let mut watch = broker.watch();
    broker.has([json!({"name": "log", "type": "stream", "consumers": 1}), queue("mail", 7)]);
    let consumer =
        json!({"queue": {"name": "log"}, "connection_details": {"name": "c"}, "offset": 10, "offset_lag": 50});
    broker.facts().stream_consumers = Some(json!([consumer]));
    round(&mut watch).await;
    broker.facts().stream_consumers = None;
    pass(50).await;
    doubtful_round(&mut watch).await;
    assert_eq!(broker.value("stream_lag_messages", "log"), Some(50.0));
    pass(11).await;
    doubtful_round(&mut watch).await;
    assert_eq!(broker.value("stream_lag_messages", "log"), None);
    assert_eq!((broker.value("queue_consumers", "log"), broker.ready("mail")), (Some(1.0), Some(7.0)));
}

#[tokio::test]
async fn a_doubtful_dead_letter_queue_keeps_its_last_values_for_a_while() {
    let broker = Broker::watched("billing", &[]).await;
    let mut watch = broker.watch();
    let dead_letters = || broker.value("dead_letter_queue_messages", "failed");
    broker.has([dead_lettering("billing", "failed"), queue("failed", 3)]);
    round(&mut watch).await;
    // Found now, and shown with the next sample at the latest.
    round(&mut watch).await;
    assert_eq!(dead_letters(), Some(3.0));
    broker.has([dead_lettering("billing", "failed"), leaderless("failed")]);
    pass(50).await;
    doubtful_round(&mut watch).await;
    assert_eq!(dead_letters(), Some(3.0));
    pass(11).await;
    doubtful_round(&mut watch).await;
    assert_eq!((dead_letters(), broker.ready("billing")), (None, Some(0.0)));
}

#[tokio::test]
async fn a_dead_letter_queue_that_does_not_exist_yet_is_empty() {
    let broker = Broker::watched("billing", &[]).await;
    let mut watch = broker.watch();
    broker.has([dead_lettering("billing", "failed")]);
    for _ in 0..3 {
        round(&mut watch).await;
        pass(100).await;
    }
    round(&mut watch).await;
    broker.has([dead_lettering("billing", "failed"), queue("failed", 3)]);
    pass(10).await;
    round(&mut watch).await;
    let nonempty = broker.value("dead_letter_queue_nonempty_seconds", "failed").unwrap();
    assert!((10.0..20.0).contains(&nonempty), "{nonempty}");
}

#[tokio::test]
async fn what_is_missing_from_a_listing_is_gone_only_if_it_is_not_there_by_its_name() {
    let broker = Broker::watched("q*,ghost", &[]).await;
    let mut watch = broker.watch();
    broker.has(many(120));
    round(&mut watch).await;
    broker.facts().unlisted = ["q099".to_owned()].into();
    round(&mut watch).await;
    assert_eq!(broker.ready("q099"), Some(1.0), "missing from the statistics");
    pass(61).await;
    round(&mut watch).await;
    assert_eq!(broker.ready("q099"), Some(1.0), "missing from the names, too");
    broker.facts().unlisted.clear();
    broker.has(many(99));
    round(&mut watch).await;
    assert_eq!((broker.ready("q099"), broker.ready("q098")), (None, Some(1.0)), "deleted");
    let ghost = broker.facts().asked.iter().filter(|name| *name == "ghost").count();
    assert_eq!(ghost, 1, "what never was there is not asked for again");
}

#[tokio::test]
async fn nonsense_about_a_queue_that_nobody_asked_for_ends_no_round() {
    let broker = Broker::watched("q*", &[]).await;
    let mut watch = broker.watch();
    let nonsense =
        |name: &str| json!({"name": name, "messages": -1, "messages_ready": 0, "messages_unacknowledged": 0});
    broker.has(many(20).chain([nonsense("other")]));
    round(&mut watch).await;
    assert_eq!(broker.ready("q019"), Some(1.0));
    broker.has(many(19).chain([nonsense("q019")]));
    watch.round().await.unwrap_err();
}

#[tokio::test]
async fn a_page_with_more_than_was_asked_for_is_a_lie() {
    let broker = Broker::watched("q*", &[]).await;
    let mut watch = broker.watch();
    broker.has(many(120));
    round(&mut watch).await;
    broker.facts().pages_are_long = true;
    let error = watch.round().await.unwrap_err().to_string();
    assert!(error.ends_with("120 queues on a page of 100"), "{error}");
}

#[tokio::test]
async fn nothing_is_known_of_the_queues_of_another_vhost() {
    let file = std::env::temp_dir().join(format!("postrider-vhost-{}", std::process::id()));
    std::fs::write(&file, "amqp://localhost/one").unwrap();
    let broker = Broker::watched("billing", &[("AMQP_URL_FILE", file.to_str().unwrap())]).await;
    let mut watch = broker.watch();
    broker.has([queue("billing", 0)]);
    round(&mut watch).await;
    broker.has([queue("billing", 5)]);
    pass(60).await;
    round(&mut watch).await;
    assert_eq!(broker.value("queue_lag_is_lower_bound", "billing"), Some(0.0));
    std::fs::write(&file, "amqp://localhost/two").unwrap();
    round(&mut watch).await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(broker.value("queue_lag_is_lower_bound", "billing"), Some(1.0), "it is another queue");
    assert!(broker.value("queue_lag_seconds", "billing").unwrap() < 30.0);
    let text = broker.metrics.render().unwrap();
    assert!(text.contains("vhost=\"two\"") && !text.contains("vhost=\"one\""), "{text}");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn too_many_queues_are_warned_of_once() {
    let broker = Broker::watched("q*", &[]).await;
    let mut watch = broker.watch();
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut warnings = Vec::new();
    for count in [200, 201, 203, 202, 200, 205] {
        broker.has(many(count));
        round(&mut watch).await;
        pass(61).await;
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        warnings.push(text.matches("there are more queues than are watched").count());
    }
    assert_eq!(warnings, [0, 1, 1, 1, 1, 2]);
}
