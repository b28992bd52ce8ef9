//! Dashboard and alerts on a real Prometheus: what each situation lights, and that it lights nothing else.

mod prometheus;
mod situation;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus::{Prometheus, quicker};
use situation::{Panel, Plan, Situation, Verdict, fills_the_wal, frugal_postgres};

use crate::parking::QUICK;
use crate::support::dashboard;
use crate::support::own::{Own, free_port, pair};
use crate::support::servers::{Servers, shared};
use crate::support::within;
use crate::support::world::World;

const TWO_SECONDS: &str = "[[queues]]\nname = \"work\"\nmax_lag = \"2s\"\n[consumers]\nperiod = \"5s\"\n";
const NO_HURRY: &str = "[[queues]]\nname = \"work\"\nmax_lag = \"1h\"\n[consumers]\nperiod = \"5s\"\n";
const FIVE_A_SECOND: Duration = Duration::from_millis(200);
/// Of rates, in the rules' minutes: longer than the longest pause of a sampler that fails.
const INTERVAL: &str = "12m";
/// The one panel that no situation shows: it needs a client of the stream protocol.
const STREAMS: &str = "Messages a stream's slowest consumer";
const AT_ONCE: Duration = Duration::ZERO;

/// A database and a virtual host where the queue `work` takes what is placed.
async fn world(servers: &Servers, name: &str) -> World {
    let world = World::bare(servers.clone(), name).await;
    world.migrate().await;
    world.queue("work", "order.Placed").await;
    world
}

/// A relay with something to carry, and a consumer that keeps up.
async fn busy(plan: Plan, world: World) -> Situation {
    let mut situation = plan.start(world).await;
    situation.consumes("work", AT_ONCE, Verdict::Acknowledge).await;
    situation.writes("Placed", Duration::from_secs(1)).await;
    situation
}

/// The sick ones of the consumers.
async fn consumers(servers: &Servers) -> Vec<Situation> {
    let mut all = Vec::new();

    let plan = Plan::new("stopped", "PostriderQueueWithoutConsumers", ("Messages ready", |value| value >= 1.0));
    let world_of = world(servers, plan.name).await;
    let mut stopped = plan.watching(&world_of, TWO_SECONDS).start(world_of).await;
    stopped.writes("Placed", FIVE_A_SECOND).await;
    all.push(stopped);

    let plan = Plan::new("slow", "PostriderConsumerBehind", ("Lag by queue", |value| value > 2.0));
    let world_of = world(servers, plan.name).await;
    let mut slow = plan.watching(&world_of, TWO_SECONDS).start(world_of).await;
    slow.consumes("work", Duration::from_secs(1), Verdict::Acknowledge).await;
    slow.writes("Placed", FIVE_A_SECOND).await;
    all.push(slow);

    let plan = Plan::new("stuck", "PostriderConsumerStalled", ("Without any acknowledgement", |value| value > 10.0));
    let world_of = world(servers, plan.name).await;
    let mut stuck = plan.watching(&world_of, TWO_SECONDS).start(world_of).await;
    stuck.consumes("work", AT_ONCE, Verdict::Keep).await;
    stuck.writes("Placed", FIVE_A_SECOND).await;
    all.push(stuck);

    let plan = Plan::new(
        "rejecting",
        "PostriderDeadLetterQueue",
        ("Messages in the consumers' dead-letter queues", |value| value >= 1.0),
    );
    let world_of = World::bare(servers.clone(), plan.name).await;
    world_of.migrate().await;
    let to_dlq = r#"{"x-queue-type":"quorum","x-dead-letter-exchange":"","x-dead-letter-routing-key":"work.dlq"}"#;
    let declaration = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
    servers.management("PUT", &format!("/api/queues/{}/work.dlq", world_of.name), declaration).await;
    world_of.queue_with("work", "order.Placed", to_dlq).await;
    let mut rejecting = plan.watching(&world_of, NO_HURRY).start(world_of).await;
    rejecting.consumes("work", AT_ONCE, Verdict::Reject).await;
    rejecting.writes("Placed", Duration::from_secs(1)).await;
    all.push(rejecting);
    all
}

