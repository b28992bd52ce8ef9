//! The decoder of pgoutput: what is decoded means the same when it is written again, and costs no more memory than its bytes allow.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes};

use crate::pgoutput::message::{Column, OldTuple, ReplicaIdentity, Tuple, Value};
use crate::pgoutput::{DecodeError, Message, decode};

/// Bytes of memory for each byte of a message: a NULL is one byte there and a [`Value`] here.
const COST: usize = 2 * size_of::<Value>();

pub fn check(data: &[u8]) {
    let message = match decode(Bytes::copy_from_slice(data)) {
        Ok(message) => message,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(reserved(&message) <= COST * data.len(), "{} bytes made {}", data.len(), reserved(&message));
    assert_eq!(decode(encode(&message)).as_ref(), Ok(&message));
    // A message is whole, or it is none: a cut or joined one is never taken for another.
    let cut = data.split_last().map_or(&[][..], |(_, cut)| cut);
    assert!(decode(Bytes::copy_from_slice(cut)).is_err());
    let longer = decode([data, &[0]].concat().into());
    assert!(matches!(longer, Err(DecodeError::Trailing { extra: 1, .. })), "{longer:?}");
}

fn reserved(message: &Message) -> usize {
    let tuple = |tuple: &Tuple| tuple.0.capacity() * size_of::<Value>();
    let old = |old: &OldTuple| match old {
        OldTuple::None => 0,
        OldTuple::Key(values) | OldTuple::Full(values) => tuple(values),
    };
    match message {
        Message::Relation(relation) => relation.columns.capacity() * size_of::<Column>(),
        Message::Insert(insert) => tuple(&insert.new),
        Message::Update(update) => old(&update.old) + tuple(&update.new),
        Message::Delete(delete) => old(&delete.old),
        Message::Truncate(truncate) => truncate.relations.capacity() * size_of::<u32>(),
        Message::Begin(_) | Message::Logical(_) | Message::Commit(_) | Message::Origin(_) | Message::Type(_) => 0,
    }
}

/// As the server writes it.
fn encode(message: &Message) -> Bytes {
    let mut out = Vec::new();
    match message {
        Message::Begin(begin) => {
            out.put_u8(b'B');
            out.put_u64(begin.final_lsn.0);
            out.put_i64(micros(begin.commit_time));
            out.put_u32(begin.xid);
        }
        Message::Logical(logical) => {
            out.put_u8(b'M');
            out.put_u8(logical.transactional.into());
            out.put_u64(logical.lsn.0);
            text(&mut out, &logical.prefix);
            bytes(&mut out, &logical.content);
        }
        Message::Commit(commit) => {
            out.put_u8(b'C');
            out.put_u8(0);
            out.put_u64(commit.commit_lsn.0);
            out.put_u64(commit.end_lsn.0);
            out.put_i64(micros(commit.commit_time));
        }
        Message::Origin(origin) => {
            out.put_u8(b'O');
            out.put_u64(origin.commit_lsn.0);
            text(&mut out, &origin.name);
        }
        Message::Relation(relation) => {
            out.put_u8(b'R');
            out.put_u32(relation.oid);
            text(&mut out, &relation.namespace);
            text(&mut out, &relation.name);
            out.put_u8(match relation.replica_identity {
                ReplicaIdentity::Default => b'd',
                ReplicaIdentity::Nothing => b'n',
                ReplicaIdentity::Full => b'f',
                ReplicaIdentity::Index => b'i',
            });
            count16(&mut out, relation.columns.len());
            for column in &relation.columns {
                out.put_u8(column.key.into());
                text(&mut out, &column.name);
                out.put_u32(column.type_oid);
                out.put_i32(column.type_modifier);
            }
        }
        Message::Type(named) => {
            out.put_u8(b'Y');
            out.put_u32(named.oid);
            text(&mut out, &named.namespace);
            text(&mut out, &named.name);
        }
        Message::Insert(insert) => {
            out.put_u8(b'I');
            out.put_u32(insert.relation);
            tuple(&mut out, b'N', &insert.new);
        }
        Message::Update(update) => {
            out.put_u8(b'U');
            out.put_u32(update.relation);
            old(&mut out, &update.old);
            tuple(&mut out, b'N', &update.new);
        }
        Message::Delete(delete) => {
            out.put_u8(b'D');
            out.put_u32(delete.relation);
            old(&mut out, &delete.old);
        }
        Message::Truncate(truncate) => {
            out.put_u8(b'T');
            out.put_u32(u32::try_from(truncate.relations.len()).unwrap_or(u32::MAX));
            out.put_u8(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            truncate.relations.iter().for_each(|oid| out.put_u32(*oid));
        }
    }
    out.into()
}

fn old(out: &mut Vec<u8>, old: &OldTuple) {
    match old {
        OldTuple::None => {}
        OldTuple::Key(values) => tuple(out, b'K', values),
        OldTuple::Full(values) => tuple(out, b'O', values),
    }
}

fn tuple(out: &mut Vec<u8>, kind: u8, values: &Tuple) {
    out.put_u8(kind);
    count16(out, values.0.len());
    for value in &values.0 {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(text) => {
                out.put_u8(b't');
                bytes(out, text);
            }
            Value::Binary(binary) => {
                out.put_u8(b'b');
                bytes(out, binary);
            }
        }
    }
}

fn count16(out: &mut Vec<u8>, count: usize) {
    out.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn micros(time: SystemTime) -> i64 {
    let epoch = UNIX_EPOCH + Duration::from_secs(946_684_800);
    match time.duration_since(epoch) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of messages: tags, counts at their limits, short values.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(b"I\0\0\0\x01N".to_vec()),
            Just(b"U\0\0\0\x01K".to_vec()),
            Just(b"D\0\0\0\x01O".to_vec()),
            Just(b"R\0\0\0\x01public\0outbox\0d".to_vec()),
            Just(b"T\0\0\0\x02\0".to_vec()),
            Just(b"M\x01\0\0\0\0\0\0\0\x07p\0".to_vec()),
            // A number of columns, and a length.
            prop_oneof![Just(0u16), 1..4u16, Just(0x7fff), Just(0x8000), Just(u16::MAX)].prop_map(|n| n.to_be_bytes().to_vec()),
            prop_oneof![Just(0i32), 1..4i32, Just(i32::MAX), Just(i32::MIN), Just(-1)].prop_map(|n| n.to_be_bytes().to_vec()),
            proptest::sample::select(vec![b"n".to_vec(), b"u".to_vec(), b"t".to_vec(), b"b".to_vec(), b"N".to_vec(), b"x\0".to_vec()]),
            (0..4u32).prop_map(|length| [b"t".to_vec(), length.to_be_bytes().to_vec(), vec![b'x'; length as usize]].concat()),
            proptest::collection::vec(any::<u8>(), 0..24),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_server_sends(pieces in proptest::collection::vec(piece(), 0..12)) {
            check(&pieces.concat());
        }
    }

    #[test]
    fn a_row_of_as_many_columns_as_a_count_holds() {
        for columns in [0u16, 1_600, 0x7fff] {
            let row =
                |columns: u16| [b"I\0\0\0\x01N", &columns.to_be_bytes()[..], &vec![b'n'; columns.into()]].concat();
            check(&row(columns));
            assert!(decode(row(columns).into()).is_ok());
        }
        // 65,535 is -1 there: a count is signed (`pq_sendint16` of an AttrNumber).
        let negative = decode([&b"I\0\0\0\x01N\xff\xff"[..], &[b'n'; 65_535]].concat().into());
        assert!(matches!(negative, Err(DecodeError::Negative { value: -1, .. })), "{negative:?}");
    }

    #[test]
    fn a_length_of_two_gibibytes_is_short_and_reserves_nothing() {
        let huge = [&b"I\0\0\0\x01N\0\x01t"[..], &i32::MAX.to_be_bytes(), b"ab"].concat();
        assert!(matches!(decode(huge.into()), Err(DecodeError::Short { .. })));
    }
}
