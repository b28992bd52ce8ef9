//! The statements of the dead letters, run by the relay's role (rules R3, R4, R6).

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use postrider::dead_letters::{Content, FailedAgain, Mark, NewDeadLetter, Reason};
use postrider::event::{Event, HeaderValue, Joins, Message, Poison, PoisonReason, Position, Properties, Route, Ticket};
use postrider::lsn::Lsn;
use postrider::postgres::dead_letters::{Contents, Look, Marked, failed_again, fetch, look, park, remove};
use postrider::postgres::state::{StateError, take_over};
use tokio_postgres::Client;

use super::state::{SOURCE, carrying, is_fenced};
use super::text;
use crate::support::eventually;

const MIB: usize = 1024 * 1024;

pub(super) fn position(number: u32) -> Position {
    Position { epoch: 0, commit: Lsn(0xABC_DEF0), ordinal: number, part: 0 }
}

fn message(number: u32, body: Bytes) -> Message {
    let written = |name: &str, value: &str| (name.to_owned().into(), HeaderValue::Text(value.to_owned()));
    Message {
        routing_key: format!("order.Placed.{number}"),
        properties: Properties {
            message_id: format!("event-{number}").into(),
            kind: "Placed".to_owned(),
            content_type: "application/json",
            timestamp: 1_700_000_000,
            correlation_id: Some("nul \0 and \u{e4}".to_owned()),
            headers: vec![
                written("aggregatetype", "order"),
                written("aggregateid", &(number % 3).to_string()),
                ("version".into(), HeaderValue::Integer(-7)),
                ("flag".into(), HeaderValue::Bool(true)),
                written("7", "7"),
                written("nul", "\0\u{1f}\u{fffd}\"\\"),
            ],
        },
        body,
    }
}

/// Of three keys.
pub(super) fn letter(number: u32, reason: Reason, body: impl Into<Bytes>) -> NewDeadLetter {
    let message = message(number, body.into());
    let event = Event {
        position: position(number),
        id: Arc::clone(&message.properties.message_id),
        key: format!("order\u{1f}{}", number % 3).into(),
        joins: Joins::Nothing,
        route: Arc::new(Route { name: "default".to_owned(), exchange: "events".to_owned(), ..Route::default() }),
        commit_time: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
        ticket: Ticket::NONE,
        content: Ok(message),
        remains: None,
    };
    NewDeadLetter { event: Arc::new(event), reason, error: "NO_ROUTE \0".to_owned(), holds_key: true, attempts: 2 }
}

fn poison(number: u32, message: Option<Message>) -> NewDeadLetter {
    let mut poisoned = letter(number, Reason::Poison(PoisonReason::TooLarge), Bytes::new());
    let event = Arc::make_mut(&mut poisoned.event);
    event.content = Err(Poison::new(PoisonReason::TooLarge, "a body of many bytes"));
    event.remains = message.map(Box::new);
    poisoned
}

fn expected(letter: &NewDeadLetter) -> Content {
    let event = &letter.event;
    let message = event.message().unwrap().clone();
    Content { position: event.position, event_id: Arc::clone(&event.id), commit_time: event.commit_time, message }
}

async fn count(client: &Client, table: &str) -> String {
    text(client, &format!("select count(*)::text from postrider.{table}")).await
}

