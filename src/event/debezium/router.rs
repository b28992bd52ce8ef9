//! The Outbox Event Router: what Debezium sends of a row of an outbox.

use std::borrow::Cow;

use regex::Regex;

use super::expand::push_expanded;
use super::text::{push, push_json};
use super::values::Prepared;
use crate::config::{Columns, Debezium, Place};
use crate::event::shape::ColumnShape;
use crate::event::{Poison, PoisonReason, router_regex};
use crate::pgoutput::message::{Tuple, Value};

/// A message of the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::event) struct Routed {
    /// The topic.
    pub(in crate::event) destination: String,
    /// JSON. None where the key is null.
    pub(in crate::event) key: Option<Vec<u8>>,
    /// Names and JSON, in order.
    pub(in crate::event) headers: Vec<(String, Vec<u8>)>,
    /// JSON. None is a tombstone.
    pub(in crate::event) body: Option<Vec<u8>>,
}

/// The router for one outbox table, until its shape changes.
#[derive(Debug)]
pub(in crate::event) struct EventRouter {
    columns: Vec<Prepared>,
    id: Option<usize>,
    key: Option<usize>,
    payload: Option<usize>,
    route_by: Option<usize>,
    /// Of all of a topic, and of what is replaced in it, which is the first match.
    whole: Regex,
    first: Regex,
    replacement: Vec<Piece>,
    additional: Vec<Additional>,
    /// A field of [`Self::additional`] that the table does not have.
    missing: Option<String>,
    route_by_field: String,
    expand: bool,
    tombstone_on_empty: bool,
}

#[derive(Debug)]
struct Additional {
    column: usize,
    place: Place,
    alias: String,
}

/// Of a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Group(usize),
    Named(String),
}

impl EventRouter {
    /// # Errors
    /// The topic's regular expression is none: the configuration has been checked for that.
    pub(in crate::event) fn new(
        columns: &[ColumnShape],
        names: &Columns,
        settings: &Debezium,
    ) -> Result<EventRouter, regex::Error> {
        let router = &settings.router;
        let prepared: Vec<Prepared> = columns.iter().map(|column| Prepared::new(column, settings)).collect();
        let find = |name: &str| prepared.iter().position(|column| column.name == name && column.is_carried());
        let first = Regex::new(&router.topic_regex)?;
        let mut additional = Vec::new();
        let mut missing = None;
        for placement in &router.additional {
            match find(&placement.column) {
                Some(column) => {
                    additional.push(Additional { column, place: placement.place, alias: placement.alias.clone() });
                }
                None if router.ignore_missing => {}
                None => missing = Some(placement.column.clone()),
            }
        }
        Ok(EventRouter {
            id: find(&names.id),
            key: find(&names.aggregateid),
            payload: find(&names.payload),
            route_by: find(&router.route_by_field),
            whole: router_regex(&router.topic_regex)?,
            replacement: pieces(&router.topic_replacement, first.captures_len()),
            first,
            additional,
            missing,
            route_by_field: router.route_by_field.clone(),
            expand: router.expand_json,
            tombstone_on_empty: router.tombstone_on_empty,
            columns: prepared,
        })
    }

