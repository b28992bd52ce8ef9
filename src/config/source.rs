//! What is carried besides the outbox: tables captured from the WAL, and messages.

use crate::event::SourceOp;

/// `[source]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Patterns of tables, each `schema.table` with `*` for any run of characters. `migrate` resolves them, as the owner; the
    /// relay carries what the publications have.
    pub tables: Vec<String>,
    /// Publication of the tables whose replica identity is proven: all actions. Empty while there are no tables.
    pub publication: String,
    /// Publication of the other tables: inserts and truncates, which no publication can make fail.
    pub publication_inserts: String,
    pub snapshot: Snapshot,
    /// Changes that are left out.
    pub skip: Vec<SourceOp>,
    /// Prefixes of `pg_logical_emit_message` whose messages are events in the format `debezium`; with `*` for any run of characters.
    pub messages: Vec<String>,
    /// Messages of `postrider.emit` are events.
    pub emit: bool,
    /// What leaves of the columns of a table: the first that matches a table counts.
    pub columns: Vec<ColumnRule>,
}

impl Source {
    /// Changes of tables are carried.
    pub fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    /// The server has to send messages (`messages` of START_REPLICATION).
    pub fn streams_messages(&self) -> bool {
        self.emit || self.wants_messages()
    }

    /// Messages of others are carried.
    pub fn wants_messages(&self) -> bool {
        !self.messages.is_empty()
    }
}

/// `source.snapshot`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshot {
    /// The rows that a table has when it is captured first are read once.
    Initial,
    #[default]
    Never,
}

/// One `[[columns]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnRule {
    /// As in [`Source::tables`].
    pub table: String,
    /// Names or patterns; empty: every column.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub redact: Vec<(String, Redaction)>,
}

/// What leaves of a column in its place, in `before` and `after` alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redaction {
    /// The column is not there.
    Drop,
    Null,
    /// `****`, whatever the value is, unless it is NULL.
    Mask,
    /// The SHA-256 of salt and value in hexadecimal, unless it is NULL.
    Sha256,
}

/// `[debezium]`: what Debezium's connector has settings of the same meaning for. The defaults are Debezium's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debezium {
    /// `tombstones.on.delete`
    pub tombstones: bool,
    /// `null.value` of Debezium Server's RabbitMQ sink: the body of a tombstone.
    pub tombstone_body: String,
    /// `provide.transaction.metadata`
    pub transaction_metadata: bool,
    /// `decimal.handling.mode`
    pub decimals: Decimals,
    /// `binary.handling.mode`
    pub binary: Binary,
    /// `hstore.handling.mode`
    pub hstore: Hstore,
    /// `interval.handling.mode`
    pub intervals: Intervals,
    /// `time.precision.mode`
    pub times: Times,
    /// `include.unknown.datatypes`
    pub unknown_types: bool,
    /// `unavailable.value.placeholder`
    pub unavailable_value: String,
    pub router: OutboxRouter,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decimals {
    #[default]
    Precise,
    String,
    Double,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binary {
    /// Base64 too, which is how JSON shows bytes.
    #[default]
    Bytes,
    Base64,
    Base64UrlSafe,
    Hex,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hstore {
    #[default]
    Json,
    Map,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intervals {
    #[default]
    Numeric,
    String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    #[default]
    Adaptive,
    AdaptiveTimeMicroseconds,
    Connect,
    IsoString,
    Microseconds,
    Nanoseconds,
}

/// `[debezium.router]`: the Outbox Event Router, for outbox rows in the format `debezium`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRouter {
    /// `route.by.field`: a column.
    pub route_by_field: String,
    /// `route.topic.regex`
    pub topic_regex: String,
    /// `route.topic.replacement`
    pub topic_replacement: String,
    /// `table.fields.additional.placement`
    pub additional: Vec<Placement>,
    /// `table.field.additional.missing=ignore`
    pub ignore_missing: bool,
    /// `table.expand.json.payload`
    pub expand_json: bool,
    /// `route.tombstone.on.empty.payload`
    pub tombstone_on_empty: bool,
}

/// `column:place[:alias]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub column: String,
    pub place: Place,
    pub alias: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Header,
    Envelope,
    /// Kafka's partition: RabbitMQ has none, so nothing comes of it.
    Partition,
}

impl Default for Debezium {
    fn default() -> Self {
        Debezium {
            tombstones: true,
            tombstone_body: String::new(),
            transaction_metadata: false,
            decimals: Decimals::default(),
            binary: Binary::default(),
            hstore: Hstore::default(),
            intervals: Intervals::default(),
            times: Times::default(),
            unknown_types: false,
            unavailable_value: "__debezium_unavailable_value".to_owned(),
            router: OutboxRouter::default(),
        }
    }
}

impl Default for OutboxRouter {
    fn default() -> Self {
        OutboxRouter {
            route_by_field: "aggregatetype".to_owned(),
            topic_regex: "(?<routedByValue>.*)".to_owned(),
            topic_replacement: "outbox.event.${routedByValue}".to_owned(),
            additional: Vec::new(),
            ignore_missing: false,
            expand_json: false,
            tombstone_on_empty: false,
        }
    }
}
