//! From text to a [`Target`]: the two forms of libpq's connection strings.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{ChannelBinding, Host, Keepalive, Place, RootCert, SessionAttrs, SslMode, Target};

const DEFAULT_PORT: u16 = 5432;
/// Where distributions put the socket; tried first when no host is given, then `localhost`.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead peer is found after 15 + 3 x 5 s of silence.
const KEEPALIVE: Keepalive = Keepalive { idle: Duration::from_secs(15), interval: Duration::from_secs(5), count: 3 };
/// The same for a peer that dies with our data on the way.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The text is not a usable connection string. Never holds a value that could be (part of) the password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTargetError {
    #[error("the URL is empty")]
    Empty,
    #[error("the URL must begin with `postgres://` or `postgresql://`, or be of the form `host=... dbname=...`")]
    Scheme,
    #[error(
        "the URL has an `@` after the first `/`, `?` or `#`: in a user name or password write `@ : / ? # %` as `%40 %3A %2F %3F %23 %25`"
    )]
    NotEncoded,
    #[error("{0} is not valid percent-encoding: write `%` itself as `%25`")]
    PercentEncoding(&'static str),
    #[error(
        "the port is not a number from 1 to 65535 (if it is part of the password: write `:` and `/` as `%3A` and `%2F`)"
    )]
    Port,
    #[error("an IPv6 address needs brackets: `[::1]:5432`")]
    Brackets,
    #[error("there are {ports} ports for {hosts} hosts: give one for all, or one each")]
    PortCount { hosts: usize, ports: usize },
    #[error("there are {addresses} `hostaddr` for {hosts} hosts: give one each")]
    HostAddrCount { hosts: usize, addresses: usize },
    #[error("word {0} of the connection string has no `=` (a value with spaces needs single quotes)")]
    NoEquals(usize),
    #[error("a quoted value does not end: its closing `'` is missing")]
    Quote,
    #[error("unknown key `{0}` in the URL")]
    UnknownKey(String),
    #[error("`{key}` in the URL is not supported: {instead}")]
    Unsupported { key: &'static str, instead: &'static str },
    #[error("`{key}={value}` in the URL: expected {expected}")]
    Value { key: &'static str, value: String, expected: &'static str },
    #[error("`sslcert` and `sslkey` belong together: give both or none")]
    ClientCert,
    #[error("`sslmode={0}` with `sslrootcert=system` would accept any host's certificate: use `sslmode=verify-full`")]
    WeakSystem(&'static str),
    #[error(
        "`sslmode=verify-ca` needs `sslrootcert=/path/to/ca.pem` (with the system's authorities any host's certificate would pass): name it, or use `sslmode=verify-full`"
    )]
    VerifyCaWithoutRoot,
    #[error("`sslmode={0}` may end in plaintext, which `require_tls` forbids: use `sslmode=verify-full`")]
    RequireTls(&'static str),
    #[error("`channel_binding=require` needs TLS, which `sslmode={0}` does not promise: use `sslmode=verify-full`")]
    BindingWithoutTls(&'static str),
    #[error("the URL names no user, and neither USER nor LOGNAME is set: write `postgres://user@host/db`")]
    NoUser,
}

/// Keys and values as they were written, later ones winning.
type Settings = BTreeMap<String, String>;

pub(super) fn target(text: &str, require_tls: bool) -> Result<Target, ParseTargetError> {
    let text = text.trim();
    let rest = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
    let settings = match rest {
        Some(rest) => from_url(rest)?,
        None if text.is_empty() => return Err(ParseTargetError::Empty),
        None if text.contains("://") || !text.contains('=') => return Err(ParseTargetError::Scheme),
        None => from_words(text)?,
    };
    build(settings, require_tls)
}

/// `user:password@host:port,host:port/db?key=value&...`, without its scheme.
fn from_url(rest: &str) -> Result<Settings, ParseTargetError> {
    let mut settings = Settings::new();
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        // Otherwise what stands before the `@` would be taken for host and database, and be shown as such.
        None if tail.contains('@') => return Err(ParseTargetError::NotEncoded),
        None => (None, authority),
    };
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        set_nonempty(&mut settings, "user", &decode(user, "the user name")?);
        if let Some(password) = password {
            set_nonempty(&mut settings, "password", &decode(password, "the password")?);
        }
    }
    let (names, ports) = host_list(hosts)?;
    set_nonempty(&mut settings, "host", &names);
    set_nonempty(&mut settings, "port", &ports);

    let (path, query) = tail.split_once('?').map_or((tail, ""), |(path, query)| (path, query));
    let database = decode(path.strip_prefix('/').unwrap_or(path), "the database name")?;
    set_nonempty(&mut settings, "dbname", &database);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key, "a key")?;
        // JDBC's word for it, which libpq takes too.
        if key == "ssl" && value == "true" {
            settings.insert("sslmode".to_owned(), "require".to_owned());
            continue;
        }
        settings.insert(key.into_owned(), decode(value, "a value")?.into_owned());
    }
    Ok(settings)
}

