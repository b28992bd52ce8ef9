//! Dead letters that somebody has changed: their own key waits for a person, and all else is carried.

use std::time::Duration;

use crate::parking::{QUICK, by_order, insert, slot_passes, until_parked};
use crate::support::consumer::Consumer;
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

/// The dead letter of an order's event, and a change to it.
async fn change(world: &World, order: &str, change: &str) -> i64 {
    let first = "select min(id) from postrider.dead_letters where aggregateid = $1";
    let id: i64 = world.sql.query_one(first, &[&order]).await.unwrap().get(0);
    world.sql.batch_execute(&format!("update postrider.dead_letters set {change} where id = {id}")).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_cannot_be_read_holds_up_its_own_key_alone() {
    let world = World::new("unreadable").await;
    world.exchange("events").await;
    let relay = Relay::carrying(&world, &QUICK).await;
    insert(&world, "Placed", [(1, 1), (1, 2), (2, 1)]).await;
    until_parked(&world, "they are parked", 3).await;
    let id = change(&world, "1", "headers = '[1]'").await;
    world.queue("placed", "order.Placed").await;
    let mut placed = Consumer::open(&world.amqp_url, "placed").await;
    assert_eq!(placed.take(1).await[0].json()["aggregateid"], "2");
    relay.until("it is counted", |snapshot| snapshot.dead_letters.by_reason.get("unreadable") == Some(&1)).await;

    // Everything else goes on: other events are parked, and the slot passes them.
    insert(&world, "Unread", [(3, 1)]).await;
    insert(&world, "Placed", [(1, 3), (4, 1)]).await;
    assert_eq!(placed.take(1).await[0].json()["aggregateid"], "4");
    slot_passes(&world).await;
    until_parked(&world, "the order's three events, and the unread one", 4).await;
    let error: String =
        world.sql.query_one("select error from postrider.parked where id = $1", &[&id]).await.unwrap().get(0);
    assert!(error.starts_with("cannot be read: its headers"), "{error}");

    // Mended, it is published once that is asked for, and what was behind it follows.
    let ask = format!(
        "update postrider.dead_letters set headers = '{{}}' where id = {id}; select postrider.redrive(ids => array[{id}])"
    );
    world.sql.batch_execute(&ask).await.unwrap();
    let arrivals = placed.take(3).await;
    assert_eq!(by_order(&arrivals)["1"], [1, 2, 3]);
    until_parked(&world, "the unread one is left", 1).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_relay_writes_is_said_once_and_its_key_waits_for_a_person() {
    let world = World::new("unknown").await;
    world.exchange("events").await;
    let settings = world.settings(&QUICK);
    let mut program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    insert(&world, "Placed", [(1, 1), (1, 2), (2, 1)]).await;
    until_parked(&world, "they are parked", 3).await;
    program.kill();
    // As a later version might, with a constraint of its own.
    world
        .sql
        .batch_execute("alter table postrider.dead_letters drop constraint dead_letters_reason_is_known")
        .await
        .unwrap();
    let id = change(&world, "1", "reason = 'novel'").await;

    let program = Program::start(&settings, &["run"]);
    program.says("dead letters cannot be read").await;
    program.says("carrying").await;
    world.queue("placed", "order.Placed").await;
    let mut placed = Consumer::open(&world.amqp_url, "placed").await;
    assert_eq!(placed.take(1).await[0].json()["aggregateid"], "2");
    insert(&world, "Placed", [(1, 3)]).await;
    slot_passes(&world).await;
    until_parked(&world, "the order's three events", 3).await;
    assert_eq!(program.log().matches("dead letters cannot be read").count(), 1);
    world.sql.execute("select postrider.discard(ids => array[$1::bigint])", &[&id]).await.unwrap();
    assert_eq!(by_order(&placed.take(2).await)["1"], [2, 3]);
    until_parked(&world, "nothing is left", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_the_position_of_another_ones_dead_letter_is_not_lost() {
    let world = World::new("displaced").await;
    world.exchange("events").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("postrider.toml");
    // The slot cannot pass the first event, so it gives the second again.
    std::fs::write(&file, "[[route]]\nname = \"held\"\ntype = \"Held\"\non_unroutable = \"hold\"\n").unwrap();
    let arguments = ["--config", file.to_str().unwrap(), "run"];
    let settings = world.settings(&QUICK);
    let mut program = Program::start(&settings, &arguments);
    program.says("carrying").await;
    insert(&world, "Held", [(0, 0)]).await;
    insert(&world, "Placed", [(1, 1)]).await;
    until_parked(&world, "it is parked", 1).await;
    program.kill();
    change(&world, "1", "event_id = 'of another event'").await;

    let mut program = Program::start(&settings, &arguments);
    program.says("is the dead letter of another one").await;
    until_parked(&world, "both are parked", 2).await;
    program.kill();
    let program = Program::start(&settings, &arguments);
    program.says("carrying").await;
    // The same event finds its own place again.
    insert(&world, "Unread", [(2, 1)]).await;
    until_parked(&world, "one more, and only that", 3).await;
    world.queue("all", "#").await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    let mut ids: Vec<String> = all.take(4).await.into_iter().map(|arrival| arrival.id).collect();
    ids.extend(all.rest(Duration::from_secs(2)).await.into_iter().map(|arrival| arrival.id));
    let mut expected: Vec<String> =
        world.sql.query("select id::text from outbox", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    expected.push("of another event".to_owned());
    for id in &expected {
        assert!(ids.contains(id), "{id} of {ids:?}");
    }
    until_parked(&world, "nothing is left", 0).await;
    slot_passes(&world).await;
}
