//! Outboxes that others made: what does not fit is said when a table is captured, and not when it is written to.

use serde_json::json;

use super::{events, refused, takes};
use crate::support::servers;
use crate::support::world::World;

/// The usual one of Debezium, with these columns more.
async fn debezium(name: &str, more: &str) -> World {
    let world = World::bare(servers::shared().await, name).await;
    takes(
        &world.sql,
        &format!(
            "create table outbox (id uuid not null primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
                 type varchar(255) not null, payload jsonb, before jsonb, headers jsonb{more});
             create table t (id text primary key, n int)"
        ),
    )
    .await;
    world.migrate_with(&[]).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregateid_longer_than_its_column_is_shortened() {
    let world = debezium("capture_long", "").await;
    let sql = &world.sql;
    takes(sql, "select postrider.capture('t')").await;
    takes(
        sql,
        "insert into t values (repeat('ü', 255)), (repeat('ü', 256)), (repeat('ü', 256) || 'x'), (repeat('x', 2000));
         update t set n = 1 where id = repeat('ü', 256); update t set id = 'short' where id = repeat('x', 2000)",
    )
    .await;
    let ids: Vec<String> = events(sql).await.iter().map(|event| event[1].as_str().unwrap().to_owned()).collect();
    let full = "ü".repeat(255);
    let shortened = |id: &str| -> String { id.chars().take(222).chain("-".chars()).collect() };
    assert_eq!(ids[0], full);
    for (id, whole) in ids[1..4].iter().zip([full.clone(), full, "x".repeat(255)]) {
        assert!(id.starts_with(&shortened(&whole)) && id.chars().count() == 255, "{id}");
    }
    assert_ne!(ids[1], ids[2]);
    assert_eq!((&ids[4], &ids[5], &ids[6][..]), (&ids[1], &ids[3], "short"));
    let said = "select (aggregateid = left(whole, 222) || '-' || left(encode(sha256(convert_to(whole, 'UTF8')), 'hex'), 32))::int::bigint
        from outbox, (select repeat('ü', 256) as whole) as t where type = 'TUpdated'";
    assert_eq!(world.count(said).await, 1, "as documented");

    // A column that does not even hold the digest, and the slow way.
    takes(sql, "truncate outbox; alter table outbox alter aggregateid type char(8)").await;
    takes(sql, "select postrider.capture('t'); alter table t add column later int").await;
    takes(sql, "insert into t values ('12345678'), ('123456789')").await;
    let events = events(sql).await;
    assert_eq!(events[0][1], json!("12345678"));
    let digest = events[1][1].as_str().unwrap();
    assert!(digest.len() == 8 && digest.chars().all(|digit| digit.is_ascii_hexdigit()), "{digest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_would_make_every_write_fail_is_refused() {
    let world = debezium("capture_unfit", "").await;
    let sql = &world.sql;
    takes(sql, "create domain present as text not null").await;
    let long = format!("'t', deleted => '{}'", "x".repeat(256));
    let unfit = [
        (
            "add tenant text not null",
            "'t'",
            "column \"tenant\" of the outbox public.outbox is not null and has no default. Capture does not know",
        ),
        ("add tenant present", "'t'", "column \"tenant\""),
        ("alter payload set not null", "'t'", "alter column payload drop not null"),
        ("alter before set not null", "'t'", "alter column before drop not null"),
        ("alter aggregateid type int using 1", "'t'", "\"aggregateid\" of the outbox public.outbox is of type integer"),
        (
            "alter type type varchar(7)",
            "'t'",
            "\"TCreated\" does not fit into the column \"type\" of the outbox public.outbox, which is character varying(7)",
        ),
        (
            "alter aggregatetype type varchar(3)",
            "'t', aggregatetype => 'long'",
            "\"long\" does not fit into the column \"aggregatetype\"",
        ),
        ("alter id type varchar(35)", "'t'", "character varying(35), too short for a UUID"),
        ("alter headers drop not null", long.as_str(), "does not fit into the column \"type\""),
    ];
    for (change, arguments, said) in unfit {
        takes(sql, &format!("begin; drop view postrider.outbox_status; alter table outbox {change}")).await;
        let refusal = refused(sql, &format!("select postrider.capture({arguments})")).await;
        assert!(refusal.contains(said), "{change}: {refusal}");
        takes(sql, "rollback").await;
    }
    takes(
        sql,
        "alter table outbox add tenant text not null default 'x', add no int not null generated always as identity,
             add twice int not null generated always as (1) stored, add note text, alter type type varchar(10);
         select postrider.capture('t'); insert into t values ('a'); update t set n = 1; delete from t; truncate t",
    )
    .await;
    let kinds: Vec<_> = events(sql).await.into_iter().map(|[kind, ..]| kind).collect();
    assert_eq!(kinds, ["TCreated", "TUpdated", "TDeleted", "TTruncated"]);
}
