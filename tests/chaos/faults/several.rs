//! Faults that strike several sides at once, or for longer than others: what the bugs of docs/mutants.md need to show themselves.

use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::Outcome;
use crate::broker::TAP;
use crate::chaos::Chaos;

/// Longer than `lock_timeout` of the relay's sessions and its hold together, so that parking fails while acknowledging goes on.
const LOCKED: Duration = Duration::from_secs(14);
/// Twice `wal_sender_timeout` (10 s, see `database.rs`), and more.
const LONG_ALARM: Duration = Duration::from_secs(25);
/// What comes while nothing may go: many times the relay's windows.
const BACKLOG: (usize, usize, usize) = (32, 500, 16 * 1024);
/// The first publish tells the relay that it is blocked, and ten seconds later its session ends.
const BACKLOG_ALARM: Duration = Duration::from_secs(12);

pub(super) async fn inject(name: &str, chaos: &Chaos, rng: &mut StdRng, length: Duration) -> Outcome<()> {
    match name {
        "tap-overflow" => tap_overflow(chaos, length).await,
        "parking-locked" => parking_locked(chaos).await,
        "long-alarm" => {
            block(chaos).await?;
            sleep(LONG_ALARM).await;
            unblock(chaos).await
        }
        "backlog" => backlog(chaos, rng).await,
        _ => Err("unknown".into()),
    }
}

/// Nobody consumes, and the tap takes five messages more: what it nacks is nowhere.
async fn tap_overflow(chaos: &Chaos, length: Duration) -> Outcome<()> {
    chaos.consumer.pause(true);
    chaos.broker.limit(TAP, 5).await?;
    sleep(length).await;
    chaos.broker.unlimit().await?;
    chaos.consumer.pause(false);
    Ok(())
}

/// Everything is unroutable, so that it is to be parked, and the dead letters cannot be written. Then the relay dies.
async fn parking_locked(chaos: &Chaos) -> Outcome<()> {
    let client = chaos.database.connect().await?;
    client.batch_execute("begin; lock table postrider.dead_letters in access exclusive mode").await?;
    chaos.broker.unbind(TAP, "#").await?;
    sleep(LOCKED).await;
    chaos.relay.kill();
    client.batch_execute("rollback").await?;
    chaos.broker.bind(TAP, "#").await
}

/// A quarter of a gigabyte is committed while the broker takes nothing.
async fn backlog(chaos: &Chaos, rng: &mut StdRng) -> Outcome<()> {
    let (transactions, rows, bytes) = BACKLOG;
    chaos.relay.stay_down();
    for _ in 0..transactions {
        chaos.commit_backlog(rng, rows, bytes).await?;
    }
    block(chaos).await?;
    chaos.relay.go_on();
    sleep(BACKLOG_ALARM).await;
    unblock(chaos).await
}

async fn block(chaos: &Chaos) -> Outcome<()> {
    chaos.broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await
}

async fn unblock(chaos: &Chaos) -> Outcome<()> {
    chaos.broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await
}
