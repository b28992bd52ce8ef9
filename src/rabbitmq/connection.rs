//! One AMQP connection: our own socket, lapin above it, no automatic recovery (rule R5).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::protocol::AMQPErrorKind;
use lapin::types::LongString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{AsyncTcpStream, ConnectionProperties, ErrorKind};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout, timeout_at};

use super::greeting::{Greeting, Version};
use super::socket::{self, Ended, KillSwitch, Socket};
use super::url::{BrokerAddress, Login, Target, UrlError};
use crate::config::Config;
use crate::config::load::SecretError;
use crate::tls::{TlsConfigError, refuses_ours};

/// The answer to anything but a publish takes milliseconds; a broker that needs longer is as good as gone.
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(5);
/// lapin cannot write to a blocked connection, so its close can wait for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What the broker said before it closed the socket takes lapin a moment to tell.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// What the connection is for: the last part of its name in the management UI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Publish,
    Probe,
    Tail,
    /// A consumers' dead-letter queue.
    DeadLetters,
}

/// An open connection. Dropping it ends it at once, also while the broker has it blocked.
pub struct Link {
    connection: Arc<lapin::Connection>,
    events: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    blocked: Option<String>,
    address: String,
    vhost: String,
    version: Option<Version>,
    /// lapin's thread ends only when its close has been written, which a blocked connection never does.
    _kill_switch: KillSwitch,
}

/// What happened to a connection.
#[derive(Debug)]
pub enum Change {
    /// The broker takes no publishes (memory or disk alarm); its reason.
    Blocked(String),
    Unblocked,
    Lost(lapin::Error),
}

/// No broker could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("amqp_url: {0}")]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("cannot connect to RabbitMQ at {}", join(.0))]
    Unreachable(Vec<BrokerFault>),
}

/// Why one broker could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {fault}")]
pub struct BrokerFault {
    pub address: String,
    #[source]
    pub fault: Fault,
}

/// Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("the host name cannot be resolved ({0}); check the host in AMQP_URL")]
    Resolve(#[source] io::Error),
    #[error("connection refused; is RabbitMQ running there, and is the port right?")]
    Refused(#[source] io::Error),
    #[error("{0}")]
    Tcp(#[source] io::Error),
    #[error("no answer within {:.1} s; check address, port and firewalls, and whether the broker is overloaded", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("{0}")]
    TlsConfig(#[from] TlsConfigError),
    #[error("TLS failed: {hint}")]
    Tls {
        hint: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "login refused for {who}; check user and password in AMQP_URL (`guest` may log in from the broker's own machine only)"
    )]
    Login {
        who: String,
        #[source]
        source: lapin::Error,
    },
    /// EXTERNAL.
    #[error(
        "login refused for the client certificate; its user has to exist there (`rabbitmqctl add_user`): it is named by the certificate's common name if the broker has ssl_cert_login_from = common_name, otherwise by its whole subject"
    )]
    CertificateUser(#[source] lapin::Error),
    #[error(
        "the broker does not take the client certificate ({0}); one of an authority in its ssl_options.cacertfile belongs into certfile and keyfile of AMQP_URL (amqp_cert_file, amqp_key_file)"
    )]
    Certificate(#[source] lapin::Error),
    #[error("vhost `{vhost}` does not exist; create it with `rabbitmqctl add_vhost '{vhost}'`, or correct AMQP_URL")]
    NoVhost {
        vhost: String,
        #[source]
        source: lapin::Error,
    },
    #[error(
        "{who} may not use vhost `{vhost}`; allow it with `rabbitmqctl set_permissions -p '{vhost}' USER '' '.*' ''` (configure, write, read)"
    )]
    VhostRefused {
        who: String,
        vhost: String,
        #[source]
        source: lapin::Error,
    },
    #[error("the connection was closed during the AMQP handshake ({0}); is this RabbitMQ's AMQP port?")]
    Handshake(#[source] lapin::Error),
}

impl ConnectError {
    /// Whether the broker could be asked and said no: only a person can change that.
    pub fn is_refusal(&self) -> bool {
        match self {
            ConnectError::Url(_) => true,
            ConnectError::Secret(_) => false,
            ConnectError::Unreachable(faults) => faults.iter().any(|fault| {
                matches!(
                    fault.fault,
                    Fault::Login { .. }
                        | Fault::CertificateUser(_)
                        | Fault::Certificate(_)
                        | Fault::NoVhost { .. }
                        | Fault::VhostRefused { .. }
                )
            }),
        }
    }
}

