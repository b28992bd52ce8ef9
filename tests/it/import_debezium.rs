//! From Debezium to Postrider under load, by the steps of `docs/from-debezium.md`: nothing is lost, and consumers notice nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use postrider::config::Config;
use postrider::lsn::Lsn;
use postrider::pgoutput::decode;
use postrider::pgoutput::message::{Message, Value as Cell};
use postrider::postgres::replication::{Frame, ReplicationConnection};
use postrider::postgres::url::Target;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::consumer::{Arrival, Consumer};
use crate::support::eventually;
use crate::support::relay::{Program, Relay};
use crate::support::servers;
use crate::support::world::{World, connect};

/// A table that moves.
struct Source {
    table: &'static str,
    columns: &'static str,
    /// What the application writes; `$1` numbers its rows from 1.
    insert: &'static str,
    properties: &'static str,
    topic: &'static str,
    /// What Debezium Server publishes of a row: the header `id`, and the body.
    sent: fn(&[&str]) -> (Option<String>, Value),
    /// Which row a body is of.
    number: fn(&Value) -> Option<i64>,
}

const ORDERS: Source = Source {
    table: "orders",
    columns: "id bigint primary key, status text not null, total numeric(12,2)",
    insert: "insert into orders values ($1::bigint, 'placed', $1::bigint * 0.5)",
    properties: "debezium.source.decimal.handling.mode=string\n",
    topic: "shop.public.orders",
    sent: |row| {
        let after = json!({"id": row[0].parse::<i64>().unwrap(), "status": row[1], "total": row[2]});
        (None, json!({"before": null, "after": after, "source": {"name": "shop"}, "op": "c"}))
    },
    number: |body| body["after"]["id"].as_i64(),
};

const OUTBOX: Source = Source {
    table: "outboxevent",
    columns: "id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload jsonb",
    insert: "insert into outboxevent values (gen_random_uuid(), 'order', ($1::bigint % 5)::text, 'placed',
        jsonb_build_object('n', $1::bigint, 'list', jsonb_build_array(1, 2)))",
    properties: "debezium.transforms=outbox\n\
        debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter\n\
        debezium.transforms.outbox.table.expand.json.payload=true\n",
    topic: "outbox.event.order",
    sent: |row| (Some(row[0].to_owned()), serde_json::from_str(row[4]).unwrap()),
    number: |body| body["n"].as_i64(),
};

/// What Debezium Server is to a database and a broker: it streams from its slot with its publication, publishes by topic, and confirms to
/// PostgreSQL what RabbitMQ has confirmed.
struct Debezium {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<usize>,
}

impl Debezium {
    async fn start(world: &World, source: &'static Source) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let target = Target::parse(&world.database_url, false).unwrap();
        let (slot, amqp_url) = (world.name.clone(), world.amqp_url.clone());
        let replication = ReplicationConnection::connect(&target, "Debezium Streaming").await.unwrap();
        let deadline = Duration::from_secs(30);
        let mut stream = replication.start(&slot, &["dbz_publication"], true, deadline).await.unwrap();
        let task = tokio::spawn(async move {
            let broker = Connection::connect(&amqp_url, ConnectionProperties::default()).await.unwrap();
            let channel = broker.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            let (mut sent, mut confirmed) = (0, Lsn::ZERO);
            loop {
                let mut frames = Vec::new();
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    read = stream.next_batch(&mut frames, 1 << 20) => read.unwrap(),
                }
                for frame in frames {
                    let Frame::Data { data, .. } = frame else { continue };
                    match decode(data).unwrap() {
                        Message::Insert(insert) => {
                            let cell = |cell: &Cell| match cell {
                                Cell::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                                other => panic!("{other:?}"),
                            };
                            let cells: Vec<String> = insert.new.0.iter().map(cell).collect();
                            let (id, body) = (source.sent)(&cells.iter().map(String::as_str).collect::<Vec<_>>());
                            let mut headers = FieldTable::default();
                            if let Some(id) = id {
                                headers.insert("id".into(), AMQPValue::LongString(id.into()));
                            }
                            channel
                                .basic_publish(
                                    "events".into(),
                                    source.topic.into(),
                                    BasicPublishOptions::default(),
                                    body.to_string().as_bytes(),
                                    BasicProperties::default().with_delivery_mode(2).with_headers(headers),
                                )
                                .await
                                .unwrap()
                                .await
                                .unwrap();
                            sent += 1;
                        }
                        Message::Commit(commit) => confirmed = commit.end_lsn,
                        _ => {}
                    }
                }
                stream.send_status(confirmed, confirmed, false).await.unwrap();
            }
            stream.close().await;
            broker.close(200, "done".into()).await.unwrap();
            sent
        });
        Debezium { stop: Some(stop), task }
    }

    /// How many rows it has sent.
    async fn stop(mut self) -> usize {
        self.stop.take();
        self.task.await.unwrap()
    }
}

