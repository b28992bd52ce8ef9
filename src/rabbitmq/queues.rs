//! The queues of `[topology]`, their dead-letter queues, and bindings.

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use tracing::{info, warn};

use super::connection::{Link, deadline, reply};
use super::topology::{
    ACCESS_REFUSED, PRECONDITION_FAILED, Refusal, TopologyError, answer, close, declare_exchange, queue_depth, short,
    table,
};
use crate::config::{Argument, BindingDecl, DeadLetterDecl, ExchangeDecl, QueueDecl, Topology};

/// Declares a queue, and before it the way of its dead letters, so that there is one from its first message on.
pub(super) async fn declare(
    link: &Link,
    queue: &QueueDecl,
    topology: &Topology,
    missing: &mut Vec<String>,
) -> Result<(), TopologyError> {
    let Some(dead_letter) = &queue.dead_letter else {
        return declare_queue(link, &queue.name, arguments(queue)?, None, missing).await;
    };
    let DeadLetterDecl { queue: target, exchange, .. } = dead_letter;
    // One that is listed has been declared, of the type that the list says.
    if !topology.exchanges.iter().any(|listed| listed.name == *exchange) {
        let direct = ExchangeDecl { name: exchange.clone(), kind: "direct".to_owned(), arguments: Vec::new() };
        declare_exchange(link, &direct, missing).await?;
    }
    declare_queue(link, target, table(&dead_letter.target_arguments())?, None, missing).await?;
    let binding = BindingDecl {
        exchange: exchange.clone(),
        queue: target.clone(),
        routing_key: target.clone(),
        arguments: Vec::new(),
    };
    bind(link, &binding, missing).await?;
    declare_queue(link, &queue.name, arguments(queue)?, Some(dead_letter), missing).await
}

/// What a queue with `dead_letter` is like on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is none yet.
    Nothing,
    AsWanted,
    /// With other arguments; the broker's words.
    Otherwise(String),
    /// 403: the user may not look.
    CannotTell,
}

/// Compares a queue that exists with what is wanted, and changes nothing: a declaration of what exists is a comparison.
pub async fn compare(link: &Link, queue: &QueueDecl) -> Result<Found, TopologyError> {
    match queue_depth(link, &queue.name).await {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(Found::Nothing),
        Err(error) if reply(&error).is_some_and(|(code, _)| code == ACCESS_REFUSED) => return Ok(Found::CannotTell),
        Err(error) => return Err(error.into()),
    }
    let channel = link.channel().await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = deadline(channel.queue_declare(short(&queue.name)?, options, arguments(queue)?)).await;
    Ok(match answer(declared)? {
        Ok(_) => {
            close(&channel).await;
            Found::AsWanted
        }
        Err(Refusal { code: ACCESS_REFUSED, .. }) => Found::CannotTell,
        Err(Refusal { text, .. }) => Found::Otherwise(text),
    })
}

/// How a queue that exists gets its dead letters without being declared again: a policy.
pub fn policy_command(vhost: &str, queue: &str, dead_letter: &DeadLetterDecl) -> String {
    let DeadLetterDecl { delivery_limit, queue: target, exchange, .. } = dead_letter;
    let policy = serde_json::json!({
        "delivery-limit": delivery_limit,
        "dead-letter-exchange": exchange,
        "dead-letter-routing-key": target,
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    });
    format!(
        "rabbitmqctl set_policy -p '{vhost}' --apply-to queues '{queue}-dead-letters' '{}' '{policy}'",
        exactly(queue)
    )
}

/// All arguments of a queue: what `dead_letter` makes of it, then what is listed for it.
fn arguments(queue: &QueueDecl) -> Result<FieldTable, TopologyError> {
    let mut all = table(&queue.arguments)?;
    // Only quorum queues fsync before they confirm.
    let quorum = vec![("x-queue-type".to_owned(), Argument::Text("quorum".to_owned()))];
    let usual = queue.dead_letter.as_ref().map_or(quorum, DeadLetterDecl::source_arguments);
    for (name, value) in usual {
        // Where both say something they say the same: that was checked when the configuration was read.
        if !all.contains_key(name.as_str()) {
            let value = match value {
                Argument::Text(text) => AMQPValue::LongString(LongString::from(text)),
                Argument::Integer(number) => AMQPValue::LongLongInt(number),
                Argument::Bool(flag) => AMQPValue::Boolean(flag),
            };
            all.insert(short(&name)?, value);
        }
    }
    Ok(all)
}

