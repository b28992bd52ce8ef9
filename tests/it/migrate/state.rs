//! The relay's state, read and written by the role that the printed script makes (rules R6, R7, R8).

use std::time::Duration;

use postrider::lsn::Lsn;
use postrider::migrate::{Target, roles_script};
use postrider::postgres::state::{
    Phase, Reached, Record, Source, StateError, announce_slot, beat, confirm_heartbeat, load, server_identity,
    slot_created, take_over, write_progress,
};
use tokio_postgres::Client;

use super::database::Database;
use super::{migrated, text};

pub(super) const SOURCE: Source<'static> = Source { timeline: 1, epoch: 0, publication: "as it was" };

/// A migrated database and a connection of its relay's role.
async fn relay() -> (Database, Client, Target) {
    let (database, _owner, target) = migrated().await;
    let role = format!("{}_relay", database.name);
    let password = format!("alter role {role} password '{role}';");
    let output = database.psql_as_superuser(&(roles_script(&target, &role) + &password));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let relay = database.connect_as(&role).await;
    (database, relay, target)
}

/// The same, with a slot recorded, and taken over once.
pub(super) async fn carrying() -> (Database, Client, String, i64) {
    let (database, mut relay, target) = relay().await;
    let identity = server_identity(&relay).await.unwrap();
    announce_slot(&relay, &target.slot, "postrider", &identity).await.unwrap();
    slot_created(&mut relay, &target.slot, Lsn(100), &target.outbox).await.unwrap();
    let (epoch, _) = take_over(&mut relay, &target.slot, SOURCE).await.unwrap();
    (database, relay, target.slot, epoch)
}

async fn record(client: &Client, slot: &str) -> Record {
    load(client, slot).await.unwrap().unwrap()
}

pub(super) fn is_fenced<T: std::fmt::Debug>(result: Result<T, StateError>) -> bool {
    matches!(result, Err(StateError::Fenced { .. }))
}

#[tokio::test]
async fn the_server_says_which_one_it_is() {
    let (database, relay, _) = relay().await;
    let identity = server_identity(&relay).await.unwrap();
    let expected = text(
        &relay,
        "select system_identifier || ' ' || timeline_id from pg_control_system(), pg_control_checkpoint()",
    )
    .await;
    assert_eq!(format!("{} {}", identity.system_identifier, identity.timeline), expected);
    assert_eq!(identity.database, database.name);
    assert!(identity.version_num >= 150_000 && !identity.in_recovery, "{identity:?}");
}

#[tokio::test]
async fn a_slot_is_announced_before_it_is_made_and_every_step_survives_a_crash() {
    let (_database, mut relay, target) = relay().await;
    let slot = target.slot.as_str();
    assert_eq!(load(&relay, slot).await.unwrap(), None);
    let early = slot_created(&mut relay, slot, Lsn(1), &target.outbox).await;
    assert!(matches!(early, Err(StateError::NoRecord { .. })), "{early:?}");
    assert!(matches!(take_over(&mut relay, slot, SOURCE).await, Err(StateError::NoRecord { .. })));

    let mut identity = server_identity(&relay).await.unwrap();
    // The sign bit of the identifier is set in clusters made after January 2038.
    identity.system_identifier |= 1 << 63;
    for publication in ["first", "second"] {
        announce_slot(&relay, slot, publication, &identity).await.unwrap();
        let announced = record(&relay, slot).await;
        assert_eq!(
            (announced.phase, announced.intended, announced.publication.as_str()),
            (Phase::Creating, None, publication)
        );
        assert_eq!(
            (announced.system_identifier, announced.database_oid),
            (identity.system_identifier, identity.database_oid)
        );
    }
    assert!(matches!(take_over(&mut relay, slot, SOURCE).await, Err(StateError::NoRecord { .. })));

    let position = Lsn(0x16_B374_D848);
    let life = slot_created(&mut relay, slot, position, &target.outbox).await.unwrap().unwrap();
    assert!(life.born > 2 && life.outbox_xid_read, "{life:?}");
    let ready = record(&relay, slot).await;
    assert_eq!((ready.phase, ready.intended, ready.acknowledged), (Phase::Ready, Some(position), Some(position)));
    assert_eq!(slot_created(&mut relay, slot, Lsn(1), &target.outbox).await.unwrap(), None);
    let announced = announce_slot(&relay, slot, "third", &identity).await;
    assert!(matches!(announced, Err(StateError::AlreadyRecorded { .. })), "{announced:?}");
    assert_eq!(record(&relay, slot).await, ready);
    assert_eq!(text(&relay, "select count(*)::text from postrider.lives").await, "1");
}

