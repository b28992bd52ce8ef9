//! A cursor over one message: every read is checked, and an error names the message and the place.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};

use crate::lsn::Lsn;

/// Why bytes are not a message. Offsets count from the start of the message, its kind byte included.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("empty pgoutput message")]
    Empty,
    #[error("unknown pgoutput message kind 0x{kind:02x}: the server speaks a protocol version that was not asked for")]
    UnknownMessage { kind: u8 },
    #[error(
        "pgoutput message kind `{}` belongs to the option `{option}`, which was not asked for",
        char::from(*kind)
    )]
    NotAskedFor { kind: u8, option: &'static str },
    #[error("{message} message ends at byte {offset}, where {needed} more are needed")]
    Short { message: MessageKind, offset: usize, needed: usize },
    #[error("text at byte {offset} of the {message} message has no end")]
    Unterminated { message: MessageKind, offset: usize },
    #[error("negative {what} {value} at byte {offset} of the {message} message")]
    Negative { message: MessageKind, offset: usize, what: &'static str, value: i32 },
    #[error("unknown {what} 0x{found:02x} at byte {offset} of the {message} message")]
    Unknown { message: MessageKind, offset: usize, what: &'static str, found: u8 },
    #[error("{extra} bytes too many at byte {offset} of the {message} message")]
    Trailing { message: MessageKind, offset: usize, extra: usize },
}

/// Names a message in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Begin,
    Logical,
    Commit,
    Origin,
    Relation,
    Type,
    Insert,
    Update,
    Delete,
    Truncate,
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MessageKind::Begin => "Begin",
            MessageKind::Logical => "Message",
            MessageKind::Commit => "Commit",
            MessageKind::Origin => "Origin",
            MessageKind::Relation => "Relation",
            MessageKind::Type => "Type",
            MessageKind::Insert => "Insert",
            MessageKind::Update => "Update",
            MessageKind::Delete => "Delete",
            MessageKind::Truncate => "Truncate",
        })
    }
}

pub(super) type Result<T> = std::result::Result<T, DecodeError>;

/// What is left of one message.
pub(super) struct Reader {
    message: MessageKind,
    rest: Bytes,
    /// Length of the whole message, kind byte included.
    length: usize,
}

impl Reader {
    /// `rest` is the message without its kind byte.
    pub(super) fn new(message: MessageKind, rest: Bytes) -> Self {
        let length = rest.len() + 1;
        Reader { message, rest, length }
    }

    pub(super) fn offset(&self) -> usize {
        self.length - self.rest.len()
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn short(&self, needed: usize) -> DecodeError {
        DecodeError::Short { message: self.message, offset: self.length, needed: needed - self.rest.len() }
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.rest.try_get_u8().map_err(|_| self.short(1))
    }

    fn i16(&mut self) -> Result<i16> {
        self.rest.try_get_i16().map_err(|_| self.short(2))
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        self.rest.try_get_i32().map_err(|_| self.short(4))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.rest.try_get_u32().map_err(|_| self.short(4))
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn> {
        self.rest.try_get_u64().map(Lsn).map_err(|_| self.short(8))
    }

    pub(super) fn time(&mut self) -> Result<SystemTime> {
        self.rest.try_get_i64().map(system_time).map_err(|_| self.short(8))
    }

    /// A count of 16 bits. Says nothing about how much there really is.
    pub(super) fn count16(&mut self, what: &'static str) -> Result<usize> {
        let offset = self.offset();
        let value = self.i16()?;
        usize::try_from(value).map_err(|_| self.negative(offset, what, i32::from(value)))
    }

    /// A count of 32 bits. Says nothing about how much there really is.
    pub(super) fn count32(&mut self, what: &'static str) -> Result<usize> {
        let offset = self.offset();
        let value = self.i32()?;
        usize::try_from(value).map_err(|_| self.negative(offset, what, value))
    }

    fn negative(&self, offset: usize, what: &'static str, value: i32) -> DecodeError {
        DecodeError::Negative { message: self.message, offset, what, value }
    }

    /// Bytes with their length in 32 bits before them, sharing the buffer.
    pub(super) fn bytes(&mut self) -> Result<Bytes> {
        let length = self.count32("length")?;
        if length > self.rest.len() {
            return Err(self.short(length));
        }
        Ok(self.rest.split_to(length))
    }

    /// Text that ends with a zero byte.
    pub(super) fn text(&mut self) -> Result<String> {
        let offset = self.offset();
        let length = self.rest.iter().position(|&byte| byte == 0);
        let length = length.ok_or(DecodeError::Unterminated { message: self.message, offset })?;
        let text = self.rest.split_to(length);
        self.rest.advance(1);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// For a byte that was just read.
    pub(super) fn unknown(&self, what: &'static str, found: u8) -> DecodeError {
        DecodeError::Unknown { message: self.message, offset: self.offset() - 1, what, found }
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { message: self.message, offset: self.offset(), extra }),
        }
    }
}

/// Microseconds since 2000-01-01 00:00 UTC, PostgreSQL's `TimestampTz`.
///
/// Every value has a time: what the platform's clock type cannot hold (no platform of 64 bits) becomes 2000-01-01.
fn system_time(micros: i64) -> SystemTime {
    /// From 1970 to 2000.
    const EPOCH: Duration = Duration::from_secs(946_684_800);
    let epoch = SystemTime::UNIX_EPOCH + EPOCH;
    let distance = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    time.unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_the_year_2000_and_never_overflow() {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds(system_time(0)), 946_684_800);
        assert_eq!(seconds(system_time(1_000_000)), 946_684_801);
        assert_eq!(system_time(-946_684_800_000_000), SystemTime::UNIX_EPOCH);
        assert!(system_time(i64::MAX) > system_time(0));
        assert!(system_time(i64::MIN) < system_time(0));
    }
}
