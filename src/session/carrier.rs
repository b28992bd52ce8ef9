//! What a session does with what it hears: events out, feedback to PostgreSQL, heartbeats, the last words.

use std::time::{Duration, Instant, SystemTime};

use super::snapshots::Snapshots;
use super::{SQL_SILENCE, SessionError};
use crate::error;
use crate::event::{Event, Ticket};
use crate::faults::{self, Bug, Point};
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::pipeline::continuity::Gap;
use crate::pipeline::{Pipeline, PipelineError, Seen};
use crate::postgres::halt::{Cause, Halt};
use crate::postgres::identity::Watch;
use crate::postgres::replication::{Frame, ReplicationError, ReplicationStream};
use crate::postgres::slot::{self, Published, SlotError};
use crate::postgres::state::{HeartbeatNo, Reached, StateError};
use crate::state_writer::{StateWriter, Written};
use crate::status::Status;

/// WAL without events of ours is acknowledged in steps of this size. Every acknowledgement is preceded by a write of state,
/// which is WAL itself: without a step, an idle database would never come to rest.
const IDLE_STEP_BYTES: u64 = 1024 * 1024;
/// One more acknowledgement this long after the last one. PostgreSQL writes down which transactions run every 15 s while there is WAL
/// (LOG_SNAPSHOT_INTERVAL_MS of its background writer), and lets go of what lies before that only when it is acknowledged. One and
/// no more: its record is WAL itself.
const AFTERWARDS: Duration = Duration::from_secs(20);
/// For the last acknowledgement, when stopping.
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
    /// When the connection for SQL was last heard of.
    pub(super) answered: Instant,
    /// What the last status update said.
    pub(super) acknowledged: Lsn,
    /// The highest position that the record allows to be acknowledged.
    pub(super) intended: Lsn,
    /// End of the newest WAL that was received.
    pub(super) received: Lsn,
    /// Something of ours (an event, a heartbeat) has been resolved and may wait to be acknowledged.
    pub(super) own_progress: bool,
    /// When the one more acknowledgement is due.
    pub(super) afterwards: Option<Instant>,
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
    pub(super) slot: String,
    /// Its name, and what it was made of when the session began.
    pub(super) publication: (String, String),
    /// The statement that makes it.
    pub(super) remedy: String,
    /// The publications of captured tables, if they are read.
    pub(super) captures: Option<[String; 2]>,
    /// What was acknowledged before the publication was last found right: rows that were kept back since then come after it.
    pub(super) proven: Lsn,
    /// The same of the look that is under way.
    pub(super) looking: Option<Lsn>,
    /// The captured tables, where there are any.
    pub(super) identities: Watch,
    /// The file of the witness could not be written; said once until it can be again.
    pub(super) unwitnessed: bool,
    /// A table whose changes cannot be read before the catalogue has been asked for it, and whether that is under way. Nothing is
    /// read meanwhile.
    pub(super) undescribed: Option<(u32, bool)>,
    /// The newest heartbeat with everything before it resolved.
    pub(super) passed_heartbeat: Option<HeartbeatNo>,
    pub(super) snapshots: Snapshots,
}

