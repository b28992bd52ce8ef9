//! The outbox table as the server describes it, and how a row of it is read.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::debezium::EventRouter;
use super::{Poison, PoisonReason};
use crate::config::Columns;
use crate::pgoutput::message::{Relation, Tuple, Value};

/// Where the columns are, resolved once per Relation message.
#[derive(Clone, Debug)]
pub struct OutboxTable {
    pub(super) schema: String,
    pub(super) table: String,
    /// [`super::cdc::table_fragment`].
    pub(super) source_fragment: Vec<u8>,
    /// Its rows are sent again: see [`Self::resent`].
    pub(super) resent: bool,
    /// Where rows leave in the format `debezium`.
    pub(super) router: Option<Arc<EventRouter>>,
    id: Column,
    aggregatetype: Column,
    aggregateid: Column,
    kind: Column,
    payload: Column,
    before: Option<Column>,
    version: Option<Column>,
    sequence: Option<Column>,
    headers: Option<Column>,
    occurred_at: Option<Column>,
}

/// Why a table cannot be an outbox. Put right in the configuration or in the table; no row of it is read until then.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxTableError {
    #[error(
        "table `{schema}.{table}` has no column `{column}`: set `outbox.columns.{setting}` to the column that takes its \
         place, or add it to the publication's column list if it has one"
    )]
    MissingColumn { schema: String, table: String, column: String, setting: &'static str },
    #[error(
        "column `{column}` of table `{schema}.{table}` has a type that holds no JSON object (type OID {type_oid}): make it \
         jsonb, or set `outbox.columns.headers` to another column, or to \"\" for none"
    )]
    HeadersType { schema: String, table: String, column: String, type_oid: u32 },
}

/// How a column's text is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnType {
    /// `json`, `jsonb`: valid JSON, by PostgreSQL's word.
    Json,
    /// May be JSON. User-defined types too: a domain has an OID of its own, and is most likely one over text or jsonb.
    Text,
    /// `\x` and hexadecimal digits: the session pins `bytea_output`.
    Bytea,
    Integer,
    /// `2026-11-21 10:15:30.123456+00`: the session pins `TimeZone` and `DateStyle`.
    TimestampTz,
    Timestamp,
    Other,
}

impl ColumnType {
    /// OIDs of built-in types: `pg_type.dat`.
    fn of(type_oid: u32) -> ColumnType {
        /// `FirstNormalObjectId`: types made by users have OIDs from here on.
        const FIRST_USER_DEFINED: u32 = 16_384;
        match type_oid {
            114 | 3802 => ColumnType::Json,
            // text, varchar, bpchar, name
            25 | 1043 | 1042 | 19 | FIRST_USER_DEFINED.. => ColumnType::Text,
            17 => ColumnType::Bytea,
            // int2, int4, int8
            21 | 23 | 20 => ColumnType::Integer,
            1184 => ColumnType::TimestampTz,
            1114 => ColumnType::Timestamp,
            _ => ColumnType::Other,
        }
    }
}

#[derive(Clone, Debug)]
struct Column {
    index: usize,
    name: String,
    kind: ColumnType,
}

/// A value that is not NULL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) column: &'a str,
    pub(super) kind: ColumnType,
    pub(super) text: &'a str,
}

/// A column that is a number in JSON where it is one in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Integer(i64),
    Text(&'a str),
}

/// One row, checked: all text is UTF-8, and what is required is there.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) id: &'a str,
    pub(super) aggregatetype: &'a str,
    pub(super) aggregateid: &'a str,
    pub(super) kind: &'a str,
    pub(super) payload: Option<Field<'a>>,
    pub(super) before: Option<Field<'a>>,
    pub(super) version: Option<Scalar<'a>>,
    pub(super) sequence: Option<Scalar<'a>>,
    pub(super) occurred_at: Option<Cow<'a, str>>,
    pub(super) headers: Option<Field<'a>>,
}

