//! Queues with dead letters in them, and the command beside them.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::Value;

use crate::rabbit::{Server, Vhost};
use crate::support::eventually;
use crate::support::relay::Program;

pub(super) const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn settings(url: &str) -> Vec<(String, String)> {
    vec![("AMQP_URL".to_owned(), url.to_owned())]
}

/// Exit code, standard output, standard error.
pub(super) fn output(settings: &[(String, String)], arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Program::command(settings, &[&["dlq"], arguments].concat()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub(super) fn dlq(vhost: &Vhost, arguments: &[&str]) -> (Option<i32>, String, String) {
    output(&settings(&vhost.url(&vhost.server.address())), arguments)
}

pub(super) fn succeeds(vhost: &Vhost, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = dlq(vhost, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stdout}{stderr}");
    stdout
}

/// Standard output and standard error.
pub(super) fn fails(vhost: &Vhost, arguments: &[&str]) -> (String, String) {
    let (code, stdout, stderr) = dlq(vhost, arguments);
    assert_eq!(code, Some(1), "{arguments:?}: {stdout}{stderr}");
    (stdout, stderr)
}

pub(super) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub(super) fn headers(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

pub(super) fn message(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2)
}

/// A queue, and where its dead letters go. A limit makes quorum queues of RabbitMQ 3.10 put back at the head, as later ones do.
pub(super) async fn queues(vhost: &Vhost, name: &str, kind: &str) -> String {
    let target = format!("{name}.dlq");
    let quorum = ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000));
    let arguments = [("x-queue-type", text(kind)), quorum];
    vhost.queue(&target, &arguments[..if kind == "quorum" { 2 } else { 1 }]).await;
    let dead_letters = [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text(&target))];
    vhost.queue(name, &[&[("x-queue-type", text(kind))], dead_letters.as_slice()].concat()).await;
    target
}

/// Published straight into a queue, and confirmed.
pub(super) async fn publish(vhost: &Vhost, queue: &str, properties: BasicProperties, body: &[u8]) {
    let channel = vhost.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

/// Published, and rejected by a consumer.
pub(super) async fn kill(vhost: &Vhost, queue: &str, properties: BasicProperties, body: &[u8]) {
    let before = depth(vhost, &format!("{queue}.dlq")).await;
    publish(vhost, queue, properties, body).await;
    take(&vhost.channel().await, queue).await.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    until_depth(vhost, &format!("{queue}.dlq"), before + 1).await;
}

pub(super) async fn take(channel: &Channel, queue: &str) -> Delivery {
    eventually(&format!("a message in {queue}"), async || {
        channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()
    })
    .await
    .delivery
}

/// Everything that is in a queue, taken.
pub(super) async fn drain(vhost: &Vhost, queue: &str) -> Vec<Delivery> {
    let channel = vhost.channel().await;
    let mut all = Vec::new();
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
        all.push(message.delivery);
    }
    all
}

pub(super) fn id(delivery: &Delivery) -> String {
    delivery.properties.message_id().as_ref().unwrap().to_string()
}

/// Ready messages.
pub(super) async fn depth(vhost: &Vhost, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let channel = vhost.channel().await;
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
}

pub(super) async fn until_depth(vhost: &Vhost, queue: &str, wanted: u32) {
    eventually(&format!("{wanted} messages in {queue}"), async || (depth(vhost, queue).await == wanted).then_some(()))
        .await;
}

pub(super) fn peeked(listing: &str) -> Vec<String> {
    let listing: Value = serde_json::from_str(listing).unwrap();
    let messages = listing["messages"].as_array().unwrap();
    messages.iter().map(|message| message["properties"]["message_id"].as_str().unwrap().to_owned()).collect()
}

/// Whether `basic.nack` is no delivery for the limit of a quorum queue (RabbitMQ 4.3 or newer).
pub(super) async fn nack_is_free(server: &Server) -> bool {
    let overview: Value = serde_json::from_str(&server.management("GET", "overview", "").await).unwrap();
    let version = overview["rabbitmq_version"].as_str().unwrap();
    let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).take(2).collect();
    numbers >= vec![4, 3]
}
