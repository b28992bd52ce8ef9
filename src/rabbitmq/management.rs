//! RabbitMQ's management API: what AMQP cannot tell, such as what is bound to an exchange
//! (`GET /api/exchanges/{vhost}/{name}/bindings/source`).

pub(crate) mod queues;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::config::{Config, SecretSource};
use crate::http::{self, Answer, Connection, HttpError};
use crate::tls::{self, Trust, Verify};

const DEADLINE: Duration = Duration::from_secs(10);

/// Each message says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    #[error("{0}")]
    Secret(#[from] crate::config::load::SecretError),
    #[error("management_url is no URL with a host")]
    Url,
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    TlsConfig(#[from] tls::TlsConfigError),
    #[error("TLS failed: {0}; a CA of your own goes into amqp_ca_file")]
    Tls(#[source] std::io::Error),
    #[error("it refuses this user ({0}); give one with the tag monitoring, and read permission on the vhost")]
    Refused(u16),
    #[error("it answers {0}")]
    Status(u16),
    #[error("its answer is not understood: {0}")]
    Body(#[from] serde_json::Error),
    #[error("its answer makes no sense: {0}")]
    Nonsense(String),
    #[error("it shows this user no vhost {0}: give the user a permission there (each of the three may be '^$')")]
    Vhost(String),
    #[error(
        "it has some {0} queues in this vhost, too many to list: name those that matter in [[queues]], without patterns, and set consumers.discover = false"
    )]
    TooMany(usize),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Exchange {
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// From an exchange to a queue or another exchange.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Binding {
    pub(crate) destination: String,
    pub(crate) destination_type: String,
    pub(crate) routing_key: String,
    #[serde(default)]
    pub(crate) arguments: serde_json::Map<String, serde_json::Value>,
}

/// Whether an exchange takes a message with that key along a binding. Of a type that is not known: perhaps, so yes.
pub(crate) fn matches(exchange: &Exchange, binding: &Binding, key: &str) -> bool {
    match exchange.kind.as_str() {
        "direct" => binding.routing_key == key,
        "topic" => {
            let words = |text: &'_ str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
            topic(&words(&binding.routing_key), &words(key))
        }
        _ => true,
    }
}

/// `*` is one word, `#` any number of them (RabbitMQ's tutorial on topics).
pub(crate) fn topic(pattern: &[String], key: &[String]) -> bool {
    match (pattern.split_first(), key.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((word, rest)), _) if word == "#" => {
            (0..=key.len()).any(|skipped| key.get(skipped..).is_some_and(|key| topic(rest, key)))
        }
        (Some(_), None) => false,
        (Some((word, rest)), Some((first, others))) => (word == "*" || word == first) && topic(rest, others),
    }
}

/// The exchange and the bindings from it; `None`: there is no such exchange.
pub(crate) async fn ask(
    config: &Config,
    url: &SecretSource,
    vhost: &str,
    exchange: &str,
) -> Result<Option<(Exchange, Vec<Binding>)>, ManagementError> {
    bindings(&mut Api::new(config, url)?, vhost, exchange).await
}

/// As [`ask`], over a connection that is there.
pub(crate) async fn bindings(
    api: &mut Api<'_>,
    vhost: &str,
    exchange: &str,
) -> Result<Option<(Exchange, Vec<Binding>)>, ManagementError> {
    let path = format!("/api/exchanges/{}/{}", part(vhost), part(exchange));
    let Some(found) = api.get::<Exchange>(&path).await? else { return Ok(None) };
    let bindings = api.get::<Vec<Binding>>(&format!("{path}/bindings/source")).await?;
    Ok(Some((found, bindings.unwrap_or_default())))
}

/// A queue, as far as AMQP does not tell. What is absent is not known.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct QueueDetails {
    /// `classic`, `quorum` or `stream`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) messages_unacknowledged: Option<u64>,
    /// An object, or an empty list for none.
    #[serde(default)]
    arguments: serde_json::Value,
    #[serde(default)]
    effective_policy_definition: serde_json::Value,
}

