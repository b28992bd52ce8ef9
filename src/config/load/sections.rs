//! The settings, section by section: name, default and kind of each. What they mean is said in `postrider.example.toml`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::file::Value;
use super::reader::Reader;
use super::values::Parsed;
use super::{Needs, Origin, source, topology, values};
use crate::config::{
    Columns, Config, Consumers, Format, Limits, LogFormat, Outbox, RouteRule, SecretSource, WatchedQueue,
};
use crate::event::{OnPoison, OnUnroutable, Ordering};

pub(super) const DEFAULT_ROUTE: &str = "default";
/// RabbitMQ refuses to allow more (`max_message_size`).
const LARGEST_MESSAGE: usize = 512 << 20;

pub(super) fn config(reader: &mut Reader, needs: Needs) -> Config {
    let required = |wanted: &[Needs]| wanted.contains(&needs);
    let routes_default = event(reader);
    let publication = reader.or("publication", "postrider".to_owned(), values::identifier);
    let source = source::source(reader, &publication);
    let tables_default = source::default_route(reader, &routes_default);
    let mut routes = routes(reader, &routes_default, &tables_default);
    // Also a label of metrics, so only where it is used.
    if source.has_tables() || source.wants_messages() {
        routes.push(tables_default);
    }
    routes.push(routes_default);
    let management_url = Some(secret(reader, "management_url", false)).filter(SecretSource::is_set);
    let patterns = management_url.is_some();
    Config {
        name: reader.optional("name", values::text),
        database_url: secret(reader, "database_url", required(&[Needs::BothServers, Needs::Database])),
        amqp_url: secret(reader, "amqp_url", required(&[Needs::BothServers, Needs::Broker])),
        management_url,
        require_tls: reader.or("require_tls", false, values::boolean),
        amqp_ca_file: path(reader, "amqp_ca_file"),
        amqp_cert_file: path(reader, "amqp_cert_file"),
        amqp_key_file: path(reader, "amqp_key_file"),
        slot: reader.or("slot", "postrider".to_owned(), values::slot),
        publication,
        state_dir: path(reader, "state_dir"),
        admin_listen: reader.or("admin_listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 9750)), values::listen_address),
        log_format: reader.or("log_format", LogFormat::Auto, values::log_format),
        log: reader.or("log", "info".to_owned(), values::log_filter),
        outbox: outbox(reader),
        source,
        redaction_salt: Some(secret(reader, "redaction_salt", false)).filter(SecretSource::is_set),
        debezium: source::debezium(reader),
        routes,
        allowed_headers: reader.or("event.headers", Vec::new(), values::names),
        topology: topology::topology(reader),
        queues: queues(reader, patterns),
        consumers: consumers(reader),
        limits: limits(reader),
    }
}

/// A secret: in `POSTRIDER_<KEY>` or `POSTRIDER_<KEY>_FILE`, without the prefix, or in the file as `<key>` or
/// `<key>_file`. The first of these places that has one decides.
fn secret(reader: &mut Reader, key: &str, required: bool) -> SecretSource {
    let file_key = format!("{key}_file");
    let bare = key.to_uppercase();
    let here = |origin: Option<(Origin, Value)>| match origin {
        Some((origin, Value::Text(text))) => Some((origin, Ok(text))),
        Some((origin, other)) => Some((origin, Err(format!("must be a text in quotes, not {}", other.kind())))),
        None => None,
    };
    let from_file = (here(reader.only_in_file(key)), here(reader.only_in_file(&file_key)));
    let mut from_env = |name: String| reader.variable(&name).map(|text| (Origin::Variable(name), Ok(text)));
    let prefixed = (from_env(format!("POSTRIDER_{bare}")), from_env(format!("POSTRIDER_{bare}_FILE")));
    let plain = (from_env(bare.clone()), from_env(format!("{bare}_FILE")));

    let source = match [prefixed, plain, from_file].into_iter().find(|(value, file)| value.is_some() || file.is_some())
    {
        Some((Some((origin, _)), Some(_))) => {
            Err((origin, "given twice: as a value and as a file; keep one".to_owned()))
        }
        Some((Some((origin, text)), None)) => match text {
            Ok(text) => Ok((origin, SecretSource::Value(SecretString::from(text)))),
            Err(problem) => Err((origin, problem)),
        },
        Some((None, Some((origin, path)))) => match path {
            Ok(path) => Ok((origin, SecretSource::File(PathBuf::from(path)))),
            Err(problem) => Err((origin, problem)),
        },
        _ => {
            if required {
                let problem = format!("not set: give the URL in {bare}, or a file that has it in {bare}_FILE");
                reader.fault(key, problem);
            }
            return SecretSource::Unset;
        }
    };
    match source {
        Ok((origin, source)) => {
            reader.remember(key, origin);
            source
        }
        Err((origin, problem)) => {
            reader.fault_at(key, origin, problem);
            SecretSource::Unset
        }
    }
}

fn path(reader: &mut Reader, key: &str) -> Option<PathBuf> {
    reader.optional(key, values::text).map(PathBuf::from)
}

fn outbox(reader: &mut Reader) -> Outbox {
    let default = ("public".to_owned(), "outbox".to_owned());
    let (schema, table) = reader.or("outbox.table", default, values::table);
    let mut columns = Columns::default();
    let required = [
        ("id", &mut columns.id),
        ("aggregatetype", &mut columns.aggregatetype),
        ("aggregateid", &mut columns.aggregateid),
        ("type", &mut columns.kind),
        ("payload", &mut columns.payload),
    ];
    for (key, column) in required {
        if let Some(name) = reader.optional(&format!("outbox.columns.{key}"), values::identifier) {
            *column = name;
        }
    }
    let optional = [
        ("before", &mut columns.before),
        ("version", &mut columns.version),
        ("sequence", &mut columns.sequence),
        ("headers", &mut columns.headers),
        ("occurred_at", &mut columns.occurred_at),
        ("xid", &mut columns.xid),
    ];
    for (key, column) in optional {
        if let Some(name) = reader.optional(&format!("outbox.columns.{key}"), values::optional_identifier) {
            *column = name;
        }
    }
    Outbox { schema, table, columns }
}

/// `[event]`: the default route, whose values the others inherit.
fn event(reader: &mut Reader) -> RouteRule {
    RouteRule {
        name: DEFAULT_ROUTE.to_owned(),
        aggregatetype: "*".to_owned(),
        kind: "*".to_owned(),
        table: None,
        exchange: reader.or("event.exchange", "events".to_owned(), values::amqp_name),
        routing_key: reader.or("event.routing_key", "{aggregatetype}.{type}".to_owned(), values::routing_key),
        format: reader.or("event.format", Format::default(), values::format),
        ordering: reader.or("event.ordering", Ordering::default(), values::ordering),
        on_unroutable: reader.or("event.on_unroutable", OnUnroutable::default(), values::on_unroutable),
        on_poison: reader.or("event.on_poison", OnPoison::default(), values::on_poison),
    }
}

/// `tables` is what routes with a `table` inherit.
fn routes(reader: &mut Reader, event: &RouteRule, tables: &RouteRule) -> Vec<RouteRule> {
    let mut routes: Vec<RouteRule> = Vec::new();
    for mut entry in reader.entries("route") {
        let name = reader.required(&mut entry, "name", values::label);
        let taken = |name: &String| {
            [DEFAULT_ROUTE, source::TABLES_ROUTE].contains(&name.as_str())
                || routes.iter().any(|route| route.name == *name)
        };
        if let Some(name) = name.iter().find(|name| taken(name)) {
            reader.fault_in(&entry, "name", format!("{name:?} is taken: every route needs a name of its own"));
        }
        let table = reader.field(&mut entry, "table", source::table_pattern);
        let inherited = if table.is_some() { tables } else { event }.clone();
        routes.push(RouteRule {
            name: name.unwrap_or_default(),
            aggregatetype: reader.field(&mut entry, "aggregatetype", values::text).unwrap_or(inherited.aggregatetype),
            kind: reader.field(&mut entry, "type", values::text).unwrap_or(inherited.kind),
            table,
            exchange: reader.field(&mut entry, "exchange", values::amqp_name).unwrap_or(inherited.exchange),
            routing_key: reader.field(&mut entry, "routing_key", values::routing_key).unwrap_or(inherited.routing_key),
            format: reader.field(&mut entry, "format", values::format).unwrap_or(inherited.format),
            ordering: reader.field(&mut entry, "ordering", values::ordering).unwrap_or(inherited.ordering),
            on_unroutable: reader
                .field(&mut entry, "on_unroutable", values::on_unroutable)
                .unwrap_or(inherited.on_unroutable),
            on_poison: reader.field(&mut entry, "on_poison", values::on_poison).unwrap_or(inherited.on_poison),
        });
        reader.close(entry);
    }
    routes
}

/// `[[queues]]`, or `POSTRIDER_QUEUES`: names with commas. Patterns only where they can be looked up.
fn queues(reader: &mut Reader, patterns: bool) -> Vec<WatchedQueue> {
    let refused = |queue: &WatchedQueue| {
        let problem = || format!("{:?} is a pattern, which needs management_url: AMQP cannot list queues", queue.name);
        (queue.is_pattern() && !patterns).then(problem)
    };
    let mut queues: Vec<WatchedQueue> = Vec::new();
    for mut entry in reader.entries("queues") {
        let name = reader.required(&mut entry, "name", values::amqp_name).unwrap_or_default();
        if queues.iter().any(|queue| queue.name == name) && !name.is_empty() {
            reader.fault_in(&entry, "name", format!("{name:?} is listed twice"));
        }
        let queue = WatchedQueue { name, max_lag: reader.field(&mut entry, "max_lag", max_lag()) };
        if let Some(problem) = refused(&queue) {
            reader.fault_in(&entry, "name", problem);
        }
        queues.push(queue);
        reader.close(entry);
    }
    const VARIABLE: &str = "POSTRIDER_QUEUES";
    let Some(list) = reader.variable(VARIABLE) else { return queues };
    let names = values::names(&Value::Text(list)).unwrap_or_default();
    let queues: Vec<_> = names.into_iter().map(|name| WatchedQueue { name, max_lag: None }).collect();
    for problem in queues.iter().filter_map(refused) {
        reader.fault_at("queues.name", Origin::Variable(VARIABLE.to_owned()), problem);
    }
    queues
}

fn consumers(reader: &mut Reader) -> Consumers {
    let default = Consumers::default();
    // RabbitMQ refreshes its own figures every 5 s (collect_statistics_interval).
    // The alert rules take a sample that is older than 120 s for stale: a missed one must not make it that.
    let period = values::duration(Duration::from_secs(5)..=Duration::from_secs(60));
    Consumers {
        discover: reader.or("consumers.discover", default.discover, values::boolean),
        max_lag: reader.optional("consumers.max_lag", max_lag()),
        period: reader.or("consumers.period", default.period, period),
    }
}

fn max_lag() -> impl Fn(&Value) -> Parsed<Duration> {
    values::duration(Duration::from_secs(1)..=Duration::from_secs(30 * 86_400))
}

fn limits(reader: &mut Reader) -> Limits {
    let seconds = Duration::from_secs;
    let default = Limits::default();
    Limits {
        window: reader.or("limits.window", default.window, values::count(1..=100_000)),
        window_bytes: reader.or("limits.window_bytes", default.window_bytes, values::size(1 << 10..=4 << 30)),
        waiting: reader.or("limits.waiting", default.waiting, values::count(1..=10_000_000)),
        waiting_bytes: reader.or("limits.waiting_bytes", default.waiting_bytes, values::size(1 << 10..=64 << 30)),
        max_message_bytes: reader.or(
            "limits.max_message_bytes",
            default.max_message_bytes,
            values::size(1..=LARGEST_MESSAGE),
        ),
        confirm_timeout: reader.or(
            "limits.confirm_timeout",
            default.confirm_timeout,
            values::duration(seconds(1)..=seconds(3600)),
        ),
        broker_patience: reader.or(
            "limits.broker_patience",
            default.broker_patience,
            values::duration(seconds(1)..=seconds(3600)),
        ),
        heartbeat_interval: reader.or(
            "limits.heartbeat_interval",
            default.heartbeat_interval,
            values::duration(seconds(1)..=seconds(3600)),
        ),
        snapshot_rows: reader.or("limits.snapshot_rows", default.snapshot_rows, values::count(1..=100_000)),
        // With 5 s more for the rest, a stopping relay ends within 20 s.
        drain_timeout: reader.or(
            "limits.drain_timeout",
            default.drain_timeout,
            values::duration(Duration::ZERO..=seconds(15)),
        ),
        retry_min: reader.or(
            "limits.retry_min",
            default.retry_min,
            values::duration(Duration::from_millis(10)..=seconds(3600)),
        ),
        retry_max: reader.or(
            "limits.retry_max",
            default.retry_max,
            values::duration(Duration::from_millis(10)..=seconds(3600)),
        ),
        hold_for: reader.or("limits.hold_for", default.hold_for, values::duration(Duration::ZERO..=seconds(86_400))),
        max_parked: reader.or("limits.max_parked", default.max_parked, values::count(1..=10_000_000)),
        max_parked_bytes: reader.or(
            "limits.max_parked_bytes",
            default.max_parked_bytes,
            values::size(1 << 10..=1 << 40),
        ),
    }
}
