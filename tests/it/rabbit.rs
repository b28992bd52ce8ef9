//! A vhost of one's own on a real RabbitMQ, looked at from outside the program under test.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use url::Url;

use crate::support::own::Own;
use crate::support::servers::{self, Servers};
use crate::support::{http, unique};

/// A server: where AMQP and the management API are.
#[derive(Clone)]
pub(crate) struct Server {
    amqp: Url,
    management: Url,
}

impl Server {
    pub(crate) async fn shared() -> Server {
        let Servers { amqp_url, management_url, .. } = servers::shared().await;
        Server { amqp: amqp_url, management: management_url }
    }

    pub(crate) fn own(server: &Own) -> Server {
        Server { amqp: server.url("AMQP_URL"), management: server.url("MANAGEMENT_URL") }
    }

    /// `host:port` of AMQP.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.amqp.host_str().unwrap(), self.amqp.port().unwrap_or(5672))
    }

    pub(crate) fn user(&self) -> (String, String) {
        let (user, password) = (self.amqp.username(), self.amqp.password());
        (if user.is_empty() { "guest" } else { user }.to_owned(), password.unwrap_or("guest").to_owned())
    }

    /// A request to the management API; anything but success is a failure of the test.
    pub(crate) async fn management(&self, method: &str, path: &str, body: &str) -> String {
        http::management(&self.management, method, &format!("/api/{path}"), body).await
    }

    /// A new vhost, with all rights for the server's user.
    pub(crate) async fn vhost(&self, name: &str) -> Vhost {
        let name = unique(name);
        self.management("PUT", &format!("vhosts/{name}"), "{}").await;
        let (user, password) = self.user();
        let rights = r#"{"configure": ".*", "write": ".*", "read": ".*"}"#;
        self.management("PUT", &format!("permissions/{name}/{user}"), rights).await;
        let url = format!("amqp://{user}:{password}@{}/{name}", self.address());
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Vhost { server: self.clone(), name, connection, channel }
    }
}

pub(crate) struct Vhost {
    pub(crate) server: Server,
    pub(crate) name: String,
    connection: Connection,
    channel: Channel,
}

/// What one consumer has seen of a queue.
pub(crate) struct Collector {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Collector {
    pub(crate) fn count(&self) -> usize {
        self.arrivals.lock().unwrap().len()
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A message as it was found in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) position: String,
    pub(crate) message_id: String,
    pub(crate) properties: lapin::BasicProperties,
    pub(crate) body: Vec<u8>,
    pub(crate) redelivered: bool,
}

impl Vhost {
    /// A user with these rights in this vhost, and nowhere else.
    pub(crate) async fn add_user(&self, user: &str, configure: &str, write: &str, read: &str) -> String {
        let user = format!("{user}-{}", self.name);
        self.server.management("PUT", &format!("users/{user}"), r#"{"password": "pw", "tags": ""}"#).await;
        let rights = format!(r#"{{"configure": "{configure}", "write": "{write}", "read": "{read}"}}"#);
        self.server.management("PUT", &format!("permissions/{}/{user}", self.name), &rights).await;
        user
    }

    /// The URL of this vhost at `host:port`.
    pub(crate) fn url(&self, address: &str) -> String {
        let (user, password) = self.server.user();
        format!("amqp://{user}:{password}@{address}/{}", self.name)
    }

    pub(crate) async fn channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }

    pub(crate) async fn exchange(&self, name: &str) {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        self.channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
    }

    pub(crate) async fn delete_exchange(&self, name: &str) {
        self.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }

    pub(crate) async fn queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        for (key, value) in arguments {
            table.insert((*key).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), options, table).await.unwrap();
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) {
        let (queue, exchange, routing_key) = (queue.into(), exchange.into(), routing_key.into());
        self.channel
            .queue_bind(queue, exchange, routing_key, QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    /// Takes out of a queue what is in it now.
    pub(crate) async fn drain(&self, queue: &str) -> Vec<Arrival> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let count =
            self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count();
        let channel = self.channel().await;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), "drain".into(), options, FieldTable::default()).await.unwrap();
        let deliveries: Vec<_> = consumer.take(count as usize).map(Result::unwrap).collect().await;
        // More may have come meanwhile; it goes back to its place when the channel is closed.
        if let Some(last) = deliveries.last() {
            last.ack(BasicAckOptions { multiple: true }).await.unwrap();
        }
        let arrivals = deliveries.iter().map(arrival).collect();
        channel.close(200, ShortString::from("OK")).await.unwrap();
        arrivals
    }

    /// Consumes a queue from now on, by one consumer that gives nothing back: what it saw is the order of the queue. (Taking
    /// messages in several goes is not: a quorum queue gives requeued messages to the next consumer out of order.)
    pub(crate) async fn collect(&self, queue: &str) -> Collector {
        let channel = self.channel().await;
        let options = BasicConsumeOptions::default();
        let mut consumer =
            channel.basic_consume(queue.into(), "collect".into(), options, FieldTable::default()).await.unwrap();
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&arrivals);
        let task = tokio::spawn(async move {
            // The consumer ends with its channel.
            let _channel = channel;
            while let Some(delivery) = consumer.next().await {
                let delivery = delivery.unwrap();
                seen.lock().unwrap().push(arrival(&delivery));
                delivery.ack(BasicAckOptions::default()).await.unwrap();
            }
        });
        Collector { arrivals, task }
    }

    pub(crate) async fn remove(self) {
        self.connection.close(200, ShortString::from("OK")).await.ok();
        self.server.management("DELETE", &format!("vhosts/{}", self.name), "").await;
    }
}

fn arrival(delivery: &lapin::message::Delivery) -> Arrival {
    let properties = &delivery.properties;
    let header = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-postrider-position"));
    let Some(AMQPValue::LongString(position)) = header else { panic!("a message without a position") };
    Arrival {
        position: position.to_string(),
        message_id: properties.message_id().as_ref().unwrap().to_string(),
        properties: properties.clone(),
        body: delivery.data.clone(),
        redelivered: delivery.redelivered,
    }
}

/// The positions in the order of their first arrival.
pub(crate) fn first_arrivals<'a>(arrivals: impl IntoIterator<Item = &'a Arrival>) -> Vec<String> {
    let mut seen = HashSet::new();
    arrivals
        .into_iter()
        .map(|arrival| arrival.position.clone())
        .filter(|position| seen.insert(position.clone()))
        .collect()
}
