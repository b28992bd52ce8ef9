//! `kill -9` of the relay under load, against an independent account of what was committed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::PATIENCE;
use crate::support::consumer::{Arrival, Consumer};
use crate::support::relay::Program;
use crate::support::world::{World, connect};

const ROWS: usize = 100_000;
const WRITERS: usize = 4;
const KEYS_OF_A_WRITER: usize = 50;
const KILLS: usize = 10;
/// Messages that must arrive between two kills, so that each kill falls into the middle of the load.
const BETWEEN_KILLS: usize = 4_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_in_a_load_of_100_000_rows_lose_nothing_and_reorder_nothing() {
    let world = World::new("kill9").await;
    world.queue("all", "#").await;
    world
        .sql
        .batch_execute("create table audit (id uuid primary key, key text not null, sequence bigint not null)")
        .await
        .unwrap();
    let settings = world.settings(&[]);
    let mut program = Program::start(&settings, &["run"]);
    program.says("carrying").await;

    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(world.database_url.clone(), writer, ROWS / WRITERS));
    }
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let mut account = Account::default();
    for _ in 0..KILLS {
        for _ in 0..BETWEEN_KILLS {
            account.enter(consumer.next(PATIENCE).await.expect("the load has not ended"));
        }
        program.kill();
        program = Program::start(&settings, &["run"]);
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }

    let committed: HashMap<String, (String, i64)> = world
        .sql
        .query("select id::text, key, sequence from audit", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect();
    assert!(committed.len() >= ROWS, "the load is of {ROWS} rows at least");
    while account.bodies.len() < committed.len() {
        let arrival = consumer.next(PATIENCE).await;
        account.enter(arrival.unwrap_or_else(|| panic!("{} of {} events came", account.bodies.len(), committed.len())));
    }
    for arrival in consumer.rest(Duration::from_secs(2)).await {
        account.enter(arrival);
    }

    let arrived: HashSet<&String> = account.bodies.keys().collect();
    assert_eq!(committed.keys().filter(|id| !arrived.contains(id)).count(), 0, "lost");
    assert_eq!(arrived.iter().filter(|id| !committed.contains_key(**id)).count(), 0, "from rolled-back transactions");
    let mut next: HashMap<&str, i64> = HashMap::new();
    for id in &account.first_arrivals {
        let (key, sequence) = &committed[id];
        let expected = next.entry(key).or_insert(1);
        assert_eq!(sequence, expected, "first arrivals of {key} are in commit order");
        *expected += 1;
    }
    println!(
        "{} committed, {} arrived, {} of them again",
        committed.len(),
        account.arrivals,
        account.arrivals - arrived.len()
    );
}

/// What the consumer saw.
#[derive(Default)]
struct Account {
    arrivals: usize,
    bodies: HashMap<String, Vec<u8>>,
    first_arrivals: Vec<String>,
}

impl Account {
    fn enter(&mut self, arrival: Arrival) {
        self.arrivals += 1;
        match self.bodies.get(&arrival.id) {
            Some(body) => assert_eq!(*body, arrival.body, "a duplicate has the same body"),
            None => {
                self.first_arrivals.push(arrival.id.clone());
                self.bodies.insert(arrival.id, arrival.body);
            }
        }
    }
}

/// Writes `rows` committed rows in transactions of 1 to 20, one in eight rolled back, some with an undone savepoint. A key
/// belongs to one writer, so its sequence is its commit order.
async fn write(url: String, writer: usize, rows: usize) {
    let mut client = connect(&url).await;
    let mut sequences = [0_i64; KEYS_OF_A_WRITER];
    let mut done = 0;
    let mut round = 0_usize;
    // Rows of one statement are inserted in the order of its arrays.
    let statement = "with event as (
            insert into outbox (aggregatetype, aggregateid, type, payload, sequence)
            select 'account', key, 'Changed', pg_catalog.jsonb_build_object('n', n, 'pad', repeat('x', 300)), n
            from unnest($1::text[], $2::bigint[]) with ordinality as event (key, n, place) order by place
            returning id, aggregateid, sequence)
        insert into audit select id, aggregateid, sequence from event";
    let insert = client.prepare(statement).await.unwrap();
    while done < rows {
        round += 1;
        let size = 1 + (round * 7 + writer) % 20;
        let aborted = round.is_multiple_of(8);
        let mut tried = sequences;
        let (mut keys, mut numbers) = (Vec::new(), Vec::new());
        for row in 0..size {
            let slot = (round * 13 + row * 5) % KEYS_OF_A_WRITER;
            tried[slot] += 1;
            keys.push(format!("{writer}-{slot}"));
            numbers.push(tried[slot]);
        }
        let transaction = client.transaction().await.unwrap();
        // Where a savepoint is undone, rows come before it and after it.
        let first = if round % 16 == 1 { size / 2 } else { size };
        transaction.execute(&insert, &[&&keys[..first], &&numbers[..first]]).await.unwrap();
        if first < size {
            transaction.batch_execute("savepoint s").await.unwrap();
            transaction.execute(&insert, &[&vec!["undone"], &vec![1_i64]]).await.unwrap();
            transaction.batch_execute("rollback to savepoint s").await.unwrap();
            transaction.execute(&insert, &[&&keys[first..], &&numbers[first..]]).await.unwrap();
        }
        if aborted {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
            sequences = tried;
            done += size;
        }
    }
}
