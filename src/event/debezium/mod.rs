//! Format `debezium`: what Debezium's PostgreSQL connector sends with JSON converters and schemas off
//! (`docs/formats.md`).

mod arrays;
mod defaults;
// For the one who makes events of outbox rows.
mod expand;
mod form;
mod hstore;
mod numbers;
mod placeholder;
mod real;
mod router;
mod text;
mod times;
mod values;

pub(super) use router::{EventRouter, Routed};
pub(super) use values::Prepared;

#[cfg(test)]
mod tests;
