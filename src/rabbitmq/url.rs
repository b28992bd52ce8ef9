//! `AMQP_URL` as people write it: one broker, several hosts in one URL, or several URLs.
//!
//! Syntax: RabbitMQ's "URI Specification" and "URI Query Parameters" (which also name the TLS keys), with comma-separated
//! hosts and lists of URLs on top. No error and no `Debug` of this module ever holds a password.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

use crate::config::Config;

/// Noticed after two missed ones (manual, "Heartbeats": 5 to 20 s are recommended; the server's own default is 60 s).
const DEFAULT_HEARTBEAT_SECONDS: u16 = 10;
/// For the whole of a connection attempt to one broker: TCP, TLS and the AMQP handshake.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// RabbitMQ 4.1 and later refuse less during the handshake (release notes of 4.1).
const MIN_FRAME_MAX: u32 = 8192;

/// The brokers of one cluster. Never empty; all of them name the same vhost.
#[derive(Clone, Debug)]
pub struct Target {
    pub brokers: Vec<BrokerAddress>,
    pub vhost: String,
}

/// One broker and how to log in there.
#[derive(Clone, Debug)]
pub struct BrokerAddress {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
    pub login: Login,
    /// `None`: plaintext, by `amqp://`.
    pub tls: Option<TlsOptions>,
    /// 1 to 600.
    pub heartbeat_seconds: u16,
    pub connect_timeout: Duration,
    /// `None`: the server decides.
    pub frame_max: Option<u32>,
    pub channel_max: Option<u16>,
}

/// SASL mechanism and what it needs.
#[derive(Clone, Debug)]
pub enum Login {
    Plain {
        user: String,
        password: SecretString,
    },
    AmqPlain {
        user: String,
        password: SecretString,
    },
    /// The client certificate is the identity.
    External,
}

/// What an `amqps://` URL and the configuration say about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Trusted in addition to the system's certificates. The URL's `cacertfile` goes before `amqp_ca_file`.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `verify=verify_none`: encrypt without knowing to whom.
    pub verify_none: bool,
    /// The name to ask for and to verify, where it is not the host.
    pub server_name: Option<String>,
}

/// What is wrong with the URL. Names keys and hosts, never user information.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the AMQP URL is empty: expected amqp://user:password@host:5672/vhost")]
    Empty,
    #[error("the AMQP URL must begin with amqp:// or amqps://")]
    Scheme,
    #[error(
        "the AMQP URL has an unescaped `@`, `/`, `?` or `#`: in user names, passwords, vhosts and values write them as %40, %2F, %3F and %23"
    )]
    Unescaped,
    #[error(
        "the AMQP URL has an invalid percent-encoding in its {0} (a literal % is %25, and the result must be UTF-8)"
    )]
    Encoding(&'static str),
    #[error("the AMQP URL names an empty host")]
    EmptyHost,
    #[error("the AMQP URL has a port that is not a number from 1 to 65535")]
    Port,
    #[error("the vhost in the AMQP URL is empty: for the default vhost `/` end the URL after the port, or write /%2F")]
    EmptyVhost,
    #[error("the vhost in the AMQP URL must not contain a `/`: write it as %2F")]
    VhostSlash,
    #[error("the {0} in the AMQP URL is longer than 255 bytes")]
    TooLong(&'static str),
    #[error("all brokers must name the same vhost, but the AMQP URL has `{0}` and `{1}`")]
    DifferentVhosts(String, String),
    #[error(
        "unknown key `{0}` in the AMQP URL (known: heartbeat, connection_timeout, frame_max, channel_max, auth_mechanism, cacertfile, certfile, keyfile, verify, server_name_indication)"
    )]
    UnknownKey(String),
    #[error("key `{0}` is given twice in the AMQP URL")]
    RepeatedKey(String),
    #[error("key `{key}` in the AMQP URL must be {expected}")]
    Value { key: &'static str, expected: &'static str },
    #[error("key `{0}` in the AMQP URL needs amqps://")]
    NeedsTls(&'static str),
    #[error("a client certificate needs both certfile and keyfile (amqp_cert_file and amqp_key_file)")]
    HalfIdentity,
    #[error(
        "auth_mechanism=external in the AMQP URL needs a client certificate: set certfile and keyfile (or amqp_cert_file and amqp_key_file)"
    )]
    ExternalWithoutCertificate,
    #[error("amqp_ca_file, amqp_cert_file and amqp_key_file need an amqps:// URL")]
    TlsFilesWithoutTls,
    #[error("require_tls is set, but AMQP_URL reaches `{0}` in plaintext: write amqps:// (port 5671)")]
    Plaintext(String),
}

