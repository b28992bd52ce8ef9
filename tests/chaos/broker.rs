//! RabbitMQ as the run needs it: an exchange, the tap that gets every event, a user for the relay, and the switches of the faults.

use crate::Outcome;
use crate::http;
use crate::servers::Server;

pub(crate) const EXCHANGE: &str = "events";
/// The queue that the consumer reads: bound to everything.
pub(crate) const TAP: &str = "tap";
/// The relay's user, so that faults can be about it alone.
pub(crate) const USER: &str = "relay";
/// Looked for in everything that the relay writes.
pub(crate) const PASSWORD: &str = "amqp-pw-never-printed-7f31";

const ALL: &str = r#"{"configure":".*","write":".*","read":".*"}"#;
const NOTHING: &str = r#"{"configure":"^$","write":"^$","read":"^$"}"#;

pub(crate) struct Broker {
    pub server: Server,
    management: String,
    pub host: String,
    pub port: u16,
}

impl Broker {
    pub(crate) async fn start() -> Outcome<Self> {
        let server = Server::start("rabbitmq", "rabbitmq", &[]).await?;
        let management: url::Url = server.value("MANAGEMENT_URL")?.parse()?;
        let amqp: url::Url = server.value("AMQP_URL")?.parse()?;
        let address = |url: &url::Url| format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(0));
        let broker = Broker {
            management: address(&management),
            host: amqp.host_str().unwrap_or("127.0.0.1").to_owned(),
            port: amqp.port().ok_or("AMQP_URL has no port")?,
            server,
        };
        broker.set_password(PASSWORD).await?;
        broker.grant().await?;
        broker.declare_exchange().await?;
        Ok(broker)
    }

    pub(crate) fn relay_url(&self, host: &str, port: u16) -> String {
        format!("amqp://{USER}:{PASSWORD}@{host}:{port}/%2F")
    }

    /// A quorum queue. One consumer at a time: a second connection must not get what comes after the messages that the broker has
    /// yet to take back from the first.
    pub(crate) async fn declare_tap(&self) -> Outcome<()> {
        self.declare_tap_with(r#"{"x-queue-type":"quorum","x-single-active-consumer":true}"#).await
    }

    pub(crate) async fn declare_tap_with(&self, arguments: &str) -> Outcome<()> {
        self.queue(TAP, arguments).await?;
        self.bind(TAP, "#").await
    }

    pub(crate) async fn queue(&self, name: &str, arguments: &str) -> Outcome<()> {
        let body = format!(r#"{{"durable":true,"arguments":{arguments}}}"#);
        self.call("PUT", &format!("/api/queues/%2F/{name}"), &body).await
    }

    pub(crate) async fn delete_queue(&self, name: &str) -> Outcome<()> {
        self.call("DELETE", &format!("/api/queues/%2F/{name}"), "").await
    }

    /// At most so many messages in a queue; it refuses more.
    pub(crate) async fn limit(&self, queue: &str, messages: u32) -> Outcome<()> {
        let definition = format!(r#"{{"max-length":{messages},"overflow":"reject-publish"}}"#);
        let body = format!(r#"{{"pattern":"^{queue}$","definition":{definition},"apply-to":"queues"}}"#);
        self.call("PUT", "/api/policies/%2F/limit", &body).await
    }

    pub(crate) async fn unlimit(&self) -> Outcome<()> {
        self.call("DELETE", "/api/policies/%2F/limit", "").await
    }

    pub(crate) async fn purge(&self, name: &str) -> Outcome<()> {
        self.call("DELETE", &format!("/api/queues/%2F/{name}/contents"), "").await
    }

    pub(crate) async fn declare_exchange(&self) -> Outcome<()> {
        self.call("PUT", &format!("/api/exchanges/%2F/{EXCHANGE}"), r#"{"type":"topic","durable":true}"#).await
    }

    pub(crate) async fn delete_exchange(&self) -> Outcome<()> {
        self.call("DELETE", &format!("/api/exchanges/%2F/{EXCHANGE}"), "").await
    }

    pub(crate) async fn bind(&self, queue: &str, key: &str) -> Outcome<()> {
        let body = format!(r#"{{"routing_key":"{key}","arguments":{{}}}}"#);
        self.call("POST", &format!("/api/bindings/%2F/e/{EXCHANGE}/q/{queue}"), &body).await
    }

    pub(crate) async fn unbind(&self, queue: &str, key: &str) -> Outcome<()> {
        let key = key.replace('#', "%23");
        self.call("DELETE", &format!("/api/bindings/%2F/e/{EXCHANGE}/q/{queue}/{key}"), "").await
    }

    pub(crate) async fn grant(&self) -> Outcome<()> {
        self.call("PUT", &format!("/api/permissions/%2F/{USER}"), ALL).await
    }

    pub(crate) async fn revoke(&self) -> Outcome<()> {
        self.call("PUT", &format!("/api/permissions/%2F/{USER}"), NOTHING).await
    }

    pub(crate) async fn set_password(&self, password: &str) -> Outcome<()> {
        let body = format!(r#"{{"password":"{password}","tags":""}}"#);
        self.call("PUT", &format!("/api/users/{USER}"), &body).await
    }

    /// Those of the relay's user. The management API would not know one that is younger than its statistics.
    pub(crate) async fn close_connections(&self) -> Outcome<()> {
        self.ctl(&["close_all_user_connections", USER, "closed by the harness"]).await
    }

    pub(crate) async fn ctl(&self, arguments: &[&str]) -> Outcome<()> {
        self.server.command("ctl", arguments).await.map(drop)
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> Outcome<()> {
        let (code, answer) = http::request(method, &self.management, path, Some(("guest", "guest")), body).await?;
        if (200..300).contains(&code) { Ok(()) } else { Err(format!("{method} {path}: {code} {answer}").into()) }
    }
}
