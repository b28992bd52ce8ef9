//! PostgreSQL: connections, the replication stream, the slot, the state and the dead letters.

pub mod adoption;
pub mod capture;
pub mod catalog;
pub mod dead_letters;
pub mod debezium;
pub mod dial;
pub mod error;
pub mod halt;
pub mod halts;
pub mod identity;
pub mod quote;
pub mod repair;
pub mod replication;
pub mod slot;
pub mod snapshot;
pub mod sql;
pub mod state;
pub mod timeline;
pub mod tls;
pub mod url;
pub mod witness;
