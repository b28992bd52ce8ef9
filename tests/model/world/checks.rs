//! What must hold after each step, and what must be reached in the end.

use postrider::lsn::Lsn;

use super::{Checked, World, short};
use crate::broker::{ExchangeState, QueueState};
use crate::wal;

impl World {
    pub(crate) fn check_all(&mut self) -> Checked {
        self.check_order()?;
        let acknowledged = self.progress.acknowledged();
        let received = self.progress.received();
        self.check(acknowledged >= self.acknowledged, || format!("{acknowledged} was acknowledged after more"))?;
        self.check(acknowledged <= received, || format!("{acknowledged} was acknowledged, {received} received"))?;
        self.acknowledged = acknowledged;
        let passed = self.wal.records.iter().take_while(|record| record.end <= acknowledged);
        for record in passed {
            for ordinal in 0..record.rows.len() {
                let position = wal::position(record.lsn, ordinal);
                let safe = self.account.has_arrived(position)
                    || self.account.is_given_up(position)
                    || self.lot.contains(position);
                self.check(safe, || {
                    format!("{acknowledged} was acknowledged and {} neither delivered nor parked", short(position))
                })?;
            }
        }
        let recounted = self.hold.recount();
        self.check(recounted.is_ok(), || recounted.clone().unwrap_err())?;
        let stats = self.hold.stats();
        let bound = self.limits.waiting + self.limits.window + stats.released;
        self.check(stats.on_wire <= self.limits.window, || format!("{} on the wire", stats.on_wire))?;
        self.check(stats.on_wire + stats.waiting <= bound, || format!("{stats:?}"))?;
        self.check(stats.on_wire == self.judge.undecided(), || format!("{stats:?}, {}", self.judge.undecided()))?;
        let entries = self.progress.entries();
        let unresolved = self.progress.unresolved();
        self.check(entries as u64 <= unresolved + 2, || format!("{entries} entries for {unresolved}"))?;
        let held = stats.on_wire + stats.waiting - stats.released;
        // What comes after a poison that halts is forgotten: the session is to end.
        let as_many = unresolved == held as u64 || (self.hold.halted().is_some() && unresolved > held as u64);
        self.check(as_many, || format!("{unresolved} unresolved, {held} in the hold"))
    }

    fn check_order(&mut self) -> Checked {
        while let Some(position) = self.broker.accepted.get(self.seen_accepted).copied() {
            self.seen_accepted += 1;
            let missing = self.account.arrive(position, &self.wal).map(short);
            self.check(missing.is_none(), || format!("{} arrived before {missing:?}", short(position)))?;
        }
        Ok(())
    }

    /// The world heals: everything must arrive and be acknowledged.
    pub(crate) fn heal(&mut self) -> Checked {
        self.note("the world heals".to_owned());
        for queue in 0..wal::QUEUES.len() {
            self.set_queue(queue, QueueState::Open);
        }
        for exchange in 0..wal::EXCHANGES.len() {
            self.set_exchange(exchange, ExchangeState::Present);
        }
        self.broker.tolerant = true;
        let rounds = 100 + 4 * self.wal.rows.len();
        for _ in 0..rounds {
            self.round()?;
        }
        let stays = self.lot.leaves_by_itself(&self.wal);
        self.check(stays.is_none(), || format!("{:?} does not leave by itself", stays.map(short)))?;
        for _ in 0..rounds {
            self.lot.redrive_everything();
            self.round()?;
        }
        let last = self.wal.records.last().map_or(Lsn::ZERO, |record| record.end);
        let acknowledged = self.progress.acknowledged();
        self.check(acknowledged >= last, || format!("acknowledged {acknowledged}, and {last} is delivered"))?;
        self.keepalive();
        let (acknowledged, end) = (self.progress.acknowledged(), self.wal.end);
        let stats = self.hold.stats();
        self.check(acknowledged == end, || format!("acknowledged {acknowledged} of {end}, {stats:?}"))?;
        let idle = self.hold.idle(self.now) && stats.waiting + stats.on_wire + stats.held_keys == 0;
        self.check(self.lot.is_empty(), || format!("{} dead letters are left", self.lot.len()))?;
        let lot = self.hold.lot();
        self.check(lot.is_empty() && lot.parked_keys() == 0 && lot.bytes() == 0, || format!("{lot:?}"))?;
        self.check(idle && stats.waiting_bytes + stats.on_wire_bytes == 0, || format!("{stats:?}"))
    }

    /// Everybody does what there is to do, and the time passes until there is more.
    fn round(&mut self) -> Checked {
        if self.hold.halted().is_some() {
            self.end_session(0);
        }
        self.errands(true)?;
        self.database_and_hear()?;
        self.look();
        self.database_and_hear()?;
        while self.read()? {}
        self.turn(true)?;
        for _ in 0..self.limits.window {
            self.process();
        }
        for pick in 0..u8::try_from(self.limits.window).unwrap() {
            self.confirm(pick);
        }
        self.sweep()?;
        self.sweep()?;
        while self.needs_another_pass() {
            self.sweep()?;
        }
        self.probe()?;
        self.tick_to_next()?;
        self.late_tickets()?;
        self.check_all()
    }
}
