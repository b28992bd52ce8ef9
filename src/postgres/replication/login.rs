//! From a socket to a session with `replication=database`: startup, authentication, settings.

use std::ops::RangeInclusive;
use std::time::Duration;

use pgwire::messages::startup::{
    Authentication, Password, PasswordMessageFamily, SASLInitialResponse, SASLResponse, SecretKey, Startup,
};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};

use super::wire::{Incoming, Wire};
use super::{ReplicationConnection, ReplicationError, quote_ident};
use crate::postgres::dial::Dialled;
use crate::postgres::error::{ConnectError, NO_PASSWORD};
use crate::postgres::sql::check_session;
use crate::postgres::url::{ChannelBinding, Target};

/// What the session must be like, and how `current_setting` then shows it. The first group decides how values are printed
/// (DESIGN 1.2: a body is a function of the WAL alone, so never of a role's or a server's settings).
///
/// Sent as startup parameters, which win over `ALTER ROLE ... SET` and `ALTER DATABASE ... SET`.
const SETTINGS: [(&str, &str, &str); 12] = [
    ("DateStyle", "ISO,YMD", "ISO, YMD"),
    ("IntervalStyle", "iso_8601", "iso_8601"),
    ("extra_float_digits", "3", "3"),
    ("TimeZone", "UTC", "UTC"),
    ("bytea_output", "hex", "hex"),
    ("client_encoding", "UTF8", "UTF8"),
    ("search_path", "", ""),
    ("row_security", "off", "off"),
    ("statement_timeout", "0", "0"),
    ("lock_timeout", "0", "0"),
    ("idle_in_transaction_session_timeout", "0", "0"),
    ("client_min_messages", "warning", "warning"),
];

/// The same for settings that not every server knows, which refuses a startup that names them: from which version on.
const LATER_SETTINGS: [(&str, u32); 2] = [("idle_session_timeout", 140_000), ("transaction_timeout", 170_000)];

/// Bounds of `wal_sender_timeout`, in milliseconds. It decides when a frozen relay loses the slot, so an operator may have it
/// short. Above or 0 (off) a relay whose network was cut would hold the slot for longer, up to a quarter of an hour; below,
/// a relay that loads its dead letters before it reads would lose it.
const SENDER_TIMEOUT: RangeInclusive<u64> = 5_000..=60_000;

/// `server_encoding` of a database that takes any bytes. Asked for UTF-8, its walsender would check each text and end with an
/// error at the first that is not (`pg_server_to_any`), again and again: one such row would stop everything. As they are, the
/// bytes come through, and that row alone is poison.
const NO_ENCODING: &str = "SQL_ASCII";

/// Logs in, checks what kind of server this is, and pins the settings.
pub(super) async fn log_in(
    target: &Target,
    application_name: &str,
    Dialled { socket, route }: Dialled,
) -> Result<ReplicationConnection, ConnectError> {
    let place = route.place.clone();
    let failed = |error| connect_error(&place, target, error);
    let mut connection = ReplicationConnection {
        wire: Wire::new(socket),
        target: target.clone(),
        route,
        process: 0,
        secret: 0,
        server_version: 0,
        sender_timeout: Duration::ZERO,
        notices: Vec::new(),
        between_queries: true,
    };
    let name = target.application_name(application_name);
    start_up(&mut connection, target, name).await.map_err(failed)?;
    verify(&mut connection, target, &place).await?;
    Ok(connection)
}

async fn start_up(
    connection: &mut ReplicationConnection,
    target: &Target,
    application_name: &str,
) -> Result<(), ReplicationError> {
    let wire = &mut connection.wire;
    let mut startup = Startup::new();
    let mut set = |name: &str, value: &str| startup.parameters.insert(name.to_owned(), value.to_owned());
    set("user", &target.user);
    set("database", &target.database);
    set("replication", "database");
    set("application_name", application_name);
    if let Some(options) = &target.options {
        set("options", options);
    }
    for (name, value, _) in SETTINGS {
        set(name, value);
    }
    wire.send(&PgWireFrontendMessage::Startup(startup)).await?;

    let mut proven = false;
    loop {
        match wire.receive().await? {
            Incoming::Other(PgWireBackendMessage::Authentication(request)) => {
                proven |= authenticate(wire, target, request).await?;
            }
            Incoming::Other(PgWireBackendMessage::BackendKeyData(key)) => {
                connection.process = key.pid;
                if let SecretKey::I32(secret) = key.secret_key {
                    connection.secret = secret;
                }
            }
            Incoming::Other(PgWireBackendMessage::ReadyForQuery(_)) => break,
            Incoming::Notice(_) => {}
            Incoming::Error(error) => return Err(error.into()),
            other => return Err(other.unexpected()),
        }
    }
    if target.channel_binding == ChannelBinding::Require && !proven {
        return Err(ReplicationError::Login("the server did not prove itself by channel binding".to_owned()));
    }
    Ok(())
}

