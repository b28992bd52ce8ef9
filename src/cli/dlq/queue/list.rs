//! `postrider dlq --queue NAME list`.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Details, Interrupts, Open, QueueError, exchange, messages, say};
use crate::cli::dlq::list::ListArgs;
use crate::cli::message::{base64, headers_json, properties_json, rfc3339, text_body};
use crate::cli::text::{bytes, harmless};
use crate::rabbitmq::dead_letter_queue::death::Death;
use crate::rabbitmq::dead_letter_queue::{CutShort, Seen, SeenMessage};

#[derive(Serialize)]
struct Listing {
    queue: String,
    vhost: String,
    ready: u32,
    consumers: u32,
    /// `null`: not known.
    unacknowledged: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Shown>>,
}

#[derive(Serialize)]
struct Shown {
    exchange: String,
    routing_key: String,
    redelivered: bool,
    bytes: usize,
    first_death_queue: Option<String>,
    first_death_reason: Option<String>,
    first_death_exchange: Option<String>,
    first_death_routing_keys: Vec<String>,
    deaths: u64,
    last_death: Option<String>,
    properties: Value,
    headers: Value,
    /// JSON as it is, other text as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    /// What is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

pub(super) async fn run(args: &ListArgs, open: Open) -> Result<ExitCode, QueueError> {
    if let (Some(_), Some(warning)) = (args.peek, open.warning()) {
        say(&format!("warning: {warning}"));
    }
    let seen = match args.peek {
        Some(most) => Some(peek(most, args.bodies, &open).await),
        None => None,
    };
    let Open { link, queue, details } = open;
    let (name, depth) = (queue.name().to_owned(), queue.depth());
    // Before a word is printed: a reader that stands still must not keep the messages from others.
    let back = queue.hand_back().await;
    let vhost = link.vhost().to_owned();
    link.close().await;
    let seen = seen.transpose()?;
    back?;
    match seen.as_ref().and_then(|seen| seen.cut_short) {
        Some(CutShort::Interrupted) => return Err(QueueError::Interrupted),
        Some(CutShort::Bodies) => say("the bodies are large: no more messages are shown; see them without --bodies"),
        None => {}
    }
    let listing = Listing {
        queue: name,
        vhost,
        ready: depth.ready,
        consumers: depth.consumers,
        unacknowledged: details.known().and_then(|details| details.messages_unacknowledged),
        messages: seen.map(|Seen { messages, .. }| messages.iter().map(|seen| shown(seen, args.bodies)).collect()),
    };
    let text = if args.json {
        serde_json::to_string_pretty(&listing)? + "\n"
    } else {
        describe(&listing, matches!(details, Details::NotAsked))
    };
    crate::cli::print(&text).map_err(QueueError::Print)?;
    Ok(ExitCode::SUCCESS)
}

async fn peek(most: u32, bodies: bool, open: &Open) -> Result<Seen, QueueError> {
    let mut interrupts = Interrupts::listen()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(open.queue.look(most, bodies, || interrupts.came()).await?)
}

fn shown(SeenMessage { delivery, bytes }: &SeenMessage, bodies: bool) -> Shown {
    let death = Death::of(&delivery.properties);
    let body = bodies.then(|| text_body(&delivery.data)).flatten();
    Shown {
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        redelivered: delivery.redelivered,
        bytes: *bytes,
        first_death_queue: death.first_queue,
        first_death_reason: death.first_reason,
        first_death_exchange: death.first_exchange,
        first_death_routing_keys: death.routing_keys,
        deaths: death.count,
        last_death: death.time.and_then(rfc3339),
        properties: all_properties(&delivery.properties),
        headers: headers_json(&delivery.properties),
        body_base64: (bodies && body.is_none()).then(|| base64(&delivery.data)),
        body,
    }
}

/// Those that are there.
fn all_properties(properties: &lapin::BasicProperties) -> Value {
    let text = |value: &Option<lapin::types::ShortString>| json!(value.as_ref().map(ToString::to_string));
    let mut all = properties_json(properties);
    if let Value::Object(all) = &mut all {
        for (name, value) in [
            ("content_encoding", text(properties.content_encoding())),
            ("priority", json!(properties.priority())),
            ("reply_to", text(properties.reply_to())),
            ("expiration", text(properties.expiration())),
            ("user_id", text(properties.user_id())),
        ] {
            all.insert(name.to_owned(), value);
        }
        all.retain(|_, value| !value.is_null());
    }
    all
}

fn describe(listing: &Listing, not_asked: bool) -> String {
    let Listing { queue, vhost, ready, consumers, unacknowledged, messages: shown } = listing;
    let consumers = if *consumers == 1 { "1 consumer".to_owned() } else { format!("{consumers} consumers") };
    let unacknowledged = match unacknowledged {
        Some(count) => format!("{count} unacknowledged"),
        None if not_asked => "unacknowledged not known (set management_url)".to_owned(),
        None => "unacknowledged not known".to_owned(),
    };
    let mut text = format!(
        "queue {} in vhost {}: {} ready, {unacknowledged}, {consumers}\n",
        harmless(queue, &[]),
        harmless(vhost, &[]),
        messages(u64::from(*ready))
    );
    for (number, message) in shown.iter().flatten().enumerate() {
        text.push('\n');
        text.push_str(&block(number + 1, message));
    }
    text
}

/// One message, a line for each thing that there is to say.
fn block(number: usize, message: &Shown) -> String {
    let property = |name: &str| message.properties.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let size = bytes(i64::try_from(message.bytes).unwrap_or(i64::MAX));
    let mut lines = vec![format!("{number}  {}  {}  {size}", property("message_id"), property("type"))];
    lines.push(match (&message.first_death_queue, message.deaths) {
        (None, 0) => "died         not known: no x-death".to_owned(),
        (queue, deaths) => format!(
            "died         in queue {} ({}), from {} with routing key {}; {deaths} {}, last {}",
            or(queue),
            or(&message.first_death_reason),
            message.first_death_exchange.as_deref().map_or_else(|| "-".to_owned(), exchange),
            message.first_death_routing_keys.join(", "),
            if deaths == 1 { "death" } else { "deaths" },
            or(&message.last_death),
        ),
    });
    lines.push(format!("came by      {}, routing key {}", exchange(&message.exchange), message.routing_key));
    lines.push(format!("properties   {}", pairs(&message.properties, &["message_id", "type"])));
    // The deaths have been told.
    let told = ["x-death", "x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"];
    lines.push(format!("headers      {}", pairs(&message.headers, &told)));
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { "   " });
        text.push_str(harmless(line, &[]).trim_end());
        text.push('\n');
    }
    if let Some(body) = &message.body {
        text.push_str(&format!("   body         {}\n", harmless(body.get(), &[])));
    } else if let Some(body) = &message.body_base64 {
        text.push_str(&format!("   body         no text; in base64: {body}\n"));
    }
    text
}

