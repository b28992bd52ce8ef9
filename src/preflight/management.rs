//! What routing keys reach, as RabbitMQ's management API tells it.

use super::Finding;
use crate::config::{Config, DeadLetterDecl, RouteRule, SecretSource};
use crate::event::route::{KeyValues, Router};
use crate::rabbitmq::management::{Binding, Exchange, ask, matches};

const CHECK: &str = "rabbitmq.routing";
/// Bindings named in one finding.
const ENOUGH: usize = 10;

pub(super) async fn check(config: &Config, url: &SecretSource, vhost: &str, findings: &mut Vec<Finding>) {
    for name in config.exchanges() {
        match ask(config, url, vhost, name).await {
            Ok(Some((exchange, bindings))) => judge(config, name, &exchange, &bindings, findings),
            Ok(None) => findings.push(Finding::skipped(CHECK, format!("{name} does not exist yet"))),
            Err(error) => {
                let text = format!("not checked: the management API cannot be asked: {error}");
                findings.push(Finding::warn(CHECK, text).say("correct management_url"));
                return;
            }
        }
    }
    dead_letters(config, url, vhost, findings).await;
}

/// Whether the dead letters of each queue reach their queue.
async fn dead_letters(config: &Config, url: &SecretSource, vhost: &str, findings: &mut Vec<Finding>) {
    const CHECK: &str = "rabbitmq.dead_letters";
    for queue in config.topology.iter().flat_map(|topology| &topology.queues) {
        let Some(DeadLetterDecl { queue: target, exchange: name, .. }) = &queue.dead_letter else { continue };
        // What cannot be asked has been said; what does not exist yet is declared at start.
        let Ok(Some((exchange, bindings))) = ask(config, url, vhost, name).await else { continue };
        let bound =
            bindings.iter().any(|binding| binding.destination == *target && matches(&exchange, binding, target));
        findings.push(if bound {
            Finding::ok(CHECK, format!("{name} ({}) takes those of {} to {target}", exchange.kind, queue.name))
        } else {
            Finding::warn(CHECK, format!("{target} is not bound to {name}: dead letters of {} stay in it", queue.name))
                .say("run binds it at start")
        });
    }
}

fn judge(config: &Config, name: &str, exchange: &Exchange, bindings: &[Binding], findings: &mut Vec<Finding>) {
    if bindings.is_empty() {
        let text = format!("nothing is bound to {name}: every event would come back as unroutable");
        findings.push(Finding::warn(CHECK, text).say("bind a queue to it, here or by [topology]"));
        return;
    }
    findings.push(Finding::ok(CHECK, format!("{name} ({}) reaches {}", exchange.kind, list(bindings.iter()))));
    for route in config.routes.iter().filter(|route| route.exchange == name) {
        // A key that depends on the row cannot be judged before there is one.
        let Some(key) = only_key(config, route) else { continue };
        let reached: Vec<&Binding> = bindings.iter().filter(|binding| matches(exchange, binding, &key)).collect();
        findings.push(if reached.is_empty() {
            Finding::warn(CHECK, format!("route {}: the key {key} reaches nothing", route.name))
                .say(format!("bind a queue to {name} for it"))
        } else {
            Finding::ok(CHECK, format!("route {}: the key {key} reaches {}", route.name, list(reached.into_iter())))
        });
    }
}

fn list<'b>(bindings: impl ExactSizeIterator<Item = &'b Binding>) -> String {
    let count = bindings.len();
    let mut names: Vec<String> = bindings
        .take(ENOUGH)
        .map(|binding| {
            let kind = if binding.destination_type == "queue" { "" } else { "exchange " };
            format!("{kind}{} ({})", binding.destination, binding.routing_key)
        })
        .collect();
    if count > ENOUGH {
        names.push(format!("{} more", count - ENOUGH));
    }
    names.join(", ")
}

/// The routing key of a route, if it is the same for every row that takes it: two rows that differ in all that they may
/// differ in give the same.
fn only_key(config: &Config, route: &RouteRule) -> Option<String> {
    let key = |free: &str| {
        let fixed = |pattern: &str| if pattern.contains('*') { free.to_owned() } else { pattern.to_owned() };
        let (aggregatetype, kind) = (fixed(&route.aggregatetype), fixed(&route.kind));
        let everything = RouteRule { aggregatetype: "*".to_owned(), kind: "*".to_owned(), ..route.clone() };
        let router = Router::new(&[everything]).ok()?;
        Some(router.choose(&aggregatetype, &kind).routing_key(&KeyValues {
            aggregatetype: &aggregatetype,
            aggregateid: free,
            kind: &kind,
            version: free,
            op: free,
            schema: &config.outbox.schema,
            table: &config.outbox.table,
            topic: free,
        }))
    };
    key("one").filter(|one| key("two").as_ref() == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_judged_only_if_every_row_of_the_route_has_it() {
        let urls = [("DATABASE_URL", "postgres://app@localhost/shop"), ("AMQP_URL", "amqp://localhost")];
        let config = Config::load(None, urls.map(|(name, url)| (name.to_owned(), url.to_owned()))).unwrap();
        let key = |aggregatetype: &str, kind: &str, template: &str| {
            let default = config.routes[0].clone();
            let (aggregatetype, kind) = (aggregatetype.to_owned(), kind.to_owned());
            only_key(&config, &RouteRule { aggregatetype, kind, routing_key: template.to_owned(), ..default })
        };
        assert_eq!(key("order", "OrderPlaced", "{aggregatetype}.{type}").as_deref(), Some("order.OrderPlaced"));
        assert_eq!(key("order", "*", "{aggregatetype}.{table}").as_deref(), Some("order.outbox"));
        assert_eq!(key("order", "Order*", "{aggregatetype}.{type}"), None);
        assert_eq!(key("order", "OrderPlaced", "{type}.{aggregateid}"), None);
    }
}
