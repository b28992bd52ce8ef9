//! The relay as a child process, and a keeper that starts it again when it dies, as a service manager would.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::task::JoinHandle;

use crate::evidence::Evidence;
use crate::servers::free_port;
use crate::{Outcome, database, http};

/// Between a death and the next start.
const RESTART: Duration = Duration::from_millis(200);

/// Settings of every relay of a run: short times, so that much happens in a minute.
const SETTINGS: [(&str, &str); 7] = [
    ("POSTRIDER_SLOT", database::SLOT),
    ("POSTRIDER_LIMITS_HEARTBEAT_INTERVAL", "1s"),
    ("POSTRIDER_LIMITS_RETRY_MIN", "200ms"),
    ("POSTRIDER_LIMITS_RETRY_MAX", "2s"),
    // So short that faults of ten seconds park events.
    ("POSTRIDER_LIMITS_HOLD_FOR", "3s"),
    ("POSTRIDER_LIMITS_CONFIRM_TIMEOUT", "10s"),
    ("POSTRIDER_LOG_FORMAT", "json"),
];

/// What is read of `/status`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Status {
    pub role: String,
    pub problem: Option<String>,
    pub unresolved_events: u64,
    pub held_keys: u64,
}

/// One relay, kept alive.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
    /// Of its admin listener; the same after each restart.
    pub address: String,
}

struct Shared {
    settings: Vec<(String, String)>,
    log: PathBuf,
    pids: PathBuf,
    child: Mutex<Option<Child>>,
    /// Started again when it is gone.
    wanted: AtomicBool,
    /// For the next start only.
    failpoint: Mutex<Option<String>>,
    pub counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    kills: AtomicU64,
    aborts: AtomicU64,
    /// It ended, and nobody had asked for it.
    surprises: AtomicU64,
    max_rss_kib: AtomicU64,
    expected_end: AtomicBool,
}

impl Relay {
    pub(crate) async fn start(
        name: &str,
        evidence: &Evidence,
        database_url: &str,
        amqp_url: &str,
        more: &[(String, String)],
    ) -> Outcome<Self> {
        let address = format!("127.0.0.1:{}", free_port().await?);
        let own =
            [("DATABASE_URL", database_url), ("AMQP_URL", amqp_url), ("POSTRIDER_ADMIN_LISTEN", address.as_str())];
        let settings = own.iter().chain(&SETTINGS).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let shared = Arc::new(Shared {
            settings: settings.chain(more.iter().cloned()).collect(),
            log: evidence.file(&format!("{name}.log")),
            pids: evidence.file("relays.pids"),
            child: Mutex::new(None),
            wanted: AtomicBool::new(true),
            failpoint: Mutex::new(None),
            counts: Counts::default(),
        });
        shared.spawn()?;
        let keeper = tokio::spawn(keep(Arc::clone(&shared)));
        Ok(Relay { shared, keeper, address })
    }

    /// SIGKILL. It is started again at once.
    pub(crate) fn kill(&self) {
        if let Some(child) = self.shared.child().as_mut() {
            self.shared.counts.expected_end.store(true, Ordering::Relaxed);
            if child.kill().is_ok() {
                self.shared.counts.kills.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Lets it die at `failpoint` the next time that it is there: it has to be started anew for that.
    pub(crate) fn plant(&self, failpoint: String) {
        *self.shared.failpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(failpoint);
        self.kill();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let Some(pid) = self.pid() else { return };
        if signal == "-TERM" {
            self.shared.counts.expected_end.store(true, Ordering::Relaxed);
        }
        Command::new("kill").args([signal, &pid.to_string()]).status().ok();
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.shared.child().as_ref().map(Child::id)
    }

    /// Keeps it down until [`Self::go_on`].
    pub(crate) fn stay_down(&self) {
        self.shared.wanted.store(false, Ordering::Relaxed);
        self.kill();
    }

    pub(crate) fn go_on(&self) {
        self.shared.wanted.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn status(&self) -> Outcome<Status> {
        let (_, body) = http::request("GET", &self.address, "/status", None, "").await?;
        Ok(serde_json::from_str(&body)?)
    }

    /// Of a metric's lines.
    pub(crate) async fn metric_sum(&self, name: &str) -> Outcome<f64> {
        let (_, body) = http::request("GET", &self.address, "/metrics", None, "").await?;
        let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        Ok(body.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    pub(crate) fn kills(&self) -> u64 {
        self.shared.counts.kills.load(Ordering::Relaxed)
    }

    /// Deaths at failpoints.
    pub(crate) fn aborts(&self) -> u64 {
        self.shared.counts.aborts.load(Ordering::Relaxed)
    }

    pub(crate) fn surprises(&self) -> u64 {
        self.shared.counts.surprises.load(Ordering::Relaxed)
    }

    pub(crate) fn max_rss_kib(&self) -> u64 {
        self.shared.counts.max_rss_kib.load(Ordering::Relaxed)
    }

    /// SIGKILL, for good.
    pub(crate) fn end(&self) {
        self.keeper.abort();
        if let Some(mut child) = self.shared.child().take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self) -> Outcome<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.arg("run").envs(self.settings.iter().cloned()).stdin(Stdio::null());
        if let Some(failpoint) = self.failpoint.lock().unwrap_or_else(PoisonError::into_inner).take() {
            command.env("POSTRIDER_FAILPOINT", failpoint);
        }
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut pids = OpenOptions::new().create(true).append(true).open(&self.pids)?;
        std::io::Write::write_all(&mut pids, format!("{}\n", child.id()).as_bytes())?;
        *self.child() = Some(child);
        Ok(())
    }

    fn measure(&self, pid: u32) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()) {
            self.counts.max_rss_kib.fetch_max(kib, Ordering::Relaxed);
        }
    }

    /// Whether it has ended since the last look, and why.
    fn look(&self) {
        let mut child = self.child();
        let Some(running) = child.as_mut() else { return };
        let pid = running.id();
        let Ok(Some(status)) = running.try_wait() else {
            drop(child);
            return self.measure(pid);
        };
        *child = None;
        drop(child);
        let expected = self.counts.expected_end.swap(false, Ordering::Relaxed);
        // SIGABRT.
        if std::os::unix::process::ExitStatusExt::signal(&status) == Some(6) && self.died_at_a_failpoint() {
            self.counts.aborts.fetch_add(1, Ordering::Relaxed);
        } else if !expected {
            self.counts.surprises.fetch_add(1, Ordering::Relaxed);
            eprintln!("chaos: a relay ended by itself: {status}; see {}", self.log.display());
        }
    }

    fn died_at_a_failpoint(&self) -> bool {
        let text = File::open(&self.log).ok().and_then(tail).unwrap_or_default();
        text.lines().next_back().is_some_and(|line| line.starts_with("failpoint "))
    }
}

/// The end of a log.
fn tail(mut file: File) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4_096))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

async fn keep(shared: Arc<Shared>) {
    let mut gone_since: Option<Instant> = None;
    loop {
        shared.look();
        if shared.child().is_some() {
            gone_since = None;
        } else if gone_since.get_or_insert_with(Instant::now).elapsed() >= RESTART
            && shared.wanted.load(Ordering::Relaxed)
            && let Err(error) = shared.spawn()
        {
            eprintln!("chaos: cannot start the relay: {error}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
