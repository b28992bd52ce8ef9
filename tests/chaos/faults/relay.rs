//! Faults of the relay itself.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::sleep;

use crate::Outcome;
use crate::chaos::Chaos;

/// Failpoints with a number up to which the pass is chosen at which the relay dies: some are passed for each row, some once a second.
const POINTS: [(&str, u32); 12] = [
    ("Begin", 60),
    ("Row", 500),
    ("Commit", 60),
    ("Published", 500),
    ("Confirmed", 500),
    ("Resolved", 4),
    ("Recorded", 4),
    ("Acknowledged", 4),
    ("Parking", 2),
    ("Parked", 2),
    ("Released", 2),
    ("Removed", 2),
];

/// Of a relay that was killed, until it carries.
const START: Duration = Duration::from_secs(20);

pub(super) async fn inject(name: &str, chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
    match name {
        "failpoint" => failpoints(chaos, rng, length).await,
        "kill" => kills(chaos, rng, length, 0.2..3.0).await,
        "freeze" => return freeze(chaos, rng).await,
        "terminate" => terminate(chaos, rng, length).await,
        _ => return Err("unknown".into()),
    }
    Ok(())
}

/// SIGKILL again and again; `pause` is in seconds.
pub(crate) async fn kills(chaos: &Chaos, rng: &mut StdRng, length: Duration, pause: std::ops::Range<f64>) {
    let began = Instant::now();
    loop {
        sleep(Duration::from_secs_f64(rng.random_range(pause.clone()))).await;
        if began.elapsed() >= length {
            return;
        }
        chaos.relay.kill();
    }
}

async fn failpoints(chaos: &Chaos, rng: &mut StdRng, length: Duration) {
    let began = Instant::now();
    while began.elapsed() < length {
        let Some((point, most)) = POINTS.choose(rng) else { return };
        let before = chaos.relay.aborts();
        chaos.relay.plant(format!("{point}@{}", rng.random_range(1..=*most)));
        let carries = async || chaos.relay.status().await.is_ok_and(|status| status.role == "active");
        let dead = || chaos.relay.aborts() > before;
        // Its chance begins once it carries, which takes a while after each death.
        chaos
            .until("the relay carries or has died", START, async || (dead() || carries().await).then_some(()))
            .await
            .ok();
        let planted = Instant::now();
        // It may never come by: nothing is parked, nothing is released.
        while chaos.relay.aborts() == before && planted.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(50)).await;
        }
    }
    // One that is still planted must not go off later.
    chaos.relay.kill();
}

async fn freeze(chaos: &Chaos, rng: &mut StdRng) -> Outcome<()> {
    let second = chaos.second_relay().await?;
    chaos.relay.signal("-STOP");
    sleep(Duration::from_secs(rng.random_range(20..30))).await;
    chaos.relay.signal("-CONT");
    // It finds that it has lost the slot, and stands by.
    sleep(Duration::from_secs(3)).await;
    second.kill();
    chaos.add_second(&second);
    second.end();
    Ok(())
}

async fn terminate(chaos: &Chaos, rng: &mut StdRng, length: Duration) {
    let began = Instant::now();
    while began.elapsed() < length {
        chaos.relay.signal("-TERM");
        if rng.random_bool(0.3) {
            sleep(Duration::from_millis(rng.random_range(1..300))).await;
            chaos.relay.signal("-TERM");
        }
        sleep(Duration::from_secs(4)).await;
    }
    // One that still drains would hold up what comes next by its `drain_timeout`.
    sleep(Duration::from_secs(1)).await;
}
