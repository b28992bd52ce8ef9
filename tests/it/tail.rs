//! `postrider tail`: what it shows, what it leaves alone, and how it ends.

use std::time::Duration;

use serde_json::Value;

use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

const DEADLINE: Duration = Duration::from_secs(30);

/// A tail that watches.
async fn tail(world: &World, arguments: &[&str]) -> Program {
    let management = world.servers.management_url.to_string();
    let settings = world.settings(&[("POSTRIDER_MANAGEMENT_URL", &management)]);
    let tail = Program::start(&settings, &[&["tail"], arguments].concat());
    tail.says("watching events").await;
    tail
}

/// Its lines without what it says beside them.
fn lines(tail: &Program) -> Vec<String> {
    tail.log().lines().filter(|line| !line.starts_with("postrider: ")).map(str::to_owned).collect()
}

async fn temporary_queues(world: &World) -> usize {
    let listed = world.servers.management("GET", &format!("/api/queues/{}", world.name), "").await;
    let queues: Vec<Value> = serde_json::from_str(&listed).unwrap();
    queues.iter().filter(|queue| queue["name"].as_str().unwrap().starts_with("postrider.tail.")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_shown_as_they_pass_and_the_queue_goes_with_the_command() {
    let world = World::new("tail").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut readable = tail(&world, &["--count", "2"]).await;
    let mut objects = tail(&world, &["--json", "--count", "1", "--type", "Paid"]).await;
    let forever = tail(&world, &["--routing-key", "order.*", "--aggregateid", "42"]).await;
    world.insert("41", "Placed", r#"{"total": 1.50}"#).await;
    world.insert("42", "Paid", "{}").await;

    assert!(readable.exit(DEADLINE).await.success());
    let shown = lines(&readable);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(shown[0].contains("  order.Placed  c  Placed  order/41  "), "{shown:?}");
    assert!(shown[0].contains("Z  order.Placed"), "with the time: {shown:?}");

    assert!(objects.exit(DEADLINE).await.success());
    let object: Value = serde_json::from_str(&lines(&objects)[0]).unwrap();
    assert_eq!((&object["properties"]["type"], &object["headers"]["aggregateid"]), (&"Paid".into(), &"42".into()));
    assert_eq!((&object["body"]["op"], &object["exchange"]), (&"c".into(), &"events".into()));
    let id: String = world.sql.query_one("select id::text from outbox where type = 'Paid'", &[]).await.unwrap().get(0);
    assert_eq!(object["properties"]["message_id"], id.as_str());

    forever.says("order/42").await;
    assert_eq!(lines(&forever).len(), 1, "only what it was asked for");
    assert_eq!(temporary_queues(&world).await, 1, "of the one that still runs");
    for signal in ["-INT", "-TERM"] {
        let mut told = tail(&world, &[]).await;
        told.signal(signal);
        assert!(told.exit(DEADLINE).await.success(), "{signal}");
    }
    drop(forever);
    eventually("no temporary queue", async || (temporary_queues(&world).await == 0).then_some(())).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(consumer.take(2).await.len(), 2, "who is meant to get them gets them");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_queue_is_bound_for_is_not_taken_by_a_tail() {
    let world = World::new("tail_unbound").await;
    world.queue("orders", "order.Placed").await;
    let relay = Relay::carrying(&world, &[]).await;
    let tail = tail(&world, &[]).await;
    world.insert("1", "Paid", "{}").await;
    world.insert("2", "Placed", "{}").await;
    tail.says("order.Placed").await;
    eventually("it comes back", async || relay.metric("postrider_events_returned_total").filter(|count| *count >= 1.0))
        .await;
    assert!(!tail.log().contains("order.Paid"), "{}", tail.log());

    // Once somebody wants it, it is delivered, and shown.
    world.queue("payments", "order.Paid").await;
    let mut payments = Consumer::open(&world.amqp_url, "payments").await;
    assert_eq!(payments.take(1).await[0].kind, "Paid");
    eventually("the new binding is followed", async || {
        world.insert("3", "Paid", "{}").await;
        tail.log().contains("order.Paid").then_some(())
    })
    .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_management_api_it_says_what_it_would_take_and_takes_it_only_when_told() {
    let world = World::new("tail_unrouted").await;
    world.exchange("events").await;
    let settings = world.settings(&[]);
    let mut refused = Program::start(&settings, &["tail"]);
    assert_eq!(refused.exit(DEADLINE).await.code(), Some(1));
    let log = refused.log();
    assert!(log.contains("set management_url") && log.contains("--unrouted"), "{log}");

    let relay = Relay::carrying(&world, &[]).await;
    let mut told = Program::start(&settings, &["tail", "--unrouted", "--routing-key", "order.#", "--count", "1"]);
    told.says("counts as delivered, and is gone").await;
    world.insert("1", "Placed", "{}").await;
    assert!(told.exit(DEADLINE).await.success());
    assert!(lines(&told)[0].contains("order.Placed"), "{}", told.log());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_is_told_the_command_and_may_then() {
    let world = World::new("tail_rights").await;
    world.queue("all", "#").await;
    let user = format!("watcher-{}", world.name);
    let (users, rights) = (format!("/api/users/{user}"), format!("/api/permissions/{}/{user}", world.name));
    world.servers.management("PUT", &users, r#"{"password": "pw", "tags": ""}"#).await;
    // What the relay itself needs.
    world.servers.management("PUT", &rights, r#"{"configure": "", "write": "^events$", "read": ""}"#).await;
    let mut url = world.servers.amqp_url.clone();
    url.set_username(&user).unwrap();
    url.set_password(Some("pw")).unwrap();
    url.set_path(&world.name);
    let management = world.servers.management_url.to_string();
    let settings: Vec<_> = vec![("POSTRIDER_MANAGEMENT_URL".to_owned(), management)];
    let arguments = ["tail", "--amqp-url", url.as_str()];
    let mut refused = Program::start(&settings, &arguments);
    assert_eq!(refused.exit(DEADLINE).await.code(), Some(1));
    let log = refused.log();
    let command = format!(
        r"rabbitmqctl set_permissions -p '{}' USER '^postrider\.tail\..*$' '^postrider\.tail\..*$' '^(events|postrider\.tail\..*)$'",
        world.name
    );
    assert!(log.contains("declaring a temporary queue is refused") && log.contains(&command), "{log}");

    let said = r#"{"configure": "^postrider\\.tail\\..*$", "write": "^postrider\\.tail\\..*$", "read": "^(events|postrider\\.tail\\..*)$"}"#;
    world.servers.management("PUT", &rights, said).await;
    let mut allowed = Program::start(&settings, &arguments);
    allowed.says("watching events").await;
    allowed.signal("-INT");
    assert!(allowed.exit(DEADLINE).await.success());
    world.servers.management("DELETE", &users, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broker_and_an_absent_exchange_are_said_and_end_it_with_1() {
    let world = World::new("tail_lost").await;
    world.queue("all", "#").await;
    let mut lost = tail(&world, &[]).await;
    let connection = eventually("its connection", async || {
        let listed = world.servers.management("GET", &format!("/api/vhosts/{}/connections", world.name), "").await;
        let connections: Vec<Value> = serde_json::from_str(&listed).unwrap();
        let ours = connections.iter().find(|connection| connection.to_string().contains("/tail"))?;
        Some(ours["name"].as_str()?.replace(' ', "%20").replace('>', "%3E"))
    })
    .await;
    world.servers.management("DELETE", &format!("/api/connections/{connection}"), "").await;
    assert_eq!(lost.exit(DEADLINE).await.code(), Some(1));
    assert!(lost.log().contains("connection to RabbitMQ was lost"), "{}", lost.log());

    let management = world.servers.management_url.to_string();
    let settings = world.settings(&[("POSTRIDER_MANAGEMENT_URL", &management)]);
    let mut refused = Program::start(&settings, &["tail", "--exchange", "absent"]);
    assert_eq!(refused.exit(DEADLINE).await.code(), Some(1));
    assert!(refused.log().contains("exchange `absent` does not exist"), "{}", refused.log());
}
