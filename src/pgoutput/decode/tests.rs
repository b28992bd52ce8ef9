use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::lsn::Lsn;

const FIXTURES: [(&str, &str); 17] = [
    ("delete_full", include_str!("../../../tests/fixtures/pgoutput/delete_full.hex")),
    ("delete_key", include_str!("../../../tests/fixtures/pgoutput/delete_key.hex")),
    ("insert", include_str!("../../../tests/fixtures/pgoutput/insert.hex")),
    ("insert_binary", include_str!("../../../tests/fixtures/pgoutput/insert_binary.hex")),
    ("insert_without_identity", include_str!("../../../tests/fixtures/pgoutput/insert_without_identity.hex")),
    ("message_standalone", include_str!("../../../tests/fixtures/pgoutput/message_standalone.hex")),
    ("message_transactional", include_str!("../../../tests/fixtures/pgoutput/message_transactional.hex")),
    ("origin", include_str!("../../../tests/fixtures/pgoutput/origin.hex")),
    ("several_relations", include_str!("../../../tests/fixtures/pgoutput/several_relations.hex")),
    ("truncate", include_str!("../../../tests/fixtures/pgoutput/truncate.hex")),
    ("truncate_cascade", include_str!("../../../tests/fixtures/pgoutput/truncate_cascade.hex")),
    ("types", include_str!("../../../tests/fixtures/pgoutput/types.hex")),
    ("update_default", include_str!("../../../tests/fixtures/pgoutput/update_default.hex")),
    ("update_full", include_str!("../../../tests/fixtures/pgoutput/update_full.hex")),
    ("update_index", include_str!("../../../tests/fixtures/pgoutput/update_index.hex")),
    ("update_key_change", include_str!("../../../tests/fixtures/pgoutput/update_key_change.hex")),
    ("update_unchanged_toast", include_str!("../../../tests/fixtures/pgoutput/update_unchanged_toast.hex")),
];

fn unhex(line: &str) -> Bytes {
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
}

fn bytes_of(name: &str) -> Vec<Bytes> {
    let (_, text) = FIXTURES.iter().find(|(fixture, _)| *fixture == name).unwrap();
    text.lines().map(unhex).collect()
}

/// A fixture's messages between its Begin and Commit, which must belong together.
fn changes(name: &str) -> Vec<Message> {
    let mut messages: Vec<_> = bytes_of(name).into_iter().map(|bytes| decode(bytes).unwrap()).collect();
    let Message::Commit(commit) = messages.pop().unwrap() else { panic!("the last message is no Commit") };
    let Message::Begin(begin) = messages.remove(0) else { panic!("the first message is no Begin") };
    assert_eq!(begin.final_lsn, commit.commit_lsn);
    assert_eq!(begin.commit_time, commit.commit_time);
    assert!(begin.xid > 0);
    assert!(commit.end_lsn > commit.commit_lsn);
    messages
}

/// The same without the Relation and Type messages.
fn rows(name: &str) -> Vec<Message> {
    changes(name).into_iter().filter(|message| !matches!(message, Message::Relation(_) | Message::Type(_))).collect()
}

/// The OID and definition of a table, from the last Relation of that name.
fn relation_of(name: &str, table: &str) -> Relation {
    let of_table = |message| match message {
        Message::Relation(relation) if relation.name == table => Some(relation),
        _ => None,
    };
    changes(name).into_iter().filter_map(of_table).next_back().unwrap()
}

fn text(value: &'static str) -> Value {
    Value::Text(Bytes::from_static(value.as_bytes()))
}

