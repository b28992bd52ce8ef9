//! `postrider.redrive` and `postrider.discard`: what they mark, what they refuse, and who may.

use tokio_postgres::Client;

use super::database::Database;
use super::{migrated, refusal, text};
use crate::support::parked::put;
use postrider::migrate::{Target, down, up};

/// Six dead letters: 1 to 3 unroutable, 4 and 5 behind, 6 too large of another slot, which was parked two hours ago.
async fn six() -> (Database, Client, Target) {
    let (database, owner, target) = migrated().await;
    put(&owner, "s", 1..=3, "unroutable", b"x").await;
    put(&owner, "s", 4..=5, "behind", b"x").await;
    put(&owner, "other", 6..=6, "too_large", b"x").await;
    owner
        .batch_execute(
            "update postrider.dead_letters set parked_at = now() - interval '2 hours', route = 'r', exchange = 'x',
                 routing_key = 'k', aggregatetype = 'a', aggregateid = 'i', type = 'T' where slot = 'other'",
        )
        .await
        .unwrap();
    (database, owner, target)
}

/// Numbers of the dead letters that a call returns; numbers are given in order of insertion, from 1.
async fn called(client: &Client, call: &str) -> String {
    text(client, &format!("select coalesce(string_agg(id::text, ' ' order by id), '') from postrider.{call}")).await
}

async fn marks(client: &Client) -> String {
    text(
        client,
        "select coalesce(string_agg(id || mark, ' ' order by id), '') from postrider.parked where mark is not null",
    )
    .await
}

async fn refused(client: &Client, statement: &str) -> String {
    let error = client.batch_execute(statement).await.unwrap_err();
    let refusal = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    format!("{} ({})", refusal.message(), refusal.hint().unwrap_or_default())
}

#[tokio::test]
async fn every_filter_narrows_the_choice_and_all_of_them_hold() {
    let (_database, owner, _) = six().await;
    for (filter, expected) in [
        ("ids => array[2, 6, 99]", "2 6"),
        ("slot => 's', everything => true", "1 2 3 4 5"),
        ("reason => 'behind'", "4 5"),
        ("route => 'r'", "6"),
        ("exchange => 'x'", "6"),
        ("routing_key => 'k'", "6"),
        ("aggregatetype => 'order'", "1 2 3 4 5"),
        ("aggregateid => '1'", "1 4"),
        ("type => 'T'", "6"),
        ("older_than => '1 hour'", "6"),
        ("newer_than => '1 hour'", "1 2 3 4 5"),
        ("reason => 'unroutable', aggregateid => '1'", "1"),
        ("reason => 'unroutable', slot => 'other'", ""),
        ("ids => '{}'", ""),
        ("everything => true", "1 2 3 4 5 6"),
    ] {
        assert_eq!(called(&owner, &format!("redrive({filter}, dry_run => true)")).await, expected, "{filter}");
        assert_eq!(called(&owner, &format!("discard({filter}, dry_run => true)")).await, expected, "{filter}");
    }
    assert_eq!(marks(&owner).await, "", "a dry run marks nothing");
}

#[tokio::test]
async fn a_mark_replaces_an_earlier_one_and_says_who_and_when() {
    let (database, owner, _) = six().await;
    assert_eq!(called(&owner, "redrive(slot => 's', everything => true)").await, "1 2 3 4 5");
    assert_eq!(called(&owner, "discard(reason => 'behind')").await, "4 5");
    assert_eq!(marks(&owner).await, "1redrive 2redrive 3redrive 4discard 5discard");
    let by = "select distinct marked_by || (marked_at > now() - interval '1 minute') from postrider.parked where mark is not null";
    assert_eq!(text(&owner, by).await, format!("{}true", database.name));
    assert_eq!(called(&owner, "redrive(ids => array[4])").await, "4");
    assert_eq!(marks(&owner).await, "1redrive 2redrive 3redrive 4redrive 5discard");
}

#[tokio::test]
async fn nothing_is_marked_by_accident() {
    let (_database, owner, _) = six().await;
    for call in
        ["redrive()", "discard()", "discard(slot => 's')", "discard(dry_run => true)", "discard(everything => null)"]
    {
        let refused = refused(&owner, &format!("select postrider.{call}")).await;
        assert!(
            refused.starts_with("nothing says which dead letters are meant (")
                && refused.contains("everything => true"),
            "{refused}"
        );
    }
    let both = refused(&owner, "select postrider.discard(ids => array[1], everything => true)").await;
    assert!(both.starts_with("everything and a filter exclude each other"), "{both}");
    assert_eq!(marks(&owner).await, "");
}

