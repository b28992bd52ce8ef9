//! Rows for the outbox.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::servers::Database;
use crate::{Failure, Outcome};

/// Aggregates of a scenario with more than one.
const AGGREGATES: u32 = 10_000;
/// Of the text of `payload`, near enough: what limits and ratios are stated for.
const PAYLOAD_BYTES: u32 = 440;

/// Which aggregate a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Any of 10,000, all equally likely.
    Even,
    /// Number k of 10,000 with a probability of about 1/k (Zipf): the first has every thirteenth row.
    Skewed,
    One,
    /// A million of them, one after the other.
    Million,
}

/// What is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub keys: Keys,
    pub rows_in_transaction: u64,
    pub rows: u64,
}

impl Load {
    /// Commits all rows, as fast as one connection can.
    pub(crate) async fn fill(&self, database: &Database) -> Outcome<()> {
        let transactions = self.rows / self.rows_in_transaction;
        let statement = format!(
            "do $$ begin
               perform setseed(0.5);
               for i in 1..{transactions} loop
                 {} from generate_series(1, {}) as row;
                 commit;
               end loop;
             end $$",
            self.insert(),
            self.rows_in_transaction,
        );
        let client = database.connect().await?;
        // What is lost in a crash of the server is no loss here.
        client.batch_execute("set synchronous_commit = off; set statement_timeout = 0").await?;
        client.batch_execute(&statement).await?;
        let there: i64 = client.query_one("select count(*) from outbox", &[]).await?.get(0);
        let expected = i64::try_from(self.rows)?;
        if there == expected { Ok(()) } else { Err(format!("{there} rows in the outbox, not {expected}").into()) }
    }

    /// Commits the rows one by one at a steady rate, durably, as applications do.
    pub(crate) async fn trickle(&self, database: &Database, per_second: u64) -> Outcome<()> {
        /// Enough that a slow commit does not hold up the next.
        const CONNECTIONS: usize = 4;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = database.connect().await?;
            let statement = client.prepare(&self.insert()).await?;
            clients.push((std::sync::Arc::new(client), statement));
        }
        let mut ticks = interval(Duration::from_micros(1_000_000 / per_second));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut inserts = Vec::new();
        for (client, statement) in (0..self.rows).map_while(|row| clients.get(usize::try_from(row).ok()? % CONNECTIONS))
        {
            ticks.tick().await;
            let (client, statement) = (std::sync::Arc::clone(client), statement.clone());
            inserts.push(tokio::spawn(async move { client.execute(&statement, &[]).await }));
        }
        for insert in inserts {
            insert.await.map_err(Failure::from)??;
        }
        Ok(())
    }

    fn insert(&self) -> String {
        let key = match self.keys {
            Keys::Even => format!("floor(random() * {AGGREGATES})::int::text"),
            Keys::Skewed => format!("floor(power({AGGREGATES}, random()))::int::text"),
            Keys::One => "'1'".to_owned(),
            Keys::Million => "(row % 1000000)::text".to_owned(),
        };
        // {"note": "...", "total": 99.5}
        let note = PAYLOAD_BYTES - 28;
        format!(
            "insert into outbox (aggregatetype, aggregateid, type, payload)
             select 'order', {key}, 'OrderPlaced', jsonb_build_object('total', 99.5, 'note', repeat('x', {note}))"
        )
    }
}
