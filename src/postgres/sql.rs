//! Ordinary SQL, by tokio-postgres, on sockets of [`dial`].
//!
//! One session of this kind is open for as long as the relay runs: PostgreSQL ends it first when it shuts down, and that
//! is the sign to let go of the replication connection (rule R9). See [`Sql::ended`].

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::config::{ChannelBinding as Binding, SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Connection, SimpleQueryMessage};

use super::dial::{self, Dialled, Socket};
use super::error::{ConnectError, ServerError};
use super::url::{self, SessionAttrs, Target};

/// A session with settings of our own. Every name in its statements must be qualified: its `search_path` is empty.
///
/// Dropping it ends the session.
#[derive(Debug)]
pub struct Sql {
    client: Client,
    ended: Ended,
    server_version: u32,
}

/// A statement failed, or the connection did.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("{0}")]
    Server(#[from] ServerError),
    #[error("the SQL connection to PostgreSQL ended: {0}")]
    Closed(String),
    /// A parameter or column is not of the type that the program expects.
    #[error("{}", with_causes(.0))]
    Client(#[source] tokio_postgres::Error),
}

impl SqlError {
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            SqlError::Server(error) => Some(&error.sqlstate),
            SqlError::Closed(_) | SqlError::Client(_) => None,
        }
    }

    /// See [`ServerError::is_shutting_down`].
    pub fn is_shutting_down(&self) -> bool {
        matches!(self, SqlError::Server(error) if error.is_shutting_down())
    }

    /// The session is gone: nothing more can be asked on it.
    pub fn is_closed(&self) -> bool {
        self.is_shutting_down() || matches!(self, SqlError::Closed(_))
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return SqlError::Server(db.into());
        }
        if error.is_closed() || io_error(&error).is_some() {
            return SqlError::Closed(with_causes(&error));
        }
        SqlError::Client(error)
    }
}

fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source()?.downcast_ref()
}

/// tokio-postgres says in its first line only what kind of error it is.
fn with_causes(error: &tokio_postgres::Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Sql {
    /// Opens a session on the first host that takes us and is what `target_session_attrs` asks for. `statement_timeout`
    /// holds for every statement (zero: none).
    pub async fn connect(
        target: &Target,
        application_name: &str,
        statement_timeout: Duration,
    ) -> Result<Sql, ConnectError> {
        let config = config(target, application_name);
        dial::connect(target, |dialled| open(&config, target.session, statement_timeout, dialled)).await
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// For transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// `server_version_num`: 170004 is 17.4.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// A handle that tells when and why the session ended, independent of statements under way.
    pub fn ended(&self) -> Ended {
        self.ended.clone()
    }
}

/// Tells when and why a session ended.
#[derive(Clone, Debug)]
pub struct Ended(watch::Receiver<Option<Arc<SqlError>>>);

impl Ended {
    /// Waits for the end. Cancel-safe; at once if it has come already.
    ///
    /// PostgreSQL's last words (57P01) go to the statement that is under way, if there is one: then this says only
    /// "closed". Whoever needs to act on a shutdown must act on every end.
    pub async fn wait(&mut self) -> Arc<SqlError> {
        let reason = self.0.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| Arc::new(SqlError::Closed("its task was stopped".to_owned())))
    }
}

fn config(target: &Target, application_name: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&target.user)
        .dbname(&target.database)
        .application_name(target.application_name(application_name))
        // The socket comes as it should be, encrypted or not: `AsIs` passes it on.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct)
        .channel_binding(match target.channel_binding {
            url::ChannelBinding::Disable => Binding::Disable,
            url::ChannelBinding::Prefer => Binding::Prefer,
            url::ChannelBinding::Require => Binding::Require,
        });
    if let Some(password) = target.password() {
        config.password(password);
    }
    if let Some(options) = &target.options {
        config.options(options);
    }
    config
}

