//! A table that is captured from the WAL: its columns, its keys, and what may leave of a row.

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::change::RowChange;
use super::debezium;
use super::route::{Pattern, Router, Rule};
use super::shape::{self, ColumnShape, TableInfo};
use super::values::{self, push_json};
use super::{Poison, PoisonReason, push_hex};
use crate::config::{ColumnRule, Debezium, Redaction};
use crate::pgoutput::message::{OldTuple, Relation, ReplicaIdentity, Tuple, Value};
use crate::snapshot::{RowKey, Touch};

/// Before the names of a table's ordering keys; no key of an outbox row begins so, in any sane database.
const TABLE: char = '\u{1e}';
/// Between the parts of an ordering key.
const PART: char = '\u{1f}';

/// What is the same for all rows of a table, until its shape changes.
#[derive(Debug)]
pub struct CapturedTable {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) oid: u32,
    columns: Vec<Captured>,
    /// Indexes of the columns that order its rows: the primary key, or the columns of the replica identity; none: the table.
    order: Vec<usize>,
    /// Indexes of the columns of the message key, as Debezium chooses them.
    message_key: Vec<usize>,
    /// The ordering key of the whole table.
    pub(super) table_key: Arc<str>,
    pub(super) rule: Arc<Rule>,
    /// Names in its rule of `[[columns]]` that none of its columns has.
    nameless: Vec<String>,
    /// Where Debezium would send it.
    pub(super) topic: String,
    /// [`super::cdc::table_fragment`].
    pub(super) source_fragment: Vec<u8>,
}

#[derive(Debug)]
struct Captured {
    shape: ColumnShape,
    treatment: Option<Redaction>,
    debezium: debezium::Prepared,
}

/// One value of an image of a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell<'a> {
    /// The image does not have the column: it is outside the replica identity.
    Missing,
    Null,
    /// A TOASTed value that the update left as it was.
    Unchanged,
    Text(&'a [u8]),
}

/// The values of a row before or after a change.
#[derive(Clone, Debug)]
pub(super) struct Image<'a>(Vec<Cell<'a>>);

/// How texts that are not UTF-8 are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strictness {
    /// As an error.
    Strict,
    /// With U+FFFD: for what remains of a poison.
    Lossy,
}

/// What becomes of the columns of tables.
#[derive(Debug)]
pub struct ColumnRules {
    rules: Vec<(Pattern, Compiled)>,
    salt: Vec<u8>,
}

#[derive(Debug)]
struct Compiled {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    redact: Vec<(Pattern, Redaction)>,
}

impl ColumnRules {
    /// `salt` goes before each value whose SHA-256 is taken.
    pub fn new(rules: &[ColumnRule], salt: &[u8]) -> ColumnRules {
        let patterns = |names: &[String]| names.iter().map(|name| Pattern::new(name)).collect();
        let compile = |rule: &ColumnRule| {
            let redact = rule.redact.iter().map(|(name, redaction)| (Pattern::new(name), *redaction)).collect();
            (
                Pattern::new(&rule.table),
                Compiled { include: patterns(&rule.include), exclude: patterns(&rule.exclude), redact },
            )
        };
        ColumnRules { rules: rules.iter().map(compile).collect(), salt: salt.to_vec() }
    }

    /// The names, not the patterns, of the table's rule that none of its columns has.
    fn nameless(&self, table: &str, columns: &[Captured]) -> Vec<String> {
        let Some((_, rule)) = self.rules.iter().find(|(pattern, _)| pattern.matches(table)) else { return Vec::new() };
        let patterns = rule.include.iter().chain(&rule.exclude).chain(rule.redact.iter().map(|(pattern, _)| pattern));
        let has = |name: &String| columns.iter().any(|column| column.shape.name == *name);
        patterns.filter_map(Pattern::exact).filter(|name| !has(name)).cloned().collect()
    }

    /// Without one a digest of a short value is found by trying.
    fn has_salt(&self) -> bool {
        !self.salt.is_empty()
    }

    fn of(&self, table: &str, column: &str) -> Option<Redaction> {
        let (_, rule) = self.rules.iter().find(|(pattern, _)| pattern.matches(table))?;
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(column));
        if any(&rule.exclude) || !(rule.include.is_empty() || any(&rule.include)) {
            return Some(Redaction::Drop);
        }
        rule.redact.iter().find(|(pattern, _)| pattern.matches(column)).map(|(_, redaction)| *redaction)
    }

    pub(super) fn sha256(&self, value: &[u8]) -> String {
        let digest = Sha256::new().chain_update(&self.salt).chain_update(value).finalize();
        let mut text = String::with_capacity(2 * digest.len());
        push_hex(&mut text, &digest);
        text
    }
}

