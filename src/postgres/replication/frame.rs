//! The messages inside CopyData (manual, chapter "Streaming Replication Protocol"): bytes in, values out, no I/O.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::lsn::Lsn;

/// 2000-01-01, the beginning of PostgreSQL's clock, in seconds of the Unix epoch.
const POSTGRES_EPOCH_SECONDS: u64 = 946_684_800;

/// Something that the server sent on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// XLogData. The positions are of no use for progress: they are zero for messages that are not a transaction's last.
    /// `data` is a slice of the read buffer: whoever keeps it keeps the buffer, so copy what must live.
    Data { start: Lsn, end: Lsn, server_time: SystemTime, data: Bytes },
    /// Everything up to `wal_end` has been sent before this, or concerns us in nothing.
    Keepalive { wal_end: Lsn, server_time: SystemTime, reply_requested: bool },
    /// A NoticeResponse: its text. PostgreSQL 18 says "skipped loading publication" like this.
    Notice(String),
}

impl Frame {
    /// Bytes that count against the bound of a batch.
    pub fn bytes(&self) -> usize {
        match self {
            Frame::Data { data, .. } => data.len(),
            Frame::Notice(text) => text.len(),
            Frame::Keepalive { .. } => 0,
        }
    }
}

/// Reads the content of one CopyData message:
///
/// ```text
/// 'w'  start: Int64   end: Int64   time: Int64   data: the rest
/// 'k'  end: Int64     time: Int64  reply: Byte1
/// ```
/// `None` for anything else. More bytes behind a keepalive are ignored, as a later version might add a field.
pub(crate) fn parse(mut body: Bytes) -> Option<Frame> {
    match body.try_get_u8().ok()? {
        b'w' => {
            let start = Lsn(body.try_get_u64().ok()?);
            let end = Lsn(body.try_get_u64().ok()?);
            let server_time = from_postgres_time(body.try_get_i64().ok()?);
            Some(Frame::Data { start, end, server_time, data: body })
        }
        b'k' => {
            let wal_end = Lsn(body.try_get_u64().ok()?);
            let server_time = from_postgres_time(body.try_get_i64().ok()?);
            let reply_requested = body.try_get_u8().ok()? != 0;
            Some(Frame::Keepalive { wal_end, server_time, reply_requested })
        }
        _ => None,
    }
}

/// A Standby status update: 34 bytes.
///
/// ```text
/// 'r'  written: Int64   flushed: Int64   applied: Int64   time: Int64   reply: Byte1
/// ```
/// Only `flushed` moves the slot. The server does not check it against what it has sent: see `send_status`.
pub(crate) fn status(received: Lsn, flushed: Lsn, now: SystemTime, reply_requested: bool) -> Bytes {
    let mut body = BytesMut::with_capacity(34);
    body.put_u8(b'r');
    body.put_u64(received.0);
    body.put_u64(flushed.0);
    body.put_u64(flushed.0);
    body.put_i64(to_postgres_time(now));
    body.put_u8(reply_requested.into());
    body.freeze()
}

fn epoch() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_SECONDS)
}

/// Microseconds since 2000; a time that the platform cannot hold becomes the epoch.
fn from_postgres_time(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 { epoch().checked_sub(distance) } else { epoch().checked_add(distance) };
    time.unwrap_or_else(epoch)
}

pub(crate) fn to_postgres_time(time: SystemTime) -> i64 {
    match time.duration_since(epoch()) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_status_update_is_these_34_bytes() {
        let now = epoch() + Duration::from_micros(0x0102_0304);
        let bytes = status(Lsn(0x1_0000_00A0), Lsn(0x1_0000_0090), now, true);
        #[rustfmt::skip]
        assert_eq!(bytes.as_ref(), [
            b'r',
            0, 0, 0, 1, 0, 0, 0, 0xA0,
            0, 0, 0, 1, 0, 0, 0, 0x90,
            0, 0, 0, 1, 0, 0, 0, 0x90,
            0, 0, 0, 0, 1, 2, 3, 4,
            1,
        ]);
        assert_eq!(status(Lsn::ZERO, Lsn::ZERO, now, false).last(), Some(&0));
    }

    #[test]
    fn a_zero_flush_stays_zero() {
        let bytes = status(Lsn(0xA0), Lsn::ZERO, epoch(), false);
        assert_eq!(&bytes[9..25], [0; 16]);
    }

    #[test]
    fn wal_data_keeps_its_positions_and_payload() {
        let mut body = vec![b'w'];
        body.extend(1u64.to_be_bytes());
        body.extend(2u64.to_be_bytes());
        body.extend((-1_000_000i64).to_be_bytes());
        body.extend(b"payload");
        let expected = Frame::Data {
            start: Lsn(1),
            end: Lsn(2),
            server_time: epoch() - Duration::from_secs(1),
            data: Bytes::from_static(b"payload"),
        };
        assert_eq!(parse(body.into()), Some(expected));
    }

    #[test]
    fn a_keepalive_may_ask_for_a_reply() {
        let mut body = vec![b'k'];
        body.extend(0x10u64.to_be_bytes());
        body.extend(0i64.to_be_bytes());
        assert_eq!(parse(Bytes::from(body.clone())), None, "without its last byte");
        body.push(1);
        let expected = Frame::Keepalive { wal_end: Lsn(0x10), server_time: epoch(), reply_requested: true };
        assert_eq!(parse(body.into()), Some(expected));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            parse(body.into());
        }

        #[test]
        fn times_survive_the_way_there_and_back(micros in -1_000_000_000_000_000i64..4_000_000_000_000_000) {
            prop_assert_eq!(to_postgres_time(from_postgres_time(micros)), micros);
        }
    }
}