async fn declare_queue(
    link: &Link,
    name: &str,
    arguments: FieldTable,
    dead_letter: Option<&DeadLetterDecl>,
    missing: &mut Vec<String>,
) -> Result<(), TopologyError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let channel = link.channel().await?;
    let Err(refusal) = answer(deadline(channel.queue_declare(short(name)?, options, arguments)).await)? else {
        close(&channel).await;
        info!(queue = name, "queue declared");
        return Ok(());
    };
    let exists = match queue_depth(link, name).await {
        Ok(depth) => depth.is_some(),
        // Reading its depth needs no more rights than declaring it, and answers with 403 as well.
        Err(error) if reply(&error).is_some_and(|(code, _)| code == ACCESS_REFUSED) => {
            warn!(queue = name, "cannot verify the queue: this user may not look at it; it is used as it is");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    match (refusal.code, exists, dead_letter) {
        (PRECONDITION_FAILED, true, Some(dead_letter)) => warn!(
            queue = name,
            reason = refusal.text,
            remedy = policy_command(link.vhost(), name, dead_letter),
            "the queue exists with other properties; it is used as it is, perhaps without dead letters"
        ),
        (PRECONDITION_FAILED, true, None) => {
            warn!(queue = name, reason = refusal.text, "the queue exists with other properties; it is used as it is");
        }
        (ACCESS_REFUSED, true, _) => {}
        (ACCESS_REFUSED, false, _) => missing.push(format!(
            "queue `{name}` does not exist and this user may not declare it ({}); declare it yourself, or let the user do it: {}",
            refusal.text,
            permission_command(link.vhost(), name, dead_letter)
        )),
        _ => missing.push(format!("queue `{name}` cannot be declared: {}; correct [topology]", refusal.text)),
    }
    Ok(())
}

pub(super) async fn bind(link: &Link, binding: &BindingDecl, missing: &mut Vec<String>) -> Result<(), TopologyError> {
    let BindingDecl { exchange, queue, routing_key, arguments } = binding;
    let channel = link.channel().await?;
    let bound = channel.queue_bind(
        short(queue)?,
        short(exchange)?,
        short(routing_key)?,
        QueueBindOptions::default(),
        table(arguments)?,
    );
    match answer(deadline(bound).await)? {
        Ok(()) => {
            close(&channel).await;
            info!(exchange, queue, routing_key, "queue bound");
        }
        Err(Refusal { code: ACCESS_REFUSED, .. }) => {
            // Whether it exists cannot be asked in AMQP; if it does not, the events come back as unroutable and say so.
            warn!(
                exchange,
                queue,
                routing_key,
                "this user may not bind the queue (it takes write on the queue and read on the exchange); \
                 if nobody else has bound it, events will be returned"
            );
        }
        Err(Refusal { text, .. }) => {
            missing.push(format!("queue `{queue}` cannot be bound to exchange `{exchange}`: {text}"));
        }
    }
    Ok(())
}

/// To declare a queue that has a dead-letter exchange takes read on the queue and write on that exchange as well.
fn permission_command(vhost: &str, name: &str, dead_letter: Option<&DeadLetterDecl>) -> String {
    let Some(DeadLetterDecl { queue, exchange, .. }) = dead_letter else {
        return super::topology::permission_command(vhost, name);
    };
    let all = [name, queue, exchange].map(|name| exactly(name).trim_matches(['^', '$']).to_owned()).join("|");
    format!(
        "`rabbitmqctl set_permissions -p '{vhost}' USER '^({all})$' '^({all})$' '^({all})$'` (configure, write, read)"
    )
}

/// A pattern that matches this name alone.
pub(super) fn exactly(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let escaped: String = name.chars().flat_map(|c| (!plain(c)).then_some('\\').into_iter().chain([c])).collect();
    format!("^{escaped}$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_a_queue_are_its_own_and_those_of_its_dead_letters() {
        let queue = QueueDecl {
            name: "billing".to_owned(),
            arguments: vec![("x-max-length".to_owned(), Argument::Integer(5))],
            dead_letter: Some(DeadLetterDecl::usual("billing")),
        };
        let all = arguments(&queue).unwrap();
        let text = |text: &str| Some(AMQPValue::LongString(LongString::from(text)));
        let given = |name: &str| all.inner().get(name).cloned();
        assert_eq!(given("x-max-length"), Some(AMQPValue::LongLongInt(5)));
        assert_eq!(given("x-delivery-limit"), Some(AMQPValue::LongLongInt(3)));
        assert_eq!(given("x-queue-type"), text("quorum"));
        assert_eq!(given("x-dead-letter-exchange"), text("dead-letters"));
        assert_eq!(given("x-dead-letter-routing-key"), text("billing.dlq"));
        assert_eq!(given("x-dead-letter-strategy"), text("at-least-once"));
        assert_eq!(given("x-overflow"), text("reject-publish"));
        let plain = QueueDecl { dead_letter: None, ..queue };
        assert_eq!(arguments(&plain).unwrap().inner().len(), 2, "a quorum queue with what is listed");
    }

    #[test]
    fn the_commands_name_the_queue_exactly() {
        let dead_letter = DeadLetterDecl::usual("a.b");
        let command = policy_command("shop", "a.b", &dead_letter);
        assert!(
            command.starts_with(r"rabbitmqctl set_policy -p 'shop' --apply-to queues 'a.b-dead-letters' '^a\.b$' '{"),
            "{command}"
        );
        assert!(command.contains(r#""dead-letter-routing-key":"a.b.dlq""#), "{command}");
        let command = permission_command("/", "a.b", Some(&dead_letter));
        assert!(command.contains(r"USER '^(a\.b|a\.b\.dlq|dead-letters)$'"), "{command}");
    }
}
