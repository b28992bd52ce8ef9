//! `debezium.sink.*`: where messages go.

use super::format::KeyFormat;
use super::given::{self, Given, Item};
use super::output::{Toml, quoted};
use super::router::Router;
use super::source::Source;

const PREFIX: &str = "debezium.sink.rabbitmq.";

pub(super) fn map(given: &mut Given, toml: &mut Toml, source: &Source, router: Option<&Router>, key: KeyFormat) {
    match given.take("debezium.sink.type") {
        Some(kind) if kind.is("rabbitmq") => {}
        Some(kind) => {
            given.refused(&kind, "Postrider publishes to RabbitMQ by AMQP 0-9-1: the sink has to be rabbitmq");
        }
        None => given.refused_default("debezium.sink.type", "not set: the sink has to be rabbitmq"),
    }
    connection(given, toml);
    let routing_key = routing_key(given, router, key);
    let exchange = given.take(&format!("{PREFIX}exchange"));
    let section = if router.is_some() { "[event]" } else { "[source]" };
    toml.set_text("[event]", "format", "debezium");
    match &exchange {
        Some(exchange) => {
            toml.carry("[event]", "exchange", &quoted(&exchange.value), exchange);
            toml.set_text("[event]", "routing_key", &routing_key);
            if router.is_none() {
                toml.set_text(section, "routing_key", &routing_key);
            }
        }
        None => by_topic(given, toml, source, router, &routing_key),
    }
    toml.comment(
        "[event]",
        "Debezium Server loses what no queue is bound for. \"discard\" does the same; \"park\" keeps it in the dead letters.",
    );
    toml.set_text("[event]", "on_unroutable", "park");
    body_of_nothing(given, toml);
    let dropped = [
        (
            "autoCreateRoutingKey",
            "Postrider makes no queue for a routing key: those that Debezium has made stay; [topology] declares new ones",
        ),
        ("routingKeyDurable", "it belongs to autoCreateRoutingKey"),
    ];
    for (name, why) in dropped {
        if let Some(item) = given.take_raw(&format!("{PREFIX}{name}")) {
            given.dropped(&item, why);
        }
    }
    if let Some(mode) = given.take(&format!("{PREFIX}deliveryMode"))
        && !mode.is("2")
    {
        given.warn(&mode, "Postrider's messages are persistent (delivery mode 2)");
    }
    if let Some(timeout) = given.take(&format!("{PREFIX}ackTimeout")) {
        match timeout.value.trim().parse::<u64>() {
            Ok(millis @ 1_000..=3_600_000) => {
                toml.carry("[limits]", "confirm_timeout", &quoted(&format!("{millis}ms")), &timeout);
            }
            _ => given.warn(&timeout, "limits.confirm_timeout is from 1 s to 1 h: it keeps its default, 30s"),
        }
    }
    let other: Vec<Item> = given.take_all("debezium.sink.rabbitmqstream.");
    for item in other {
        given.dropped(&item, "belongs to another sink");
    }
}

/// `null.value`, the body of a tombstone.
fn body_of_nothing(given: &mut Given, toml: &mut Toml) {
    match given.take(&format!("{PREFIX}null.value")) {
        Some(item) => toml.carry("[debezium]", "tombstone_body", &quoted(&item.value), &item),
        None => {
            toml.comment("[debezium]", "The default of null.value in Debezium Server");
            toml.set_text("[debezium]", "tombstone_body", "default");
        }
    }
}

fn routing_key(given: &mut Given, router: Option<&Router>, key: KeyFormat) -> String {
    let fixed = given.take(&format!("{PREFIX}routingKey"));
    let from =
        given.take_choice(&format!("{PREFIX}routingKey.source"), &["static", "topic", "key"], "is no such source");
    if let Some((true, item)) = given.take_flag(&format!("{PREFIX}routingKeyFromTopicName")) {
        given.refused(
            &item,
            "versions of Debezium Server differ in what it does: write routingKey.source=topic, or leave it out if the key is a fixed one",
        );
    }
    let literal = |item: &Option<Item>| {
        item.as_ref().map(|item| item.value.replace('{', "{{").replace('}', "}}")).unwrap_or_default()
    };
    match from.as_ref().map(|item| item.value.as_str()) {
        None | Some("static") => literal(&fixed),
        Some(other) => {
            if let Some(fixed) = &fixed {
                given.dropped(fixed, "routingKey.source decides");
            }
            if other == "topic" {
                return "{topic}".to_owned();
            }
            if let Some(from) = &from
                && !(router.is_some() && key == KeyFormat::Plain)
            {
                let how = if router.is_some() { "it in quotes" } else { "it as a JSON object" };
                given.refused(
                    from,
                    format!(
                        "the routing key is the record's key, and Debezium writes {how}: Postrider has no such routing key. \
                         It has {{aggregateid}} for an outbox with debezium.format.key=simplestring"
                    ),
                );
            }
            "{aggregateid}".to_owned()
        }
    }
}

