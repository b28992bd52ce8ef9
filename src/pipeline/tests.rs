use std::time::{Duration, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};

use super::continuity::Continuity;
use super::*;
use crate::config::{Columns, Format, RouteRule};
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
            exchange: "events".to_owned(),
            routing_key: "{aggregatetype}.{type}".to_owned(),
            format: Format::Cdc,
            ordering: Ordering::Key,
            on_unroutable: OnUnroutable::Park,
            on_poison: OnPoison::ParkKey,
        };
        let builder = EventBuilder::new("shop", "shop", Router::new(&[route]).unwrap(), &[], 1_000_000);
        let outbox = Outbox { schema: "public".to_owned(), table: "outbox".to_owned(), columns: Columns::default() };
        let continuity = Continuity::new(None, 100, 0);
        let pipeline = Pipeline::new(1, Lsn(100), 3, "mine", &outbox, continuity, builder);
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