impl QueueDetails {
    /// How many deliveries a message may have, if the queue or a policy says so; the lower, if both do. Negative: any number.
    pub(crate) fn delivery_limit(&self) -> Option<i64> {
        let argument = self.arguments.get("x-delivery-limit").and_then(serde_json::Value::as_i64);
        let policy = self.effective_policy_definition.get("delivery-limit").and_then(serde_json::Value::as_i64);
        // "Any number" does not win over a number.
        argument.into_iter().chain(policy).min_by_key(|limit| (*limit < 0, *limit))
    }
}

/// `None`: there is no such queue.
pub(crate) async fn queue_details(
    config: &Config,
    url: &SecretSource,
    vhost: &str,
    queue: &str,
) -> Result<Option<QueueDetails>, ManagementError> {
    Api::new(config, url)?.get(&format!("/api/queues/{}/{}", part(vhost), part(queue))).await
}

/// A name as a part of a path.
fn part(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Where the API is, and a connection to it as long as it lasts. Holds the password.
pub(crate) struct Api<'c> {
    config: &'c Config,
    url: Url,
    host: String,
    port: u16,
    authorization: Option<SecretString>,
    connection: Option<Connection>,
}

impl<'c> Api<'c> {
    /// Reads the secret; connects to nothing yet.
    pub(crate) fn new(config: &'c Config, url: &SecretSource) -> Result<Self, ManagementError> {
        let url = Url::parse(url.read()?.expose_secret()).map_err(|_| ManagementError::Url)?;
        let host = url.host_str().ok_or(ManagementError::Url)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or(ManagementError::Url)?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = format!("{}:{}", decoded(url.username()), decoded(url.password().unwrap_or_default()));
        let authorization = (!url.username().is_empty()).then(|| format!("Basic {}", STANDARD.encode(login)).into());
        Ok(Api { config, url, host, port, authorization, connection: None })
    }

    /// `None`: 404.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, ManagementError> {
        let answer = tokio::time::timeout(DEADLINE, self.request(path));
        let answer = answer.await.unwrap_or(Err(HttpError::TimedOut(DEADLINE).into()))?;
        match answer.status {
            200 => Ok(Some(serde_json::from_slice(&answer.body)?)),
            404 => Ok(None),
            status @ (401 | 403) => Err(ManagementError::Refused(status)),
            status => Err(ManagementError::Status(status)),
        }
    }

    async fn request(&mut self, path: &str) -> Result<Answer, ManagementError> {
        let mut connection = match self.connection.take().filter(Connection::is_open) {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let authorization = self.authorization.as_ref().map(ExposeSecret::expose_secret);
        // The API may live below a prefix.
        let path = format!("{}{path}", self.url.path().trim_end_matches('/'));
        let answer = connection.get(&self.host, &path, authorization).await?;
        // One that has failed, or whose answer was not waited for, is not used again.
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Connection, ManagementError> {
        let stream = http::connect(&self.host, self.port).await?;
        if self.url.scheme() == "http" {
            return Ok(Connection::open(stream).await?);
        }
        let ca_file = self.config.amqp_ca_file.clone();
        let trust = Trust { verify: Verify::ChainAndName, system_roots: true, ca_file };
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls::client_config(&trust, None)?));
        let name = self.host.clone().try_into().map_err(|_| ManagementError::Url)?;
        let stream = connector.connect(name, stream).await.map_err(ManagementError::Tls)?;
        Ok(Connection::open(stream).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(kind: &str, pattern: &str, key: &str) -> bool {
        let binding = Binding {
            destination: "q".to_owned(),
            destination_type: "queue".to_owned(),
            routing_key: pattern.to_owned(),
            arguments: serde_json::Map::new(),
        };
        matches(&Exchange { kind: kind.to_owned() }, &binding, key)
    }

    #[test]
    fn a_topic_matches_as_in_the_broker() {
        for (pattern, key) in
            [("#", "a.b"), ("#", ""), ("a.*", "a.b"), ("a.#", "a"), ("#.c", "a.b.c"), ("*.#.c", "a.c"), ("a.b", "a.b")]
        {
            assert!(takes("topic", pattern, key), "{pattern} {key}");
        }
        for (pattern, key) in [("*", "a.b"), ("a.*", "a"), ("a", "a.b"), ("a.*.c", "a.c"), ("#.c", "a.b")] {
            assert!(!takes("topic", pattern, key), "{pattern} {key}");
        }
        assert!(takes("direct", "a", "a") && !takes("direct", "#", "a") && takes("fanout", "", "a"));
    }
}
