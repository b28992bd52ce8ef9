//! The two servers that scripts/bench has started.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

use crate::measure::Sample;
use crate::{Failure, Outcome};

pub(crate) const EXCHANGE: &str = "events";
const QUEUE: &str = "bench";
/// Bodies for `bare` to choose from.
const SAMPLE: usize = 1_000;
/// How long the queue may take to count what was confirmed.
const COUNTED: Duration = Duration::from_secs(60);

/// Everything that scripts/bench found and started.
pub(crate) struct Servers {
    /// Superuser, maintenance database.
    database_url: String,
    pub(crate) amqp_url: String,
    postgres: Option<u32>,
    rabbitmq: Option<u32>,
    /// The relay.
    pub(crate) program: PathBuf,
    /// What to put before pg_recvlogical's command, and the program.
    pub(crate) recv_in: String,
    pub(crate) recv_program: String,
    /// Of the servers, for the report.
    pub(crate) engine: String,
}

impl Servers {
    pub(crate) fn from_environment() -> Outcome<Servers> {
        let needed = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set; run `make bench`"));
        let pid = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let program = std::env::current_exe()?.with_file_name("postrider");
        Ok(Servers {
            database_url: needed("DATABASE_URL")?,
            amqp_url: needed("AMQP_URL")?,
            postgres: pid("BENCH_POSTGRES_PID"),
            rabbitmq: pid("BENCH_RABBITMQ_PID"),
            program,
            recv_in: std::env::var("BENCH_RECV_IN").unwrap_or_default(),
            recv_program: needed("BENCH_RECV")?,
            engine: needed("POSTRIDER_TEST_ENGINE")?,
        })
    }

    pub(crate) fn sample(&self) -> Outcome<Sample> {
        Sample::take(self.rabbitmq, self.postgres)
    }

    /// Versions of PostgreSQL and RabbitMQ.
    pub(crate) async fn versions(&self) -> Outcome<(String, String)> {
        let client = connect(&self.database_url).await?;
        let postgres: String = client.query_one("select current_setting('server_version')", &[]).await?.get(0);
        let connection = Connection::connect(&self.amqp_url, ConnectionProperties::default()).await?;
        let broker = std::env::var("BENCH_RABBITMQ_VERSION").unwrap_or_default();
        connection.close(200, "done".into()).await?;
        Ok((postgres.split(' ').next().unwrap_or_default().to_owned(), broker))
    }

    /// An empty, migrated database.
    pub(crate) async fn database(&self, name: &str) -> Outcome<Database> {
        let client = connect(&self.database_url).await?;
        client.batch_execute(&format!("drop database if exists {name} with (force)")).await?;
        client.batch_execute(&format!("create database {name}")).await?;
        let (server, _) = self.database_url.rsplit_once('/').ok_or("DATABASE_URL has no database")?;
        let url = format!("{server}/{name}?sslmode=disable");
        let migrated = std::process::Command::new(&self.program)
            .arg("migrate")
            .env_clear()
            .env("DATABASE_URL", &url)
            .stdout(std::process::Stdio::null())
            .status()?;
        if !migrated.success() {
            return Err("postrider migrate failed".into());
        }
        Ok(Database { name: name.to_owned(), url, server: self.database_url.clone() })
    }

