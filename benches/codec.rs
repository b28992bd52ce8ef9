//! What a row costs before it meets a server: decoding its pgoutput message, and making the event of it.

use std::error::Error;
use std::hint::black_box;
use std::time::SystemTime;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use postrider::config::{Columns, Format, RouteRule};
use postrider::event::outbox::{EventBuilder, OutboxTable, RowContext};
use postrider::event::route::Router;
use postrider::event::{OnPoison, OnUnroutable, Ordering, Position, Ticket};
use postrider::lsn::Lsn;
use postrider::pgoutput::{self, Message};

/// One INSERT into the outbox, captured from a server: begin, relation, insert, commit.
const CAPTURED: &str = include_str!("../tests/fixtures/pgoutput/insert.hex");

fn main() -> Result<(), Box<dyn Error>> {
    let messages = CAPTURED.lines().map(unhex).collect::<Result<Vec<Bytes>, _>>()?;
    let [_, relation, insert, _] = messages.as_slice() else { return Err("the fixture is not one insert".into()) };
    let Message::Relation(relation) = pgoutput::decode(relation.clone())? else { return Err("no relation".into()) };
    let Message::Insert(row) = pgoutput::decode(insert.clone())? else { return Err("no insert".into()) };
    let table = OutboxTable::new(&relation, &Columns::default())?;

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode insert", |bencher| bencher.iter(|| pgoutput::decode(black_box(insert.clone()))));
    for format in [Format::Cdc, Format::Payload] {
        let builder = EventBuilder::new("shop", "shop", Router::new(&[route(format)])?, &[], 1 << 24);
        let context = RowContext {
            commit_lsn: Lsn(1 << 32),
            commit_time: SystemTime::now(),
            xid: 791,
            row_lsn: Lsn(24_000_000),
            ordinal: 3,
            epoch: 1,
        };
        group.bench_function(format!("event {format:?}"), |bencher| {
            bencher.iter(|| builder.build(&table, black_box(&row.new), &context, Ticket::NONE));
        });
    }
    let position = Position { epoch: 1, commit: Lsn(1 << 32), ordinal: 3, part: 0 };
    group.bench_function("position to text", |bencher| bencher.iter(|| black_box(position).to_string()));
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn route(format: Format) -> RouteRule {
    RouteRule {
        name: "default".to_owned(),
        aggregatetype: "*".to_owned(),
        kind: "*".to_owned(),
        table: None,
        exchange: "events".to_owned(),
        routing_key: "{aggregatetype}.{type}".to_owned(),
        format,
        ordering: Ordering::Key,
        on_unroutable: OnUnroutable::Park,
        on_poison: OnPoison::ParkKey,
    }
}

fn unhex(line: &str) -> Result<Bytes, Box<dyn Error>> {
    let digits = line.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    digits.collect()
}
