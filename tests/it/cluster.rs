//! A RabbitMQ cluster of three nodes: a node that is killed, a majority that is gone, a rolling restart, a partition. Nothing of it
//! may lose or reorder an event; at most it waits.

use std::time::{Duration, Instant};

use crate::support::account::{self, Account, Load};
use crate::support::consumer::Consumer;
use crate::support::own::{Own, pair};
use crate::support::relay::Program;
use crate::support::world::World;
use crate::support::{eventually, within};

/// A relay has this long to be back on its way after the brokers are: a quorum queue elects, the relay backs off for 10 s at most.
const RECOVERY: Duration = Duration::from_secs(60);
const NO_MAJORITY: Duration = Duration::from_secs(30);

/// What is committed now is delivered, and how long that took.
async fn flows(world: &World, when: &str) {
    let (written, began) = (world.current_lsn().await, Instant::now());
    within(RECOVERY, when, || async { world.confirmed().await.filter(|lsn| *lsn >= written) }).await;
    println!("{when}: delivered {:.1} s later", began.elapsed().as_secs_f64());
}

/// The index of the node where the queue's leader is, asked of the node `asked`.
async fn leader(world: &World, nodes: &[Own], asked: usize) -> usize {
    let path = format!("/api/queues/{}/all", world.name);
    eventually("the queue has a leader", || async {
        let url = nodes[asked].url("MANAGEMENT_URL");
        let answer = crate::support::http::management(&url, "GET", &path, "").await;
        let queue: serde_json::Value = serde_json::from_str(&answer).ok()?;
        let leader = queue["leader"].as_str()?;
        nodes.iter().position(|node| leader.contains(node.name()))
    })
    .await
}

/// F42, F43.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_cluster_that_are_killed_restarted_or_parted_cost_time_and_no_event() {
    let postgres = Own::postgres(&[]);
    let nodes = Own::cluster();
    let world = World::bare(pair(&postgres, &nodes[0]), "cluster").await;
    world.migrate().await;
    world.queue_with("all", "#", r#"{"x-queue-type":"quorum","x-quorum-initial-group-size":3}"#).await;
    account::prepare(&world.sql).await;
    let hosts: Vec<String> =
        nodes.iter().map(|node| format!("127.0.0.1:{}", node.url("AMQP_URL").port().unwrap())).collect();
    let amqp = format!("amqp://guest:guest@{}/{}", hosts.join(","), world.name);
    let mut program = Program::start(&world.settings(&[("AMQP_URL", &amqp)]), &["run"]);
    program.says("carrying").await;
    let load = Load::start(&world.database_url, 2, Duration::from_millis(20));
    flows(&world, "before anything happens").await;

    let first = leader(&world, &nodes, 0).await;
    nodes[first].command("stop", &["kill"]);
    flows(&world, "the queue's leader was killed").await;
    nodes[first].command("start-again", &[]);
    flows(&world, "it is back").await;

    // Two of three: there is no majority, so nothing can be confirmed and nothing may be acknowledged.
    let second = leader(&world, &nodes, first).await;
    let away = [second, (second + 1) % 3];
    for node in away {
        nodes[node].command("stop", &["kill"]);
    }
    let lost = Instant::now();
    // What was confirmed just before may still be acknowledged.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let stood_at = world.confirmed().await;
    while lost.elapsed() < NO_MAJORITY {
        assert_eq!(world.confirmed().await, stood_at, "without a majority nothing is acknowledged");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for node in away {
        nodes[node].command("start-again", &[]);
    }
    flows(&world, "the majority is back").await;

    for node in &nodes {
        node.command("restart", &[]);
        flows(&world, "a rolling restart").await;
    }

    // The network of the local engine's servers is one machine's loopback: it cannot be cut.
    if nodes[0].value("POSTRIDER_TEST_ENGINE") == "docker" {
        let alone = leader(&world, &nodes, 0).await;
        nodes[alone].command("cut", &[]);
        flows(&world, "the queue's leader is parted from the others").await;
        nodes[alone].command("mend", &[]);
        flows(&world, "the parted node is back").await;
    }

    let committed = load.committed();
    load.stop().await;
    assert!(committed > 1_000, "the load went on all the time: {committed}");
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    Account::default().settle(&world.sql, &mut consumer).await;
    program.signal("-TERM");
    assert!(program.exit(Duration::from_secs(25)).await.success());
}