#[tokio::test]
async fn what_was_parked_is_loaded_in_order_and_fetched_as_it_was() {
    let (_database, mut relay, slot, epoch) = carrying().await;
    let mut letters: Vec<_> =
        (0..600).map(|number| letter(number, Reason::Behind, format!("{{\"n\": {number}}}"))).collect();
    letters[1] = letter(1, Reason::Nacked, Bytes::new());
    letters[2] = poison(2, Some(message(2, Bytes::from_static(b"\0\xff what could be made"))));
    letters[2].holds_key = false;
    Arc::make_mut(&mut letters[3].event).joins = Joins::Key(Arc::from("order\u{1f}old"));
    let table: Arc<str> = Arc::from("\u{1e}public\u{1e}orders\u{1f}");
    let barrier = Arc::make_mut(&mut letters[4].event);
    (barrier.key, barrier.joins) = (Arc::clone(&table), Joins::Table);
    letters.reverse();
    park(&mut relay, &slot, epoch, &letters).await.unwrap();

    let (_, loaded) = take_over(&mut relay, &slot, SOURCE).await.unwrap();
    let positions: Vec<_> = loaded.iter().map(|letter| letter.position).collect();
    assert_eq!(positions, (0..600).map(position).collect::<Vec<_>>());
    let two = &loaded[2];
    assert_eq!((two.reason, two.holds_key, two.bytes, two.mark), (letters[597].reason, false, 21, None));
    assert_eq!(two.keys, [Arc::from("order\u{1f}2")]);
    assert_eq!(loaded[3].keys, [Arc::from("order\u{1f}0"), Arc::from("order\u{1f}old")]);
    assert_eq!(loaded[4].keys, [table]);
    assert_eq!((two.route.as_str(), two.exchange.as_str()), ("default", "events"));
    assert_eq!(two.routing_key, "order.Placed.2");
    assert!(two.parked_at.elapsed().unwrap_or_default() < Duration::from_secs(60));

    let mut wanted: Vec<_> = positions.clone();
    wanted.push(position(9_999));
    let contents = fetch(&relay, &slot, &wanted).await.unwrap().readable;
    let all: Vec<_> = letters.iter().rev().map(expected).collect();
    assert_eq!(contents, all);
    assert_eq!(fetch(&relay, "another_slot", &wanted).await.unwrap(), Contents::default());
}

#[tokio::test]
async fn what_has_no_message_is_parked_with_an_empty_body_and_the_names_of_its_key() {
    let (_database, mut relay, slot, epoch) = carrying().await;
    park(&mut relay, &slot, epoch, &[poison(1, None)]).await.unwrap();
    let [content] = <[Content; 1]>::try_from(fetch(&relay, &slot, &[position(1)]).await.unwrap().readable).unwrap();
    assert_eq!((content.message.body.len(), content.message.properties.headers.len()), (0, 0));
    let known = "select concat_ws(' ', aggregatetype, aggregateid, event_id) from postrider.parked";
    assert_eq!(text(&relay, known).await, "order 1 event-1");
}

/// Neither compressible nor text, and no multiple of a chunk.
fn noise(length: usize) -> Bytes {
    let mut state = 1_u64;
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56).to_le_bytes()[0]
    });
    next.take(length).collect()
}

#[tokio::test]
async fn a_body_of_any_size_comes_back_byte_for_byte() {
    let (database, mut relay, slot, epoch) = carrying().await;
    let sizes = [17 * MIB + 13, MIB, MIB + 1, 2 * MIB, 0];
    let letters: Vec<_> =
        (0..).zip(sizes).map(|(number, size)| letter(number, Reason::Unroutable, noise(size))).collect();
    park(&mut relay, &slot, epoch, &letters).await.unwrap();
    assert_eq!(count(&relay, "dead_letter_chunks").await, (17 + 1 + 1).to_string());
    let contents = fetch(&relay, &slot, &(0..5).map(position).collect::<Vec<_>>()).await.unwrap().readable;
    for (content, letter) in contents.iter().zip(&letters) {
        assert!(*content == expected(letter), "{} bytes", letter.event.message().unwrap().body.len());
    }
    assert_eq!(contents.len(), 5);
    let assembled = "select body_bytes, length(postrider.dead_letter_body(id))::bigint, postrider.dead_letter_body(id)
                     from postrider.dead_letters where position = $1";
    let row = relay.query_one(assembled, &[&position(0).to_string()]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (sizes[0] as i64, sizes[0] as i64));
    assert!(row.get::<_, &[u8]>(2) == noise(sizes[0]), "the function gives the same bytes");

    // Somebody deletes the rest of a body between the two statements of a fetch, or by hand: such a one is not sent.
    let owner = database.connect().await;
    owner.batch_execute("delete from postrider.dead_letter_chunks where no = 17").await.unwrap();
    assert_eq!(fetch(&relay, &slot, &[position(0)]).await.unwrap(), Contents::default());
    remove(&relay, &slot, epoch, &[position(0), position(1), position(2)]).await.unwrap();
    assert_eq!(
        (count(&relay, "dead_letters").await, count(&relay, "dead_letter_chunks").await),
        ("2".into(), "1".into())
    );
}