/// What an event is known by, even if its row is unfit: missing parts are empty, bytes that are not UTF-8 are U+FFFD.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) aggregatetype: Cow<'a, str>,
    pub(super) aggregateid: Cow<'a, str>,
    pub(super) kind: Cow<'a, str>,
}

impl OutboxTable {
    /// The same, for rows that a person has sent again: their messages have the header `x-postrider-redelivered`.
    pub fn resent(mut self) -> OutboxTable {
        self.resent = true;
        self
    }

    /// With the router of the format `debezium`.
    pub(super) fn routed(mut self, router: Option<EventRouter>) -> OutboxTable {
        self.router = router.map(Arc::new);
        self
    }

    /// An optional column is used where the table has it. One that the configuration gives a name of its own must be
    /// there, so that a slip of the pen does not silently leave it out; the empty name means that it is not used.
    ///
    /// # Errors
    /// [`OutboxTableError`], which names the table, the column and the setting.
    pub fn new(relation: &Relation, columns: &Columns) -> Result<OutboxTable, OutboxTableError> {
        let usual = Columns::default();
        let find = |name: &str| {
            let index = relation.columns.iter().position(|column| column.name == name)?;
            let kind = ColumnType::of(relation.columns.get(index)?.type_oid);
            Some(Column { index, name: name.to_owned(), kind })
        };
        let required = |name: &str, setting| {
            find(name).ok_or_else(|| OutboxTableError::MissingColumn {
                schema: relation.namespace.clone(),
                table: relation.name.clone(),
                column: name.to_owned(),
                setting,
            })
        };
        let optional = |name: &str, usual: &str, setting| match name {
            "" => Ok(None),
            _ if name == usual => Ok(find(name)),
            _ => required(name, setting).map(Some),
        };
        let headers = optional(&columns.headers, &usual.headers, "headers")?;
        if let Some(column) = headers.as_ref().filter(|column| !column.may_hold_json()) {
            return Err(OutboxTableError::HeadersType {
                schema: relation.namespace.clone(),
                table: relation.name.clone(),
                column: column.name.clone(),
                type_oid: relation.columns.get(column.index).map_or(0, |column| column.type_oid),
            });
        }
        Ok(OutboxTable {
            schema: relation.namespace.clone(),
            table: relation.name.clone(),
            source_fragment: super::cdc::table_fragment(&relation.namespace, &relation.name),
            resent: false,
            router: None,
            id: required(&columns.id, "id")?,
            aggregatetype: required(&columns.aggregatetype, "aggregatetype")?,
            aggregateid: required(&columns.aggregateid, "aggregateid")?,
            kind: required(&columns.kind, "type")?,
            payload: required(&columns.payload, "payload")?,
            before: optional(&columns.before, &usual.before, "before")?,
            version: optional(&columns.version, &usual.version, "version")?,
            sequence: optional(&columns.sequence, &usual.sequence, "sequence")?,
            headers,
            occurred_at: optional(&columns.occurred_at, &usual.occurred_at, "occurred_at")?,
        })
    }

    /// What a message of `postrider.emit` is to be read as: the columns of an outbox that Postrider makes.
    pub(super) fn of_emitted(schema: &str, table: &str) -> OutboxTable {
        let column = |index, name: &str, kind| Column { index, name: name.to_owned(), kind };
        OutboxTable {
            schema: schema.to_owned(),
            table: table.to_owned(),
            source_fragment: super::cdc::table_fragment(schema, table),
            resent: false,
            router: None,
            id: column(0, "id", ColumnType::Text),
            aggregatetype: column(1, "aggregatetype", ColumnType::Text),
            aggregateid: column(2, "aggregateid", ColumnType::Text),
            kind: column(3, "type", ColumnType::Text),
            payload: column(4, "payload", ColumnType::Json),
            before: Some(column(5, "before", ColumnType::Json)),
            version: Some(column(6, "version", ColumnType::Integer)),
            sequence: Some(column(7, "sequence", ColumnType::Integer)),
            headers: Some(column(8, "headers", ColumnType::Json)),
            occurred_at: Some(column(9, "occurred_at", ColumnType::TimestampTz)),
        }
    }

