//! What the management API says of queues. Its figures are of another program, at another time: what is missing is absent, and what
//! cannot be true is an error, never 0.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Api, ManagementError, part};

/// Queues of a page with their statistics, and without. The API allows 500.
const PAGE_SIZE: usize = 100;
const LONG_PAGE_SIZE: usize = 500;
/// Of a listing; beyond it something is wrong with the answers, or with asking for all of them.
const MOST_PAGES: usize = 200;
/// A count beyond this cannot be told from its neighbours in JSON.
const LARGEST_COUNT: u64 = 1 << 53;

/// A queue as it was declared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ListedQueue {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) exclusive: bool,
    #[serde(default)]
    pub(crate) auto_delete: bool,
}

/// A queue and its statistics, which are up to 10 s old.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QueueStats {
    pub(crate) name: String,
    pub(crate) is_stream: bool,
    /// Why its figures are not to be believed: it has no leader, or its node is down.
    pub(crate) unavailable: Option<String>,
    /// `None`: the broker has no statistics of it, as in its first seconds.
    pub(crate) counts: Option<Counts>,
    pub(crate) consumers: Option<u64>,
    /// Unix time of the property `timestamp` of the oldest message. Only of classic queues.
    pub(crate) head_timestamp: Option<u64>,
    /// Where its dead letters go.
    pub(crate) dead_letters: Option<DeadLettering>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ready: u64,
    pub(crate) unacked: u64,
    /// What its consumers have before them. Not those that have been rejected and wait for their dead-letter queue to confirm
    /// them (at-least-once dead lettering of a quorum queue), which RabbitMQ counts in `messages`.
    pub(crate) messages: u64,
    /// R of rule R10: what consumers have acknowledged, or taken without the need to.
    pub(crate) removed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeadLettering {
    /// Empty: the default exchange.
    pub(crate) exchange: String,
    /// `None`: the key that the message came with.
    pub(crate) routing_key: Option<String>,
}

/// A consumer of a stream, by the stream protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamConsumer {
    pub(crate) stream: String,
    /// Tells it from others as long as it lives.
    pub(crate) id: String,
    /// Messages that it has been sent, or skipped: the offset of the next one. Less the rest of its last chunk while it takes no more.
    pub(crate) sent: u64,
    /// Messages in the stream that it has not been sent.
    pub(crate) behind: u64,
}

#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
    page_count: usize,
}

/// The fields of [`QueueStats`]: of a queue with many consumers the whole answer would be long.
const COLUMNS: &str = "name,type,state,leader,messages,messages_ready,messages_unacknowledged,messages_dlx,consumers,\
    head_message_timestamp,message_stats.ack,message_stats.deliver_no_ack,message_stats.get_no_ack,arguments,\
    effective_policy_definition";

/// One queue. `None`: there is no such queue.
pub(crate) async fn queue(api: &mut Api<'_>, vhost: &str, name: &str) -> Result<Option<QueueStats>, ManagementError> {
    let path = format!("/api/queues/{}/{}?columns={COLUMNS}", part(vhost), part(name));
    let Some(value) = api.get::<Value>(&path).await? else { return Ok(None) };
    let stats = parse(&value)?;
    if stats.name == name { Ok(Some(stats)) } else { Err(nonsense("name", &value)) }
}