#[tokio::test]
async fn parking_again_changes_nothing() {
    let (_database, mut relay, slot, epoch) = carrying().await;
    let first = [letter(1, Reason::Unroutable, noise(2 * MIB)), letter(2, Reason::Behind, "two")];
    park(&mut relay, &slot, epoch, &first).await.unwrap();
    let rows = "select string_agg(id || reason || attempts, ' ' order by position) from postrider.dead_letters";
    let before = text(&relay, rows).await;
    let mut again =
        [letter(1, Reason::Nacked, noise(2 * MIB)), letter(2, Reason::Nacked, "two"), letter(3, Reason::Behind, "")];
    park(&mut relay, &slot, epoch, &again).await.unwrap();
    let after = text(&relay, rows).await;
    assert!(after.starts_with(&before), "{before} became {after}");
    assert_eq!(count(&relay, "dead_letter_chunks").await, "1");
    park(&mut relay, &slot, epoch, &[]).await.unwrap();

    // The positions of a source that was rewound may come again: another event is never taken for one that is there.
    let event = Arc::make_mut(&mut again[1].event);
    event.id = "another".into();
    let refused = park(&mut relay, &slot, epoch, &[letter(4, Reason::Behind, ""), again[1].clone()]).await;
    assert!(matches!(refused, Err(StateError::Displaced { .. })), "{refused:?}");
    assert_eq!(text(&relay, rows).await, after);
}

#[tokio::test]
async fn what_is_refused_again_stays_and_its_mark_is_gone() {
    let (database, mut relay, slot, epoch) = carrying().await;
    let letters: Vec<_> = (0..3).map(|number| letter(number, Reason::Behind, "x")).collect();
    park(&mut relay, &slot, epoch, &letters).await.unwrap();
    assert_eq!(look(&relay, &slot).await.unwrap(), Look { marks: vec![], count: 3 });
    let owner = database.connect().await;
    let mark = "select postrider.redrive(ids => array[(select min(id) from postrider.parked)]);
                select postrider.discard(ids => array[(select max(id) from postrider.parked)])";
    owner.batch_execute(mark).await.unwrap();
    let marked = |number, mark| {
        let event_id = Arc::clone(&letters[number as usize].event.id);
        Marked { position: position(number), event_id, mark }
    };
    let marks = vec![marked(0, Mark::Redrive), marked(2, Mark::Discard)];
    assert_eq!(look(&relay, &slot).await.unwrap(), Look { marks, count: 3 });

    let failed = |number| FailedAgain { position: position(number), reason: Reason::Nacked, error: "full\0".into() };
    failed_again(&relay, &slot, epoch, &[failed(0), failed(2), failed(7)]).await.unwrap();
    assert_eq!(look(&relay, &slot).await.unwrap(), Look { marks: vec![marked(2, Mark::Discard)], count: 3 });
    let rows =
        "select string_agg(concat_ws(' ', reason, attempts, error, last_attempt_at is not null, marked_by is not null),
                                  ', ' order by position) from postrider.dead_letters";
    assert_eq!(text(&relay, rows).await, "nacked 3 full  t f, behind 2 NO_ROUTE   f f, nacked 3 full  t t");
    let (_, loaded) = take_over(&mut relay, &slot, SOURCE).await.unwrap();
    assert_eq!(loaded.iter().map(|letter| letter.mark).collect::<Vec<_>>(), [None, None, Some(Mark::Discard)]);
}

#[tokio::test]
async fn a_relay_that_was_replaced_neither_parks_nor_removes() {
    let (_database, mut relay, slot, epoch) = carrying().await;
    park(&mut relay, &slot, epoch, &[letter(1, Reason::Unroutable, "x")]).await.unwrap();
    take_over(&mut relay, &slot, SOURCE).await.unwrap();
    let rows = "select string_agg(d::text, '') from postrider.dead_letters d";
    let before = text(&relay, rows).await;
    for body in [Bytes::from_static(b"x"), noise(2 * MIB)] {
        assert!(is_fenced(park(&mut relay, &slot, epoch, &[letter(2, Reason::Unroutable, body)]).await));
    }
    assert!(is_fenced(remove(&relay, &slot, epoch, &[position(1)]).await));
    let failed = FailedAgain { position: position(1), reason: Reason::Nacked, error: String::new() };
    assert!(is_fenced(failed_again(&relay, &slot, epoch, &[failed]).await));
    assert_eq!(text(&relay, rows).await, before);
    assert!(fetch(&relay, &slot, &[position(1)]).await.is_ok(), "reading needs no epoch");
}