fn row<const N: usize>(values: [&'static str; N]) -> Tuple {
    Tuple(values.into_iter().map(|value| if value == "NULL" { Value::Null } else { text(value) }).collect())
}

#[test]
fn an_insert_has_its_table_and_every_column_as_text() {
    let table = relation_of("insert", "outbox");
    assert_eq!((table.namespace.as_str(), table.replica_identity), ("shop", ReplicaIdentity::Default));
    let columns: Vec<_> = table.columns.iter().map(|c| (c.name.as_str(), c.type_oid, c.key, c.type_modifier)).collect();
    let expected = [
        ("id", 2950, true, -1),
        ("aggregatetype", 25, false, -1),
        ("aggregateid", 25, false, -1),
        ("type", 25, false, -1),
        ("payload", 3802, false, -1),
        ("headers", 3802, false, -1),
        ("sequence", 20, false, -1),
        ("occurred_at", 1184, false, -1),
        ("raw", 17, false, -1),
    ];
    assert_eq!(columns, expected);
    let new = row([
        "6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11",
        "order",
        "42",
        "OrderPlaced",
        "{\"note\": \"Straße\", \"total\": 99.5}",
        "{}",
        "NULL",
        "2026-11-21 10:15:30.123456+00",
        "\\x00ff10",
    ]);
    assert_eq!(rows("insert"), [Message::Insert(Insert { relation: table.oid, new })]);
}

#[test]
fn enums_and_domains_are_announced_before_the_table_that_uses_them() {
    let customer = relation_of("types", "customer");
    let messages = changes("types");
    let (mood, cents) = (customer.columns[2].type_oid, customer.columns[3].type_oid);
    let named = |oid, namespace: &str, name: &str| {
        Message::Type(Type { oid, namespace: namespace.to_owned(), name: name.to_owned() })
    };
    assert_eq!(messages[0], named(mood, "shop", "mood"));
    assert_eq!(messages[1], named(cents, "pg_catalog", "int8"));
    let expected = [row(["1", "Ada", "calm", "1250"]), row(["2", "NULL", "NULL", "NULL"])]
        .map(|new| Message::Insert(Insert { relation: customer.oid, new }));
    assert_eq!(messages[3..], expected);
}

#[test]
fn an_update_that_keeps_the_key_has_no_old_row() {
    let relation = relation_of("update_default", "customer").oid;
    let new = row(["1", "Ada L.", "calm", "1250"]);
    assert_eq!(rows("update_default"), [Message::Update(Update { relation, old: OldTuple::None, new })]);
}

#[test]
fn an_update_of_the_key_has_the_old_key() {
    let relation = relation_of("update_key_change", "customer").oid;
    let old = OldTuple::Key(row(["2", "NULL", "NULL", "NULL"]));
    let new = row(["3", "NULL", "NULL", "NULL"]);
    assert_eq!(rows("update_key_change"), [Message::Update(Update { relation, old, new })]);

    let table = relation_of("update_index", "indexed");
    assert_eq!(table.replica_identity, ReplicaIdentity::Index);
    assert_eq!(table.columns.iter().map(|column| column.key).collect::<Vec<_>>(), [false, true, false]);
    let old = OldTuple::Key(row(["NULL", "a", "NULL"]));
    let update = Update { relation: table.oid, old, new: row(["1", "b", "x"]) };
    assert_eq!(rows("update_index")[1], Message::Update(update));
}

#[test]
fn with_full_identity_an_update_and_a_delete_have_the_whole_old_row() {
    let table = relation_of("update_full", "audited");
    assert_eq!(table.replica_identity, ReplicaIdentity::Full);
    let old = OldTuple::Full(row(["1", "NULL", "1.50"]));
    let update = Update { relation: table.oid, old, new: row(["1", "first", "1.50"]) };
    assert_eq!(rows("update_full")[1], Message::Update(update));
    let delete = Delete { relation: table.oid, old: OldTuple::Full(row(["1", "first", "1.50"])) };
    assert_eq!(rows("delete_full"), [Message::Delete(delete)]);
}

#[test]
fn a_delete_has_the_key() {
    let relation = relation_of("delete_key", "customer").oid;
    let old = OldTuple::Key(row(["3", "NULL", "NULL", "NULL"]));
    assert_eq!(rows("delete_key"), [Message::Delete(Delete { relation, old })]);
}

#[test]
fn an_unchanged_toast_value_is_told_from_null() {
    let [Message::Insert(insert), Message::Update(update)] = &rows("update_unchanged_toast")[..] else {
        panic!("not an insert and an update")
    };
    assert_eq!(insert.new.get(2), Some(&Value::Text("long ".repeat(500).into())));
    assert_eq!(update.new, Tuple(vec![text("1"), text("1"), Value::Unchanged]));
}

#[test]
fn a_table_without_identity_says_so() {
    let table = relation_of("insert_without_identity", "unidentified");
    assert_eq!(table.replica_identity, ReplicaIdentity::Nothing);
    let insert = Insert { relation: table.oid, new: row(["7"]) };
    assert_eq!(rows("insert_without_identity"), [Message::Insert(insert)]);
}

#[test]
fn a_truncate_names_every_table_and_its_options() {
    let relations = ["customer", "orders"].map(|table| relation_of("truncate_cascade", table).oid).to_vec();
    let truncate = Truncate { cascade: true, restart_identity: true, relations };
    assert_eq!(rows("truncate_cascade"), [Message::Truncate(truncate)]);
    let relations = vec![relation_of("truncate", "audited").oid];
    let truncate = Truncate { cascade: false, restart_identity: false, relations };
    assert_eq!(rows("truncate"), [Message::Truncate(truncate)]);
}

#[test]
fn a_replayed_transaction_names_its_origin() {
    let messages = changes("origin");
    let origin = Origin { commit_lsn: Lsn(0xABCD_1234), name: "elsewhere".to_owned() };
    assert_eq!(messages[0], Message::Origin(origin));
    // The commit time is the origin's, 2026-01-02 03:04:05 UTC.
    let Message::Begin(begin) = decode(bytes_of("origin").remove(0)).unwrap() else { panic!("no Begin") };
    assert_eq!(begin.commit_time, SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045));
}