#[tokio::test]
async fn a_life_begins_without_the_right_to_read_the_outbox() {
    let (database, mut relay, target) = relay().await;
    let owner = database.connect().await;
    owner.batch_execute(&format!("revoke all on outbox from {}_relay", database.name)).await.unwrap();
    let identity = server_identity(&relay).await.unwrap();
    announce_slot(&relay, &target.slot, "postrider", &identity).await.unwrap();
    let life = slot_created(&mut relay, &target.slot, Lsn(1), &target.outbox).await.unwrap().unwrap();
    assert!(!life.outbox_xid_read);
}

#[tokio::test]
async fn progress_is_written_as_it_was_given() {
    let (_database, relay, slot, epoch) = carrying().await;
    write_progress(
        &relay,
        &slot,
        epoch,
        Reached { intended: Lsn(u64::MAX - 1), acknowledged: Lsn(7), heartbeat: None },
    )
    .await
    .unwrap();
    let written = record(&relay, &slot).await;
    assert_eq!((written.intended, written.acknowledged), (Some(Lsn(u64::MAX - 1)), Some(Lsn(7))));
    assert!(matches!(
        write_progress(&relay, &slot, epoch, Reached { intended: Lsn(7), acknowledged: Lsn(8), heartbeat: None }).await,
        Err(StateError::Database { .. })
    ));
}

#[tokio::test]
async fn heartbeats_are_numbered_without_gaps_and_leave_no_row() {
    let (_database, relay, slot, epoch) = carrying().await;
    for expected in 1..=3 {
        assert_eq!(beat(&relay, &slot, epoch).await.unwrap(), expected);
    }
    assert_eq!(text(&relay, "select count(*)::text from postrider.heartbeat").await, "0");
    assert_eq!(record(&relay, &slot).await.heartbeat_no, 3);
}

#[tokio::test]
async fn a_heartbeat_travels_through_the_publication_in_one_transaction() {
    let (database, relay, slot, epoch) = carrying().await;
    let superuser = database.connect_as_superuser().await;
    superuser.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.unwrap();
    beat(&relay, &slot, epoch).await.unwrap();
    // Message kinds of pgoutput by their first byte: Begin, Relation, Insert, Commit, and no Delete. One Type for each column
    // type that is not built in: none here.
    let kinds = "select string_agg(chr(get_byte(data, 0)), '' order by ordinality)
        from pg_logical_slot_get_binary_changes($1, null, null, 'proto_version', '1', 'publication_names', 'postrider')
            with ordinality as change (lsn, xid, data, ordinality)";
    let kinds: String = superuser.query_one(kinds, &[&slot]).await.unwrap().get(0);
    assert_eq!(kinds, "BRIC");
}

#[tokio::test]
async fn the_newest_confirmed_heartbeat_is_kept() {
    let (_database, relay, slot, epoch) = carrying().await;
    for no in [2, 1] {
        confirm_heartbeat(&relay, &slot, epoch, no, &format!("{no}0:{no}0:")).await.unwrap();
    }
    let kept = text(&relay, "select heartbeat_no || ' ' || heartbeat_snapshot from postrider.lives").await;
    assert_eq!(kept, "2 20:20:");
}