/// Those of the relay, on servers that they do not break.
async fn relays(servers: &Servers) -> Vec<Situation> {
    let mut all = Vec::new();
    let unbound = |world: &World| {
        let insert = "insert into outbox (aggregatetype, aggregateid, type, payload) select 'order', n::text, 'Unbound', '{}' from generate_series(1, 3) n";
        (world.database_url.clone(), insert)
    };
    let insert = async |(url, statement): (String, &str)| {
        crate::support::world::connect(&url).await.batch_execute(statement).await.unwrap();
    };

    let plan = Plan { name: "idle", alert: None, panel: None, settings: Vec::new(), file: "" };
    all.push(plan.start(world(servers, "idle").await).await);

    let plan =
        Plan::new("unroutable", "PostriderDeadLetters", ("Dead letters that wait", |value| value >= 3.0)).with(&QUICK);
    let situation = busy(plan, world(servers, "unroutable").await).await;
    insert(unbound(&situation.world)).await;
    all.push(situation);

    let small = ("POSTRIDER_LIMITS_MAX_MESSAGE_BYTES", "10KiB");
    let plan = Plan::new("poison", "PostriderDeadLetters", ("Dead letters that wait", |value| value >= 1.0))
        .with(&QUICK)
        .with(&[small]);
    let situation = busy(plan, world(servers, "poison").await).await;
    situation.world.insert("large", "Placed", &format!("{:?}", "x".repeat(20_000))).await;
    all.push(situation);

    let few = ("POSTRIDER_LIMITS_MAX_PARKED", "1");
    let plan =
        Plan::new("full", "PostriderStalled", ("Reading stopped", |value| value >= 1.0)).with(&QUICK).with(&[few]);
    let situation = busy(plan, world(servers, "full").await).await;
    insert(unbound(&situation.world)).await;
    all.push(situation);

    let hold = ("POSTRIDER_EVENT_ON_UNROUTABLE", "hold");
    let plan = Plan::new("behind", "PostriderBehind", ("Delivery lag", |value| value > 25.0)).with(&[hold]);
    let situation = busy(plan, world(servers, "behind").await).await;
    insert(unbound(&situation.world)).await;
    all.push(situation);

    let nobody = format!("http://guest:guest@127.0.0.1:{}", free_port());
    let mut plan = Plan::new("stale", "PostriderSamplesStale", ("Age of the oldest sample", |value| value > 10.0));
    plan.settings.push(("POSTRIDER_MANAGEMENT_URL", nobody));
    plan.file = NO_HURRY;
    all.push(busy(plan, world(servers, "stale").await).await);

    let plan = Plan::new("halted", "PostriderHalted", ("Halted", |value| value >= 1.0));
    let situation = busy(plan, world(servers, "halted").await).await;
    situation.drops_the_slot().await;
    all.push(situation);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn each_situation_lights_its_panel_and_its_alert_and_no_other() {
    let servers = shared().await;
    let (rabbitmq, postgres) =
        tokio::join!(async { tokio::task::spawn_blocking(|| Own::rabbitmq(&[])).await.unwrap() }, async {
            tokio::task::spawn_blocking(frugal_postgres).await.unwrap()
        },);
    let own_broker = Servers { database_url: servers.database_url.clone(), ..pair(&postgres, &rabbitmq) };
    let own_database = Servers { database_url: postgres.url("DATABASE_URL"), ..servers.clone() };

    let broker = Plan::new("broker", "PostriderBrokerBlocked", ("Broker blocks publishers", |value| value >= 1.0));
    let broker = busy(broker, world(&own_broker, "broker").await).await;
    let at_risk =
        Plan::new("at_risk", "PostriderSlotAtRisk", ("WAL left before the slot is lost, at risk", |share| share < 0.2));
    let at_risk = busy(at_risk, world(&own_database, "at_risk").await).await;
    let _holder = fills_the_wal(&at_risk.world).await;
    let mut situations = vec![broker, at_risk];
    situations.extend(relays(&servers).await);
    situations.extend(consumers(&servers).await);

    let targets: Vec<_> = situations.iter().map(|each| (each.job.clone(), each.address.clone())).collect();
    let prometheus = Prometheus::start(&targets);
    rabbitmq.block();

    for situation in &situations {
        let Some(alert) = situation.alert else { continue };
        lights(&prometheus, situation, alert).await;
    }
    let mut shown = BTreeSet::new();
    for situation in &situations {
        shown.extend(panels(&prometheus, situation, "", situation.panel).await);
        let expected: BTreeSet<String> = situation.alert.iter().map(|alert| (*alert).to_owned()).collect();
        assert_eq!(prometheus.fired(&situation.job).await, expected, "{}\n{}", situation.job, situation.log());
    }

    // The broker comes back, which ends the alert, and then goes for good.
    let broker = &situations[0];
    rabbitmq.unblock();
    quiet(&prometheus, broker).await;
    rabbitmq.command("stop", &["kill"]);
    lights(&prometheus, broker, "PostriderNoActiveReplica").await;
    assert_eq!(prometheus.firing(&broker.job).await, ["PostriderNoActiveReplica".to_owned()].into());
    let nobody: Panel = ("Replicas that carry", |replicas| replicas < 0.5);
    shown.extend(panels(&prometheus, broker, "-down", Some(nobody)).await);

    // Somebody begins to read the queue that nobody read: how long it will take shows while it drains, and the alert ends.
    let stopped = situations.iter_mut().find(|each| each.job == "postrider-stopped").unwrap();
    stopped.consumes("work", Duration::from_millis(50), Verdict::Acknowledge).await;
    let drains: Panel = ("Estimated time until the queue is empty", |seconds| seconds > 0.0);
    within(Prometheus::PATIENCE, "the panel shows how long the queue will take", async || {
        let seen = values(&prometheus, stopped).await;
        matching(&seen, drains).next().is_some().then_some(())
    })
    .await;
    shown.insert(drains.0.to_owned());
    quiet(&prometheus, stopped).await;

    // What no situation has ever shown is a panel that nobody has seen work.
    let all = dashboard::queries(INTERVAL).into_iter().map(|query| query.panel);
    let never: Vec<String> = all.filter(|panel| !shown.contains(panel) && !panel.starts_with(STREAMS)).collect();
    assert!(never.is_empty(), "panels without data in every situation: {never:?}");
}

/// Waits until no alert fires.
async fn quiet(prometheus: &Prometheus, situation: &Situation) {
    let what = format!("{} is well again", situation.job);
    within(Prometheus::PATIENCE, &what, async || prometheus.firing(&situation.job).await.is_empty().then_some(()))
        .await;
}

async fn lights(prometheus: &Prometheus, situation: &Situation, alert: &str) {
    let what = format!("{} lights {alert}", situation.job);
    let began = std::time::Instant::now();
    while !prometheus.firing(&situation.job).await.contains(alert) {
        let late = began.elapsed() > Prometheus::PATIENCE;
        assert!(!late, "not within {:?}: {what}\n{}", Prometheus::PATIENCE, situation.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

type Series = (serde_json::Value, f64);

/// What every panel of the dashboard shows of this relay, by title.
async fn values(prometheus: &Prometheus, situation: &Situation) -> BTreeMap<String, Vec<Series>> {
    let mut values: BTreeMap<String, Vec<Series>> = BTreeMap::new();
    for query in dashboard::queries_for(INTERVAL, &[("job", &situation.job)]) {
        values.entry(query.panel).or_default().extend(prometheus.query(&quicker(&query.expr)).await);
    }
    values
}

/// The values by which a panel shows what it should.
fn matching(values: &BTreeMap<String, Vec<Series>>, (panel, shows): Panel) -> impl Iterator<Item = f64> {
    let titled = values.iter().filter(move |(title, _)| title.starts_with(panel));
    titled.flat_map(|(_, series)| series).map(|(_, value)| *value).filter(move |value| shows(*value))
}

/// Gives the panels that show something, and sees to it that the expected one shows what it should.
async fn panels(
    prometheus: &Prometheus,
    situation: &Situation,
    phase: &str,
    expected: Option<Panel>,
) -> BTreeSet<String> {
    let values = values(prometheus, situation).await;
    if let Some(panel) = expected {
        assert!(matching(&values, panel).next().is_some(), "{}: {} shows {values:?}", situation.job, panel.0);
    }
    keep(&format!("{}{phase}", situation.job), &values);
    values.into_iter().filter(|(_, series)| !series.is_empty()).map(|(panel, _)| panel).collect()
}

/// Where POSTRIDER_TEST_SIGHT names a directory, what the dashboard shows is written there for a person to read.
fn keep(job: &str, values: &BTreeMap<String, Vec<Series>>) {
    let Ok(directory) = std::env::var("POSTRIDER_TEST_SIGHT") else { return };
    let mut text = String::new();
    for (panel, series) in values {
        text.push_str(&format!("{panel}\n"));
        for (labels, value) in series {
            text.push_str(&format!("    {value} {labels}\n"));
        }
    }
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(format!("{directory}/{job}.txt"), text).unwrap();
}
