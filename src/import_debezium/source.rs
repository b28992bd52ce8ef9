//! `debezium.source.*`: the database, the slot, and how values are written.

use super::given::{self, Given, Item};
use super::output::{Toml, quoted};
use super::router::Router;
use super::{patterns, tables};

const PREFIX: &str = "debezium.source.";

fn name(option: &str) -> String {
    format!("{PREFIX}{option}")
}

/// What the sink and the adoption have to know of it.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// `topic.prefix`
    pub prefix: String,
    pub tables: Vec<String>,
    pub slot: String,
    /// Debezium's own, which nobody needs afterwards.
    pub publication: String,
    /// Events of transactions are sent.
    pub transactions: bool,
    /// Why the slot cannot be taken over.
    pub not_adoptable: Vec<String>,
}

pub(super) fn map(given: &mut Given, toml: &mut Toml, router: Option<&Router>) -> Source {
    match given.take(&name("connector.class")) {
        Some(class) if class.value.contains("PostgresConnector") => {}
        Some(class) => given.refused(&class, "Postrider reads PostgreSQL alone"),
        None => given.refused_default(&name("connector.class"), "not set: Postrider reads PostgreSQL alone"),
    }
    let mut source = Source::default();
    match given.take(&name("topic.prefix")) {
        Some(prefix) => {
            toml.carry("", "name", &quoted(&prefix.value), &prefix);
            source.prefix = prefix.value;
        }
        None => given
            .refused_default(&name("topic.prefix"), "not set: it is in every topic and in every body (source.name)"),
    }
    database(given, toml);
    slot(given, toml, &mut source);
    source.tables = tables::take(given, router.is_some());
    match (router.is_some(), source.tables.first()) {
        (true, Some(outbox)) => toml.set_text("[outbox]", "table", &sql_name(outbox)),
        (true, None) => {}
        (false, _) => {
            toml.comment(
                "[outbox]",
                "Debezium had none. Postrider's is for events of your own; postrider migrate makes it.",
            );
            toml.set_text("[outbox]", "table", "public.postrider_outbox");
            toml.set_texts("[source]", "tables", &source.tables);
        }
    }
    tables::columns(given, toml, &source.tables, router.is_some());
    snapshot(given, toml, router.is_some());
    operations(given, toml, router.is_some());
    messages(given, toml, router);
    source.transactions = values(given, toml, router);
    unsupported(given);
    if router.is_none() {
        partitions(given);
    } else if let Some(item) = given.take_raw(&name("publish.via.partition.root")) {
        given.dropped(&item, "a partitioned outbox goes by its root");
    }
    if let Some(interval) = given.take(&name("heartbeat.interval.ms"))
        && !interval.is("0")
    {
        given.warn(
            &interval,
            "Debezium's heartbeat messages are not sent any more: Postrider's heartbeat is a table that only it reads",
        );
    }
    if let Some(query) = given.take_raw(&name("heartbeat.action.query")) {
        given.dropped(&query, "Postrider moves the slot of a quiet database by itself");
    }
    source
}

