//! The configuration file as a tree in which every value knows its line.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

pub(super) type Table = BTreeMap<String, Item>;

/// A value and the line (from 1) on which it stands.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Item>),
    Table(Table),
    /// Something that no setting is: a float, a date, an integer beyond 64 bits.
    Other(&'static str),
}

impl Value {
    /// For "must be ..., not ...".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) => "a text",
            Value::Integer(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }
}

/// Reads TOML. `Err` has every syntax error with its line.
pub(super) fn parse(text: &str) -> Result<Table, Vec<(usize, String)>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let lines = Lines { text };
    if errors.is_empty() {
        return Ok(lines.table(document.get_ref()));
    }
    let at = |error: &toml::de::Error| error.span().map_or(1, |span| lines.number(span.start));
    let mut faults: Vec<_> = errors.iter().map(|error| (at(error), error.message().replace('\n', ", "))).collect();
    faults.sort();
    Err(faults)
}

struct Lines<'t> {
    text: &'t str,
}

impl Lines<'_> {
    fn number(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        table.iter().map(|(key, value)| (key.get_ref().to_string(), self.item(key.span().start, value))).collect()
    }

    fn list(&self, list: &DeArray<'_>) -> Vec<Item> {
        list.iter().map(|value| self.item(value.span().start, value)).collect()
    }

    fn item(&self, offset: usize, value: &Spanned<DeValue<'_>>) -> Item {
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or(Value::Other("a number of more than 64 bits"), Value::Integer),
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Float(_) => Value::Other("a fraction"),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(list) => Value::List(self.list(list)),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Item { line: self.number(offset), value }
    }
}