fn set_nonempty(settings: &mut Settings, key: &str, value: &str) {
    if !value.is_empty() {
        settings.insert(key.to_owned(), value.to_owned());
    }
}

fn decode<'a>(text: &'a str, what: &'static str) -> Result<Cow<'a, str>, ParseTargetError> {
    let malformed = text.match_indices('%').any(|(at, _)| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.ok().filter(|_| !malformed).ok_or(ParseTargetError::PercentEncoding(what))
}

/// `h1:5432,[::1],h2` as the two lists of the `host` and `port` keys.
fn host_list(text: &str) -> Result<(String, String), ParseTargetError> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in text.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (name, after) = rest.split_once(']').ok_or(ParseTargetError::Brackets)?;
                let port = if after.is_empty() { "" } else { after.strip_prefix(':').ok_or(ParseTargetError::Port)? };
                (Cow::Borrowed(name), port)
            }
            None => match host.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(ParseTargetError::Brackets),
                Some((name, port)) => (decode(name, "the host name")?, port),
                None => (decode(host, "the host name")?, ""),
            },
        };
        names.push(name);
        ports.push(port);
    }
    let ports = if ports.iter().all(|port| port.is_empty()) { String::new() } else { ports.join(",") };
    Ok((names.join(","), ports))
}

/// `key = value key='a b' ...`; in a value `\` takes away the meaning of the character that follows.
fn from_words(text: &str) -> Result<Settings, ParseTargetError> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start();
    let mut word = 0;
    while !rest.is_empty() {
        word += 1;
        let (key, after) = rest.split_once('=').ok_or(ParseTargetError::NoEquals(word))?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(ParseTargetError::NoEquals(word));
        }
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => take_value(quoted, |c| c == '\'').ok_or(ParseTargetError::Quote)?,
            None => take_value(after, char::is_whitespace).unwrap_or_else(|| (unescape(after), "")),
        };
        settings.insert(key.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(settings)
}

/// The value up to the first unescaped character that ends it, and what follows that character. `None`: nothing ends it.
fn take_value(text: &str, ends: impl Fn(char) -> bool) -> Option<(String, &str)> {
    let mut escaped = false;
    let end = text.char_indices().find(|&(_, c)| {
        let found = !escaped && ends(c);
        escaped = !escaped && c == '\\';
        found
    });
    let (at, _) = end?;
    let (value, after) = text.split_at(at);
    let mut after = after.chars();
    after.next();
    Some((unescape(value), after.as_str()))
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(c);
        }
    }
    plain
}

