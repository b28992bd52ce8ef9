//! What a session does with what it hears: events out, feedback to PostgreSQL, heartbeats, the last words.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Remembered, SessionError};
use crate::error;
use crate::event::{Event, Ticket};
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, Seen};
use crate::postgres::replication::{Frame, ReplicationStream};
use crate::postgres::state::StateError;
use crate::state_writer::{StateWriter, Written};
use crate::status::Status;

/// WAL without events of ours is acknowledged in steps of this size. Every acknowledgement is preceded by a write of state,
/// which is WAL itself: without a step, an idle database would never come to rest.
const IDLE_STEP_BYTES: u64 = 1024 * 1024;
/// From the last acknowledgement to the end of the connection, at most, when stopping.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// A session that has lasted this long has not met again what the one before halted at.
const NOT_HALTED: Duration = Duration::from_secs(3);
/// In whatever language the server speaks: object_not_in_prerequisite_state, with which pgoutput of PostgreSQL 18 warns that it
/// goes on without a publication.
const PUBLICATION_SKIPPED: &str = "(SQLSTATE 55000)";

/// The state of a session that carries.
pub(super) struct Carrier {
    pub(super) stream: ReplicationStream,
    pub(super) pipeline: Pipeline,
    pub(super) writer: StateWriter,
    pub(super) began: Instant,
    /// What the last status update said.
    pub(super) acknowledged: Lsn,
    /// The highest position that the record allows to be acknowledged.
    pub(super) intended: Lsn,
    /// End of the newest WAL that was received.
    pub(super) received: Lsn,
    /// Something of ours (an event, a heartbeat) has been resolved and may wait to be acknowledged.
    pub(super) own_progress: bool,
    pub(super) last_beat: Option<Instant>,
    /// An event has been resolved since the last heartbeat that was written.
    pub(super) unshown_event: bool,
    /// Said once, until one can be written again.
    pub(super) beats_fail: bool,
    /// How far the WAL was at the last heartbeat.
    pub(super) beaten_at: Lsn,
    /// One instant on two clocks, PostgreSQL's and ours: lag is counted by PostgreSQL's. From the answer to a question: a frame may have
    /// waited in a buffer for as long as nothing was read, and stands in only until there is one.
    pub(super) clock: Option<(SystemTime, SystemTime)>,
    /// The record could not be written; said once until it can be again.
    pub(super) unrecorded: bool,
    pub(super) heartbeat_interval: Duration,
    pub(super) metrics: Metrics,
    pub(super) status: Status,
    pub(super) remembered: Arc<Remembered>,
}

