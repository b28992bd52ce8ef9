//! Several relays on one slot: exactly one carries, and another takes over when it is gone or frozen (rule R6).

use std::time::{Duration, Instant};

use crate::proxy::Proxy;
use crate::support::account::{self, Account, Load};
use crate::support::consumer::Consumer;
use crate::support::own::{Own, free_port};
use crate::support::relay::Program;
use crate::support::servers::{self, Servers};
use crate::support::world::World;
use crate::support::{eventually, http};

/// What a takeover may take once the server knows that the active relay is gone.
const TAKEOVER: Duration = Duration::from_secs(5);

/// A relay whose `/status` is asked.
struct Replica {
    program: Program,
    admin: String,
}

impl Replica {
    fn start(world: &World, more: &[(&str, &str)]) -> Self {
        let admin = format!("127.0.0.1:{}", free_port());
        let listen = [("POSTRIDER_ADMIN_LISTEN", admin.as_str())];
        let program = Program::start(&world.settings(&[&listen, more].concat()), &["run"]);
        Replica { program, admin }
    }

    /// Nothing while it does not answer.
    async fn status(&self) -> Option<serde_json::Value> {
        let asked = tokio::time::timeout(Duration::from_secs(1), http::get(&self.admin, "/status"));
        serde_json::from_str(&asked.await.ok()?.ok()?.1).ok()
    }

    async fn carries(&self) -> bool {
        self.status().await.is_some_and(|status| status["role"] == "active" && status["session_up"] == true)
    }

    async fn stands_by(&self) -> bool {
        self.status().await.is_some_and(|status| status["standing_by"] == true)
    }

    async fn epoch(&self) -> Option<i64> {
        self.status().await?["relay_epoch"].as_i64()
    }

    async fn until_it_stands_by(&self) {
        eventually("it stands by", || async { self.stands_by().await.then_some(()) }).await;
    }
}

/// A database of the test's own with a load on it, and everything that was published so far.
struct Scene {
    postgres: Own,
    world: World,
    consumer: Consumer,
    account: Account,
    load: Option<Load>,
}

impl Scene {
    async fn new(name: &str, settings: &[&str]) -> Self {
        let postgres = Own::postgres(settings);
        let servers = Servers { database_url: postgres.url("DATABASE_URL"), ..servers::shared().await };
        let world = World::bare(servers, name).await;
        world.migrate().await;
        world.queue("all", "#").await;
        account::prepare(&world.sql).await;
        let consumer = Consumer::open(&world.amqp_url, "all").await;
        Scene { postgres, world, consumer, account: Account::default(), load: None }
    }

    /// Once there is a slot: what is committed before is not published.
    fn load(&mut self) {
        self.load = Some(Load::start(&self.world.database_url, 2, Duration::from_millis(5)));
    }

    /// The next message and the epoch of the relay that sent it.
    async fn next(&mut self) -> i64 {
        let arrival = self.consumer.next(Duration::from_secs(30)).await.expect("the load has not ended");
        let epoch = arrival.header("x-postrider-relay-epoch").unwrap().parse().unwrap();
        self.account.enter(arrival);
        epoch
    }

    /// Until a relay of a later epoch has published; gives that.
    async fn next_after(&mut self, epoch: i64) -> i64 {
        loop {
            let next = self.next().await;
            if next > epoch {
                return next;
            }
        }
    }

    async fn end(mut self) {
        self.load.take().unwrap().stop().await;
        self.account.settle(&self.world.sql, &mut self.consumer).await;
    }
}

/// The index of the one that carries; `None` unless exactly one does and the others stand by.
async fn the_one(replicas: &[Replica]) -> Option<usize> {
    let mut carrying = None;
    for (index, replica) in replicas.iter().enumerate() {
        if replica.carries().await {
            carrying = if carrying.is_none() { Some(index) } else { return None };
        } else if !replica.stands_by().await {
            return None;
        }
    }
    carrying
}