fn join(faults: &[BrokerFault]) -> String {
    faults.iter().map(BrokerFault::to_string).collect::<Vec<_>>().join("; ")
}

/// Connects to the configured brokers: reads the URL again, begins with any of them, and takes the first that answers.
pub async fn connect(config: &Config, purpose: Purpose) -> Result<Link, ConnectError> {
    connect_again(config, purpose, None).await
}

/// The same, after the connection to the broker at the address `last`, which comes last now: a node that is parted from its cluster
/// accepts connections, and confirms nothing on them.
pub async fn connect_again(config: &Config, purpose: Purpose, last: Option<&str>) -> Result<Link, ConnectError> {
    let url = config.amqp_url.read()?;
    let target = Target::new(url.expose_secret(), config)?;
    connect_in_order(&target, &connection_name(&config.slot, purpose), order(&target, last)).await
}

/// Any first, so that relays spread over the nodes; the one at `last` behind the others.
fn order<'t>(target: &'t Target, last: Option<&str>) -> Vec<&'t BrokerAddress> {
    let count = target.brokers.len();
    let start = rand::random_range(0..count.max(1));
    let mut order: Vec<&BrokerAddress> = target.brokers.iter().cycle().skip(start).take(count).collect();
    order.sort_by_key(|broker| last == Some(broker.address().as_str()));
    order
}

/// `postrider/<slot>@<host>/<publish|probe|tail|dead-letters>`, as the management UI shows it.
fn connection_name(slot: &str, purpose: Purpose) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { std::env::var("HOSTNAME").unwrap_or_default() } else { host };
    let purpose = match purpose {
        Purpose::Publish => "publish",
        Purpose::Probe => "probe",
        Purpose::Tail => "tail",
        Purpose::DeadLetters => "dead-letters",
    };
    format!("postrider/{slot}@{}/{purpose}", host.trim())
}

/// Connects to any of these brokers, under this name.
pub async fn connect_to(target: &Target, name: &str) -> Result<Link, ConnectError> {
    connect_in_order(target, name, order(target, None)).await
}

/// Tries each broker once, within the longest `connect_timeout` of them altogether.
async fn connect_in_order(target: &Target, name: &str, order: Vec<&BrokerAddress>) -> Result<Link, ConnectError> {
    let count = order.len();
    let limit = target.brokers.iter().map(|broker| broker.connect_timeout).max().unwrap_or_default();
    let deadline = Instant::now() + limit;
    let mut faults = Vec::new();
    for (tried, broker) in order.into_iter().enumerate() {
        // A broker that does not answer leaves the others their share.
        let share = deadline.saturating_duration_since(Instant::now()) / u32::try_from(count - tried).unwrap_or(1);
        let share = share.min(broker.connect_timeout);
        let fault = match timeout(share, open(broker, &target.vhost, name)).await {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(fault)) => fault,
            Err(_) => Fault::TimedOut(share),
        };
        faults.push(BrokerFault { address: broker.address(), fault });
    }
    Err(ConnectError::Unreachable(faults))
}

async fn open(broker: &BrokerAddress, vhost: &str, name: &str) -> Result<Link, Fault> {
    let greeting = Greeting::default();
    let (socket, ended, kill_switch) = socket::open(broker, greeting.clone()).await?;
    let connection = handshake(socket, ended, broker, vhost, name).await?;
    let events = Box::pin(connection.events_listener());
    let blocked = connection.status().blocked().then(|| "no reason given".to_owned());
    Ok(Link {
        connection: Arc::new(connection),
        events,
        blocked,
        address: broker.address(),
        vhost: vhost.to_owned(),
        version: greeting.version(),
        _kill_switch: kill_switch,
    })
}

