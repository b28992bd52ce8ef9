//! RabbitMQ: connection, topology, publisher.
//!
//! [`publisher`] is the way in; a session's publishing is the loop in `window`, over one `channel` at a time.

pub(crate) mod channel;
pub mod connection;
pub mod dead_letter_queue;
pub mod greeting;
mod journal;
pub mod management;
mod outage;
mod probe;
pub mod publisher;
pub mod queues;
mod socket;
pub mod tap;
pub mod tls;
pub mod topology;
pub mod url;
mod window;
