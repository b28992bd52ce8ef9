//! Writes of state beside the session, one at a time, so that a slow or locked table never holds up the stream.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::dead_letters::desk::{Answer, Command as Errand, Registry};
use crate::error;
use crate::event::Position;
use crate::lsn::Lsn;
use crate::postgres::dead_letters;
use crate::postgres::sql::Sql;
use crate::postgres::state::{self, Heartbeat, Reading, StateError};

/// Before a write of dead letters that has failed is tried again (a full disk, a lock that is held).
const AGAIN: Duration = Duration::from_secs(1);

/// The task that owns the SQL session, seen from the replication session.
pub struct StateWriter {
    commands: mpsc::Sender<Command>,
    written: mpsc::Receiver<Written>,
    progress_under_way: bool,
}

enum Command {
    Progress { intended: Lsn, acknowledged: Lsn },
    Beat,
    Confirm(Heartbeat),
    Clock,
}

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    Progress {
        intended: Lsn,
        result: Result<(), StateError>,
    },
    Beat(Result<(), StateError>),
    Confirmed(Result<(), StateError>),
    Clock(Result<Reading, StateError>),
    /// The dead letters may not be written any more: the session must end.
    Fenced(StateError),
}

impl StateWriter {
    /// Every write is fenced by `epoch` (rule R6). Ends when the writer is dropped, and the SQL session with it. What the
    /// publisher wants with the dead letters comes by `registry`.
    pub fn start(sql: Sql, slot: &str, epoch: i64, registry: Registry) -> Self {
        // Few are ever under way: one progress, one beat, one confirmation, one reading, one end.
        let (commands, inbox) = mpsc::channel(8);
        let (outbox, written) = mpsc::channel(8);
        let writer = Writer { sql, slot: slot.to_owned(), epoch, answers: registry.answers, said: false };
        tokio::spawn(writer.write(inbox, outbox, registry.commands));
        StateWriter { commands, written, progress_under_way: false }
    }

    /// Asks for the record that allows acknowledging up to `intended`; false while one is under way.
    pub fn progress(&mut self, intended: Lsn, acknowledged: Lsn) -> bool {
        let taken =
            !self.progress_under_way && self.commands.try_send(Command::Progress { intended, acknowledged }).is_ok();
        self.progress_under_way |= taken;
        taken
    }

    /// Asks for a heartbeat; false when the task is too busy to take it.
    pub fn beat(&mut self) -> bool {
        self.commands.try_send(Command::Beat).is_ok()
    }

    /// Asks for a heartbeat to be recorded as delivered. A lost one is made good by the next.
    pub fn confirm(&mut self, heartbeat: Heartbeat) {
        self.commands.try_send(Command::Confirm(heartbeat)).ok();
    }

    /// Asks how far the WAL is, and what time it is there. A lost one is made good by the next.
    pub fn read_clock(&mut self) {
        self.commands.try_send(Command::Clock).ok();
    }

    /// The next result. Cancel-safe. Never resolves once the task is gone: the end of the SQL session is told elsewhere.
    pub async fn written(&mut self) -> Written {
        let Some(written) = self.written.recv().await else { return std::future::pending().await };
        if matches!(written, Written::Progress { .. }) {
            self.progress_under_way = false;
        }
        written
    }
}

struct Writer {
    sql: Sql,
    slot: String,
    epoch: i64,
    answers: mpsc::UnboundedSender<Answer>,
    /// The trouble with the dead letters has been said.
    said: bool,
}

impl Writer {
    async fn write(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        outbox: mpsc::Sender<Written>,
        mut errands: mpsc::UnboundedReceiver<Errand>,
    ) {
        // An errand that has failed. Those after it wait: their order is the order of the events.
        let mut stuck: Option<(Errand, Instant)> = None;
        // Once the publisher has ended the session still has its last acknowledgement to record.
        let mut publishing = true;
        loop {
            let again = stuck.as_ref().map(|(_, at)| *at);
            let errand = tokio::select! {
                biased;
                command = inbox.recv() => {
                    let Some(command) = command else { return };
                    if outbox.send(self.carry_out(command).await).await.is_err() {
                        return;
                    }
                    continue;
                }
                errand = errands.recv(), if again.is_none() && publishing => {
                    let Some(errand) = errand else {
                        publishing = false;
                        continue;
                    };
                    errand
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => match stuck.take() {
                    Some((errand, _)) => errand,
                    None => continue,
                },
            };
            match self.run(&errand).await {
                Ok(answer) => {
                    if std::mem::take(&mut self.said) {
                        tracing::info!("the dead letters can be written again");
                    }
                    self.answers.send(answer).ok();
                }
                Err(error) if matches!(error, StateError::Fenced { .. }) || error.session_is_gone() => {
                    outbox.send(Written::Fenced(error)).await.ok();
                    return;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.said, true) {
                        tracing::error!(
                            error = %error::chain(&error),
                            "cannot write the dead letters; what is to be parked waits in the window, and the slot with it. Trying again"
                        );
                    }
                    stuck = Some((errand, Instant::now() + AGAIN));
                }
            }
        }
    }

    async fn carry_out(&self, command: Command) -> Written {
        let (client, slot) = (self.sql.client(), &self.slot);
        match command {
            Command::Progress { intended, acknowledged } => {
                let result = state::write_progress(client, slot, self.epoch, intended, acknowledged).await;
                Written::Progress { intended, result }
            }
            Command::Beat => Written::Beat(state::beat(client, slot, self.epoch).await.map(drop)),
            Command::Confirm(heartbeat) => {
                let Heartbeat { no, snapshot, .. } = heartbeat;
                Written::Confirmed(state::confirm_heartbeat(client, slot, self.epoch, no, &snapshot).await)
            }
            Command::Clock => Written::Clock(state::read_clock(client).await),
        }
    }

    async fn run(&mut self, errand: &Errand) -> Result<Answer, StateError> {
        let (slot, epoch) = (self.slot.as_str(), self.epoch);
        Ok(match errand {
            Errand::Park(letters) => {
                dead_letters::park(self.sql.client_mut(), slot, epoch, letters).await?;
                let positions: Vec<Position> = letters.iter().map(|letter| letter.event.position).collect();
                Answer::Parked(positions)
            }
            Errand::Remove(positions) => {
                dead_letters::remove(self.sql.client(), slot, epoch, positions).await?;
                Answer::Removed
            }
            Errand::FailedAgain(failed) => {
                dead_letters::failed_again(self.sql.client(), slot, epoch, failed).await?;
                Answer::FailedAgain
            }
            Errand::Fetch(positions) => {
                let contents = dead_letters::fetch(self.sql.client(), slot, positions).await?;
                Answer::Fetched { asked: positions.clone(), contents }
            }
            Errand::Look => Answer::Looked(dead_letters::look(self.sql.client(), slot).await?),
        })
    }
}
