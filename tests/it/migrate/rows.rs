//! What the outbox table does with rows, and what `postrider.outbox_status` says of them (rule R7).

use postrider::postgres::state::{announce_slot, confirm_heartbeat, server_identity, slot_created, take_over};
use tokio_postgres::Client;

use super::state::SOURCE;
use super::{migrated, text};
use postrider::lsn::Lsn;

const INSERT: &str = "insert into outbox (aggregatetype, aggregateid, type, payload)";

#[tokio::test]
async fn every_row_carries_its_own_transaction_whatever_it_says() {
    let (database, owner, _) = migrated().await;
    owner.batch_execute(&format!("{INSERT} values ('a', '1', 'T', '1')")).await.unwrap();
    let copied = database.psql(
        "begin;\ncopy outbox (aggregatetype, aggregateid, type, xid) from stdin;\na\t2\tT\t987654321987\n\\.\n\
         insert into outbox (aggregatetype, aggregateid, type, version) values ('a', '3', 'T', pg_current_xact_id()::text::int);\n\
         commit;\n",
    );
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let same = "select (select xid::text from outbox where aggregateid = '2') = (select version::text from outbox where aggregateid = '3')";
    assert!(owner.query_one(same, &[]).await.unwrap().get::<_, bool>(0));

    // As an apply worker does.
    let superuser = database.connect_as_superuser().await;
    superuser.batch_execute("set session_replication_role = replica").await.unwrap();
    superuser
        .batch_execute(
            "insert into outbox (aggregatetype, aggregateid, type, xid) values ('a', '4', 'T', '987654321987')",
        )
        .await
        .unwrap();
    let foreign = "select count(*)::text from outbox where xid is null or xid >= '987654321987'";
    assert_eq!(text(&owner, foreign).await, "0");
}

