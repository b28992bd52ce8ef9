//! Where PostgreSQL is and how to get there: `DATABASE_URL`, as people write it for libpq.
//!
//! Both forms of libpq (manual, chapter "Connection Strings"): `postgres://user:password@host:5432,other/db?key=value` and
//! `host=... user=...`. Not read: `PG*` variables, `~/.pgpass` and service files; the URL is the one place.
//!
//! Where we differ from libpq, on purpose:
//! * no `sslmode` means `verify-full`, but plaintext on a Unix socket and to `localhost` or a loopback address;
//! * no `target_session_attrs` means `read-write`: a relay writes its state, and slots live on the primary;
//! * no `connect_timeout` means 10 s, and keepalive finds a dead peer in about half a minute instead of two hours;
//! * an unknown key is an error, and so is one that could only be ignored.

mod parse;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

pub use parse::ParseTargetError;

/// A parsed `DATABASE_URL`. Its `Debug` and `Display` hold no password.
#[derive(Clone)]
pub struct Target {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<SecretString>,
    /// Passed on as it stands (`-c name=value ...`); what Postrider pins wins over it.
    pub(crate) options: Option<String>,
    application_name: Option<String>,
    /// For each address: connect, TLS and login together.
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalive: Option<Keepalive>,
    /// Unacknowledged data for this long ends the connection (Linux).
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) session: SessionAttrs,
    pub(crate) channel_binding: ChannelBinding,
    ssl_mode: Option<SslMode>,
    pub(crate) root_cert: Option<RootCert>,
    /// Client certificate and its key.
    pub(crate) client_cert: Option<(PathBuf, PathBuf)>,
    require_tls: bool,
}

/// One server of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A name or a literal address, which the certificate must be for; and `hostaddr`, where to connect instead of asking DNS.
    Tcp { host: String, addr: Option<IpAddr> },
    /// The directory of the socket.
    Unix(PathBuf),
}

/// `sslmode`, with libpq's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    const ALL: [SslMode; 6] =
        [SslMode::Disable, SslMode::Allow, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];

    fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }

    /// Whether it may end without encryption.
    fn may_be_plaintext(self) -> bool {
        matches!(self, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
    }
}

/// `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootCert {
    /// The operating system's authorities; also what `verify-full` without `sslrootcert` means.
    System,
    /// These authorities and no others.
    File(PathBuf),
}

/// `target_session_attrs`: the values that make sense for a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionAttrs {
    Any,
    /// Not a standby, and transactions may write.
    ReadWrite,
    /// Not a standby.
    Primary,
}

/// `channel_binding`: SCRAM proves that no one sits between, also where the certificate is not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// TCP keepalive: silence before the first probe, time between probes, unanswered probes that end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
}

impl Target {
    /// Reads `DATABASE_URL`. With `require_tls`, a mode that could end in plaintext is refused, and no `sslmode` means
    /// `verify-full` on every TCP connection; a Unix socket stays allowed, since it never leaves the machine.
    pub fn parse(text: &str, require_tls: bool) -> Result<Target, ParseTargetError> {
        parse::target(text, require_tls)
    }

    /// `postgresql://user@host:5432,other:5432/db`: for logs and messages, never with the password.
    pub fn describe(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        format!("postgresql://{}@{}/{}", self.user, hosts.join(","), self.database)
    }

    /// The name of the database: the default of `source.name`.
    pub fn database(&self) -> &str {
        &self.database
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    /// What `pg_stat_activity` shows: the URL's `application_name` if it has one, else `ours`.
    pub fn application_name<'a>(&'a self, ours: &'a str) -> &'a str {
        self.application_name.as_deref().unwrap_or(ours)
    }

    /// What is weaker than it could be about TLS, a sentence each, for `run` and `check` to print. Nothing is said of
    /// connections that never leave the machine.
    pub fn tls_warnings(&self) -> Vec<String> {
        let Some(mode) = self.ssl_mode else { return Vec::new() };
        let remote = self.hosts.iter().filter(|host| !host.is_local());
        remote
            .filter_map(|host| {
                let what = match (mode, &self.root_cert) {
                    (SslMode::Disable, _) => "sends passwords and rows in plaintext",
                    (SslMode::Allow | SslMode::Prefer, _) => {
                        "may send passwords and rows in plaintext, and does not verify who answers"
                    }
                    (SslMode::Require, None) => "encrypts, but does not verify who answers",
                    (SslMode::Require | SslMode::VerifyCa, _) => {
                        "verifies the certificate's authority, but not its host name"
                    }
                    (SslMode::VerifyFull, _) => return None,
                };
                let mode = mode.as_str();
                Some(format!("sslmode={mode} {what} at {host}; use sslmode=verify-full (with sslrootcert=... for a CA of your own)"))
            })
            .collect()
    }

    /// The mode that holds for `host`, connected at `ip` (`None`: a Unix socket).
    pub(crate) fn ssl_mode_for(&self, host: &Host, ip: Option<IpAddr>) -> SslMode {
        let Some(ip) = ip else { return SslMode::Disable };
        match (self.ssl_mode, &self.root_cert) {
            // As in libpq: an authority that is named is also asked.
            (Some(SslMode::Require), Some(RootCert::File(_))) => SslMode::VerifyCa,
            (Some(mode), _) => mode,
            // The name alone proves nothing: it is the address that must be this machine.
            (None, _) if host.is_local() && is_loopback(ip) && !self.require_tls => SslMode::Disable,
            (None, _) => SslMode::VerifyFull,
        }
    }

    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(ExposeSecret::expose_secret)
    }
}

impl Host {
    /// A Unix socket, `localhost` or a literal loopback address.
    fn is_local(&self) -> bool {
        match &self.place {
            Place::Unix(_) => true,
            Place::Tcp { addr: Some(addr), .. } => is_loopback(*addr),
            Place::Tcp { host, addr: None } => {
                host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback)
            }
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(directory) => write!(f, "{}:{}", directory.display(), self.port),
            Place::Tcp { host, .. } if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Place::Tcp { host, .. } => write!(f, "{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.describe()).finish()
    }
}

#[cfg(test)]
mod tests;
