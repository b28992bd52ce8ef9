//! What leaves for RabbitMQ: an [`Event`] and the pure functions that build one from a committed row.

pub mod captured;
pub mod cdc;
pub mod change;
mod debezium;
pub mod emitted;
mod headers;
mod key;
pub mod outbox;
pub mod payload;
pub mod route;
pub mod shape;
mod table;
mod values;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::lsn::Lsn;

pub(crate) use key::keys_of;
pub use key::{Joins, table_of};

/// The header of a message that a person had published again.
pub(crate) const REDELIVERED: &str = "x-postrider-redelivered";

/// One committed row on its way to the broker.
///
/// Building an event never fails: a row that can never be published becomes an event whose `content` is a [`Poison`],
/// so that it keeps its place in the order and the slot cannot pass it unnoticed (rule R3, guarantee G9).
#[derive(Clone, Debug)]
pub struct Event {
    /// Where it stands in the order; also the identity of a *publish* (returns are matched by it, rule R2).
    pub position: Position,
    /// AMQP `message_id`: the row's `id` as text, uncut. One of over 255 bytes makes the event a [`Poison`], whose dead letter
    /// is known by all of it.
    pub id: Arc<str>,
    /// First deliveries of one key happen in commit order (guarantee G3).
    pub key: Arc<str>,
    /// What else it waits for, and what waits for it (rule R3).
    pub joins: Joins,
    /// The route it takes (exchange, ordering, format), by which failures and metrics are grouped.
    pub route: Arc<Route>,
    /// Commit time of its transaction, by PostgreSQL's clock.
    pub commit_time: SystemTime,
    /// Which entry of [`crate::progress::Progress`] it resolves.
    pub ticket: Ticket,
    /// The message, or why there can be none.
    pub content: Result<Message, Poison>,
    /// Of an event whose content is a [`Poison`]: as much of the message as could be made, for its dead letter. The body is
    /// exact, however large; where none can be made (a text that it needs is not UTF-8, a required column is null, the headers
    /// are no JSON object) it is the payload column as PostgreSQL sent it, with content type `application/octet-stream`. Routing
    /// key, properties and headers are uncut, whatever AMQP would say of them; bytes that are not UTF-8 are U+FFFD in them.
    pub remains: Option<Box<Message>>,
}

/// Bytes of a text of an event that a log line or a span shows, at most: what AMQP allows for a short string. Only a poison
/// has longer ones.
pub(crate) const SHOWN: usize = 255;

/// The first [`SHOWN`] bytes, or a few less.
pub(crate) fn shown(text: &str) -> &str {
    (0..=text.len().min(SHOWN)).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

impl Event {
    /// What a dead letter keeps of it: the whole message, also of one that is found to be unfit only when it is published.
    pub fn message(&self) -> Option<&Message> {
        self.content.as_ref().ok().or(self.remains.as_deref())
    }

    /// Bytes that this event holds in memory, near enough for the bounds of the window.
    pub fn bytes(&self) -> usize {
        const OVERHEAD: usize = 256;
        const PER_HEADER: usize = 64;
        let Some(message) = self.message() else { return OVERHEAD };
        let header = |(name, value): &Header| {
            let text = if let HeaderValue::Text(text) = value { text.len() } else { 0 };
            PER_HEADER + name.len() + text
        };
        let properties = &message.properties;
        // A short string is short, except in what remains of a poison.
        let texts = self.id.len() + message.routing_key.len() + properties.kind.len();
        OVERHEAD + texts + message.body.len() + properties.headers.iter().map(header).sum::<usize>()
    }
}

/// Where an event's traffic goes and how its keys are ordered: one `[[route]]` of the configuration, or the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Label for logs and metrics: `default`, or the route's `name`.
    pub name: String,
    /// The exchange that its messages are published to.
    pub exchange: String,
    /// How strictly a key's events wait for each other.
    pub ordering: Ordering,
    pub on_unroutable: OnUnroutable,
    pub on_poison: OnPoison,
}

/// A kind of change of a table, as the publication has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceOp {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl SourceOp {
    pub const ALL: [SourceOp; 4] = [SourceOp::Insert, SourceOp::Update, SourceOp::Delete, SourceOp::Truncate];

    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            SourceOp::Insert => "insert",
            SourceOp::Update => "update",
            SourceOp::Delete => "delete",
            SourceOp::Truncate => "truncate",
        }
    }
}

/// `on_unroutable` of a route: what becomes of an event that no queue is bound for (rule R3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnroutable {
    /// Retried for `hold_for`, then parked in the dead letters, from where it releases itself.
    #[default]
    Park,
    /// Retried for ever. The slot waits for it.
    Hold,
    /// Counted, and gone: for events that may have no reader yet.
    Discard,
}

/// `on_poison` of a route: what becomes of an event that can never be published as it is (rule R3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPoison {
    /// Parked, and its key's later events behind it, until a person has decided.
    #[default]
    ParkKey,
    /// Parked alone; its key goes on without it.
    Skip,
    /// Nothing is carried any more until a person has decided.
    Halt,
}

/// `ordering` of a route (rule R3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// At most one event of a key is undecided at a time.
    #[default]
    Key,
    /// A key's events are sent without waiting; after a nack or a return the key is held.
    Pipelined,
}

