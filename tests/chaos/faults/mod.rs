//! The faults of a run: what there is, and which come next. How each is injected is with the side that it strikes.

mod broker;
mod network;
mod postgres;
mod relay;
mod several;

pub(crate) use relay::kills;

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::Outcome;
use crate::chaos::Chaos;

/// What a fault strikes. Two of one side do not come together: each undoes what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Relay,
    Postgres,
    Broker,
    /// Comes alone.
    Several,
}

#[derive(Debug)]
pub(crate) struct Fault {
    pub name: &'static str,
    /// In docs/faults.md.
    pub number: &'static str,
    pub side: Side,
    pub how: &'static str,
}

const fn fault(name: &'static str, number: &'static str, side: Side, how: &'static str) -> Fault {
    Fault { name, number, side, how }
}

pub(crate) const ALL: &[Fault] = &[
    fault("failpoint", "F01", Side::Relay, "the relay aborts at places of its code, again and again"),
    fault("kill", "F02", Side::Relay, "kill -9 of the relay every 0.2 to 3 s"),
    fault(
        "freeze",
        "F03",
        Side::Relay,
        "SIGSTOP for longer than wal_sender_timeout, with a second relay waiting, then SIGCONT",
    ),
    fault("terminate", "F05", Side::Relay, "SIGTERM, sometimes twice"),
    fault("walsender", "F09", Side::Postgres, "pg_terminate_backend of the walsender, once a second"),
    fault("sessions", "F09", Side::Postgres, "pg_terminate_backend of the relay's other sessions"),
    fault("pg-restart", "F10", Side::Postgres, "PostgreSQL is restarted, fast"),
    fault("pg-immediate", "F10", Side::Postgres, "PostgreSQL is restarted, immediate"),
    fault("pg-kill", "F10", Side::Postgres, "kill -9 of every PostgreSQL process"),
    fault("pg-pause", "F22", Side::Postgres, "every PostgreSQL process stands still"),
    fault("connections", "F48", Side::Postgres, "all connections are taken, and the relay has to connect"),
    fault("long-transaction", "F46", Side::Postgres, "a transaction stays open and idle"),
    fault("overflow", "F30", Side::Broker, "a small queue with reject-publish gets some of the events"),
    fault("unbind", "F32", Side::Broker, "the tap is unbound and bound again"),
    fault("exchange", "F34", Side::Broker, "the exchange is deleted and made again"),
    fault("permission", "F36", Side::Broker, "the relay's user may do nothing, then everything again"),
    fault("password", "F36", Side::Broker, "the relay's password is changed, its connections closed, and changed back"),
    fault(
        "close-connection",
        "F36",
        Side::Broker,
        "an administrator closes the relay's connections, every two seconds",
    ),
    fault("memory-alarm", "F38", Side::Broker, "RabbitMQ blocks publishers: memory"),
    fault("disk-alarm", "F39", Side::Broker, "RabbitMQ blocks publishers: disk; on and off"),
    fault("rabbit-kill", "F41", Side::Broker, "kill -9 of RabbitMQ"),
    fault("tap-overflow", "F30", Side::Several, "nobody consumes, and the tap refuses what it has no room for"),
    fault("parking-locked", "F01", Side::Several, "nothing can be parked though it has to be, and the relay dies"),
    fault("long-alarm", "F38", Side::Several, "RabbitMQ blocks publishers for longer than PostgreSQL waits for a word"),
    fault("backlog", "F47", Side::Several, "a quarter of a gigabyte is committed while RabbitMQ blocks publishers"),
    fault("rabbit-pause", "F44", Side::Broker, "every RabbitMQ process stands still"),
    fault(
        "sql-stall",
        "F22",
        Side::Postgres,
        "proxy: the relay's connections to PostgreSQL carry nothing, one way or both",
    ),
    fault(
        "sql-heartbeats",
        "F22",
        Side::Postgres,
        "proxy: keepalives and status updates are swallowed, one way or both",
    ),
    fault("sql-cut", "F09", Side::Postgres, "proxy: connections are cut after some bytes, again and again"),
    fault("sql-half-close", "F22", Side::Postgres, "proxy: one direction ends, again and again"),
    fault("sql-slices", "F44", Side::Postgres, "proxy: one byte at a time"),
    fault("sql-latency", "F44", Side::Postgres, "proxy: everything is 50 to 500 ms late"),
    fault(
        "amqp-stall",
        "F44",
        Side::Broker,
        "proxy: the relay's connections to RabbitMQ carry nothing, one way or both",
    ),
    fault("amqp-lost-acks", "F40", Side::Broker, "proxy: confirms are swallowed, all or some"),
    fault(
        "amqp-shuffle",
        "F33",
        Side::Broker,
        "proxy: confirms late, merged, out of order; one event in eight has no queue",
    ),
    fault("amqp-heartbeats", "F55", Side::Broker, "proxy: heartbeats are swallowed, one way or both"),
    fault("amqp-cut", "F44", Side::Broker, "proxy: connections are cut after some bytes, again and again"),
    fault("amqp-half-close", "F44", Side::Broker, "proxy: one direction ends, again and again"),
    fault("amqp-slices", "F44", Side::Broker, "proxy: one byte at a time"),
    fault("amqp-latency", "F44", Side::Broker, "proxy: everything is 50 to 500 ms late"),
    fault("ddl", "F28", Side::Postgres, "the outbox gets a column, loses it, is truncated and vacuumed, under load"),
    fault("queue", "F35", Side::Broker, "one of two queues is deleted under load"),
];

