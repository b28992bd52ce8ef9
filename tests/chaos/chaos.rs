//! What a run consists of, as the faults and the halts see it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::broker::Broker;
use crate::consumer::Consumer;
use crate::database::Database;
use crate::evidence::Evidence;
use crate::proxy::Proxy;
use crate::relay::Relay;
use crate::workload::{Row, insert};
use crate::{Failure, Outcome};

pub(crate) struct Chaos {
    pub database: Database,
    pub broker: Broker,
    pub relay: Relay,
    /// What the relay has between itself and each server.
    pub sql_proxy: Proxy,
    pub amqp_proxy: Proxy,
    pub consumer: Consumer,
    pub evidence: Evidence,
    pub began: Instant,
    /// For the environment of every relay.
    pub more: Vec<(String, String)>,
    /// For questions between the faults.
    client: Mutex<Option<Arc<Client>>>,
    markers: AtomicU64,
    /// Of second relays, which are gone.
    second_max_rss_kib: AtomicU64,
}

/// What a run begins with.
pub(crate) struct Start<'a> {
    pub evidence: Evidence,
    /// Of the tap; the usual ones if there are none.
    pub tap: Option<&'a str>,
    pub more: Vec<(String, String)>,
    /// Where the first relay dies first.
    pub failpoint: Option<&'a str>,
}

impl Chaos {
    /// Two servers, a consumer, and a relay that carries.
    pub(crate) async fn start(start: Start<'_>) -> Outcome<Self> {
        let (database, broker) = tokio::try_join!(Database::start(), Broker::start())?;
        match start.tap {
            Some(arguments) => broker.declare_tap_with(arguments).await?,
            None => broker.declare_tap().await?,
        }
        let began = Instant::now();
        let consumer = Consumer::start(&broker, &start.evidence, began)?;
        let sql_proxy = Proxy::postgres(database.address()).await;
        let amqp_proxy = Proxy::amqp(&format!("{}:{}", broker.host, broker.port)).await;
        let database_url = database.relay_url(&format!("127.0.0.1:{}", sql_proxy.port));
        let amqp_url = broker.relay_url("127.0.0.1", amqp_proxy.port);
        let relay = Relay::start("relay", &start.evidence, &database_url, &amqp_url, &start.more).await?;
        if let Some(failpoint) = start.failpoint {
            relay.plant(failpoint.to_owned());
        }
        let chaos = Chaos {
            database,
            broker,
            relay,
            sql_proxy,
            amqp_proxy,
            consumer,
            evidence: start.evidence,
            began,
            more: start.more,
            client: Mutex::default(),
            markers: AtomicU64::new(0),
            second_max_rss_kib: AtomicU64::new(0),
        };
        chaos
            .until("the relay carries", Duration::from_secs(60), async || {
                chaos.relay.status().await.is_ok_and(|status| status.role == "active").then_some(())
            })
            .await?;
        Ok(chaos)
    }

    pub(crate) fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// A second relay on the same slot, without proxies.
    pub(crate) async fn second_relay(&self) -> Outcome<Relay> {
        let (database, broker) = (&self.database, &self.broker);
        let database_url = database.relay_url(database.address());
        Relay::start(
            "relay-second",
            &self.evidence,
            &database_url,
            &broker.relay_url(&broker.host, broker.port),
            &self.more,
        )
        .await
    }

    pub(crate) fn add_second(&self, second: &Relay) {
        self.second_max_rss_kib.fetch_max(second.max_rss_kib(), Ordering::Relaxed);
    }

    pub(crate) fn max_rss_kib(&self) -> u64 {
        self.relay.max_rss_kib().max(self.second_max_rss_kib.load(Ordering::Relaxed))
    }

    /// Commits events of the harness's own and gives their ids. Each call is one transaction.
    pub(crate) async fn commit_marker(&self, rows: usize) -> Outcome<Vec<String>> {
        let number = self.markers.fetch_add(1, Ordering::Relaxed);
        // Their own series of ids, apart from the writers'.
        let mut rng = StdRng::seed_from_u64(u64::MAX - number);
        let rows: Vec<Row> = (0..rows).map(|_| Row::new(&mut rng, format!("marker-{number}"), 1)).collect();
        let mut client = self.database.connect().await?;
        let transaction = client.transaction().await?;
        insert(&transaction, &rows).await?;
        transaction.commit().await?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// One transaction of rows of about `bytes` each, of keys of its own.
    pub(crate) async fn commit_backlog(&self, rng: &mut StdRng, rows: usize, bytes: usize) -> Outcome<()> {
        // A key goes no faster than its confirms come: of one alone the time would tell how slow the machine is.
        const KEYS: i64 = 20;
        let number = self.markers.fetch_add(1, Ordering::Relaxed);
        let row = |seq| Row::sized(rng, format!("backlog-{number}-{}", seq % KEYS), seq, bytes);
        let rows: Vec<Row> = (1..).take(rows).map(row).collect();
        let mut client = self.database.connect().await?;
        let transaction = client.transaction().await?;
        insert(&transaction, &rows).await?;
        Ok(transaction.commit().await?)
    }

    /// Everything that was committed until now has been delivered, and nothing is parked that has not to be.
    pub(crate) async fn recovered(&self, within: Duration) -> Outcome<Duration> {
        let from = Instant::now();
        let marker = self.until("an event can be committed", within, async || self.commit_marker(1).await.ok()).await?;
        self.until("everything is delivered", within, async || {
            let arrived = marker.iter().all(|id| self.consumer.seen().ids.contains(id));
            let waiting = arrived && self.parked("aggregateid not like 'poison-%'").await.is_ok_and(|count| count == 0);
            waiting.then_some(())
        })
        .await?;
        Ok(from.elapsed())
    }

    /// One connection as long as it lasts.
    pub(crate) async fn client(&self) -> Outcome<Arc<Client>> {
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let new = Arc::new(self.database.connect().await?);
        *client = Some(Arc::clone(&new));
        Ok(new)
    }

    pub(crate) async fn parked(&self, which: &str) -> Outcome<i64> {
        let statement = format!("select count(*) from postrider.parked where {which}");
        Ok(self.client().await?.query_one(&statement, &[]).await?.get(0))
    }

    /// Polls until `fact` gives a value.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut fact: impl AsyncFnMut() -> Option<T>,
    ) -> Outcome<T> {
        let began = Instant::now();
        loop {
            if let Some(value) = fact().await {
                return Ok(value);
            }
            if began.elapsed() > within {
                return Err(Failure::from(format!("not within {} s: {what}", within.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
