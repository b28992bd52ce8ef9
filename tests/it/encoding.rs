//! A database that takes any bytes, and bytes that are no text.

use postrider::config::Columns;
use postrider::event::outbox::{EventBuilder, OutboxTable, RowContext};
use postrider::event::route::Router;
use postrider::event::{Event, Ticket};
use postrider::lsn::Lsn;
use postrider::pgoutput::{self, Message};
use postrider::postgres::replication::{Frame, ReplicationConnection};
use postrider::postgres::url::Target;

use crate::support::consumer::Consumer;
use crate::support::relay::Relay;
use crate::support::servers;
use crate::support::world::World;

const SQL_ASCII: &str = "encoding 'SQL_ASCII' locale 'C' template template0";

/// A row whose aggregate's id is written in Latin-1, one whose payload is, and one that is text.
const ROWS: &str = r#"
    insert into outbox (aggregatetype, aggregateid, type, payload) values
        ('order', E'M\xfcller', 'Placed', '{}'), ('order', '1', 'Placed', E'{"name": "M\xfcller"}'), ('order', '2', 'Placed', '{}')
"#;

/// The events of the next transaction that the slot has.
async fn events_of(world: &World, slot: &str) -> Vec<Event> {
    let target = Target::parse(&world.database_url, false).unwrap();
    let connection = ReplicationConnection::connect(&target, "it").await.unwrap();
    let mut stream = connection.start(slot, &["postrider"], false, crate::support::PATIENCE).await.unwrap();
    let config = world.config(&[]);
    let builder = EventBuilder::new("shop", "shop", Router::new(&config.routes).unwrap(), &[], 1 << 20);
    let context = RowContext {
        commit_lsn: Lsn(1),
        commit_time: std::time::SystemTime::now(),
        xid: 1,
        row_lsn: Lsn(1),
        ordinal: 0,
        epoch: 1,
    };
    let (mut outbox, mut table, mut events) = (0, None, Vec::new());
    loop {
        let mut frames = Vec::new();
        stream.next_batch(&mut frames, 1 << 20).await.unwrap();
        for frame in frames {
            let Frame::Data { data, .. } = frame else { continue };
            match pgoutput::decode(data).unwrap() {
                // The heartbeat's is not of interest.
                Message::Relation(relation) if relation.name == "outbox" => {
                    outbox = relation.oid;
                    table = Some(OutboxTable::new(&relation, &Columns::default()).unwrap());
                }
                Message::Insert(insert) if insert.relation == outbox => {
                    let ticket = Ticket { session: 1, entry: 1 };
                    events.push(builder.build(table.as_ref().unwrap(), &insert.new, &context, ticket));
                }
                Message::Commit(_) if !events.is_empty() => {
                    stream.close().await;
                    return events;
                }
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_utf8_in_an_sql_ascii_database_are_poison_and_stop_nobody_else() {
    let world = World::bare_with(servers::shared().await, "ascii", SQL_ASCII).await;
    world.migrate().await;
    world.queue("all", "#").await;
    let slot = format!("{}_too", world.name);
    let create = format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    world.sql.batch_execute(&create).await.unwrap();
    let relay = Relay::carrying(&world, &[]).await;
    world.sql.batch_execute(ROWS).await.unwrap();

    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let arrival = consumer.take(1).await.remove(0);
    assert_eq!(arrival.header("aggregateid").as_deref(), Some("2"), "the row that is text arrives");

    let events = events_of(&world, &slot).await;
    let poisons: Vec<_> = events.iter().map(|event| event.content.as_ref().err().map(ToString::to_string)).collect();
    let not_utf8 = |column: &str| Some(format!("not_utf8: column `{column}` is not UTF-8"));
    assert_eq!(poisons, [not_utf8("aggregateid"), not_utf8("payload"), None]);
    assert_eq!(&*events[0].key, "order\u{1f}M\u{fffd}ller");
    assert_eq!(&events[0].message().unwrap().body[..], b"{}");
    assert_eq!(&events[1].message().unwrap().body[..], b"{\"name\": \"M\xfcller\"}", "byte for byte");
    relay.stop().await;
    world.sql.batch_execute(&format!("select pg_drop_replication_slot('{slot}')")).await.unwrap();
}
