//! The replication connection: the one module that knows `pgwire`, and the only place that moves the slot.
//!
//! [`ReplicationConnection`] is a session with `replication=database`, in which SQL works too (the advisory lock, creating
//! the slot); [`ReplicationConnection::start`] turns it into a [`ReplicationStream`].

pub(crate) mod frame;
mod login;
mod stream;
mod wire;

use std::io;
use std::time::Duration;

use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::SecretKey;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage, cancel::CancelRequest};

pub use frame::Frame;
pub use stream::ReplicationStream;
use wire::{Incoming, Wire};

use super::dial::{self, Route};
use super::error::{ConnectError, ServerError};
use super::url::Target;
use crate::faults::{self, Bug};
use crate::lsn::Lsn;

/// How long a cancelled query may take to admit it.
const CANCEL: Duration = Duration::from_secs(2);

/// Rows of a simple query, as text.
pub type Rows = Vec<Vec<Option<String>>>;

/// The replication connection failed. All but `SlotName` and `Status` are worth a new connection; what the server said
/// decides about a halt.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    #[error("{0}")]
    Server(#[from] ServerError),
    #[error("PostgreSQL closed the replication connection")]
    Closed,
    /// The server ended the stream in good order: it is shutting down and believes that we have everything.
    #[error("PostgreSQL ended the replication stream")]
    Ended,
    #[error("the replication connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("no answer from PostgreSQL within {seconds} s: {what}")]
    Timeout { what: &'static str, seconds: u64 },
    #[error("{0}")]
    Login(String),
    #[error("PostgreSQL sent {0}")]
    Protocol(String),
    /// pgoutput writes a row as one message, which PostgreSQL cannot make larger than 1 GiB (`MaxAllocSize`).
    #[error(
        "PostgreSQL cannot send a row: {0}. With all its columns a row must stay below 1 GiB as text. Nothing behind it can be carried until a person gives its transaction up: stop the relay, move the slot past it with `select pg_replication_slot_advance(...)`, and start again to be told what that leaves in doubt"
    )]
    RowTooLarge(ServerError),
    #[error("an earlier query was abandoned on this replication connection")]
    Abandoned,
    #[error("`{0}` is no name for a slot: lower-case letters, digits and underscores, at most 63")]
    SlotName(String),
    /// A bug of ours, found before it reached the server.
    #[error("refused to acknowledge {flushed}: received up to {received}, acknowledged before {acknowledged}")]
    Status { received: Lsn, flushed: Lsn, acknowledged: Lsn },
}

impl ReplicationError {
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            ReplicationError::Server(error) => Some(&error.sqlstate),
            _ => None,
        }
    }

    /// See [`ServerError::is_shutting_down`].
    pub fn is_shutting_down(&self) -> bool {
        matches!(self, ReplicationError::Ended)
            || matches!(self, ReplicationError::Server(error) if error.is_shutting_down())
    }
}

/// A session with `replication=database`, its settings pinned and verified. Dropping it closes it.
pub struct ReplicationConnection {
    wire: Wire,
    target: Target,
    route: Route,
    process: i32,
    secret: i32,
    server_version: u32,
    sender_timeout: Duration,
    notices: Vec<String>,
    /// False while an answer is outstanding: then nothing can be asked.
    between_queries: bool,
}

impl ReplicationConnection {
    /// Connects to the first host that takes us and is what `target_session_attrs` asks for.
    pub async fn connect(target: &Target, application_name: &str) -> Result<Self, ConnectError> {
        dial::connect(target, |dialled| login::log_in(target, application_name, dialled)).await
    }

    /// The walsender's process id: `active_pid` of the slot once it streams.
    pub fn process_id(&self) -> i32 {
        self.process
    }

