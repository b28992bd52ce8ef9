//! What the server says: one type per message, named as in the manual.

use std::time::SystemTime;

use bytes::Bytes;

use crate::lsn::Lsn;

/// One message of protocol version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Begin(Begin),
    Logical(LogicalMessage),
    Commit(Commit),
    Origin(Origin),
    Relation(Relation),
    Type(Type),
    Insert(Insert),
    Update(Update),
    Delete(Delete),
    Truncate(Truncate),
}

/// `B`: the changes of one committed transaction follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// LSN of the commit record: the same as [`Commit::commit_lsn`].
    pub final_lsn: Lsn,
    pub commit_time: SystemTime,
    /// Without its epoch: it wraps.
    pub xid: u32,
}

/// `M`: what `pg_logical_emit_message` wrote (only with the option `messages`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalMessage {
    /// A transactional one comes between Begin and Commit, any other stands alone and has no commit.
    pub transactional: bool,
    /// The end of its WAL record.
    pub lsn: Lsn,
    pub prefix: String,
    pub content: Bytes,
}

/// `C`: the transaction is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where the commit record begins.
    pub commit_lsn: Lsn,
    /// Where it ends: what may be confirmed once everything of the transaction is delivered.
    pub end_lsn: Lsn,
    pub commit_time: SystemTime,
}

/// `O`: the transaction was replayed from another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// LSN of the commit *on the origin server*.
    pub commit_lsn: Lsn,
    pub name: String,
}

/// `R`: the shape of a table. Comes before the first change of a table in a session, and again after its shape changed.
///
/// Names are text; bytes that are not UTF-8 (possible in a `SQL_ASCII` database) are replaced by U+FFFD, so that such
/// a name equals no configured one and costs nobody else the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    /// `pg_catalog` where the wire has an empty name.
    pub namespace: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    /// In the order of the values of a [`Tuple`].
    pub columns: Vec<Column>,
}

/// Which old values an update or delete brings (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Part of the replica identity.
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
    /// `atttypmod`; -1 for none.
    pub type_modifier: i32,
}

/// `Y`: the name of a type that is not built in. Comes before the Relation that uses it.
///
/// For a domain the OID is the domain's, but the name is that of the type under it (`logicalrep_write_typ`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub oid: u32,
    /// `pg_catalog` where the wire has an empty name.
    pub namespace: String,
    pub name: String,
}

/// `I`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insert {
    pub relation: u32,
    pub new: Tuple,
}

/// `U`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub relation: u32,
    pub old: OldTuple,
    pub new: Tuple,
}

/// `D`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    pub relation: u32,
    /// Never [`OldTuple::None`].
    pub old: OldTuple,
}

/// `T`: one statement, all its tables at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncate {
    pub cascade: bool,
    pub restart_identity: bool,
    pub relations: Vec<u32>,
}

/// The row before an update or delete, as far as the replica identity gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple {
    /// The key did not change.
    None,
    /// The columns of the replica identity; the others are [`Value::Null`] whatever they were.
    Key(Tuple),
    /// Replica identity FULL.
    Full(Tuple),
}

/// The values of one row, in the order of [`Relation::columns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple(pub Vec<Value>);

impl Tuple {
    pub fn get(&self, index: usize) -> Option<&Value> {
        self.0.get(index)
    }
}

/// One column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    /// A TOASTed value that the update left as it was: the WAL does not have it.
    Unchanged,
    /// What the type's output function prints, in the client encoding. Not checked to be UTF-8.
    Text(Bytes),
    /// What the type's send function writes (only with the option `binary`).
    Binary(Bytes),
}
