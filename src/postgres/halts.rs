//! The table `postrider.halts`: what a halted relay leaves for a person, for the other replicas and for its own next session.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::lsn::Lsn;
use crate::postgres::halt::Halt;
use crate::postgres::state::StateError;

/// A row of `postrider.halts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub reason: String,
    pub from: Lsn,
    pub to: Lsn,
    pub message: String,
    /// It lasts until a person has decided (see [`Halt::decided_by_a_person`]).
    pub decided_by_a_person: bool,
    /// The highest that the relay knew of.
    pub source_epoch: u32,
    pub halted_at: String,
}

/// The halt that a relay of `slot` has left.
pub async fn load(client: &Client, slot: &str) -> Result<Option<Left>, StateError> {
    let row = client
        .query_opt(include_str!("../../sql/queries/load_halt.sql"), &[&slot])
        .await
        .map_err(StateError::during("read the halt of the slot"))?;
    Ok(row.map(|row| {
        let lsn = |column: &str| Lsn(row.get::<_, PgLsn>(column).into());
        Left {
            reason: row.get("reason"),
            from: lsn("from_lsn"),
            to: lsn("to_lsn"),
            message: row.get("message"),
            decided_by_a_person: row.get("decided_by_a_person"),
            source_epoch: u32::try_from(row.get::<_, i32>("source_epoch")).unwrap_or_default(),
            halted_at: row.get("halted_at"),
        }
    }))
}

/// Leaves a halt for a person and for the next session. `source_epoch`: the highest that is known.
pub async fn record(client: &Client, halt: &Halt, source_epoch: u32) -> Result<(), StateError> {
    let (from, to) = (PgLsn::from(halt.from.0), PgLsn::from(halt.to.0));
    client
        .execute(
            include_str!("../../sql/queries/record_halt.sql"),
            &[
                &halt.slot,
                &halt.reason(),
                &from,
                &to,
                &halt.to_string(),
                &halt.decided_by_a_person(),
                &source_epoch.cast_signed(),
            ],
        )
        .await
        .map_err(StateError::during("record the halt"))?;
    Ok(())
}

/// The relay carries: what it has looked up again is gone.
pub async fn forget(client: &Client, slot: &str) -> Result<(), StateError> {
    client
        .execute(include_str!("../../sql/queries/forget_halt.sql"), &[&slot])
        .await
        .map_err(StateError::during("forget the halt"))?;
    Ok(())
}
