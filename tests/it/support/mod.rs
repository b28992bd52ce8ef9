//! What the tests share: servers, a world of its own for each test, relays, consumers, and waiting for facts.

pub(crate) mod account;
pub(crate) mod collector;
pub(crate) mod consumer;
pub(crate) mod dashboard;
pub(crate) mod http;
pub(crate) mod own;
pub(crate) mod parked;
pub(crate) mod relay;
pub(crate) mod servers;
pub(crate) mod world;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a shared machine with two cores; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `fact` gives a value. Panics with `what` after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, fact: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, fact).await
}

/// Polls until `fact` gives a value. Panics with `what` after `deadline`.
pub(crate) async fn within<T>(deadline: Duration, what: &str, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = fact().await {
            return value;
        }
        assert!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a command when this process is gone: the test harness ends by `exit`, which runs no destructors.
#[allow(clippy::zombie_processes, reason = "it ends after this process")]
fn at_exit(command: &[&str]) {
    let script = "pid=$1; shift; while kill -0 \"$pid\" 2>/dev/null; do sleep 1; done; exec \"$@\"";
    Command::new("sh")
        .args(["-c", script, "sh", &std::process::id().to_string()])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
}

/// A short name that no other test of this or another run uses.
pub(crate) fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{name}_{}_{number}", std::process::id())
}
