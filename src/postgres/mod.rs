//! PostgreSQL: connections, the replication stream, the slot, the state and the dead letters.

pub mod dead_letters;
pub mod dial;
pub mod error;
pub mod quote;
pub mod replication;
pub mod slot;
pub mod sql;
pub mod state;
pub mod tls;
pub mod url;
