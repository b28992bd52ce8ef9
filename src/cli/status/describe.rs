//! `/status` for a person: a verdict in a sentence, then what it rests on. What is empty is left out.

use std::fmt::Write;

use serde_json::Value;

use crate::cli::text::{bytes, harmless};

/// Delivery lag from which a person should look: the threshold of the alert PostriderBehind.
const BEHIND_SECONDS: f64 = 300.0;
/// A queue without an acknowledgement for so long, and longer than its objective: the threshold of PostriderConsumerStalled.
const STALLED_SECONDS: f64 = 120.0;
/// Of the WAL that the slot may keep, one part in so many is left: the threshold of PostriderSlotAtRisk.
const ROOM_PARTS: i64 = 5;
/// Samples that are older say nothing of now: the threshold of PostriderSamplesStale.
const STALE_SECONDS: f64 = 120.0;

/// What `postrider status` says by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 0: carrying, or standing by and able to take over.
    Well,
    /// 1: neither.
    NotReady,
    /// 3: as the first, but something waits for a person.
    Attention,
}

/// The snapshot is taken as it comes: the relay may be of another version than this command.
struct Picture<'a>(&'a Value);

impl<'a> Picture<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn count(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    fn part(&self, key: &str) -> Option<Picture<'a>> {
        self.get(key).filter(|value| value.is_object()).map(Picture)
    }

    fn list(&self, key: &str) -> impl Iterator<Item = Picture<'a>> + use<'a> {
        self.get(key).and_then(Value::as_array).into_iter().flatten().map(Picture)
    }

    /// Names come from the broker and from rows: a terminal must not obey them.
    fn name(&self, key: &str) -> String {
        harmless(self.text(key).unwrap_or(""), &[])
    }
}

/// The verdict, and the whole picture as lines.
pub(super) fn describe(snapshot: &Value) -> (Verdict, String) {
    let picture = Picture(snapshot);
    let mut lines = Lines(String::new());
    let (verdict, sentence) = judge(&picture);
    lines.add("verdict", sentence);
    lines.add("role", picture.name("role"));
    servers(&picture, &mut lines);
    flow(&picture, &mut lines);
    queues(&picture, &mut lines);
    dead_letters(&picture, &mut lines);
    if let Some(lsn) = picture.text("acknowledged_lsn") {
        let received = picture.text("received_lsn").unwrap_or("nothing");
        lines.add("acknowledged", harmless(&format!("{lsn} (received {received})"), &[]));
    }
    (verdict, lines.0)
}

fn judge(picture: &Picture<'_>) -> (Verdict, String) {
    let usable = picture.flag("broker_up") && picture.text("broker_blocked").is_none();
    let stalled = picture.part("dead_letters").is_some_and(|dead| dead.text("stalled").is_some());
    let carrying = picture.text("role") == Some("active") && picture.flag("session_up") && usable && !stalled;
    let standing_by = picture.flag("standing_by") && usable;
    if picture.flag("stopping") {
        return (Verdict::NotReady, "stopping".to_owned());
    }
    let well = match (carrying, standing_by) {
        (true, _) if picture.text("problem").is_none() => "carrying events",
        (_, true) => "standing by: another relay carries, and this one can take over",
        _ => {
            let why = picture.text("problem").map_or_else(|| not_yet(picture), |problem| harmless(problem, &[]));
            return (Verdict::NotReady, why);
        }
    };
    let wanted = attention(picture);
    if wanted.is_empty() {
        return (Verdict::Well, well.to_owned());
    }
    (Verdict::Attention, format!("{well}, but: {}", wanted.join("; ")))
}

/// It does not carry, and has met no problem that it could name.
fn not_yet(picture: &Picture<'_>) -> String {
    if let Some(reason) = picture.text("broker_blocked") {
        return format!("not carrying: RabbitMQ has blocked publishing: {}", harmless(reason, &[]));
    }
    match picture.part("dead_letters").and_then(|dead| dead.text("stalled")) {
        Some(bound) => {
            let bound = harmless(bound, &[]);
            format!("not reading: the dead letters have reached {bound} (postrider dlq list)")
        }
        None => "not carrying yet".to_owned(),
    }
}