/// Sessions of this test's database that wait for a lock.
async fn waiting(client: &Client, how_many: &str) {
    let query = "select count(*)::text from pg_stat_activity
                 where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0";
    eventually("they wait for each other", async || {
        client.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
        (text(client, query).await == how_many).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_write_that_meets_a_takeover_waits_and_is_fenced() {
    let (database, mut parking, slot, epoch) = carrying().await;
    park(&mut parking, &slot, epoch, &[letter(1, Reason::Unroutable, "x")]).await.unwrap();
    let role = format!("{}_relay", database.name);
    let [successor, removing, failing] =
        [database.connect_as(&role).await, database.connect_as(&role).await, database.connect_as(&role).await];
    successor.batch_execute("begin; update postrider.progress set relay_epoch = relay_epoch + 1").await.unwrap();
    let committed = async {
        waiting(&successor, "3").await;
        successor.batch_execute("commit").await.unwrap();
    };
    let failed = [FailedAgain { position: position(1), reason: Reason::Nacked, error: String::new() }];
    let (letters, first) = ([letter(2, Reason::Behind, "x")], [position(1)]);
    let (parked, removed, noted, ()) = tokio::join!(
        park(&mut parking, &slot, epoch, &letters),
        remove(&removing, &slot, epoch, &first),
        failed_again(&failing, &slot, epoch, &failed),
        committed
    );
    assert!(is_fenced(parked) && is_fenced(removed) && is_fenced(noted));
    assert_eq!(text(&successor, "select string_agg(reason, '') from postrider.parked").await, "unroutable");
}

#[tokio::test]
async fn a_takeover_that_meets_a_write_waits_and_loads_what_it_parked() {
    let (database, mut relay, slot, epoch) = carrying().await;
    let mut successor = database.connect_as(&format!("{}_relay", database.name)).await;
    let owner = database.connect().await;
    // Holds up the write between its lock and its commit.
    owner.batch_execute("begin; lock table postrider.dead_letter_chunks in exclusive mode").await.unwrap();
    let let_go = async {
        waiting(&owner, "2").await;
        owner.batch_execute("commit").await.unwrap();
    };
    let letters = [letter(1, Reason::Unroutable, noise(2 * MIB))];
    let takeover = async {
        waiting(&owner, "1").await;
        take_over(&mut successor, &slot, SOURCE).await
    };
    let (parked, taken, ()) = tokio::join!(park(&mut relay, &slot, epoch, &letters), takeover, let_go);
    parked.unwrap();
    let (next, loaded) = taken.unwrap();
    assert_eq!((next, loaded.len()), (epoch + 1, 1));
}

#[tokio::test]
async fn whoever_marks_and_the_relay_that_removes_do_not_wait_in_a_circle() {
    let (database, mut relay, slot, epoch) = carrying().await;
    // Ids run against positions, and so would locks without an order.
    for number in (0..200).rev() {
        park(&mut relay, &slot, epoch, &[letter(number, Reason::Unroutable, "x")]).await.unwrap();
    }
    let owner = database.connect().await;
    let positions: Vec<_> = (0..200).map(position).collect();
    let marking = async {
        for _ in 0..40 {
            owner.batch_execute("select postrider.redrive(everything => true)").await.unwrap();
        }
    };
    let failing = async {
        let failed: Vec<_> = positions
            .iter()
            .map(|&position| FailedAgain { position, reason: Reason::Nacked, error: String::new() })
            .collect();
        for _ in 0..40 {
            failed_again(&relay, &slot, epoch, &failed).await.unwrap();
        }
        remove(&relay, &slot, epoch, &positions).await.unwrap();
    };
    tokio::join!(marking, failing);
    assert_eq!(count(&relay, "dead_letters").await, "0");
}

#[tokio::test]
async fn rows_that_somebody_has_marked_and_not_committed_are_told_apart_and_tried_again() {
    let (database, mut relay, slot, epoch) = carrying().await;
    park(&mut relay, &slot, epoch, &[letter(1, Reason::Unroutable, "x")]).await.unwrap();
    let owner = database.connect().await;
    owner.batch_execute("begin; select postrider.redrive(everything => true)").await.unwrap();
    // The relay's sessions wait five seconds.
    relay.batch_execute("set lock_timeout = '50ms'").await.unwrap();
    let waited = remove(&relay, &slot, epoch, &[position(1)]).await.unwrap_err();
    assert!(waited.is_lock_timeout(), "{waited:?}");
    owner.batch_execute("commit").await.unwrap();
    remove(&relay, &slot, epoch, &[position(1)]).await.unwrap();
    assert_eq!(count(&relay, "dead_letters").await, "0");
}
