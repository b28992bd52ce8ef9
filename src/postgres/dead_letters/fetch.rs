//! What is needed to publish a dead letter.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::{PIECE, headers, position, size, texts};
use crate::dead_letters::{Content, Unreadable};
use crate::event::{Message, Position, Properties};
use crate::postgres::state::StateError;

/// Where there was no message, and so nothing that could be of another type.
const NO_CONTENT_TYPE: &str = "application/octet-stream";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// In the order of positions.
    pub readable: Vec<Content>,
    /// Their rows are not such as a relay writes. Their own matter: the others are there all the same.
    pub unreadable: Vec<Unreadable>,
}

/// Those that exist. Adds nothing and locks nothing. All of them are in memory at once, so the
/// caller bounds what it asks for by [`DeadLetter::bytes`](crate::dead_letters::DeadLetter::bytes).
pub async fn fetch(client: &Client, slot: &str, positions: &[Position]) -> Result<Contents, StateError> {
    const DOING: &str = "read dead letters";
    let rows = client
        .query_typed(
            include_str!("../../../sql/queries/fetch_dead_letters.sql"),
            &[(&slot, Type::TEXT), (&texts(positions), Type::TEXT_ARRAY)],
        )
        .await
        .map_err(StateError::during(DOING))?;
    let mut found = Vec::new();
    let mut unreadable = Vec::new();
    for row in &rows {
        // By its position it was found.
        let position = position(row.get("position"))?;
        match Found::read(row, position) {
            Ok(letter) => found.push(letter),
            Err(why) => unreadable.push(Unreadable { id: row.get("id"), position, why }),
        }
    }
    let tall: Vec<i64> = found.iter().filter(|found| found.lacks() > 0).map(|found| found.id).collect();
    if !tall.is_empty() {
        let chunks = client
            .query_typed_raw(include_str!("../../../sql/queries/fetch_chunks.sql"), [(tall, Type::INT8_ARRAY)])
            .await
            .map_err(StateError::during(DOING))?;
        let mut chunks = pin!(chunks);
        while let Some(chunk) = chunks.try_next().await.map_err(StateError::during(DOING))? {
            let id: i64 = chunk.get("dead_letter");
            if let Some(found) = found.iter_mut().find(|found| found.id == id) {
                found.body.extend_from_slice(chunk.get("data"));
            }
        }
    }
    // The chunks were read after the rows: one that lacks something has been removed in between.
    let readable = found.into_iter().filter(|found| found.lacks() == 0).map(Found::content).collect();
    Ok(Contents { readable, unreadable })
}

/// A dead letter whose body may not be complete yet.
struct Found {
    id: i64,
    content: Content,
    body: Vec<u8>,
    bytes: u64,
}

impl Found {
    /// An error says why it cannot be.
    fn read(row: &Row, position: Position) -> Result<Self, &'static str> {
        /// Whatever the row says, no more is reserved at once.
        const RESERVE: usize = 64 * PIECE;
        let bytes = size(row).map_err(|_| "its size is negative")?;
        let start: &[u8] = row.get("body");
        let mut body = Vec::with_capacity(usize::try_from(bytes).unwrap_or(RESERVE).min(RESERVE));
        body.extend_from_slice(start);
        let event_id: Arc<str> = Arc::from(row.get::<_, &str>("event_id"));
        let commit_time: SystemTime = row.get("committed_at");
        let correlation_id = row.get::<_, Option<&str>>("correlation_id").map(headers::text_from_json).transpose();
        let properties = Properties {
            message_id: Arc::clone(&event_id),
            kind: row.get::<_, Option<String>>("type").unwrap_or_default(),
            content_type: content_type(row.get::<_, Option<&str>>("content_type").unwrap_or(NO_CONTENT_TYPE)),
            timestamp: commit_time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            correlation_id: correlation_id.map_err(|_| "its correlation id is no JSON text")?,
            headers: headers::from_json(row.get("headers"))
                .map_err(|_| "its headers are no JSON object of texts, integers and booleans")?,
        };
        let message = Message { routing_key: row.get("routing_key"), properties, body: Bytes::new() };
        let content = Content { position, event_id, commit_time, message };
        Ok(Found { id: row.get("id"), content, body, bytes })
    }

    /// Bytes of the body that have not come.
    fn lacks(&self) -> u64 {
        self.bytes.saturating_sub(u64::try_from(self.body.len()).unwrap_or(u64::MAX))
    }

    fn content(mut self) -> Content {
        self.content.message.body = self.body.into();
        self.content
    }
}

/// The formats have few content types, and each is kept for ever once it has been seen: rows name them, events hold them by
/// a `'static` reference.
fn content_type(text: &str) -> &'static str {
    static SEEN: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = seen.get(text) {
        return known;
    }
    let kept: &'static str = Box::leak(Box::from(text));
    seen.insert(kept);
    kept
}
