//! Properties on which nothing depends that is sent, and what takes their place.

use super::given::Given;

const HERE: &str = "Postrider keeps its position in the slot and in postrider.progress";
const OWN: &str = "nothing that is sent depends on it";
const SNAPSHOT: &str = "the rows that were there before have been read by Debezium";
const SCHEMAS: &str = "it adds to schemas, which are off";
const HEARTBEAT: &str = "Postrider's heartbeat is a table of its own, and needs neither an interval nor a query";
const SIGNAL: &str = "Postrider has no signals";
const SLOT: &str = "the slot is there already";

/// Names that begin so, behind `debezium.source.`.
const SOURCE: [(&str, &str); 53] = [
    ("offset.storage", HERE),
    ("offset.flush.", HERE),
    ("offset.mismatch.strategy", HERE),
    ("schema.history.internal", HERE),
    ("max.batch.size", OWN),
    ("max.queue.size", OWN),
    ("poll.interval.ms", OWN),
    ("tasks.max", OWN),
    ("name", OWN),
    ("errors.max.retries", "Postrider connects again until it can"),
    ("errors.retry.delay.", "Postrider connects again until it can"),
    ("retriable.restart.connector.wait.ms", "Postrider connects again until it can"),
    ("slot.max.retries", "Postrider connects again until it can"),
    ("slot.retry.delay.ms", "Postrider connects again until it can"),
    (
        "event.processing.failure.handling.mode",
        "an event that can never be sent is kept in the dead letters: event.on_poison",
    ),
    ("status.update.interval.ms", OWN),
    ("xmin.fetch.interval.ms", "source.xmin is always null, which is Debezium's default"),
    ("flush.lsn.source", HERE),
    ("lsn.flush.", HERE),
    ("read.only", SIGNAL),
    ("signal.", SIGNAL),
    ("incremental.snapshot.", SIGNAL),
    ("notification.", "Postrider sends no notifications: /status and /metrics tell how it is"),
    ("snapshot.", SNAPSHOT),
    ("streaming.delay.ms", SNAPSHOT),
    ("slot.failover", SLOT),
    ("slot.seek.to.known.offset.on.start", SLOT),
    ("slot.stream.params", SLOT),
    ("slot.creation.timeout", SLOT),
    ("create.slot.command.timeout", SLOT),
    ("publication.autocreate.mode", "postrider migrate makes Postrider's publications"),
    (
        "replica.identity.autoset.values",
        "Postrider changes no table: postrider migrate prints the statement that a table needs",
    ),
    ("database.tcpKeepAlive", OWN),
    ("database.query.timeout.ms", OWN),
    ("database.initial.statements", "Postrider's sessions are set up by itself"),
    ("driver.", OWN),
    ("connection.validation.timeout.ms", OWN),
    ("executor.shutdown.timeout.ms", "limits.drain_timeout takes its place"),
    ("record.processing.", OWN),
    ("schema.name.adjustment.mode", SCHEMAS),
    ("datatype.propagate.source.type", SCHEMAS),
    ("include.schema.comments", SCHEMAS),
    ("schema.refresh.mode", "Postrider takes the columns from the stream"),
    ("topic.cache.size", OWN),
    ("topic.heartbeat.prefix", HEARTBEAT),
    ("heartbeat.topics.prefix", HEARTBEAT),
    ("custom.metric.tags", "Postrider's metrics have labels of their own: docs/metrics.md"),
    ("statistics.metrics.enabled", "Postrider's metrics: docs/metrics.md"),
    ("advanced.metrics.enable", "Postrider's metrics: docs/metrics.md"),
    ("extended.headers.enabled", "they are Kafka Connect's, and RabbitMQ was not sent them"),
    ("openlineage.", "nothing takes its place"),
    ("guardrail.", "nothing takes its place"),
    ("datasource.", OWN),
];

/// Names that begin so.
const ELSEWHERE: [(&str, &str); 7] = [
    ("quarkus.log.", "log and log_format are Postrider's"),
    ("quarkus.http.", "admin_listen is Postrider's"),
    ("quarkus.", "Postrider is no Quarkus application"),
    ("mp.", "Postrider is no Quarkus application"),
    ("smallrye.", "Postrider is no Quarkus application"),
    ("debezium.api.", "Postrider has no API for signals"),
    ("debezium.offset.", HERE),
];

pub(super) fn take(given: &mut Given) {
    for (name, why) in SOURCE {
        let name = format!("debezium.source.{name}");
        let items = if name.ends_with('.') { given.take_all(&name) } else { exactly_or_below(given, &name) };
        for item in items {
            given.dropped(&item, why);
        }
    }
    for (prefix, why) in ELSEWHERE {
        for item in given.take_all(prefix) {
            given.dropped(&item, why);
        }
    }
}

/// A name is not the start of another one's word: `name` is no `names`.
fn exactly_or_below(given: &mut Given, name: &str) -> Vec<super::given::Item> {
    let mut items: Vec<_> = given.take_raw(name).into_iter().collect();
    items.extend(given.take_all(&format!("{name}.")));
    items
}