async fn open(
    config: &tokio_postgres::Config,
    attrs: SessionAttrs,
    statement_timeout: Duration,
    Dialled { socket, route }: Dialled,
) -> Result<Sql, ConnectError> {
    let place = route.place;
    let failed = |error| refused(&place, error);
    let (client, connection) = config.connect_raw(socket, AsIs).await.map_err(failed)?;
    let (tell, ended) = watch::channel(None);
    tokio::spawn(async move {
        let reason = drive(connection).await;
        tell.send_replace(Some(Arc::new(reason)));
    });

    let state = client
        .simple_query("select pg_catalog.current_setting('server_version_num'), pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')")
        .await
        .map_err(failed)?;
    let row = state.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let field = |at| row.and_then(|row| row.try_get(at).ok().flatten()).unwrap_or_default();
    let server_version = field(0)
        .parse()
        .map_err(|_| ConnectError::Protocol { place: place.clone(), what: "no server_version_num".to_owned() })?;
    check_session(&place, attrs, field(1) == "t", field(2) == "on")?;
    client.batch_execute(&settings(server_version, statement_timeout)).await.map_err(failed)?;
    Ok(Sql { client, ended: Ended(ended), server_version })
}

/// `target_session_attrs`, for both kinds of connection.
pub(super) fn check_session(
    place: &str,
    attrs: SessionAttrs,
    in_recovery: bool,
    read_only: bool,
) -> Result<(), ConnectError> {
    let what = match attrs {
        SessionAttrs::ReadWrite | SessionAttrs::Primary if in_recovery => "a standby",
        SessionAttrs::ReadWrite if read_only => "read-only (default_transaction_read_only)",
        SessionAttrs::Any | SessionAttrs::ReadWrite | SessionAttrs::Primary => return Ok(()),
    };
    Err(ConnectError::ReadOnly { place: place.to_owned(), what })
}

/// What every statement of ours relies on, whatever the role or the database sets.
fn settings(server_version: u32, statement_timeout: Duration) -> String {
    let mut settings = format!(
        "set synchronous_commit = on; set statement_timeout = {}; \
         set idle_in_transaction_session_timeout = '10s'; set lock_timeout = '5s'; \
         set search_path = ''; set timezone = 'UTC'; set client_min_messages = warning; \
         set default_transaction_isolation = 'read committed';",
        statement_timeout.as_millis()
    );
    if server_version >= 140_000 {
        settings.push_str(" set idle_session_timeout = 0;");
    }
    if server_version >= 170_000 {
        settings.push_str(" set transaction_timeout = 0;");
    }
    settings
}

/// Runs the connection to its end.
async fn drive(mut connection: Connection<Socket, Socket>) -> SqlError {
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::warn!(sqlstate = notice.code().code(), "PostgreSQL says: {}", notice.message());
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.into(),
            None => return SqlError::Closed("by us".to_owned()),
        }
    }
}

fn refused(place: &str, error: tokio_postgres::Error) -> ConnectError {
    let place = place.to_owned();
    if let Some(db) = error.as_db_error() {
        return ConnectError::Server { place, error: Box::new(db.into()) };
    }
    if let Some(io) = io_error(&error) {
        // Of a TLS alert the kind is kept: it says what to do.
        let alert = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
        let source =
            alert.map_or_else(|| io::Error::new(io.kind(), io.to_string()), |alert| io::Error::new(io.kind(), alert));
        return ConnectError::Io { place, source };
    }
    if error.is_closed() {
        return ConnectError::Io { place, source: io::ErrorKind::UnexpectedEof.into() };
    }
    let what = match with_causes(&error) {
        text if text.contains("password missing") => super::error::NO_PASSWORD.to_owned(),
        text => text,
    };
    ConnectError::Login { place, what }
}

/// Hands a socket over as it is.
struct AsIs;

impl TlsConnect<Socket> for AsIs {
    type Stream = Socket;
    type Error = Infallible;
    type Future = Ready<Result<Socket, Infallible>>;

    fn connect(self, socket: Socket) -> Self::Future {
        ready(Ok(socket))
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_may_happen_in_a_task_of_its_own() {
        fn send<T: Send>(_: T) {}
        let target = Target::parse("postgres://u@localhost/d", false).unwrap();
        send(Sql::connect(&target, "test", Duration::ZERO));
        send(crate::postgres::replication::ReplicationConnection::connect(&target, "test"));
    }

    #[test]
    fn settings_that_an_older_server_does_not_know_are_left_out() {
        let old = settings(130_000, Duration::from_secs(30));
        assert!(old.contains("statement_timeout = 30000;") && old.contains("search_path = ''"));
        assert!(!old.contains("idle_session_timeout") && !old.contains("transaction_timeout"), "{old}");
        assert!(settings(140_000, Duration::ZERO).contains("idle_session_timeout = 0"));
        assert!(settings(170_000, Duration::ZERO).contains(" transaction_timeout = 0"));
    }
}