impl Target {
    /// Parses `url` and adds what the configuration says about TLS.
    pub fn new(url: &str, config: &Config) -> Result<Self, UrlError> {
        let mut target = Target::parse_with(url, config.amqp_cert_file.is_some() && config.amqp_key_file.is_some())?;
        let identity = match (&config.amqp_cert_file, &config.amqp_key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(UrlError::HalfIdentity),
        };
        let files = identity.is_some() || config.amqp_ca_file.is_some();
        if files && target.brokers.iter().all(|broker| broker.tls.is_none()) {
            return Err(UrlError::TlsFilesWithoutTls);
        }
        for broker in &mut target.brokers {
            match &mut broker.tls {
                Some(tls) => {
                    tls.ca_file = tls.ca_file.take().or_else(|| config.amqp_ca_file.clone());
                    tls.identity = tls.identity.take().or_else(|| identity.clone());
                }
                None if config.require_tls => return Err(UrlError::Plaintext(broker.address())),
                None => {}
            }
        }
        Ok(target)
    }

    /// Parses the URL alone.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        Target::parse_with(url, false)
    }

    /// `identity`: a client certificate comes from elsewhere, so that a URL without a user means SASL EXTERNAL.
    fn parse_with(url: &str, identity: bool) -> Result<Self, UrlError> {
        let mut target: Option<Target> = None;
        for one in split_list(url) {
            let parsed = parse_one(one, identity)?;
            match &mut target {
                None => target = Some(parsed),
                Some(target) if target.vhost == parsed.vhost => target.brokers.extend(parsed.brokers),
                Some(target) => return Err(UrlError::DifferentVhosts(target.vhost.clone(), parsed.vhost)),
            }
        }
        target.ok_or(UrlError::Empty)
    }

    /// What an operator should know about the security of this target, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for broker in &self.brokers {
            match &broker.tls {
                None if !broker.is_loopback() => warnings.push(format!(
                    "AMQP_URL reaches `{}` in plaintext: password and events can be read on the way; use amqps://",
                    broker.address()
                )),
                Some(tls) if tls.verify_none => warnings.push(format!(
                    "verify=verify_none: the connection to `{}` is encrypted, but nobody checks who answers; \
                     remove it and set amqp_ca_file",
                    broker.address()
                )),
                _ => {}
            }
        }
        warnings
    }
}

/// For logs: addresses, vhost and user, never a password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, broker) in self.brokers.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{broker}")?;
        }
        write!(f, " vhost `{}`", self.vhost)
    }
}

impl BrokerAddress {
    /// `host:port`, as it is written in URLs.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}", self.address())
    }
}

impl Login {
    /// The user that logs in; `None` where the certificate says it.
    pub fn user(&self) -> Option<&str> {
        match self {
            Login::Plain { user, .. } | Login::AmqPlain { user, .. } => Some(user),
            Login::External => None,
        }
    }
}