pub(crate) fn by_name(name: &str) -> Option<&'static Fault> {
    ALL.iter().find(|fault| fault.name == name)
}

/// One or two faults at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub faults: Vec<&'static Fault>,
    pub length: Duration,
    /// The relay is killed now and then meanwhile, too.
    pub kills: bool,
    pub seed: u64,
}

/// The next round, of `choice`. Each fault comes once before any comes again.
pub(crate) fn next(rng: &mut StdRng, choice: &[&'static Fault], left: &mut Vec<&'static Fault>, kills: bool) -> Round {
    if left.is_empty() {
        left.extend(choice);
    }
    let first = left.swap_remove(rng.random_range(0..left.len()));
    let mut faults = vec![first];
    let alone = |fault: &Fault| fault.side == Side::Several;
    let goes_with = |fault: &&&'static Fault| fault.side != first.side && !alone(first) && !alone(fault);
    let others: Vec<&'static Fault> = choice.iter().filter(goes_with).copied().collect();
    if rng.random_bool(0.4)
        && let Some(second) = others.choose(rng)
    {
        left.retain(|fault| fault.name != second.name);
        faults.push(second);
    }
    // A relay that stands still or drains would have no chance to.
    let kills = kills && faults.iter().all(|fault| fault.side != Side::Relay);
    Round { faults, length: Duration::from_millis(rng.random_range(3_000..12_000)), kills, seed: rng.random() }
}

impl Fault {
    /// Whether writes of the application may fail for it.
    pub(crate) fn stops_the_database(&self) -> bool {
        matches!(self.name, "pg-restart" | "pg-immediate" | "pg-kill" | "pg-pause")
    }

    /// Whether it keeps what the relay says from PostgreSQL.
    pub(crate) fn silences_the_relay(&self) -> bool {
        self.name.starts_with("sql-") || matches!(self.name, "freeze" | "pg-pause")
    }

    /// Does it, and undoes it.
    pub(crate) async fn inject(&self, chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
        let through_proxy = self.name.starts_with("amqp-") || self.name.starts_with("sql-");
        let done = match self.side {
            _ if through_proxy => network::inject(self.name, chaos, rng, length).await,
            Side::Relay => relay::inject(self.name, chaos, rng, length).await,
            Side::Postgres => postgres::inject(self.name, chaos, length).await,
            Side::Broker => broker::inject(self.name, chaos, rng, length).await,
            Side::Several => several::inject(self.name, chaos, rng, length).await,
        };
        done.map_err(|error| format!("fault {}: {error}", self.name).into())
    }
}
