//! From a connection to a stream: waiting for the lock, the halt rules, the takeover, the dead letters of before.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use super::{SQL_SILENCE, Session, SessionError};
use crate::dead_letters::DeadLetter;
use crate::error;
use crate::postgres::halt::Halt;
use crate::postgres::halts;
use crate::postgres::replication::{ReplicationConnection, ReplicationStream};
use crate::postgres::slot::{self, Before, SlotError, Taken};
use crate::postgres::sql::Sql;
use crate::postgres::state::{self, StateError};
use crate::postgres::url::Target;
use crate::postgres::witness::{Known, Witness};
use crate::status::Role;

/// The server's consent to START_REPLICATION: it reads the slot from disk and the WAL's start.
const START: Duration = Duration::from_secs(30);
/// To leave a halt in the database.
pub(super) const LEAVE: Duration = Duration::from_secs(5);
/// How often a standby asks for the lock (with jitter of as much again).
const STANDBY_POLL: Duration = Duration::from_millis(500);

/// The stream, what it starts from, the relay epoch, and the dead letters of before.
type Started = (ReplicationStream, Taken, i64, Vec<DeadLetter>);

impl Session {
    /// Up to the point where WAL flows and this relay is the one that carries. The order is rule R6's: the lock, then
    /// START_REPLICATION, then the epoch, and only then may anything be published. `None`: the publisher has ended meanwhile.
    pub(super) async fn start(&mut self, target: &Target, sql: &mut Sql) -> Result<Option<Started>, SessionError> {
        let mut replication = ReplicationConnection::connect(target, &self.config.application_name()).await?;
        if !self.stand_by(sql.client(), &mut replication).await? {
            return Ok(None);
        }
        in_time(self.take(sql, replication)).await.map(Some)
    }

    /// Waits for the lock. False: the publisher has ended meanwhile.
    async fn stand_by(&self, sql: &Client, replication: &mut ReplicationConnection) -> Result<bool, SessionError> {
        let slot = &self.config.slot;
        let mut waiting = false;
        let halted = self.status.snapshot().role == Role::Halted;
        // A standby without a broker would keep the slot from one that has it.
        while !(self.can_publish() && in_time(slot::try_lock(sql, replication, slot)).await?) {
            // Whoever looks at a halted slot holds its lock for a moment: `adopt`, another replica.
            let still_halted = halted && in_time(halts::load(sql, slot)).await?.is_some();
            if !waiting && !still_halted && self.can_publish() {
                waiting = true;
                tracing::info!(slot, "another relay carries; standing by");
                let text = format!("another relay holds slot {slot}; standing by to take over");
                // A halt that somebody else has got over is one no longer.
                self.metrics.set_role(Role::Standby);
                self.metrics.set_halted(None);
                self.metrics.forget_delivery();
                self.status.update(|status| {
                    status.role = Role::Standby;
                    status.standing_by = true;
                    status.problem = Some(text);
                    status.halt = None;
                });
            }
            if self.resolved.is_closed() {
                return Ok(false);
            }
            sleep(STANDBY_POLL.mul_f64(1.0 + rand::random::<f64>())).await;
        }
        Ok(true)
    }

    /// With the lock.
    async fn take(&mut self, sql: &mut Sql, mut replication: ReplicationConnection) -> Result<Started, SessionError> {
        let before = Before { witness: &self.witness, missing_topology: self.missing_topology.take() };
        let taken = match slot::take(sql.client_mut(), &mut replication, &self.config, before).await {
            // While the lock is still held.
            Err(SlotError::Halt(halt)) => {
                let write = halts::record(sql.client(), &halt, self.witness.source_epoch(&self.config.slot));
                left(&self.witness, &halt, timeout(LEAVE, write).await.ok());
                return Err(Box::new(halt).into());
            }
            taken => taken?,
        };
        let messages = self.config.source.streams_messages();
        let stream = replication.start(&self.config.slot, &taken.publications(&self.config), messages, START).await?;
        let (epoch, letters) = state::take_over(sql.client_mut(), &self.config.slot, taken.source()).await?;
        halts::forget(sql.client(), &self.config.slot).await?;
        self.witness.begin(Known::of(&self.config.slot, &taken, epoch));
        Ok((stream, taken, epoch, letters))
    }

    fn can_publish(&self) -> bool {
        let status = self.status.snapshot();
        status.broker_up && status.broker_blocked.is_none()
    }
}

/// What is asked of PostgreSQL, unless it falls silent.
async fn in_time<T, E: Into<SessionError>>(asked: impl Future<Output = Result<T, E>>) -> Result<T, SessionError> {
    match timeout(SQL_SILENCE, asked).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(SessionError::SqlSilent),
    }
}

/// A halt has been left in the database, or not: then the next session of this process knows of it, and tries again. The relay halts either
/// way.
pub(super) fn left(witness: &Witness, halt: &Halt, result: Option<Result<(), StateError>>) {
    let why = match result {
        Some(Ok(())) => {
            witness.halted(None);
            return;
        }
        Some(Err(error)) => error::chain(&error),
        None => "no answer in time".to_owned(),
    };
    // Each look tries again; it is said once.
    if witness.halted(Some(halt.clone())) {
        return;
    }
    tracing::warn!(error = why, "cannot leave the halt in postrider.halts yet: `postrider adopt` looks for itself");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_never_answered_is_given_up() {
        let never = std::future::pending::<Result<(), StateError>>();
        assert!(matches!(in_time(never).await, Err(SessionError::SqlSilent)));
    }
}
