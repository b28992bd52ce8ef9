use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};

use super::continuity::Continuity;
use super::*;
use crate::config::{Columns, Debezium, Format, RouteRule};
use crate::event::captured::ColumnRules;
use crate::event::change::Origin;
use crate::event::route::Router;
use crate::event::{OnPoison, OnUnroutable, Ordering};

const OUTBOX: u32 = 10;
const HEARTBEAT: u32 = 11;
const FOREIGN: u32 = 12;

/// Messages in the layout of the manual, chapter "Logical Replication Message Formats".
fn text(bytes: &mut BytesMut, text: &str) {
    bytes.put_slice(text.as_bytes());
    bytes.put_u8(0);
}

fn relation(oid: u32, schema: &str, table: &str, columns: &[(&str, u32)]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'R');
    bytes.put_u32(oid);
    text(&mut bytes, schema);
    text(&mut bytes, table);
    bytes.put_u8(b'd');
    bytes.put_u16(u16::try_from(columns.len()).unwrap());
    for (name, type_oid) in columns {
        bytes.put_u8(0);
        text(&mut bytes, name);
        bytes.put_u32(*type_oid);
        bytes.put_i32(-1);
    }
    bytes.freeze()
}

fn insert(oid: u32, values: &[&str]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'I');
    bytes.put_u32(oid);
    bytes.put_u8(b'N');
    bytes.put_u16(u16::try_from(values.len()).unwrap());
    for value in values {
        bytes.put_u8(b't');
        bytes.put_u32(u32::try_from(value.len()).unwrap());
        bytes.put_slice(value.as_bytes());
    }
    bytes.freeze()
}

fn begin(commit: u64) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'B');
    bytes.put_u64(commit);
    bytes.put_i64(0);
    bytes.put_u32(7);
    bytes.freeze()
}

fn commit(commit: u64, end: u64) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'C');
    bytes.put_u8(0);
    bytes.put_u64(commit);
    bytes.put_u64(end);
    bytes.put_i64(0);
    bytes.freeze()
}

/// A pipeline that has been told of its three tables, and the events that it has given.
struct Bench {
    pipeline: Pipeline,
    events: Vec<Event>,
}

impl Bench {
    fn new() -> Self {
        let any = || "*".to_owned();
        let route = RouteRule {
            name: "default".to_owned(),
            aggregatetype: any(),
            kind: any(),
            table: None,
            exchange: "events".to_owned(),
            routing_key: "{aggregatetype}.{type}".to_owned(),
            format: Format::Cdc,
            ordering: Ordering::Key,
            on_unroutable: OnUnroutable::Park,
            on_poison: OnPoison::ParkKey,
        };
        let router = Arc::new(Router::new(&[route]).unwrap());
        let builder = EventBuilder::new("shop", "shop", Arc::clone(&router), &[], 1_000_000);
        let origin = Origin { system_identifier: 1, database_oid: 2 };
        let rules = ColumnRules::new(&[], b"");
        let changes = ChangeBuilder::new("shop", "shop", origin, router, rules, &Debezium::default(), &[], 1_000_000);
        let outbox = Outbox { schema: "public".to_owned(), table: "outbox".to_owned(), columns: Columns::default() };
        let continuity = Continuity::new(None, 100, 5);
        let pipeline = Pipeline::new(1, Lsn(100), 3, "mine", &outbox, &Source::default(), continuity, builder, changes);
        let mut bench = Bench { pipeline, events: Vec::new() };
        let columns = [("id", 2950), ("aggregatetype", 25), ("aggregateid", 25), ("type", 25), ("payload", 3802)];
        bench.takes(relation(OUTBOX, "public", "outbox", &columns));
        bench.takes(relation(HEARTBEAT, "postrider", "heartbeat", &[("slot", 25), ("no", 20), ("snapshot", 5038)]));
        bench.takes(relation(FOREIGN, "public", "orders", &[("id", 23)]));
        bench
    }

    fn takes(&mut self, message: Bytes) -> Seen {
        self.pipeline.data(Lsn(150), message, &mut self.events).unwrap()
    }

    fn event(&mut self, id: &str) {
        self.takes(insert(OUTBOX, &[id, "order", "42", "Placed", "{}"]));
    }
}

#[test]
fn rows_of_a_transaction_are_numbered_over_all_its_tables() {
    let mut bench = Bench::new();
    bench.takes(begin(200));
    bench.event("a");
    bench.takes(insert(FOREIGN, &["1"]));
    bench.event("b");
    let ordinals: Vec<(u32, u32, Lsn)> = bench
        .events
        .iter()
        .map(|event| (event.position.epoch, event.position.ordinal, event.position.commit))
        .collect();
    assert_eq!(ordinals, [(3, 0, Lsn(200)), (3, 2, Lsn(200))]);
}

fn message(transactional: bool, prefix: &str, content: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'M');
    bytes.put_u8(transactional.into());
    bytes.put_u64(160);
    text(&mut bytes, prefix);
    bytes.put_u32(u32::try_from(content.len()).unwrap());
    bytes.put_slice(content.as_bytes());
    bytes.freeze()
}

const EMITTED: &str = r#"{"id": "m", "aggregatetype": "order", "aggregateid": "42", "type": "Placed", "payload": {}}"#;

