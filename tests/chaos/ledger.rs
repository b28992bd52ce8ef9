//! The result of a run, for people and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::Outcome;
use crate::checks::{Counts, Verdict};
use crate::evidence::Event;

#[derive(Debug, Serialize)]
pub(crate) struct Ledger {
    pub seed: u64,
    pub seconds: u64,
    pub engine: String,
    pub bug: Option<String>,
    pub passed: bool,
    pub counts: Counts,
    /// By SIGKILL.
    pub kills: u64,
    /// Deaths at failpoints.
    pub aborts: u64,
    pub max_parked: u64,
    pub max_rss_mib: f64,
    pub rss_bound_mib: f64,
    pub verdicts: Vec<Verdict>,
    pub events: Vec<Event>,
}

impl Ledger {
    pub(crate) fn save(&self, path: &Path) -> Outcome<()> {
        Ok(std::fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }

    pub(crate) fn text(&self) -> String {
        let counts = &self.counts;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "  {name:<22}{value}").ok();
        };
        line("seed", format!("{} ({} s, {})", self.seed, self.seconds, self.engine));
        if let Some(bug) = &self.bug {
            line("planted bug", bug.clone());
        }
        line("transactions", format!("{}, {} with an unknown outcome", counts.transactions, counts.unknown));
        line("attempted", format!("{} rows", counts.attempted));
        line("committed", counts.committed.to_string());
        line("delivered", counts.delivered.to_string());
        line("parked", format!("{} at the end, {} at most", counts.parked, self.max_parked));
        line("lost", counts.lost.to_string());
        line("unexpected", counts.unexpected.to_string());
        line("duplicated", format!("{} by the relay, {} by the broker", counts.duplicated, counts.redelivered));
        line("reordered", format!("{} keys", counts.reordered));
        line("relay killed", format!("{} times by SIGKILL, {} times at a failpoint", self.kills, self.aborts));
        line("largest memory", format!("{:.1} MiB (bound {:.0})", self.max_rss_mib, self.rss_bound_mib));
        text.push_str("  faults, and the time until everything was delivered:\n");
        for event in &self.events {
            let recovery =
                event.recovery.map_or_else(|| "not recovered".to_owned(), |seconds| format!("{seconds:.1} s"));
            writeln!(text, "    {:>7.1} to {:>6.1} s  {:<44} {recovery}", event.from, event.to, event.what).ok();
        }
        for verdict in &self.verdicts {
            let word = if verdict.passed { "ok  " } else { "FAIL" };
            writeln!(text, "  {word} {:<14} {}", verdict.check, verdict.says).ok();
        }
        text
    }
}
