//! `debezium.transforms`: the Outbox Event Router, and no other.

use super::given::{Given, Item};
use super::output::{Toml, quoted};

const TYPE: &str = "io.debezium.transforms.outbox.EventRouter";

/// What the rest has to know of it.
#[derive(Clone, Debug)]
pub(super) struct Router {
    /// Where it is asked for.
    pub at: Item,
    pub topic_replacement: String,
}

/// Takes everything about transforms. `Some`: every change goes through the router.
pub(super) fn take(given: &mut Given, toml: &mut Toml) -> Option<Router> {
    let chain = given.take("debezium.transforms");
    for item in given.take_all("debezium.predicates") {
        given.refused(&item, "Postrider has no predicates: it transforms every row of the outbox or none");
    }
    let mut router = None;
    for name in chain.iter().flat_map(Item::elements) {
        let prefix = format!("debezium.transforms.{name}.");
        let Some(kind) = given.take(&format!("{prefix}type")) else {
            given.refused_default(&format!("{prefix}type"), "not set: what the transform does is not known");
            continue;
        };
        if kind.value.trim() == TYPE && router.is_none() {
            router = Some(options(given, toml, kind, &prefix));
            continue;
        }
        let what = if kind.value.trim() == TYPE {
            "Postrider has one outbox"
        } else {
            "the Outbox Event Router is the only transform that Postrider has"
        };
        given.refused(&kind, format!("{what}: what it makes of a body would be missing"));
        for item in given.take_all(&prefix) {
            given.dropped(&item, "belongs to the transform that is refused");
        }
    }
    for item in given.take_all("debezium.transforms.") {
        given.dropped(&item, "debezium.transforms does not name it, so that Debezium does not use it either");
    }
    router
}

fn options(given: &mut Given, toml: &mut Toml, at: Item, prefix: &str) -> Router {
    let name = |option: &str| format!("{prefix}{option}");
    for option in ["predicate", "negate"] {
        if let Some(item) = given.take_raw(&name(option)) {
            given.refused(&item, "Postrider has no predicates: it routes every row of the outbox");
        }
    }
    columns(given, toml, prefix);
    let routing = [("route.topic.regex", "topic_regex"), ("route.topic.replacement", "topic_replacement")];
    let mut topic_replacement = "outbox.event.${routedByValue}".to_owned();
    for (option, key) in routing {
        if let Some(item) = given.take(&name(option)) {
            if key == "topic_regex"
                && let Err(error) = crate::event::router_regex(&item.value)
            {
                given.refused(&item, format!("Postrider cannot use this expression: {error}"));
                continue;
            }
            toml.carry("[debezium.router]", key, &quoted(&item.value), &item);
            if key == "topic_replacement" {
                topic_replacement = item.value;
            }
        }
    }
    if let Some(item) = given.take(&name("table.fields.additional.placement")) {
        let placements: Vec<String> = item
            .elements()
            .into_iter()
            .map(|one| one.split(':').map(str::trim).collect::<Vec<_>>().join(":"))
            .collect();
        if let Some(wrong) = placements.iter().find(|placement| !is_placement(placement)) {
            given.refused(&item, format!("{wrong:?} is not column:header, column:envelope or column:place:alias"));
        } else {
            let placements: Vec<String> = placements.iter().map(|placement| quoted(placement)).collect();
            toml.carry("[debezium.router]", "additional", &format!("[{}]", placements.join(", ")), &item);
        }
    }
    if let Some(item) =
        given.take_choice(&name("table.field.additional.missing"), &["error", "ignore"], "is no such behaviour")
    {
        toml.carry("[debezium.router]", "ignore_missing", &item.is("ignore").to_string(), &item);
    }
    for (option, key) in
        [("table.expand.json.payload", "expand_json"), ("route.tombstone.on.empty.payload", "tombstone_on_empty")]
    {
        if let Some((value, item)) = given.take_flag(&name(option)) {
            toml.carry("[debezium.router]", key, &value.to_string(), &item);
        }
    }
    let expanded = "Postrider expands a payload as the default, ignore, does";
    given.only_default(&name("table.json.payload.null.behavior"), "ignore", expanded);
    given.only_default(&name("table.json.payload.empty.array.behavior"), "ignore", expanded);
    let without_effect = [
        (
            "table.op.invalid.behavior",
            "updates and deletes of the outbox are never sent, and Postrider does not see them",
        ),
        (
            "table.field.event.type",
            "Debezium does not use it either: table.fields.additional.placement is what sends the type",
        ),
        ("table.field.event.timestamp", "it is the time of a Kafka record, which RabbitMQ is not sent"),
        ("table.field.event.schema.version", "schemas are off"),
        (
            "tracing.span.context.field",
            "the column of Debezium's tracing is not read: docs/tracing.md says how a trace goes on",
        ),
        ("tracing.operation.name", "Postrider's spans have names of their own"),
        ("tracing.with.context.field.only", "Postrider's spans follow docs/tracing.md"),
    ];
    for (option, why) in without_effect {
        if let Some(item) = given.take_raw(&name(option)) {
            given.dropped(&item, why);
        }
    }
    Router { at, topic_replacement }
}

/// The names of the outbox's columns.
fn columns(given: &mut Given, toml: &mut Toml, prefix: &str) {
    let own = [
        ("table.field.event.id", "id"),
        ("table.field.event.key", "aggregateid"),
        ("table.field.event.payload", "payload"),
    ];
    for (option, key) in own {
        if let Some(item) = given.take(&format!("{prefix}{option}")) {
            toml.carry("[outbox.columns]", key, &quoted(&item.value), &item);
        }
    }
    if let Some(item) = given.take(&format!("{prefix}route.by.field")) {
        toml.carry("[debezium.router]", "route_by_field", &quoted(&item.value), &item);
        toml.carry("[outbox.columns]", "aggregatetype", &quoted(&item.value), &item);
    }
    toml.comment(
        "[outbox.columns]",
        "Debezium gives no meaning to columns of these names; in a table that you make for Postrider they have one.",
    );
    for key in ["before", "version", "sequence", "headers", "occurred_at"] {
        toml.set_text("[outbox.columns]", key, "");
    }
}

fn is_placement(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let place = parts.get(1).is_some_and(|place| ["header", "envelope", "partition"].contains(place));
    place && parts.len() <= 3 && parts.iter().all(|part| !part.is_empty())
}
