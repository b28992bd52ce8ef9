//! A temporary queue that gets copies of what passes through exchanges: for people who look, never for the relay.
//!
//! A queue that is bound for everything would change what it watches: an event that nobody else is bound for would be
//! delivered to the watcher, count as delivered, and be gone; even what is parked for want of a queue would be released into
//! it. So, unless told otherwise, the tap is bound exactly where other queues are, and follows them.

use std::collections::BTreeSet;

use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Consumer};

use super::connection::{Link, deadline, reply};
use super::management::{self, Binding, ManagementError};
use super::queues::exactly;
use super::topology::{ACCESS_REFUSED, NOT_FOUND, TopologyError, answer, short};
use crate::config::{Config, SecretSource};

/// What the names of these queues begin with, so that a permission can be given for them, and one tap does not follow another.
pub const PREFIX: &str = "postrider.tail.";
/// What a reader that stands still costs the broker at most; beyond it the oldest messages go.
const MAX_MESSAGES: i64 = 10_000;
const MAX_BYTES: i64 = 64 << 20;
/// Without a consumer for this long the queue goes too, in milliseconds. Exclusive and auto-delete say the same in other words.
const EXPIRES: i64 = 60_000;
/// Unacknowledged messages in this process's memory.
const PREFETCH: u16 = 200;

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error(
        "{what} is refused ({words}). The relay's own user needs no such right: give `tail` another one by AMQP_URL or --amqp-url, \
         and that user these: {command}"
    )]
    Refused { what: String, words: String, command: String },
    #[error("{what} failed: {words}")]
    Failed { what: String, words: String },
    #[error(
        "exchange `{0}` does not exist; name one with --exchange, or start the relay, which declares those of its routes"
    )]
    NoExchange(String),
    #[error(
        "exchange `{exchange}` has the type {kind}, which deals its messages out to its queues: one more queue would take \
         events away from the others"
    )]
    Deals { exchange: String, kind: String },
    #[error("cannot see what is bound to the exchange: {0}; correct management_url, or see --unrouted")]
    Management(#[from] ManagementError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error("the broker was lost: {0}")]
    Lost(#[from] lapin::Error),
}

/// A binding of the tap's queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    pub exchange: String,
    pub routing_key: String,
    /// JSON, as the management API has them.
    arguments: String,
}

/// The queue and its channel. Both end with the connection.
pub struct Tap {
    channel: Channel,
    queue: String,
    vhost: String,
    exchanges: Vec<String>,
    bound: BTreeSet<Bound>,
}

impl Tap {
    /// Declares the queue: classic, exclusive, bounded.
    pub async fn open(link: &Link, exchanges: &[String]) -> Result<Tap, TapError> {
        let channel = link.channel().await?;
        let queue = format!("{PREFIX}{:016x}", rand::random::<u64>());
        let tap = Tap {
            channel,
            queue,
            vhost: link.vhost().to_owned(),
            exchanges: exchanges.to_vec(),
            bound: BTreeSet::new(),
        };
        let mut arguments = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        for (name, value) in [
            ("x-queue-type", text("classic")),
            ("x-overflow", text("drop-head")),
            ("x-max-length", AMQPValue::LongLongInt(MAX_MESSAGES)),
            ("x-max-length-bytes", AMQPValue::LongLongInt(MAX_BYTES)),
            ("x-expires", AMQPValue::LongLongInt(EXPIRES)),
        ] {
            arguments.insert(short(name)?, value);
        }
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = deadline(tap.channel.queue_declare(short(&tap.queue)?, options, arguments)).await;
        tap.judge("declaring a temporary queue", declared)?;
        Ok(tap)
    }

    /// Copies of the messages from here on.
    pub async fn consume(&self) -> Result<Consumer, TapError> {
        self.judge(
            "limiting the prefetch",
            deadline(self.channel.basic_qos(PREFETCH, BasicQosOptions::default())).await,
        )?;
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consume = self.channel.basic_consume(short(&self.queue)?, short("")?, options, FieldTable::default());
        self.judge("consuming from the temporary queue", deadline(consume).await)
    }

    /// Binds it for one routing key, whoever else is.
    pub async fn bind_directly(&mut self, routing_key: &str) -> Result<(), TapError> {
        for exchange in self.exchanges.clone() {
            let arguments = "{}".to_owned();
            self.bind(&Bound { exchange, routing_key: routing_key.to_owned(), arguments }).await?;
        }
        Ok(())
    }

    /// Binds it where other queues are bound now, and nowhere else. Returns whether anything is.
    pub async fn follow(&mut self, config: &Config, url: &SecretSource) -> Result<bool, TapError> {
        let wanted = self.others(config, url).await?;
        for gone in self.bound.difference(&wanted).cloned().collect::<Vec<_>>() {
            let (queue, exchange, key) = (short(&self.queue)?, short(&gone.exchange)?, short(&gone.routing_key)?);
            let unbind = self.channel.queue_unbind(queue, exchange, key, table(&gone.arguments)?);
            self.judge("unbinding the temporary queue", deadline(unbind).await)?;
            self.bound.remove(&gone);
        }
        for new in wanted.difference(&self.bound).cloned().collect::<Vec<_>>() {
            self.bind(&new).await?;
        }
        Ok(!self.bound.is_empty())
    }

