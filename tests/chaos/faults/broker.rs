//! Faults of RabbitMQ.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::Outcome;
use crate::broker::{PASSWORD, TAP};
use crate::chaos::Chaos;

/// The queue that overflows.
const NARROW: &str = "narrow";
const QUORUM: &str = r#"{"x-queue-type":"quorum"}"#;

pub(super) async fn inject(name: &str, chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
    let broker = &chaos.broker;
    match name {
        "overflow" => overflow(chaos, rng, length).await,
        "unbind" => {
            broker.unbind(TAP, "#").await?;
            sleep(length).await;
            broker.bind(TAP, "#").await
        }
        "queue" => {
            broker.queue(NARROW, QUORUM).await?;
            broker.bind(NARROW, "#").await?;
            sleep(length).await;
            broker.delete_queue(NARROW).await
        }
        "exchange" => {
            broker.delete_exchange().await?;
            sleep(length).await;
            broker.declare_exchange().await?;
            broker.bind(TAP, "#").await
        }
        "permission" => {
            broker.revoke().await?;
            sleep(length).await;
            broker.grant().await
        }
        "password" => {
            broker.set_password("another-one-never-printed").await?;
            broker.close_connections().await?;
            sleep(length).await;
            broker.set_password(PASSWORD).await
        }
        "close-connection" => {
            let began = Instant::now();
            while began.elapsed() < length {
                broker.close_connections().await?;
                sleep(Duration::from_secs(2)).await;
            }
            Ok(())
        }
        "memory-alarm" => {
            broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await?;
            sleep(length + Duration::from_secs(5)).await;
            broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await
        }
        "disk-alarm" => {
            for _ in 0..2 {
                broker.ctl(&["set_disk_free_limit", "10000000000000"]).await?;
                sleep(length / 2).await;
                broker.ctl(&["set_disk_free_limit", "50000000"]).await?;
                sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        }
        "rabbit-kill" => {
            broker.server.command("stop", &["kill"]).await?;
            sleep(length / 2).await;
            broker.server.command("start-again", &[]).await.map(drop)
        }
        "rabbit-pause" => {
            broker.server.command("pause", &[]).await?;
            sleep(length).await;
            broker.server.command("unpause", &[]).await.map(drop)
        }
        _ => Err("unknown".into()),
    }
}

/// Three of eight types of events go to a queue of ten, too, which is emptied in bursts. It nacks while the tap accepts.
async fn overflow(chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
    let broker = &chaos.broker;
    broker.queue(NARROW, r#"{"x-queue-type":"quorum","x-max-length":10,"x-overflow":"reject-publish"}"#).await?;
    let keys = ["account.Changed1", "account.Changed3", "account.Changed5"];
    for key in keys {
        broker.bind(NARROW, key).await?;
    }
    let began = Instant::now();
    while began.elapsed() < length {
        sleep(Duration::from_millis(rng.random_range(300..2_500))).await;
        broker.purge(NARROW).await?;
    }
    for key in keys {
        broker.unbind(NARROW, key).await?;
    }
    broker.delete_queue(NARROW).await
}