/// Splits at white space and at commas that begin another URL. Commas between hosts, and in passwords, stay.
fn split_list(list: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    for word in list.split_whitespace() {
        let mut rest = word;
        loop {
            let next = rest
                .match_indices(',')
                .map(|(at, _)| (at, rest.get(at + 1..).unwrap_or_default()))
                .find(|(_, after)| after.starts_with("amqp://") || after.starts_with("amqps://") || after.is_empty());
            let Some((at, after)) = next else { break };
            urls.extend(rest.get(..at));
            rest = after;
        }
        urls.push(rest);
    }
    urls.retain(|url| !url.is_empty());
    urls
}

fn parse_one(url: &str, identity: bool) -> Result<Target, UrlError> {
    let (tls, rest) = match (url.strip_prefix("amqp://"), url.strip_prefix("amqps://")) {
        (Some(rest), _) => (false, rest),
        (None, Some(rest)) => (true, rest),
        (None, None) => return Err(UrlError::Scheme),
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    // A `/` or `?` inside a password would make its beginning a host and its end a path: say so before naming parts.
    if tail.contains(['@', '#']) {
        return Err(UrlError::Unescaped);
    }
    let (user_info, hosts) = match authority.rsplit_once('@') {
        Some((user_info, hosts)) => (Some(user_info), hosts),
        None => (None, authority),
    };
    if user_info.is_some_and(|user_info| user_info.contains('@')) {
        return Err(UrlError::Unescaped);
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let vhost = parse_vhost(path)?;
    let options = Options::parse(query, tls)?;

    let external = options.mechanism == Some(Mechanism::External);
    let certificate = options.tls.identity.is_some() || (identity && tls);
    let login = match (user_info, options.mechanism) {
        (None, None) if certificate => Login::External,
        _ if external && certificate => Login::External,
        _ if external => return Err(UrlError::ExternalWithoutCertificate),
        (user_info, mechanism) => {
            // The AMQP default, which RabbitMQ accepts from its own machine only.
            let (user, password) =
                user_info.map_or(("guest", "guest"), |text| text.split_once(':').unwrap_or((text, "")));
            let user = decode(user, "user name")?;
            let password = SecretString::from(decode(password, "password")?);
            if mechanism == Some(Mechanism::AmqPlain) {
                Login::AmqPlain { user, password }
            } else {
                Login::Plain { user, password }
            }
        }
    };

    let mut brokers = Vec::new();
    for host in hosts.split(',') {
        let (host, port) = parse_host(host, tls)?;
        brokers.push(BrokerAddress {
            host,
            port,
            login: login.clone(),
            tls: tls.then(|| options.tls.clone()),
            heartbeat_seconds: options.heartbeat_seconds.unwrap_or(DEFAULT_HEARTBEAT_SECONDS),
            connect_timeout: options.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
            frame_max: options.frame_max,
            channel_max: options.channel_max,
        });
    }
    Ok(Target { brokers, vhost })
}

fn parse_host(text: &str, tls: bool) -> Result<(String, u16), UrlError> {
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or(UrlError::EmptyHost)?;
        (host, after.strip_prefix(':').or(if after.is_empty() { None } else { Some("") }))
    } else {
        text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    let host = decode(host, "host")?;
    if host.is_empty() {
        return Err(UrlError::EmptyHost);
    }
    let port = match port {
        None if tls => 5671,
        None => 5672,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Port)?,
    };
    Ok((host, port))
}

/// `path` is empty or begins with a slash.
fn parse_vhost(path: &str) -> Result<String, UrlError> {
    let Some(vhost) = path.strip_prefix('/') else { return Ok("/".to_owned()) };
    if vhost.is_empty() {
        return Err(UrlError::EmptyVhost);
    }
    if vhost.contains('/') {
        return Err(UrlError::VhostSlash);
    }
    let vhost = decode(vhost, "vhost")?;
    if vhost.len() > 255 { Err(UrlError::TooLong("vhost")) } else { Ok(vhost) }
}

fn decode(text: &str, part: &'static str) -> Result<String, UrlError> {
    // percent_decode leaves an incomplete escape as it stands; in a password that is a mistake nobody would find.
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        let escape = after.as_bytes().get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        if escape.is_none() {
            return Err(UrlError::Encoding(part));
        }
        rest = after;
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| UrlError::Encoding(part))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    Plain,
    AmqPlain,
    External,
}

