//! The framing of the replication stream: a frame is what its bytes say, no more and no less.

use std::time::SystemTime;

use bytes::{BufMut, Bytes};

use crate::lsn::Lsn;
use crate::postgres::replication::frame::{Frame, parse, status, to_postgres_time};

pub fn check(data: &[u8]) {
    let again = match parse(Bytes::copy_from_slice(data)) {
        None => return check_status(data),
        Some(Frame::Data { start, end, server_time, data: payload }) => {
            let mut again = vec![b'w'];
            position_and_time(&mut again, &[start, end], server_time);
            again.put_slice(&payload);
            again
        }
        Some(Frame::Keepalive { wal_end, server_time, reply_requested }) => {
            let mut again = vec![b'k'];
            position_and_time(&mut again, &[wal_end], server_time);
            again.put_u8(reply_requested.into());
            // Any byte but zero asks for a reply, and more may follow in a later version.
            assert_eq!(data.get(17).is_some_and(|byte| *byte != 0), reply_requested);
            assert_eq!(data.get(..17), again.get(..17));
            return;
        }
        Some(Frame::Notice(text)) => return assert!(text.is_empty(), "a notice is no CopyData"),
    };
    assert_eq!(again, data);
}

fn position_and_time(out: &mut Vec<u8>, positions: &[Lsn], time: SystemTime) {
    positions.iter().for_each(|lsn| out.put_u64(lsn.0));
    out.put_i64(to_postgres_time(time));
}

/// What we send, for positions that the input has: only the two that were given may be in it.
fn check_status(data: &[u8]) {
    let Some((first, rest)) = data.split_first_chunk() else { return };
    let Some((second, _)) = rest.split_first_chunk() else { return };
    let (received, flushed) = (u64::from_be_bytes(*first), u64::from_be_bytes(*second));
    let sent = status(Lsn(received), Lsn(flushed), SystemTime::UNIX_EPOCH, received & 1 == 1);
    let expected = [&b"r"[..], first, second, second].concat();
    assert_eq!(sent.get(..25), Some(expected.as_slice()));
    assert_eq!((sent.len(), sent.last()), (34, Some(&u8::from(received & 1 == 1))));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_comes_as_copy_data(kind in prop_oneof![Just(b'w'), Just(b'k'), any::<u8>()],
                                       rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            super::check(&[&[kind], &rest[..]].concat());
        }
    }
}