#[tokio::test]
async fn a_confirmed_heartbeat_without_a_life_is_an_error() {
    let (database, relay, slot, epoch) = carrying().await;
    database.connect().await.batch_execute("delete from postrider.lives").await.unwrap();
    let result = confirm_heartbeat(&relay, &slot, epoch, 1, "1:1:").await;
    assert!(matches!(result, Err(StateError::NoLife { .. })), "{result:?}");
}

#[tokio::test]
async fn a_relay_that_was_replaced_writes_nothing() {
    let (_database, mut relay, slot, epoch) = carrying().await;
    assert_eq!(take_over(&mut relay, &slot, SOURCE).await.unwrap().0, epoch + 1);
    let before = record(&relay, &slot).await;
    assert!(is_fenced(
        write_progress(&relay, &slot, epoch, Reached { intended: Lsn(500), acknowledged: Lsn(500), heartbeat: None })
            .await
    ));
    assert!(is_fenced(beat(&relay, &slot, epoch).await));
    assert!(is_fenced(confirm_heartbeat(&relay, &slot, epoch, 1, "1:1:").await));
    assert_eq!(record(&relay, &slot).await, before);
}

#[tokio::test]
async fn a_write_that_meets_a_takeover_waits_for_it_and_is_fenced() {
    let (database, relay, slot, epoch) = carrying().await;
    let role = format!("{}_relay", database.name);
    let before = record(&relay, &slot).await;
    let [successor, progress, heartbeat, confirm] =
        [database.connect_as(&role).await, database.connect_as(&role).await, database.connect_as(&role).await, relay];
    successor.batch_execute("begin; update postrider.progress set relay_epoch = relay_epoch + 1").await.unwrap();
    let all_wait = async {
        let waiting = "select count(*)::text from pg_stat_activity
                       where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0";
        while text(&successor, waiting).await != "3" {
            // Statistics of activity stand still inside a transaction unless told otherwise.
            successor.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
        }
    };
    let committed = async {
        let all_waited = tokio::time::timeout(Duration::from_secs(30), all_wait).await;
        successor.batch_execute("commit").await.unwrap();
        all_waited.expect("a write did not wait for the takeover");
    };
    let (progress, heartbeat, confirm_result, ()) = tokio::join!(
        write_progress(
            &progress,
            &slot,
            epoch,
            Reached { intended: Lsn(500), acknowledged: Lsn(500), heartbeat: None }
        ),
        beat(&heartbeat, &slot, epoch),
        confirm_heartbeat(&confirm, &slot, epoch, 1, "1:1:"),
        committed
    );
    assert!(is_fenced(progress) && is_fenced(heartbeat) && is_fenced(confirm_result));
    let after = record(&confirm, &slot).await;
    assert_eq!(after, Record { relay_epoch: epoch + 1, ..before });
}

#[tokio::test]
async fn two_takeovers_at_once_get_numbers_of_their_own() {
    let (database, mut relay, slot, epoch) = carrying().await;
    let mut other = database.connect_as(&format!("{}_relay", database.name)).await;
    let (one, other) = tokio::join!(take_over(&mut relay, &slot, SOURCE), take_over(&mut other, &slot, SOURCE));
    let mut epochs = [one.unwrap().0, other.unwrap().0];
    epochs.sort_unstable();
    assert_eq!(epochs, [epoch + 1, epoch + 2]);
}

#[tokio::test]
async fn a_missing_migration_or_grant_is_told_with_its_remedy() {
    let database = Database::new().await;
    let owner = database.connect().await;
    let unmigrated = load(&owner, "s").await.unwrap_err().to_string();
    assert!(unmigrated.contains("postrider migrate"), "{unmigrated}");

    let (database, relay, slot, _) = carrying().await;
    let revoke = format!("revoke select on postrider.progress from {}_relay", database.name);
    database.connect().await.batch_execute(&revoke).await.unwrap();
    let ungranted = load(&relay, &slot).await.unwrap_err().to_string();
    assert!(ungranted.contains("--print-roles"), "{ungranted}");
}
