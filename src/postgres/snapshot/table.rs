//! A table as the stream describes it, and its rows as the stream would bring them.

use bytes::Bytes;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::SnapshotError;
use super::requests::Request;
use crate::config::Config;
use crate::event::shape::TableInfo;
use crate::pgoutput::message::{Column, Relation, ReplicaIdentity, Tuple, Value};
use crate::postgres::catalog;
use crate::postgres::quote::{quote_ident, quote_literal};

/// Bytes of a chunk, about; and rows of one that are fetched in one go, at most.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
const FETCH: usize = 256;
/// Bytes that are fetched in one go, as far as the rows before tell.
const FETCH_BYTES: usize = 512 * 1024;

/// What a chunk needs to know.
#[derive(Clone, Debug)]
pub(super) struct Description {
    pub(super) relation: Relation,
    pub(super) info: TableInfo,
    /// Quoted, with `only` where a table could have children that are tables of their own.
    from: String,
    /// Indexes of the columns of the primary key.
    pub(super) key: Vec<usize>,
    /// Schemas of their types, whose operators compare them.
    key_schemas: Vec<String>,
    pub(super) estimate: Option<i64>,
}

pub(super) async fn describe(
    client: &Client,
    config: &Config,
    request: &Request,
) -> Result<Description, SnapshotError> {
    let source = &config.source;
    let publications = [source.publication.as_str(), source.publication_inserts.as_str()];
    let rows = client
        .query(
            include_str!("../../../sql/queries/snapshot_table.sql"),
            &[&request.schema, &request.table, &&publications[..]],
        )
        .await?;
    let Some(first) = rows.first().filter(|_| super::is_meant(config, &request.schema, &request.table)) else {
        return Err(SnapshotError::NotCaptured { schema: request.schema.clone(), table: request.table.clone() });
    };
    let columns: Vec<Column> = rows
        .iter()
        .map(|row| Column {
            key: row.get("identifies"),
            name: row.get("name"),
            type_oid: row.get("type"),
            type_modifier: row.get("modifier"),
        })
        .collect();
    let replica_identity = match first.get::<_, &str>("identity") {
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        "n" => ReplicaIdentity::Nothing,
        _ => ReplicaIdentity::Default,
    };
    let oid = first.get("oid");
    let types: Vec<u32> = columns.iter().map(|column| column.type_oid).collect();
    let info = catalog::describe(client, oid, &types).await.map_err(SnapshotError::State)?;
    let place = |name: &String| columns.iter().position(|column| column.name == *name);
    // A key that is not published whole is none here.
    let key: Vec<usize> = info.primary_key.iter().map(place).collect::<Option<_>>().unwrap_or_default();
    let schema = |index: &usize| rows.get(*index).map(|row| row.get("type_schema"));
    let only = if first.get::<_, &str>("kind") == "p" { "" } else { "only " };
    let estimate = first.get::<_, f64>("estimate");
    Ok(Description {
        key_schemas: key.iter().filter_map(schema).filter(|schema: &String| schema != "pg_catalog").collect(),
        key,
        from: format!("{only}{}.{}", quote_ident(&request.schema), quote_ident(&request.table)),
        relation: Relation {
            oid,
            namespace: request.schema.clone(),
            name: request.table.clone(),
            replica_identity,
            columns,
        },
        info,
        estimate: whole(estimate),
    })
}

/// An estimate that there is (-1: never counted).
fn whole(estimate: f64) -> Option<i64> {
    (estimate >= 0.0).then(|| format!("{estimate:.0}").parse().ok()).flatten()
}

impl Description {
    /// The same rows come in the same form, from the same key on.
    pub(super) fn fits(&self, other: &Description) -> bool {
        let key = |of: &Description| -> Vec<Option<Column>> {
            of.key.iter().map(|index| of.relation.columns.get(*index).cloned()).collect()
        };
        self.relation.oid == other.relation.oid
            && self.relation.replica_identity == other.relation.replica_identity
            && key(self) == key(other)
    }