fn pairs(object: &Value, without: &[&str]) -> String {
    let entries = object.as_object().into_iter().flatten().filter(|(name, _)| !without.contains(&name.as_str()));
    let entries = entries.map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    entries.collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::message::Delivery;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn dead() -> SeenMessage {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut death = FieldTable::default();
        for (name, value) in [
            ("queue", text("billing")),
            ("reason", text("rejected")),
            ("exchange", text("events")),
            ("count", AMQPValue::LongLongInt(2)),
            ("time", AMQPValue::Timestamp(1_795_256_130)),
            ("routing-keys", AMQPValue::FieldArray(vec![text("order.Placed")].into())),
        ] {
            death.insert(name.into(), value);
        }
        let mut headers = FieldTable::default();
        headers.insert("aggregateid".into(), text("4\u{1b}[2J2"));
        headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
        let body = b"{\"name\": \"Ada\"}".to_vec();
        let bytes = body.len();
        let mut delivery = Delivery::mock(1, "dead-letters".into(), "billing.dlq".into(), false, body);
        delivery.properties = BasicProperties::default()
            .with_message_id("id-1".into())
            .with_type("OrderPlaced".into())
            .with_content_type("application/json".into())
            .with_priority(4)
            .with_headers(headers);
        SeenMessage { delivery, bytes }
    }

    fn listing(messages: Option<Vec<Shown>>, unacknowledged: Option<u64>) -> Listing {
        Listing {
            queue: "billing.dlq".to_owned(),
            vhost: "shop".to_owned(),
            ready: 1,
            consumers: 0,
            unacknowledged,
            messages,
        }
    }

    #[test]
    fn counts_are_one_line_and_what_is_not_known_is_said() {
        assert_eq!(
            describe(&listing(None, None), true),
            "queue billing.dlq in vhost shop: 1 message ready, unacknowledged not known (set management_url), 0 consumers\n"
        );
        assert!(describe(&listing(None, None), false).contains("not known, 0"));
        assert!(describe(&listing(None, Some(3)), false).contains(" ready, 3 unacknowledged, 0 consumers"));
    }

    #[test]
    fn a_message_says_where_it_died_and_its_body_only_when_asked_for() {
        let text = describe(&listing(Some(vec![shown(&dead(), false)]), Some(0)), false);
        insta::assert_snapshot!(text, @r"
        queue billing.dlq in vhost shop: 1 message ready, 0 unacknowledged, 0 consumers

        1  id-1  OrderPlaced  15 B
           died         in queue billing (rejected), from exchange events with routing key order.Placed; 2 deaths, last 2026-11-21T10:15:30Z
           came by      exchange dead-letters, routing key billing.dlq
           properties   content_type=application/json  priority=4
           headers      aggregateid=4\u{1b}[2J2
        ");
        let text = describe(&listing(Some(vec![shown(&dead(), true)]), Some(0)), false);
        assert!(text.ends_with("   body         {\"name\": \"Ada\"}\n"), "{text}");
        for (bodies, there) in [(false, false), (true, true)] {
            let json = serde_json::to_string(&listing(Some(vec![shown(&dead(), bodies)]), None)).unwrap();
            assert_eq!(json.contains("Ada"), there, "{json}");
        }
    }

    #[test]
    fn a_message_without_a_history_is_shown_too() {
        let seen = SeenMessage { delivery: Delivery::mock(1, "".into(), "q".into(), false, vec![0xff]), bytes: 1 };
        let text = describe(&listing(Some(vec![shown(&seen, true)]), None), true);
        assert!(text.contains("1  -  -  1 B\n") && text.contains("not known: no x-death"), "{text}");
        assert!(text.contains("body         no text; in base64: /w==\n"), "{text}");
    }
}