impl Carrier {
    pub(super) fn resolve(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let known = self.pipeline.progress_mut().resolve(*ticket);
            self.own_progress |= known;
            self.unshown_event |= known;
        }
    }

    /// Takes what was read: events for the publisher, entries for Progress, an answer where the server asks for one.
    pub(super) async fn take(&mut self, frames: &mut Vec<Frame>) -> Result<Vec<Event>, SessionError> {
        let mut events = Vec::new();
        let mut answer = false;
        let mut commit_time = None;
        // Looking a counter up by its label costs more than reading a row.
        let mut changes = ("insert", 0);
        let counters = self.metrics.changes_read.clone();
        let count = |(op, number): (&str, u64)| counters.with_label_values(&[op]).inc_by(number);
        for frame in frames.drain(..) {
            match frame {
                Frame::Data { start, end, server_time, data } => {
                    self.received = self.received.max(end);
                    self.clock.get_or_insert_with(|| (server_time, SystemTime::now()));
                    match self.pipeline.data(start, data, &mut events)? {
                        Seen::Change(op) if op == changes.0 => changes.1 += 1,
                        Seen::Change(op) => count(std::mem::replace(&mut changes, (op, 1))),
                        Seen::Commit { end, time, own } => {
                            self.received = self.received.max(end);
                            self.own_progress |= own;
                            commit_time = Some(time);
                        }
                        Seen::Other => {}
                    }
                }
                Frame::Keepalive { wal_end, server_time, reply_requested } => {
                    self.received = self.received.max(wal_end);
                    self.clock.get_or_insert_with(|| (server_time, SystemTime::now()));
                    self.pipeline.progress_mut().keepalive(wal_end);
                    answer |= reply_requested;
                }
                // PostgreSQL 18 goes on without the publication and only says so: events would be lost in silence.
                Frame::Notice(notice) if notice.contains(PUBLICATION_SKIPPED) => {
                    return Err(SessionError::PublicationSkipped(notice));
                }
                Frame::Notice(notice) => tracing::warn!(notice, "PostgreSQL says"),
            }
        }
        count(changes);
        if let Some(time) = commit_time {
            self.metrics.last_received_commit.get().set(unix_seconds(time));
        }
        if answer {
            self.send_status(false).await?;
        }
        Ok(events)
    }

    /// After anything that may have moved Progress: lag, and heartbeats that have come all the way.
    pub(super) fn note_progress(&mut self) {
        let progress = self.pipeline.progress();
        self.metrics.unresolved_events.set(i64::try_from(progress.unresolved()).unwrap_or(i64::MAX));
        if let (Some(time), Some((server_now, local_now))) = (progress.delivered_up_to(), self.clock) {
            self.metrics.set_delivered_up_to(time, server_now, local_now);
            self.metrics.last_confirmed_commit.get().set(unix_seconds(time));
        }
    }

    /// The clock of feedback. An acknowledgement is sent only after the record allows it (R8), so this asks for that write;
    /// the status update follows in [`Self::on_written`]. `ping` sends one in any case, and asks for a keepalive.
    pub(super) async fn feedback(&mut self, ping: bool) -> Result<(), SessionError> {
        if ping {
            self.send_status(true).await?;
            self.writer.read_clock();
        }
        let reached = self.pipeline.progress().acknowledged();
        // Events and heartbeats are acknowledged at once, other WAL in steps.
        if (self.own_progress && reached > self.intended) || reached.bytes_since(self.intended) > IDLE_STEP_BYTES {
            // What is resolved later sets the flag again.
            if self.writer.progress(reached, self.acknowledged) {
                self.own_progress = false;
            }
        }
        if self.began.elapsed() > NOT_HALTED {
            self.metrics.set_halted(None);
        }
        if let Some(heartbeat) = self.pipeline.passed_heartbeats().last() {
            self.metrics.heartbeat_passed();
            self.writer.confirm(heartbeat);
        }
        self.beat_if_due();
        self.show();
        Ok(())
    }

    /// Due when an event has been resolved since the last one, or WAL is more than a step past it (R7); otherwise never.
    fn beat_if_due(&mut self) {
        let rested = self.last_beat.is_none_or(|at| at.elapsed() >= self.heartbeat_interval);
        let something_to_show = self.unshown_event || self.received.bytes_since(self.beaten_at) > IDLE_STEP_BYTES;
        if rested && something_to_show && self.writer.beat() {
            self.last_beat = Some(Instant::now());
            self.unshown_event = false;
            self.beaten_at = self.received;
        }
    }

    pub(super) async fn on_written(&mut self, written: Written) -> Result<(), SessionError> {
        match written {
            Written::Progress { intended, result } => {
                match result {
                    Ok(()) => self.unrecorded = false,
                    Err(fenced @ StateError::Fenced { .. }) => return Err(fenced.into()),
                    // Not "cannot be written" but "no more session": what it did not write must not be acknowledged, or the
                    // slot is ahead of its record after a shutdown of PostgreSQL.
                    Err(gone) if gone.session_is_gone() => return Err(gone.into()),
                    // R8: freeing WAL comes first. What cannot be recorded (disk full) is remembered, and said.
                    Err(error) if !self.unrecorded => {
                        self.unrecorded = true;
                        tracing::error!(
                            error = %error::chain(&error),
                            "cannot write postrider.progress; acknowledging without it. A restart of this process in this state would halt",
                        );
                    }
                    Err(_) => {}
                }
                self.intended = self.intended.max(intended);
                self.remembered.raise(intended);
                self.send_status(false).await?;
            }
            Written::Fenced(error) => return Err(error.into()),
            Written::Clock(Ok(reading)) => {
                self.clock = Some((reading.at, reading.asked));
                self.pipeline.progress_mut().reading(reading.flushed, reading.at);
                // Its answer shows how far the walsender is by then.
                self.send_status(true).await?;
                self.note_progress();
            }
            // Without it the lag is counted from the last commit; that this connection fails is told elsewhere.
            Written::Clock(Err(error)) => {
                tracing::debug!(error = %error::chain(&error), "cannot ask PostgreSQL how far its WAL is");
            }
            Written::Beat(Ok(())) | Written::Confirmed(Ok(())) => self.beats_fail = false,
            Written::Beat(Err(error)) | Written::Confirmed(Err(error)) => {
                if error.session_is_gone() || matches!(error, StateError::Fenced { .. }) {
                    return Err(error.into());
                }
                self.unshown_event = true;
                if !self.beats_fail {
                    self.beats_fail = true;
                    tracing::warn!(error = %error::chain(&error), "cannot write heartbeats; trying again");
                }
            }
        }
        Ok(())
    }

    /// Tells PostgreSQL what has been received and what may be forgotten. Never more than the record allows.
    async fn send_status(&mut self, reply_requested: bool) -> Result<(), SessionError> {
        let flushed = self.pipeline.progress().acknowledged().min(self.intended).max(self.acknowledged);
        self.stream.send_status(self.received.max(flushed), flushed, reply_requested).await?;
        self.acknowledged = flushed;
        Ok(())
    }

    fn show(&self) {
        self.status.update(|status| {
            status.acknowledged_lsn = Some(self.acknowledged.to_string());
            status.received_lsn = Some(self.received.to_string());
            status.unresolved_events = self.pipeline.progress().unresolved();
        });
    }

    /// The last acknowledgement, recorded first, and an orderly end of the stream.
    pub(super) async fn finish(mut self) -> Result<(), SessionError> {
        let last_words = async {
            let reached = self.pipeline.progress().acknowledged();
            while reached > self.intended {
                // Nothing, while an earlier one is under way; then this comes after it.
                self.writer.progress(reached, self.acknowledged);
                let written = self.writer.written().await;
                self.on_written(written).await?;
            }
            self.send_status(false).await?;
            self.show();
            self.stream.close().await;
            Ok(())
        };
        match tokio::time::timeout(LAST_WORDS, last_words).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(
                    "PostgreSQL did not take the last acknowledgement in time; the newest events will be sent again"
                );
                Ok(())
            }
        }
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
