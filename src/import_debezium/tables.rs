//! Which tables and columns are captured.

use std::collections::BTreeMap;

use super::given::{Given, Item};
use super::output::{Toml, quoted};
use super::patterns;

/// The patterns of `source.tables`; with a router the outbox alone.
pub(super) fn take(given: &mut Given, router: bool) -> Vec<String> {
    for name in ["table.exclude.list", "schema.exclude.list", "table.blacklist", "schema.blacklist"] {
        if let Some(item) = given.take(&format!("debezium.source.{name}")) {
            given.refused(
                &item,
                "Postrider has no list of what is left out: name what is to be carried in table.include.list",
            );
        }
    }
    let schemas = given.take("debezium.source.schema.include.list");
    let Some(tables) = given.take("debezium.source.table.include.list") else {
        let refusal = "not set: Debezium would route the rows of every table as if it were an outbox. Name the outbox";
        if router {
            given.refused_default("debezium.source.table.include.list", refusal);
            return Vec::new();
        }
        return match &schemas {
            Some(schemas) => all_of(given, schemas),
            None => vec!["*.*".to_owned()],
        };
    };
    let mut found = Vec::new();
    for element in tables.elements() {
        match patterns::pattern(element, 2) {
            Ok(pattern) => found.push(pattern),
            Err(why) => given.refused(
                &tables,
                format!("{element:?} {why}: write it as schema.table, with * or one entry for each table"),
            ),
        }
    }
    if tables.value.chars().any(char::is_uppercase) {
        given.warn(&tables, "Debezium takes upper and lower case for the same, Postrider has the names exactly as the catalogue has them");
    }
    if let Some(schemas) = schemas {
        let names: Vec<&str> = schemas.elements();
        let inside = |table: &String| table.split_once('.').is_some_and(|(schema, _)| names.contains(&schema));
        if !found.iter().all(inside) {
            given.refused(&schemas, "with table.include.list only tables of both lists count: leave it out, and name the tables in the other");
        }
    }
    if router && (found.len() != 1 || found.iter().any(|table| table.contains('*'))) {
        given.refused(
            &tables,
            "Debezium would route the rows of all of these as an outbox; Postrider has one outbox, by its name",
        );
    }
    found
}

fn all_of(given: &mut Given, schemas: &Item) -> Vec<String> {
    let mut found = Vec::new();
    for element in schemas.elements() {
        match patterns::text(element) {
            Ok(schema) if !schema.contains('.') => found.push(format!("{schema}.*")),
            _ => given.refused(schemas, format!("{element:?} is a regular expression that `*` cannot say")),
        }
    }
    found
}

/// One `[[columns]]`.
#[derive(Default)]
struct Rule {
    include: Vec<String>,
    exclude: Vec<String>,
    sha256: Vec<String>,
}

/// One list of a rule.
type List = fn(&mut Rule) -> &mut Vec<String>;

/// `column.*`, as `[[columns]]`.
pub(super) fn columns(given: &mut Given, toml: &mut Toml, tables: &[String], router: bool) {
    let include = given.take("debezium.source.column.include.list");
    let exclude = given.take("debezium.source.column.exclude.list");
    let masks = masks(given, toml);
    let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
    let mut lists: Vec<(&Item, List)> = Vec::new();
    lists.extend(include.iter().map(|item| (item, (|rule| &mut rule.include) as List)));
    lists.extend(exclude.iter().map(|item| (item, (|rule| &mut rule.exclude) as List)));
    lists.extend(masks.iter().map(|item| (item, (|rule| &mut rule.sha256) as List)));
    for (item, list) in &lists {
        if router {
            given.refused(
                item,
                "the columns of an outbox are not filtered: leave them out by table.fields.additional.placement",
            );
            continue;
        }
        for element in item.elements() {
            let found = patterns::pattern(element, 3).map_err(|why| why.to_string());
            match found.as_ref().map(|pattern| pattern.rsplit_once('.')) {
                Ok(Some((table, column))) => list(rules.entry(table.to_owned()).or_default()).push(column.to_owned()),
                Ok(None) => {}
                Err(why) => given.refused(item, format!("{element:?} {why}: write it as schema.table.column")),
            }
        }
    }
    let Some((first, _)) = lists.first() else { return };
    if rules.len() > 1 && rules.keys().any(|table| table.contains('*')) {
        given.refused(first, "of several [[columns]] the first that matches a table counts, so that they must not overlap: name each table");
    }
    if let Some(include) = &include {
        let named = |table: &String| rules.get(table).is_some_and(|rule| !rule.include.is_empty());
        let all = rules.get("*.*").is_some_and(|rule| !rule.include.is_empty());
        if !all && !tables.iter().all(named) {
            given.refused(
                include,
                "Debezium sends tables without a column in this list empty: name columns of every table, or none",
            );
        }
    }
    for (table, rule) in rules {
        toml.begin("[[columns]]");
        toml.set_text("[[columns]]", "table", &table);
        for (key, names) in [("include", &rule.include), ("exclude", &rule.exclude)] {
            if !names.is_empty() {
                toml.set_texts("[[columns]]", key, names);
            }
        }
        if !rule.sha256.is_empty() {
            let redact: Vec<String> =
                rule.sha256.iter().map(|column| format!("{} = \"sha256\"", quoted(column))).collect();
            toml.set("[[columns]]", "redact", &format!("{{ {} }}", redact.join(", ")));
        }
    }
}

/// The masks that mean the same here: the second version of the hash, by SHA-256, with one salt.
fn masks(given: &mut Given, toml: &mut Toml) -> Vec<Item> {
    const SAME: &str = "debezium.source.column.mask.hash.v2.SHA-256.with.salt.";
    let mut salts: Vec<String> = Vec::new();
    let mut same = Vec::new();
    for item in given.take_all("debezium.source.column.mask.") {
        let Some(salt) = item.name.strip_prefix(SAME).map(str::to_owned) else {
            let why = if item.name.contains(".hash.") {
                "Postrider hashes by SHA-256 as the second version does (column.mask.hash.v2.SHA-256): another hash would be another value"
            } else {
                "Postrider's mask is **** and leaves NULL as it is, Debezium's has a length and hides NULL: the value would be another"
            };
            given.refused(&item, why);
            continue;
        };
        if !salts.contains(&salt) {
            salts.push(salt);
        }
        if salts.len() > 1 {
            given.refused(&item, "Postrider has one salt");
            continue;
        }
        given.warn(&item, "Debezium cuts the hash to the length of the column and hashes texts alone; Postrider hashes every type and cuts nothing");
        toml.comment("", &format!("The salt is not copied: it is in the name of the property on line {}. Give it in POSTRIDER_REDACTION_SALT.", item.line));
        same.push(item);
    }
    for item in given.take_all("debezium.source.column.truncate.") {
        given.refused(&item, "Postrider does not shorten values");
    }
    for item in given.take_all("debezium.source.column.propagate.") {
        given.dropped(&item, "it adds to schemas, which are off");
    }
    same
}