/// The AMQP handshake on a stream of ours.
async fn handshake(
    socket: Socket,
    ended: Ended,
    broker: &BrokerAddress,
    vhost: &str,
    name: &str,
) -> Result<lapin::Connection, Fault> {
    let (userinfo, mechanism) = match &broker.login {
        Login::Plain { user, password } => (user_info(user, password.expose_secret()), SASLMechanism::Plain),
        Login::AmqPlain { user, password } => (user_info(user, password.expose_secret()), SASLMechanism::AMQPlain),
        Login::External => (user_info("", ""), SASLMechanism::External),
    };
    let uri = AMQPUri {
        // Only what lapin negotiates and logs in with is read from here: the stream exists already.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority { userinfo, host: broker.host.clone(), port: broker.port },
        vhost: vhost.to_owned(),
        query: AMQPQueryString {
            frame_max: broker.frame_max,
            channel_max: broker.channel_max,
            heartbeat: Some(broker.heartbeat_seconds),
            connection_timeout: None,
            auth_mechanism: Some(mechanism),
        },
    };
    let properties = ConnectionProperties::default()
        .with_connection_name(LongString::from(name))
        .with_client_property("product".into(), LongString::from("postrider"))
        .with_client_property("version".into(), LongString::from(env!("CARGO_PKG_VERSION")));
    // lapin asks for the socket once: it reconnects only with auto-recovery.
    let socket = Mutex::new(Some(AsyncTcpStream::Plain(socket)));
    let hand_over = async move |_, _| {
        let socket = socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        socket.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
    };
    let who =
        || broker.login.user().map_or_else(|| "the client certificate".to_owned(), |user| format!("user `{user}`"));
    // If the socket ends while lapin prepares its answer to `start` or `tune`, its promise is never kept (4.12: the answer fails, and the
    // promise's resolver is dropped with it). So the end is watched here too.
    let abandoned = async {
        ended.wait().await;
        tokio::time::sleep(LAST_WORDS_TIMEOUT).await;
    };
    let connected = tokio::select! {
        biased;
        connected = lapin::Connection::connector(uri, socket::runtime(), hand_over, properties) => connected,
        () = abandoned => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
    };
    connected.map_err(|source| {
        match reply(&source) {
            Some((403, _)) if matches!(broker.login, Login::External) => Fault::CertificateUser(source),
            Some((403, _)) => Fault::Login { who: who(), source },
            // 530 NOT_ALLOWED has no subcodes; the text is rabbit_reader's.
            Some((530, text)) if text.contains("not found") => Fault::NoVhost { vhost: vhost.to_owned(), source },
            Some((530, text)) if text.contains("refused") => {
                Fault::VhostRefused { who: who(), vhost: vhost.to_owned(), source }
            }
            _ if matches!(source.kind(), ErrorKind::IOError(error) if refuses_ours(error)) => {
                Fault::Certificate(source)
            }
            _ => Fault::Handshake(source),
        }
    })
}

fn user_info(user: &str, password: &str) -> AMQPUserInfo {
    AMQPUserInfo { username: user.to_owned(), password: password.to_owned() }
}

/// Code and text with which the broker closed the channel or the connection; `None` if it did not.
pub(super) fn reply(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().as_str())),
        _ => None,
    }
}

/// Whether the broker refused what was asked for and closed the channel alone: the connection can be used on.
pub(crate) fn is_refusal(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

impl Link {
    /// A new channel.
    pub async fn channel(&self) -> Result<lapin::Channel, lapin::Error> {
        self.channels().open().await
    }

    /// Opens channels on this connection, from another task too.
    pub(super) fn channels(&self) -> Channels {
        Channels(Arc::clone(&self.connection))
    }

    /// What happens next to this connection. Cancel-safe.
    pub async fn changed(&mut self) -> Change {
        loop {
            match self.events.next().await {
                Some(lapin::Event::ConnectionBlocked(reason)) => {
                    self.blocked = Some(reason.clone());
                    return Change::Blocked(reason);
                }
                Some(lapin::Event::ConnectionUnblocked) => {
                    self.blocked = None;
                    return Change::Unblocked;
                }
                // Errors of channels come this way too.
                Some(lapin::Event::Error(error)) if !self.is_open() => return Change::Lost(error),
                Some(_) => {}
                None => return Change::Lost(io::Error::from(io::ErrorKind::NotConnected).into()),
            }
        }
    }

    /// The broker's reason, while it takes no publishes from this connection.
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    pub fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// `host:port` of the broker.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// `None`: it is no RabbitMQ, or does not say.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Bytes of the largest frame, as negotiated.
    pub fn frame_max(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    /// Says goodbye if the broker listens. Takes a second at most.
    pub async fn close(self) {
        if self.blocked.is_none() && self.is_open() {
            let goodbye = self.connection.close(200, "OK".into());
            // Whatever comes of it, dropping the link ends the connection.
            timeout_at(Instant::now() + CLOSE_TIMEOUT, goodbye).await.ok();
        }
    }
}

/// What is left of a connection for those who only open channels on it. It does not keep the connection alive.
pub(super) struct Channels(Arc<lapin::Connection>);

impl Channels {
    pub(super) async fn open(&self) -> Result<lapin::Channel, lapin::Error> {
        deadline(self.0.create_channel()).await
    }
}

/// Waits for an answer of the broker, at most [`RPC_TIMEOUT`].
pub(super) async fn deadline<T>(answer: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, lapin::Error> {
    timeout(RPC_TIMEOUT, answer).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}
