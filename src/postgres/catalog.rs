//! What only the catalogue knows of a captured table.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::event::shape::{CatalogKind, ColumnInfo, TableInfo, TypeInfo};
use crate::postgres::state::StateError;

/// Looks a table up by its OID, and the types that its columns have in the stream (`type_oids`), which may be others by now.
///
/// What is not there any more is left out: a table that was dropped since has an empty description.
pub async fn describe(sql: &Client, oid: u32, type_oids: &[u32]) -> Result<TableInfo, StateError> {
    const TABLE: &str = include_str!("../../sql/queries/describe_table.sql");
    const TYPES: &str = include_str!("../../sql/queries/describe_types.sql");
    const DOING: &str = "look up what a captured table is made of";
    let columns = sql.query_typed(TABLE, &[(&oid, Type::OID)]).await.map_err(StateError::during(DOING))?;
    let types = sql.query_typed(TYPES, &[(&type_oids, Type::OID_ARRAY)]).await.map_err(StateError::during(DOING))?;
    Ok(TableInfo {
        primary_key: placed(&columns, "key_place"),
        unique_index: placed(&columns, "unique_place"),
        columns: columns.iter().map(column).collect(),
        types: types.iter().map(described).collect(),
    })
}

/// The names of the columns that have a place in a key, in its order.
fn placed(columns: &[Row], place: &str) -> Vec<String> {
    let mut placed: Vec<(i32, String)> =
        columns.iter().filter_map(|row| Some((row.get::<_, Option<i32>>(place)?, row.get("name")))).collect();
    placed.sort();
    placed.into_iter().map(|(_, name)| name).collect()
}

fn column(row: &Row) -> (String, ColumnInfo) {
    (row.get("name"), ColumnInfo { not_null: row.get("not_null"), default: row.get("default_value") })
}

fn described(row: &Row) -> (u32, TypeInfo) {
    let kind = match (row.get::<_, Option<u32>>("base"), row.get::<_, Option<u32>>("element"), row.get("type")) {
        (Some(base), _, _) => CatalogKind::Domain { base, modifier: row.get("modifier") },
        (None, Some(element), _) => CatalogKind::Array { element },
        (None, None, "e") => CatalogKind::Enum,
        (None, None, "c") => CatalogKind::Composite,
        (None, None, "r") => CatalogKind::Range,
        (None, None, "m") => CatalogKind::Multirange,
        (None, None, _) => CatalogKind::Base,
    };
    let delimiter = row.get::<_, &str>("delimiter").chars().next().unwrap_or(',');
    (row.get("oid"), TypeInfo { schema: row.get("schema"), name: row.get("name"), kind, delimiter })
}