/// Answers one request. `true` if both sides have proven themselves with channel binding.
async fn authenticate(wire: &mut Wire, target: &Target, request: Authentication) -> Result<bool, ReplicationError> {
    let password = || target.password().ok_or_else(|| ReplicationError::Login(NO_PASSWORD.to_owned()));
    if target.channel_binding == ChannelBinding::Require
        && !matches!(request, Authentication::SASL(_) | Authentication::Ok)
    {
        return Err(ReplicationError::Login("the server asks for a password without channel binding".to_owned()));
    }
    let answer = match request {
        Authentication::Ok => return Ok(false),
        Authentication::SASL(mechanisms) => return scram(wire, target, password()?, &mechanisms).await,
        Authentication::CleartextPassword => password()?.to_owned(),
        Authentication::MD5Password(salt) => {
            let salt =
                salt.try_into().map_err(|_| ReplicationError::Protocol("a salt that is not 4 bytes".to_owned()))?;
            md5_hash(target.user.as_bytes(), password()?.as_bytes(), salt)
        }
        _ => {
            return Err(ReplicationError::Login(
                "the server asks for a method other than SCRAM, MD5 or a password".to_owned(),
            ));
        }
    };
    send_password(wire, PasswordMessageFamily::Password(Password::new(answer))).await?;
    Ok(false)
}

/// SCRAM-SHA-256 (RFC 7677), bound to the TLS connection where the server offers it. `true` if it was bound.
async fn scram(
    wire: &mut Wire,
    target: &Target,
    password: &str,
    mechanisms: &[String],
) -> Result<bool, ReplicationError> {
    let offered = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
    let end_point = wire.socket().end_point().filter(|_| target.channel_binding != ChannelBinding::Disable);
    let (mechanism, binding) = match end_point {
        Some(end_point) if offered(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point))
        }
        // Tells the server that we could have: if it did offer, someone in between took the offer away.
        Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    let bound = mechanism == SCRAM_SHA_256_PLUS;
    if !bound && target.channel_binding == ChannelBinding::Require {
        return Err(ReplicationError::Login("channel_binding=require, but the server offers none here".to_owned()));
    }
    if !offered(mechanism) {
        return Err(ReplicationError::Login("the server asks for a SASL method other than SCRAM-SHA-256".to_owned()));
    }
    let refused = |error: std::io::Error| ReplicationError::Login(format!("SCRAM failed: {error}"));

    let mut scram = ScramSha256::new(password.as_bytes(), binding);
    let first = SASLInitialResponse::new(mechanism.to_owned(), Some(scram.message().to_vec().into()));
    send_password(wire, PasswordMessageFamily::SASLInitialResponse(first)).await?;
    match wire.receive().await? {
        Incoming::Other(PgWireBackendMessage::Authentication(Authentication::SASLContinue(data))) => {
            scram.update(&data).map_err(refused)?;
        }
        Incoming::Error(error) => return Err(error.into()),
        other => return Err(other.unexpected()),
    }
    let last = SASLResponse::new(scram.message().to_vec().into());
    send_password(wire, PasswordMessageFamily::SASLResponse(last)).await?;
    match wire.receive().await? {
        Incoming::Other(PgWireBackendMessage::Authentication(Authentication::SASLFinal(data))) => {
            scram.finish(&data).map_err(refused)?;
        }
        Incoming::Error(error) => return Err(error.into()),
        other => return Err(other.unexpected()),
    }
    Ok(bound)
}

async fn send_password(wire: &mut Wire, message: PasswordMessageFamily) -> Result<(), ReplicationError> {
    wire.send(&PgWireFrontendMessage::PasswordMessageFamily(message)).await
}

