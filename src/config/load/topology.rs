//! `[topology]`: what is declared at start.

use super::reader::{Entry, Reader};
use super::values;
use crate::config::{Argument, BindingDecl, DeadLetterDecl, ExchangeDecl, QueueDecl, RouteRule, Topology};

pub(super) fn topology(reader: &mut Reader) -> Option<Topology> {
    let present = reader.has_table("topology");
    let mut topology = Topology::default();
    for mut entry in reader.entries("topology.exchanges") {
        let name = reader.required(&mut entry, "name", values::amqp_name).unwrap_or_default();
        if topology.exchanges.iter().any(|exchange| exchange.name == name && !name.is_empty()) {
            reader.fault_in(&entry, "name", format!("{name:?} is listed twice"));
        }
        let kind = reader.field(&mut entry, "type", values::exchange_type).unwrap_or_else(|| "topic".to_owned());
        let arguments = arguments(reader, &mut entry);
        topology.exchanges.push(ExchangeDecl { name, kind, arguments });
        reader.close(entry);
    }
    for mut entry in reader.entries("topology.queues") {
        let queue = queue(reader, &mut entry, &topology);
        topology.queues.push(queue);
        reader.close(entry);
    }
    for mut entry in reader.entries("topology.bindings") {
        let binding = BindingDecl {
            exchange: reader.required(&mut entry, "exchange", values::amqp_name).unwrap_or_default(),
            queue: reader.required(&mut entry, "queue", values::amqp_name).unwrap_or_default(),
            // Empty is right for a fanout exchange.
            routing_key: reader.required(&mut entry, "routing_key", values::short_text).unwrap_or_default(),
            arguments: arguments(reader, &mut entry),
        };
        if topology.bindings.contains(&binding) && !binding.queue.is_empty() {
            reader.fault_in(&entry, "queue", "this binding is listed twice".to_owned());
        }
        topology.bindings.push(binding);
        reader.close(entry);
    }
    present.then_some(topology)
}

fn queue(reader: &mut Reader, entry: &mut Entry, before: &Topology) -> QueueDecl {
    let name = reader.required(entry, "name", values::amqp_name).unwrap_or_default();
    if before.queues.iter().any(|queue| queue.name == name && !name.is_empty()) {
        reader.fault_in(entry, "name", format!("{name:?} is listed twice"));
    }
    let dead_letter = reader.field(entry, "dead_letter", |value| values::dead_letter(value, &name)).flatten();
    let arguments = arguments(reader, entry);
    if let Some(dead_letter) = &dead_letter {
        for problem in contradictions(dead_letter, &arguments) {
            reader.fault_in(entry, "arguments", problem);
        }
    }
    QueueDecl { name, arguments, dead_letter }
}

/// Arguments that say something else than `dead_letter` of the same queue.
fn contradictions(dead_letter: &DeadLetterDecl, arguments: &[(String, Argument)]) -> Vec<String> {
    let set = dead_letter.source_arguments();
    let other = |(name, given): &(String, Argument)| {
        let (_, ours) = set.iter().find(|(set, ours)| set == name && ours != given)?;
        let why = match name.as_str() {
            "x-queue-type" => "; no other type has a delivery limit",
            // RabbitMQ falls back to at-most-once without a word.
            "x-overflow" => "; with any other a dead letter may be lost on its way",
            "x-dead-letter-strategy" => "",
            _ => "; say it there",
        };
        Some(format!("{name} = {given} contradicts dead_letter, which makes it {ours}{why}"))
    };
    arguments.iter().filter_map(other).collect()
}

/// What can be said only when everything is known. Call it with the routes that events take.
pub(super) fn check(reader: &mut Reader, topology: &Topology, routes: &[RouteRule]) {
    const KEY: &str = "topology.queues.dead_letter";
    let mut seen: Vec<&DeadLetterDecl> = Vec::new();
    for queue in &topology.queues {
        let Some(dead_letter) = &queue.dead_letter else { continue };
        let DeadLetterDecl { queue: target, exchange, .. } = dead_letter;
        let mut fault = |problem: String| reader.fault(KEY, format!("queue {:?}: {problem}", queue.name));
        if topology.queues.iter().any(|listed| listed.name == *target) {
            fault(format!(
                "its dead-letter queue {target:?} is listed as a queue too; leave it out, or choose another"
            ));
        }
        if target.len() > values::SHORT_STRING {
            fault("the name of its dead-letter queue is over 255 bytes: choose one with queue = \"...\"".to_owned());
        }
        if routes.iter().any(|route| route.exchange == *exchange) {
            fault(format!(
                "events go to the exchange {exchange:?}: whoever listens there would get the dead letters too"
            ));
        }
        if let Some(other) =
            seen.iter().find(|other| other.queue == *target && other.retention != dead_letter.retention)
        {
            let (one, two) = (dead_letter.retention, other.retention);
            fault(format!("{target:?} cannot keep dead letters for {one:?} and, as another queue has it, for {two:?}"));
        }
        seen.push(dead_letter);
    }
}

fn arguments(reader: &mut Reader, entry: &mut Entry) -> Vec<(String, Argument)> {
    reader.field(entry, "arguments", values::arguments).unwrap_or_default()
}
