//! An account of what was committed, kept beside the relay: each event has a twin, written in its own transaction.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::PATIENCE;
use super::consumer::{Arrival, Consumer};

const KEYS_OF_A_WRITER: i64 = 20;

/// Where the twins are. To be made before the load.
pub(crate) async fn prepare(sql: &Client) {
    sql.batch_execute("create table audit (id uuid primary key, key text not null, sequence bigint not null)")
        .await
        .unwrap();
}

/// Writers that commit one event a transaction until they are stopped, and connect again whenever they lose the server. A key
/// belongs to one writer, and a number is never used twice, so the numbers of a key are its commit order.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicI64>,
    writers: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(database_url: &str, writers: usize, pause: Duration) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let (url, stop, committed) = (database_url.to_owned(), Arc::clone(&stop), Arc::clone(&committed));
            tasks.spawn(async move {
                let mut sequence = 0_i64;
                while !stop.load(Ordering::SeqCst) {
                    // What fails here is tried again: a server that is away is what the tests are about.
                    write(&url, writer, &mut sequence, pause, &stop, &committed).await.ok();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
        Load { stop, committed, writers: tasks }
    }

    /// What the writers know to be committed. A commit whose answer was lost is not among them.
    pub(crate) fn committed(&self) -> i64 {
        self.committed.load(Ordering::SeqCst)
    }

    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
    }
}

async fn write(
    url: &str,
    writer: usize,
    sequence: &mut i64,
    pause: Duration,
    stop: &AtomicBool,
    committed: &AtomicI64,
) -> Result<(), tokio_postgres::Error> {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.connect_timeout(Duration::from_secs(2)).tcp_user_timeout(Duration::from_secs(5));
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(connection);
    let statement = "with event as (
            insert into outbox (aggregatetype, aggregateid, type, payload, sequence)
            values ('account', $1, 'Changed', pg_catalog.jsonb_build_object('n', $2::bigint, 'pad', repeat('x', 200)), $2)
            returning id, aggregateid, sequence)
        insert into audit select id, aggregateid, sequence from event";
    let result = async {
        let insert = client.prepare(statement).await?;
        while !stop.load(Ordering::SeqCst) {
            *sequence += 1;
            let key = format!("{writer}-{}", *sequence % KEYS_OF_A_WRITER);
            client.execute(&insert, &[&key, &*sequence]).await?;
            committed.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    };
    let result = result.await;
    driver.abort();
    result
}

/// What a consumer has seen.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) arrivals: usize,
    bodies: HashMap<String, Vec<u8>>,
    first_arrivals: Vec<String>,
}

impl Account {
    pub(crate) fn enter(&mut self, arrival: Arrival) {
        self.arrivals += 1;
        match self.bodies.get(&arrival.id) {
            Some(body) => assert_eq!(*body, arrival.body, "a duplicate has the same body"),
            None => {
                self.first_arrivals.push(arrival.id.clone());
                self.bodies.insert(arrival.id, arrival.body);
            }
        }
    }

    /// Takes from the consumer what the audit says must come, and what else is there, and compares. The load has stopped.
    pub(crate) async fn settle(&mut self, sql: &Client, consumer: &mut Consumer) {
        let rows = sql.query("select id::text, key, sequence from audit", &[]).await.unwrap();
        let committed: HashMap<String, (String, i64)> =
            rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        while committed.keys().any(|id| !self.bodies.contains_key(id)) {
            let Some(arrival) = consumer.next(PATIENCE).await else { break };
            self.enter(arrival);
        }
        for arrival in consumer.rest(Duration::from_secs(1)).await {
            self.enter(arrival);
        }
        let arrived: HashSet<&String> = self.bodies.keys().collect();
        let lost = committed.keys().filter(|id| !arrived.contains(id)).count();
        let unexpected = arrived.iter().filter(|id| !committed.contains_key(**id)).count();
        println!(
            "{} committed, {} arrived, {} of them again, {lost} lost, {unexpected} unexpected",
            committed.len(),
            self.arrivals,
            self.arrivals - arrived.len()
        );
        assert_eq!((lost, unexpected), (0, 0), "lost and unexpected");
        let mut last: HashMap<&str, i64> = HashMap::new();
        for id in &self.first_arrivals {
            let (key, sequence) = &committed[id];
            let before = last.insert(key, *sequence).unwrap_or(0);
            assert!(before < *sequence, "first arrivals of {key} are in commit order: {before}, then {sequence}");
        }
    }
}
