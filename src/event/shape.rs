//! What a table looks like: what the stream says of it (Relation) joined with what only the catalogue knows.

use std::collections::HashMap;

use crate::pgoutput::message::{Column, Relation};

/// What the catalogue knows of a table, at the time when it was asked: after a change of the schema that is later than what the
/// stream is at. So it is joined by name, and nothing of it decides whether a row can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableInfo {
    /// In the order of the key.
    pub primary_key: Vec<String>,
    /// Columns of the first unique index, by name, that is neither partial nor on expressions; for tables without a primary key.
    pub unique_index: Vec<String>,
    pub columns: HashMap<String, ColumnInfo>,
    /// By OID: the types of the columns, and those that they are made of.
    pub types: HashMap<u32, TypeInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnInfo {
    pub not_null: bool,
    /// `pg_get_expr` of the default; none of a generated column.
    pub default: Option<String>,
}

/// A row of `pg_type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    pub schema: String,
    pub name: String,
    pub kind: CatalogKind,
    /// Between the elements of an array of it: a comma for all types but `box`.
    pub delimiter: char,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogKind {
    Base,
    Array { element: u32 },
    Domain { base: u32, modifier: i32 },
    Enum,
    Composite,
    Range,
    Multirange,
}

/// A column as its values are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnShape {
    pub name: String,
    pub shape: TypeShape,
    pub not_null: bool,
    /// As in [`ColumnInfo::default`].
    pub default: Option<String>,
    /// Part of the replica identity.
    pub identity: bool,
}

/// A type without its domains: a domain's values are those of the type under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeShape {
    /// Of a type that is built in it says everything (`pg_type.dat`).
    pub oid: u32,
    /// `atttypmod`; -1 for none.
    pub modifier: i32,
    /// `typname`, as in `numeric`, `hstore`; empty if the catalogue does not have it any more.
    pub name: String,
    pub kind: TypeKind,
    /// It was reached through a domain. Debezium knows no default of such a column, and its elements only as bytes.
    pub domain: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeKind {
    Base,
    Enum,
    Composite,
    Range,
    Multirange,
    /// The elements' delimiter in the text form, and their type.
    Array(char, Box<TypeShape>),
}

/// The columns of a relation, in the order of its values.
pub fn columns(relation: &Relation, info: &TableInfo) -> Vec<ColumnShape> {
    let shape = |column: &Column| {
        let known = info.columns.get(&column.name).cloned().unwrap_or_default();
        ColumnShape {
            name: column.name.clone(),
            shape: TypeShape::of(column.type_oid, column.type_modifier, info),
            not_null: known.not_null,
            default: known.default,
            identity: column.key,
        }
    };
    relation.columns.iter().map(shape).collect()
}

impl TypeShape {
    /// `modifier` is the column's; a domain's own counts where the column has none.
    pub fn of(oid: u32, modifier: i32, info: &TableInfo) -> TypeShape {
        /// Domains over domains, and arrays of them; the catalogue has no cycles, but it was not written by us.
        const DEEPEST: usize = 64;
        let (mut oid, mut modifier, mut domain) = (oid, modifier, false);
        for _ in 0..DEEPEST {
            match info.types.get(&oid).map(|found| found.kind) {
                Some(CatalogKind::Domain { base, modifier: own }) => {
                    oid = base;
                    domain = true;
                    if modifier < 0 {
                        modifier = own;
                    }
                }
                _ => break,
            }
        }
        let found = info.types.get(&oid);
        let kind = match found.map(|found| found.kind) {
            Some(CatalogKind::Array { element }) if element != oid => {
                let delimiter = info.types.get(&element).map_or(',', |element| element.delimiter);
                // An array's modifier is that of its elements.
                TypeKind::Array(delimiter, Box::new(TypeShape::of(element, modifier, info)))
            }
            Some(CatalogKind::Enum) => TypeKind::Enum,
            Some(CatalogKind::Composite) => TypeKind::Composite,
            Some(CatalogKind::Range) => TypeKind::Range,
            Some(CatalogKind::Multirange) => TypeKind::Multirange,
            _ => TypeKind::Base,
        };
        TypeShape { oid, modifier, name: found.map(|found| found.name.clone()).unwrap_or_default(), kind, domain }
    }
}
