use serde_json::json;

use super::*;

/// A page of `/api/queues/{vhost}` as RabbitMQ 4.3.0 gave it: a quorum queue without a consumer yet, a classic one and a quorum one of
/// whose twenty messages five were acknowledged and one was rejected, and a stream.
const RABBITMQ_4_3: &str = r#"{"filtered_count": 4, "item_count": 4, "items": [
  {"arguments": {"x-queue-type": "quorum"}, "consumers": 0, "effective_policy_definition": {}, "messages": 0, "messages_dlx": 0,
   "messages_ready": 0, "messages_unacknowledged": 0, "name": "dl", "state": "running", "type": "quorum"},
  {"arguments": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dl", "x-queue-type": "classic"}, "consumers": 1,
   "effective_policy_definition": {}, "head_message_timestamp": 1795296198, "message_stats": {"ack": 5, "deliver_no_ack": 0,
   "get_no_ack": 0}, "messages": 14, "messages_ready": 0, "messages_unacknowledged": 14, "name": "qc", "state": "running",
   "type": "classic"},
  {"arguments": {"x-queue-type": "quorum"}, "consumers": 0, "effective_policy_definition": {"dead-letter-exchange": "dlx",
   "max-length": 1000}, "message_stats": {"ack": 5, "deliver_no_ack": 0, "get_no_ack": 0}, "messages": 14, "messages_dlx": 0,
   "messages_ready": 14, "messages_unacknowledged": 0, "name": "qq", "state": "running", "type": "quorum"},
  {"arguments": {"x-queue-type": "stream"}, "consumers": 0, "effective_policy_definition": {}, "message_stats": [],
   "messages": 20, "messages_ready": 20, "messages_unacknowledged": 0, "name": "st", "state": "running", "type": "stream"}],
  "page": 1, "page_count": 1, "page_size": 100, "total_count": 4}"#;

/// Queues as RabbitMQ 3.10.8 gave them: just declared, without statistics; and as above.
const RABBITMQ_3_10: &str = r#"{"filtered_count": 2, "item_count": 2, "items": [
  {"arguments": {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dl", "x-queue-type": "classic"}, "name": "qc",
   "type": "classic"},
  {"arguments": {"x-queue-type": "quorum"}, "consumers": 1, "effective_policy_definition": {"dead-letter-exchange": "dlx",
   "max-length": 1000}, "message_stats": {"ack": 5, "deliver_no_ack": 0, "get_no_ack": 0}, "messages": 14, "messages_dlx": 0,
   "messages_ready": 0, "messages_unacknowledged": 14, "name": "qq", "state": "running", "type": "quorum"}],
  "page": 1, "page_count": 1, "page_size": 100, "total_count": 2}"#;

fn page(text: &str) -> Vec<QueueStats> {
    let page: Page<Value> = serde_json::from_str(text).unwrap();
    page.items.iter().map(|item| parse(item).unwrap()).collect()
}

fn way(exchange: &str, routing_key: Option<&str>) -> DeadLettering {
    DeadLettering { exchange: exchange.to_owned(), routing_key: routing_key.map(str::to_owned) }
}

#[test]
fn statistics_of_4_3_are_understood() {
    let [empty, classic, quorum, stream] = page(RABBITMQ_4_3).try_into().unwrap();
    assert_eq!(empty.counts, Some(Counts::default()));
    assert_eq!((empty.consumers, empty.dead_letters), (Some(0), None));
    assert_eq!(classic.counts, Some(Counts { ready: 0, unacked: 14, messages: 14, removed: 5 }));
    assert_eq!((classic.head_timestamp, classic.consumers), (Some(1_795_296_198), Some(1)));
    assert_eq!(classic.dead_letters, Some(way("", Some("dl"))));
    assert_eq!(quorum.counts, Some(Counts { ready: 14, unacked: 0, messages: 14, removed: 5 }));
    assert_eq!(quorum.dead_letters, Some(way("dlx", None)));
    assert!(stream.is_stream && !quorum.is_stream);
}

#[test]
fn statistics_of_3_10_are_understood_and_absent_where_there_are_none() {
    let [fresh, quorum] = page(RABBITMQ_3_10).try_into().unwrap();
    assert_eq!((fresh.counts, fresh.consumers, fresh.unavailable), (None, None, None));
    assert_eq!(fresh.dead_letters, Some(way("", Some("dl"))));
    assert_eq!(quorum.counts, Some(Counts { ready: 0, unacked: 14, messages: 14, removed: 5 }));
}

#[test]
fn arguments_win_over_the_policy() {
    let queue = json!({"name": "q", "arguments": {"x-dead-letter-exchange": "mine"},
        "effective_policy_definition": {"dead-letter-exchange": "theirs", "dead-letter-routing-key": "dead"}});
    assert_eq!(parse(&queue).unwrap().dead_letters, Some(way("mine", Some("dead"))));
}

#[test]
fn everything_that_was_taken_counts_and_what_waits_for_its_dead_letter_queue_does_not() {
    let queue = json!({"name": "q", "messages": 9, "messages_ready": 4, "messages_unacknowledged": 3, "messages_dlx": 2,
        "message_stats": {"ack": 10, "deliver_no_ack": 200, "get_no_ack": 3000, "redeliver": 5}});
    assert_eq!(parse(&queue).unwrap().counts, Some(Counts { ready: 4, unacked: 3, messages: 7, removed: 3210 }));
}

