//! What is looked at all the time: the slot's position, and what the relays say over HTTP.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Outcome;
use crate::database::{self, SLOT as SLOT_NAME};
use crate::evidence::{Evidence, Lines, SCRAPES, SLOT, SlotSample};
use crate::http;

pub(crate) struct Samplers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    began: Instant,
    stop: AtomicBool,
    slot: Lines,
    url: String,
    max_parked: AtomicU64,
    /// For which PostgreSQL has heard nothing over a connection that streams, and when that was in seconds.
    longest_silence: Mutex<(Duration, f64)>,
    /// `/status` was seen to say so.
    halted: AtomicBool,
}

impl Samplers {
    pub(crate) fn start(url: &str, addresses: Vec<String>, evidence: &Evidence, began: Instant) -> Outcome<Self> {
        let shared = Arc::new(Shared {
            began,
            stop: AtomicBool::new(false),
            slot: evidence.lines(SLOT)?,
            url: url.to_owned(),
            max_parked: AtomicU64::new(0),
            longest_silence: Mutex::default(),
            halted: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(sample_slot(Arc::clone(&shared)));
        tasks.spawn(scrape(Arc::clone(&shared), addresses, evidence.clone()));
        Ok(Samplers { shared, tasks })
    }

    /// Most dead letters at a time.
    pub(crate) fn max_parked(&self) -> u64 {
        self.shared.max_parked.load(Ordering::Relaxed)
    }

    /// And after how many seconds of the run.
    pub(crate) fn longest_silence(&self) -> (Duration, f64) {
        *self.shared.longest_silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn halted(&self) -> bool {
        self.shared.halted.load(Ordering::Relaxed)
    }

    pub(crate) async fn stop(&mut self) -> Outcome<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task?;
        }
        self.shared.slot.flush()
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

async fn sample_slot(shared: Arc<Shared>) {
    while !shared.stopped() {
        // The server may be down: that is no sample.
        sample_until_it_breaks(&shared).await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn sample_until_it_breaks(shared: &Shared) -> Outcome<()> {
    let client = database::connect(&shared.url).await?;
    let statement = client
        .prepare(
            "select pg_postmaster_start_time()::text, (confirmed_flush_lsn - '0/0')::text,
                (select count(*) from postrider.dead_letters),
                (select (extract(epoch from clock_timestamp() - reply_time) * 1000)::int8
                 from pg_stat_replication where pid = active_pid)
             from pg_replication_slots where slot_name = $1",
        )
        .await?;
    while !shared.stopped() {
        if let Some(row) = client.query_opt(&statement, &[&SLOT_NAME]).await? {
            let confirmed = row.get::<_, Option<String>>(1).unwrap_or_default().parse().unwrap_or_default();
            let at = shared.began.elapsed().as_secs_f64();
            shared.slot.add(&SlotSample { at, server_started: row.get(0), confirmed })?;
            shared.max_parked.fetch_max(row.get::<_, i64>(2).unsigned_abs(), Ordering::Relaxed);
            let silence: i64 = row.get::<_, Option<i64>>(3).unwrap_or_default().max(0);
            let silence = Duration::from_millis(silence.unsigned_abs());
            let mut longest = shared.longest_silence.lock().unwrap_or_else(PoisonError::into_inner);
            if silence > longest.0 {
                *longest = (silence, at);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Everything that the admin listeners say is kept, so that secrets can be looked for in it.
async fn scrape(shared: Arc<Shared>, addresses: Vec<String>, evidence: Evidence) {
    while !shared.stopped() {
        for address in &addresses {
            for path in ["/metrics", "/status"] {
                let Ok((code, body)) = http::request("GET", address, path, None, "").await else { continue };
                if path == "/status" && body.contains(r#""role":"halted""#) {
                    shared.halted.store(true, Ordering::Relaxed);
                }
                let file = OpenOptions::new().create(true).append(true).open(evidence.file(SCRAPES));
                if let Ok(mut file) = file {
                    let at = shared.began.elapsed().as_secs_f64();
                    write!(file, "\n--- {at:.1} {address}{path} {code}\n{body}").ok();
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