#[test]
fn a_message_is_inside_a_transaction_or_alone() {
    let [Message::Logical(inside)] = &changes("message_transactional")[..] else { panic!("not one message") };
    assert_eq!(
        (inside.transactional, inside.prefix.as_str(), &inside.content[..]),
        (true, "postrider", &b"inside"[..])
    );
    let alone: Vec<_> = bytes_of("message_standalone").into_iter().map(|bytes| decode(bytes).unwrap()).collect();
    let [Message::Logical(first), Message::Logical(second)] = &alone[..] else { panic!("not two messages") };
    assert_eq!((first.transactional, first.prefix.as_str(), &first.content[..]), (false, "postrider", &b"\0\xff"[..]));
    assert_eq!((second.transactional, second.prefix.as_str(), &second.content[..]), (false, "", &b""[..]));
    assert!(Lsn::ZERO < first.lsn && first.lsn < second.lsn);
}

#[test]
fn binary_values_are_told_from_text() {
    let relation = relation_of("insert_binary", "audited").oid;
    let values =
        [Value::Binary(Bytes::from_static(&[0, 0, 1, 2])), Value::Binary(Bytes::from_static(b"bin")), Value::Null];
    let insert = Insert { relation, new: Tuple(values.to_vec()) };
    assert_eq!(rows("insert_binary"), [Message::Insert(insert)]);
}

#[test]
fn a_table_is_described_again_after_its_shape_changed() {
    let orders = relation_of("several_relations", "orders");
    assert_eq!(orders.columns.len(), 4);
    let messages = changes("several_relations");
    let last = Insert { relation: orders.oid, new: row(["3", "10", "NULL", "NULL"]) };
    assert_eq!(messages.last(), Some(&Message::Insert(last)));
    let empty = Insert { relation: orders.oid, new: row(["2", "10", ""]) };
    assert!(messages.contains(&Message::Insert(empty)));
}

#[test]
fn column_values_share_the_buffer_they_came_in() {
    let bytes = bytes_of("insert").remove(2);
    let Message::Insert(insert) = decode(bytes.clone()).unwrap() else { panic!("no Insert") };
    let Some(Value::Text(id)) = insert.new.get(0) else { panic!("no text") };
    assert!(bytes.as_ptr_range().contains(&id.as_ptr()));
}

