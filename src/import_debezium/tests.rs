use super::*;
use crate::config::Config;

const TABLES: &str = "debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
    debezium.source.plugin.name=pgoutput\n\
    debezium.source.topic.prefix=shop\n\
    debezium.source.table.include.list=public.orders\n\
    debezium.source.publish.via.partition.root=true\n\
    debezium.format.schemas.enable=false\n\
    debezium.sink.type=rabbitmq\n\
    debezium.sink.rabbitmq.exchange=events\n\
    debezium.sink.rabbitmq.routingKey.source=topic\n";
/// Lines of [`TABLES`].
const LINES: usize = 9;
const ROUTER: &str =
    "debezium.transforms=outbox\ndebezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter\n";

/// With the configuration that comes out, which has to be right in itself.
fn imported(text: &str) -> (Imported, Config) {
    let imported = import("application.properties", text);
    let urls = [
        ("DATABASE_URL", "postgres://postrider@localhost/shop"),
        ("AMQP_URL", "amqp://localhost"),
        ("POSTRIDER_REDACTION_SALT", "salt"),
    ];
    let urls = urls.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::of_text(&imported.toml, urls);
    let config = config.unwrap_or_else(|errors| panic!("{errors}\n{}", imported.toml));
    (imported, config)
}

fn good(more: &str) -> Config {
    let (imported, config) = imported(&format!("{TABLES}{more}"));
    assert_eq!((imported.refused, imported.unknown), (vec![], vec![]), "{more}");
    config
}

