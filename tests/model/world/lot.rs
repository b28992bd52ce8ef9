//! The dead letters: a table, and the desk through which the publisher has it written. A crash leaves what is committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use postrider::dead_letters::desk::{Answer, Command, Desk, Registry, desk};
use postrider::dead_letters::{Content, DeadLetter, FailedAgain, Mark, NewDeadLetter, Reason};
use postrider::event::Position;
use postrider::postgres::dead_letters::{Look, Marked};

use super::{Checked, World, short};
use crate::wal::Wal;

pub(crate) struct Lot {
    table: BTreeMap<Position, Letter>,
    desk: Desk,
    registry: Registry,
    /// Somebody has deleted rows since the last takeover.
    deleted: bool,
}

struct Letter {
    new: NewDeadLetter,
    reason: Reason,
    mark: Option<Mark>,
}

impl Default for Lot {
    fn default() -> Self {
        let (desk, registry) = open(Vec::new());
        Lot { table: BTreeMap::new(), desk, registry, deleted: false }
    }
}

fn open(letters: Vec<DeadLetter>) -> (Desk, Registry) {
    let (mut desk, registry) = desk();
    registry.answers.send(Answer::Loaded { relay_epoch: 1, letters }).unwrap();
    desk.answer().now_or_never().unwrap();
    (desk, registry)
}

impl Lot {
    pub(crate) fn contains(&self, position: Position) -> bool {
        self.table.contains_key(&position)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// The relay before has died after `committed` more of its writes.
    pub(crate) fn take_over(&mut self, committed: usize) -> Vec<DeadLetter> {
        for _ in 0..committed {
            self.carry_out_one();
        }
        let letters: Vec<DeadLetter> = self.table.values().map(Letter::metadata).collect();
        (self.desk, self.registry) = open(letters.clone());
        self.deleted = false;
        letters
    }

    pub(crate) fn redrive_everything(&mut self) {
        for letter in self.table.values_mut().filter(|letter| letter.mark.is_none()) {
            letter.mark = Some(Mark::Redrive);
        }
    }

    /// What does not wait for a person: it is no poison, and not behind one.
    pub(crate) fn leaves_by_itself(&self, wal: &Wal) -> Option<Position> {
        let mut stuck: Vec<Position> = Vec::new();
        for (position, letter) in &self.table {
            let holds =
                |before: &Position| self.table[before].new.holds_key && wal.rows[before].meets(wal.rows[position]);
            let poison = letter.reason.is_poison() && letter.mark.is_none();
            if !(poison || (letter.new.holds_key && stuck.iter().any(holds))) {
                return Some(*position);
            }
            stuck.push(*position);
        }
        None
    }

    fn carry_out_one(&mut self) -> bool {
        let Ok(command) = self.registry.commands.try_recv() else { return false };
        let answer = match command {
            Command::Park(letters) => {
                let positions = letters.iter().map(|letter| letter.event.position).collect();
                for new in letters {
                    let letter = Letter { reason: new.reason, mark: None, new };
                    self.table.entry(letter.new.event.position).or_insert(letter);
                }
                Answer::Parked(positions)
            }
            Command::Remove(positions) => {
                self.table.retain(|position, _| !positions.contains(position));
                Answer::Removed
            }
            Command::FailedAgain(failed) => {
                for FailedAgain { position, reason, .. } in failed {
                    if let Some(letter) = self.table.get_mut(&position) {
                        letter.reason = reason;
                        letter.mark = letter.mark.filter(|mark| *mark != Mark::Redrive);
                    }
                }
                Answer::FailedAgain
            }
            Command::Fetch(asked) => {
                let found = asked.iter().filter_map(|position| self.table.get(position));
                Answer::Fetched { contents: found.map(Letter::content).collect(), unreadable: Vec::new(), asked }
            }
            Command::Look => {
                let marked = |(position, letter): (&Position, &Letter)| {
                    Some(Marked { position: *position, event_id: "".into(), mark: letter.mark? })
                };
                let marks = self.table.iter().filter_map(marked);
                Answer::Looked(Look { marks: marks.collect(), count: self.table.len() as u64 })
            }
        };
        self.registry.answers.send(answer).unwrap();
        true
    }
}

impl Letter {
    fn metadata(&self) -> DeadLetter {
        let event = &self.new.event;
        DeadLetter {
            id: 0,
            position: event.position,
            event_id: Arc::clone(&event.id),
            keys: event.keys().cloned().collect(),
            route: event.route.name.clone(),
            exchange: event.route.exchange.clone(),
            routing_key: event.message().unwrap().routing_key.clone(),
            reason: self.reason,
            holds_key: self.new.holds_key,
            bytes: event.message().unwrap().body.len() as u64,
            parked_at: SystemTime::UNIX_EPOCH,
            mark: self.mark,
        }
    }