/// Every queue of the vhost with its statistics, and how many pages that took. One that is not `asked` for may be left out. One
/// that moves from a page to the one before it meanwhile is missing.
pub(crate) async fn all(
    api: &mut Api<'_>,
    vhost: &str,
    asked: &BTreeSet<String>,
) -> Result<(BTreeMap<String, QueueStats>, usize), ManagementError> {
    let (values, pages) = pages::<Value>(api, vhost, PAGE_SIZE, &format!("columns={COLUMNS}")).await?;
    let mut queues = BTreeMap::new();
    for value in &values {
        match parse(value) {
            Ok(stats) => drop(queues.insert(stats.name.clone(), stats)),
            // What is said wrong of a queue that nobody asked for is no reason to lose the others.
            Err(_) if value.get("name").and_then(Value::as_str).is_some_and(|name| !asked.contains(name)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((queues, pages))
}

/// Every queue of the vhost, without statistics.
pub(crate) async fn list(api: &mut Api<'_>, vhost: &str) -> Result<Vec<ListedQueue>, ManagementError> {
    const NAMES: &str = "disable_stats=true&columns=name,exclusive,auto_delete";
    Ok(pages(api, vhost, LONG_PAGE_SIZE, NAMES).await?.0)
}

/// Whether the API shows the vhost: without a permission there, 4.3 answers 404 for everything in it, as if no queue existed.
pub(crate) async fn vhost_is_shown(api: &mut Api<'_>, vhost: &str) -> Result<(), ManagementError> {
    let path = format!("/api/queues/{}?page=1&page_size=1&disable_stats=true&columns=name", part(vhost));
    let page: Option<Page<Value>> = api.get(&path).await?;
    page.map(|_| ()).ok_or_else(|| ManagementError::Vhost(vhost.to_owned()))
}

/// Pages that a listing with statistics takes for so many queues.
pub(crate) fn pages_of(queues: usize) -> usize {
    queues.div_ceil(PAGE_SIZE)
}

async fn pages<T: serde::de::DeserializeOwned>(
    api: &mut Api<'_>,
    vhost: &str,
    size: usize,
    query: &str,
) -> Result<(Vec<T>, usize), ManagementError> {
    let (mut found, mut number, mut count) = (Vec::new(), 1, 1);
    while number <= count {
        let path = format!("/api/queues/{}?page={number}&page_size={size}&{query}", part(vhost));
        let page: Page<T> = match api.get(&path).await {
            Ok(page) => page.ok_or_else(|| ManagementError::Vhost(vhost.to_owned()))?,
            // Queues were deleted meanwhile, and the page is gone.
            Err(ManagementError::Status(400)) if number > 1 => break,
            Err(error) => return Err(error),
        };
        if page.page_count > MOST_PAGES {
            return Err(ManagementError::TooMany(page.page_count.saturating_mul(size)));
        }
        if page.items.len() > size {
            return Err(ManagementError::Nonsense(format!("{} queues on a page of {size}", page.items.len())));
        }
        found.extend(page.items);
        (number, count) = (number + 1, page.page_count);
    }
    Ok((found, number - 1))
}

/// The stream-protocol consumers of the vhost. `None`: the plugin `rabbitmq_stream_management` does not answer.
pub(crate) async fn stream_consumers(
    api: &mut Api<'_>,
    vhost: &str,
) -> Result<Option<Vec<StreamConsumer>>, ManagementError> {
    match api.get::<Value>(&format!("/api/stream/consumers/{}", part(vhost))).await {
        // Without the plugin: 404 without a vhost in the path, 400 with one (3.10 and 4.3).
        Ok(None) | Err(ManagementError::Status(400)) => Ok(None),
        Ok(Some(answer)) => parse_stream_consumers(&answer).map(Some),
        Err(error) => Err(error),
    }
}

fn parse_stream_consumers(answer: &Value) -> Result<Vec<StreamConsumer>, ManagementError> {
    let list = answer.as_array().ok_or_else(|| nonsense("consumers of streams", answer))?;
    let consumers = list.iter().map(stream_consumer);
    consumers.filter_map(Result::transpose).collect()
}

/// `None`: it waits for the one that is active, or its connection is too young to have a name.
fn stream_consumer(value: &Value) -> Result<Option<StreamConsumer>, ManagementError> {
    let wrong = |what| nonsense(what, value);
    let at = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let stream = at("/queue/name").ok_or_else(|| wrong("queue"))?;
    let Some(connection) = at("/connection_details/name") else { return Ok(None) };
    if value.get("active").and_then(Value::as_bool) == Some(false) {
        return Ok(None);
    }
    let number = count(value, "subscription_id")?.unwrap_or_default();
    let offset = count(value, "offset")?.ok_or_else(|| wrong("offset"))?;
    let lag = count(value, "offset_lag")?.ok_or_else(|| wrong("offset_lag"))?;
    // The offset is that of the first message in the last chunk. One that would take more has got everything.
    let level = count(value, "credits")?.is_some_and(|credits| credits > 0);
    let (sent, behind) = if level { (offset + lag, 0) } else { (offset, lag) };
    Ok(Some(StreamConsumer { stream: stream.to_owned(), id: format!("{connection} {number}"), sent, behind }))
}

/// The answer about one queue.
pub(crate) fn parse(value: &Value) -> Result<QueueStats, ManagementError> {
    let name = value.get("name").and_then(Value::as_str).ok_or_else(|| nonsense("name", value))?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let state = text("state").filter(|state| UNAVAILABLE.contains(state)).map(|state| format!("its state is {state}"));
    // Its state may well be "running" (3.10).
    let leaderless = text("type") == Some("quorum") && value.get("leader").is_some_and(Value::is_null);
    let unavailable = state.or_else(|| leaderless.then(|| "it has no leader".to_owned()));
    Ok(QueueStats {
        name: name.to_owned(),
        is_stream: text("type") == Some("stream"),
        unavailable,
        counts: counts(value)?,
        consumers: count(value, "consumers")?,
        // Any publisher may have written it: what is no time tells nothing.
        head_timestamp: value.get("head_message_timestamp").and_then(Value::as_u64),
        dead_letters: dead_letters(value),
    })
}

/// States of a queue that serves nobody: without a leader, without a majority, on a node that is down.
const UNAVAILABLE: [&str; 5] = ["down", "stopped", "crashed", "minority", "timeout"];

fn counts(value: &Value) -> Result<Option<Counts>, ManagementError> {
    let (ready, unacked) = (count(value, "messages_ready")?, count(value, "messages_unacknowledged")?);
    let (Some(messages), Some(ready), Some(unacked)) = (count(value, "messages")?, ready, unacked) else {
        return Ok(None);
    };
    let messages = messages.saturating_sub(count(value, "messages_dlx")?.unwrap_or(0));
    Ok(Some(Counts { ready, unacked, messages, removed: removed(value)? }))
}

/// Nothing was ever consumed while there are no such statistics. Erlang prints an empty object as `[]`.
fn removed(value: &Value) -> Result<u64, ManagementError> {
    let none = Map::new();
    let stats = match value.get("message_stats") {
        None | Some(Value::Null) => &none,
        Some(Value::Array(list)) if list.is_empty() => &none,
        Some(Value::Object(stats)) => stats,
        Some(_) => return Err(nonsense("message_stats", value)),
    };
    let mut sum = 0;
    for key in ["ack", "deliver_no_ack", "get_no_ack"] {
        sum += stats.get(key).map_or(Ok(None), |number| number_of(number, key))?.unwrap_or(0);
    }
    Ok(sum)
}

/// Arguments win over the policy (RabbitMQ's documentation on dead-letter exchanges).
fn dead_letters(value: &Value) -> Option<DeadLettering> {
    let either = |name: &str| {
        let (argument, policy) = (format!("/arguments/x-{name}"), format!("/effective_policy_definition/{name}"));
        let found = value.pointer(&argument).or_else(|| value.pointer(&policy));
        found.and_then(Value::as_str).map(str::to_owned)
    };
    let exchange = either("dead-letter-exchange")?;
    Some(DeadLettering { exchange, routing_key: either("dead-letter-routing-key") })
}

fn count(value: &Value, key: &str) -> Result<Option<u64>, ManagementError> {
    // An empty text is what RabbitMQ prints for what it does not know.
    value.get(key).filter(|number| number.as_str() != Some("")).map_or(Ok(None), |number| number_of(number, key))
}

fn number_of(number: &Value, key: &str) -> Result<Option<u64>, ManagementError> {
    match number {
        Value::Null => Ok(None),
        other => match other.as_u64() {
            Some(count) if count <= LARGEST_COUNT => Ok(Some(count)),
            _ => Err(nonsense(key, other)),
        },
    }
}

fn nonsense(key: &str, value: &Value) -> ManagementError {
    const ENOUGH: usize = 80;
    let shown: String = value.to_string().chars().take(ENOUGH).collect();
    ManagementError::Nonsense(format!("{key} in {shown}"))
}

#[cfg(test)]
mod tests;