#[test]
fn names_that_are_not_utf8_do_not_stop_the_stream() {
    let mut bytes = b"R\0\0\0\x01s\0t\xff\0d\0\0".to_vec();
    let Message::Relation(relation) = decode(bytes.clone().into()).unwrap() else { panic!("no Relation") };
    assert_eq!(relation.name, "t\u{fffd}");
    bytes.remove(5);
    let Message::Relation(relation) = decode(bytes.into()).unwrap() else { panic!("no Relation") };
    assert_eq!(relation.namespace, "pg_catalog");
}

fn error(bytes: &'static [u8]) -> String {
    decode(Bytes::from_static(bytes)).unwrap_err().to_string()
}

#[test]
fn an_error_names_the_message_and_the_place() {
    assert_eq!(error(b""), "empty pgoutput message");
    assert_eq!(
        error(b"?x"),
        "unknown pgoutput message kind 0x3f: the server speaks a protocol version that was not asked for"
    );
    assert_eq!(error(b"S\0"), "pgoutput message kind `S` belongs to the option `streaming`, which was not asked for");
    assert_eq!(error(b"P\0"), "pgoutput message kind `P` belongs to the option `two_phase`, which was not asked for");
    assert_eq!(error(b"B\0\0\0"), "Begin message ends at byte 4, where 5 more are needed");
    assert_eq!(error(b"Y\0\0\0\x01ab"), "text at byte 5 of the Type message has no end");
    assert_eq!(error(b"I\0\0\0\x01X"), "unknown kind of tuple 0x58 at byte 5 of the Insert message");
    assert_eq!(error(b"D\0\0\0\x01N"), "unknown kind of tuple 0x4e at byte 5 of the Delete message");
    assert_eq!(error(b"U\0\0\0\x01K\0\0K"), "unknown kind of tuple 0x4b at byte 8 of the Update message");
    assert_eq!(error(b"I\0\0\0\x01N\0\x01z"), "unknown kind of value 0x7a at byte 8 of the Insert message");
    assert_eq!(error(b"I\0\0\0\x01N\xff\xff"), "negative number of columns -1 at byte 6 of the Insert message");
    assert_eq!(error(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xfe"), "negative length -2 at byte 9 of the Insert message");
    assert_eq!(
        error(b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xffab"),
        "Insert message ends at byte 15, where 2147483645 more are needed"
    );
    assert_eq!(error(b"R\0\0\0\x01\0\0x\0\0"), "unknown replica identity 0x78 at byte 7 of the Relation message");
    assert_eq!(error(b"O\0\0\0\0\0\0\0\x01a\0bc"), "2 bytes too many at byte 11 of the Origin message");
}

#[test]
fn an_untrusted_count_reserves_no_memory() {
    assert_eq!(error(b"T\x7f\xff\xff\xff\0\0\0\0\x01"), "Truncate message ends at byte 10, where 4 more are needed");
}

#[test]
fn every_truncation_of_every_fixture_is_an_error() {
    for (name, text) in FIXTURES {
        for (number, line) in text.lines().enumerate() {
            let bytes = unhex(line);
            for length in 0..bytes.len() {
                assert!(decode(bytes.slice(..length)).is_err(), "{name} message {number} cut to {length} bytes");
            }
            let longer: Bytes = [&bytes[..], b"\0"].concat().into();
            assert!(
                matches!(decode(longer), Err(DecodeError::Trailing { extra: 1, .. })),
                "{name} message {number} with a byte more"
            );
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(decode(bytes.into()));
    }

    #[test]
    fn arbitrary_bytes_behind_a_known_kind_never_panic(
        tag in proptest::sample::select(b"BMCORYIUDTSEcAbPKrp".to_vec()),
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'N'), Just(b't'), any::<u8>()], 0..200),
    ) {
        drop(decode([&[tag], &bytes[..]].concat().into()));
    }

    #[test]
    fn a_damaged_fixture_never_panics(fixture in 0..FIXTURES.len(), line in any::<prop::sample::Index>(),
                                      at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let lines: Vec<_> = FIXTURES[fixture].1.lines().collect();
        let mut bytes = unhex(lines[line.index(lines.len())]).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        drop(decode(bytes.into()));
    }
}
