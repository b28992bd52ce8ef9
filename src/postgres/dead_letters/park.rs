//! The write that parks.

use std::time::SystemTime;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::{PIECE, headers, storable};
use crate::dead_letters::NewDeadLetter;
use crate::event::HeaderValue;
use crate::faults::{self, Point};
use crate::postgres::state::{StateError, fenced};

const DOING: &str = "park events in the dead letters";
/// Of the bodies in one message: it is copied into the connection's buffer as a whole.
const GROUP_BYTES: usize = 4 * PIECE;
/// Letters in one message.
const GROUP: usize = 1_000;

/// Commits these dead letters, all or none. One that is there already is left as it is, so the write may be repeated.
pub async fn park(client: &mut Client, slot: &str, epoch: i64, letters: &[NewDeadLetter]) -> Result<(), StateError> {
    // What fits one message needs no transaction of several.
    let whole = first_group(letters) == letters.len();
    faults::point(Point::Parking);
    if whole && letters.iter().all(|letter| body(letter).len() <= PIECE) {
        return if letters.is_empty() { Ok(()) } else { park_group(client, slot, epoch, letters).await };
    }
    let transaction = client.transaction().await.map_err(StateError::during(DOING))?;
    let mut rest = letters;
    while !rest.is_empty() {
        let (group, more) = rest.split_at(first_group(rest));
        park_group(transaction.client(), slot, epoch, group).await?;
        rest = more;
    }
    transaction.commit().await.map_err(StateError::during(DOING))
}

/// How many letters the first message takes: at least one of them.
fn first_group(letters: &[NewDeadLetter]) -> usize {
    let mut bytes = 0;
    let fits = |letter: &&NewDeadLetter| {
        bytes += body(letter).len().min(PIECE);
        bytes <= GROUP_BYTES
    };
    letters.iter().take(GROUP).take_while(fits).count().max(1)
}

fn body(letter: &NewDeadLetter) -> &[u8] {
    letter.event.message().map_or(&[], |message| message.body.as_ref())
}

async fn park_group(client: &Client, slot: &str, epoch: i64, letters: &[NewDeadLetter]) -> Result<(), StateError> {
    let columns = Columns::of(letters);
    let row = client
        .query_typed_one(include_str!("../../../sql/queries/park.sql"), &columns.parameters(&slot, &epoch))
        .await
        .map_err(StateError::during(DOING))?;
    if !row.get::<_, bool>("carries") {
        return Err(fenced(slot, epoch));
    }
    if row.get("collides") {
        return Err(StateError::Displaced { slot: slot.to_owned() });
    }
    let (positions, ids): (Vec<&str>, Vec<i64>) = (row.get("tall_position"), row.get("tall_id"));
    for (position, id) in positions.into_iter().zip(ids) {
        let letter = columns.position.iter().position(|own| own == position).and_then(|at| letters.get(at));
        for (no, data) in letter.into_iter().flat_map(|letter| body(letter).chunks(PIECE)).enumerate().skip(1) {
            let no = i32::try_from(no).map_err(|_| StateError::Damaged("a body of two petabytes"))?;
            client
                .execute_typed(
                    include_str!("../../../sql/queries/park_chunk.sql"),
                    &[(&id, Type::INT8), (&no, Type::INT4), (&data, Type::BYTEA)],
                )
                .await
                .map_err(StateError::during(DOING))?;
        }
    }
    Ok(())
}

