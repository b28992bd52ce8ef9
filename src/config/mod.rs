//! Everything that can be configured, and its default. How it is read: [`load`].

pub mod load;
mod source;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::event::{OnPoison, OnUnroutable, Ordering};

pub use source::{
    Binary, ColumnRule, Debezium, Decimals, Hstore, Intervals, OutboxRouter, Place, Placement, Redaction, Snapshot,
    Source, Times,
};

/// The whole configuration, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// `source.name` of the events. Default: the name of the database.
    pub name: Option<String>,
    pub database_url: SecretSource,
    pub amqp_url: SecretSource,
    /// Optional: RabbitMQ's management API, for what AMQP cannot tell.
    pub management_url: Option<SecretSource>,
    /// Refuse plaintext to either server, whatever the URLs say.
    pub require_tls: bool,
    /// CA certificates for AMQP (PEM) in addition to the system's.
    pub amqp_ca_file: Option<PathBuf>,
    /// Client certificate and key for AMQP (PEM): SASL EXTERNAL when the URL has no user.
    pub amqp_cert_file: Option<PathBuf>,
    pub amqp_key_file: Option<PathBuf>,
    /// Replication slot: lower-case letters, digits and underscores, at most 63.
    pub slot: String,
    pub publication: String,
    /// Where a second record of the slot is kept, besides the one in the database.
    pub state_dir: Option<PathBuf>,
    pub admin_listen: SocketAddr,
    pub log_format: LogFormat,
    /// `tracing-subscriber` filter directives.
    pub log: String,
    pub outbox: Outbox,
    /// What is carried besides it.
    pub source: Source,
    /// Goes before a value whose SHA-256 is sent in its place.
    pub redaction_salt: Option<SecretSource>,
    /// Of the format `debezium`.
    pub debezium: Debezium,
    /// The last one is the default route, which matches everything.
    pub routes: Vec<RouteRule>,
    /// Names of row headers (exact, or ending in `*`) that are copied to the message.
    pub allowed_headers: Vec<String>,
    /// `None`: the exchanges of the routes are declared if absent (durable, topic). `Some`: only what is listed is declared.
    pub topology: Option<Topology>,
    /// Queues that are watched, whatever is bound where.
    pub queues: Vec<WatchedQueue>,
    pub consumers: Consumers,
    pub limits: Limits,
}

impl Config {
    /// The exchanges of the routes, each once.
    pub fn exchanges(&self) -> Vec<&str> {
        let mut exchanges: Vec<&str> = Vec::new();
        for route in &self.routes {
            if !exchanges.contains(&route.exchange.as_str()) {
                exchanges.push(&route.exchange);
            }
        }
        exchanges
    }

    /// What both servers show of us, unless DATABASE_URL gives a name of its own.
    pub fn application_name(&self) -> String {
        format!("postrider/{}", self.slot)
    }
}

/// A secret that is either given or read from a file at each use (so that rotation needs no restart).
#[derive(Clone, Debug)]
pub enum SecretSource {
    Value(secrecy::SecretString),
    File(PathBuf),
    /// Not given, and the command that loaded the configuration can do without.
    Unset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    Human,
    Json,
}

/// The outbox table and the names of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbox {
    pub schema: String,
    pub table: String,
    pub columns: Columns,
}

/// Column names; the first five are required in the table, the others are used where the table has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    pub id: String,
    pub aggregatetype: String,
    pub aggregateid: String,
    pub kind: String,
    pub payload: String,
    pub before: String,
    pub version: String,
    pub sequence: String,
    pub headers: String,
    pub occurred_at: String,
    pub xid: String,
}

impl Default for Columns {
    fn default() -> Self {
        let name = |name: &str| name.to_owned();
        Columns {
            id: name("id"),
            aggregatetype: name("aggregatetype"),
            aggregateid: name("aggregateid"),
            kind: name("type"),
            payload: name("payload"),
            before: name("before"),
            version: name("version"),
            sequence: name("sequence"),
            headers: name("headers"),
            occurred_at: name("occurred_at"),
            xid: name("xid"),
        }
    }
}

/// One `[[route]]`: the first that matches an event decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    pub name: String,
    /// Exact, or with `*` for any run of characters.
    pub aggregatetype: String,
    pub kind: String,
    /// Of changes of tables, and of nothing else: `schema.table`, with `*` for any run of characters.
    pub table: Option<String>,
    pub exchange: String,
    /// `{aggregatetype}`, `{aggregateid}`, `{type}`, `{version}`, `{op}`, `{schema}`, `{table}`, `{topic}` and text; `{{` and `}}`
    /// are braces.
    pub routing_key: String,
    pub format: Format,
    pub ordering: Ordering,
    pub on_unroutable: OnUnroutable,
    pub on_poison: OnPoison,
}

/// The formats of a message body: a closed set, one function each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Debezium-shaped before/after envelope.
    #[default]
    Cdc,
    /// The payload column alone.
    Payload,
    /// What Debezium sends with schemas off.
    Debezium,
}

/// What is declared at start, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    pub exchanges: Vec<ExchangeDecl>,
    pub queues: Vec<QueueDecl>,
    pub bindings: Vec<BindingDecl>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeDecl {
    pub name: String,
    /// `topic` (default), `direct`, `fanout`, `headers`, or `x-...`.
    pub kind: String,
    pub arguments: Vec<(String, Argument)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct QueueDecl {
    pub name: String,
    /// `x-queue-type` is `quorum` unless given.
    pub arguments: Vec<(String, Argument)>,
    pub dead_letter: Option<DeadLetterDecl>,
}

/// `dead_letter` of a queue: where its messages go that consumers cannot handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterDecl {
    /// A message that was delivered once and then so many times again goes there.
    pub delivery_limit: usize,
    /// How long it is kept there.
    pub retention: Duration,
    pub queue: String,
    pub exchange: String,
}

