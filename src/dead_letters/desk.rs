//! Between the publisher, which decides what is parked and released, and the session, whose SQL connection writes it.
//!
//! Commands are carried out one at a time, and each until it succeeds or the session ends: an event must never be in the
//! table before an earlier one of its key. What comes up meanwhile is gathered for the next round, so that the slower the
//! database is, the more it does at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Content, DeadLetter, FailedAgain, NewDeadLetter, Unreadable};
use crate::event::Position;
use crate::hold::Errands;
use crate::postgres::dead_letters::Look;

/// How often marks are looked for while there are dead letters.
const LOOK: Duration = Duration::from_secs(2);
/// Rows and bytes of one insert: its rows are in memory twice while it runs.
const PARK_ROWS: usize = 500;
const PARK_BYTES: usize = 8 << 20;

/// What the publisher wants to be done in the database.
#[derive(Debug)]
pub enum Command {
    Park(Vec<NewDeadLetter>),
    Remove(Vec<Position>),
    FailedAgain(Vec<FailedAgain>),
    Fetch(Vec<Position>),
    Look,
}

/// What has been done.
#[derive(Debug)]
pub enum Answer {
    /// The first one: this relay carries, in this epoch, and these are the dead letters of its slot.
    Loaded {
        relay_epoch: i64,
        letters: Vec<DeadLetter>,
    },
    /// Committed.
    Parked(Vec<Position>),
    Removed,
    FailedAgain,
    Fetched {
        asked: Vec<Position>,
        contents: Vec<Content>,
        unreadable: Vec<Unreadable>,
    },
    Looked(Look),
}

/// The session's end.
#[derive(Debug)]
pub struct Registry {
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub answers: mpsc::UnboundedSender<Answer>,
}

/// The publisher's end. What is under way is bounded by the window.
#[derive(Debug)]
pub struct Desk {
    commands: mpsc::UnboundedSender<Command>,
    answers: mpsc::UnboundedReceiver<Answer>,
    open: bool,
    /// For the next round.
    gathered: Errands,
    /// The rest of this one.
    round: VecDeque<Command>,
    under_way: bool,
    /// A look is in this round or under way, and nothing has been gathered since.
    look: Option<LookIs>,
    look_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookIs {
    Wanted,
    /// Under way. Its count is that of the lot.
    Exact,
    /// Under way. Something is to be written by now.
    Overtaken,
}

/// Both ends, for one session.
pub fn desk() -> (Desk, Registry) {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (outbox, answers) = mpsc::unbounded_channel();
    let desk = Desk {
        commands,
        answers,
        open: false,
        gathered: Errands::default(),
        round: VecDeque::new(),
        under_way: false,
        look: None,
        look_at: None,
    };
    (desk, Registry { commands: inbox, answers: outbox })
}

impl Desk {
    /// The dead letters have been loaded. Before that nothing may be published (rule R6).
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        !self.under_way && self.round.is_empty() && self.gathered.is_empty()
    }

    pub fn carry_out(&mut self, errands: Errands) {
        if errands.is_empty() {
            return;
        }
        let Errands { park, remove, failed, fetch } = errands;
        if self.look == Some(LookIs::Exact) && !(park.is_empty() && remove.is_empty()) {
            self.look = Some(LookIs::Overtaken);
        }
        self.gathered.park.extend(park);
        self.gathered.remove.extend(remove);
        self.gathered.failed.extend(failed);
        self.gathered.fetch.extend(fetch);
        self.go_on();
    }

    pub fn remove(&mut self, remove: Vec<Position>) {
        self.carry_out(Errands { remove, ..Errands::default() });
    }

    /// Looks for marks if it is time to. Returns when it will be.
    pub fn look(&mut self, now: Instant) -> Option<Instant> {
        let at = *self.look_at.get_or_insert(now);
        if self.look.is_none() && at <= now && self.open {
            self.look = Some(LookIs::Wanted);
            self.look_at = Some(now + LOOK);
            self.go_on();
        }
        self.look_at.filter(|_| self.look.is_none())
    }

    /// The next answer. Cancel-safe. Never resolves once the session is gone, which is told elsewhere.
    pub async fn answer(&mut self) -> Answer {
        let Some(answer) = self.answers.recv().await else { return std::future::pending().await };
        match answer {
            Answer::Loaded { .. } => self.open = true,
            _ => self.under_way = false,
        }
        answer
    }

    /// To be asked when a look is answered: whether its count must be that of the lot, because nothing was to be written
    /// meanwhile.
    pub fn look_is_exact(&mut self) -> bool {
        self.look.take() == Some(LookIs::Exact)
    }

    /// Gives the next command, if none is under way. To be called after each answer has been taken to the hold.
    pub fn go_on(&mut self) {
        if self.under_way {
            return;
        }
        if self.round.is_empty() {
            self.begin_round();
        }
        let Some(command) = self.round.pop_front() else { return };
        if matches!(command, Command::Look) {
            self.look = Some(if self.gathered.is_empty() { LookIs::Exact } else { LookIs::Overtaken });
        }
        // Without a session nothing is resolved any more, and the publisher hears of its end.
        self.under_way = self.commands.send(command).is_ok();
    }

    fn begin_round(&mut self) {
        let Errands { park, remove, failed, fetch } = std::mem::take(&mut self.gathered);
        let mut batch = Vec::new();
        let mut bytes = 0;
        for letter in park {
            bytes += letter.event.bytes();
            batch.push(letter);
            if batch.len() >= PARK_ROWS || bytes >= PARK_BYTES {
                self.round.push_back(Command::Park(std::mem::take(&mut batch)));
                bytes = 0;
            }
        }
        let mut give = |is_needed: bool, command: Command| {
            if is_needed {
                self.round.push_back(command);
            }
        };
        give(!batch.is_empty(), Command::Park(batch));
        give(!failed.is_empty(), Command::FailedAgain(failed));
        give(!remove.is_empty(), Command::Remove(remove));
        // After what was to be parked when it was asked for: that is read too.
        give(!fetch.is_empty(), Command::Fetch(fetch));
        if self.look == Some(LookIs::Wanted) {
            self.round.push_back(Command::Look);
        }
    }
}

#[cfg(test)]
mod tests;