fn build(mut settings: Settings, require_tls: bool) -> Result<Target, ParseTargetError> {
    let hosts = hosts(&mut settings)?;
    // As in libpq, one that is empty is not given.
    let mut named = |name: &str| settings.remove(name).filter(|value| !value.is_empty());
    let database = named("dbname");
    let user = match named("user") {
        Some(user) => user,
        None => {
            let of_system = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
            of_system.filter(|user| !user.is_empty()).ok_or(ParseTargetError::NoUser)?
        }
    };
    let database = database.unwrap_or_else(|| user.clone());

    let ssl_mode =
        take(&mut settings, "sslmode", "disable, allow, prefer, require, verify-ca or verify-full", |value| {
            SslMode::ALL.into_iter().find(|mode| mode.as_str() == value)
        })?;
    let root_cert = settings.remove("sslrootcert").map(|value| match value.as_str() {
        "system" => RootCert::System,
        _ => RootCert::File(PathBuf::from(value)),
    });
    let client_cert = match (settings.remove("sslcert"), settings.remove("sslkey")) {
        (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
        (None, None) => None,
        _ => return Err(ParseTargetError::ClientCert),
    };
    let session = take(&mut settings, "target_session_attrs", "read-write, primary or any", |value| match value {
        "any" => Some(SessionAttrs::Any),
        "read-write" => Some(SessionAttrs::ReadWrite),
        "primary" => Some(SessionAttrs::Primary),
        _ => None,
    })?;
    let channel_binding = take(&mut settings, "channel_binding", "disable, prefer or require", |value| match value {
        "disable" => Some(ChannelBinding::Disable),
        "prefer" => Some(ChannelBinding::Prefer),
        "require" => Some(ChannelBinding::Require),
        _ => None,
    })?;
    check_tls(ssl_mode, root_cert.as_ref(), channel_binding, require_tls)?;

    let target = Target {
        hosts,
        user,
        database,
        password: settings.remove("password").map(Into::into),
        options: settings.remove("options"),
        application_name: settings.remove("application_name"),
        connect_timeout: take(&mut settings, "connect_timeout", "seconds, 1 or more", seconds)?
            .unwrap_or(CONNECT_TIMEOUT),
        keepalive: keepalive(&mut settings)?,
        tcp_user_timeout: take(
            &mut settings,
            "tcp_user_timeout",
            "milliseconds, or 0 for the system's default",
            |value| value.parse().ok().map(Duration::from_millis),
        )?
        .map_or(Some(TCP_USER_TIMEOUT), |timeout| (!timeout.is_zero()).then_some(timeout)),
        session: session.unwrap_or(SessionAttrs::ReadWrite),
        channel_binding: channel_binding.unwrap_or(ChannelBinding::Prefer),
        ssl_mode,
        root_cert,
        client_cert,
        require_tls,
    };
    only_harmless(settings)?;
    Ok(target)
}

/// The combinations of the `ssl*` keys that would be weaker than they look.
fn check_tls(
    mode: Option<SslMode>,
    root_cert: Option<&RootCert>,
    channel_binding: Option<ChannelBinding>,
    require_tls: bool,
) -> Result<(), ParseTargetError> {
    let Some(mode) = mode else { return Ok(()) };
    if require_tls && mode.may_be_plaintext() {
        return Err(ParseTargetError::RequireTls(mode.as_str()));
    }
    if channel_binding == Some(ChannelBinding::Require) && mode.may_be_plaintext() {
        return Err(ParseTargetError::BindingWithoutTls(mode.as_str()));
    }
    match root_cert {
        Some(RootCert::System) if mode != SslMode::VerifyFull => Err(ParseTargetError::WeakSystem(mode.as_str())),
        None if mode == SslMode::VerifyCa => Err(ParseTargetError::VerifyCaWithoutRoot),
        _ => Ok(()),
    }
}

fn hosts(settings: &mut Settings) -> Result<Vec<Host>, ParseTargetError> {
    let list = |value: Option<String>| -> Vec<String> {
        value.map_or_else(Vec::new, |value| value.split(',').map(|part| part.trim().to_owned()).collect())
    };
    let mut names = list(settings.remove("host"));
    let addresses = list(settings.remove("hostaddr"));
    let ports = list(settings.remove("port"));
    if names.is_empty() {
        names = if addresses.is_empty() {
            vec![SOCKET_DIRECTORY.to_owned(), "localhost".to_owned()]
        } else {
            addresses.clone()
        };
    }
    if !addresses.is_empty() && addresses.len() != names.len() {
        return Err(ParseTargetError::HostAddrCount { hosts: names.len(), addresses: addresses.len() });
    }
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(ParseTargetError::PortCount { hosts: names.len(), ports: ports.len() });
    }
    let mut addresses = addresses.into_iter();
    let mut hosts = Vec::with_capacity(names.len());
    for (at, name) in names.into_iter().enumerate() {
        let port = match ports.get(at).or_else(|| ports.first()).map_or("", String::as_str) {
            "" => DEFAULT_PORT,
            port => port.parse().ok().filter(|&port| port != 0).ok_or(ParseTargetError::Port)?,
        };
        let addr = match addresses.next().filter(|addr| !addr.is_empty()) {
            None => None,
            Some(value) => Some(value.parse::<IpAddr>().map_err(|_| ParseTargetError::Value {
                key: "hostaddr",
                value,
                expected: "an IP address (a name belongs into `host`)",
            })?),
        };
        let place = match name.chars().next() {
            None if addr.is_none() => Place::Unix(PathBuf::from(SOCKET_DIRECTORY)),
            Some('/') => Place::Unix(PathBuf::from(name)),
            Some('@') => {
                return Err(ParseTargetError::Unsupported {
                    key: "host=@...",
                    instead: "give the directory of the Unix socket, or use TCP",
                });
            }
            _ => Place::Tcp { host: name, addr },
        };
        hosts.push(Host { place, port });
    }
    Ok(hosts)
}

