//! The shop of `make demo`: sells courses, and listens to the three queues that react.
//!
//! Called by `scripts/demo`, which starts the servers and the relay. Needs DATABASE_URL, AMQP_URL and ADMIN (host:port of
//! the relay's admin listener); TRY names a file with command lines to show. Ends by itself with ONCE=1: exit code 0 if every queue got exactly what it should.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_postgres::{Client, NoTls};

type Failure = Box<dyn Error + Send + Sync>;

const COURSES: [(&str, &str); 4] = [
    ("Ada", "Analytical Engines"),
    ("Grace", "Compilers"),
    ("Edsger", "Structured Programming"),
    ("Barbara", "Abstraction"),
];
const RUSH: usize = 500;
const PATIENCE: Duration = Duration::from_secs(30);

/// Which queue hears of which event: what the bindings of `examples/demo/postrider.toml` should come to.
const QUEUES: [(&str, &[&str]); 3] = [
    ("enrolment", &["CourseBought", "CourseChanged", "PurchaseWithdrawn"]),
    ("email", &["CourseBought", "PurchaseWithdrawn"]),
    ("analytics", &["CourseBought", "CourseChanged", "PurchaseWithdrawn"]),
];

/// A message as a queue got it.
struct Arrival {
    queue: &'static str,
    kind: String,
    text: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demo().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<ExitCode, Failure> {
    let shop = Shop::open().await?;
    let broker = Connection::connect(&std::env::var("AMQP_URL")?, ConnectionProperties::default()).await?;
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    for (queue, _) in QUEUES {
        listen(&broker, queue, arrived.clone()).await?;
    }
    let mut ledger = Ledger::default();

    say("A learner buys a course: one transaction writes `purchases` and `outbox`.");
    for (learner, course) in COURSES {
        shop.sell(learner, course).await?;
        ledger.happened("CourseBought");
    }
    ledger.settle(&mut arrivals, true).await;

    say("Grace changes her mind: an update, with the state before and after it.");
    shop.change("Grace", "Compilers", "Flow-Matic").await?;
    ledger.happened("CourseChanged");
    ledger.settle(&mut arrivals, true).await;

    say("Edsger withdraws: a delete.");
    shop.withdraw("Edsger").await?;
    ledger.happened("PurchaseWithdrawn");
    ledger.settle(&mut arrivals, true).await;

    say(&format!("A rush of {RUSH} purchases, and the lag falling to zero."));
    shop.rush(RUSH).await?;
    for _ in 0..RUSH {
        ledger.happened("CourseBought");
    }
    println!("  {}", lag().await?);
    while ledger.missing() > 0 {
        let before = ledger.missing();
        ledger.settle_for(&mut arrivals, Duration::from_millis(100)).await;
        println!("  {}, {} deliveries to go", lag().await?, ledger.missing());
        if ledger.missing() == before {
            ledger.settle(&mut arrivals, false).await;
            break;
        }
    }
    let began = Instant::now();
    while unresolved().await? > 0 && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("  {}", lag().await?);

    let complete = ledger.complete();
    if std::env::var("ONCE").is_err() {
        play(&mut arrivals).await?;
    }
    println!("{}", ledger.last_line());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What happened and what arrived.
#[derive(Default)]
struct Ledger {
    happened: BTreeMap<&'static str, usize>,
    arrived: BTreeMap<(&'static str, String), usize>,
}

impl Ledger {
    fn happened(&mut self, kind: &'static str) {
        *self.happened.entry(kind).or_default() += 1;
    }

    fn expected(&self, queue: &str) -> usize {
        let kinds = QUEUES.iter().find(|(name, _)| *name == queue).map_or(&[][..], |(_, kinds)| *kinds);
        kinds.iter().map(|kind| self.happened.get(kind).copied().unwrap_or(0)).sum()
    }

    fn arrived_at(&self, queue: &str) -> usize {
        self.arrived.iter().filter(|((name, _), _)| *name == queue).map(|(_, count)| count).sum()
    }

    fn missing(&self) -> usize {
        QUEUES.iter().map(|(queue, _)| self.expected(queue).saturating_sub(self.arrived_at(queue))).sum()
    }

    /// Every queue has exactly what it should have, event type by event type.
    fn complete(&self) -> bool {
        QUEUES.iter().all(|(queue, kinds)| {
            kinds.iter().all(|kind| {
                self.arrived.get(&(*queue, (*kind).to_owned())).copied().unwrap_or(0)
                    == self.happened.get(kind).copied().unwrap_or(0)
            }) && self.expected(queue) == self.arrived_at(queue)
        })
    }

    fn enter(&mut self, arrival: Arrival, show: bool) {
        if show {
            println!("  {:<10} <- {}", arrival.queue, arrival.text);
        }
        *self.arrived.entry((arrival.queue, arrival.kind)).or_default() += 1;
    }

    /// Waits until everything has arrived, or nothing has for too long.
    async fn settle(&mut self, arrivals: &mut mpsc::UnboundedReceiver<Arrival>, show: bool) {
        while self.missing() > 0 {
            match tokio::time::timeout(PATIENCE, arrivals.recv()).await {
                Ok(Some(arrival)) => self.enter(arrival, show),
                _ => return,
            }
        }
    }

    async fn settle_for(&mut self, arrivals: &mut mpsc::UnboundedReceiver<Arrival>, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while self.missing() > 0 {
            match tokio::time::timeout_at(until, arrivals.recv()).await {
                Ok(Some(arrival)) => self.enter(arrival, false),
                _ => return,
            }
        }
    }

    fn last_line(&self) -> String {
        let sold: usize = self.happened.values().sum();
        let queues: Vec<String> = QUEUES
            .iter()
            .map(|(queue, _)| format!("{queue} {} of {}", self.arrived_at(queue), self.expected(queue)))
            .collect();
        let verdict = if self.complete() { "nothing missing" } else { "SOMETHING IS MISSING" };
        format!("{sold} events committed; delivered: {}: {verdict}", queues.join(", "))
    }
}

/// The shop's own tables.
struct Shop {
    sql: Client,
}

impl Shop {
    async fn open() -> Result<Self, Failure> {
        let (sql, connection) = tokio_postgres::connect(&std::env::var("DATABASE_URL")?, NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("demo: the shop has lost its database: {error}");
            }
        });
        sql.batch_execute(
            "create table if not exists purchases (id bigint generated always as identity primary key, learner text not null, course text not null)",
        )
        .await?;
        Ok(Shop { sql })
    }

    async fn sell(&self, learner: &str, course: &str) -> Result<(), Failure> {
        let statement = "with bought as (insert into purchases (learner, course) values ($1, $2) returning *)
            insert into outbox (aggregatetype, aggregateid, type, payload)
            select 'purchase', id::text, 'CourseBought', jsonb_build_object('learner', learner, 'course', course) from bought";
        self.sql.execute(statement, &[&learner, &course]).await?;
        Ok(())
    }

    async fn change(&self, learner: &str, from: &str, to: &str) -> Result<(), Failure> {
        let statement =
            "with changed as (update purchases set course = $3 where learner = $1 and course = $2 returning *)
            insert into outbox (aggregatetype, aggregateid, type, before, payload)
            select 'purchase', id::text, 'CourseChanged', jsonb_build_object('learner', learner, 'course', $2::text),
                   jsonb_build_object('learner', learner, 'course', course) from changed";
        self.sql.execute(statement, &[&learner, &from, &to]).await?;
        Ok(())
    }

    async fn withdraw(&self, learner: &str) -> Result<(), Failure> {
        let statement = "with withdrawn as (delete from purchases where learner = $1 returning *)
            insert into outbox (aggregatetype, aggregateid, type, before, payload)
            select 'purchase', id::text, 'PurchaseWithdrawn', jsonb_build_object('learner', learner, 'course', course), null
            from withdrawn";
        self.sql.execute(statement, &[&learner]).await?;
        Ok(())
    }

    /// Each in a transaction of its own, sent without waiting for the one before.
    async fn rush(&self, count: usize) -> Result<(), Failure> {
        let sales = (0..count).map(|number| async move { self.sell(&format!("learner {number}"), "Everything").await });
        for sale in futures_util::future::join_all(sales).await {
            sale?;
        }
        Ok(())
    }
}

/// Hands on what arrives at a queue, acknowledged.
async fn listen(
    broker: &Connection,
    queue: &'static str,
    arrived: mpsc::UnboundedSender<Arrival>,
) -> Result<(), Failure> {
    let channel = broker.create_channel().await?;
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "demo".into(), options, FieldTable::default()).await?;
    tokio::spawn(async move {
        // The channel lives as long as its consumer.
        let _channel = channel;
        while let Some(Ok(delivery)) = consumer.next().await {
            let arrival = Arrival { queue, kind: kind(&delivery), text: describe(&delivery) };
            if delivery.ack(BasicAckOptions::default()).await.is_err() || arrived.send(arrival).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn kind(delivery: &lapin::message::Delivery) -> String {
    delivery.properties.kind().as_ref().map(ToString::to_string).unwrap_or_default()
}

/// `purchase.CourseChanged u  before {...} after {...}`
fn describe(delivery: &lapin::message::Delivery) -> String {
    let event: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
    let op = event.get("op").and_then(Value::as_str).unwrap_or("?");
    let image = |name: &str| match event.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(value) => format!("  {name} {value}"),
    };
    format!("{:<26} {op}{}{}", delivery.routing_key.as_str(), image("before"), image("after"))
}

/// One line on how far behind the relay is, from its own metrics.
async fn lag() -> Result<String, Failure> {
    let metrics = metrics().await?;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    let (lag, unresolved) = (value("postrider_delivery_lag_seconds"), value("postrider_unresolved_events"));
    Ok(format!("lag {lag:.1} s, {unresolved:.0} events without a confirm"))
}

async fn unresolved() -> Result<u64, Failure> {
    let metrics = metrics().await?;
    let line = metrics.lines().find(|line| line.starts_with("postrider_unresolved_events{")).unwrap_or_default();
    Ok(line.rsplit(' ').next().unwrap_or("0").parse()?)
}

async fn metrics() -> Result<String, Failure> {
    let address = std::env::var("ADMIN")?;
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Leaves everything running, with the command lines to try, until Ctrl-C.
async fn play(arrivals: &mut mpsc::UnboundedReceiver<Arrival>) -> Result<(), Failure> {
    say("Everything is still running. Try, in another terminal:");
    print!("{}", std::fs::read_to_string(std::env::var("TRY").unwrap_or_default()).unwrap_or_default());
    say("Events are shown as they arrive. Ctrl-C ends the demo and removes everything that it started.");
    loop {
        tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => println!("  {:<10} <- {}", arrival.queue, arrival.text),
                None => return Ok(()),
            },
            interrupt = tokio::signal::ctrl_c() => return Ok(interrupt?),
        }
    }
}

fn say(text: &str) {
    println!("\n{text}");
}