#[test]
fn a_queue_without_a_leader_is_unavailable() {
    for state in UNAVAILABLE {
        let queue =
            json!({"name": "q", "state": state, "messages": 0, "messages_ready": 0, "messages_unacknowledged": 0});
        assert_eq!(parse(&queue).unwrap().unavailable.unwrap(), format!("its state is {state}"));
    }
    // RabbitMQ 3.10.8 about a quorum queue whose process was stopped.
    let dead = json!({"name": "qq", "type": "quorum", "state": "running", "leader": null, "online": [], "messages": 14,
        "messages_ready": 14, "messages_unacknowledged": 0, "consumers": 0});
    assert_eq!(parse(&dead).unwrap().unavailable.as_deref(), Some("it has no leader"));
    assert_eq!(parse(&json!({"name": "q", "state": "running"})).unwrap().unavailable, None);
}

#[test]
fn garbage_is_an_error_and_what_is_missing_is_absent() {
    for garbage in [
        json!(null),
        json!([]),
        json!({}),
        json!({"name": 5}),
        json!({"name": "q", "messages": -1}),
        json!({"name": "q", "messages": "many"}),
        json!({"name": "q", "messages": 1.5}),
        json!({"name": "q", "messages": 1e300}),
        json!({"name": "q", "messages": u64::MAX}),
        json!({"name": "q", "consumers": {}}),
        json!({"name": "q", "messages": 1, "messages_ready": 1, "messages_unacknowledged": 0, "message_stats": "none"}),
        json!({"name": "q", "messages": 1, "messages_ready": 1, "messages_unacknowledged": 0, "message_stats": {"ack": -7}}),
    ] {
        assert!(matches!(parse(&garbage), Err(ManagementError::Nonsense(_))), "{garbage}");
    }
    // Without one of the three nothing is said of the messages, least of all 0.
    let partly = json!({"name": "q", "messages": null, "messages_ready": 5, "messages_unacknowledged": 0, "consumers": "",
        "head_message_timestamp": null});
    let stats = parse(&partly).unwrap();
    assert_eq!((stats.counts, stats.consumers, stats.head_timestamp), (None, None, None));
}

#[test]
fn a_head_timestamp_that_is_no_time_tells_nothing_and_breaks_nothing() {
    let told = |timestamp: Value| {
        let stats = parse(&json!({"name": "q", "consumers": 2, "head_message_timestamp": timestamp})).unwrap();
        assert_eq!(stats.consumers, Some(2));
        stats.head_timestamp
    };
    assert_eq!(told(json!(1_795_296_198)), Some(1_795_296_198));
    assert_eq!(told(json!(1_795_296_198_000_000_000_u64)), Some(1_795_296_198_000_000_000), "in nanoseconds");
    for nothing in [json!(-5), json!("yesterday"), json!(1e300), json!({})] {
        assert_eq!(told(nothing), None);
    }
}

/// As RabbitMQ 4.3.0 and 3.10.8 gave it.
const STREAM_CONSUMERS: &str = r#"[
  {"connection_details": {"name": "172.17.0.1:43590 -> 172.17.0.3:5552", "node": "rabbit@host", "peer_host": "172.17.0.1",
   "peer_port": 43590, "user": "guest"}, "active": true, "activity_status": "up", "consumed": 100, "credits": 0, "offset": 99,
   "offset_lag": 6000, "properties": {}, "queue": {"name": "log", "vhost": "/"}, "subscription_id": 0},
  {"connection_details": {"name": "172.17.0.1:52406 -> 172.17.0.4:5552", "node": "rabbit@host", "peer_host": "172.17.0.1",
   "peer_port": 52406, "user": "guest"}, "consumed": 61, "credits": 0, "offset": 60, "offset_lag": 6039, "properties": {},
   "queue": {"name": "log", "vhost": "/"}, "subscription_id": 0}]"#;

#[test]
fn consumers_of_streams_are_understood() {
    let consumers = parse_stream_consumers(&serde_json::from_str(STREAM_CONSUMERS).unwrap()).unwrap();
    let told: Vec<_> = consumers.iter().map(|one| (one.stream.as_str(), one.sent, one.behind)).collect();
    assert_eq!(told, [("log", 99, 6000), ("log", 60, 6039)]);
    assert_ne!(consumers[0].id, consumers[1].id);
}

#[test]
fn a_consumer_that_would_take_more_has_got_everything() {
    let consumer = |change: Value| {
        let mut list: Value = serde_json::from_str(STREAM_CONSUMERS).unwrap();
        list[0].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        parse_stream_consumers(&list).map(|consumers| (consumers.len(), consumers[0].sent, consumers[0].behind))
    };
    assert_eq!(consumer(json!({"credits": 5, "offset_lag": 30})).unwrap(), (2, 129, 0));
    assert_eq!(consumer(json!({"active": false})).unwrap().0, 1, "it waits for another one");
    assert_eq!(consumer(json!({"connection_details": []})).unwrap().0, 1, "nothing is known of it yet");
    assert!(consumer(json!({"offset_lag": -3})).is_err() && consumer(json!({"queue": "unknown"})).is_err());
}