impl CapturedTable {
    pub fn new(
        relation: &Relation,
        info: &TableInfo,
        source: &str,
        rules: &ColumnRules,
        router: &Router,
        settings: &Debezium,
    ) -> CapturedTable {
        let name = format!("{}.{}", relation.namespace, relation.name);
        let columns: Vec<Captured> = shape::columns(relation, info)
            .into_iter()
            .map(|shape| Captured {
                treatment: rules.of(&name, &shape.name),
                debezium: debezium::Prepared::new(&shape, settings),
                shape,
            })
            .collect();
        let index = |name: &String| columns.iter().position(|column| column.shape.name == *name);
        let all = |names: &[String]| names.iter().map(index).collect::<Option<Vec<_>>>().unwrap_or_default();
        let identity: Vec<usize> = match relation.replica_identity {
            // Every column is flagged then.
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => Vec::new(),
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                columns.iter().enumerate().filter(|(_, column)| column.shape.identity).map(|(index, _)| index).collect()
            }
        };
        let primary = all(&info.primary_key);
        // With an index as the identity an update or delete brings its columns and no others: the primary key orders
        // only where they cover it.
        let covered = match relation.replica_identity {
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => true,
            _ => primary.iter().all(|index| identity.contains(index)),
        };
        let mut order = if !primary.is_empty() && covered { primary.clone() } else { identity.clone() };
        let redacted = |index: &usize| columns.get(*index).is_some_and(|column| column.treatment.is_some());
        if order.iter().any(redacted) && !rules.has_salt() {
            order.clear();
        }
        let message_key = [primary, identity, all(&info.unique_index)].into_iter().find(|key| !key.is_empty());
        CapturedTable {
            nameless: rules.nameless(&name, &columns),
            schema: relation.namespace.clone(),
            table: relation.name.clone(),
            oid: relation.oid,
            order,
            message_key: message_key.unwrap_or_default(),
            table_key: format!("{TABLE}{}{TABLE}{}{PART}", relation.namespace, relation.name).into(),
            rule: Arc::clone(router.choose_table(&name)),
            topic: format!("{source}.{name}"),
            source_fragment: super::cdc::table_fragment(&relation.namespace, &relation.name),
            columns,
        }
    }

    /// Schema and table.
    pub fn name(&self) -> (&str, &str) {
        (&self.schema, &self.table)
    }

    /// Names in its rule of `[[columns]]` that none of its columns has: what they were meant to keep back may leave under another.
    pub fn nameless(&self) -> &[String] {
        &self.nameless
    }

    pub(super) fn has_message_key(&self) -> bool {
        !self.message_key.is_empty()
    }

    /// The row after an insert or update. What an update left as it was in the TOAST table is taken from the row before, where the
    /// replica identity gives it.
    pub(super) fn after<'a>(&self, new: &'a Tuple, old: Option<&'a OldTuple>) -> Image<'a> {
        let full = match old {
            Some(OldTuple::Full(tuple)) => Some((tuple, true)),
            Some(OldTuple::Key(tuple)) => Some((tuple, false)),
            _ => None,
        };
        let cell = |(index, column): (usize, &Captured)| match Cell::of(new.get(index)) {
            Cell::Unchanged => match full {
                Some((tuple, all)) if all || column.shape.identity => match column.old(tuple.get(index)) {
                    Cell::Missing => Cell::Unchanged,
                    cell => cell,
                },
                _ => Cell::Unchanged,
            },
            cell => cell,
        };
        Image(self.columns.iter().enumerate().map(cell).collect())
    }

    /// The row before an update or delete, as far as the replica identity gives it.
    pub(super) fn before<'a>(&self, old: &'a OldTuple) -> Option<Image<'a>> {
        let cells = |tuple: &'a Tuple, all: bool| {
            let cell = |(index, column): (usize, &Captured)| {
                if all || column.shape.identity { column.old(tuple.get(index)) } else { Cell::Missing }
            };
            Image(self.columns.iter().enumerate().map(cell).collect())
        };
        match old {
            OldTuple::None => None,
            OldTuple::Key(tuple) => Some(cells(tuple, false)),
            OldTuple::Full(tuple) => Some(cells(tuple, true)),
        }
    }

    /// What orders the row among those of its table, and whether it is all of it: a table without a key is ordered as a whole.
    ///
    /// It is kept with dead letters: of a column that is redacted there is a digest in it. Without a salt there is none, and the
    /// table is ordered as a whole.
    pub(super) fn order_key(&self, image: &Image<'_>, rules: &ColumnRules) -> Arc<str> {
        /// As of the outbox's keys.
        const MAX_KEY: usize = 1_024;
        if self.order.is_empty() {
            return Arc::clone(&self.table_key);
        }
        let mut key = self.table_key.to_string();
        key.push_str(&self.key_text(image, rules, &self.order, PART));
        super::outbox::cut(&key, MAX_KEY).into()
    }

    /// Its rows can be told from each other.
    pub fn has_order(&self) -> bool {
        !self.order.is_empty()
    }

    /// What the rows of a snapshot are told apart by: the columns that order them, or without those all. `None`: the change does not say.
    pub fn row_key(&self, row: &Tuple) -> Option<RowKey> {
        self.row_key_of(&self.after(row, None))
    }

    /// What a change did to the rows of a snapshot.
    pub(crate) fn touches(&self, change: &RowChange<'_>) -> Vec<Touch> {
        let touch = |image: Image<'_>| self.row_key_of(&image).map_or(Touch::Unknown, Touch::Row);
        let old = |old| self.before(old).map(touch);
        match change {
            RowChange::Read(_) => Vec::new(),
            RowChange::Truncate => vec![Touch::Every],
            // A row without a key that has come is not in a snapshot that did not see it.
            RowChange::Insert(_) if !self.has_order() => Vec::new(),
            RowChange::Insert(new) => vec![touch(self.after(new, None))],
            RowChange::Update { old: before, new } => {
                let new = self.has_order().then(|| touch(self.after(new, Some(before))));
                old(before).into_iter().chain(new).collect()
            }
            RowChange::Delete(before) => old(before).into_iter().collect(),
        }
    }

    fn row_key_of(&self, image: &Image<'_>) -> Option<RowKey> {
        let mut key = Vec::new();
        let mut push = |cell: Option<&Cell<'_>>| {
            match cell? {
                Cell::Missing | Cell::Unchanged => return None,
                Cell::Null => key.push(0),
                Cell::Text(bytes) => {
                    key.push(1);
                    key.extend_from_slice(&bytes.len().to_be_bytes());
                    key.extend_from_slice(bytes);
                }
            }
            Some(())
        };
        if self.has_order() {
            self.order.iter().try_for_each(|index| push(image.0.get(*index)))?;
        } else {
            image.0.iter().try_for_each(|cell| push(Some(cell)))?;
        }
        Some(key.into())
    }

    /// The values of the message key, for routing keys.
    pub(super) fn key_values(&self, image: &Image<'_>, rules: &ColumnRules) -> String {
        self.key_text(image, rules, &self.message_key, ':')
    }

    fn key_text(&self, image: &Image<'_>, rules: &ColumnRules, indexes: &[usize], separator: char) -> String {
        let mut key = String::new();
        for (at, index) in indexes.iter().enumerate() {
            if at > 0 {
                key.push(separator);
            }
            let Some(Cell::Text(bytes)) = image.0.get(*index) else { continue };
            match self.columns.get(*index).and_then(|column| column.treatment) {
                None => key.push_str(&String::from_utf8_lossy(bytes)),
                Some(_) if rules.has_salt() => key.push_str(&rules.sha256(bytes)),
                Some(_) => {}
            }
        }
        key
    }

    /// Whether two images differ in what orders their rows.
    pub(super) fn moves(&self, before: &Image<'_>, after: &Image<'_>) -> bool {
        self.differ(&self.order, before, after)
    }

    /// Whether Debezium would take two images for those of different rows: where the image before lacks a column of the key it has
    /// the fallback of its type there.
    pub(super) fn changes_key(&self, before: &Image<'_>, after: &Image<'_>, rules: &ColumnRules) -> bool {
        let key = |image: &Image<'_>| {
            let mut key = Vec::new();
            self.push_message_key(&mut key, image, rules).map(|()| key)
        };
        matches!((key(before), key(after)), (Ok(before), Ok(after)) if before != after)
    }

    fn differ(&self, indexes: &[usize], before: &Image<'_>, after: &Image<'_>) -> bool {
        indexes.iter().any(|index| match (before.0.get(*index), after.0.get(*index)) {
            (Some(Cell::Text(before)), Some(Cell::Text(after))) => before != after,
            (Some(Cell::Null), Some(Cell::Null)) => false,
            // Not in the image before: then it did not change.
            (Some(Cell::Missing | Cell::Unchanged) | None, _) | (_, Some(Cell::Missing | Cell::Unchanged) | None) => {
                false
            }
            _ => true,
        })
    }

    /// Appends an image in the format `cdc`. Names of the columns that are left out because they did not change go to `unchanged`.
    pub(super) fn push_cdc<'t>(
        &'t self,
        out: &mut Vec<u8>,
        image: &Image<'_>,
        rules: &ColumnRules,
        strictness: Strictness,
        unchanged: &mut Vec<&'t str>,
    ) -> Result<(), Poison> {
        out.push(b'{');
        let mut first = true;
        for (column, cell) in self.columns.iter().zip(&image.0) {
            if column.treatment == Some(Redaction::Drop) {
                continue;
            }
            let text = match cell {
                Cell::Missing => continue,
                Cell::Unchanged => {
                    unchanged.push(&column.shape.name);
                    continue;
                }
                Cell::Null => None,
                Cell::Text(bytes) => Some(*bytes),
            };
            column.push_name(out, &mut first);
            match (text, column.treatment) {
                (None, _) | (_, Some(Redaction::Null)) => out.extend_from_slice(b"null"),
                (Some(_), Some(Redaction::Mask)) => push_json(out, MASK),
                (Some(bytes), Some(Redaction::Sha256 | Redaction::Drop)) => push_json(out, &rules.sha256(bytes)),
                (Some(bytes), None) => {
                    let text = read(&column.shape.name, bytes, strictness)?;
                    values::push(out, &column.shape.name, &column.shape.shape, &text)?;
                }
            }
        }
        out.push(b'}');
        Ok(())
    }

    /// Appends an image as Debezium shows it.
    pub(super) fn push_debezium(
        &self,
        out: &mut Vec<u8>,
        image: &Image<'_>,
        rules: &ColumnRules,
        strictness: Strictness,
    ) -> Result<(), Poison> {
        self.push_debezium_columns(out, image, rules, strictness, 0..self.columns.len())
    }

    /// Appends the message key as Debezium shows it: an object of the columns of the key.
    pub(super) fn push_message_key(
        &self,
        out: &mut Vec<u8>,
        image: &Image<'_>,
        rules: &ColumnRules,
    ) -> Result<(), Poison> {
        // Debezium's key has the columns in the order of the table.
        let mut indexes = self.message_key.clone();
        indexes.sort_unstable();
        self.push_debezium_columns(out, image, rules, Strictness::Lossy, indexes)
    }

    fn push_debezium_columns(
        &self,
        out: &mut Vec<u8>,
        image: &Image<'_>,
        rules: &ColumnRules,
        strictness: Strictness,
        indexes: impl IntoIterator<Item = usize>,
    ) -> Result<(), Poison> {
        out.push(b'{');
        let mut first = true;
        for index in indexes {
            let (Some(column), Some(cell)) = (self.columns.get(index), image.0.get(index)) else { continue };
            if column.treatment == Some(Redaction::Drop) || !column.debezium.is_carried() {
                continue;
            }
            column.push_name(out, &mut first);
            match (cell, column.treatment) {
                (_, Some(Redaction::Null)) => out.extend_from_slice(b"null"),
                (Cell::Text(_), Some(Redaction::Mask)) => push_json(out, MASK),
                (Cell::Text(bytes), Some(_)) => push_json(out, &rules.sha256(bytes)),
                (Cell::Text(bytes), None) => {
                    let text = read(&column.shape.name, bytes, strictness)?;
                    column.debezium.push(out, Some(&text))?;
                }
                (Cell::Unchanged, _) => column.debezium.push_unavailable(out),
                (Cell::Null | Cell::Missing, Some(_)) => out.extend_from_slice(b"null"),
                (Cell::Null | Cell::Missing, None) => column.debezium.push(out, None)?,
            }
        }
        out.push(b'}');
        Ok(())
    }
}

