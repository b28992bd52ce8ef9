//! What settings may not say together, and what can only be checked by looking: files, URLs.

use std::path::Path;

use secrecy::ExposeSecret;

use super::reader::Reader;
use super::source::TABLES_ROUTE;
use super::topology;
use crate::config::{Config, Format, Redaction, RouteRule, SecretSource};
use crate::{postgres, rabbitmq};

pub(super) fn check(reader: &mut Reader, config: &Config) {
    limits(reader, config);
    if let Some(declared) = &config.topology {
        topology::check(reader, declared, &config.routes);
    }
    headers(reader, config);
    source(reader, config);
    files(reader, config);
    urls(reader, config);
}

fn limits(reader: &mut Reader, config: &Config) {
    let limits = &config.limits;
    let mut at_least = |path: &str, value: usize, other: &str, least: usize| {
        if value < least {
            reader.fault(path, format!("must be at least {other} ({least}), not {value}"));
        }
    };
    at_least("limits.waiting", limits.waiting, "limits.window", limits.window);
    // A message that fits nowhere would stop the relay for ever.
    at_least("limits.window_bytes", limits.window_bytes, "limits.max_message_bytes", limits.max_message_bytes);
    at_least("limits.waiting_bytes", limits.waiting_bytes, "limits.max_message_bytes", limits.max_message_bytes);
    at_least("limits.max_parked_bytes", limits.max_parked_bytes, "limits.max_message_bytes", limits.max_message_bytes);
    if limits.retry_max < limits.retry_min {
        let (max, min) = (limits.retry_max, limits.retry_min);
        reader.fault("limits.retry_max", format!("must be at least limits.retry_min ({min:?}), not {max:?}"));
    }
}

fn headers(reader: &mut Reader, config: &Config) {
    for name in &config.allowed_headers {
        let stem = name.strip_suffix('*').unwrap_or(name);
        let problem = if name.len() > 255 || stem.contains('*') {
            format!("{name:?} must be a name of at most 255 bytes; a * may stand at its end")
        } else if ["CC", "BCC"].iter().any(|refused| name.eq_ignore_ascii_case(refused)) {
            // RabbitMQ routes copies to the keys in these headers: whoever writes a row could reach any queue.
            format!("{name} never passes: a row could send copies to any queue by it")
        } else {
            continue;
        };
        reader.fault("event.headers", problem);
    }
}

fn source(reader: &mut Reader, config: &Config) {
    let source = &config.source;
    let hashed = source.columns.iter().any(|rule| rule.redact.iter().any(|(_, how)| *how == Redaction::Sha256));
    if hashed && config.redaction_salt.is_none() {
        let problem =
            "sha256 needs redaction_salt: without one a digest of a short value is found by trying".to_owned();
        reader.fault("columns.redact", problem);
    }
    if !source.has_tables() {
        // A slip that would leave nobody's columns out.
        if !source.columns.is_empty() {
            reader.fault("columns.table", "is for captured tables, and source.tables is empty".to_owned());
        }
        if !source.wants_messages() && config.routes.iter().any(|route| route.table.is_some()) {
            reader.fault("route.table", "is for captured tables, and source.tables is empty".to_owned());
        }
    }
    let payload = |rule: &&RouteRule| rule.table.is_some() && rule.format == Format::Payload;
    for rule in config.routes.iter().filter(payload) {
        let key = if rule.name == TABLES_ROUTE { "source.format" } else { "route.format" };
        reader.fault(key, "payload is for rows of the outbox: changes of tables have cdc or debezium".to_owned());
    }
    let publications = [&config.publication, &source.publication, &source.publication_inserts];
    for (at, name) in publications.iter().enumerate() {
        if !name.is_empty() && publications.iter().take(at).any(|other| other == name) {
            reader.fault("source.publication", format!("{name:?} is the name of two publications"));
        }
    }
    if source.messages.iter().any(|prefix| prefix == crate::event::emitted::PREFIX) {
        reader.fault("source.messages", "messages of postrider.emit are events by source.emit".to_owned());
    }
}

fn files(reader: &mut Reader, config: &Config) {
    let named = [
        ("amqp_ca_file", &config.amqp_ca_file),
        ("amqp_cert_file", &config.amqp_cert_file),
        ("amqp_key_file", &config.amqp_key_file),
    ];
    for (key, path) in named {
        if let Some(problem) = path.as_deref().and_then(unreadable) {
            reader.fault(key, problem);
        }
    }
    match (&config.amqp_cert_file, &config.amqp_key_file) {
        (Some(_), None) => reader.fault("amqp_cert_file", "needs amqp_key_file, the key of the certificate".to_owned()),
        (None, Some(_)) => reader.fault("amqp_key_file", "needs amqp_cert_file, the certificate of the key".to_owned()),
        _ => {}
    }
}

fn unreadable(path: &Path) -> Option<String> {
    let error = std::fs::File::open(path).err()?;
    Some(format!("cannot read {}: {error}", path.display()))
}

/// What a URL says is checked at start, so that a slip ends as a configuration error and not as an endless retry.
fn urls(reader: &mut Reader, config: &Config) {
    let mut check = |key: &str, source: &SecretSource, fault: &dyn Fn(&str) -> Option<String>| {
        if !source.is_set() {
            return;
        }
        let problem = match source.read() {
            Ok(url) => fault(url.expose_secret()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            reader.fault(key, problem);
        }
    };
    check("database_url", &config.database_url, &|url| {
        postgres::url::Target::parse(url, config.require_tls).err().map(|error| error.to_string())
    });
    // Half a client certificate has been reported.
    if config.amqp_cert_file.is_some() == config.amqp_key_file.is_some() {
        check("amqp_url", &config.amqp_url, &|url| {
            rabbitmq::url::Target::new(url, config).err().map(|error| error.to_string())
        });
    }
    if let Some(source) = &config.management_url {
        check("management_url", source, &management_url_fault);
    }
}

fn management_url_fault(text: &str) -> Option<String> {
    let form = "must be a URL, as in http://user:password@rabbitmq:15672";
    match url::Url::parse(text) {
        // The parser's own message is about syntax and quotes nothing.
        Err(error) => Some(format!("{form}: {error}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => Some(form.to_owned()),
        Ok(_) => None,
    }
}