/// `schema.table` as the setting `outbox.table` wants it, with quotes where SQL needs them.
fn sql_name(table: &str) -> String {
    let part = |part: &str| {
        let plain = |c: char| (c.is_alphanumeric() && !c.is_ascii_uppercase()) || c == '_' || c == '$';
        if part.chars().all(plain) { part.to_owned() } else { format!("\"{}\"", part.replace('"', "\"\"")) }
    };
    table.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn database(given: &mut Given, toml: &mut Toml) {
    let mut part = |option: &str, default: &str| {
        let item = given.take_raw(&name(option));
        item.map_or_else(|| default.to_owned(), |item| given::variable(&item.value).unwrap_or(item.value))
    };
    let host = part("database.hostname", "localhost");
    let port = part("database.port", "5432");
    let user = part("database.user", "postgres");
    let database = part("database.dbname", &user);
    let sslmode = part("database.sslmode", "");
    let tls = [("sslrootcert", "database.sslrootcert"), ("sslcert", "database.sslcert"), ("sslkey", "database.sslkey")]
        .map(|(key, option)| (key, part(option, "")));
    toml.comment("", "Where PostgreSQL is: in DATABASE_URL, or in a file, which may hold the password.");
    if sslmode.is_empty() {
        toml.comment(
            "",
            "Without sslmode Postrider verifies the certificate (verify-full); Debezium's default is prefer.",
        );
    }
    let mut options: Vec<String> = Vec::new();
    if !sslmode.is_empty() {
        options.push(format!("sslmode={sslmode}"));
    }
    options.extend(tls.iter().filter(|(_, path)| !path.is_empty()).map(|(key, path)| format!("{key}={path}")));
    let options = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
    toml.comment("", &format!("DATABASE_URL=postgres://{user}:<password>@{host}:{port}/{database}{options}"));
    if let Some(password) = given.take_raw(&name("database.password")) {
        let from =
            given::variable(&password.value).map(|variable| format!(": it comes from {variable}")).unwrap_or_default();
        toml.comment("", &format!("line {}: the password is not copied{from}", password.line));
    }
    toml.comment("", "database_url_file = \"/run/secrets/database_url\"");
    for option in ["database.sslpassword", "database.sslfactory"] {
        if let Some(item) = given.take_raw(&name(option)) {
            given.warn(&item, "Postrider takes certificates and keys as PEM files that have no password");
        }
    }
}

fn slot(given: &mut Given, toml: &mut Toml, source: &mut Source) {
    let slot = given.take(&name("slot.name"));
    source.slot = slot.as_ref().map_or_else(|| "debezium".to_owned(), |item| item.value.trim().to_owned());
    let publication = given.take(&name("publication.name"));
    source.publication = publication.map_or_else(|| "dbz_publication".to_owned(), |item| item.value);
    match given.take(&name("plugin.name")) {
        Some(plugin) if plugin.is("pgoutput") => {}
        plugin => {
            let set = match &plugin {
                Some(plugin) => format!("line {}: plugin.name is {}", plugin.line, plugin.value),
                None => "plugin.name is not set, and the default is decoderbufs".to_owned(),
            };
            let text = format!(
                "{set}: its slot {} cannot be taken over. Postrider makes one of its own: start it while Debezium still runs, \
                 then stop Debezium. What is written in between comes twice",
                source.slot
            );
            source.not_adoptable.push(text.clone());
            match plugin {
                Some(plugin) => given.warn(&plugin, text),
                None => given.warn_default(&name("plugin.name"), text),
            }
            toml.comment("", "Postrider's own: that of Debezium is no slot of pgoutput.");
            toml.set_text("", "slot", "postrider");
            return;
        }
    }
    if let Some((true, item)) = given.take_flag(&name("slot.drop.on.stop")) {
        let text = "Debezium drops the slot when it stops, and what it has not sent is lost: set it to false, and restart Debezium, before you move";
        source.not_adoptable.push(format!("line {}: slot.drop.on.stop: {text}", item.line));
        given.warn(&item, text);
    }
    match &slot {
        Some(item) => toml.carry("", "slot", &quoted(&source.slot), item),
        None => {
            toml.comment("", "The default of slot.name");
            toml.set_text("", "slot", &source.slot);
        }
    }
    toml.comment(
        "",
        &format!(
            "Postrider's own: {} lacks its heartbeat. postrider migrate makes it, while Debezium runs.",
            source.publication
        ),
    );
    let ours = if source.publication == "postrider" { "postrider_outbox" } else { "postrider" };
    toml.set_text("", "publication", ours);
}

fn snapshot(given: &mut Given, toml: &mut Toml, router: bool) {
    let modes = [
        "initial",
        "no_data",
        "never",
        "schema_only",
        "always",
        "when_needed",
        "exported",
        "initial_only",
        "configuration_based",
        "custom",
    ];
    let mode = given.take_choice(&name("snapshot.mode"), &modes, "is no mode that is known");
    let value = mode.as_ref().map_or("initial", |item| item.value.as_str());
    match (value, &mode) {
        ("initial_only", Some(item)) => {
            given.refused(item, "Debezium reads the rows and stops; Postrider carries changes");
        }
        ("always", Some(item)) => given.warn(item, "Debezium reads all rows at each start; Postrider never does"),
        _ => {}
    }
    if !router {
        toml.comment("[source]", &format!("snapshot.mode is {value}: Debezium has read the rows that were there, and the slot goes on behind them."));
        toml.set_text("[source]", "snapshot", "never");
    }
}

fn operations(given: &mut Given, toml: &mut Toml, router: bool) {
    let item = given.take(&name("skipped.operations"));
    let letters: Vec<String> = match &item {
        Some(item) => item.elements().into_iter().map(str::to_lowercase).collect(),
        None => vec!["t".to_owned()],
    };
    let mut skip: Vec<String> = Vec::new();
    for letter in &letters {
        match (letter.as_str(), &item) {
            ("c", _) => skip.push("insert".to_owned()),
            ("u", _) => skip.push("update".to_owned()),
            ("d", _) => skip.push("delete".to_owned()),
            ("t", _) => skip.push("truncate".to_owned()),
            ("none" | "r", _) => {}
            (_, Some(item)) => given.refused(item, "has letters that are none of c, u, d and t"),
            (_, None) => {}
        }
    }
    if !router {
        match &item {
            Some(item) => {
                let texts: Vec<String> = skip.iter().map(|op| quoted(op)).collect();
                toml.carry("[source]", "skip", &format!("[{}]", texts.join(", ")), item);
            }
            None => {
                toml.comment("[source]", "The default of skipped.operations");
                toml.set_texts("[source]", "skip", &skip);
            }
        }
    } else if let Some(item) = &item {
        if skip.iter().any(|op| op == "insert") {
            given.refused(item, "without inserts an outbox sends nothing");
        } else {
            given.dropped(item, "Postrider sees only the inserts of an outbox");
        }
    }
}

/// `pg_logical_emit_message`: Debezium sends all of them unless it is told otherwise.
fn messages(given: &mut Given, toml: &mut Toml, router: Option<&Router>) {
    let include = given.take(&name("message.prefix.include.list"));
    if let Some(item) = given.take(&name("message.prefix.exclude.list")) {
        given.refused(
            &item,
            "Postrider has no list of what is left out: name the prefixes in message.prefix.include.list",
        );
    }
    match (include, router) {
        (Some(item), Some(_)) => {
            given.refused(&item, "messages that pass the outbox router as they are, are not carried");
        }
        (None, Some(router)) => {
            let at: Item = router.at.clone();
            given.warn(&at, "messages of pg_logical_emit_message, which pass the router as they are, are not carried");
        }
        (Some(item), None) => {
            let mut found = Vec::new();
            for element in item.elements() {
                match patterns::text(element) {
                    Ok(pattern) => found.push(quoted(&pattern)),
                    Err(why) => given.refused(&item, format!("{element:?} {why}")),
                }
            }
            toml.carry("[source]", "messages", &format!("[{}]", found.join(", ")), &item);
        }
        (None, None) => {
            toml.comment(
                "[source]",
                "Debezium sends every message of pg_logical_emit_message unless message.prefix.include.list is set.",
            );
            toml.set_texts("[source]", "messages", &["*".to_owned()]);
        }
    }
}

/// Whether transactions are events.
fn values(given: &mut Given, toml: &mut Toml, router: Option<&Router>) -> bool {
    let modes: [(&str, &str, &[&str]); 5] = [
        ("decimal.handling.mode", "decimals", &["precise", "string", "double"]),
        ("binary.handling.mode", "binary", &["bytes", "base64", "base64-url-safe", "hex"]),
        ("hstore.handling.mode", "hstore", &["json", "map"]),
        ("interval.handling.mode", "intervals", &["numeric", "string"]),
        (
            "time.precision.mode",
            "times",
            &["adaptive", "adaptive_time_microseconds", "connect", "isostring", "microseconds", "nanoseconds"],
        ),
    ];
    for (option, key, choices) in modes {
        if let Some(item) = given.take_choice(&name(option), choices, "Postrider does not write values so") {
            toml.carry("[debezium]", key, &quoted(&item.value), &item);
        }
    }
    for (option, key) in [("tombstones.on.delete", "tombstones"), ("include.unknown.datatypes", "unknown_types")] {
        if let Some((value, item)) = given.take_flag(&name(option)) {
            toml.carry("[debezium]", key, &value.to_string(), &item);
        }
    }
    let mut transactions = false;
    if let Some((value, item)) = given.take_flag(&name("provide.transaction.metadata")) {
        transactions = value;
        match router {
            Some(_) if value => {
                given.refused(&item, "Postrider sends no events of transactions beside those of an outbox");
            }
            _ => toml.carry("[debezium]", "transaction_metadata", &value.to_string(), &item),
        }
    }
    for option in ["unavailable.value.placeholder", "toasted.value.placeholder"] {
        if let Some(item) = given.take(&name(option)) {
            toml.carry("[debezium]", "unavailable_value", &quoted(&item.value), &item);
        }
    }
    transactions
}

/// What changes a body, or whether there is one, and has no counterpart: its default is fine.
fn unsupported(given: &mut Given) {
    let only = [
        ("money.fraction.digits", "2", "Postrider writes money with two digits behind the point"),
        ("sanitize.field.names", "false", "Postrider writes names as the catalogue has them"),
        ("field.name.adjustment.mode", "none", "Postrider writes names as the catalogue has them"),
        ("skip.messages.without.change", "false", "Postrider sends every update"),
        ("include.schema.changes", "false", "Postrider sends no events of schema changes"),
        ("topic.delimiter", ".", "Postrider puts dots between the words of a topic"),
        ("topic.transaction", "transaction", "the topic of transactions is PREFIX.transaction"),
        (
            "topic.naming.strategy",
            "io.debezium.schema.SchemaTopicNamingStrategy",
            "Postrider's topics are PREFIX.SCHEMA.TABLE",
        ),
        (
            "sourceinfo.struct.maker",
            "io.debezium.connector.postgresql.PostgresSourceInfoStructMaker",
            "Postrider writes `source` as Debezium does without it",
        ),
    ];
    for (option, default, reason) in only {
        given.only_default(&name(option), default, reason);
    }
    let never = [
        ("converters", "Postrider has no converters: the values would be others"),
        ("post.processors", "Postrider has no post processors: the bodies would be others"),
        ("message.key.columns", "Postrider takes the key from the catalogue"),
        ("key.converter", "Postrider has no converters: use debezium.format"),
        ("value.converter", "Postrider has no converters: use debezium.format"),
        ("header.converter", "Postrider has no converters: use debezium.format"),
        ("database.server.name", "the name for what topic.prefix is since Debezium 2: write topic.prefix"),
    ];
    for (option, reason) in never {
        if let Some(item) = given.take_raw(&name(option)) {
            given.refused(&item, reason);
            for item in given.take_all(&name(&format!("{option}."))) {
                given.dropped(&item, format!("belongs to {option}"));
            }
        }
    }
}

fn partitions(given: &mut Given) {
    let text = "changes of partitions carry the name of their root in Postrider, and that of the partition in Debezium: of no account \
                without partitioned tables";
    match given.take_flag(&name("publish.via.partition.root")) {
        Some((true, _)) => {}
        Some((false, item)) => given.warn(&item, text),
        None => given.warn_default(&name("publish.via.partition.root"), format!("not set: {text}")),
    }
}