impl DeadLetterDecl {
    /// What `dead_letter = true` means for a queue of that name.
    pub fn usual(queue: &str) -> DeadLetterDecl {
        DeadLetterDecl {
            delivery_limit: 3,
            retention: Duration::from_secs(14 * 86_400),
            queue: format!("{queue}.dlq"),
            exchange: "dead-letters".to_owned(),
        }
    }

    /// Arguments of the queue that the messages leave.
    ///
    /// At-least-once: a dead letter stays in its queue until the dead-letter queue has confirmed it. RabbitMQ does that only
    /// for queues that refuse what they have no room for, and falls back to at-most-once without a word for others. Refusing
    /// is what the relay wants anyway: it holds and parks what is refused, whereas a head that is dropped is lost.
    pub fn source_arguments(&self) -> Vec<(String, Argument)> {
        let text = |name: &str, value: &str| (name.to_owned(), Argument::Text(value.to_owned()));
        vec![
            text("x-queue-type", "quorum"),
            ("x-delivery-limit".to_owned(), Argument::Integer(i64::try_from(self.delivery_limit).unwrap_or(i64::MAX))),
            text("x-dead-letter-exchange", &self.exchange),
            text("x-dead-letter-routing-key", &self.queue),
            text("x-dead-letter-strategy", "at-least-once"),
            text("x-overflow", "reject-publish"),
        ]
    }

    /// Arguments of the dead-letter queue.
    pub fn target_arguments(&self) -> Vec<(String, Argument)> {
        /// Without one RabbitMQ 4 takes 20: somebody who looks at a dead letter and puts it back often enough would lose it.
        const ANY_NUMBER_OF_LOOKS: i64 = 1_000_000;
        let millis = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        vec![
            ("x-queue-type".to_owned(), Argument::Text("quorum".to_owned())),
            ("x-message-ttl".to_owned(), Argument::Integer(millis)),
            ("x-delivery-limit".to_owned(), Argument::Integer(ANY_NUMBER_OF_LOOKS)),
        ]
    }
}

/// One `[[queues]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedQueue {
    /// A name, or with `*` for any run of characters.
    pub name: String,
    /// The lag that its consumers may have; `None`: that of [`Consumers`].
    pub max_lag: Option<Duration>,
}

impl WatchedQueue {
    /// RabbitMQ allows a `*` in names; here it always stands for a pattern.
    pub fn is_pattern(&self) -> bool {
        self.name.contains('*')
    }
}

/// `[consumers]`: how the queues of the consumers are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumers {
    /// With the management API: also the queues that our exchanges lead to.
    pub discover: bool,
    /// The lag that the consumers of a queue may have that names none.
    pub max_lag: Option<Duration>,
    /// Between two samples from the management API.
    pub period: Duration,
}

impl Default for Consumers {
    fn default() -> Self {
        Consumers { discover: true, max_lag: None, period: Duration::from_secs(15) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct BindingDecl {
    pub exchange: String,
    pub queue: String,
    pub routing_key: String,
    pub arguments: Vec<(String, Argument)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    Text(String),
    Integer(i64),
    Bool(bool),
}

/// As in the configuration file.
impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Argument::Text(text) => write!(f, "{text:?}"),
            Argument::Integer(number) => write!(f, "{number}"),
            Argument::Bool(flag) => write!(f, "{flag}"),
        }
    }
}

/// Bounds and times. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Publishes without a verdict, at most. 200 to 1,000 is enough for any rate (limits measured).
    pub window: usize,
    pub window_bytes: usize,
    /// Events that wait for their key or their retry, at most; reading stops beyond it.
    pub waiting: usize,
    pub waiting_bytes: usize,
    /// RabbitMQ's own default is 16 MiB (`max_message_size`, 4.0 and later).
    pub max_message_bytes: usize,
    pub confirm_timeout: Duration,
    /// How long a session goes on without a usable broker before it lets go of the slot's connection (rule R5).
    pub broker_patience: Duration,
    pub heartbeat_interval: Duration,
    /// Rows of a chunk of a snapshot, at most.
    pub snapshot_rows: usize,
    /// How long a stopping relay waits for confirms. It exits within 5 s more.
    pub drain_timeout: Duration,
    /// Between attempts of a refused event, and between probes of what fails: doubled from the first to the second.
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// How long an event that is returned or nacked is retried before it is parked.
    pub hold_for: Duration,
    /// Rows and bytes of the dead letters beyond which nothing is read any more.
    pub max_parked: usize,
    pub max_parked_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Limits {
            window: 1_000,
            window_bytes: 16 * MIB,
            waiting: 10_000,
            waiting_bytes: 32 * MIB,
            max_message_bytes: 16 * MIB,
            confirm_timeout: Duration::from_secs(30),
            broker_patience: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(10),
            snapshot_rows: 1_000,
            drain_timeout: Duration::from_secs(15),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            hold_for: Duration::from_secs(60),
            max_parked: 100_000,
            max_parked_bytes: 1 << 30,
        }
    }
}
