//! From bytes to [`Message`]. Layouts: manual, "Logical Replication Message Formats", without what versions 2 and later add.

use bytes::{Buf, Bytes};

use super::message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation, ReplicaIdentity,
    Truncate, Tuple, Type, Update, Value,
};
use super::reader::{DecodeError, MessageKind, Reader, Result};

/// Decodes one message: the data of one XLogData, or one row of `pg_logical_slot_peek_binary_changes`.
///
/// # Errors
/// [`DecodeError`], for anything but exactly one whole message of protocol version 1.
pub fn decode(mut bytes: Bytes) -> Result<Message> {
    let tag = bytes.try_get_u8().map_err(|_| DecodeError::Empty)?;
    let kind = message_kind(tag)?;
    let mut reader = Reader::new(kind, bytes);
    let message = match kind {
        MessageKind::Begin => Message::Begin(begin(&mut reader)?),
        MessageKind::Logical => Message::Logical(logical(&mut reader)?),
        MessageKind::Commit => Message::Commit(commit(&mut reader)?),
        MessageKind::Origin => Message::Origin(origin(&mut reader)?),
        MessageKind::Relation => Message::Relation(relation(&mut reader)?),
        MessageKind::Type => Message::Type(type_name(&mut reader)?),
        MessageKind::Insert => Message::Insert(insert(&mut reader)?),
        MessageKind::Update => Message::Update(update(&mut reader)?),
        MessageKind::Delete => Message::Delete(delete(&mut reader)?),
        MessageKind::Truncate => Message::Truncate(truncate(&mut reader)?),
    };
    reader.end()?;
    Ok(message)
}

fn message_kind(tag: u8) -> Result<MessageKind> {
    Ok(match tag {
        b'B' => MessageKind::Begin,
        b'M' => MessageKind::Logical,
        b'C' => MessageKind::Commit,
        b'O' => MessageKind::Origin,
        b'R' => MessageKind::Relation,
        b'Y' => MessageKind::Type,
        b'I' => MessageKind::Insert,
        b'U' => MessageKind::Update,
        b'D' => MessageKind::Delete,
        b'T' => MessageKind::Truncate,
        // Stream Start, Stop, Commit and Abort.
        b'S' | b'E' | b'c' | b'A' => return Err(DecodeError::NotAskedFor { kind: tag, option: "streaming" }),
        // Begin Prepare, Prepare, Commit Prepared, Rollback Prepared and Stream Prepare.
        b'b' | b'P' | b'K' | b'r' | b'p' => return Err(DecodeError::NotAskedFor { kind: tag, option: "two_phase" }),
        _ => return Err(DecodeError::UnknownMessage { kind: tag }),
    })
}

/// `B`: final LSN (8), commit time (8), xid (4).
fn begin(reader: &mut Reader) -> Result<Begin> {
    Ok(Begin { final_lsn: reader.lsn()?, commit_time: reader.time()?, xid: reader.u32()? })
}

/// `M`: flags (1; 1 = transactional), LSN (8), prefix (text), content (length 4, bytes).
fn logical(reader: &mut Reader) -> Result<LogicalMessage> {
    Ok(LogicalMessage {
        transactional: reader.u8()? & 1 != 0,
        lsn: reader.lsn()?,
        prefix: reader.text()?,
        content: reader.bytes()?,
    })
}

/// `C`: flags (1; none are defined), commit LSN (8), end LSN (8), commit time (8).
fn commit(reader: &mut Reader) -> Result<Commit> {
    reader.u8()?;
    Ok(Commit { commit_lsn: reader.lsn()?, end_lsn: reader.lsn()?, commit_time: reader.time()? })
}

/// `O`: commit LSN on the origin (8), name (text).
fn origin(reader: &mut Reader) -> Result<Origin> {
    Ok(Origin { commit_lsn: reader.lsn()?, name: reader.text()? })
}