/// Without an exchange Debezium publishes to the one that has the topic's name. Ours are fixed, so the topics have to be known.
fn by_topic(given: &mut Given, toml: &mut Toml, source: &Source, router: Option<&Router>, routing_key: &str) {
    let name = format!("{PREFIX}exchange");
    let refusal = "not set: Debezium publishes to an exchange for each topic, which it names after it. Postrider's routes have fixed exchanges";
    if let Some(router) = router {
        if router.topic_replacement.contains('$') {
            let text = format!(
                "{refusal}, and the topics of the outbox router are not known beforehand. Set one exchange, and bind the old ones to it"
            );
            given.refused_default(&name, text);
        } else {
            toml.set_text("[event]", "exchange", &router.topic_replacement);
            toml.set_text("[event]", "routing_key", routing_key);
        }
        return;
    }
    if source.tables.is_empty() || source.tables.iter().any(|table| table.contains('*')) {
        given.refused_default(
            &name,
            format!("{refusal}: list the tables one by one in table.include.list, or set one exchange"),
        );
        return;
    }
    let topic = |table: &String| format!("{}.{table}", source.prefix);
    let mut routes: Vec<(String, String)> = source.tables.iter().map(|table| (table.clone(), topic(table))).collect();
    if let Some((_, first)) = routes.first() {
        toml.set_text("[event]", "exchange", first);
        toml.set_text("[source]", "exchange", first);
        toml.set_text("[source]", "routing_key", routing_key);
    }
    // What is of no table has a table's place in the routes.
    routes.push(("pg_catalog.message".to_owned(), format!("{}.message", source.prefix)));
    if source.transactions {
        routes.push(("pg_catalog.transaction".to_owned(), format!("{}.transaction", source.prefix)));
    }
    for (number, (table, topic)) in routes.iter().enumerate() {
        toml.begin("[[route]]");
        toml.comment(
            "[[route]]",
            "Without an exchange Debezium Server publishes to the one that has the topic's name.",
        );
        toml.set_text("[[route]]", "name", &format!("topic-{}", number + 1));
        toml.set_text("[[route]]", "table", table);
        toml.set_text("[[route]]", "exchange", topic);
    }
}

fn connection(given: &mut Given, toml: &mut Toml) {
    let mut known: Vec<String> = Vec::new();
    let mut url = ["user", "host", "5672", "%2F"].map(str::to_owned);
    for item in given.take_all(&format!("{PREFIX}connection.")) {
        let option = item.name.trim_start_matches(&format!("{PREFIX}connection.")).to_owned();
        let value = given::variable(&item.value).unwrap_or_else(|| item.value.clone());
        let place = match option.as_str() {
            "username" => 0,
            "host" => 1,
            "port" => 2,
            "virtual.host" | "vhost" => 3,
            "uri" => {
                given.warn(&item, "give the URL in AMQP_URL, or in a file that amqp_url_file names; it is not copied, because a password may be in it");
                continue;
            }
            "password" => {
                known.push(format!("line {}: the password is not copied", item.line));
                continue;
            }
            option if option.contains("ssl") => {
                given.warn(&item, "for TLS write amqps:// in AMQP_URL; amqp_ca_file, amqp_cert_file and amqp_key_file (PEM) take the place of Java's key stores");
                continue;
            }
            _ => {
                given.dropped(&item, "Postrider's connection has settings of its own ([limits])");
                continue;
            }
        };
        if let Some(part) = url.get_mut(place) {
            *part = if place == 3 && value == "/" { "%2F".to_owned() } else { value };
        }
    }
    let [user, host, port, vhost] = url;
    toml.comment("", "Where RabbitMQ is: in AMQP_URL, or in a file, which may hold the password.");
    toml.comment("", &format!("AMQP_URL=amqp://{user}:<password>@{host}:{port}/{vhost}"));
    for line in known {
        toml.comment("", &line);
    }
    toml.comment("", "amqp_url_file = \"/run/secrets/amqp_url\"");
}
