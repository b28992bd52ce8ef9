//! The snapshot that is being taken, seen from the session: what its reader says, and what it is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::carrier::Carrier;
use crate::config::Config;
use crate::error;
use crate::metrics::Metrics;
use crate::postgres::snapshot::{Heard, Reader, Request, Said};
use crate::postgres::state::StateError;

/// How often it is looked for a snapshot to take, and after one that failed.
const LOOK: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(10);

/// At most one is taken at a time.
pub(super) struct Snapshots {
    config: Arc<Config>,
    metrics: Metrics,
    epoch: i64,
    /// Tables are captured in this session.
    enabled: bool,
    running: Option<Running>,
    look_at: Instant,
    /// That they cannot be looked for was said.
    unseen: bool,
}

struct Running {
    said: mpsc::Receiver<Said>,
    heard: mpsc::UnboundedSender<Heard>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Snapshots {
    pub(super) fn new(config: &Arc<Config>, metrics: &Metrics, epoch: i64, enabled: bool) -> Snapshots {
        let (config, metrics) = (Arc::clone(config), metrics.clone());
        Snapshots { config, metrics, epoch, enabled, running: None, look_at: Instant::now(), unseen: false }
    }

    /// What the reader says next. Cancel-safe; never, while there is none.
    pub(super) async fn said(&mut self) -> Said {
        match &mut self.running {
            Some(running) => running.said.recv().await.unwrap_or(Said::Ended { failed: true }),
            None => std::future::pending().await,
        }
    }

    pub(super) fn found(&mut self, found: Result<Option<Request>, StateError>) {
        match found {
            Ok(Some(request)) if self.running.is_none() => {
                let (say, said) = mpsc::channel(1);
                let (heard, hear) = mpsc::unbounded_channel();
                let reader = Reader {
                    config: Arc::clone(&self.config),
                    metrics: self.metrics.clone(),
                    epoch: self.epoch,
                    request,
                    said: say,
                    heard: hear,
                };
                self.running = Some(Running { said, heard, task: tokio::spawn(reader.run()) });
                self.unseen = false;
            }
            Ok(_) => self.unseen = false,
            Err(error) if !std::mem::replace(&mut self.unseen, true) => {
                tracing::warn!(error = %error::chain(&error), "cannot look for snapshots to take; trying again");
            }
            Err(_) => {}
        }
    }

    fn tell(&self, heard: Heard) {
        if let Some(running) = &self.running {
            // Of a reader that has ended it is told elsewhere.
            running.heard.send(heard).ok();
        }
    }
}

impl Carrier {
    pub(super) fn look_for_snapshots(&mut self) {
        let due =
            self.snapshots.enabled && self.snapshots.running.is_none() && self.snapshots.look_at <= Instant::now();
        if due && self.writer.look_for_snapshots() {
            self.snapshots.look_at = Instant::now() + LOOK;
        }
    }

    pub(super) fn on_snapshot(&mut self, said: Said) {
        match said {
            Said::Begin { relation, keyed, mark, begun } => {
                self.pipeline.begin_reading(relation, &mark, keyed);
                begun.send(()).ok();
            }
            Said::Chunk(chunk, taken) => {
                taken.send(self.pipeline.offer(*chunk).is_ok()).ok();
            }
            Said::Ended { failed } => {
                self.pipeline.end_reading();
                self.snapshots.running = None;
                self.snapshots.look_at = Instant::now() + if failed { AGAIN } else { Duration::ZERO };
            }
        }
    }

    /// After anything that may have moved Progress.
    pub(super) fn tell_snapshot(&mut self) {
        for (no, rows) in self.pipeline.passed_chunks() {
            self.snapshots.tell(Heard::Passed { no, rows });
        }
        if let Some(no) = self.pipeline.resolved_chunk() {
            self.snapshots.tell(Heard::Resolved(no));
        }
    }
}