#[test]
fn an_emitted_message_is_an_event_among_the_rows_of_its_transaction() {
    let mut bench = Bench::new();
    bench.pipeline.take_emitted();
    bench.takes(begin(200));
    bench.event("a");
    assert_eq!(bench.takes(message(true, "postrider", EMITTED)), Seen::Change("message"));
    bench.takes(message(true, "somebody", EMITTED));
    bench.takes(message(true, "postrider2", EMITTED));
    bench.event("b");
    let events: Vec<(&str, u32)> = bench.events.iter().map(|event| (&*event.id, event.position.ordinal)).collect();
    assert_eq!(events, [("a", 0), ("m", 1), ("b", 4)]);
    assert!(bench.events.iter().all(|event| event.key == bench.events[0].key && event.content.is_ok()));

    assert_eq!(bench.takes(commit(200, 210)), Seen::Commit { end: Lsn(210), time: pg_epoch(), own: true });
    let tickets: Vec<_> = bench.events.iter().map(|event| event.ticket).collect();
    for ticket in [tickets[0], tickets[2]] {
        bench.pipeline.progress_mut().resolve(ticket);
    }
    assert_eq!(bench.pipeline.progress().acknowledged(), Lsn(100), "the message is not resolved");
    bench.pipeline.progress_mut().resolve(tickets[1]);
    assert_eq!(bench.pipeline.progress().acknowledged(), Lsn(210));
}

#[test]
fn a_malformed_message_is_poison_in_its_place() {
    let mut bench = Bench::new();
    bench.pipeline.take_emitted();
    bench.takes(begin(200));
    bench.takes(message(true, "postrider", "nonsense"));
    bench.event("a");
    assert!(bench.events[0].content.is_err() && bench.events[1].content.is_ok());
    assert_eq!(bench.events[1].position.ordinal, 1);
}

#[test]
fn a_message_outside_of_a_transaction_is_no_event_and_is_passed() {
    let mut bench = Bench::new();
    bench.pipeline.take_emitted();
    assert_eq!(bench.takes(message(false, "postrider", EMITTED)), Seen::Change("message"));
    assert!(bench.events.is_empty());
    assert_eq!(bench.pipeline.progress().acknowledged(), Lsn(160));
}

#[test]
fn messages_are_no_events_unless_they_are_wanted() {
    let mut bench = Bench::new();
    bench.takes(begin(200));
    bench.takes(message(true, "postrider", EMITTED));
    bench.event("a");
    assert_eq!(bench.events.len(), 1);
    assert_eq!(bench.events[0].position.ordinal, 1);
}

#[test]
fn a_transaction_is_acknowledged_when_its_last_event_is_resolved_and_not_before_its_commit() {
    let mut bench = Bench::new();
    bench.takes(begin(200));
    bench.event("a");
    let ticket = bench.events[0].ticket;
    assert!(bench.pipeline.progress_mut().resolve(ticket));
    assert_eq!(bench.pipeline.progress().acknowledged(), Lsn(100));
    assert_eq!(bench.takes(commit(200, 210)), Seen::Commit { end: Lsn(210), time: pg_epoch(), own: true });
    assert_eq!(bench.pipeline.progress().acknowledged(), Lsn(210));
}

#[test]
fn a_heartbeat_has_passed_when_everything_before_it_is_resolved() {
    let mut bench = Bench::new();
    bench.takes(begin(200));
    bench.event("a");
    bench.takes(commit(200, 210));
    bench.takes(begin(220));
    bench.takes(insert(HEARTBEAT, &["mine", "5", "10:10:"]));
    assert_eq!(bench.takes(commit(220, 230)), Seen::Commit { end: Lsn(230), time: pg_epoch(), own: true });
    assert_eq!(bench.pipeline.passed_heartbeats().count(), 0);
    let ticket = bench.events[0].ticket;
    bench.pipeline.progress_mut().resolve(ticket);
    let passed: Vec<i64> = bench.pipeline.passed_heartbeats().map(|heartbeat| heartbeat.no).collect();
    assert_eq!(passed, [5]);
    assert_eq!(bench.pipeline.passed_heartbeats().count(), 0, "each once");
}

#[test]
fn a_heartbeat_of_another_slot_says_nothing_about_this_one() {
    let mut bench = Bench::new();
    bench.takes(begin(200));
    bench.takes(insert(HEARTBEAT, &["theirs", "5", "10:10:"]));
    assert_eq!(bench.takes(commit(200, 210)), Seen::Commit { end: Lsn(210), time: pg_epoch(), own: false });
    assert_eq!(bench.pipeline.passed_heartbeats().count(), 0);
}

#[test]
fn a_heartbeat_of_an_earlier_life_of_the_slot_says_nothing_about_this_one() {
    let mut bench = Bench::new();
    bench.takes(begin(200));
    bench.takes(insert(HEARTBEAT, &["mine", "57", "5:5:"]));
    assert_eq!(bench.takes(commit(200, 210)), Seen::Commit { end: Lsn(210), time: pg_epoch(), own: true });
    assert_eq!(bench.pipeline.passed_heartbeats().count(), 0);
}

#[test]
fn a_row_before_its_relation_or_outside_a_transaction_is_an_error() {
    let mut bench = Bench::new();
    let outside = bench.pipeline.data(Lsn(150), insert(OUTBOX, &["a", "o", "1", "P", "{}"]), &mut bench.events);
    assert!(matches!(outside, Err(PipelineError::Protocol(ProgressError::EventWithoutBegin))));
    bench.takes(begin(200));
    let unknown = bench.pipeline.data(Lsn(150), insert(99, &["a"]), &mut bench.events);
    assert!(matches!(unknown, Err(PipelineError::UnknownRelation(99))));
    assert!(bench.events.is_empty());
}

/// Time zero on the wire.
fn pg_epoch() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(946_684_800)
}
