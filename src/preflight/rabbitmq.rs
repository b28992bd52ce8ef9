//! What `run` needs of RabbitMQ.

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use secrecy::ExposeSecret;

use super::{Finding, management};
use crate::config::{Config, DeadLetterDecl, QueueDecl};
use crate::rabbitmq::connection::{Link, Purpose, connect};
use crate::rabbitmq::queues::{Found, compare, policy_command};
use crate::rabbitmq::topology::{Existence, TopologyError, exchange_exists, queue_depth};
use crate::rabbitmq::url::Target;

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let target = config
        .amqp_url
        .read()
        .map_err(|error| format!("amqp_url: {error}"))
        .and_then(|url| Target::new(url.expose_secret(), config).map_err(|error| error.to_string()));
    let target = match target {
        Ok(target) => target,
        Err(error) => return vec![Finding::fail("rabbitmq.connection", error)],
    };
    findings.extend(target.warnings().into_iter().map(|warning| Finding::warn("rabbitmq.tls", warning)));
    let link = match connect(config, Purpose::Probe).await {
        Ok(link) => link,
        Err(error) => {
            findings.push(Finding::fail("rabbitmq.connection", error.to_string()));
            findings.push(Finding::skipped("rabbitmq", "nothing else was checked: no connection"));
            return findings;
        }
    };
    findings.push(Finding::ok("rabbitmq.connection", format!("{}, vhost {}", link.address(), link.vhost())));
    if let Err(error) = ask(config, &link, &mut findings).await {
        findings.push(Finding::fail("rabbitmq", format!("a check could not be done: {error}")));
    }
    match &config.management_url {
        Some(url) => management::check(config, url, link.vhost(), &mut findings).await,
        None => findings.push(
            Finding::skipped("rabbitmq.routing", "not checked: what a routing key reaches")
                .say("set management_url (a user with the tag monitoring will do)"),
        ),
    }
    link.close().await;
    findings
}

async fn ask(config: &Config, link: &Link, findings: &mut Vec<Finding>) -> Result<(), TopologyError> {
    for exchange in config.exchanges() {
        findings.push(check_exchange(config, link, exchange).await?);
    }
    for queue in config.topology.iter().flat_map(|topology| &topology.queues) {
        if let Some(dead_letter) = &queue.dead_letter {
            findings.push(check_dead_letters(link, queue, dead_letter).await?);
        }
    }
    for queue in config.queues.iter().filter(|queue| !queue.is_pattern()).map(|queue| queue.name.as_str()) {
        findings.push(match queue_depth(link, queue).await {
            Ok(Some(depth)) => Finding::ok(
                "rabbitmq.queue",
                format!("{queue} has {} messages ready and {} consumers", depth.ready, depth.consumers),
            ),
            Ok(None) if declares_queue(config, queue) => {
                Finding::ok("rabbitmq.queue", format!("{queue} does not exist yet: it is declared at start"))
            }
            Ok(None) => Finding::warn("rabbitmq.queue", format!("{queue} does not exist, so it cannot be watched"))
                .say("declare it, or take it out of [[queues]]"),
            // 403 says nothing about the queue.
            Err(error) => Finding::warn("rabbitmq.queue", format!("cannot verify {queue}: {error}")),
        });
    }
    Ok(())
}

/// Whether a queue sends its dead letters where the configuration says.
async fn check_dead_letters(
    link: &Link,
    queue: &QueueDecl,
    dead_letter: &DeadLetterDecl,
) -> Result<Finding, TopologyError> {
    const CHECK: &str = "rabbitmq.dead_letters";
    let (name, target) = (&queue.name, &dead_letter.queue);
    let otherwise = |words: String| {
        Finding::warn(CHECK, format!("{name} exists with other arguments, and run uses it as it is: {words}"))
            .say(format!(
                "a policy gives it dead letters without declaring it again: {}; or delete it when it is empty, and run declares it",
                policy_command(link.vhost(), name, dead_letter)
            ))
    };
    Ok(match compare(link, queue).await? {
        Found::Nothing => Finding::ok(
            CHECK,
            format!("{name} does not exist yet: it is declared at start, with {target} for its dead letters"),
        ),
        Found::CannotTell => Finding::warn(CHECK, format!("cannot verify {name}: this user may not look at it")),
        Found::Otherwise(words) => otherwise(words),
        Found::AsWanted => match queue_depth(link, target).await {
            Ok(Some(depth)) => {
                Finding::ok(CHECK, format!("{name} sends them to {target}, where {} are waiting", depth.ready))
            }
            Ok(None) => Finding::ok(CHECK, format!("{name} sends them to {target}, which is declared at start")),
            // 403 says nothing about the queue.
            Err(error) => Finding::warn(CHECK, format!("cannot verify {target}: {error}")),
        },
    })
}

fn declares_queue(config: &Config, queue: &str) -> bool {
    let listed = config.topology.iter().flat_map(|topology| &topology.queues);
    let names = |listed: &QueueDecl| {
        listed.name == queue || listed.dead_letter.as_ref().is_some_and(|dead_letter| dead_letter.queue == queue)
    };
    listed.into_iter().any(names)
}

async fn check_exchange(config: &Config, link: &Link, exchange: &str) -> Result<Finding, TopologyError> {
    const CHECK: &str = "rabbitmq.exchange";
    let kind = match &config.topology {
        None => Some("topic"),
        Some(topology) => {
            topology.exchanges.iter().find(|declared| declared.name == exchange).map(|declared| declared.kind.as_str())
        }
    };
    let declare = format!(
        "rabbitmqadmin --vhost '{}' declare exchange --name '{exchange}' --type {} --durable true",
        link.vhost(),
        kind.unwrap_or("topic")
    );
    Ok(match exchange_exists(link, exchange).await? {
        Existence::Yes => Finding::ok(CHECK, format!("{exchange} exists")),
        Existence::CannotTell => Finding::warn(
            CHECK,
            format!("cannot verify {exchange}: this user may not look at it; run uses it as it is"),
        ),
        Existence::No if kind.is_none() => {
            Finding::fail(CHECK, format!("{exchange} does not exist, and [topology] does not list it")).shell(declare)
        }
        Existence::No if may_declare(link, exchange).await? => {
            Finding::ok(CHECK, format!("{exchange} does not exist yet: it is declared at start"))
        }
        Existence::No => {
            Finding::fail(CHECK, format!("{exchange} does not exist, and this user may not declare it")).shell(declare)
        }
    })
}

/// Whether this user has the right to declare an exchange that does not exist, without making it.
///
/// RabbitMQ asks for the right first and looks at the arguments then (`rabbit_channel.erl`, `exchange.declare`): with an
/// alternate exchange that is a number the answer is 406 where the right is given, 403 where it is not, and nothing is made.
async fn may_declare(link: &Link, exchange: &str) -> Result<bool, TopologyError> {
    let name = ShortString::try_new(exchange).map_err(|_| TopologyError::NameTooLong(exchange.to_owned()))?;
    let mut nonsense = FieldTable::default();
    nonsense.insert(ShortString::try_new("alternate-exchange").unwrap_or_default(), AMQPValue::LongInt(0));
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    match channel.exchange_declare(name, ExchangeKind::Topic, options, nonsense).await {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            lapin::ErrorKind::ProtocolError(refusal) => {
                Ok(*refusal.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
            }
            _ => Err(error.into()),
        },
    }
}