impl Carrier {
    pub(super) fn resolve(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let known = self.pipeline.progress_mut().resolve(*ticket);
            self.own_progress |= known;
            self.unshown_event |= known;
        }
    }

    /// Takes what was read: events for the publisher, entries for Progress, an answer where the server asks for one. What comes
    /// behind a table that has to be looked up first is left.
    pub(super) async fn take(&mut self, frames: &mut Vec<Frame>) -> Result<Vec<Event>, SessionError> {
        let mut events = Vec::new();
        let mut answer = false;
        let mut commit_time = None;
        // Looking a counter up by its label costs more than reading a row.
        let mut changes = ("insert", 0);
        let counters = self.metrics.changes_read.clone();
        let count = |(op, number): (&str, u64)| counters.with_label_values(&[op]).inc_by(number);
        let mut rest = frames.drain(..);
        for frame in rest.by_ref() {
            match frame {
                Frame::Data { start, end, server_time, data } => {
                    self.received = self.received.max(end);
                    self.clock.get_or_insert_with(|| (server_time, SystemTime::now()));
                    let seen = self.pipeline.data(start, data, &mut events).map_err(|error| self.gap(error))?;
                    match seen {
                        Seen::Change(op) if op == changes.0 => changes.1 += 1,
                        Seen::Change(op) => count(std::mem::replace(&mut changes, (op, 1))),
                        Seen::Commit { end, time, own } => {
                            self.received = self.received.max(end);
                            self.own_progress |= own;
                            commit_time = Some(time);
                        }
                        Seen::Undescribed(table) => {
                            self.undescribed = Some((table, false));
                            break;
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
                    tracing::debug!(notice, "PostgreSQL says");
                    return Err(self.publication_missing(&notice, self.received));
                }
                Frame::Notice(notice) => tracing::warn!(notice, "PostgreSQL says"),
            }
        }
        let left: Vec<Frame> = rest.collect();
        frames.extend(left);
        self.ask_catalogue();
        count(changes);
        if faults::seeded(Bug::OrderById) {
            events.sort_by(|one, other| one.id.cmp(&other.id));
        }
        if let Some(time) = commit_time {
            self.metrics.last_received_commit.get().set(unix_seconds(time));
        }
        if answer {
            self.send_status(false).await?;
        }
        Ok(events)
    }

    fn ask_catalogue(&mut self) {
        if let Some((table, asked @ false)) = &mut self.undescribed {
            *asked = self.writer.describe(*table, self.pipeline.types_of(*table));
        }
    }

    /// After anything that may have moved Progress: lag, and heartbeats that have come all the way.
    pub(super) fn note_progress(&mut self) {
        self.tell_snapshot();
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
        self.ask_catalogue();
        if self.answered.elapsed() > SQL_SILENCE {
            return Err(SessionError::SqlSilent);
        }
        if ping {
            self.send_status(true).await?;
            self.writer.read_clock();
            if self.looking.is_none() && self.writer.look_at_publication() {
                self.looking = Some(self.acknowledged);
            }
            if self.identities.is_due() {
                self.writer.look_at_identities();
            }
        }
        // Before what it passes is recorded: the first heartbeat of the next session is judged by it (D10).
        let passed = self.pipeline.passed_heartbeats().last();
        self.passed_heartbeat = passed.as_ref().map(|heartbeat| heartbeat.no).or(self.passed_heartbeat);
        let reached = self.pipeline.progress().acknowledged();
        // Events and heartbeats are acknowledged at once, other WAL in steps.
        let regular =
            (self.own_progress && reached > self.intended) || reached.bytes_since(self.intended) > IDLE_STEP_BYTES;
        let afterwards = reached > self.intended && self.afterwards.is_some_and(|at| at <= Instant::now());
        if regular || afterwards {
            faults::point(Point::Resolved);
            // What is resolved later sets the flag again.
            if self.writer.progress(self.reached(reached)) {
                self.own_progress = false;
                self.afterwards = regular.then(|| Instant::now() + AFTERWARDS);
            }
        }
        if self.began.elapsed() > NOT_HALTED {
            self.metrics.set_halted(None);
        }
        if let Some(heartbeat) = passed {
            self.metrics.heartbeat_passed();
            self.writer.confirm(heartbeat);
        }
        self.beat_if_due();
        self.look_for_snapshots();
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
        self.answered = Instant::now();
        match written {
            Written::Progress { reached, result, witness } => {
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
                match witness {
                    Ok(()) => self.unwitnessed = false,
                    Err(error) if !self.unwitnessed => {
                        self.unwitnessed = true;
                        tracing::error!(%error, "cannot write the state file (state_dir); acknowledging without it: the record in the database is the only witness");
                    }
                    Err(_) => {}
                }
                self.intended = self.intended.max(reached.intended);
                faults::point(Point::Recorded);
                self.send_status(false).await?;
                faults::point(Point::Acknowledged);
            }
            Written::Publication(found) => self.on_publication(found)?,
            // Somebody is altering the table: asked again with the next feedback.
            Written::Described { table, result: Err(error) } if error.is_lock_timeout() => {
                self.undescribed = Some((table, false));
            }
            Written::Described { table, result } => {
                self.pipeline.describe(table, &result?)?;
                self.undescribed = None;
            }
            Written::Identity(Ok(troubles)) => self.identities.told(troubles, &self.status),
            Written::Identity(Err(error)) => {
                tracing::debug!(error = %error::chain(&error), "cannot look at the captured tables");
            }
            Written::Snapshots(found) => self.snapshots.found(found),
            // Waited for where it is asked for.
            Written::Left(_) => {}
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
            Written::Beat(Ok(_)) | Written::Confirmed(Ok(())) => self.beats_fail = false,
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

    fn reached(&self, intended: Lsn) -> Reached {
        Reached { intended, acknowledged: self.acknowledged, heartbeat: self.passed_heartbeat }
    }

    /// A gap in the heartbeats is no error that another try could mend.
    fn gap(&self, error: PipelineError) -> SessionError {
        let PipelineError::Gap(Gap { expected, found }, at) = error else { return error.into() };
        self.halt(Cause::HeartbeatGap { expected, found }, self.acknowledged, at)
    }

    /// The WAL up to `at` was written, in part, while there was no publication.
    fn publication_missing(&self, words: &str, at: Lsn) -> SessionError {
        let (publication, _) = &self.publication;
        let capture = self.captures.iter().flatten().find(|name| words.contains(&format!("\"{name}\"")));
        let (publication, remedy) = match capture {
            Some(capture) => (capture, slot::REMAKE.to_owned()),
            None => (publication, self.remedy.clone()),
        };
        self.halt(Cause::PublicationMissing { publication: publication.clone(), remedy }, self.proven, at)
    }

    /// PostgreSQL before 18 refuses to go on at WAL that was written without the publication, each time (undefined_object).
    pub(super) fn stream_ended(&self, error: ReplicationError) -> SessionError {
        match error.sqlstate() {
            Some("42704") => self.publication_missing(&error.to_string(), self.received),
            _ => error.into(),
        }
    }

    /// Between two looks it may have been away and back: then it is made of something else.
    fn on_publication(&mut self, found: Result<Published, SlotError>) -> Result<(), SessionError> {
        let looked_from = self.looking.take();
        let (publication, recorded) = self.publication.clone();
        let (observed, remedy) = match found {
            Ok(Published { change: Some(change), .. }) => (change, None),
            // Only a new session can begin to read with them.
            Ok(seen) if self.captures.is_none() && seen.has_captures() => return Err(SlotError::CaptureReady.into()),
            Ok(_) => {
                self.proven = looked_from.unwrap_or(self.proven);
                return Ok(());
            }
            Err(SlotError::PublicationMissing { publication, statement }) => {
                let cause = Cause::PublicationMissing { publication, remedy: statement };
                return Err(self.halt(cause, self.proven, self.received));
            }
            Err(SlotError::CaptureMissing { publication }) if self.captures.is_some() => {
                let cause = Cause::PublicationMissing { publication, remedy: slot::REMAKE.to_owned() };
                return Err(self.halt(cause, self.proven, self.received));
            }
            Err(SlotError::PublicationIncomplete { what, statement, .. }) => {
                (format!("without {what}"), Some(statement))
            }
            Err(SlotError::State(error @ StateError::Fenced { .. })) => return Err(error.into()),
            // That this connection fails is told elsewhere; the next look makes good what this one could not see.
            Err(error) => {
                tracing::debug!(error = %error::chain(&error), "cannot look at the publication");
                return Ok(());
            }
        };
        let cause = Cause::PublicationChanged { publication, recorded, observed, remedy };
        Err(self.halt(cause, self.proven, self.received))
    }

    fn halt(&self, cause: Cause, from: Lsn, to: Lsn) -> SessionError {
        SessionError::Halt(Box::new(Halt { slot: self.slot.clone(), cause, from, to }))
    }

    /// Tells PostgreSQL what has been received and what may be forgotten. Never more than the record allows.
    async fn send_status(&mut self, reply_requested: bool) -> Result<(), SessionError> {
        if faults::seeded(Bug::SilentWhileBlocked) && self.status.snapshot().broker_blocked.is_some() {
            return Ok(());
        }
        let allowed = if faults::seeded(Bug::RecordAfterAck) { self.received } else { self.intended };
        let flushed = self.pipeline.progress().acknowledged().min(allowed).max(self.acknowledged);
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

    /// The last acknowledgement, recorded first.
    pub(super) async fn finish(&mut self) -> Result<(), SessionError> {
        let last_words = async {
            let reached = self.pipeline.progress().acknowledged();
            while reached > self.intended {
                // Nothing, while an earlier one is under way; then this comes after it.
                let passed = self.pipeline.passed_heartbeats().last();
                self.passed_heartbeat = passed.map(|heartbeat| heartbeat.no).or(self.passed_heartbeat);
                self.writer.progress(self.reached(reached));
                let written = self.writer.written().await;
                self.on_written(written).await?;
            }
            self.send_status(false).await?;
            self.show();
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