/// An application that goes on writing, whatever happens.
struct Application {
    stop: Arc<AtomicBool>,
    task: JoinHandle<i64>,
}

impl Application {
    async fn start(world: &World, source: &'static Source) -> Self {
        let sql = connect(&world.database_url).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut id = 0;
            while !stopped.load(Ordering::Relaxed) {
                id += 1;
                sql.execute(source.insert, &[&id]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            id
        });
        Application { stop, task }
    }

    /// The last id.
    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn properties(world: &World, source: &Source) -> String {
    format!(
        "debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
         debezium.source.plugin.name=pgoutput\n\
         debezium.source.slot.name={}\n\
         debezium.source.topic.prefix=shop\n\
         debezium.source.table.include.list=public.{}\n\
         debezium.source.snapshot.mode=no_data\n\
         debezium.source.offset.storage.file.filename=data/offsets.dat\n\
         debezium.format.schemas.enable=false\n\
         debezium.sink.type=rabbitmq\n\
         debezium.sink.rabbitmq.exchange=events\n\
         debezium.sink.rabbitmq.routingKey.source=topic\n\
         {}",
        world.name, source.table, source.properties
    )
}

/// The table, publication and slot as Debezium has made them.
async fn made_by_debezium(name: &str, source: &Source) -> World {
    let world = World::bare(servers::shared().await, name).await;
    let Source { table, columns, .. } = source;
    let setup = format!("create table {table} ({columns}); create publication dbz_publication for table {table}");
    world.sql.batch_execute(&setup).await.unwrap();
    let slot = "select pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
    world.sql.execute(slot, &[&world.name]).await.unwrap();
    world.queue("billing", source.topic).await;
    world
}

/// What the operator has: two URLs in the environment.
fn environment(world: &World) -> Vec<(String, String)> {
    [
        ("DATABASE_URL", world.database_url.as_str()),
        ("AMQP_URL", world.amqp_url.as_str()),
        ("POSTRIDER_ADMIN_LISTEN", "127.0.0.1:0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Whether it succeeded, and what it said.
fn postrider(world: &World, directory: &Path, arguments: &str) -> (bool, String) {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let output = Program::command(&environment(world), &arguments).current_dir(directory).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn done(world: &World, directory: &Path, arguments: &str) -> String {
    let (success, said) = postrider(world, directory, arguments);
    assert!(success, "postrider {arguments}: {said}");
    said
}

fn not_done(world: &World, directory: &Path, arguments: &str) -> String {
    let (success, said) = postrider(world, directory, arguments);
    assert!(!success, "postrider {arguments} did it: {said}");
    said
}

const ADOPT: &str = "import-debezium application.properties --config postrider.toml --adopt";

/// Goes through the steps while the application writes. Returns what the consumer got, of which row each is, and which came from Postrider.
async fn move_under_load(name: &str, source: &'static Source) -> Vec<(Arrival, i64, bool)> {
    let world = made_by_debezium(name, source).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    std::fs::write(directory.join("application.properties"), properties(&world, source)).unwrap();
    let mut consumer = Consumer::open(&world.amqp_url, "billing").await;
    let debezium = Debezium::start(&world, source).await;
    let application = Application::start(&world, source).await;
    let mut arrivals = consumer.take(20).await;
    let count = format!("select count(*) from {}", source.table);
    let writes_on = async |more: i64| {
        let seen = world.count(&count).await;
        eventually("the application writes on", async || (world.count(&count).await > seen + more).then_some(())).await;
    };

    let said = done(&world, directory, "import-debezium application.properties --output postrider.toml");
    assert!(said.contains("postrider migrate --config postrider.toml"), "{said}");
    let said = not_done(&world, directory, "import-debezium application.properties --output postrider.toml");
    assert!(said.contains("exists already"), "{said}");
    let said = not_done(&world, directory, ADOPT);
    assert!(said.contains("run `postrider migrate`"), "{said}");
    done(&world, directory, "migrate --config postrider.toml");

    // The slot still knows a time without the publications, until Debezium has confirmed what came after them.
    let said = eventually("only Debezium itself is in the way", async || {
        world.admin.batch_execute("checkpoint").await.unwrap();
        let (success, said) = postrider(&world, directory, &format!("{ADOPT} --dry-run"));
        assert!(!success, "{said}");
        assert!(said.contains("still") && (said.contains("catalog_xmin") || said.contains("stop it first")), "{said}");
        said.contains("stop it first").then_some(said)
    })
    .await;
    assert!(said.contains("Debezium Streaming"), "{said}");

    let sent_by_debezium = debezium.stop().await;
    // Nobody reads now.
    writes_on(20).await;
    let said = done(&world, directory, &format!("{ADOPT} --dry-run"));
    assert!(said.contains("nothing was changed"), "{said}");
    done(&world, directory, ADOPT);
    let said = not_done(&world, directory, ADOPT);
    assert!(said.contains("carried already"), "{said}");

    let config = Config::load(Some(&directory.join("postrider.toml")), environment(&world)).unwrap();
    let relay = Relay::carrying_on(Arc::new(config)).await;
    writes_on(50).await;
    world.sql.batch_execute("drop publication dbz_publication").await.unwrap();
    let last = application.stop().await;
    let number = |arrival: &Arrival| (source.number)(&arrival.json()).unwrap();
    while arrivals.iter().map(number).max() < Some(last) {
        arrivals.extend(consumer.take(1).await);
    }
    arrivals.extend(consumer.rest(Duration::from_secs(1)).await);
    relay.stop().await;

    let mut ids: Vec<i64> = arrivals.iter().map(number).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (1..=last).collect::<Vec<_>>(), "every row came");
    assert!(arrivals.iter().all(|arrival| arrival.routing_key == source.topic));
    let arrivals: Vec<_> = arrivals
        .into_iter()
        .map(|arrival| {
            let (number, ours) = (number(&arrival), arrival.header("x-postrider-position").is_some());
            (arrival, number, ours)
        })
        .collect();
    let by_postrider = arrivals.iter().filter(|(_, _, ours)| *ours).count();
    println!("{last} rows: {sent_by_debezium} by Debezium, {by_postrider} by Postrider");
    assert_eq!(arrivals.len() - by_postrider, sent_by_debezium);
    assert!(by_postrider > 70);
    arrivals
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_moves_under_load_and_its_consumer_gets_every_row() {
    for (arrival, id, _) in move_under_load("moves", &ORDERS).await {
        let mut body = arrival.json();
        let total = format!("{}.{}", id / 2, if id % 2 == 0 { "00" } else { "50" });
        assert_eq!(body["after"].take(), json!({"id": id, "status": "placed", "total": total}));
        assert_eq!(
            (&body["op"], &body["before"], &body["source"]["name"]),
            (&json!("c"), &Value::Null, &json!("shop"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_moves_under_load_and_its_consumer_gets_every_row_in_the_order_of_its_aggregate() {
    let mut last = [0; 5];
    let mut ids = BTreeMap::new();
    for (arrival, n, _) in move_under_load("moves_outbox", &OUTBOX).await {
        assert_eq!(arrival.json(), json!({"n": n, "list": [1, 2]}));
        let id = arrival.header("id").unwrap();
        // What comes again, because Debezium had no time to confirm it, is known by its id.
        if let Some(first) = ids.insert(id, n) {
            assert_eq!(first, n);
            continue;
        }
        let aggregate = &mut last[usize::try_from(n % 5).unwrap()];
        assert!(*aggregate < n, "{n} after {aggregate}");
        *aggregate = n;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_with_older_changes_than_the_publications_is_not_taken() {
    let world = made_by_debezium("too_young", &ORDERS).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    std::fs::write(directory.join("application.properties"), properties(&world, &ORDERS)).unwrap();
    // Debezium is stopped too early.
    world.sql.batch_execute("insert into orders values (1, 'placed', 0.5)").await.unwrap();
    done(&world, directory, "import-debezium application.properties --output postrider.toml");
    done(&world, directory, "migrate --config postrider.toml");
    let said = not_done(&world, directory, ADOPT);
    assert!(said.contains("Let Debezium read on") && said.contains("catalog_xmin"), "{said}");
    assert_eq!(world.count("select count(*) from postrider.progress").await, 0, "nothing was changed");
    let said = not_done(&world, directory, "import-debezium application.properties --adopt");
    assert!(said.contains("--config"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_change_a_body_is_refused_with_file_and_line() {
    let world = World::bare(servers::shared().await, "refused").await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let text = format!("{}debezium.source.converters=isbn\nquarkus.x=1\nfrobnicate=1\n", properties(&world, &ORDERS));
    std::fs::write(
        directory.join("application.properties"),
        text.replace("schemas.enable=false", "schemas.enable=true"),
    )
    .unwrap();
    let said = not_done(&world, directory, "import-debezium application.properties --output postrider.toml");
    for line in [
        "application.properties:8: refused: debezium.format.schemas.enable:",
        "application.properties:13: refused: debezium.source.converters:",
        "application.properties:15: not understood: frobnicate",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!directory.join("postrider.toml").exists());
}
