//! Exchanges, queues and bindings: declared where the configuration lists them, checked otherwise.
//!
//! Each question has a channel of its own, because a refusal closes the channel (AMQP 0-9-1, "exchange.declare"). What
//! exists is used as it is: a relay that insists on its own arguments stops at every policy that somebody has set.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};
use tracing::{info, warn};

use super::connection::{Link, deadline, reply};
use super::queues;
use crate::config::{Argument, Config, ExchangeDecl, Topology};

/// The topology is not as the events need it, or the broker was lost while it was looked at.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// What is missing, and the commands that help; one sentence each. Never empty.
    #[error("{}", .0.join("; "))]
    Missing(Vec<String>),
    #[error("the broker did not answer a question about its topology: {0}")]
    Lost(#[from] lapin::Error),
    #[error("`{0}` is longer than 255 bytes, which no name in AMQP may be")]
    NameTooLong(String),
}

/// A queue as a passive declare shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages that are ready for a consumer.
    pub ready: u32,
    pub consumers: u32,
}

/// The broker closed the channel: code and text.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) text: String,
}

pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Declares what `[topology]` lists, and sees to it that the exchanges of the routes exist.
pub async fn ensure(link: &Link, config: &Config) -> Result<(), TopologyError> {
    let mut missing = Vec::new();
    let declared = config.topology.clone().unwrap_or_default();
    declare(link, &declared, &mut missing).await?;
    let mut seen: Vec<&str> = declared.exchanges.iter().map(|exchange| exchange.name.as_str()).collect();
    for exchange in config.routes.iter().map(|route| route.exchange.as_str()) {
        // The exchange without a name is always there.
        if exchange.is_empty() || seen.contains(&exchange) {
            continue;
        }
        seen.push(exchange);
        match exchange_exists(link, exchange).await? {
            Existence::Yes => {}
            Existence::CannotTell => {
                warn!(exchange, "cannot verify the exchange: this user may not look at it; it is used as it is");
            }
            Existence::No if config.topology.is_some() => missing.push(format!(
                "exchange `{exchange}` does not exist and [topology] does not list it; list it there, or run {}",
                declare_command(link.vhost(), exchange, "topic")
            )),
            Existence::No => {
                let topic = ExchangeDecl { name: exchange.to_owned(), kind: "topic".to_owned(), arguments: Vec::new() };
                declare_exchange(link, &topic, &mut missing).await?;
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(TopologyError::Missing(missing)) }
}

/// `None`: there is no such queue.
pub async fn queue_depth(link: &Link, queue: &str) -> Result<Option<QueueDepth>, lapin::Error> {
    let Ok(name) = ShortString::try_new(queue) else { return Ok(None) };
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = link.channel().await?;
    match deadline(channel.queue_declare(name, options, FieldTable::default())).await {
        Ok(found) => {
            close(&channel).await;
            Ok(Some(QueueDepth { ready: found.message_count(), consumers: found.consumer_count() }))
        }
        Err(error) if reply(&error).is_some_and(|(code, _)| code == NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    Yes,
    No,
    /// 403: the user has no right to look, which says nothing about the exchange.
    CannotTell,
}

/// Asks on a channel of its own, without declaring anything.
pub async fn exchange_exists(link: &Link, exchange: &str) -> Result<Existence, TopologyError> {
    let channel = link.channel().await?;
    let answer = passive_exchange(&channel, exchange).await?;
    if answer == Existence::Yes {
        close(&channel).await;
    }
    Ok(answer)
}

/// On a given channel, which is closed by the broker unless the answer is yes.
pub(super) async fn passive_exchange(channel: &Channel, exchange: &str) -> Result<Existence, TopologyError> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let declare = channel.exchange_declare(short(exchange)?, ExchangeKind::Topic, options, FieldTable::default());
    Ok(match answer(deadline(declare).await)? {
        Ok(()) => Existence::Yes,
        Err(Refusal { code: ACCESS_REFUSED, .. }) => Existence::CannotTell,
        Err(Refusal { code: NOT_FOUND, .. }) => Existence::No,
        // 406 or 405: there is something of that name.
        Err(Refusal { .. }) => Existence::Yes,
    })
}

async fn declare(link: &Link, topology: &Topology, missing: &mut Vec<String>) -> Result<(), TopologyError> {
    for exchange in &topology.exchanges {
        declare_exchange(link, exchange, missing).await?;
    }
    for queue in &topology.queues {
        queues::declare(link, queue, topology, missing).await?;
    }
    for binding in &topology.bindings {
        queues::bind(link, binding, missing).await?;
    }
    Ok(())
}

pub(super) async fn declare_exchange(
    link: &Link,
    exchange: &ExchangeDecl,
    missing: &mut Vec<String>,
) -> Result<(), TopologyError> {
    let name = exchange.name.as_str();
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let kind = match exchange.kind.as_str() {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "headers" => ExchangeKind::Headers,
        "topic" => ExchangeKind::Topic,
        other => ExchangeKind::Custom(other.to_owned()),
    };
    let channel = link.channel().await?;
    let declared = channel.exchange_declare(short(name)?, kind, options, table(&exchange.arguments)?);
    let Err(refusal) = answer(deadline(declared).await)? else {
        close(&channel).await;
        info!(exchange = name, kind = exchange.kind, "exchange declared");
        return Ok(());
    };
    match (refusal.code, exchange_exists(link, name).await?) {
        (PRECONDITION_FAILED, _) => {
            warn!(
                exchange = name,
                reason = refusal.text,
                "the exchange exists with other properties; it is used as it is"
            );
        }
        (_, Existence::Yes) => {}
        (_, Existence::CannotTell) => {
            warn!(exchange = name, "cannot verify the exchange: this user may not look at it; it is used as it is");
        }
        (ACCESS_REFUSED, Existence::No) => missing.push(format!(
            "exchange `{name}` does not exist and this user may not declare it; run {}, or let the user do it: {}",
            declare_command(link.vhost(), name, &exchange.kind),
            permission_command(link.vhost(), name)
        )),
        (_, Existence::No) => {
            missing.push(format!("exchange `{name}` cannot be declared: {}; correct [topology]", refusal.text));
        }
    }
    Ok(())
}

/// Separates the broker's refusal, which is an answer, from the loss of the broker.
pub(super) fn answer<T>(result: Result<T, lapin::Error>) -> Result<Result<T, Refusal>, lapin::Error> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match reply(&error) {
            Some((code, text)) if error.is_amqp_soft_error() => Ok(Err(Refusal { code, text: text.to_owned() })),
            _ => Err(error),
        },
    }
}

pub(super) async fn close(channel: &Channel) {
    // The channel has done its duty; if this fails, the next question finds out what is wrong.
    deadline(channel.close(200, ShortString::from("OK"))).await.ok();
}

pub(super) fn short(name: &str) -> Result<ShortString, TopologyError> {
    ShortString::try_new(name).map_err(|_| TopologyError::NameTooLong(name.to_owned()))
}

pub(super) fn table(arguments: &[(String, Argument)]) -> Result<FieldTable, TopologyError> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            Argument::Integer(number) => AMQPValue::LongLongInt(*number),
            Argument::Bool(flag) => AMQPValue::Boolean(*flag),
        };
        table.insert(short(name)?, value);
    }
    Ok(table)
}

/// For rabbitmqadmin 2, which comes with RabbitMQ 4; version 1 takes `name=events` and so on.
fn declare_command(vhost: &str, exchange: &str, kind: &str) -> String {
    format!(
        "`rabbitmqadmin --vhost '{vhost}' declare exchange --name '{exchange}' --type {kind} --durable true` \
         (rabbitmqadmin 1: `rabbitmqadmin --vhost='{vhost}' declare exchange name='{exchange}' type={kind} durable=true`)"
    )
}

pub(super) fn permission_command(vhost: &str, name: &str) -> String {
    let name = queues::exactly(name);
    format!("`rabbitmqctl set_permissions -p '{vhost}' USER '{name}' '{name}' ''` (configure, write, read)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_vhost_and_quote_the_name() {
        let declare = declare_command("shop", "events", "topic");
        assert!(declare.contains("--vhost 'shop' declare exchange --name 'events' --type topic --durable true"));
        assert!(declare.contains("declare exchange name='events' type=topic durable=true"));
        let permission = permission_command("/", "a.b");
        assert!(permission.contains(r"set_permissions -p '/' USER '^a\.b$' '^a\.b$' ''"), "{permission}");
    }
}