/// `R`: OID (4), namespace (text), name (text), replica identity (1), number of columns (2), and for each: flags (1;
/// 1 = key), name (text), type OID (4), type modifier (4).
fn relation(reader: &mut Reader) -> Result<Relation> {
    /// Of one column with an empty name.
    const SMALLEST: usize = 10;
    let oid = reader.u32()?;
    let namespace = namespace(reader)?;
    let name = reader.text()?;
    let replica_identity = match reader.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        other => return Err(reader.unknown("replica identity", other)),
    };
    let count = reader.count16("number of columns")?;
    let mut columns = Vec::with_capacity(count.min(reader.remaining() / SMALLEST));
    for _ in 0..count {
        columns.push(Column {
            key: reader.u8()? & 1 != 0,
            name: reader.text()?,
            type_oid: reader.u32()?,
            type_modifier: reader.i32()?,
        });
    }
    Ok(Relation { oid, namespace, name, replica_identity, columns })
}

/// `Y`: OID (4), namespace (text), name (text).
fn type_name(reader: &mut Reader) -> Result<Type> {
    Ok(Type { oid: reader.u32()?, namespace: namespace(reader)?, name: reader.text()? })
}

/// An empty name stands for `pg_catalog`.
fn namespace(reader: &mut Reader) -> Result<String> {
    let namespace = reader.text()?;
    Ok(if namespace.is_empty() { "pg_catalog".to_owned() } else { namespace })
}

/// `I`: relation OID (4), `N`, new tuple.
fn insert(reader: &mut Reader) -> Result<Insert> {
    let relation = reader.u32()?;
    match reader.u8()? {
        b'N' => Ok(Insert { relation, new: tuple(reader)? }),
        other => Err(reader.unknown("kind of tuple", other)),
    }
}

/// `U`: relation OID (4), optionally `K` or `O` and the old tuple, then `N` and the new tuple.
fn update(reader: &mut Reader) -> Result<Update> {
    let relation = reader.u32()?;
    let (old, marker) = match reader.u8()? {
        b'K' => (OldTuple::Key(tuple(reader)?), reader.u8()?),
        b'O' => (OldTuple::Full(tuple(reader)?), reader.u8()?),
        marker => (OldTuple::None, marker),
    };
    match marker {
        b'N' => Ok(Update { relation, old, new: tuple(reader)? }),
        other => Err(reader.unknown("kind of tuple", other)),
    }
}

/// `D`: relation OID (4), `K` or `O`, old tuple.
fn delete(reader: &mut Reader) -> Result<Delete> {
    let relation = reader.u32()?;
    let old = match reader.u8()? {
        b'K' => OldTuple::Key(tuple(reader)?),
        b'O' => OldTuple::Full(tuple(reader)?),
        other => return Err(reader.unknown("kind of tuple", other)),
    };
    Ok(Delete { relation, old })
}

/// `T`: number of relations (4), options (1; 1 = CASCADE, 2 = RESTART IDENTITY), and their OIDs (4 each).
fn truncate(reader: &mut Reader) -> Result<Truncate> {
    let count = reader.count32("number of relations")?;
    let options = reader.u8()?;
    let mut relations = Vec::with_capacity(count.min(reader.remaining() / size_of::<u32>()));
    for _ in 0..count {
        relations.push(reader.u32()?);
    }
    Ok(Truncate { cascade: options & 1 != 0, restart_identity: options & 2 != 0, relations })
}

/// Number of columns (2), and for each: `n`, `u`, or `t` or `b` with a length (4) and that many bytes.
fn tuple(reader: &mut Reader) -> Result<Tuple> {
    let count = reader.count16("number of columns")?;
    let mut values = Vec::with_capacity(count.min(reader.remaining()));
    for _ in 0..count {
        values.push(match reader.u8()? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => Value::Text(reader.bytes()?),
            b'b' => Value::Binary(reader.bytes()?),
            other => return Err(reader.unknown("kind of value", other)),
        });
    }
    Ok(Tuple(values))
}

#[cfg(test)]
mod tests;
