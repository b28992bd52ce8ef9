//! Rows that somebody has written to do harm: names that mean something to the broker, and headers that do.

use serde_json::json;

use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::relay::Relay;
use crate::support::world::World;

/// A queue that no event of these tests has any business with; it gets what is published with its name as routing key.
const STEAL: &str = "steal";

async fn world(name: &str) -> (World, Relay, Consumer) {
    let world = World::new(name).await;
    world.queue("all", "#").await;
    world.queue(STEAL, STEAL).await;
    // Whatever the operator lets through.
    let relay = Relay::carrying(&world, &[("POSTRIDER_EVENT_HEADERS", "*")]).await;
    let consumer = Consumer::open(&world.amqp_url, "all").await;
    (world, relay, consumer)
}

async fn insert(world: &World, kind: &str, id: &str, headers: &serde_json::Value) {
    let statement = "insert into outbox (aggregatetype, aggregateid, type, payload, headers)
                     values ($1, $2, 'Placed', '{}', $3::text::jsonb)";
    world.sql.execute(statement, &[&kind, &id, &headers.to_string()]).await.unwrap();
}

/// F60: the exchange is never the row's choice, and what fits no routing key is parked.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_of_a_row_leads_anywhere_else() {
    let (world, relay, mut consumer) = world("names").await;
    let long = ["x".repeat(256), "y".repeat(70_000)];
    let names = ["a.b", "#", "*", "with space", "cr\r\nlf", "crab \u{1f980}", "../", "amq.direct", "steal", "%2f"];
    for (number, name) in names.into_iter().chain(long.iter().map(String::as_str)).enumerate() {
        insert(&world, name, &number.to_string(), &json!({})).await;
        // The same in the key.
        insert(&world, "order", name, &json!({})).await;
    }
    insert(&world, "order", "the last", &json!({})).await;

    let parked = "select count(*) from postrider.dead_letters";
    eventually("two types that are too long for a routing key, parked", async || {
        (world.count(parked).await >= 2).then_some(())
    })
    .await;
    let mut keys: Vec<String> = Vec::new();
    while keys.last().is_none_or(|key| key != "order.the last") {
        let arrival = consumer.take(1).await.remove(0);
        keys.push(format!("{}.{}", arrival.header("aggregatetype").unwrap(), arrival.header("aggregateid").unwrap()));
    }
    for (number, name) in names.iter().enumerate() {
        assert!(keys.contains(&format!("{name}.{number}")), "{name} as a type");
        assert!(keys.contains(&format!("order.{name}")), "{name} as an id");
    }
    assert!(keys.contains(&format!("order.{}", long[1])), "an id may be long");
    assert_eq!(world.count("select count(*) from postrider.dead_letters where reason <> 'bad_property'").await, 0);
    assert_eq!(world.count(parked).await, 2);
    assert_eq!(world.depth(STEAL).await, 0);
    assert!(relay.status.snapshot().carrying());
    relay.stop().await;
}

/// F61: with every header allowed, none sends a copy anywhere, counts as a property, or closes the channel.
#[tokio::test(flavor = "multi_thread")]
async fn no_header_of_a_row_means_anything_to_the_broker() {
    let (world, relay, mut consumer) = world("headers").await;
    let mut deep = json!(1);
    for _ in 0..1_000 {
        deep = json!({ "a": deep });
    }
    let headers = [
        json!({"CC": [STEAL]}),
        json!({"CC": STEAL}),
        json!({"BCC": [STEAL], "bcc": STEAL, "Cc": [STEAL]}),
        json!({"x-death": [{"queue": STEAL, "reason": "expired", "count": 1}], "x-delay": 60_000}),
        json!({"user_id": "nobody", "user-id": "nobody", "expiration": "-1", "priority": 300, "delivery_mode": 1}),
        json!({"deep": deep}),
        json!({"x-postrider-position": "1/0/0/0", "aggregateid": "another"}),
    ];
    for (number, headers) in headers.iter().enumerate() {
        insert(&world, "order", &number.to_string(), headers).await;
    }
    let arrivals = consumer.take(headers.len()).await;
    for arrival in &arrivals {
        let names: Vec<String> = arrival.headers.inner().keys().map(|name| name.to_string().to_lowercase()).collect();
        for never in ["cc", "bcc", "x-death", "x-delay"] {
            assert!(!names.contains(&never.to_owned()), "{names:?}");
        }
        assert!(arrival.header("x-postrider-position").is_some_and(|position| position != "1/0/0/0"));
        let properties = &arrival.properties;
        assert!(properties.expiration().is_none() && properties.priority().is_none() && properties.user_id().is_none());
        assert_eq!(*properties.delivery_mode(), Some(2));
    }
    let ids: Vec<String> = arrivals.iter().map(|arrival| arrival.header("aggregateid").unwrap()).collect();
    assert_eq!(ids, (0..headers.len()).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(world.depth(STEAL).await, 0);
    assert_eq!(world.count("select count(*) from postrider.dead_letters").await, 0);
    let errors = relay.metrics.reconnects.with_label_values(&["rabbitmq", "channel_error"]).get();
    assert_eq!(errors, 0, "none closed the channel");
    relay.stop().await;
}