    /// Where queues are bound, also behind exchanges that are bound to exchanges.
    async fn others(&self, config: &Config, url: &SecretSource) -> Result<BTreeSet<Bound>, TapError> {
        let mut found = BTreeSet::new();
        let mut asked = BTreeSet::new();
        let mut open = self.exchanges.clone();
        while let Some(name) = open.pop() {
            if !asked.insert(name.clone()) {
                continue;
            }
            let Some((exchange, bindings)) = management::ask(config, url, &self.vhost, &name).await? else {
                return Err(TapError::NoExchange(name));
            };
            if !copies(&exchange.kind) {
                return Err(TapError::Deals { exchange: name, kind: exchange.kind });
            }
            for Binding { destination, destination_type, routing_key, arguments } in bindings {
                if destination_type == "exchange" {
                    open.push(destination);
                } else if !destination.starts_with(PREFIX) {
                    let arguments = serde_json::Value::Object(arguments).to_string();
                    found.insert(Bound { exchange: name.clone(), routing_key, arguments });
                }
            }
        }
        Ok(found)
    }

    async fn bind(&mut self, bound: &Bound) -> Result<(), TapError> {
        let (queue, exchange) = (short(&self.queue)?, short(&bound.exchange)?);
        let (key, arguments) = (short(&bound.routing_key)?, table(&bound.arguments)?);
        let bind = self.channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), arguments);
        let result = deadline(bind).await;
        if result.as_ref().err().and_then(reply).is_some_and(|(code, _)| code == NOT_FOUND) {
            return Err(TapError::NoExchange(bound.exchange.clone()));
        }
        self.judge(&format!("binding the temporary queue to exchange `{}`", bound.exchange), result)?;
        self.bound.insert(bound.clone());
        Ok(())
    }

    fn judge<T>(&self, what: &str, result: Result<T, lapin::Error>) -> Result<T, TapError> {
        let refusal = match answer(result)? {
            Ok(value) => return Ok(value),
            Err(refusal) => refusal,
        };
        let (what, words) = (what.to_owned(), refusal.text);
        if refusal.code != ACCESS_REFUSED {
            return Err(TapError::Failed { what, words });
        }
        let command = permission_command(&self.vhost, &self.exchanges);
        Err(TapError::Refused { what, words, command })
    }
}

/// Whether every queue that matches gets its copy. Of a plugin's type (`x-consistent-hash`, `x-random`) that is not known.
fn copies(exchange_type: &str) -> bool {
    matches!(exchange_type, "topic" | "direct" | "fanout" | "headers")
}

/// Configure and write on the queue, to make and to bind it; read on it and on the exchanges.
fn permission_command(vhost: &str, exchanges: &[String]) -> String {
    let queue = format!("{}.*", exactly(PREFIX).trim_matches(['^', '$']));
    let exchanges = exchanges.iter().map(|name| exactly(name).trim_matches(['^', '$']).to_owned());
    let read = exchanges.chain([queue.clone()]).collect::<Vec<_>>().join("|");
    format!(
        "`rabbitmqctl set_permissions -p '{vhost}' USER '^{queue}$' '^{queue}$' '^({read})$'` (configure, write, read)"
    )
}

/// Arguments of a binding, from JSON.
fn table(json: &str) -> Result<FieldTable, TopologyError> {
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let mut table = FieldTable::default();
    for (name, value) in map {
        let value = match value {
            serde_json::Value::String(text) => AMQPValue::LongString(LongString::from(text)),
            serde_json::Value::Bool(flag) => AMQPValue::Boolean(flag),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(integer) => AMQPValue::LongLongInt(integer),
                None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
            },
            _ => AMQPValue::Void,
        };
        table.insert(short(&name)?, value);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_permission_is_for_these_queues_and_exchanges_alone() {
        let command = permission_command("shop", &["events".to_owned(), "a.b".to_owned()]);
        let expected = r"`rabbitmqctl set_permissions -p 'shop' USER '^postrider\.tail\..*$' '^postrider\.tail\..*$' '^(events|a\.b|postrider\.tail\..*)$'` (configure, write, read)";
        assert_eq!(command, expected);
    }

    #[test]
    fn an_exchange_that_deals_its_messages_out_is_not_watched() {
        assert!(["topic", "direct", "fanout", "headers"].into_iter().all(copies));
        assert!(!["x-consistent-hash", "x-random", "x-local-random"].into_iter().any(copies));
    }

    #[test]
    fn arguments_of_a_binding_keep_their_kinds() {
        let table = table(r#"{"x-match": "all", "n": 5, "flag": true}"#).unwrap();
        let value = |name: &str| table.inner().get(name).cloned();
        assert_eq!(value("x-match"), Some(AMQPValue::LongString("all".into())));
        assert_eq!((value("n"), value("flag")), (Some(AMQPValue::LongLongInt(5)), Some(AMQPValue::Boolean(true))));
    }
}