fn keepalive(settings: &mut Settings) -> Result<Option<Keepalive>, ParseTargetError> {
    let on = take(settings, "keepalives", "0 or 1", |value| match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    })?;
    let idle = take(settings, "keepalives_idle", "seconds, 1 or more", seconds)?;
    let interval = take(settings, "keepalives_interval", "seconds, 1 or more", seconds)?;
    let count = take(settings, "keepalives_count", "a number, 1 or more", |value| {
        value.parse::<u32>().ok().filter(|&count| count > 0)
    })?;
    Ok((on != Some(false)).then_some(Keepalive {
        idle: idle.unwrap_or(KEEPALIVE.idle),
        interval: interval.unwrap_or(KEEPALIVE.interval),
        count: count.unwrap_or(KEEPALIVE.count),
    }))
}

fn seconds(value: &str) -> Option<Duration> {
    value.parse().ok().filter(|&seconds| seconds > 0).map(Duration::from_secs)
}

fn take<T>(
    settings: &mut Settings,
    key: &'static str,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ParseTargetError> {
    let Some(value) = settings.remove(key) else { return Ok(None) };
    read(&value).map(Some).ok_or(ParseTargetError::Value { key, value, expected })
}

/// What is left may only say what is so anyway.
fn only_harmless(settings: Settings) -> Result<(), ParseTargetError> {
    const UNSUPPORTED: [(&str, &str); 9] = [
        ("client_encoding", "Postrider sets UTF8"),
        ("replication", "Postrider sets it where it is needed"),
        ("passfile", "give the whole URL in a file (DATABASE_URL_FILE)"),
        ("service", "write out what the service stands for"),
        ("sslpassword", "give a key that is not encrypted, readable by Postrider's user only"),
        ("sslcrl", "revocation lists are not checked"),
        ("sslnegotiation", "leave it out: `postgres` is what every server speaks"),
        ("gssencmode", "GSSAPI is not spoken: leave it out, or use `disable`"),
        ("load_balance_hosts", "hosts are tried in order: leave it out"),
    ];
    const HARMLESS: [(&str, &str); 8] = [
        ("sslnegotiation", "postgres"),
        ("gssencmode", "disable"),
        ("gssencmode", "prefer"),
        ("load_balance_hosts", "disable"),
        ("sslcompression", "0"),
        ("sslsni", "1"),
        ("client_encoding", "utf8"),
        ("client_encoding", "auto"),
    ];
    for (key, value) in settings {
        if HARMLESS.iter().any(|&(known, harmless)| known == key && value.eq_ignore_ascii_case(harmless)) {
            continue;
        }
        return Err(match UNSUPPORTED.into_iter().find(|&(known, _)| known == key) {
            Some((key, instead)) => ParseTargetError::Unsupported { key, instead },
            None => ParseTargetError::UnknownKey(key),
        });
    }
    Ok(())
}
