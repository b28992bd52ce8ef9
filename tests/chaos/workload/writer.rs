//! One writer: a connection, and one transaction after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::{Client, Transaction};

use super::rows::{self, Row};
use super::{POISON, Shared};
use crate::database::{self, LOCKED_KEYS};
use crate::evidence::Attempt;

/// Of a big transaction, and how often one writer has one.
const BIG: usize = 10_000;
const BIG_ONE_IN: u32 = 1_500;
/// Keys without a lock.
const FREE_KEYS: u32 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    OneByOne,
    MultiRow,
    Copy,
    Savepoint,
    RolledBack,
    Prepared,
    Empty,
    Unrelated,
    Poison,
    Big,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    number: u32,
    rng: StdRng,
    prepared: u64,
}

/// How a transaction ended when no statement failed.
enum Ended {
    Committed,
    RolledBack,
    /// COMMIT was sent, and the answer is not known.
    Unknown(tokio_postgres::Error),
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, number: u32, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(u64::from(number)));
        Writer { shared, number, rng, prepared: 0 }
    }

    pub(crate) async fn write(mut self) {
        let mut client = None;
        while !self.shared.stopped() {
            let Some(open) = client.as_mut().filter(|client: &&mut Client| !client.is_closed()) else {
                client = self.connect().await;
                continue;
            };
            let shape = self.shape();
            let size = match shape {
                Shape::Big => BIG,
                Shape::Empty | Shape::Unrelated => 0,
                _ => self.rng.random_range(1..=20),
            };
            let mut attempted = Vec::new();
            let result = self.transact(open, shape, size, &mut attempted).await;
            self.note(shape, &attempted, result);
            let pause = (size.clamp(1, 1_000) as f64 / self.shared.rate) * self.rng.random_range(0.5..1.5);
            self.sleep(Duration::from_secs_f64(pause)).await;
        }
        if let Some(client) = client.filter(|client| !client.is_closed()) {
            self.finish_prepared(&client).await.ok();
        }
    }

    async fn connect(&mut self) -> Option<Client> {
        if let Ok(client) = database::connect(&self.shared.url).await
            && self.finish_prepared(&client).await.is_ok()
        {
            return Some(client);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        None
    }

    async fn sleep(&self, pause: Duration) {
        let until = tokio::time::Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if self.shared.stopped() || (left.is_zero() && !self.shared.resting()) {
                return;
            }
            tokio::time::sleep(left.clamp(Duration::from_millis(1), Duration::from_millis(100))).await;
        }
    }

    /// Prepared transactions outlive their connection, and their locks too.
    async fn finish_prepared(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let pattern = format!("chaos-{}-%", self.number);
        let rows = client.query("select gid from pg_prepared_xacts where gid like $1", &[&pattern]).await?;
        for row in rows {
            client.batch_execute(&format!("commit prepared '{}'", row.get::<_, String>(0))).await?;
        }
        Ok(())
    }

    fn shape(&mut self) -> Shape {
        if self.rng.random_ratio(1, BIG_ONE_IN) {
            return Shape::Big;
        }
        match self.rng.random_range(0..100) {
            0..25 => Shape::OneByOne,
            25..50 => Shape::MultiRow,
            50..60 => Shape::Copy,
            60..70 => Shape::Savepoint,
            70..82 => Shape::RolledBack,
            82..90 => Shape::Prepared,
            90..93 => Shape::Empty,
            93..97 => Shape::Unrelated,
            97 => Shape::Poison,
            _ => Shape::MultiRow,
        }
    }

    async fn transact(
        &mut self,
        client: &mut Client,
        shape: Shape,
        size: usize,
        attempted: &mut Vec<Row>,
    ) -> Result<Ended, tokio_postgres::Error> {
        let transaction = client.transaction().await?;
        match shape {
            Shape::Empty => {}
            Shape::Unrelated => {
                let note = "n".repeat(self.rng.random_range(1..2_000));
                transaction.execute("insert into unrelated (note) values ($1)", &[&note]).await?;
            }
            Shape::Poison => *attempted = self.poison(),
            _ => *attempted = self.number_rows(&transaction, size).await?,
        }
        let largest = attempted.iter().map(|row| row.payload.len() as u64).max().unwrap_or_default();
        self.shared.largest_row.fetch_max(largest, Ordering::Relaxed);
        match shape {
            Shape::OneByOne => {
                for row in attempted.iter() {
                    rows::insert(&transaction, std::slice::from_ref(row)).await?;
                }
            }
            Shape::Copy | Shape::Big => rows::copy(&transaction, attempted).await?,
            Shape::Savepoint => self.around_a_savepoint(&transaction, attempted).await?,
            Shape::Empty | Shape::Unrelated => {}
            _ => rows::insert(&transaction, attempted).await?,
        }
        if shape == Shape::RolledBack {
            return transaction.rollback().await.map(|()| Ended::RolledBack);
        }
        if shape == Shape::Prepared {
            self.prepared += 1;
            // Random, because another process of the same seed may have left one.
            let gid = format!("chaos-{}-{}-{:x}", self.number, self.prepared, self.rng.random::<u64>());
            transaction.batch_execute(&format!("prepare transaction '{gid}'")).await?;
            // The server is outside a transaction now, and this says so to the client.
            transaction.commit().await.ok();
            let committed = client.batch_execute(&format!("commit prepared '{gid}'")).await;
            return Ok(committed.map_or_else(Ended::Unknown, |()| Ended::Committed));
        }
        Ok(transaction.commit().await.map_or_else(Ended::Unknown, |()| Ended::Committed))
    }

    /// Rows before it and after it count; those inside are undone.
    async fn around_a_savepoint(
        &mut self,
        transaction: &Transaction<'_>,
        rows: &mut Vec<Row>,
    ) -> Result<(), tokio_postgres::Error> {
        let middle = rows.len() / 2;
        if middle > 0 {
            rows::insert(transaction, &rows[..middle]).await?;
        }
        let undone: Vec<Row> = (0..3).map(|_| Row::new(&mut self.rng, "undone".to_owned(), 0)).collect();
        transaction.batch_execute("savepoint here").await?;
        rows::insert(transaction, &undone).await?;
        transaction.batch_execute("rollback to savepoint here").await?;
        rows::insert(transaction, &rows[middle..]).await?;
        rows.extend(undone);
        Ok(())
    }

    /// Chooses keys and numbers their rows. The rows of locked keys stay locked until the transaction ends, so that their numbers
    /// have the order of the commits; the others' numbers say nothing of that.
    async fn number_rows(
        &mut self,
        transaction: &Transaction<'_>,
        size: usize,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let mut locked: BTreeMap<String, i64> = BTreeMap::new();
        let mut chosen = Vec::with_capacity(size);
        for _ in 0..size {
            let key = if self.rng.random_ratio(7, 10) {
                let key = format!("locked-{}", self.rng.random_range(1..=LOCKED_KEYS));
                locked.insert(key.clone(), 0);
                key
            } else {
                format!("free-{}", self.rng.random_range(0..FREE_KEYS))
            };
            chosen.push(key);
        }
        let names: Vec<&String> = locked.keys().collect();
        // In one order for everybody, or writers would wait for each other in a circle.
        let statement = "select key, seq from chaos_keys where key = any($1) order by key collate \"C\" for update";
        let held = transaction.query(statement, &[&names]).await?;
        for row in &held {
            locked.insert(row.get(0), row.get(1));
        }
        let mut numbered = Vec::with_capacity(size);
        for key in chosen {
            let seq = match locked.get_mut(&key) {
                Some(seq) => {
                    *seq += 1;
                    *seq
                }
                None => self.shared.next_free.fetch_add(1, Ordering::Relaxed),
            };
            numbered.push(Row::new(&mut self.rng, key, seq));
        }
        let (names, seqs): (Vec<&String>, Vec<i64>) = locked.iter().unzip();
        let statement = "update chaos_keys as row set seq = now.seq
            from unnest($1::text[], $2::int8[]) as now (key, seq) where row.key = now.key";
        transaction.execute(statement, &[&names, &seqs]).await?;
        Ok(numbered)
    }

    /// A routing key beyond AMQP's 255 bytes can never be published; what follows waits behind it.
    fn poison(&mut self) -> Vec<Row> {
        let key = format!("{POISON}{:016x}", self.rng.random::<u64>());
        let mut first = Row::new(&mut self.rng, key.clone(), 1);
        first.kind = "Long".repeat(75);
        let rest = (2..=self.rng.random_range(1..=3)).map(|seq| Row::new(&mut self.rng, key.clone(), seq));
        let mut rows = vec![first];
        rows.extend(rest);
        rows
    }

    fn note(&mut self, shape: Shape, rows: &[Row], result: Result<Ended, tokio_postgres::Error>) {
        let (outcome, error) = match result {
            Ok(Ended::Committed) => ("ok", None),
            Ok(Ended::RolledBack) => ("rolled back", None),
            Ok(Ended::Unknown(error)) => ("info", Some(error)),
            Err(error) => ("failed", Some(error)),
        };
        let attempt = Attempt {
            at: self.shared.began.elapsed().as_secs_f64(),
            writer: self.number,
            shape: format!("{shape:?}"),
            ids: rows.iter().map(|row| row.id.clone()).collect(),
            outcome: outcome.to_owned(),
            error: error.map(|error| match error.as_db_error() {
                Some(said) => format!("{}: {}", said.code().code(), said.message()),
                None => error.to_string(),
            }),
        };
        // A journal that cannot be written makes the run worthless, and the checks say so by what is missing.
        if let Err(error) = self.shared.journal.add(&attempt) {
            eprintln!("chaos: cannot write the journal: {error}");
        }
    }
}
