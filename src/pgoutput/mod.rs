//! Pure decoder of logical replication protocol version 1, the output of the `pgoutput` plugin.
//!
//! Source: PostgreSQL manual, chapters "Logical Replication Message Formats" and "Logical Streaming Replication
//! Parameters". Bytes in, value or typed error out: nothing here panics, whatever the bytes, and no allocation is larger
//! than a small multiple of the bytes that are really there.
//!
//! Column values are slices of the buffer that came from the socket. Whether one is UTF-8 is for its reader to check.

mod decode;
pub mod message;
mod reader;

pub use decode::decode;
pub use message::Message;
pub use reader::{DecodeError, MessageKind};
