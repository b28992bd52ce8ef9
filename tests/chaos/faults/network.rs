//! Faults of the relay's two connections, by the proxies that they pass.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::Outcome;
use crate::broker::TAP;
use crate::chaos::Chaos;
use crate::proxy::{Direction, Mischief, Proxy, Which};

pub(super) async fn inject(name: &str, chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
    let (proxy, what) = match name.split_once('-') {
        Some(("amqp", what)) => (&chaos.amqp_proxy, what),
        Some(("sql", what)) => (&chaos.sql_proxy, what),
        _ => return Err("unknown".into()),
    };
    let done = misbehave(proxy, what, chaos, rng, length).await;
    proxy.clear();
    done
}

async fn misbehave(proxy: &Proxy, what: &str, chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
    let directions = [Direction::ToServer, Direction::ToClient, Direction::Both];
    let direction = directions[rng.random_range(0..directions.len())];
    match what {
        "stall" => proxy.set(Mischief::Stall(direction)),
        "slices" => proxy.set(Mischief::Slices),
        "latency" => proxy.set(Mischief::Latency(Duration::from_millis(rng.random_range(50..500)))),
        "heartbeats" => proxy.set(Mischief::SwallowHeartbeats(direction)),
        "lost-acks" if rng.random() => proxy.set(Mischief::DropAcks(Which::All)),
        "lost-acks" => proxy.set(Mischief::DropAcks(Which::Next(rng.random_range(1..20)))),
        "shuffle" => return shuffle(proxy, chaos, length).await,
        "half-close" => return again_and_again(length, || proxy.set(Mischief::HalfClose(direction))).await,
        "cut" => return again_and_again(length, || proxy.set(Mischief::CutAfter(rng.random_range(1..20_000)))).await,
        _ => return Err("unknown".into()),
    }
    sleep(length).await;
    Ok(())
}

async fn again_and_again(length: Duration, mut once: impl FnMut()) -> Outcome<()> {
    let began = Instant::now();
    while began.elapsed() < length {
        once();
        sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

/// Confirms late, merged and out of order, while one in eight events has no queue: each return is decided rightly, or an event
/// without a queue counts as delivered.
async fn shuffle(proxy: &Proxy, chaos: &Chaos, length: Duration) -> Outcome<()> {
    let broker = &chaos.broker;
    let bound: Vec<String> = (1..8).map(|kind| format!("account.Changed{kind}")).collect();
    for key in &bound {
        broker.bind(TAP, key).await?;
    }
    broker.unbind(TAP, "#").await?;
    proxy.shuffle();
    sleep(length).await;
    proxy.clear();
    broker.bind(TAP, "#").await?;
    for key in &bound {
        broker.unbind(TAP, key).await?;
    }
    Ok(())
}
