//! Connecting to RabbitMQ, its topology, a broker that blocks, and what may not be logged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postrider::config::{Argument, BindingDecl, Config, ExchangeDecl, LogFormat, QueueDecl, Topology};
use postrider::event::HeaderValue;
use postrider::metrics::Metrics;
use postrider::rabbitmq::connection::{Purpose, connect};
use postrider::rabbitmq::publisher::{Broker, BrokerError};
use postrider::rabbitmq::topology::{QueueDepth, queue_depth};
use postrider::status::Status;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::proxy::{Direction, Mischief};
use crate::publishing::{Relay, all, assert_account, config, event, shared, through};
use crate::rabbit::{Server, Vhost};
use crate::support::own::Own;
use crate::support::{PATIENCE, eventually};

async fn refusal(config: &Config) -> String {
    match connect(config, Purpose::Probe).await {
        Ok(_) => panic!("it connected"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_fail_a_connection_says_what_to_do() {
    let (vhost, proxy, _) = shared("connect").await;
    let address = vhost.server.address();
    let says = async |url: &str, expected: &[&str]| {
        let text = refusal(&config(url, |_| {})).await;
        for words in expected {
            assert!(text.contains(words), "{url}: {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    };
    says("amqp://user:secret@127.0.0.1:1/x", &["127.0.0.1:1", "connection refused", "port right"]).await;
    says("amqp://user:secret@no-such-host.invalid/x", &["no-such-host.invalid", "cannot be resolved"]).await;
    says(&format!("amqp://nobody:secret@{address}/{}", vhost.name), &["login refused for user `nobody`", "AMQP_URL"])
        .await;
    let (user, password) = vhost.server.user();
    says(&format!("amqp://{user}:{password}@{address}/gone"), &["vhost `gone` does not exist", "add_vhost 'gone'"])
        .await;
    let stranger = vhost.add_user("stranger", "", "", "").await;
    let path = format!("permissions/{}/{stranger}", vhost.name);
    vhost.server.management("DELETE", &path, "").await;
    says(&format!("amqp://{stranger}:pw@{address}/{}", vhost.name), &["may not use vhost", "set_permissions -p"]).await;
    says(&format!("amqps://u:secret@{address}/x"), &["TLS failed", "does not speak TLS"]).await;
    proxy.serve(false);
    says(&through(&proxy, &vhost), &["closed during the AMQP handshake", "AMQP port"]).await;
    proxy.serve(true);
    proxy.set(Mischief::Stall(Direction::Both));
    let started = Instant::now();
    says(&format!("{}?connection_timeout=500", through(&proxy, &vhost)), &["no answer within 0.5 s"]).await;
    assert!(started.elapsed() < Duration::from_secs(8));
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_brokers_the_first_that_answers_is_taken() {
    let server = Server::shared().await;
    let vhost = server.vhost("several").await;
    let (user, password) = server.user();
    let url = format!("amqp://{user}:{password}@127.0.0.1:1,{},127.0.0.1:2/{}", server.address(), vhost.name);
    for _ in 0..6 {
        let link = connect(&config(&url, |_| {}), Purpose::Probe).await.unwrap();
        assert_eq!(link.address(), server.address());
        link.close().await;
    }
    let none = refusal(&config("amqp://127.0.0.1:1,127.0.0.1:2", |_| {})).await;
    assert!(
        none.contains("127.0.0.1:1: connection refused") && none.contains("127.0.0.1:2: connection refused"),
        "{none}"
    );
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_named_after_slot_host_and_purpose() {
    let server = Server::shared().await;
    let vhost = server.vhost("name").await;
    let link = connect(&config(&vhost.url(&server.address()), |_| {}), Purpose::Probe).await.unwrap();
    let listed = eventually("the connection in the management API", async || {
        let listed = server.management("GET", &format!("vhosts/{}/connections", vhost.name), "").await;
        listed.contains("postrider/").then_some(listed)
    });
    let listed = listed.await;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(listed.contains(&format!("postrider/test@{}/probe", host.trim())), "{listed}");
    assert!(listed.contains("\"timeout\":10"), "heartbeat of 10 s: {listed}");
    link.close().await;
    vhost.remove().await;
}

/// A certificate authority and what it has signed.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: PathBuf,
    _directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pem = directory.path().join("ca.pem");
        std::fs::write(&pem, certificate.pem()).unwrap();
        Authority { issuer: rcgen::Issuer::new(params, key), pem, _directory: directory }
    }

    fn server(&self, name: &str) -> ServerConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        server_config(certificate.der().clone(), &key)
    }
}

fn self_signed(name: &str) -> ServerConfig {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    server_config(cert.der().clone(), &signing_key)
}

fn server_config(
    certificate: tokio_rustls::rustls::pki_types::CertificateDer<'static>,
    key: &rcgen::KeyPair,
) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
}

/// TLS in front of the shared broker. Returns the port.
async fn tls_terminator(config: ServerConfig, upstream: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let Ok(mut server) = TcpStream::connect(upstream).await else { return };
                copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_against_the_system_or_the_given_authority() {
    let server = Server::shared().await;
    let vhost = server.vhost("tls").await;
    let (user, password) = server.user();
    let url =
        |host: &str, port: u16, query: &str| format!("amqps://{user}:{password}@{host}:{port}/{}{query}", vhost.name);
    let authority = Authority::new();
    let self_signed = tls_terminator(self_signed("localhost"), server.address()).await;
    let signed = tls_terminator(authority.server("localhost"), server.address()).await;
    let other = tls_terminator(authority.server("broker.example"), server.address()).await;
    let with_ca = |url: &str| Config { amqp_ca_file: Some(authority.pem.clone()), ..config(url, |_| {}) };

    let text = refusal(&config(&url("localhost", self_signed, ""), |_| {})).await;
    assert!(text.contains("self-signed") && text.contains("amqp_ca_file"), "{text}");
    let text = refusal(&config(&url("localhost", signed, ""), |_| {})).await;
    assert!(text.contains("not trusted here"), "{text}");
    let text = refusal(&with_ca(&url("localhost", other, ""))).await;
    assert!(text.contains("broker.example") && text.contains("server_name_indication"), "{text}");
    let text = refusal(&config(&format!("amqp://u:p@localhost:{signed}"), |_| {})).await;
    assert!(text.contains("closed during the AMQP handshake"), "{text}");

    connect(&with_ca(&url("localhost", signed, "")), Purpose::Probe).await.unwrap().close().await;
    let cacertfile = format!("?cacertfile={}", authority.pem.display());
    connect(&config(&url("localhost", signed, &cacertfile), |_| {}), Purpose::Probe).await.unwrap().close().await;
    let sni = url("localhost", other, "?server_name_indication=broker.example");
    connect(&with_ca(&sni), Purpose::Probe).await.unwrap().close().await;
    let unverified = url("localhost", self_signed, "?verify=verify_none");
    connect(&config(&unverified, |_| {}), Purpose::Probe).await.unwrap().close().await;

    // Not only the handshake: events too.
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let mut relay = Relay::new(with_ca(&url("localhost", signed, "")));
    relay.ready().await;
    let (mut publishing, ..) = relay.publish();
    let events: Vec<_> = (0..1_000).map(|number| event(number, number % 100, "events", "key")).collect();
    publishing.send_all(&events).await;
    publishing.resolved("over TLS", &all(1_000)).await;
    publishing.end().await.1.unwrap();
    assert_account(&events, &all(1_000), &vhost.drain("all").await);
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn require_tls_refuses_plaintext_before_anything_is_sent() {
    let plain = Config { require_tls: true, ..config("amqp://u:p@127.0.0.1:1", |_| {}) };
    let text = refusal(&plain).await;
    assert!(text.contains("require_tls") && text.contains("amqps://"), "{text}");
}

fn broker(config: Config) -> Broker {
    let metrics = Metrics::new("test", &["default".to_owned()]).unwrap();
    Broker::new(Arc::new(config), metrics, Status::new("test", "postrider"), None)
}

fn as_user(vhost: &Vhost, user: &str) -> Config {
    config(&format!("amqp://{user}:pw@{}/{}", vhost.server.address(), vhost.name), |_| {})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_absent_exchange_of_a_route_is_declared_durable_and_topic() {
    let server = Server::shared().await;
    let vhost = server.vhost("declare").await;
    let mut broker = broker(config(&vhost.url(&server.address()), |_| {}));
    broker.ready().await.unwrap();
    let listed = server.management("GET", &format!("exchanges/{}/events", vhost.name), "").await;
    assert!(listed.contains(r#""type":"topic""#) && listed.contains(r#""durable":true"#), "{listed}");
    // Of another type it is used as it is.
    vhost.delete_exchange("events").await;
    server
        .management("PUT", &format!("exchanges/{}/events", vhost.name), r#"{"type": "fanout", "durable": false}"#)
        .await;
    broker.close().await;
    broker.ready().await.unwrap();
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_on_the_exchange_is_all_that_the_user_needs() {
    let (vhost, _proxy, _) = shared("rights").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let user = vhost.add_user("writer", "", "^events$", "").await;
    let mut relay = Relay::new(as_user(&vhost, &user));
    relay.ready().await;
    let (mut publishing, ..) = relay.publish();
    publishing.send(vec![event(0, 0, "events", "key")]).await;
    publishing.resolved("as a user who may only write", &all(1)).await;
    publishing.end().await.1.unwrap();
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_that_may_not_be_declared_names_the_command() {
    let server = Server::shared().await;
    let vhost = server.vhost("missing").await;
    let user = vhost.add_user("writer", "", "^events$", "").await;
    let mut broker = broker(as_user(&vhost, &user));
    let error = broker.ready().await.unwrap_err();
    assert!(error.is_topology(), "{error:?}");
    let text = error.to_string();
    for words in [
        "exchange `events` does not exist",
        &format!("rabbitmqadmin --vhost '{}' declare exchange --name 'events' --type topic --durable true", vhost.name),
        &format!("rabbitmqctl set_permissions -p '{}' USER '^events$' '^events$' ''", vhost.name),
    ] {
        assert!(text.contains(words), "{text}");
    }
    vhost.exchange("events").await;
    broker.ready().await.unwrap();
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_topology_is_declared_and_what_exists_is_used_as_it_is() {
    let server = Server::shared().await;
    let vhost = server.vhost("topology").await;
    let text = |value: &str| Argument::Text(value.to_owned());
    let queue = |name: &str, arguments| QueueDecl { name: name.to_owned(), arguments, dead_letter: None };
    let topology = Topology {
        exchanges: vec![ExchangeDecl { name: "events".into(), kind: "topic".into(), arguments: Vec::new() }],
        queues: vec![
            queue("orders", vec![("x-max-length".into(), Argument::Integer(1_000))]),
            queue("old", vec![("x-queue-type".into(), text("classic"))]),
            queue("existing", Vec::new()),
        ],
        bindings: vec![BindingDecl {
            exchange: "events".into(),
            queue: "orders".into(),
            routing_key: "order.#".into(),
            arguments: Vec::new(),
        }],
    };
    // A classic queue where a quorum queue is wanted: 406.
    vhost.queue("existing", &[]).await;
    let config = Config { topology: Some(topology), ..config(&vhost.url(&server.address()), |_| {}) };
    for _ in 0..2 {
        let mut broker = broker(config.clone());
        broker.ready().await.unwrap();
        broker.close().await;
    }
    let queue = async |name: &str| server.management("GET", &format!("queues/{}/{name}", vhost.name), "").await;
    let orders = queue("orders").await;
    assert!(orders.contains(r#""x-queue-type":"quorum""#) && orders.contains(r#""x-max-length":1000"#), "{orders}");
    assert!(queue("old").await.contains(r#""x-queue-type":"classic""#));
    let bindings = server.management("GET", &format!("bindings/{}/e/events/q/orders", vhost.name), "").await;
    assert!(bindings.contains("order.#"), "{bindings}");

    // A route's exchange that the list leaves out is not made.
    let mut unlisted = config.clone();
    unlisted.routes.iter_mut().for_each(|route| route.exchange = "elsewhere".into());
    let error = broker(unlisted).ready().await.unwrap_err();
    assert!(error.is_topology() && error.to_string().contains("[topology] does not list it"), "{error}");
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_depth_of_a_queue_is_told_and_a_missing_queue_is_no_error() {
    let (vhost, _proxy, _) = shared("depth").await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let config = config(&vhost.url(&vhost.server.address()), |_| {});
    let link = connect(&config, Purpose::Probe).await.unwrap();
    let empty = QueueDepth { ready: 0, consumers: 0 };
    assert_eq!(queue_depth(&link, "all").await.unwrap(), Some(empty));
    assert_eq!(queue_depth(&link, "gone").await.unwrap(), None);
    assert_eq!(queue_depth(&link, "all").await.unwrap(), Some(empty), "the connection has survived");
    let mut relay = Relay::new(config);
    relay.ready().await;
    let (mut publishing, ..) = relay.publish();
    publishing.send((0..10).map(|number| event(number, number, "events", "key")).collect()).await;
    publishing.resolved("ten", &all(10)).await;
    assert_eq!(queue_depth(&link, "all").await.unwrap(), Some(QueueDepth { ready: 10, consumers: 0 }));
    publishing.end().await.1.unwrap();
    vhost.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_is_waited_for_on_the_connection_that_it_blocks() {
    let own = Own::rabbitmq(&[]);
    let server = Server::own(&own);
    let vhost = server.vhost("blocked").await;
    let proxy = crate::proxy::Proxy::amqp(&server.address()).await;
    vhost.exchange("events").await;
    vhost.queue("all", &[]).await;
    vhost.bind("all", "events", "#").await;
    let events: Vec<_> = (0..2_000).map(|number| event(number, number % 100, "events", "key")).collect();
    // rabbitmqctl takes its time.
    let patience = Duration::from_secs(20);
    let mut relay = Relay::new(config(&through(&proxy, &vhost), |limits| {
        limits.confirm_timeout = Duration::from_secs(3);
        limits.broker_patience = patience;
    }));
    relay.ready().await;
    let (mut publishing, metrics, status) = relay.publish();
    publishing.send_all(&events[..500]).await;
    publishing.resolved("before", &all(500)).await;

    // For less than the patience, and for longer than a confirm may take.
    own.block();
    publishing.send_all(&events[500..1_000]).await;
    eventually("blocked in the status", async || status.snapshot().broker_blocked).await;
    assert_eq!(metrics.broker_blocked.get(), 1);
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    own.unblock();
    publishing.resolved("after a short block", &all(1_000)).await;
    assert_eq!(metrics.confirm_timeouts.get(), 0, "no time runs out while the broker blocks");
    assert!(status.snapshot().broker_blocked.is_none());
    assert_eq!(proxy.counts().connections, 1);

    // For longer than the patience.
    own.block();
    publishing.send_all(&events[1_000..]).await;
    eventually("blocked again", async || status.snapshot().broker_blocked).await;
    let started = Instant::now();
    let (broker, result) = timeout(PATIENCE, publishing.task).await.expect("the publisher does not end").unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, BrokerError::Blocked { .. }), "{error}");
    assert!(error.to_string().contains("low on memory"), "{error}");
    assert!(started.elapsed() > patience / 2, "{:?}", started.elapsed());
    let confirmed = metrics.events_confirmed.get();
    publishing.done.clear();
    while let Ok(tickets) = publishing.resolved.try_recv() {
        publishing.done.extend(tickets.iter().map(|ticket| ticket.entry));
    }

    let mut relay = Relay { metrics, status, broker };
    let early = timeout(Duration::from_secs(1), relay.broker.ready()).await;
    assert!(early.is_err(), "not ready while the broker blocks");
    assert_eq!(proxy.counts().connections, 1, "the connection is kept");
    assert!(relay.status.snapshot().broker_blocked.is_some());
    own.unblock();
    relay.ready().await;
    let (mut publishing, metrics, _) = relay.publish();
    let rest: Vec<_> = events.iter().skip(usize::try_from(confirmed).unwrap()).cloned().collect();
    let rest_numbers = rest.iter().map(|event| event.ticket.entry).collect();
    publishing.send_all(&rest).await;
    publishing.resolved("after a long block", &rest_numbers).await;
    assert_account(&events, &all(events.len()), &vhost.drain("all").await);

    // A drain does not wait for a broker that blocks.
    own.block();
    let more: Vec<_> = (2_000..2_100).map(|number| event(number, number, "events", "key")).collect();
    publishing.send(more).await;
    eventually("blocked a third time", async || (metrics.broker_blocked.get() == 1).then_some(())).await;
    let started = Instant::now();
    let (mut broker, result) = publishing.end().await;
    result.unwrap();
    broker.close().await;
    assert!(started.elapsed() < patience / 2, "{:?}", started.elapsed());
}

const HEADER: &str = "planted-header-7f3a";
const BODY: &str = "planted-body-91c4";

/// R12. Run by the test below, in a process whose log can be read.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test below runs it"]
async fn return_a_planted_message() {
    postrider::logging::start(LogFormat::Json, "trace,lapin=trace,lapin::returned_messages=trace").unwrap();
    let (vhost, _proxy, _) = shared("planted").await;
    vhost.exchange("events").await;
    let mut relay = Relay::new(config(&vhost.url(&vhost.server.address()), |_| {}));
    relay.ready().await;
    let (publishing, metrics, _) = relay.publish();
    let mut planted = event(0, 0, "events", "unbound");
    let message = planted.content.as_mut().unwrap();
    message.body = Bytes::from_static(BODY.as_bytes());
    message.properties.headers.push(("tenant".into(), HeaderValue::Text(HEADER.to_owned())));
    publishing.send(vec![planted]).await;
    eventually("it comes back twice", async || (metrics.events_returned.get() > 1).then_some(())).await;
    publishing.end().await.1.unwrap();
    vhost.remove().await;
}

#[test]
fn a_returned_messages_header_and_body_are_in_no_log() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "broker::return_a_planted_message", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{log}");
    assert!(log.contains("no queue is bound for this routing key"), "our own line about it is there: {log}");
    for planted in [HEADER, BODY] {
        assert!(!log.contains(planted), "{planted} as text");
        let decimal: Vec<String> = planted.bytes().map(|byte| byte.to_string()).collect();
        assert!(!log.contains(&decimal.join(", ")) && !log.contains(&decimal.join(",")), "{planted} as bytes");
    }
}
