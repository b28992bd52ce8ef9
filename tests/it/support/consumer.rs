//! A consumer that is not our code path: takes everything from a queue and keeps it in order of arrival.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

/// One message as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub id: String,
    pub kind: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub headers: FieldTable,
    pub properties: lapin::BasicProperties,
}

impl Arrival {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        match self.headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::Boolean(flag) => Some(flag.to_string()),
            other => Some(format!("{other:?}")),
        }
    }
}

/// An open consumer on one queue.
pub(crate) struct Consumer {
    consumer: lapin::Consumer,
    _connection: Connection,
}

impl Consumer {
    pub(crate) async fn open(amqp_url: &str, queue: &str) -> Self {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.basic_qos(500, BasicQosOptions::default()).await.unwrap();
        let tag = "test".into();
        let consumer = channel
            .basic_consume(queue.into(), tag, BasicConsumeOptions::default(), FieldTable::default())
            .await
            .unwrap();
        Consumer { consumer, _connection: connection }
    }

    /// The next message, acknowledged; `None` if there is none for `patience`.
    pub(crate) async fn next(&mut self, patience: Duration) -> Option<Arrival> {
        let delivery = tokio::time::timeout(patience, self.consumer.next()).await.ok()??.unwrap();
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let text =
            |text: &Option<lapin::types::ShortString>| text.as_ref().map(ToString::to_string).unwrap_or_default();
        Some(Arrival {
            id: text(delivery.properties.message_id()),
            kind: text(delivery.properties.kind()),
            routing_key: delivery.routing_key.to_string(),
            headers: delivery.properties.headers().clone().unwrap_or_default(),
            properties: delivery.properties,
            body: delivery.data,
        })
    }

    /// Exactly `count` messages; panics if they do not come.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Arrival> {
        let mut arrivals = Vec::with_capacity(count);
        while arrivals.len() < count {
            let next = self.next(super::PATIENCE).await;
            arrivals.push(next.unwrap_or_else(|| panic!("only {} of {count} messages came", arrivals.len())));
        }
        arrivals
    }

    /// Everything until the queue has been silent for `silence`.
    pub(crate) async fn rest(&mut self, silence: Duration) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        while let Some(arrival) = self.next(silence).await {
            arrivals.push(arrival);
        }
        arrivals
    }
}