fn says(notes: &[Note]) -> Vec<String> {
    notes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_whole_file_becomes_a_whole_configuration() {
    let text = include_str!("../../tests/fixtures/import_debezium/outbox.properties");
    let (imported, config) = imported(text);
    assert_eq!(says(&imported.refused), Vec::<String>::new());
    assert_eq!(says(&imported.unknown), Vec::<String>::new());
    assert!(!imported.toml.contains("hunter2"), "{}", imported.toml);
    assert_eq!(config.name.as_deref(), Some("shop"));
    assert_eq!((config.slot.as_str(), config.outbox.table.as_str()), ("debezium_shop", "outboxevent"));
    assert_eq!(imported.toml, include_str!("../../tests/fixtures/import_debezium/outbox.toml"));
}

#[test]
fn what_would_change_a_body_is_refused_with_its_line() {
    let refused = [
        "debezium.format.value=avro",
        "debezium.format.header=avro",
        "debezium.format.value.schemas.enable=true",
        "debezium.format.header.schemas.enable=true",
        "debezium.format.value.decimal.format=NUMERIC",
        "debezium.transforms=unwrap\ndebezium.transforms.unwrap.type=io.debezium.transforms.ExtractNewRecordState",
        "debezium.predicates=p",
        "debezium.source.converters=isbn",
        "debezium.source.post.processors=x",
        "debezium.source.include.schema.changes=true",
        "debezium.source.column.mask.with.5.chars=public.orders.email",
        "debezium.source.column.mask.hash.SHA-256.with.salt.x=public.orders.email",
        "debezium.source.column.mask.hash.v2.SHA-512.with.salt.x=public.orders.email",
        "debezium.source.column.truncate.to.20.chars=public.orders.email",
        "debezium.source.time.precision.mode=structured",
        "debezium.source.money.fraction.digits=4",
        "debezium.source.sanitize.field.names=true",
        "debezium.source.field.name.adjustment.mode=avro",
        "debezium.source.skip.messages.without.change=true",
        "debezium.source.topic.delimiter=_",
        "debezium.source.topic.naming.strategy=com.example.Own",
        "debezium.source.sourceinfo.struct.maker=com.example.Own",
        "debezium.source.message.key.columns=public.orders:email",
        "debezium.source.value.converter=com.example.Own",
        "debezium.source.table.exclude.list=public.audit",
        "debezium.source.schema.exclude.list=audit",
        "debezium.source.schema.include.list=sales",
        "debezium.source.snapshot.mode=initial_only",
        "debezium.source.skipped.operations=x",
        "debezium.source.message.prefix.exclude.list=x",
        "debezium.source.decimal.handling.mode=${MODE}",
        "debezium.sink.rabbitmq.routingKey.source=key",
        "debezium.sink.rabbitmq.routingKeyFromTopicName=true",
    ];
    for line in refused {
        let imported = import("f", &format!("{TABLES}{line}\n"));
        let lines: Vec<_> = imported.refused.iter().map(|note| note.line).collect();
        let expected = LINES + if line.contains('\n') { 2 } else { 1 };
        assert_eq!(lines, [Some(expected)], "{line}: {:?}", says(&imported.refused));
        assert_eq!(says(&imported.unknown), Vec::<String>::new(), "{line}");
    }
}

#[test]
fn a_default_that_would_change_a_body_is_refused_too() {
    let cases = [
        ("debezium.format.schemas.enable", 2),
        ("debezium.source.topic.prefix", 1),
        ("debezium.source.connector.class", 1),
        ("debezium.sink.type", 1),
    ];
    for (property, refusals) in cases {
        let text: String =
            TABLES.lines().filter(|line| !line.starts_with(property)).map(|line| format!("{line}\n")).collect();
        let imported = import("f", &text);
        assert_eq!(imported.refused.len(), refusals, "{property}: {:?}", says(&imported.refused));
        assert!(
            imported.refused.iter().all(|note| note.line.is_none() && note.text.starts_with("not set")),
            "{property}"
        );
    }
}

#[test]
fn schemas_may_be_off_in_each_place_by_itself() {
    let text = TABLES.replace(
        "debezium.format.schemas.enable=false",
        "debezium.format.value.schemas.enable=false\ndebezium.format.header.schemas.enable=false",
    );
    assert_eq!(says(&imported(&text).0.refused), Vec::<String>::new());
}

#[test]
fn what_is_not_known_is_not_understood() {
    let imported = import("f", &format!("{TABLES}debezium.source.frobnicate=1\nnonsense\n"));
    assert_eq!(
        says(&imported.unknown),
        ["line 10: debezium.source.frobnicate: not understood", "line 11: nonsense: not understood"]
    );
}

#[test]
fn what_no_message_depends_on_is_dropped_by_name() {
    let dropped = [
        "debezium.source.offset.storage.file.filename=data/offsets.dat",
        "debezium.source.offset.flush.interval.ms=0",
        "debezium.source.poll.interval.ms=50",
        "debezium.source.max.batch.size=1",
        "debezium.source.max.queue.size.in.bytes=1",
        "debezium.source.heartbeat.action.query=select 1",
        "debezium.source.snapshot.fetch.size=1",
        "debezium.format.key=avro",
        "debezium.format.key.schemas.enable=true",
        "debezium.sink.rabbitmq.autoCreateRoutingKey=true",
        "quarkus.log.level=INFO",
        "debezium.transforms.unused.type=x",
    ];
    for line in dropped {
        let (imported, _) = imported(&format!("{TABLES}{line}\n"));
        assert_eq!((says(&imported.refused), says(&imported.unknown)), (vec![], vec![]), "{line}");
        assert_eq!(imported.dropped.len(), 1, "{line}: {:?}", says(&imported.dropped));
        let name = line.split('=').next().unwrap();
        assert!(imported.toml.contains(&format!("line {}: {name}", LINES + 1)), "{}", imported.toml);
    }
}

#[test]
fn the_last_of_two_counts_as_in_java() {
    let (imported, config) = imported(&format!("{TABLES}debezium.source.topic.prefix=other\n"));
    assert_eq!(config.name.as_deref(), Some("other"));
    assert_eq!(imported.dropped[0].line, Some(3));
}

#[test]
fn tables_and_values_are_carried_over() {
    use crate::config::{Binary, Decimals, Format, Hstore, Intervals, Redaction, Times};
    use crate::event::SourceOp;
    let config = good("");
    assert_eq!(config.source.tables, ["public.orders"]);
    assert_eq!(
        (config.source.skip.as_slice(), config.source.messages.as_slice()),
        ([SourceOp::Truncate].as_slice(), ["*".to_owned()].as_slice())
    );
    assert_eq!(config.debezium.tombstone_body, "default");
    let route = config.routes.iter().find(|route| route.name == "tables").unwrap();
    assert_eq!(
        (route.exchange.as_str(), route.routing_key.as_str(), route.format),
        ("events", "{topic}", Format::Debezium)
    );

    let config = good(
        "debezium.source.decimal.handling.mode=STRING\ndebezium.source.binary.handling.mode=hex\n\
         debezium.source.hstore.handling.mode=map\ndebezium.source.interval.handling.mode=string\n\
         debezium.source.time.precision.mode=isostring\ndebezium.source.tombstones.on.delete=false\n\
         debezium.source.include.unknown.datatypes=true\ndebezium.source.provide.transaction.metadata=true\n\
         debezium.source.unavailable.value.placeholder=hex:00\ndebezium.source.skipped.operations=none\n\
         debezium.source.message.prefix.include.list=audit.*,x\ndebezium.sink.rabbitmq.null.value=\\u0020gone\n\
         debezium.sink.rabbitmq.ackTimeout=5000\ndebezium.source.column.exclude.list=public.orders.secret\n\
         debezium.source.column.mask.hash.v2.SHA-256.with.salt.pepper=public.orders.email",
    );
    let debezium = &config.debezium;
    assert_eq!(
        (debezium.decimals, debezium.binary, debezium.hstore, debezium.intervals, debezium.times),
        (Decimals::String, Binary::Hex, Hstore::Map, Intervals::String, Times::IsoString)
    );
    assert_eq!((debezium.tombstones, debezium.unknown_types, debezium.transaction_metadata), (false, true, true));
    assert_eq!((debezium.unavailable_value.as_str(), config.source.skip.len()), ("hex:00", 0));
    assert_eq!(config.limits.confirm_timeout, std::time::Duration::from_secs(5));
    let rule = &config.source.columns[0];
    assert_eq!((rule.table.as_str(), rule.exclude.as_slice()), ("public.orders", ["secret".to_owned()].as_slice()));
    assert_eq!(rule.redact, [("email".to_owned(), Redaction::Sha256)]);
}

#[test]
fn a_salt_leaves_by_no_way() {
    let (imported, _) = imported(&format!(
        "{TABLES}debezium.source.column.mask.hash.v2.SHA-256.with.salt.pepper=public.orders.email\n"
    ));
    assert!(!format!("{imported:?}").contains("pepper"), "{imported:?}");
}

#[test]
fn the_outbox_router_is_carried_over_in_both_spellings() {
    let router = format!(
        "{ROUTER}debezium.transforms.outbox.route.topic.replacement=$${{routedByValue}}.events\n\
         debezium.transforms.outbox.table.expand.json.payload=true\n\
         debezium.transforms.outbox.table.fields.additional.placement=type:header:eventType, tenant:envelope\n\
         debezium.transforms.outbox.table.field.event.key=entity\n\
         debezium.transforms.outbox.route.by.field=kind\n"
    );
    for text in [
        router.clone(),
        router.replace("\ndebezium.", "\ndebezium.source.").replacen("debezium.", "debezium.source.", 1),
    ] {
        let config = good(&text);
        assert!(!config.source.has_tables());
        assert_eq!((config.outbox.schema.as_str(), config.outbox.table.as_str()), ("public", "orders"));
        let columns = &config.outbox.columns;
        assert_eq!(
            (columns.aggregateid.as_str(), columns.aggregatetype.as_str(), columns.headers.as_str()),
            ("entity", "kind", "")
        );
        let router = &config.debezium.router;
        assert_eq!(
            (router.topic_replacement.as_str(), router.expand_json, router.additional.len()),
            ("${routedByValue}.events", true, 2)
        );
        assert_eq!(router.route_by_field, "kind");
    }
}

#[test]
fn a_router_with_conditions_or_for_many_tables_is_refused() {
    let with = |text: &str| says(&import("f", &format!("{TABLES}{ROUTER}{text}\n")).refused);
    assert_eq!(with("debezium.transforms.outbox.predicate=p").len(), 1);
    assert_eq!(with("debezium.transforms.outbox.table.json.payload.null.behavior=optional_bytes").len(), 1);
    assert_eq!(with("debezium.source.provide.transaction.metadata=true").len(), 1);
    assert_eq!(with("debezium.source.table.include.list=public.a,public.b").len(), 1);
    assert_eq!(with("debezium.source.table.include.list=public.*").len(), 1);
}

#[test]
fn without_an_exchange_the_topics_have_to_be_known() {
    let without = TABLES.replace("debezium.sink.rabbitmq.exchange=events\n", "");
    let (imported, config) = imported(&without.replace("public.orders", "public.orders,public.users"));
    assert_eq!(says(&imported.refused), Vec::<String>::new());
    let exchanges: Vec<_> =
        config.routes.iter().filter_map(|route| Some((route.table.as_deref()?, route.exchange.as_str()))).collect();
    let expected = [
        ("public.orders", "shop.public.orders"),
        ("public.users", "shop.public.users"),
        ("pg_catalog.message", "shop.message"),
    ];
    assert_eq!(&exchanges[..3], expected);

    for text in [without.replace("public.orders", "public.*"), format!("{without}{ROUTER}")] {
        let refused = import("f", &text).refused;
        assert_eq!(refused.len(), 1, "{:?}", says(&refused));
        assert_eq!(refused[0].property, "debezium.sink.rabbitmq.exchange");
    }
}

#[test]
fn a_static_routing_key_is_no_template() {
    let text = TABLES.replace("routingKey.source=topic", "routingKey=a.{b}");
    let (_, config) = imported(&text);
    assert!(config.routes.iter().any(|route| route.routing_key == "a.{{b}}"));
}

#[test]
fn a_slot_that_cannot_be_taken_over_says_why() {
    assert!(imported(TABLES).0.not_adoptable.is_empty());
    for text in [
        TABLES.replace("plugin.name=pgoutput", "plugin.name=decoderbufs"),
        TABLES.replace("debezium.source.plugin.name=pgoutput\n", ""),
        format!("{TABLES}debezium.source.slot.drop.on.stop=true\n"),
    ] {
        let (imported, _) = imported(&text);
        assert_eq!((imported.refused.len(), imported.not_adoptable.len()), (0, 1), "{text}");
    }
}

#[test]
fn nothing_in_a_file_can_become_a_setting_by_itself() {
    let (imported, config) = imported(&format!("{TABLES}a\\nslot\\ =\\ \"evil\"=x\ndebezium.source.slot.name=good\n"));
    assert_eq!((config.slot.as_str(), imported.unknown.len()), ("good", 1));
}
