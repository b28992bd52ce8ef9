//! Writes of state beside the session, one at a time, so that a slow or locked table never holds up the stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::config::Config;
use crate::dead_letters::desk::{Answer, Command as Errand, Registry};
use crate::error;
use crate::event::Position;
use crate::event::shape::TableInfo;
use crate::faults::{self, Point};
use crate::postgres::capture::Captured;
use crate::postgres::catalog;
use crate::postgres::dead_letters::{self, Contents};
use crate::postgres::halt::Halt;
use crate::postgres::halts;
use crate::postgres::identity::{self, Trouble};
use crate::postgres::slot::{self, Published, SlotError};
use crate::postgres::snapshot;
use crate::postgres::sql::Sql;
use crate::postgres::state::{self, Heartbeat, HeartbeatNo, Reached, Reading, StateError};
use crate::postgres::witness::Witness;

/// Before a write of dead letters that has failed is tried again (a full disk, a lock that is held).
const AGAIN: Duration = Duration::from_secs(1);

/// The task that owns the SQL session, seen from the replication session.
pub struct StateWriter {
    commands: mpsc::Sender<Command>,
    written: mpsc::Receiver<Written>,
    progress_under_way: bool,
}

enum Command {
    Progress(Reached),
    Beat,
    Confirm(Heartbeat),
    Clock,
    Publication,
    Describe { table: u32, types: Vec<u32> },
    Identity,
    Snapshots,
    Leave(Halt),
}

/// What became of a write.
#[derive(Debug)]
pub enum Written {
    Progress {
        reached: Reached,
        result: Result<(), StateError>,
        /// The file of the second witness.
        witness: Result<(), std::io::Error>,
    },
    Beat(Result<HeartbeatNo, StateError>),
    Confirmed(Result<(), StateError>),
    Clock(Result<Reading, StateError>),
    /// What the publications are made of, and whether that is less than before, or what is wrong with them.
    Publication(Result<Published, SlotError>),
    /// What the catalogue says of a table that is captured.
    Described {
        table: u32,
        result: Result<TableInfo, StateError>,
    },
    /// What is to be said of the captured tables.
    Identity(Result<Vec<Trouble>, StateError>),
    /// The snapshot to take now.
    Snapshots(Result<Option<snapshot::Request>, StateError>),
    /// A halt.
    Left(Result<(), StateError>),
    /// The dead letters may not be written any more, or are others than it was thought: the session must end.
    Fenced(StateError),
}

impl StateWriter {
    /// Every write is fenced by `epoch` (rule R6). Ends when the writer is dropped, and the SQL session with it. What the
    /// publisher wants with the dead letters comes by `registry`.
    pub fn start(sql: Sql, config: Arc<Config>, source: Watched, epoch: i64, registry: Registry) -> Self {
        // Few are ever under way: one progress, one beat, one confirmation, one reading, one look each at the publication, a table,
        // the identities and the snapshots, one end.
        let (commands, inbox) = mpsc::channel(9);
        let (outbox, written) = mpsc::channel(8);
        let slot = config.slot.clone();
        let Watched { witness, publication } = source;
        let captures = Captured::split(&publication).1.is_some();
        let answers = registry.answers;
        let writer = Writer { sql, config, witness, publication, captures, slot, epoch, answers, said: false };
        tokio::spawn(writer.write(inbox, outbox, registry.commands));
        StateWriter { commands, written, progress_under_way: false }
    }