/// What a person should look at, although events are carried.
fn attention(picture: &Picture<'_>) -> Vec<String> {
    let mut wanted = Vec::new();
    if let Some(lag) = picture.number("delivery_lag_seconds").filter(|lag| *lag > BEHIND_SECONDS)
        && picture.text("role") == Some("active")
    {
        wanted.push(format!("{} behind", duration(lag)));
    } else if let Some(key) = picture.part("most_delayed")
        && let Some(waited) = key.number("seconds").filter(|waited| *waited > BEHIND_SECONDS)
    {
        // There is no lag before anything has been delivered, and nothing may be because of this.
        wanted.push(format!("{} has waited for {}: {}", key_of(&key), duration(waited), key.name("reason")));
    }
    wanted.extend(picture.part("slot_state").and_then(|slot| slot_at_risk(&slot)));
    let place = |queue: &Picture<'_>| (queue.name("vhost"), queue.name("queue"));
    let dead_letter_queues: Vec<_> = picture.list("dead_letter_queues").map(|queue| place(&queue)).collect();
    // What waits in a dead-letter queue has no consumer by design.
    let queues = picture.list("queues").filter(|queue| !dead_letter_queues.contains(&place(queue)));
    wanted.extend(queues.filter_map(|queue| consumers_fail(&queue)));
    let waiting = picture.part("dead_letters").and_then(|dead| dead.count("waiting")).unwrap_or(0);
    if waiting > 0 {
        wanted.push(format!("dead letters wait: {waiting} (postrider dlq list)"));
    }
    for queue in picture.list("dead_letter_queues") {
        let messages = queue.count("messages").unwrap_or(0);
        if messages > 0 {
            let name = queue.name("queue");
            wanted.push(format!(
                "{name} has {messages} of the consumers' dead letters (postrider dlq --queue {name} list)"
            ));
        }
    }
    for samples in picture.list("samples") {
        let target = samples.name("target");
        match samples.number("age_seconds") {
            None => wanted.push(format!("no sample of {target} could be taken yet (the log says why)")),
            Some(age) if age > STALE_SECONDS => {
                wanted.push(format!("what is shown of {target} is {} old (the log says why)", duration(age)));
            }
            Some(_) => {}
        }
    }
    wanted
}

/// `aggregatetype / aggregateid`: a key has the unit separator between them.
fn key_of(delayed: &Picture<'_>) -> String {
    harmless(&delayed.text("key").unwrap_or("").replace('\u{1f}', " / "), &[])
}

/// As the alert: a share, because the right number of bytes depends on the server's setting.
fn slot_at_risk(slot: &Picture<'_>) -> Option<String> {
    if let Some(status @ ("unreserved" | "lost")) = slot.text("wal_status") {
        return Some(format!("the slot's WAL is {status}"));
    }
    let size = |key: &str| slot.get(key).and_then(Value::as_i64);
    let (left, kept) = (size("safe_wal_bytes")?, size("retained_bytes")?);
    let little = left.saturating_mul(ROOM_PARTS) < left.saturating_add(kept);
    little.then(|| format!("{} more of WAL, and the slot may be lost", bytes(left)))
}

/// One cause for each queue, in the order of the alerts: nobody there, nothing acknowledged, too slow.
fn consumers_fail(queue: &Picture<'_>) -> Option<String> {
    let name = queue.name("queue");
    let waiting = queue.count("ready").unwrap_or(0) + queue.count("unacked").unwrap_or(0);
    let lag = queue.number("lag_seconds").unwrap_or(0.0);
    let allowed = queue.number("objective_seconds");
    if queue.count("consumers") == Some(0) && waiting > 0 {
        return Some(format!("nobody consumes {name}"));
    }
    if allowed.is_some_and(|allowed| lag <= allowed) {
        return None;
    }
    if let Some(stalled) = queue.number("stalled_seconds").filter(|stalled| *stalled > STALLED_SECONDS) {
        return Some(format!("the consumers of {name} have acknowledged nothing for {}", duration(stalled)));
    }
    allowed.map(|allowed| format!("{name} is {} behind ({} allowed)", duration(lag), duration(allowed)))
}

fn servers(picture: &Picture<'_>, lines: &mut Lines) {
    let up = |up: bool| if up { "connected" } else { "not connected" }.to_owned();
    lines.add("slot", format!("{} (publication {})", picture.name("slot"), picture.name("publication")));
    for trouble in picture.get("table_troubles").and_then(Value::as_array).into_iter().flatten() {
        lines.add("table", harmless(trouble.as_str().unwrap_or_default(), &[]));
    }
    if let Some(slot) = picture.part("slot_state") {
        let size = |key: &str| slot.get(key).and_then(Value::as_i64).map(bytes);
        let mut said = Vec::new();
        said.extend(size("retained_bytes").map(|size| format!("{size} of WAL kept")));
        said.extend(size("confirmed_lag_bytes").map(|size| format!("{size} not confirmed")));
        said.extend(size("safe_wal_bytes").map(|size| format!("{size} more before it may be lost")));
        said.extend(slot.text("wal_status").map(|status| format!("status {}", harmless(status, &[]))));
        lines.add("wal", said.join(", "));
        for holder in slot.list("restart_held_by") {
            lines.add("held back by", format!("xid {}: {}", holder.name("xid"), holder.name("description")));
        }
    }
    lines.add("postgresql", up(picture.flag("session_up")));
    lines.add(
        "rabbitmq",
        match picture.text("broker_blocked") {
            Some(reason) => format!("blocks publishing: {}", harmless(reason, &[])),
            None => up(picture.flag("broker_up")),
        },
    );
}