    fn content(&self) -> Content {
        let event = &self.new.event;
        Content {
            position: event.position,
            event_id: Arc::clone(&event.id),
            commit_time: event.commit_time,
            message: event.message().unwrap().clone(),
        }
    }
}

impl World {
    pub(crate) fn errands(&mut self, releasing: bool) -> Checked {
        let errands = self.hold.errands(self.now, releasing && !self.judge.is_closed());
        for letter in &errands.park {
            let position = letter.event.position;
            self.account.parked(position, letter.holds_key);
            self.note(format!("park {} ({})", short(position), letter.reason));
        }
        for failed in &errands.failed {
            self.account.parked(failed.position, true);
        }
        if !errands.fetch.is_empty() {
            let fetched: Vec<String> = errands.fetch.iter().copied().map(short).collect();
            self.note(format!("fetch {}", fetched.join(", ")));
        }
        self.lot.desk.carry_out(errands);
        self.resolved_by_themselves()
    }

    pub(crate) fn resolved_by_themselves(&mut self) -> Checked {
        for ticket in self.hold.take_resolved() {
            let counted = self.progress.resolve(ticket);
            self.check(counted, || format!("{ticket:?} was parked already and did not count"))?;
        }
        Ok(())
    }

    pub(crate) fn database(&mut self) {
        if self.lot.carry_out_one() {
            self.note("the database commits".to_owned());
        }
    }

    /// Hears one answer of the database. Returns whether there was one.
    pub(crate) fn hear(&mut self) -> Checked<bool> {
        // Whatever has happened since the last answer has been told the desk.
        self.errands(false)?;
        let Some(answer) = self.lot.desk.answer().now_or_never() else { return Ok(false) };
        match answer {
            Answer::Loaded { .. } => return self.check(false, || "loaded twice".to_owned()).map(|()| true),
            Answer::Parked(positions) => {
                for position in &positions {
                    let committed = self.lot.contains(*position) || self.account.is_given_up(*position);
                    self.check(committed, || format!("{} is parked and not in the table", short(*position)))?;
                }
                for ticket in self.hold.stored(positions) {
                    let counted = self.progress.resolve(ticket);
                    self.check(counted, || format!("{ticket:?} was parked and did not count"))?;
                }
            }
            Answer::Removed | Answer::FailedAgain => {}
            Answer::Fetched { asked, contents, .. } => {
                self.note(format!("fetched {} of {}", contents.len(), asked.len()));
                self.hold.fetched(&asked, contents, self.now);
            }
            Answer::Looked(look) => {
                let known = self.hold.lot().stored() as u64;
                if self.lot.desk.look_is_exact() && known != look.count {
                    self.check(self.lot.deleted, || format!("{} rows, {known} known", look.count))?;
                    self.end_session(0);
                    return Ok(true);
                }
                for Marked { position, mark, .. } in look.marks {
                    if self.hold.mark(position, mark, self.now) {
                        self.note(format!("discard {}", short(position)));
                        self.account.give_up(position);
                        self.lot.desk.remove(vec![position]);
                    }
                }
            }
        }
        self.lot.desk.go_on();
        Ok(true)
    }

    pub(crate) fn database_and_hear(&mut self) -> Checked {
        while self.lot.carry_out_one() {
            self.hear()?;
        }
        while self.hear()? {}
        Ok(())
    }

    pub(crate) fn look(&mut self) {
        self.now += std::time::Duration::from_secs(2);
        self.lot.desk.look(self.now);
    }

    /// A person deletes a row, which counts as discarded.
    pub(crate) fn delete(&mut self, pick: u8) {
        let position = self.lot.table.keys().nth(usize::from(pick) % self.lot.table.len().max(1)).copied();
        let Some(position) = position else { return };
        self.note(format!("delete {}", short(position)));
        self.lot.table.remove(&position);
        self.lot.deleted = true;
        self.account.forsake(position);
    }

    pub(crate) fn mark(&mut self, pick: u8, mark: Mark) {
        let count = self.lot.table.len().max(1);
        if let Some((position, letter)) = self.lot.table.iter_mut().nth(usize::from(pick) % count) {
            letter.mark = Some(mark);
            let what = format!("mark {} to {mark:?}", short(*position));
            self.note(what);
        }
    }
}