    /// `server_version_num`: 170004 is 17.4.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.wire.socket().is_tls()
    }

    /// Warnings and notices that came with the answers so far.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Runs one simple query, SQL or a replication command; the rows of all its results. After `deadline` the query is
    /// cancelled on the server too, so that it leaves nothing half done behind (a slot waits for every transaction that
    /// is older than itself). An error of the server leaves the connection usable.
    pub async fn query(&mut self, sql: &str, deadline: Duration) -> Result<Rows, ReplicationError> {
        if !self.between_queries {
            return Err(ReplicationError::Abandoned);
        }
        self.between_queries = false;
        let answer = async {
            self.wire.send(&PgWireFrontendMessage::Query(Query::new(sql.to_owned()))).await?;
            self.answer().await
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(result) => result,
            Err(_) => {
                self.cancel().await;
                Err(ReplicationError::Timeout { what: "the query was cancelled", seconds: deadline.as_secs() })
            }
        }
    }

    /// Reads up to ReadyForQuery.
    async fn answer(&mut self) -> Result<Rows, ReplicationError> {
        let mut rows = Rows::new();
        let mut refused = None;
        loop {
            match self.wire.receive().await {
                Ok(Incoming::Row(row)) => rows.push(row),
                Ok(Incoming::Notice(notice)) => self.notices.push(notice),
                Ok(Incoming::Error(error)) => refused = Some(error),
                Ok(Incoming::Other(PgWireBackendMessage::CommandComplete(_))) => {}
                Ok(Incoming::Other(PgWireBackendMessage::ReadyForQuery(_))) => {
                    self.between_queries = true;
                    return refused.map_or(Ok(rows), |error| Err(error.into()));
                }
                Ok(other) => return Err(other.unexpected()),
                // After a FATAL error the server closes; its words are the reason, not the end of the file.
                Err(error) => return Err(refused.map_or(error, ReplicationError::Server)),
            }
        }
    }

    /// Best effort: a CancelRequest on a connection of its own, then the rest of the answer. If that does not come, the
    /// connection stays unusable.
    async fn cancel(&mut self) {
        let request = CancelRequest::new(self.process, SecretKey::I32(self.secret));
        let both = async {
            let mut other = Wire::new(self.route.open(&self.target).await.ok()?);
            other.send(&PgWireFrontendMessage::CancelRequest(request)).await.ok()?;
            // The server closes when it has passed the request on.
            other.drain().await;
            self.answer().await.ok()
        };
        tokio::time::timeout(CANCEL, Box::pin(both)).await.ok();
    }

    /// START_REPLICATION at the slot's own position. `messages`: also what `pg_logical_emit_message` writes. `deadline` bounds the wait for the server's consent.
    pub async fn start(
        mut self,
        slot: &str,
        publications: &[&str],
        messages: bool,
        deadline: Duration,
    ) -> Result<ReplicationStream, ReplicationError> {
        if !self.between_queries {
            return Err(ReplicationError::Abandoned);
        }
        let mut command = start_command(slot, publications, messages)?;
        if faults::seeded(Bug::ResumeAtServer) {
            let position = self.query("select pg_catalog.pg_current_wal_flush_lsn()", deadline).await?;
            let position = position.into_iter().flatten().flatten().next().unwrap_or_default();
            command = command.replacen("0/0", &position, 1);
        }
        let consent = async {
            self.wire.send(&PgWireFrontendMessage::Query(Query::new(command))).await?;
            loop {
                match self.wire.receive().await? {
                    Incoming::CopyBoth => return Ok(()),
                    Incoming::Notice(notice) => self.notices.push(notice),
                    Incoming::Error(error) => return Err(error.into()),
                    other => return Err(other.unexpected()),
                }
            }
        };
        let seconds = deadline.as_secs();
        let timeout = Err(ReplicationError::Timeout { what: "START_REPLICATION", seconds });
        tokio::time::timeout(deadline, consent).await.unwrap_or(timeout)?;
        Ok(ReplicationStream::new(self.wire, self.notices, self.sender_timeout))
    }
}

/// Position 0/0 is "where the slot is": a lower one would be moved up silently, a higher one would skip silently.
fn start_command(slot: &str, publications: &[&str], messages: bool) -> Result<String, ReplicationError> {
    let valid = (1..=63).contains(&slot.len())
        && slot.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if !valid {
        return Err(ReplicationError::SlotName(slot.to_owned()));
    }
    let names: Vec<String> = publications.iter().map(|name| quote_ident(name)).collect();
    let names = quote_literal(&names.join(","));
    let messages = if messages { ", messages 'true'" } else { "" };
    Ok(format!(
        "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {names}{messages})",
        quote_ident(slot)
    ))
}

/// An SQL identifier, always quoted.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant for a session with `standard_conforming_strings = on`, and for the replication grammar, which knows no
/// backslash either.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_inside_the_literal_and_the_literal_around_them() {
        let command = start_command("shop_1", &["outbox", "it's \"odd\""], false).unwrap();
        assert_eq!(
            command,
            "START_REPLICATION SLOT \"shop_1\" LOGICAL 0/0 \
             (proto_version '1', publication_names '\"outbox\",\"it''s \"\"odd\"\"\"')"
        );
        assert!(
            start_command("shop_1", &["p"], true).unwrap().ends_with(r#"publication_names '"p"', messages 'true')"#)
        );
    }

    #[test]
    fn only_what_can_be_a_slot_is_asked_for() {
        for name in ["", "Shop", "a-b", "a\"b", "ä", &"a".repeat(64)] {
            assert!(matches!(start_command(name, &["p"], false), Err(ReplicationError::SlotName(_))), "{name}");
        }
        assert!(start_command(&"a".repeat(63), &["p"], false).is_ok());
    }
}