    /// Asks for the record that allows acknowledging up to `intended`; false while one is under way.
    pub fn progress(&mut self, reached: Reached) -> bool {
        let taken = !self.progress_under_way && self.commands.try_send(Command::Progress(reached)).is_ok();
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

    /// Asks what the publication is made of; false when the task is too busy to take it.
    pub fn look_at_publication(&mut self) -> bool {
        self.commands.try_send(Command::Publication).is_ok()
    }

    /// Asks what a table is made of; false when the task is too busy to take it.
    pub fn describe(&mut self, table: u32, types: Vec<u32>) -> bool {
        self.commands.try_send(Command::Describe { table, types }).is_ok()
    }

    /// Asks whether the captured tables can be written, and are captured as they are meant. A lost one is made good by the next.
    pub fn look_at_identities(&mut self) {
        self.commands.try_send(Command::Identity).ok();
    }

    /// Asks for the snapshot to take now; false when the task is too busy to take it.
    pub fn look_for_snapshots(&mut self) -> bool {
        self.commands.try_send(Command::Snapshots).is_ok()
    }

    /// Leaves a halt in the database, for `adopt`, the other replicas and the next session. What else is under way is not heard of any
    /// more. `None`: the task is gone.
    pub async fn leave(&mut self, halt: Halt) -> Option<Result<(), StateError>> {
        self.commands.send(Command::Leave(halt)).await.ok()?;
        loop {
            if let Written::Left(result) = self.written.recv().await? {
                return Some(result);
            }
        }
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

/// What is compared while a session goes on.
#[derive(Debug)]
pub struct Watched {
    pub witness: Witness,
    /// What the publication was made of when the session began.
    pub publication: String,
}

struct Writer {
    sql: Sql,
    config: Arc<Config>,
    witness: Witness,
    publication: String,
    /// The session reads captured tables.
    captures: bool,
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
                Err(error)
                    if matches!(error, StateError::Fenced { .. } | StateError::Displaced { .. })
                        || error.session_is_gone() =>
                {
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

    async fn carry_out(&mut self, command: Command) -> Written {
        let (client, slot) = (self.sql.client(), &self.slot);
        match command {
            Command::Progress(reached) => {
                let result = state::write_progress(client, slot, self.epoch, reached).await;
                self.witness.raise(reached.intended, reached.acknowledged, reached.heartbeat);
                Written::Progress { reached, result, witness: self.save_witness().await }
            }
            Command::Beat => {
                let beaten = state::beat(client, slot, self.epoch).await;
                if let Ok(no) = &beaten {
                    self.witness.heartbeat(*no);
                }
                Written::Beat(beaten)
            }
            Command::Confirm(heartbeat) => {
                // It would say of rows that passed unseen that they are delivered. A change that comes after this look concerns only rows
                // that the heartbeat's snapshot does not see.
                match slot::check_publication(client, &self.config, Some(&self.publication)).await {
                    Err(SlotError::Sql(error)) => return Written::Confirmed(Err(StateError::unseen(error))),
                    Ok(Published { change: None, .. }) => {}
                    found => return Written::Publication(found),
                }
                let Heartbeat { no, snapshot, .. } = heartbeat;
                Written::Confirmed(state::confirm_heartbeat(client, slot, self.epoch, no, &snapshot).await)
            }
            Command::Clock => Written::Clock(state::read_clock(client).await),
            Command::Describe { table, types } => {
                Written::Described { table, result: catalog::describe(client, table, &types).await }
            }
            Command::Publication => Written::Publication(self.look_at_publication().await),
            Command::Snapshots => Written::Snapshots(snapshot::next(client, &self.config).await),
            Command::Leave(halt) => Written::Left(halts::record(client, &halt, self.witness.source_epoch(slot)).await),
            Command::Identity => {
                let troubles = identity::troubles(client, &self.config).await;
                Written::Identity(troubles.map_err(StateError::unseen))
            }
        }
    }

    /// What has joined may not leave again: it is recorded before anything else of it is believed.
    async fn look_at_publication(&mut self) -> Result<Published, SlotError> {
        let client = self.sql.client();
        let seen = slot::check_publication(client, &self.config, Some(&self.publication)).await?;
        let state = seen.state();
        if seen.change.is_none() && self.captures && state != self.publication {
            state::note_publication(client, &self.slot, self.epoch, &state).await?;
            self.publication = state;
        }
        Ok(seen)
    }

    /// On a thread of its own: a slow disk must not hold up the stream.
    async fn save_witness(&self) -> std::io::Result<()> {
        if !self.witness.has_file() {
            return Ok(());
        }
        let witness = self.witness.clone();
        tokio::task::spawn_blocking(move || witness.save())
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    async fn run(&mut self, errand: &Errand) -> Result<Answer, StateError> {
        let (slot, epoch) = (self.slot.as_str(), self.epoch);
        Ok(match errand {
            Errand::Park(letters) => {
                dead_letters::park(self.sql.client_mut(), slot, epoch, letters).await?;
                faults::point(Point::Parked);
                let positions: Vec<Position> = letters.iter().map(|letter| letter.event.position).collect();
                Answer::Parked(positions)
            }
            Errand::Remove(positions) => {
                faults::point(Point::Released);
                dead_letters::remove(self.sql.client(), slot, epoch, positions).await?;
                faults::point(Point::Removed);
                Answer::Removed
            }
            Errand::FailedAgain(failed) => {
                dead_letters::failed_again(self.sql.client(), slot, epoch, failed).await?;
                Answer::FailedAgain
            }
            Errand::Fetch(positions) => {
                let found = dead_letters::fetch(self.sql.client(), slot, positions).await?;
                let Contents { readable: contents, unreadable } = found;
                Answer::Fetched { asked: positions.clone(), contents, unreadable }
            }
            Errand::Look => Answer::Looked(dead_letters::look(self.sql.client(), slot).await?),
        })
    }
}