    /// One quorum queue that gets every event, made anew, so that each run finds the same.
    pub(crate) async fn empty_queue(&self) -> Outcome<()> {
        let (connection, channel) = self.channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(QUEUE.into(), durable, arguments).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(QUEUE.into(), EXCHANGE.into(), "#".into(), options, FieldTable::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    /// Exactly so many messages are in the queue: nothing lost, nothing twice.
    pub(crate) async fn expect_messages(&self, expected: u64) -> Outcome<()> {
        let (connection, channel) = self.channel().await?;
        let began = Instant::now();
        loop {
            let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
            let queue = channel.queue_declare(QUEUE.into(), passive, FieldTable::default()).await?;
            let there = u64::from(queue.message_count());
            if there == expected {
                break;
            }
            if began.elapsed() > COUNTED {
                return Err(format!("{there} messages in the queue, not {expected}").into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    /// Bodies of messages of the queue, one a line: what the relay makes of a row has no line breaks.
    pub(crate) async fn save_sample(&self, file: &Path) -> Outcome<()> {
        let (connection, channel) = self.channel().await?;
        let mut bodies = Vec::new();
        for _ in 0..SAMPLE {
            let Some(message) = channel.basic_get(QUEUE.into(), BasicGetOptions { no_ack: true }).await? else { break };
            bodies.extend_from_slice(&message.delivery.data);
            bodies.push(b'\n');
        }
        connection.close(200, "done".into()).await?;
        Ok(std::fs::write(file, bodies)?)
    }

    /// Consumes the queue from now on.
    pub(crate) async fn watch_arrivals(&self) -> Outcome<Arrivals> {
        let (connection, channel) = self.channel().await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer = channel.basic_consume(QUEUE.into(), "bench".into(), options, FieldTable::default()).await?;
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(note_arrivals(consumer, sender));
        Ok(Arrivals { receiver, _open: (connection, channel) })
    }

    async fn channel(&self) -> Outcome<(Connection, Channel)> {
        let connection = Connection::connect(&self.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }
}

/// A consumer at work.
pub(crate) struct Arrivals {
    receiver: tokio::sync::mpsc::UnboundedReceiver<f64>,
    _open: (Connection, Channel),
}

impl Arrivals {
    /// Seconds from commit to here, of so many events.
    pub(crate) async fn collect(mut self, rows: u64) -> Outcome<Vec<f64>> {
        let mut delays = Vec::new();
        for _ in 0..rows {
            let next = tokio::time::timeout(COUNTED, self.receiver.recv()).await;
            delays.push(next.map_err(|_| "not every event has arrived")?.ok_or("the consumer has ended")?);
        }
        Ok(delays)
    }
}

async fn note_arrivals(mut consumer: Consumer, sender: tokio::sync::mpsc::UnboundedSender<f64>) {
    while let Some(Ok(delivery)) = consumer.next().await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let body: serde_json::Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
        // The commit time, by PostgreSQL's clock, which is this machine's.
        let committed = body.get("ts_us").and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN) / 1e6;
        if sender.send(now - committed).is_err() {
            return;
        }
    }
}

/// One scenario's database.
pub(crate) struct Database {
    name: String,
    pub(crate) url: String,
    server: String,
}

impl Database {
    pub(crate) async fn connect(&self) -> Outcome<Client> {
        connect(&self.url).await
    }

    pub(crate) async fn make_slot(&self, slot: &str) -> Outcome<()> {
        let client = self.connect().await?;
        client.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await?;
        Ok(())
    }

    /// The walsender may need a moment to let go of it.
    pub(crate) async fn drop_slot(&self, slot: &str) -> Outcome<()> {
        let client = self.connect().await?;
        let began = Instant::now();
        loop {
            match client.execute("select pg_drop_replication_slot($1)", &[&slot]).await {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > COUNTED => return Err(error.into()),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(crate) async fn wal_end(&self) -> Outcome<String> {
        let client = self.connect().await?;
        // Flushed, or the walsender does not see it: commits were asynchronous.
        client.batch_execute("checkpoint").await?;
        Ok(client.query_one("select pg_current_wal_flush_lsn()::text", &[]).await?.get(0))
    }

    pub(crate) async fn remove(self) -> Outcome<()> {
        let client = self.connect().await?;
        let statement = "select slot_name::text from pg_replication_slots where database = $1";
        for row in client.query(statement, &[&self.name]).await? {
            self.drop_slot(row.get(0)).await?;
        }
        drop(client);
        let mut statement = String::new();
        write!(statement, "drop database {} with (force)", self.name)?;
        Ok(connect(&self.server).await?.batch_execute(&statement).await?)
    }
}

async fn connect(url: &str) -> Outcome<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(Failure::from)?;
    tokio::spawn(connection);
    Ok(client)
}
