//! What PostgreSQL says when it refuses, and what an operator can do about it.
//!
//! Each `Display` here is the whole message for a person, the cause's words included: print it, not the chain of sources.

use std::fmt;
use std::io;

use tokio_postgres::error::DbError;

use crate::tls::{TlsConfigError, refuses_ours};

/// For [`ConnectError::Login`].
pub(super) const NO_PASSWORD: &str = "the server asks for a password, and DATABASE_URL has none";

/// An ErrorResponse (manual, "Error and Notice Message Fields").
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`, perhaps translated.
    pub severity: String,
    /// Five characters (manual, appendix "PostgreSQL Error Codes").
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ServerError {
    /// 57P01 (administrator's command, fast shutdown), 57P02 (crash of another process), 57P03 (starting or stopping):
    /// the server is going away or not there yet (rule R9).
    pub fn is_shutting_down(&self) -> bool {
        matches!(self.sqlstate.as_str(), "57P01" | "57P02" | "57P03")
    }

    /// Classes 22 and 23 quote values of rows in their texts, which no log may hold.
    fn may_quote_values(&self) -> bool {
        self.sqlstate.starts_with("22") || self.sqlstate.starts_with("23")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sqlstate.starts_with("22") {
            return write!(f, "a value was refused (SQLSTATE {})", self.sqlstate);
        }
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        if self.may_quote_values() {
            return Ok(());
        }
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, "; {}", more.trim_end_matches('.'))?;
        }
        Ok(())
    }
}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> Self {
        ServerError {
            severity: error.severity().to_owned(),
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// No usable session. Every one of these is worth another try later: servers come back and settings are mended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the host name `{host}` cannot be resolved ({source}); check the host in DATABASE_URL")]
    Resolve { host: String, source: io::Error },
    #[error("cannot connect to PostgreSQL at {place}: {source}{}", io_hint(source))]
    Io { place: String, source: io::Error },
    #[error(
        "PostgreSQL at {place} did not answer within {seconds} s; check host, port and firewall (connect_timeout in DATABASE_URL)"
    )]
    Timeout { place: String, seconds: u64 },
    #[error(transparent)]
    TlsConfig(#[from] TlsConfigError),
    #[error(
        "PostgreSQL at {place} does not speak TLS; turn it on there (ssl = on), or take plaintext knowingly with sslmode=disable in DATABASE_URL"
    )]
    NoTls { place: String },
    /// `what` names the refusal and the setting that helps.
    #[error("TLS with PostgreSQL at {place} failed: {what}")]
    Tls { place: String, what: String, source: io::Error },
    #[error("PostgreSQL at {place} refused: {error}{}", server_hint(error))]
    Server { place: String, error: Box<ServerError> },
    #[error(
        "PostgreSQL at {place} refused: {error}; run there as an administrator: alter role {role} with replication (on RDS: grant rds_replication to {role})"
    )]
    NoReplicationRight { place: String, role: String, error: Box<ServerError> },
    #[error("cannot log in to PostgreSQL at {place}: {what}")]
    Login { place: String, what: String },
    #[error("PostgreSQL at {place} is {what}; give all hosts in DATABASE_URL, or the address of the primary")]
    ReadOnly { place: String, what: &'static str },
    #[error(
        "PostgreSQL at {place} does not keep {setting}: it is `{actual}` instead of `{expected}`; a pooler in between? connect to the server itself"
    )]
    Setting { place: String, setting: String, expected: String, actual: String },
    #[error("unexpected answer from {place}: {what}; is this PostgreSQL?")]
    Protocol { place: String, what: String },
    #[error("{}", joined(.0))]
    Several(Vec<ConnectError>),
}

impl ConnectError {
    pub fn sqlstate(&self) -> Option<&str> {
        self.server_error().map(|error| error.sqlstate.as_str())
    }

    /// See [`ServerError::is_shutting_down`].
    pub fn is_shutting_down(&self) -> bool {
        self.server_error().is_some_and(ServerError::is_shutting_down)
    }

    /// What the server said, if one was reached (of several hosts: the last that said something).
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            ConnectError::Server { error, .. } | ConnectError::NoReplicationRight { error, .. } => Some(error),
            ConnectError::Several(errors) => errors.iter().rev().find_map(ConnectError::server_error),
            _ => None,
        }
    }

    /// A login that was refused is refused for good: other hosts are not tried, as in libpq.
    pub(crate) fn is_login_refusal(&self) -> bool {
        matches!(self, ConnectError::Login { .. } | ConnectError::NoReplicationRight { .. })
            || self.sqlstate().is_some_and(|state| state.starts_with("28"))
    }

    /// pg_hba.conf has no line for this user, database, address and encryption, or TLS failed: where `sslmode` leaves the
    /// choice, the other encryption may do. A wrong password is never repeated.
    pub(crate) fn is_about_encryption(&self) -> bool {
        matches!(self, ConnectError::Tls { .. }) || self.sqlstate() == Some("28000")
    }
}

fn io_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if refuses_ours(error) => {
            "; the server does not take the client certificate: one of an authority in its ssl_ca_file belongs into sslcert and sslkey of DATABASE_URL"
        }
        io::ErrorKind::ConnectionRefused => "; is the server running, and are host and port in DATABASE_URL right?",
        io::ErrorKind::NotFound => "; there is no such Unix socket: is the server running here, with this port?",
        io::ErrorKind::PermissionDenied => "; this user may not open the Unix socket",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "; check the network between here and there"
        }
        _ => "",
    }
}

/// What to do about the refusals that a new installation meets.
fn server_hint(error: &ServerError) -> &'static str {
    match error.sqlstate.as_str() {
        "28P01" => "; the user or the password in DATABASE_URL is wrong",
        "28000" if error.message.contains("pg_hba") => {
            "; add a line to pg_hba.conf for this user, database and address (hostssl, scram-sha-256), then select pg_reload_conf()"
        }
        "28000" if error.message.contains("client certificate") => {
            "; pg_hba.conf asks for one here: name a certificate of an authority in the server's ssl_ca_file, and its key, in DATABASE_URL with sslcert=/path/to/cert.pem and sslkey=/path/to/key.pem"
        }
        "28000" if error.message.contains("ertificate authentication") => {
            "; the certificate of sslcert is another user's: its common name has to be the user of DATABASE_URL, or be mapped to it (pg_ident.conf, map= in pg_hba.conf)"
        }
        "28000" => "; this user may not log in here",
        "3D000" => "; create the database, or correct its name in DATABASE_URL",
        "42501" => {
            "; the user lacks a right: `postrider migrate --print-roles` shows the grants (managed services have a role of their own for replication)"
        }
        "53300" => {
            "; every connection is taken: raise max_connections (for replication: max_wal_senders), or free some"
        }
        "08P01" if error.message.contains("startup parameter") => {
            "; a pooler is in between: connect to the server itself"
        }
        "57P03" => "; the server is starting up or shutting down",
        _ => "",
    }
}

fn joined(errors: &[ConnectError]) -> String {
    let texts: Vec<String> = errors.iter().map(ConnectError::to_string).collect();
    texts.join("; then ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sqlstate: &str, message: &str) -> ConnectError {
        let error = ServerError {
            severity: "FATAL".to_owned(),
            sqlstate: sqlstate.to_owned(),
            message: message.to_owned(),
            detail: Some("Failing row contains (4711).".to_owned()),
            hint: None,
        };
        ConnectError::Server { place: "db:5432".to_owned(), error: error.into() }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let text = refused("28P01", "password authentication failed for user \"app\"").to_string();
        assert!(text.contains("password in DATABASE_URL is wrong"), "{text}");
        assert!(refused("3D000", "database \"x\" does not exist").to_string().contains("create the database"));
    }

    #[test]
    fn values_of_rows_are_not_shown() {
        assert!(!refused("23514", "new row violates check constraint").to_string().contains("4711"));
        assert!(!refused("22P02", "invalid input syntax for type integer: \"4711\"").to_string().contains("4711"));
        assert!(refused("55000", "not ready").to_string().contains("4711"), "other details are shown");
    }

    #[test]
    fn of_several_hosts_the_last_server_that_answered_is_asked_for_its_state() {
        let lost = ConnectError::Timeout { place: "b:5432".to_owned(), seconds: 10 };
        let several = ConnectError::Several(vec![refused("57P03", "starting up"), lost]);
        assert_eq!(several.sqlstate(), Some("57P03"));
        assert!(several.is_shutting_down());
        assert!(several.to_string().contains("db:5432") && several.to_string().contains("b:5432"));
    }
}
