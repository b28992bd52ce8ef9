//! From Debezium to Postrider under load, by the steps of `docs/from-debezium.md`: nothing is lost, and consumers notice nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
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

/// What Debezium Server is to a database and a broker: it streams from its slot with its publication, publishes by topic, and confirms to
/// PostgreSQL what RabbitMQ has confirmed.
struct Debezium {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<usize>,
}

impl Debezium {
    async fn start(world: &World) -> Self {
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
                            let cell = |index: usize| match insert.new.get(index) {
                                Some(Cell::Text(text)) => String::from_utf8(text.to_vec()).unwrap(),
                                other => panic!("{other:?}"),
                            };
                            let after =
                                json!({"id": cell(0).parse::<i64>().unwrap(), "status": cell(1), "total": cell(2)});
                            let body = json!({"before": null, "after": after, "source": {"name": "shop"}, "op": "c"})
                                .to_string();
                            channel
                                .basic_publish(
                                    "events".into(),
                                    "shop.public.orders".into(),
                                    BasicPublishOptions::default(),
                                    body.as_bytes(),
                                    BasicProperties::default().with_delivery_mode(2),
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
    async fn start(world: &World) -> Self {
        let sql = connect(&world.database_url).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut id = 0;
            while !stopped.load(Ordering::Relaxed) {
                id += 1;
                sql.execute("insert into orders values ($1::bigint, 'placed', $1::bigint * 0.5)", &[&id])
                    .await
                    .unwrap();
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

fn properties(world: &World) -> String {
    format!(
        "debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
         debezium.source.plugin.name=pgoutput\n\
         debezium.source.slot.name={}\n\
         debezium.source.topic.prefix=shop\n\
         debezium.source.table.include.list=public.orders\n\
         debezium.source.decimal.handling.mode=string\n\
         debezium.source.snapshot.mode=no_data\n\
         debezium.source.offset.storage.file.filename=data/offsets.dat\n\
         debezium.format.schemas.enable=false\n\
         debezium.sink.type=rabbitmq\n\
         debezium.sink.rabbitmq.exchange=events\n\
         debezium.sink.rabbitmq.routingKey.source=topic\n",
        world.name
    )
}

/// The table, publication and slot as Debezium has made them.
async fn made_by_debezium(name: &str) -> World {
    let world = World::bare(servers::shared().await, name).await;
    let setup = "create table orders (id bigint primary key, status text not null, total numeric(12,2));
        create publication dbz_publication for table orders";
    world.sql.batch_execute(setup).await.unwrap();
    let slot = "select pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
    world.sql.execute(slot, &[&world.name]).await.unwrap();
    world.queue("billing", "shop.public.orders").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_table_moves_under_load_and_its_consumer_gets_every_row() {
    let world = made_by_debezium("moves").await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    std::fs::write(directory.join("application.properties"), properties(&world)).unwrap();
    let mut consumer = Consumer::open(&world.amqp_url, "billing").await;
    let debezium = Debezium::start(&world).await;
    let application = Application::start(&world).await;
    let mut arrivals = consumer.take(20).await;

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
    let between = world.count("select count(*) from orders").await;
    eventually("the application writes while nobody reads", async || {
        (world.count("select count(*) from orders").await > between + 20).then_some(())
    })
    .await;
    let said = done(&world, directory, &format!("{ADOPT} --dry-run"));
    assert!(said.contains("nothing was changed"), "{said}");
    done(&world, directory, ADOPT);
    let said = not_done(&world, directory, ADOPT);
    assert!(said.contains("carried already"), "{said}");

    let config = Config::load(Some(&directory.join("postrider.toml")), environment(&world)).unwrap();
    let relay = Relay::carrying_on(Arc::new(config)).await;
    let seen = world.count("select count(*) from orders").await;
    eventually("the application writes while Postrider carries", async || {
        (world.count("select count(*) from orders").await > seen + 50).then_some(())
    })
    .await;
    world.sql.batch_execute("drop publication dbz_publication").await.unwrap();
    let last = application.stop().await;
    let first = |arrivals: &[Arrival]| {
        arrivals.iter().filter_map(|arrival| arrival.json()["after"]["id"].as_i64()).max().unwrap_or(0)
    };
    while first(&arrivals) < last {
        arrivals.extend(consumer.take(1).await);
    }
    arrivals.extend(consumer.rest(Duration::from_secs(1)).await);

    let postriders: Vec<&Arrival> =
        arrivals.iter().filter(|arrival| arrival.header("x-postrider-position").is_some()).collect();
    println!("{} rows: {sent_by_debezium} by Debezium, {} by Postrider", last, postriders.len());
    assert_eq!(arrivals.len() - postriders.len(), sent_by_debezium);
    assert!(postriders.len() > 70);
    let mut ids: Vec<i64> = arrivals.iter().map(|arrival| arrival.json()["after"]["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (1..=last).collect::<Vec<_>>(), "every row came");
    for arrival in &arrivals {
        let mut body = arrival.json();
        let id = body["after"]["id"].as_i64().unwrap();
        assert_eq!(arrival.routing_key, "shop.public.orders");
        let total = format!("{}.{}", id / 2, if id % 2 == 0 { "00" } else { "50" });
        assert_eq!(body["after"].take(), json!({"id": id, "status": "placed", "total": total}));
        assert_eq!(
            (&body["op"], &body["before"], &body["source"]["name"]),
            (&json!("c"), &Value::Null, &json!("shop"))
        );
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_with_older_changes_than_the_publications_is_not_taken() {
    let world = made_by_debezium("too_young").await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    std::fs::write(directory.join("application.properties"), properties(&world)).unwrap();
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
    let text = format!("{}debezium.source.converters=isbn\nquarkus.x=1\nfrobnicate=1\n", properties(&world));
    std::fs::write(
        directory.join("application.properties"),
        text.replace("schemas.enable=false", "schemas.enable=true"),
    )
    .unwrap();
    let said = not_done(&world, directory, "import-debezium application.properties --output postrider.toml");
    for line in [
        "application.properties:9: refused: debezium.format.schemas.enable:",
        "application.properties:13: refused: debezium.source.converters:",
        "application.properties:15: not understood: frobnicate",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!directory.join("postrider.toml").exists());
}