    pub(super) fn identity<'a>(&'a self, row: &'a Tuple) -> Identity<'a> {
        Identity {
            id: self.id.lossy(row),
            aggregatetype: self.aggregatetype.lossy(row),
            aggregateid: self.aggregateid.lossy(row),
            kind: self.kind.lossy(row),
        }
    }

    pub(super) fn read<'a>(&'a self, row: &'a Tuple) -> Result<Row<'a>, Poison> {
        let field = |column: &'a Option<Column>| match column {
            Some(column) => column.field(row),
            None => Ok(None),
        };
        Ok(Row {
            id: self.id.required(row)?,
            aggregatetype: self.aggregatetype.required(row)?,
            aggregateid: self.aggregateid.required(row)?,
            kind: self.kind.required(row)?,
            payload: self.payload.field(row)?,
            before: field(&self.before)?,
            version: field(&self.version)?.map(scalar),
            sequence: field(&self.sequence)?.map(scalar),
            occurred_at: field(&self.occurred_at)?.map(iso8601),
            headers: field(&self.headers)?,
        })
    }
}

impl OutboxTable {
    /// The payload column alone, where the rest of the row can't be read.
    pub(super) fn payload<'a>(&'a self, row: &'a Tuple) -> Result<Option<Field<'a>>, Poison> {
        self.payload.field(row)
    }

    /// The payload column's bytes exactly as PostgreSQL sent them; none if it is NULL or did not come.
    pub(super) fn payload_bytes<'a>(&self, row: &'a Tuple) -> &'a [u8] {
        match row.get(self.payload.index) {
            Some(Value::Text(bytes) | Value::Binary(bytes)) => bytes,
            Some(Value::Null | Value::Unchanged) | None => &[],
        }
    }

    /// A row that [`OutboxTable::read`] refuses, such that it takes it: missing texts are empty, bytes that are not UTF-8 are
    /// U+FFFD. Of payload and before only whether there is one is left: they may be huge, and no body is made of them.
    pub(super) fn repaired(&self, row: &Tuple) -> Tuple {
        let texts = [&self.id, &self.aggregatetype, &self.aggregateid, &self.kind];
        let optional = [&self.version, &self.sequence, &self.headers, &self.occurred_at].into_iter().flatten();
        let present = |column: &&Column| matches!(row.get(column.index), Some(Value::Text(_)));
        let lossy = |column: &Column| (column.index, Value::Text(column.lossy(row).into_owned().into()));
        let data = [Some(&self.payload), self.before.as_ref()].into_iter().flatten();
        let some = |column: &&Column| !matches!(row.get(column.index), Some(Value::Null) | None);
        let set: Vec<(usize, Value)> = (texts.into_iter().map(lossy))
            .chain(optional.filter(present).map(lossy))
            .chain(data.filter(some).map(|column| (column.index, Value::Text(Bytes::new()))))
            .collect();
        // The columns that the row is too short for are NULL.
        let mut values = vec![Value::Null; self.width()];
        for (index, value) in set {
            if let Some(place) = values.get_mut(index) {
                *place = value;
            }
        }
        Tuple(values)
    }

    /// Columns up to the last one that is used.
    fn width(&self) -> usize {
        let required = [&self.id, &self.aggregatetype, &self.aggregateid, &self.kind, &self.payload];
        let optional = [&self.before, &self.version, &self.sequence, &self.headers, &self.occurred_at];
        let indexes = required.into_iter().chain(optional.into_iter().flatten()).map(|column| column.index);
        indexes.max().map_or(0, |last| last + 1)
    }
}

impl Column {
    fn may_hold_json(&self) -> bool {
        matches!(self.kind, ColumnType::Json | ColumnType::Text)
    }

