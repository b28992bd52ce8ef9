//! The properties of a file while they are mapped: what is taken is accounted for, and what is left over at the end is not understood.

use std::collections::BTreeMap;
use std::fmt;

use super::properties::{self, Property};

/// Something to say about a property, or about one that is not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `None`: it is not in the file.
    pub line: Option<usize>,
    /// Without what may be secret.
    pub property: String,
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Note { line, property, text } = self;
        match line {
            Some(line) => write!(f, "line {line}: {property}: {text}"),
            None => write!(f, "{property}: {text}"),
        }
    }
}

/// A property that has been taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub line: usize,
    pub name: String,
    pub value: String,
}

impl Item {
    pub(super) fn is(&self, value: &str) -> bool {
        self.value.trim().eq_ignore_ascii_case(value)
    }

    /// The elements of a list with commas.
    pub(super) fn elements(&self) -> Vec<&str> {
        self.value.split(',').map(str::trim).filter(|element| !element.is_empty()).collect()
    }
}

#[derive(Debug, Default)]
pub(super) struct Given {
    left: BTreeMap<String, Item>,
    pub refused: Vec<Note>,
    pub dropped: Vec<Note>,
    pub warnings: Vec<Note>,
}

impl Given {
    pub(super) fn new(text: &str) -> Given {
        let mut given = Given::default();
        for Property { line, name, value } in properties::parse(text) {
            let item = Item { line, name: name.clone(), value };
            if let Some(earlier) = given.left.insert(canonical(&name), item) {
                given.dropped(&earlier, format!("line {line} sets it again, and Java takes the last"));
            }
        }
        given
    }

    /// Without the properties that are not set, or set to nothing. A `$$` is a `$`, and what an expression decides is refused.
    pub(super) fn take(&mut self, name: &str) -> Option<Item> {
        let item = self.take_raw(name)?;
        match expanded(&item.value) {
            Ok(value) => Some(Item { value, ..item }).filter(|item| !item.value.trim().is_empty()),
            Err(variable) => {
                self.refused(&item, format!("its value comes from {variable}: write it into a copy of the file, because it decides what is sent"));
                None
            }
        }
    }

    /// As it is in the file.
    pub(super) fn take_raw(&mut self, name: &str) -> Option<Item> {
        self.left.remove(name)
    }

    /// Everything whose name begins so, in the order of the names.
    pub(super) fn take_all(&mut self, prefix: &str) -> Vec<Item> {
        let names: Vec<String> = self
            .left
            .range(prefix.to_owned()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(prefix))
            .cloned()
            .collect();
        names.iter().filter_map(|name| self.left.remove(name)).collect()
    }

    pub(super) fn refused(&mut self, item: &Item, text: impl Into<String>) {
        self.refused.push(note(item, text));
    }

    pub(super) fn dropped(&mut self, item: &Item, text: impl Into<String>) {
        self.dropped.push(note(item, text));
    }

    pub(super) fn warn(&mut self, item: &Item, text: impl Into<String>) {
        self.warnings.push(note(item, text));
    }

    /// About a property that is not in the file.
    pub(super) fn refused_default(&mut self, property: &str, text: impl Into<String>) {
        self.refused.push(Note { line: None, property: property.to_owned(), text: text.into() });
    }

    pub(super) fn warn_default(&mut self, property: &str, text: impl Into<String>) {
        self.warnings.push(Note { line: None, property: property.to_owned(), text: text.into() });
    }

    /// `true` or `false`; anything else is refused.
    pub(super) fn take_flag(&mut self, name: &str) -> Option<(bool, Item)> {
        let item = self.take(name)?;
        match item.value.trim() {
            value if value.eq_ignore_ascii_case("true") => Some((true, item)),
            value if value.eq_ignore_ascii_case("false") => Some((false, item)),
            _ => {
                self.refused(&item, "is neither true nor false");
                None
            }
        }
    }

    /// One of these, in lower case; anything else is refused with the reason.
    pub(super) fn take_choice(&mut self, name: &str, choices: &[&str], reason: &str) -> Option<Item> {
        let item = self.take(name)?;
        let value = item.value.trim().to_ascii_lowercase();
        if choices.contains(&value.as_str()) {
            return Some(Item { value, ..item });
        }
        self.refused(&item, format!("{reason} (there are {})", choices.join(", ")));
        None
    }

    /// Refuses the property unless it has its default, in which it has nothing to say.
    pub(super) fn only_default(&mut self, name: &str, default: &str, reason: &str) {
        if let Some(item) = self.take(name)
            && !item.is(default)
        {
            self.refused(&item, reason);
        }
    }

    /// What nobody has asked for.
    pub(super) fn rest(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.left).into_values().collect()
    }
}

pub(super) fn note(item: &Item, text: impl Into<String>) -> Note {
    Note { line: Some(item.line), property: shown(&item.name), text: text.into() }
}

/// A name without the salt that may be in it, on one line.
fn shown(name: &str) -> String {
    const SALT: &str = ".with.salt.";
    let name = match name.find(SALT) {
        Some(at) => format!("{}{SALT}...", name.get(..at).unwrap_or_default()),
        None => name.to_owned(),
    };
    name.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Debezium has more than one name for the same: `quarkus.debezium.` is `debezium.source.`, and there the transforms may be too.
fn canonical(name: &str) -> String {
    let name = match name.strip_prefix("quarkus.debezium.") {
        Some(rest) => format!("debezium.source.{rest}"),
        None => name.to_owned(),
    };
    for chain in ["transforms", "predicates"] {
        if let Some(rest) = name.strip_prefix("debezium.source.").filter(|rest| rest.starts_with(chain)) {
            return format!("debezium.{rest}");
        }
    }
    name
}

/// A value with `$$` as `$`, or the variable that decides it. `${routedByValue}` is the outbox router's own, also where it is not escaped.
fn expanded(value: &str) -> Result<String, String> {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
        } else if let Some((name, _)) = rest.strip_prefix('{').and_then(|inner| inner.split_once('}'))
            && name != "routedByValue"
        {
            return Err(format!("${{{}}}", name.split(':').next().unwrap_or(name)));
        }
        text.push('$');
    }
    text.push_str(rest);
    Ok(text)
}

/// The variable in a value, for a comment.
pub(super) fn variable(value: &str) -> Option<String> {
    expanded(value).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_dollar_is_a_dollar_and_a_variable_is_named() {
        assert_eq!(expanded("outbox.event.$${routedByValue}").unwrap(), "outbox.event.${routedByValue}");
        assert_eq!(expanded("outbox.event.${routedByValue}").unwrap(), "outbox.event.${routedByValue}");
        assert_eq!(expanded("a$b$").unwrap(), "a$b$");
        assert_eq!(expanded("x${DB_HOST:localhost}").unwrap_err(), "${DB_HOST}");
    }

    #[test]
    fn a_salt_is_not_shown() {
        assert_eq!(
            shown("column.mask.hash.v2.SHA-256.with.salt.CzQMA0cB5K"),
            "column.mask.hash.v2.SHA-256.with.salt...."
        );
    }
}