/// What a masked value shows.
const MASK: &str = "****";

impl Captured {
    /// A value of a row before. pgoutput writes the replica identity of a partitioned table over the old rows of its partitions: where theirs
    /// is another, it has null for what the WAL does not have.
    fn old<'a>(&self, value: Option<&'a Value>) -> Cell<'a> {
        match Cell::of(value) {
            Cell::Null if self.shape.not_null => Cell::Missing,
            cell => cell,
        }
    }

    fn push_name(&self, out: &mut Vec<u8>, first: &mut bool) {
        if !std::mem::take(first) {
            out.push(b',');
        }
        push_json(out, &self.shape.name);
        out.push(b':');
    }
}

impl<'a> Cell<'a> {
    fn of(value: Option<&'a Value>) -> Cell<'a> {
        match value {
            Some(Value::Text(bytes) | Value::Binary(bytes)) => Cell::Text(bytes),
            Some(Value::Unchanged) => Cell::Unchanged,
            Some(Value::Null) => Cell::Null,
            None => Cell::Missing,
        }
    }
}

fn read<'a>(column: &str, bytes: &'a [u8], strictness: Strictness) -> Result<Cow<'a, str>, Poison> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Cow::Borrowed(text)),
        Err(_) if strictness == Strictness::Lossy => Ok(String::from_utf8_lossy(bytes)),
        Err(_) => Err(Poison::new(PoisonReason::NotUtf8, format!("column `{column}` is not UTF-8"))),
    }
}
