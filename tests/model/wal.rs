//! What applications commit: the independent account of what has to arrive, and in which order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use postrider::event::{
    Event, Joins, Message, OnPoison, OnUnroutable, Ordering, Poison, PoisonReason, Position, Properties, Route, Ticket,
};
use postrider::lsn::Lsn;

pub(crate) const EXCHANGES: [&str; 2] = ["x0", "x1"];
pub(crate) const QUEUES: [&str; 3] = ["q0", "q1", "q2"];
pub(crate) const KEYS: u8 = 7;

/// One row, or one message, that has to become an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// 0 and 1 are of ordering `key`, 2 is pipelined, 3 has both kinds. 0 and 3 are of the outbox, 1 and 2 of one table, and from 4
    /// on, as 0 to 2, all of another one.
    pub(crate) key: u8,
    pub(crate) joins: Joined,
    pub(crate) exchange: u8,
    pub(crate) queue: u8,
    pub(crate) pipelined: bool,
    /// The broker answers 406.
    pub(crate) refused: bool,
    /// Known to be poison when it is read.
    pub(crate) unfit: bool,
    pub(crate) policy: Policy,
}

/// The other keys of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Joined {
    #[default]
    Nothing,
    /// It has changed this key to its own: only within a table.
    Key(u8),
    /// A barrier for the table of its key.
    Table,
    /// The same, of a table without a key.
    Keyless,
}

/// The table of a key.
fn table(key: u8) -> Option<&'static str> {
    match key {
        0 | 3 => None,
        1 | 2 => Some("\u{1e}s\u{1e}t\u{1f}"),
        _ => Some("\u{1e}s\u{1e}u\u{1f}"),
    }
}

fn text_of(key: u8) -> String {
    format!("{}k{key}", table(key).unwrap_or_default())
}

/// Of its route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    #[default]
    Park,
    DiscardUnroutable,
    HoldUnroutable,
    SkipPoison,
    HaltOnPoison,
}

impl Row {
    /// Of its route.
    fn configured(self) -> Ordering {
        match self.key % 4 {
            0 | 1 => Ordering::Key,
            2 => Ordering::Pipelined,
            _ if self.pipelined => Ordering::Pipelined,
            _ => Ordering::Key,
        }
    }

    /// What has several keys neither overtakes nor is overtaken.
    pub(crate) fn ordering(self) -> Ordering {
        if self.old_key().is_some() || self.is_barrier() { Ordering::Key } else { self.configured() }
    }

    fn old_key(self) -> Option<u8> {
        match self.joins {
            Joined::Key(old) if old != self.key && table(old) == table(self.key) && table(old).is_some() => Some(old),
            _ => None,
        }
    }

    fn is_barrier(self) -> bool {
        table(self.key).is_some() && matches!(self.joins, Joined::Table | Joined::Keyless)
    }

    /// Their first deliveries have an order.
    pub(crate) fn meets(self, other: Row) -> bool {
        let all_of_table = |row: Row, other: Row| row.is_barrier() && table(row.key) == table(other.key);
        let keys = |row: Row| [Some(row.key), row.old_key()].into_iter().flatten();
        all_of_table(self, other)
            || all_of_table(other, self)
            || keys(self).any(|key| keys(other).any(|other| key == other))
    }

    fn route(self) -> String {
        let ordering = if self.configured() == Ordering::Key { "key" } else { "pipelined" };
        let policy = match self.policy {
            Policy::DiscardUnroutable => " discard",
            Policy::HoldUnroutable => " hold",
            Policy::Park | Policy::SkipPoison | Policy::HaltOnPoison => "",
        };
        format!("{ordering}{policy}")
    }