/// The query part.
#[derive(Default)]
struct Options {
    heartbeat_seconds: Option<u16>,
    connect_timeout: Option<Duration>,
    frame_max: Option<u32>,
    channel_max: Option<u16>,
    mechanism: Option<Mechanism>,
    tls: TlsOptions,
}

impl Options {
    fn parse(query: &str, tls: bool) -> Result<Self, UrlError> {
        let mut options = Options::default();
        let mut seen: Vec<String> = Vec::new();
        let (mut cert, mut key_file) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value, "query")?;
            if seen.iter().any(|earlier| earlier == key) {
                return Err(UrlError::RepeatedKey(key.to_owned()));
            }
            seen.push(key.to_owned());
            let needs_tls = |key| if tls { Ok(()) } else { Err(UrlError::NeedsTls(key)) };
            match key {
                "heartbeat" => {
                    options.heartbeat_seconds =
                        Some(number("heartbeat", &value, 1, 600, "a number of seconds from 1 to 600")?);
                }
                "connection_timeout" => {
                    let expected = "a number of milliseconds from 1 to 600000";
                    let milliseconds: u32 = number("connection_timeout", &value, 1, 600_000, expected)?;
                    options.connect_timeout = Some(Duration::from_millis(milliseconds.into()));
                }
                "frame_max" => {
                    options.frame_max =
                        Some(number("frame_max", &value, MIN_FRAME_MAX, u32::MAX, "a number of bytes, at least 8192")?);
                }
                "channel_max" => {
                    // Publishing, a probe, and channels that a refused declaration has closed.
                    options.channel_max = Some(number("channel_max", &value, 8, u16::MAX, "from 8 to 65535")?);
                }
                "auth_mechanism" => {
                    options.mechanism = Some(match value.to_ascii_lowercase().as_str() {
                        "plain" => Mechanism::Plain,
                        "amqplain" => Mechanism::AmqPlain,
                        "external" => Mechanism::External,
                        _ => {
                            let expected = "plain, amqplain or external";
                            return Err(UrlError::Value { key: "auth_mechanism", expected });
                        }
                    });
                }
                "cacertfile" => {
                    needs_tls("cacertfile")?;
                    options.tls.ca_file = Some(PathBuf::from(value));
                }
                "certfile" => {
                    needs_tls("certfile")?;
                    cert = Some(PathBuf::from(value));
                }
                "keyfile" => {
                    needs_tls("keyfile")?;
                    key_file = Some(PathBuf::from(value));
                }
                "verify" => {
                    needs_tls("verify")?;
                    options.tls.verify_none = match value.as_str() {
                        "verify_none" => true,
                        "verify_peer" => false,
                        _ => return Err(UrlError::Value { key: "verify", expected: "verify_peer or verify_none" }),
                    };
                }
                "server_name_indication" => {
                    needs_tls("server_name_indication")?;
                    if value.is_empty() || value == "disable" {
                        let expected = "the name in the server's certificate";
                        return Err(UrlError::Value { key: "server_name_indication", expected });
                    }
                    options.tls.server_name = Some(value);
                }
                _ => return Err(UrlError::UnknownKey(key.to_owned())),
            }
        }
        options.tls.identity = match (cert, key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(UrlError::HalfIdentity),
        };
        Ok(options)
    }
}

fn number<T: std::str::FromStr + PartialOrd>(
    key: &'static str,
    value: &str,
    min: T,
    max: T,
    expected: &'static str,
) -> Result<T, UrlError> {
    value.parse().ok().filter(|number| (&min..=&max).contains(&number)).ok_or(UrlError::Value { key, expected })
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