/// Asks the session what it is, and refuses one that is not what we asked for (a pooler may drop settings).
async fn verify(connection: &mut ReplicationConnection, target: &Target, place: &str) -> Result<(), ConnectError> {
    let failed = |error| connect_error(place, target, error);
    let protocol = |what: &str| ConnectError::Protocol { place: place.to_owned(), what: what.to_owned() };
    let timeout = target.connect_timeout;

    let about = "select pg_catalog.current_setting('server_version_num'), pg_catalog.pg_is_in_recovery(), \
                 pg_catalog.current_setting('transaction_read_only'), pg_catalog.current_setting('server_encoding'), \
                 (select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout')";
    let rows = connection.query(about, timeout).await.map_err(failed)?;
    let [Some(version), Some(in_recovery), Some(read_only), Some(encoding), Some(sender_timeout)] =
        rows.first().map_or(&[][..], Vec::as_slice)
    else {
        return Err(protocol("no answer to a query"));
    };
    connection.server_version = version.parse().map_err(|_| protocol("no server_version_num"))?;
    check_session(place, target.session, in_recovery == "t", read_only == "on")?;

    let mut expected: Vec<(&str, &str)> = SETTINGS.iter().map(|&(name, _, shown)| (name, shown)).collect();
    if encoding == NO_ENCODING {
        connection.query(&format!("set client_encoding = '{NO_ENCODING}'"), timeout).await.map_err(failed)?;
        expected.retain(|(name, _)| *name != "client_encoding");
        expected.push(("client_encoding", NO_ENCODING));
    }
    for (name, since) in LATER_SETTINGS {
        if connection.server_version >= since {
            connection.query(&format!("set {name} = 0"), timeout).await.map_err(failed)?;
            expected.push((name, "0"));
        }
    }
    let given = sender_timeout.parse().map_err(|_| protocol("no wal_sender_timeout"))?;
    let ours = sender_timeout_for(given);
    if ours != given {
        connection.query(&format!("set wal_sender_timeout = {ours}"), timeout).await.map_err(failed)?;
    }
    connection.sender_timeout = Duration::from_millis(ours);
    let names: Vec<String> = expected.iter().map(|(name, _)| format!("pg_catalog.current_setting('{name}')")).collect();
    let rows = connection.query(&format!("select {}", names.join(", ")), timeout).await.map_err(failed)?;
    let actual = rows.into_iter().next().unwrap_or_default();
    for ((name, expected), actual) in expected.into_iter().zip(actual.into_iter().chain(std::iter::repeat(None))) {
        let actual = actual.unwrap_or_default();
        if actual != expected {
            let (setting, expected) = (name.to_owned(), expected.to_owned());
            return Err(ConnectError::Setting { place: place.to_owned(), setting, expected, actual });
        }
    }
    Ok(())
}

/// In milliseconds: what the session is to have where the server, the database or the role says `given`.
fn sender_timeout_for(given: u64) -> u64 {
    if given == 0 { *SENDER_TIMEOUT.end() } else { given.clamp(*SENDER_TIMEOUT.start(), *SENDER_TIMEOUT.end()) }
}

fn connect_error(place: &str, target: &Target, error: ReplicationError) -> ConnectError {
    let place = place.to_owned();
    match error {
        // Only a role with the attribute may start a walsender.
        ReplicationError::Server(error) if error.sqlstate == "42501" => {
            ConnectError::NoReplicationRight { place, role: quote_ident(&target.user), error: error.into() }
        }
        ReplicationError::Server(error) => ConnectError::Server { place, error: error.into() },
        ReplicationError::Io(source) => ConnectError::Io { place, source },
        ReplicationError::Closed => ConnectError::Io { place, source: std::io::ErrorKind::UnexpectedEof.into() },
        ReplicationError::Login(what) => ConnectError::Login { place, what },
        other => ConnectError::Protocol { place, what: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::sender_timeout_for;

    #[test]
    fn a_short_sender_timeout_is_the_operators_choice_and_none_is_not() {
        for (given, ours) in [(0, 60_000), (1_000, 5_000), (7_000, 7_000), (60_000, 60_000), (300_000, 60_000)] {
            assert_eq!(sender_timeout_for(given), ours);
        }
    }
}