    /// Keeps the table as it is until the transaction has ended. Before its snapshot is taken: a table that is truncated or rewritten in
    /// between would look empty.
    pub(super) fn lock(request: &Request) -> String {
        format!("lock table {}.{} in access share mode", quote_ident(&request.schema), quote_ident(&request.table))
    }

    /// Names in statements that compare the key. The catalogue comes first: nobody's operator stands in for a built-in one.
    pub(super) fn search_path(&self) -> String {
        let schemas: Vec<String> = std::iter::once("pg_catalog".to_owned())
            .chain(self.key_schemas.iter().cloned())
            .map(|schema| quote_ident(&schema))
            .collect();
        format!("set local search_path = {}", schemas.join(", "))
    }

    /// All rows that are wanted, or the next of them behind a key.
    pub(super) fn select(&self, condition: Option<&str>, after: Option<&[String]>, limit: Option<usize>) -> String {
        let name = |column: &Column| quote_ident(&column.name);
        let columns: Vec<String> = self.relation.columns.iter().map(name).collect();
        let key: Vec<String> =
            self.key.iter().filter_map(|index| self.relation.columns.get(*index)).map(name).collect();
        let mut conditions = Vec::new();
        if let Some(after) = after {
            let values: Vec<String> = after.iter().map(|value| quote_literal(value)).collect();
            conditions.push(format!("row({}) > row({})", key.join(", "), values.join(", ")));
        }
        // A comment at its end must not take the rest with it.
        conditions.extend(condition.map(|condition| format!("({condition}\n)")));
        let mut select = format!("select {} from {}", columns.join(", "), self.from);
        if !conditions.is_empty() {
            select.push_str(&format!(" where {}", conditions.join(" and ")));
        }
        if !key.is_empty() {
            select.push_str(&format!(" order by {}", key.join(", ")));
        }
        if let Some(limit) = limit {
            select.push_str(&format!(" limit {limit}"));
        }
        select
    }

    /// The values of the primary key.
    pub(super) fn key_of(&self, row: &Tuple) -> Option<Vec<String>> {
        let text = |index: &usize| match row.get(*index) {
            Some(Value::Text(text)) => std::str::from_utf8(text).ok().map(str::to_owned),
            _ => None,
        };
        self.key.iter().map(text).collect()
    }
}

/// Rows and their bytes.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Tuple>,
    bytes: usize,
    /// Of rows that came before.
    average: usize,
}

impl Rows {
    pub(super) fn after(average: usize) -> Rows {
        Rows { average, ..Rows::default() }
    }

    /// Fetches from the cursor `chunk` up to `limit` rows, or fewer where they are large. True: there are no more.
    pub(super) async fn fetch(&mut self, client: &Client, limit: usize) -> Result<bool, SnapshotError> {
        while self.rows.len() < limit && self.bytes < CHUNK_BYTES {
            let fit = FETCH_BYTES / self.average().max(1);
            let count = fit.clamp(1, FETCH).min(limit - self.rows.len());
            let answers = client.simple_query(&format!("fetch forward {count} from chunk")).await?;
            let before = self.rows.len();
            for answer in answers {
                let SimpleQueryMessage::Row(row) = answer else { continue };
                let mut values = Vec::with_capacity(row.len());
                for at in 0..row.len() {
                    values.push(match row.try_get(at)? {
                        Some(text) => {
                            self.bytes += text.len();
                            Value::Text(Bytes::copy_from_slice(text.as_bytes()))
                        }
                        None => Value::Null,
                    });
                }
                self.rows.push(Tuple(values));
            }
            if self.rows.len() - before < count {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Bytes of a row.
    pub(super) fn average(&self) -> usize {
        // The first rows say nothing yet: a table may have large ones.
        const FIRST: usize = 16 * 1024;
        match (self.bytes.checked_div(self.rows.len()), self.average) {
            (Some(average), _) => average,
            (None, 0) => FIRST,
            (None, average) => average,
        }
    }
}