fn flow(picture: &Picture<'_>, lines: &mut Lines) {
    if let Some(lag) = picture.number("delivery_lag_seconds") {
        lines.add("lag", duration(lag));
    }
    let count = |key: &str| picture.count(key).unwrap_or(0);
    lines.add("unresolved", format!("{} events, {} bytes", count("unresolved_events"), count("unresolved_bytes")));
    lines.add("held keys", count("held_keys").to_string());
    if let Some(key) = picture.part("most_delayed") {
        let waited = duration(key.number("seconds").unwrap_or(0.0));
        lines.add("most delayed", format!("{} for {waited}: {}", key_of(&key), key.name("reason")));
    }
    for exchange in picture.list("failing_exchanges") {
        lines.add("failing", format!("exchange {}: {}", exchange.name("exchange"), exchange.name("error")));
    }
}

fn queues(picture: &Picture<'_>, lines: &mut Lines) {
    for queue in picture.list("queues") {
        let mut said = Vec::new();
        said.extend(queue.count("ready").map(|ready| format!("{ready} ready")));
        said.extend(queue.count("unacked").map(|held| format!("{held} held by consumers")));
        said.extend(queue.count("consumers").map(|count| format!("{count} consumers")));
        said.extend(queue.count("stream_lag_messages").map(|lag| format!("stream, {lag} messages behind")));
        said.extend(queue.number("lag_seconds").map(|lag| {
            let at_least = if queue.flag("lag_is_lower_bound") { "at least " } else { "" };
            let allowed = queue.number("objective_seconds").map(|allowed| format!(" ({} allowed)", duration(allowed)));
            format!("lag {at_least}{}{}", duration(lag), allowed.unwrap_or_default())
        }));
        let stalled = queue.number("stalled_seconds").filter(|stalled| *stalled >= 1.0);
        said.extend(stalled.map(|stalled| format!("no acknowledgement for {}", duration(stalled))));
        lines.add("queue", format!("{}: {}", queue.name("queue"), said.join(", ")));
    }
}

fn dead_letters(picture: &Picture<'_>, lines: &mut Lines) {
    let waiting = |dead: &Picture<'_>| dead.count("waiting").is_some_and(|count| count > 0);
    if let Some(dead) = picture.part("dead_letters").filter(waiting) {
        let count = |key: &str| dead.count(key).unwrap_or(0);
        let reasons = dead.get("by_reason").and_then(Value::as_object).into_iter().flatten();
        let reasons: Vec<String> = reasons.map(|(reason, count)| harmless(&format!("{reason} {count}"), &[])).collect();
        let oldest = duration(dead.number("oldest_seconds").unwrap_or(0.0));
        lines.add(
            "dead letters",
            format!("{} of {} keys, oldest {oldest}: {}", count("waiting"), count("keys"), reasons.join(", ")),
        );
        for way in dead.list("failing") {
            lines
                .add("failing", format!("{} {}: {}", way.name("exchange"), way.name("routing_key"), way.name("error")));
        }
        if let Some(bound) = dead.text("stalled") {
            lines
                .add("stalled", format!("nothing is read: the dead letters have reached {bound} (postrider dlq list)"));
        }
    }
    for queue in picture.list("dead_letter_queues") {
        let since = match queue.number("nonempty_seconds") {
            Some(seconds) if seconds > 0.0 => format!(", not empty for {}", duration(seconds)),
            _ => String::new(),
        };
        let messages = queue.count("messages").unwrap_or(0);
        lines.add("their dlq", format!("{}: {messages} messages{since}", queue.name("queue")));
    }
}

/// `12.2 s`, `5 min 10 s`, `3 h 20 min`, `2 d 1 h`.
fn duration(seconds: f64) -> String {
    if seconds < 120.0 {
        return format!("{seconds:.1} s");
    }
    // Whole seconds, none of which is ever so many that it matters.
    let whole = std::time::Duration::try_from_secs_f64(seconds).map_or(u64::MAX, |duration| duration.as_secs());
    match whole {
        0..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: String) {
        // Writing to a String cannot fail.
        writeln!(self.0, "{name:<14}{value}").ok();
    }
}

#[cfg(test)]
mod tests;
