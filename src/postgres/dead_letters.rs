//! The statements of the dead letters (rules R3, R4, R6).
//!
//! Every write checks the relay's epoch in its own transaction and locks the row that holds it, so that nothing of a relay
//! that was replaced is committed after its successor has read what is parked. Hundreds of small letters are one message to
//! the server and one back: arrays, and statements whose types are given instead of asked for.

mod fetch;
pub(crate) mod headers;
mod park;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Transaction};

pub use fetch::{Contents, fetch};
pub use park::park;

use super::state::{StateError, fenced};
use crate::dead_letters::{DeadLetter, FailedAgain, Mark, Reason, Unreadable};
use crate::event::Position;
use crate::lsn::Lsn;

/// Rows that one log line names.
const SHOWN: usize = 20;
/// What a row holds of a body, and what a chunk holds of the rest. The constraints of the tables say the same.
const PIECE: usize = 1024 * 1024;

/// What [`look`] finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// In the order of positions.
    pub marks: Vec<Marked>,
    /// Dead letters of the slot, marked or not.
    pub count: u64,
}

/// A dead letter that a person has marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    pub position: Position,
    /// For the log.
    pub event_id: Arc<str>,
    pub mark: Mark,
}

/// All dead letters of the slot without content, in the order of positions. Runs inside the transaction that has raised the
/// epoch: what the relay before has parked is committed, and it will park nothing more.
pub async fn load(transaction: &Transaction<'_>, slot: &str) -> Result<Vec<DeadLetter>, StateError> {
    const DOING: &str = "load the dead letters";
    let rows = transaction
        .query_typed_raw(include_str!("../../sql/queries/load_dead_letters.sql"), [(slot, Type::TEXT)])
        .await
        .map_err(StateError::during(DOING))?;
    let mut rows = pin!(rows);
    // Row by row, with each key once: there may be a hundred thousand of them, of a few keys.
    let mut keys = HashSet::new();
    let mut letters = Vec::new();
    let mut unreadable = Vec::new();
    while let Some(row) = rows.try_next().await.map_err(StateError::during(DOING))? {
        letters.push(dead_letter(&row, &mut keys, &mut unreadable)?);
    }
    if let Some(first) = unreadable.first() {
        let ids: Vec<i64> = unreadable.iter().take(SHOWN).map(|letter| letter.id).collect();
        tracing::error!(
            count = unreadable.len(),
            ids = ?ids,
            why = first.why,
            "dead letters cannot be read: no relay of this version writes such rows. They stay, with the later events of their keys \
             behind them, and all else is carried; `postrider dlq redrive ID` tries one all the same, `postrider dlq discard ID` \
             gives it up (where it is the position that cannot be read, delete the row)"
        );
    }
    Ok(letters)
}

/// A row that is not one of ours holds its keys all the same, and waits for a person: without it their order is not known.
fn dead_letter(
    row: &Row,
    keys: &mut HashSet<Arc<str>>,
    unreadable: &mut Vec<Unreadable>,
) -> Result<DeadLetter, StateError> {
    let mut shared = |key: &str| match keys.get(key) {
        Some(key) => Arc::clone(key),
        None => {
            let key: Arc<str> = Arc::from(key);
            keys.insert(Arc::clone(&key));
            key
        }
    };
    let id = row.get("id");
    let (known, reason) = (position(row.get("position")), row.get::<_, &str>("reason").parse::<Reason>());
    let mark = row.get::<_, Option<&str>>("mark").map(mark).transpose();
    let why = match (&known, &reason, &mark) {
        (Err(_), _, _) => Some("its position is none"),
        (_, Err(_), _) => Some("its reason is unknown"),
        (_, _, Err(_)) => Some("its mark is unknown"),
        _ => None,
    };
    // Before all events, and apart from each other: nobody knows where it belongs.
    let nowhere = u32::try_from(unreadable.len()).unwrap_or(u32::MAX);
    let position = known.unwrap_or(Position { epoch: 0, commit: Lsn::ZERO, ordinal: nowhere, part: 0 });
    unreadable.extend(why.map(|why| Unreadable { id, position, why }));
    Ok(DeadLetter {
        id,
        position,
        event_id: row.get::<_, &str>("event_id").into(),
        keys: row.get::<_, Vec<&str>>("keys").into_iter().map(&mut shared).collect(),
        route: row.get("route"),
        exchange: row.get("exchange"),
        routing_key: row.get("routing_key"),
        reason: if why.is_some() { Reason::Unreadable } else { reason.unwrap_or(Reason::Unreadable) },
        holds_key: row.get("holds_key"),
        bytes: size(row)?,
        parked_at: row.get("parked_at"),
        mark: mark.unwrap_or_default(),
    })
}