    /// # Errors
    /// What Debezium would stop at: the topic is null, or an additional field is not there. And a text that is not of
    /// its column's type, or not UTF-8.
    pub(in crate::event) fn route(&self, row: &Tuple) -> Result<Routed, Poison> {
        if let Some(column) = &self.missing {
            let detail = format!("the outbox has no column `{column}`, which `debezium.router.additional` names");
            return Err(Poison::new(PoisonReason::BadProperty, detail));
        }
        let topic = self.text(row, self.route_by)?.ok_or_else(|| {
            let detail =
                format!("column `{}` of `debezium.router.route_by_field` is NULL or not there", self.route_by_field);
            Poison::new(PoisonReason::BadProperty, detail)
        })?;
        let mut headers = vec![("id".to_owned(), self.json(row, self.id)?)];
        let mut enveloped = Vec::new();
        let mut in_envelope = false;
        for field in &self.additional {
            match field.place {
                Place::Header => headers.push((field.alias.clone(), self.json(row, Some(field.column))?)),
                Place::Envelope => {
                    in_envelope = true;
                    enveloped.push(b',');
                    push_json(&mut enveloped, &field.alias);
                    enveloped.push(b':');
                    enveloped.extend_from_slice(&self.json(row, Some(field.column))?);
                }
                Place::Partition => {}
            }
        }
        let payload = self.payload(row)?;
        let empty = is_empty(&payload);
        let body = if empty && self.tombstone_on_empty {
            None
        } else if in_envelope {
            Some([br#"{"payload":"#.as_slice(), &payload, &enveloped, b"}"].concat())
        } else {
            (payload != b"null").then_some(payload)
        };
        let key = self.json(row, self.key)?;
        let key = (key != b"null").then_some(key);
        Ok(Routed { destination: self.destination(&topic), key, headers, body })
    }

    fn payload(&self, row: &Tuple) -> Result<Vec<u8>, Poison> {
        let payload = self.json(row, self.payload)?;
        if self.expand && payload.first() == Some(&b'"') {
            let mut expanded = Vec::new();
            // As it would be sent, which need not be the column's text: it may be base64, or a default.
            let text: Result<String, _> = serde_json::from_slice(&payload);
            if text.is_ok_and(|text| push_expanded(&mut expanded, &text)) {
                return Ok(expanded);
            }
        }
        Ok(payload)
    }

    fn json(&self, row: &Tuple, column: Option<usize>) -> Result<Vec<u8>, Poison> {
        let mut out = Vec::new();
        match column.and_then(|column| self.columns.get(column)) {
            Some(prepared) => prepared.push(&mut out, self.text(row, column)?.as_deref())?,
            None => push(&mut out, "null"),
        }
        Ok(out)
    }

    fn text<'a>(&self, row: &'a Tuple, column: Option<usize>) -> Result<Option<Cow<'a, str>>, Poison> {
        let Some(Value::Text(bytes)) = column.and_then(|column| row.get(column)) else { return Ok(None) };
        std::str::from_utf8(bytes).map(|text| Some(Cow::Borrowed(text))).map_err(|_| {
            let name = column.and_then(|column| self.columns.get(column)).map_or("", |column| &column.name);
            Poison::new(PoisonReason::NotUtf8, format!("column `{name}` is not UTF-8"))
        })
    }

    /// `RegexRouter`: a topic that does not match as a whole stays as it is; of one that does, the first match is
    /// replaced.
    fn destination(&self, topic: &str) -> String {
        if !self.whole.is_match(topic) {
            return topic.to_owned();
        }
        let Some(found) = self.first.captures(topic) else { return topic.to_owned() };
        let range = found.get(0).map(|all| all.range()).unwrap_or_default();
        let mut destination = topic.get(..range.start).unwrap_or_default().to_owned();
        for piece in &self.replacement {
            destination.push_str(match piece {
                Piece::Literal(text) => text,
                Piece::Group(number) => found.get(*number).map_or("", |group| group.as_str()),
                Piece::Named(name) => found.name(name).map_or("", |group| group.as_str()),
            });
        }
        destination.push_str(topic.get(range.end..).unwrap_or_default());
        destination
    }
}

/// Null, or a string of blanks. JSON is what Jackson's `trim` is asked about: an object is never empty.
fn is_empty(payload: &[u8]) -> bool {
    let blank = |text: String| text.chars().all(|letter| letter <= ' ');
    payload == b"null" || payload.first() == Some(&b'"') && serde_json::from_slice(payload).is_ok_and(blank)
}

/// Java's syntax: `$1`, `${name}`, and `\` before what is meant as it is. `groups`: how many there are, with the
/// whole match.
fn pieces(replacement: &str, groups: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut letters = replacement.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => literal.extend(letters.next()),
            '$' => {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                if letters.next_if_eq(&'{').is_some() {
                    pieces.push(Piece::Named(letters.by_ref().take_while(|letter| *letter != '}').collect()));
                    continue;
                }
                let digit = |letter: char| letter.to_digit(10).and_then(|digit| usize::try_from(digit).ok());
                let Some(mut number) = letters.peek().copied().and_then(digit) else {
                    literal.push('$');
                    continue;
                };
                letters.next();
                // As many digits as there are groups for.
                while let Some(longer) = letters.peek().copied().and_then(digit).map(|digit| number * 10 + digit) {
                    if longer >= groups {
                        break;
                    }
                    number = longer;
                    letters.next();
                }
                pieces.push(Piece::Group(number));
            }
            _ => literal.push(letter),
        }
    }
    pieces.push(Piece::Literal(literal));
    pieces.retain(|piece| *piece != Piece::Literal(String::new()));
    pieces
}