#[tokio::test]
async fn whoever_looks_after_the_dead_letters_need_not_read_them() {
    let (database, owner, _) = six().await;
    let role = format!("{}_support", database.name);
    database
        .connect_as_superuser()
        .await
        .batch_execute(&format!("create role {role} login password '{role}'"))
        .await
        .unwrap();
    let support = database.connect_as(&role).await;
    let call = "select postrider.redrive(ids => array[1])";
    assert!(refused(&support, call).await.starts_with("permission denied for schema postrider"));
    owner.batch_execute(&format!("grant usage on schema postrider to {role}")).await.unwrap();
    assert!(refused(&support, call).await.starts_with("permission denied for function redrive"));

    // What docs/dead-letters.md says.
    owner
        .batch_execute(&format!(
            "grant select, update (mark, marked_at, marked_by) on postrider.parked to {role};
             grant execute on function postrider.mark_dead_letters, postrider.redrive, postrider.discard to {role}"
        ))
        .await
        .unwrap();
    // Whatever the caller's path says, the functions find their own.
    support
        .batch_execute("create temporary table parked (id bigint); set search_path = pg_temp, postrider, pg_catalog")
        .await
        .unwrap();
    assert_eq!(called(&support, "redrive(ids => array[1])").await, "1");
    for statement in [
        "select body from postrider.dead_letters",
        "select headers from postrider.dead_letters",
        "select postrider.dead_letter_body(1)",
        "update postrider.parked set reason = 'behind'",
        "delete from postrider.parked",
    ] {
        assert!(refused(&support, statement).await.starts_with("permission denied"), "{statement}");
    }
}

#[tokio::test]
async fn what_is_no_dead_letter_is_not_in_the_table() {
    let (_database, owner, _) = six().await;
    for (change, constraint) in [
        ("reason = 'new'", "dead_letters_reason_is_known"),
        ("mark = 'delete', marked_at = now()", "dead_letters_mark_is_known"),
        ("mark = 'discard'", "dead_letters_mark_has_a_time"),
        ("keys = '{}'", "dead_letters_has_a_key"),
        ("position = 'x'", "dead_letters_position_is_one"),
        ("body_bytes = 7", "dead_letters_body_starts_here"),
        (
            "position = (select max(position) from postrider.dead_letters), slot = 'other'",
            "dead_letters_position_is_unique",
        ),
    ] {
        let refused = refused(&owner, &format!("update postrider.dead_letters set {change} where id = 1")).await;
        assert!(refused.contains(constraint), "{change}: {refused}");
    }
}

#[tokio::test]
async fn going_back_keeps_dead_letters_unless_told() {
    let (_database, mut owner, target) = six().await;
    let refused = refusal(down(&mut owner, &target, false).await);
    assert!(refused.contains("6 dead letters") && refused.contains("--drop-data"), "{refused}");
    assert_eq!(text(&owner, "select count(*)::text from postrider.parked").await, "6");
    down(&mut owner, &target, true).await.unwrap();
    assert_eq!(text(&owner, "select coalesce(to_regclass('postrider.parked')::text, 'gone')").await, "gone");
}

#[tokio::test]
async fn dead_letters_never_enter_the_publication() {
    let database = Database::new().await;
    let (mut owner, superuser, target) =
        (database.connect().await, database.connect_as_superuser().await, database.target());
    superuser
        .batch_execute(
            "create publication postrider for all tables with (publish = 'insert', publish_via_partition_root = true)",
        )
        .await
        .unwrap();
    let refused = refusal(up(&mut owner, &target).await);
    assert!(refused.contains("dead letter") && refused.contains("setting publication"), "{refused}");
    superuser.batch_execute("drop publication postrider").await.unwrap();
    up(&mut owner, &target).await.unwrap();
    let published = "select string_agg(tablename, ' ' order by tablename) from pg_publication_tables";
    assert_eq!(text(&owner, published).await, "heartbeat outbox resend");
}