/// The letters turned to columns; see `park.sql`.
#[derive(Default)]
struct Columns<'a> {
    position: Vec<String>,
    event_id: Vec<&'a str>,
    key: Vec<&'a str>,
    old_key: Vec<Option<&'a str>>,
    aggregatetype: Vec<Option<&'a str>>,
    aggregateid: Vec<Option<&'a str>>,
    kind: Vec<Option<&'a str>>,
    route: Vec<&'a str>,
    exchange: Vec<&'a str>,
    routing_key: Vec<&'a str>,
    reason: Vec<&'static str>,
    error: Vec<String>,
    holds_key: Vec<bool>,
    attempts: Vec<i32>,
    content_type: Vec<Option<&'static str>>,
    correlation_id: Vec<Option<String>>,
    headers: Vec<String>,
    committed_at: Vec<SystemTime>,
    body: Vec<&'a [u8]>,
    body_bytes: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(letters: &'a [NewDeadLetter]) -> Self {
        let mut columns = Columns::default();
        for letter in letters {
            columns.push(letter);
        }
        columns
    }

    fn push(&mut self, letter: &'a NewDeadLetter) {
        let event = &letter.event;
        let message = event.message();
        let properties = message.map(|message| &message.properties);
        let header = |wanted: &str| {
            let found = properties?.headers.iter().find(|(name, _)| name == wanted);
            found.and_then(|(_, value)| if let HeaderValue::Text(text) = value { Some(text.as_str()) } else { None })
        };
        // Without a message the ordering key says whose event it was, unless it is that of a table.
        let of_outbox = message.is_none() && event.table().is_none();
        let (aggregatetype, aggregateid) = event.key.split_once('\u{1f}').filter(|_| of_outbox).unzip();
        let whole = body(letter);

        self.position.push(event.position.to_string());
        self.event_id.push(&event.id);
        self.key.push(&event.key);
        self.old_key.push(event.keys().nth(1).map(|key| &**key));
        self.aggregatetype.push(header("aggregatetype").or(aggregatetype));
        self.aggregateid.push(header("aggregateid").or(aggregateid));
        self.kind.push(properties.map(|properties| properties.kind.as_str()));
        self.route.push(&event.route.name);
        self.exchange.push(&event.route.exchange);
        self.routing_key.push(message.map_or("", |message| &message.routing_key));
        self.reason.push(letter.reason.as_str());
        self.error.push(storable(&letter.error));
        self.holds_key.push(letter.holds_key);
        self.attempts.push(i32::try_from(letter.attempts).unwrap_or(i32::MAX));
        self.content_type.push(properties.map(|properties| properties.content_type));
        let correlation_id = properties.and_then(|properties| properties.correlation_id.as_deref());
        self.correlation_id.push(correlation_id.map(headers::text_to_json));
        self.headers.push(headers::to_json(properties.map_or(&[], |properties| &properties.headers)));
        self.committed_at.push(event.commit_time);
        self.body.push(whole.get(..PIECE).unwrap_or(whole));
        self.body_bytes.push(i64::try_from(whole.len()).unwrap_or(i64::MAX));
    }

    fn parameters<'p>(&'p self, slot: &'p &str, epoch: &'p i64) -> [(&'p (dyn ToSql + Sync), Type); 22] {
        [
            (slot, Type::TEXT),
            (epoch, Type::INT8),
            (&self.position, Type::TEXT_ARRAY),
            (&self.event_id, Type::TEXT_ARRAY),
            (&self.key, Type::TEXT_ARRAY),
            (&self.old_key, Type::TEXT_ARRAY),
            (&self.aggregatetype, Type::TEXT_ARRAY),
            (&self.aggregateid, Type::TEXT_ARRAY),
            (&self.kind, Type::TEXT_ARRAY),
            (&self.route, Type::TEXT_ARRAY),
            (&self.exchange, Type::TEXT_ARRAY),
            (&self.routing_key, Type::TEXT_ARRAY),
            (&self.reason, Type::TEXT_ARRAY),
            (&self.error, Type::TEXT_ARRAY),
            (&self.holds_key, Type::BOOL_ARRAY),
            (&self.attempts, Type::INT4_ARRAY),
            (&self.content_type, Type::TEXT_ARRAY),
            (&self.correlation_id, Type::TEXT_ARRAY),
            (&self.headers, Type::TEXT_ARRAY),
            (&self.committed_at, Type::TIMESTAMPTZ_ARRAY),
            (&self.body, Type::BYTEA_ARRAY),
            (&self.body_bytes, Type::INT8_ARRAY),
        ]
    }
}