/// F04.
#[tokio::test(flavor = "multi_thread")]
async fn of_three_relays_one_carries_the_others_wait_quietly_and_a_killed_one_is_replaced_within_seconds() {
    let mut scene = Scene::new("three", &[]).await;
    let server_log = |scene: &Scene| scene.postgres.command("logs", &[]);
    let before = server_log(&scene).len();
    let mut replicas: Vec<Replica> = (0..3).map(|_| Replica::start(&scene.world, &[])).collect();
    eventually("one carries and the others stand by", || the_one(&replicas)).await;
    scene.load();
    let mut epoch = scene.next().await;
    for round in 0..3 {
        let active = eventually("one carries and the others stand by", || the_one(&replicas)).await;
        let began = Instant::now();
        replicas[active].program.kill();
        epoch = scene.next_after(epoch).await;
        let took = began.elapsed();
        println!("kill -9, round {round}: another one publishes after {:.2} s", took.as_secs_f64());
        assert!(took < TAKEOVER, "{took:?}");
        replicas[active] = Replica::start(&scene.world, &[]);
    }
    eventually("one carries and the others stand by", || the_one(&replicas)).await;
    // Long enough for several looks of each standby.
    for _ in 0..500 {
        assert_eq!(scene.next().await, epoch, "only the one that carries publishes");
    }
    for replica in &replicas {
        let log = replica.program.log();
        assert!(log.matches("standing by").count() <= 1, "said once: {log}");
    }
    let log = server_log(&scene).split_off(before);
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR:") || line.contains("FATAL:")).collect();
    assert!(errors.is_empty(), "standbys leave no errors in the server's log: {errors:#?}");
    let connections = scene
        .world
        .count("select count(*) from pg_stat_activity where datname = current_database() and application_name like 'postrider%'")
        .await;
    assert!(connections <= 9, "three for each relay: {connections}");
    scene.end().await;
}

/// F03.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_relay_is_replaced_when_the_server_has_given_it_up_and_publishes_nothing_more() {
    let sender_timeout = Duration::from_secs(5);
    let mut scene = Scene::new("frozen", &["-c", "wal_sender_timeout=5s"]).await;
    let frozen = Replica::start(&scene.world, &[]);
    eventually("it carries", || async { frozen.carries().await.then_some(()) }).await;
    scene.load();
    let epoch = scene.next().await;
    let other = Replica::start(&scene.world, &[]);
    other.until_it_stands_by().await;
    for _ in 0..100 {
        scene.next().await;
    }

    let began = Instant::now();
    frozen.program.signal("-STOP");
    let next = scene.next_after(epoch).await;
    let took = began.elapsed();
    println!("frozen: another one publishes after {:.2} s", took.as_secs_f64());
    assert!(took < sender_timeout + TAKEOVER, "{took:?}");
    for _ in 0..500 {
        assert_eq!(scene.next().await, next);
    }

    frozen.program.signal("-CONT");
    frozen.until_it_stands_by().await;
    // What it had written before it noticed may still be on its way into the queue: its window at most. Then it is silent.
    let window = postrider::config::Limits::default().window;
    let (mut late, mut silent) = (0, 0);
    while silent < 500 {
        let ours = scene.next().await == next;
        silent = if ours { silent + 1 } else { 0 };
        late += usize::from(!ours);
        assert!(late <= window, "the relay that lost the slot goes on publishing");
    }
    println!("{late} publishes of the frozen relay came after it was thawed");
    assert!(other.carries().await && frozen.stands_by().await);
    assert_eq!(other.epoch().await, Some(next));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_without_a_broker_leaves_the_slot_to_one_that_has_it() {
    let world = World::new("brokerless").await;
    world.queue("all", "#").await;
    let amqp = url::Url::parse(&world.amqp_url).unwrap();
    let proxy = Proxy::amqp(&format!("{}:{}", amqp.host_str().unwrap(), amqp.port().unwrap())).await;
    let mut through = amqp.clone();
    through.set_ip_host("127.0.0.1".parse().unwrap()).unwrap();
    through.set_port(Some(proxy.port)).unwrap();

    let mut first = Replica::start(&world, &[]);
    eventually("it carries", || async { first.carries().await.then_some(()) }).await;
    let cut_off = Replica::start(&world, &[("AMQP_URL", through.as_str())]);
    cut_off.until_it_stands_by().await;
    // Its patience with a broker that is away (10 s) is not over when the slot becomes free.
    proxy.serve(false);
    proxy.cut();
    let without = async |replica: &Replica| Some(replica.status().await?["broker_up"] == false);
    eventually("it misses its broker", || async { without(&cut_off).await?.then_some(()) }).await;
    first.program.kill();
    let began = Instant::now();
    while began.elapsed() < TAKEOVER {
        assert!(!cut_off.carries().await, "a relay that cannot publish has taken the slot");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let third = Replica::start(&world, &[]);
    eventually("the one with a broker carries", || async { third.carries().await.then_some(()) }).await;
    drop(third);
    proxy.serve(true);
    eventually("with its broker back it takes the slot", || async { cut_off.carries().await.then_some(()) }).await;
    world.insert("1", "Placed", "{}").await;
    Consumer::open(&world.amqp_url, "all").await.take(1).await;
}