/// Names the entry of Progress that an event belongs to, and the session that read it.
///
/// A ticket of an earlier session resolves nothing (rule R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub session: u64,
    pub entry: u64,
}

impl Ticket {
    /// Of an event that comes from the dead letters and not from the slot: sessions are numbered from 1, so it resolves
    /// nothing.
    pub const NONE: Ticket = Ticket { session: 0, entry: 0 };
}

/// A message as it goes onto the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// At most 255 bytes.
    pub routing_key: String,
    pub properties: Properties,
    pub body: Bytes,
}

/// AMQP 0-9-1 properties that we set. `delivery_mode` is always 2 and `app_id` always `postrider`.
/// Every text here but `headers` values is a short string: at most 255 bytes, checked when the event is built.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    pub message_id: Arc<str>,
    pub kind: String,
    pub content_type: &'static str,
    /// Seconds since the Unix epoch: the commit time.
    pub timestamp: u64,
    pub correlation_id: Option<String>,
    pub headers: Vec<Header>,
}

/// Name and value. Most names are ours and cost nothing.
pub type Header = (Cow<'static, str>, HeaderValue);

/// The header values that a row may give.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValue {
    Text(String),
    Integer(i64),
    Bool(bool),
}

/// Why an event can never be published as it is. Topology, permissions and availability are never poison (G9).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Poison {
    pub reason: PoisonReason,
    /// For people. Names columns and sizes, never values.
    pub detail: String,
}

impl Poison {
    /// `detail` names columns and sizes, never values.
    pub fn new(reason: PoisonReason, detail: impl Into<String>) -> Poison {
        Poison { reason, detail: detail.into() }
    }
}

/// Closed set, used as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoisonReason {
    /// The body is over `max_message_bytes`, or over the broker's limit (406).
    TooLarge,
    /// A property or the routing key cannot be encoded (over 255 bytes, a required column is null, ...).
    BadProperty,
    /// The header table would not fit into one frame.
    HeadersTooLarge,
    /// A text is not UTF-8.
    NotUtf8,
    /// The broker refused this message alone with 406.
    Refused,
}

impl PoisonReason {
    pub fn as_str(self) -> &'static str {
        match self {
            PoisonReason::TooLarge => "too_large",
            PoisonReason::BadProperty => "bad_property",
            PoisonReason::HeadersTooLarge => "headers_too_large",
            PoisonReason::NotUtf8 => "not_utf8",
            PoisonReason::Refused => "refused",
        }
    }
}

impl fmt::Display for PoisonReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A regular expression of the outbox router, which matches all of a value or nothing of it (as Kafka's RegexRouter does).
///
/// # Errors
/// What is wrong with it.
pub fn router_regex(text: &str) -> Result<regex::Regex, regex::Error> {
    regex::Regex::new(&format!(r"\A(?:{text})\z"))
}

/// The order of events, and the identity of each publish: header `x-postrider-position`.
///
/// Text form is fixed-width and sorts like the value: `epoch-commit-ordinal-part` in hexadecimal, of 8, 16, 8 and 2 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The source epoch: raised only by `adopt` or after a diverged timeline.
    pub epoch: u32,
    /// LSN of the commit record (of the record itself, for a non-transactional message).
    pub commit: Lsn,
    /// Number of the row in its transaction, counted over all row messages, from 0.
    pub ordinal: u32,
    /// A key change in `debezium` format is up to three messages; otherwise 0. From 128 on: at its own place is the dead letter of
    /// another event ([`crate::hold::Displaced`]).
    pub part: u8,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: it is written twice for each event, and `write!` would take three thousand instructions each time.
        let parts = [(self.epoch.into(), 8), (self.commit.0, 16), (self.ordinal.into(), 8), (self.part.into(), 2)];
        let mut text = [b'-'; 8 + 1 + 16 + 1 + 8 + 1 + 2];
        let mut places = text.iter_mut();
        for (part, digits) in parts {
            for (digit, place) in (0..digits).rev().zip(places.by_ref()) {
                *place = hex_digit(part >> (4 * digit));
            }
            // The dash, which is there already.
            places.next();
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Two digits for each byte. Not by `write!`: ids are written for each change of a table.
fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push(char::from(hex_digit(u64::from(byte >> 4))));
        text.push(char::from(hex_digit(u64::from(*byte))));
    }
}

/// Of the lowest four bits.
fn hex_digit(bits: u64) -> u8 {
    let digit = usize::try_from(bits & 0xf).ok().and_then(|digit| b"0123456789abcdef".get(digit));
    digit.copied().unwrap_or_default()
}

/// The text is not a position.
#[derive(Debug, thiserror::Error)]
#[error("not a position")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut field = |width: usize| {
            let digits = parts.next().filter(|digits| digits.len() == width).ok_or(ParsePositionError)?;
            u64::from_str_radix(digits, 16).map_err(|_| ParsePositionError)
        };
        let narrow = |_| ParsePositionError;
        let position = Position {
            epoch: u32::try_from(field(8)?).map_err(narrow)?,
            commit: Lsn(field(16)?),
            ordinal: u32::try_from(field(8)?).map_err(narrow)?,
            part: u8::try_from(field(2)?).map_err(narrow)?,
        };
        parts.next().is_none().then_some(position).ok_or(ParsePositionError)
    }
}
