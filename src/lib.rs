//! Postrider carries committed rows of an outbox table from PostgreSQL's write-ahead log to RabbitMQ.
//!
//! ```text
//! PostgreSQL                                  session task                               publisher task         RabbitMQ
//!  WAL -pgoutput-> XLogData -> Message -> Change -> Event -> Batch ----------------------> window --------------> exchange
//!                     ^                                                                        |  mandatory + confirms
//!  confirmed_flush <--+-- status update <-- Progress <------------ Resolved <------------------+
//! ```
//!
//! The slot is the only checkpoint that the happy path needs. Read [`session`] first, then [`rabbitmq::publisher`] and the window behind it.

pub mod admin;
pub mod cli;
pub mod config;
pub mod confirms;
pub mod dead_letters;
pub mod error;
pub mod event;
pub mod faults;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hold;
pub mod http;
pub mod import_debezium;
pub mod lag;
pub mod logging;
pub mod lsn;
pub mod metrics;
pub mod migrate;
pub mod pgoutput;
pub mod pipeline;
pub mod postgres;
pub mod preflight;
pub mod progress;
pub mod rabbitmq;
pub mod relay;
pub mod session;
pub mod snapshot;
pub mod state_writer;
pub mod status;
pub mod tls;
pub mod traces;
pub mod uninstall;
