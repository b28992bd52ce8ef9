//! `dead_letter` of a queue in `[topology]`: what consumers cannot handle is kept, on a real broker.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use postrider::config::{Argument, Config, DeadLetterDecl, QueueDecl, SecretSource, Topology, WatchedQueue};
use postrider::metrics::Metrics;
use postrider::preflight::{self, Level};
use postrider::rabbitmq::publisher::Broker;
use postrider::status::Status;

use crate::publishing::config;
use crate::rabbit::{Server, Vhost};
use crate::support::{PATIENCE, eventually};

/// A relay's configuration with one queue, whose dead letters are kept.
fn billing(vhost: &Vhost, arguments: Vec<(String, Argument)>) -> Config {
    let dead_letter = Some(DeadLetterDecl::usual("billing"));
    let queues = vec![QueueDecl { name: "billing".to_owned(), arguments, dead_letter }];
    let exchanges = Vec::new();
    let topology = Some(Topology { queues, exchanges, bindings: Vec::new() });
    Config { topology, ..config(&vhost.url(&vhost.server.address()), |_| {}) }
}

/// Declares as a relay does when it starts.
async fn declare(config: &Config) {
    let metrics = Metrics::new("test", &["default".to_owned()]).unwrap();
    let mut broker = Broker::new(Arc::new(config.clone()), metrics, Status::new("test", "postrider"), None);
    broker.ready().await.unwrap();
    broker.close().await;
}

async fn publish(channel: &Channel, queue: &str, id: &str) {
    let properties = BasicProperties::default().with_message_id(id.into());
    channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), b"{}", properties).await.unwrap();
}

/// The message that a queue has, taken out of it.
async fn take(vhost: &Vhost, queue: &str) -> lapin::message::BasicGetMessage {
    let channel = vhost.channel().await;
    eventually(&format!("a message in {queue}"), async || {
        let options = lapin::options::BasicGetOptions { no_ack: true };
        channel.basic_get(queue.into(), options).await.unwrap()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_fails_four_times_ends_in_the_dead_letter_queue_and_one_that_is_rejected_goes_at_once() {
    let server = Server::shared().await;
    let vhost = server.vhost("dlq").await;
    vhost.exchange("events").await;
    let config = billing(&vhost, vec![("x-max-length".to_owned(), Argument::Integer(1_000))]);
    for _ in 0..2 {
        declare(&config).await;
    }
    let target = server.management("GET", &format!("queues/{}/billing.dlq", vhost.name), "").await;
    assert!(target.contains(r#""x-message-ttl":1209600000"#), "14 days: {target}");

    let channel = vhost.channel().await;
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    publish(&channel, "billing", "poison").await;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("billing".into(), "it".into(), options, FieldTable::default()).await.unwrap();
    for delivery in 1..=4 {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let message = next.unwrap_or_else(|_| panic!("delivery {delivery} does not come")).unwrap().unwrap();
        message.reject(BasicRejectOptions { requeue: true }).await.unwrap();
    }
    let dead = take(&vhost, "billing.dlq").await;
    assert_eq!(dead.properties.message_id().as_ref().unwrap().as_str(), "poison");
    let headers = dead.properties.headers().clone().unwrap();
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { panic!("{headers:?}") };
    let [AMQPValue::FieldTable(death)] = deaths.as_slice() else { panic!("{deaths:?}") };
    assert_eq!(death.inner().get("reason"), Some(&AMQPValue::LongString("delivery_limit".into())));

    publish(&channel, "billing", "rejected").await;
    let message = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
    message.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    assert_eq!(take(&vhost, "billing.dlq").await.properties.message_id().as_ref().unwrap().as_str(), "rejected");
    vhost.remove().await;
}

/// What check says of dead letters, and how serious it is.
async fn findings(config: &Config) -> Vec<(Level, String)> {
    let findings = preflight::check(config).await;
    assert!(!findings.iter().any(|finding| finding.what.contains("cannot be watched")), "{findings:#?}");
    let ours = findings.into_iter().filter(|finding| finding.check == "rabbitmq.dead_letters");
    ours.map(|finding| (finding.level, format!("{} {:?}", finding.what, finding.remedies))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_a_queue_that_is_as_wanted_from_one_that_is_not_and_makes_none() {
    let server = Server::shared().await;
    let vhost = server.vhost("dlq_check").await;
    vhost.exchange("events").await;
    let mut config = billing(&vhost, Vec::new());
    config.queues = vec![WatchedQueue { name: "billing.dlq".to_owned(), max_lag: None }];
    let before = findings(&config).await;
    assert!(matches!(&before[..], [(Level::Ok, text)] if text.contains("does not exist yet")), "{before:?}");
    assert!(!server.management("GET", &format!("queues/{}", vhost.name), "").await.contains("billing"));

    declare(&config).await;
    let after = findings(&config).await;
    assert!(
        matches!(&after[..], [(Level::Ok, text)] if text.contains("to billing.dlq, where 0 are waiting")),
        "{after:?}"
    );

    // With the management API, the binding too.
    let management = crate::support::servers::shared().await.management_url.to_string();
    config.management_url = Some(SecretSource::Value(management.into()));
    let bound = findings(&config).await;
    assert!(matches!(&bound[1..], [(Level::Ok, text)] if text.contains("takes those of billing to")), "{bound:?}");
    let path = format!("bindings/{}/e/dead-letters/q/billing.dlq/billing.dlq", vhost.name);
    server.management("DELETE", &path, "").await;
    let unbound = findings(&config).await;
    assert!(matches!(&unbound[1..], [(Level::Warn, text)] if text.contains("is not bound to")), "{unbound:?}");

    let other = vhost.server.vhost("dlq_other").await;
    other.exchange("events").await;
    other.queue("billing", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    let config = billing(&other, Vec::new());
    // Used as it is: the relay starts.
    declare(&config).await;
    let found = findings(&config).await;
    let [(Level::Warn, text)] = &found[..] else { panic!("{found:?}") };
    for words in ["billing exists with other arguments", "inequivalent arg", "rabbitmqctl set_policy", r"^billing$"] {
        assert!(text.contains(words), "{text}");
    }
    other.remove().await;
    vhost.remove().await;
}