    /// `halts`: a route may say so.
    pub(crate) fn event(self, position: Position, ticket: Ticket, halts: bool) -> Event {
        let message = Message {
            routing_key: QUEUES[usize::from(self.queue)].to_owned(),
            properties: Properties {
                message_id: "id".into(),
                kind: "kind".to_owned(),
                content_type: "application/json",
                timestamp: 0,
                correlation_id: None,
                headers: Vec::new(),
            },
            body: Bytes::new(),
        };
        let exchange = EXCHANGES[usize::from(self.exchange)].to_owned();
        Event {
            position,
            id: "id".into(),
            key: if self.is_barrier() { table(self.key).unwrap().into() } else { text_of(self.key).into() },
            joins: match self.joins {
                Joined::Table if self.is_barrier() => Joins::Table,
                _ => self.old_key().map_or(Joins::Nothing, |old| Joins::Key(text_of(old).into())),
            },
            route: Arc::new(Route {
                name: self.route(),
                exchange,
                ordering: self.configured(),
                on_unroutable: match self.policy {
                    Policy::Park | Policy::SkipPoison | Policy::HaltOnPoison => OnUnroutable::Park,
                    Policy::DiscardUnroutable => OnUnroutable::Discard,
                    Policy::HoldUnroutable => OnUnroutable::Hold,
                },
                on_poison: match self.policy {
                    Policy::SkipPoison => OnPoison::Skip,
                    Policy::HaltOnPoison if halts => OnPoison::Halt,
                    _ => OnPoison::ParkKey,
                },
            }),
            commit_time: time(position.commit),
            ticket,
            remains: self.unfit.then(|| Box::new(message.clone())),
            content: if self.unfit { Err(poison()) } else { Ok(message) },
        }
    }
}

/// A commit with its rows, or a non-transactional message with at most one.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) transactional: bool,
    /// The commit record's LSN, or the message's.
    pub(crate) lsn: Lsn,
    /// What is acknowledged once it is delivered.
    pub(crate) end: Lsn,
    pub(crate) rows: Vec<Row>,
}

/// Endless, and readable from any LSN.
#[derive(Debug)]
pub(crate) struct Wal {
    pub(crate) records: Vec<Record>,
    pub(crate) end: Lsn,
    pub(crate) rows: BTreeMap<Position, Row>,
}

impl Wal {
    pub(crate) fn new() -> Self {
        Wal { records: Vec::new(), end: Lsn(100), rows: BTreeMap::new() }
    }

    pub(crate) fn append(&mut self, transactional: bool, rows: Vec<Row>) {
        let start = self.end;
        self.end = Lsn(start.0 + 10);
        let lsn = if transactional { Lsn(start.0 + 5) } else { self.end };
        for (ordinal, row) in rows.iter().enumerate() {
            self.rows.insert(position(lsn, ordinal), *row);
        }
        self.records.push(Record { transactional, lsn, end: self.end, rows });
    }

    /// WAL that concerns nobody.
    pub(crate) fn foreign(&mut self) {
        self.end = Lsn(self.end.0 + 7);
    }

    /// The first record that a slot confirmed up to `confirmed` sends.
    pub(crate) fn first_after(&self, confirmed: Lsn) -> usize {
        self.records.partition_point(|record| record.end <= confirmed)
    }
}

pub(crate) fn position(lsn: Lsn, ordinal: usize) -> Position {
    Position { epoch: 0, commit: lsn, ordinal: u32::try_from(ordinal).unwrap(), part: 0 }
}

fn poison() -> Poison {
    Poison { reason: PoisonReason::TooLarge, detail: "unfit".to_owned() }
}

/// What the configuration says of a route, by its name.
pub(crate) fn policy(route: &str) -> (Ordering, OnUnroutable) {
    let ordering = if route.starts_with("pipelined") { Ordering::Pipelined } else { Ordering::Key };
    let on_unroutable = match route.split_once(' ') {
        Some((_, "discard")) => OnUnroutable::Discard,
        Some((_, "hold")) => OnUnroutable::Hold,
        _ => OnUnroutable::Park,
    };
    (ordering, on_unroutable)
}

pub(crate) fn time(lsn: Lsn) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(lsn.0)
}
