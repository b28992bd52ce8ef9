//! Relays: inside the test's process, or as the program itself.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postrider::config::Config;
use postrider::metrics::Metrics;
use postrider::status::{Snapshot, Status};
use tokio::sync::oneshot;

use super::world::World;
use super::{PATIENCE, eventually, unique, within};

/// `postrider::relay::run` on a thread of its own, as `main` runs it.
pub(crate) struct Relay {
    pub status: Status,
    pub metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts and waits until it carries.
    pub(crate) async fn carrying(world: &World, more: &[(&str, &str)]) -> Self {
        Self::carrying_on(world.config(more)).await
    }

    /// The same with any configuration.
    pub(crate) async fn carrying_on(config: Arc<Config>) -> Self {
        let relay = Self::start(config);
        relay.until("the relay carries", Snapshot::carrying).await;
        relay
    }

    pub(crate) fn start(config: Arc<Config>) -> Self {
        let routes: Vec<String> = config.routes.iter().map(|route| route.name.clone()).collect();
        let metrics = Metrics::new(&config.slot, &routes).unwrap();
        let status = Status::new(&config.slot, &config.publication);
        let (stop, stopped) = oneshot::channel::<()>();
        let (their_metrics, their_status) = (metrics.clone(), status.clone());
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let shutdown = async {
                stopped.await.ok();
            };
            runtime.block_on(postrider::relay::run(config, their_metrics, their_status, None, shutdown)).unwrap();
        };
        Relay { status, metrics, stop: Some(stop), thread: Some(std::thread::spawn(run)) }
    }

    /// Waits for a state of the relay. Panics with what it says of itself, and what it said on the way.
    pub(crate) async fn until(&self, what: &str, fact: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let began = Instant::now();
        let mut said: Vec<String> = Vec::new();
        loop {
            let snapshot = self.status.snapshot();
            if fact(&snapshot) {
                return snapshot;
            }
            let problem = snapshot.problem.as_deref().unwrap_or("no problem");
            if said.last().is_none_or(|last| !last.ends_with(problem)) {
                said.push(format!("after {:.1?}: {problem}", began.elapsed()));
            }
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; {}\n{snapshot:#?}", said.join("\n"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it does not carry, and gives the reason.
    pub(crate) async fn problem(&self) -> String {
        self.until("the relay has a problem", |snapshot| snapshot.problem.is_some()).await.problem.unwrap()
    }

    /// The value of a metric without labels of its own, by its line's start.
    pub(crate) fn metric(&self, start: &str) -> Option<f64> {
        let text = self.metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with(start))?.to_owned();
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Drains and ends. Panics if the relay does.
    pub(crate) async fn stop(mut self) {
        self.stop.take();
        let thread = self.thread.take().unwrap();
        within(Duration::from_secs(25), "the relay stops", || async { thread.is_finished().then_some(()) }).await;
        thread.join().unwrap();
    }
}

/// The program, with its log in a file.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    pub(crate) fn command(settings: &[(String, String)], arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        // What the tests' own environment says of servers is not for the program.
        for name in ["DATABASE_URL", "AMQP_URL"] {
            command.env_remove(name);
        }
        command.args(arguments).envs(settings.iter().cloned()).stdin(Stdio::null());
        command
    }

    pub(crate) fn start(settings: &[(String, String)], arguments: &[&str]) -> Self {
        let log = std::env::temp_dir().join(format!("{}.log", unique("postrider")));
        let file = File::create(&log).unwrap();
        let child = Self::command(settings, arguments).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Program { child, log }
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Resident memory in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most that it was.
    pub(crate) fn peak_rss_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) async fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let log = self.log.clone();
        let what = format!("the program ends (log in {})", log.display());
        let began = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for a text in the log.
    pub(crate) async fn says(&self, text: &str) {
        eventually(&format!("the log says `{text}`"), || async { self.log().contains(text).then_some(()) }).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- log of the program\n{}---", self.log());
        }
        std::fs::remove_file(&self.log).ok();
    }
}
