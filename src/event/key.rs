//! Ordering keys: one, two, or all of a table.

use std::sync::Arc;

use super::Event;

/// The ordering keys of an event besides [`Event::key`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Joins {
    /// None: every row of the outbox, and most changes of tables.
    #[default]
    Nothing,
    /// An update that changes the key of its row: `Event::key` is the new key, this the old one.
    Key(Arc<str>),
    /// A barrier for its table (TRUNCATE): waits for everything of the table that came before, and everything after it waits for it.
    /// `Event::key` is the table's key (see [`table_of`]).
    Table,
}

/// The key of the table that an ordering key belongs to; `None` for those of the outbox.
///
/// A change of a table has a key of the form `\u{1e}schema\u{1e}table\u{1f}<key of the row>`. The table's own key, that of its barriers
/// and of all events of a table without a key, is the part up to and including the `\u{1f}`. Names have at most 63 bytes, so a
/// key that is cut keeps its table.
pub fn table_of(key: &str) -> Option<&str> {
    if !key.starts_with('\u{1e}') {
        return None;
    }
    key.find('\u{1f}').and_then(|end| key.get(..=end))
}

/// All ordering keys of an event with this key and these joins. A barrier has its table's.
pub(crate) fn keys_of<'a>(key: &'a Arc<str>, joins: &'a Joins) -> impl Iterator<Item = &'a Arc<str>> {
    let other = if let Joins::Key(other) = joins { Some(other) } else { None };
    std::iter::once(key).chain(other)
}

impl Joins {
    /// Of an event with these keys.
    pub(crate) fn of(keys: &[Arc<str>]) -> Joins {
        match keys {
            [key, ..] if table_of(key).is_some_and(|table| table.len() == key.len()) => Joins::Table,
            [_, other, ..] => Joins::Key(Arc::clone(other)),
            _ => Joins::Nothing,
        }
    }
}

impl Event {
    /// All its ordering keys.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        keys_of(&self.key, &self.joins)
    }

    /// The key of its table, if it has one.
    pub(crate) fn table(&self) -> Option<&str> {
        table_of(&self.key)
    }

    /// One form for each meaning: what has its table's key is a barrier, however it is called, and what has one key twice has one.
    ///
    /// A table can gain or lose its key while its events are in flight: those that it had without one are barriers for the others.
    pub(crate) fn straighten_joins(&mut self) {
        let table = self.table();
        let is_table = |key: &str| table == Some(key);
        let barrier = match &self.joins {
            Joins::Nothing => is_table(&self.key),
            Joins::Key(other) => is_table(&self.key) || is_table(other),
            Joins::Table => table.is_some(),
        };
        if barrier {
            if let Some(table) = table.filter(|table| **table != *self.key) {
                self.key = table.into();
            }
            self.joins = Joins::Table;
        } else if match &self.joins {
            Joins::Nothing => false,
            Joins::Key(other) => *other == self.key,
            Joins::Table => true,
        } {
            self.joins = Joins::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_told_from_the_outbox_by_its_first_character() {
        assert_eq!(table_of("\u{1e}public\u{1e}orders\u{1f}42"), Some("\u{1e}public\u{1e}orders\u{1f}"));
        assert_eq!(table_of("\u{1e}public\u{1e}orders\u{1f}"), Some("\u{1e}public\u{1e}orders\u{1f}"));
        assert_eq!(table_of("\u{1e}public\u{1e}orders\u{1f}a\u{1f}b"), Some("\u{1e}public\u{1e}orders\u{1f}"));
        for none in ["order\u{1f}42", "", "\u{1f}", "\u{1e}public"] {
            assert_eq!(table_of(none), None, "{none:?}");
        }
    }
}