    fn lossy<'a>(&self, row: &'a Tuple) -> Cow<'a, str> {
        match row.get(self.index) {
            Some(Value::Text(bytes)) => String::from_utf8_lossy(bytes),
            _ => Cow::Borrowed(""),
        }
    }

    fn field<'a>(&'a self, row: &'a Tuple) -> Result<Option<Field<'a>>, Poison> {
        let poison = |reason, what: &str| Err(Poison::new(reason, format!("column `{}` {what}", self.name)));
        match row.get(self.index) {
            Some(Value::Null) => Ok(None),
            Some(Value::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(Field { column: &self.name, kind: self.kind, text })),
                Err(_) => poison(PoisonReason::NotUtf8, "is not UTF-8"),
            },
            // Neither occurs in an insert of a session that did not ask for binary values.
            Some(Value::Unchanged) => poison(PoisonReason::BadProperty, "came without its value"),
            Some(Value::Binary(_)) => poison(PoisonReason::BadProperty, "came in binary format"),
            None => poison(PoisonReason::BadProperty, "is beyond the end of the row"),
        }
    }

    fn required<'a>(&'a self, row: &'a Tuple) -> Result<&'a str, Poison> {
        let null = || Poison::new(PoisonReason::BadProperty, format!("column `{}` is null", self.name));
        self.field(row)?.map(|field| field.text).ok_or_else(null)
    }
}

fn scalar(field: Field<'_>) -> Scalar<'_> {
    let integer = (field.kind == ColumnType::Integer).then(|| field.text.parse().ok()).flatten();
    integer.map_or(Scalar::Text(field.text), Scalar::Integer)
}

/// ISO 8601 for the times that have a form in it without further agreement (years 0001 to 9999); anything else, `infinity`
/// and years BC among it, as PostgreSQL prints it.
pub(super) fn iso8601(field: Field<'_>) -> Cow<'_, str> {
    let (local, zone) = match field.kind {
        ColumnType::TimestampTz => (field.text.strip_suffix("+00"), "Z"),
        ColumnType::Timestamp => (Some(field.text), ""),
        _ => (None, ""),
    };
    match local.filter(|local| is_local_time(local)).and_then(|local| local.split_once(' ')) {
        Some((date, time)) => Cow::Owned([date, "T", time, zone].concat()),
        None => Cow::Borrowed(field.text),
    }
}

/// `2026-11-21 10:15:30`, perhaps with `.` and digits.
fn is_local_time(text: &str) -> bool {
    const SHAPE: &[u8] = b"dddd-dd-dd dd:dd:dd";
    let Some((whole, fraction)) = text.as_bytes().split_at_checked(SHAPE.len()) else { return false };
    let fits = |(byte, shape): (&u8, &u8)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == shape };
    let is_fraction = match fraction.split_first() {
        Some((point, digits)) => *point == b'.' && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        None => true,
    };
    whole.iter().zip(SHAPE).all(fits) && is_fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso(kind: ColumnType, text: &str) -> String {
        iso8601(Field { column: "occurred_at", kind, text }).into_owned()
    }

    #[test]
    fn times_are_iso_8601_where_it_has_a_form_for_them() {
        let tz = ColumnType::TimestampTz;
        assert_eq!(iso(tz, "2026-11-21 10:15:30.123456+00"), "2026-11-21T10:15:30.123456Z");
        assert_eq!(iso(tz, "2026-11-21 10:15:30+00"), "2026-11-21T10:15:30Z");
        assert_eq!(iso(ColumnType::Timestamp, "2026-11-21 10:15:30.5"), "2026-11-21T10:15:30.5");
        for as_printed in
            ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "10000-01-01 00:00:00+00", "2026-11-21 10:15:30+01"]
        {
            assert_eq!(iso(tz, as_printed), as_printed);
        }
        for as_printed in ["infinity", "0044-03-15 12:00:00 BC", "2026-11-21 10:15:30.", ""] {
            assert_eq!(iso(ColumnType::Timestamp, as_printed), as_printed);
        }
        assert_eq!(iso(ColumnType::Other, "2026-11-21"), "2026-11-21");
        assert_eq!(iso(ColumnType::Integer, "1795256130"), "1795256130");
    }
}