/// They have been delivered or discarded. Those that are gone already are no error.
pub async fn remove(client: &Client, slot: &str, epoch: i64, positions: &[Position]) -> Result<(), StateError> {
    let row = client
        .query_typed_one(
            include_str!("../../sql/queries/remove_dead_letters.sql"),
            &[(&slot, Type::TEXT), (&epoch, Type::INT8), (&texts(positions), Type::TEXT_ARRAY)],
        )
        .await
        .map_err(StateError::during("take out dead letters"))?;
    row.get::<_, bool>("carries").then_some(()).ok_or_else(|| fenced(slot, epoch))
}

/// They were published and refused again: one attempt more, and a mark that asked for it is gone. Those that are gone
/// themselves are no error.
pub async fn failed_again(client: &Client, slot: &str, epoch: i64, failed: &[FailedAgain]) -> Result<(), StateError> {
    let positions: Vec<String> = failed.iter().map(|failed| failed.position.to_string()).collect();
    let reason = |failed: &FailedAgain| Some(failed.reason.as_str()).filter(|_| failed.reason != Reason::Unreadable);
    let reasons: Vec<Option<&str>> = failed.iter().map(reason).collect();
    let errors: Vec<String> = failed.iter().map(|failed| storable(&failed.error)).collect();
    let row = client
        .query_typed_one(
            include_str!("../../sql/queries/dead_letters_failed_again.sql"),
            &[
                (&slot, Type::TEXT),
                (&epoch, Type::INT8),
                (&positions, Type::TEXT_ARRAY),
                (&reasons, Type::TEXT_ARRAY),
                (&errors, Type::TEXT_ARRAY),
            ],
        )
        .await
        .map_err(StateError::during("note that dead letters were refused again"))?;
    row.get::<_, bool>("carries").then_some(()).ok_or_else(|| fenced(slot, epoch))
}

/// Marks that are set, and how many dead letters of the slot there are at all: people may have deleted rows.
///
/// The count reads the slot's part of an index: for a hundred thousand 20 ms, or 90 until they have been vacuumed.
pub async fn look(client: &Client, slot: &str) -> Result<Look, StateError> {
    let rows = client
        .query_typed(include_str!("../../sql/queries/look_at_dead_letters.sql"), &[(&slot, Type::TEXT)])
        .await
        .map_err(StateError::during("look at the dead letters"))?;
    let mut look = Look::default();
    for row in &rows {
        look.count = u64::try_from(row.get::<_, i64>("count")).map_err(|_| StateError::Damaged("a negative count"))?;
        if let Some(text) = row.get::<_, Option<&str>>("mark") {
            let event_id = row.get::<_, &str>("event_id").into();
            // What cannot be read was said when it was loaded.
            if let (Ok(position), Ok(mark)) = (position(row.get("position")), mark(text)) {
                look.marks.push(Marked { position, event_id, mark });
            }
        }
    }
    Ok(look)
}

/// The broker's words may be anything, and a text of PostgreSQL holds no NUL.
fn storable(text: &str) -> String {
    text.replace('\0', " ")
}

fn texts(positions: &[Position]) -> Vec<String> {
    positions.iter().map(Position::to_string).collect()
}

fn position(text: &str) -> Result<Position, StateError> {
    text.parse().map_err(|_| StateError::Damaged("a position that is none"))
}

fn mark(text: &str) -> Result<Mark, StateError> {
    match text {
        "redrive" => Ok(Mark::Redrive),
        "discard" => Ok(Mark::Discard),
        _ => Err(StateError::Damaged("an unknown mark")),
    }
}

fn size(row: &Row) -> Result<u64, StateError> {
    u64::try_from(row.get::<_, i64>("body_bytes")).map_err(|_| StateError::Damaged("a negative size"))
}