#[tokio::test]
async fn a_row_does_not_change_and_an_update_that_changes_nothing_passes() {
    let (_database, owner, _) = migrated().await;
    owner.batch_execute("alter table outbox add column noted text").await.unwrap();
    owner.batch_execute(&format!(r#"{INSERT} values ('a', '1', 'T', '{{"n": 1}}')"#)).await.unwrap();
    let changes = [
        "id = gen_random_uuid()",
        "aggregatetype = 'b'",
        "aggregateid = '2'",
        "type = 'U'",
        r#"payload = '{"n": 1.0}'"#,
        "payload = null",
        "before = '{}'",
        "version = 2",
        "sequence = 1",
        r#"headers = '{"a": 1}'"#,
        "occurred_at = now() + interval '1 day'",
        "xid = '1'",
    ];
    for change in changes {
        let error = owner.batch_execute(&format!("update outbox set {change}")).await.unwrap_err();
        let refusal = error.as_db_error().unwrap();
        assert_eq!(refusal.message(), "a row of public.outbox is a fact and does not change", "{change}");
    }
    for change in ["type = type", r#"payload = '{ "n" : 1 }', version = 1"#, "noted = 'seen'"] {
        owner.batch_execute(&format!("update outbox set {change}")).await.unwrap();
    }
}

#[tokio::test]
async fn retries_by_on_conflict_and_merge_pass_and_deletes_are_free() {
    let (_database, owner, _) = migrated().await;
    let id = "'6f1c8f0e-0000-4000-8000-000000000001'::uuid";
    let insert = format!("insert into outbox (id, aggregatetype, aggregateid, type) values ({id}, 'a', '1', 'T')");
    let statements = [
        insert.clone(),
        format!("{insert} on conflict do nothing"),
        format!("{insert} on conflict (id) do nothing"),
        format!("{insert} on conflict (id) do update set type = excluded.type"),
        format!(
            "merge into outbox using (select {id} as id) as new on outbox.id = new.id
             when not matched then insert (id, aggregatetype, aggregateid, type) values (new.id, 'a', '1', 'T')"
        ),
        "merge into outbox using (select gen_random_uuid() as id) as new on outbox.id = new.id
         when not matched then insert (id, aggregatetype, aggregateid, type) values (new.id, 'a', '2', 'T')"
            .to_owned(),
    ];
    for statement in statements {
        owner.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    assert_eq!(owner.execute("delete from outbox", &[]).await.unwrap(), 2);
}

/// Inserts a row and returns what the view says of it later, under this aggregate id.
async fn row(owner: &Client, name: &str) {
    owner.execute(&format!("{INSERT} values ('a', $1, 'T', '{{}}')"), &[&name]).await.unwrap();
}

async fn statuses(owner: &Client) -> String {
    let query = "select string_agg(aggregateid || ' ' || state, ', ' order by xid)
                 from postrider.outbox_status join outbox using (id)";
    text(owner, query).await
}

/// Confirms a heartbeat with the snapshot of this moment.
async fn heartbeat(owner: &Client, slot: &str, epoch: i64, no: i64) {
    let snapshot = text(owner, "select pg_current_snapshot()::text").await;
    confirm_heartbeat(owner, slot, epoch, no, &snapshot).await.unwrap();
}

#[tokio::test]
async fn a_row_is_delivered_if_it_began_after_the_slot_and_ended_before_a_confirmed_heartbeat() {
    let (database, mut owner, target) = migrated().await;
    let slot = target.slot.as_str();
    row(&owner, "before_slot").await;
    let identity = server_identity(&owner).await.unwrap();
    announce_slot(&owner, slot, "postrider", &identity).await.unwrap();
    slot_created(&mut owner, slot, Lsn(1), &target.outbox).await.unwrap().unwrap();
    let (epoch, _) = take_over(&mut owner, slot, SOURCE).await.unwrap();
    let open = database.connect().await;
    open.batch_execute("begin").await.unwrap();
    row(&open, "open").await;
    row(&owner, "first").await;
    assert_eq!(statuses(&owner).await, "before_slot unknown, first unknown");

    heartbeat(&owner, slot, epoch, 1).await;
    open.batch_execute("commit").await.unwrap();
    row(&owner, "later").await;
    assert_eq!(statuses(&owner).await, "before_slot unknown, open unknown, first delivered, later unknown");
    heartbeat(&owner, slot, epoch, 2).await;
    assert_eq!(statuses(&owner).await, "before_slot unknown, open delivered, first delivered, later delivered");
}

#[tokio::test]
async fn a_new_life_says_nothing_of_the_gap_before_it() {
    let (_database, mut owner, target) = migrated().await;
    let slot = target.slot.as_str();
    let identity = server_identity(&owner).await.unwrap();
    announce_slot(&owner, slot, "postrider", &identity).await.unwrap();
    slot_created(&mut owner, slot, Lsn(1), &target.outbox).await.unwrap().unwrap();
    let (epoch, _) = take_over(&mut owner, slot, SOURCE).await.unwrap();
    row(&owner, "first_life").await;
    heartbeat(&owner, slot, epoch, 1).await;
    row(&owner, "gap").await;
    // As if the slot had been lost and another one adopted.
    owner
        .batch_execute(
            "update postrider.lives set ended_at = now();
             insert into postrider.lives (system_identifier, database_oid, slot, born)
             select system_identifier, database_oid, slot, pg_snapshot_xmax(pg_current_snapshot()) from postrider.progress",
        )
        .await
        .unwrap();
    row(&owner, "second_life").await;
    heartbeat(&owner, slot, epoch, 2).await;
    assert_eq!(statuses(&owner).await, "first_life delivered, gap unknown, second_life delivered");
}

#[tokio::test]
async fn a_life_in_another_cluster_or_database_says_nothing() {
    let (_database, owner, _) = migrated().await;
    row(&owner, "here").await;
    let everything = "insert into postrider.lives
            (system_identifier, database_oid, slot, born, ended_at, heartbeat_no, heartbeat_snapshot)
        select control.system_identifier + $1, own.oid::bigint + $2, $3, '1', now(), 1, '9999999999:9999999999:'
        from pg_control_system() as control, pg_database as own where own.datname = current_database()";
    owner.execute(everything, &[&1_i64, &0_i64, &"other cluster"]).await.unwrap();
    owner.execute(everything, &[&0_i64, &1_i64, &"other database"]).await.unwrap();
    assert_eq!(statuses(&owner).await, "here unknown");
    owner.execute(everything, &[&0_i64, &0_i64, &"this one"]).await.unwrap();
    assert_eq!(statuses(&owner).await, "here delivered");
}

#[tokio::test]
async fn a_life_begins_after_the_numbers_that_a_restored_table_brought() {
    let (_database, mut owner, target) = migrated().await;
    owner
        .batch_execute(
            "alter table outbox disable trigger all;
             insert into outbox (aggregatetype, aggregateid, type, xid) values ('a', 'restored', 'T', '88000000000');
             alter table outbox enable trigger all;
             alter table outbox enable always trigger postrider_stamp_xid",
        )
        .await
        .unwrap();
    let identity = server_identity(&owner).await.unwrap();
    announce_slot(&owner, &target.slot, "postrider", &identity).await.unwrap();
    let life = slot_created(&mut owner, &target.slot, Lsn(1), &target.outbox).await.unwrap().unwrap();
    assert_eq!((life.born, life.outbox_xid_read), (88_000_000_001, true));
}
