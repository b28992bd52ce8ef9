//! Integration tests against real servers: those of DATABASE_URL, AMQP_URL and POSTRIDER_TEST_MANAGEMENT_URL, or a pair
//! started through testcontainers.

// `cfg(test)` is what tells clippy that these modules may unwrap and index.
#[cfg(test)]
mod broker;
#[cfg(test)]
mod capture;
#[cfg(test)]
mod catalog;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod check;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod command;
#[cfg(test)]
mod consumer_lag;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damaged;
#[cfg(test)]
mod dead_letter_queues;
#[cfg(test)]
mod debezium;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod dlq;
#[cfg(test)]
mod dlq_queue;
#[cfg(test)]
mod emit;
#[cfg(test)]
mod encoding;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod halts;
#[cfg(test)]
mod harm;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod image;
#[cfg(test)]
mod import_debezium;
#[cfg(test)]
mod log;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod migrate;
#[cfg(test)]
mod network;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod parking;
#[cfg(test)]
mod poison;
#[cfg(test)]
#[path = "../support/proxy/mod.rs"]
mod proxy;
#[cfg(test)]
mod publications;
#[cfg(test)]
mod publisher;
#[cfg(test)]
mod publisher_failures;
#[cfg(test)]
mod publishing;
#[cfg(test)]
mod rabbit;
#[cfg(test)]
mod relay_lag;
#[cfg(test)]
mod replication;
#[cfg(test)]
mod road;
#[cfg(test)]
mod sight;
#[cfg(test)]
mod slot;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod standby;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tail;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod uninstall;
