//! PostgreSQL's frontend/backend protocol, as far as replication goes: where messages begin, status updates, keepalives.
//! (Manual: "Message Formats", "Streaming Replication Protocol".)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::{Buf, BytesMut};

use super::Shared;
use super::evidence::Flush;
use super::mischief::Direction;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const COPY_DATA: u8 = b'd';
const STATUS_UPDATE: u8 = b'r';
const KEEPALIVE: u8 = b'k';
/// A status update has 34 bytes and a keepalive 18. Longer messages pass in pieces: a row may have a gigabyte.
const LONGEST: usize = 64;

/// What the two directions of one connection have to know of each other.
#[derive(Default)]
pub(super) struct Greeting {
    /// Requests for encryption, which the server answers by a single byte each.
    asked: AtomicU64,
    /// Encrypted from now on: nothing is to be understood.
    opaque: AtomicBool,
    /// Its parameters do not ask for replication.
    sql: AtomicBool,
}

pub(super) struct PostgresHalf {
    direction: Direction,
    connection: u64,
    greeting: Arc<Greeting>,
    shared: Arc<Shared>,
    /// The client's first messages have no type.
    started: bool,
    /// Bytes that belong to a message which passes.
    passing: usize,
}

impl PostgresHalf {
    pub(super) fn new(direction: Direction, connection: u64, greeting: Arc<Greeting>, shared: Arc<Shared>) -> Self {
        let started = direction == Direction::ToClient;
        PostgresHalf { direction, connection, greeting, shared, started, passing: 0 }
    }

    pub(super) fn is_sql(&self) -> bool {
        self.greeting.sql.load(Ordering::SeqCst)
    }

    pub(super) fn take(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        loop {
            if self.greeting.opaque.load(Ordering::SeqCst) {
                out.extend(bytes.split());
                return;
            }
            if self.passing > 0 {
                self.pass(bytes, out);
            }
            if self.passing > 0 {
                return;
            }
            let before = bytes.len();
            if !self.started {
                self.first(bytes, out);
            } else if self.direction == Direction::ToClient && self.greeting.asked.load(Ordering::SeqCst) > 0 {
                self.answer(bytes, out);
            } else {
                self.message(bytes, out);
            }
            if bytes.len() == before {
                return;
            }
        }
    }

    fn first(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        if bytes.len() < 8 {
            return;
        }
        let (length, code) = (bytes.as_ref().get_u32() as usize, (&bytes[4..]).get_u32());
        if bytes.len() < length {
            return;
        }
        if matches!(code, SSL_REQUEST | GSSENC_REQUEST) {
            self.greeting.asked.fetch_add(1, Ordering::SeqCst);
        } else {
            self.started = true;
            let replication = bytes[..length].windows(12).any(|name| name == b"replication\0");
            self.greeting.sql.store(!replication, Ordering::SeqCst);
        }
        out.extend(bytes.split_to(length));
    }

    fn answer(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        let Some(&answer) = bytes.first() else { return };
        self.greeting.asked.fetch_sub(1, Ordering::SeqCst);
        if answer != b'N' {
            self.greeting.opaque.store(true, Ordering::SeqCst);
        }
        out.extend(bytes.split_to(1));
    }

    fn message(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        if bytes.len() < 5 {
            return;
        }
        let length = 1 + (&bytes[1..]).get_u32() as usize;
        if length > LONGEST {
            self.passing = length;
            return self.pass(bytes, out);
        }
        if bytes.len() < length {
            return;
        }
        let message = bytes.split_to(length);
        let beat = match (message[0], message.get(5)) {
            (COPY_DATA, Some(&STATUS_UPDATE)) => self.direction == Direction::ToServer,
            (COPY_DATA, Some(&KEEPALIVE)) => self.direction == Direction::ToClient,
            _ => false,
        };
        if beat && self.shared.active().swallows(self.direction) {
            self.shared.evidence().counts.swallowed += 1;
            return;
        }
        if beat && self.direction == Direction::ToServer {
            let (written, flushed) = ((&message[6..]).get_u64(), (&message[14..]).get_u64());
            let flush = Flush { at: SystemTime::now(), connection: self.connection, written, flushed };
            self.shared.evidence().flushes.push(flush);
        }
        out.extend(message);
    }

    fn pass(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        let piece = bytes.split_to(self.passing.min(bytes.len()));
        self.passing -= piece.len();
        out.extend(piece);
    }
}
