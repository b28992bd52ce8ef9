//! `postrider uninstall`: nothing is lost unseen, nothing of others is touched, and no slot is left.

use std::time::Duration;

use crate::support::eventually;
use crate::support::parked::put;
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

/// Exit code, and everything that was printed.
fn uninstall(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let settings = world.settings(&[]);
    let output = Program::command(&settings, &[&["uninstall"], arguments].concat()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Slot, publications, record, and whether the outbox is there.
async fn left(world: &World) -> String {
    let query = "select concat_ws(' ',
        (select string_agg(slot_name, ',') from pg_replication_slots where database = current_database()),
        coalesce((select string_agg(pubname, ',' order by pubname) from pg_publication), '-'),
        to_regclass('public.outbox'), to_regclass('postrider.progress'))";
    world.sql.query_one(query, &[]).await.unwrap().get(0)
}

async fn stopped(world: &World) {
    eventually("nobody reads the slot", || async {
        let active = format!("select count(*) from pg_replication_slots where slot_name = '{}' and active", world.name);
        let senders =
            format!("select count(*) from pg_stat_replication where application_name = 'postrider/{}'", world.name);
        (world.count(&active).await + world.count(&senders).await == 0).then_some(())
    })
    .await;
}

/// A relay has carried one event, and is stopped.
async fn used(name: &str) -> World {
    let world = World::new(name).await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    world.insert("1", "Placed", "{}").await;
    eventually("the event is delivered", || async { (world.depth("all").await == 1).then_some(()) }).await;
    relay.stop().await;
    stopped(&world).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_is_undelivered_and_leaves_no_slot() {
    let world = used("uninstall").await;
    world.insert("2", "Placed", "{}").await;
    put(&world.sql, &world.name, 1..=3, "unroutable", b"x").await;
    let all = format!("{} postrider outbox postrider.progress", world.name);
    assert_eq!(left(&world).await, all);

    let (code, text) = uninstall(&world, &[]);
    assert_eq!(code, Some(1), "{text}");
    for wanted in
        ["WAL behind", "rows of public.outbox are not known to be delivered", "dead letters  3 (", "--yes", "drop slot"]
    {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert_eq!(left(&world).await, all, "nothing was changed");

    let (code, text) = uninstall(&world, &["--yes"]);
    assert!(code == Some(0) && text.ends_with("done\n"), "{text}");
    assert_eq!(left(&world).await, "- outbox postrider.progress");
    assert_eq!(world.count("select count(*) from outbox").await, 2);
    assert_eq!(world.count("select count(*) from postrider.parked").await, 3);
    assert_eq!(world.count("select count(*) from postrider.progress").await, 0);
    assert_eq!(world.count("select count(*) from postrider.lives where ended_at is null").await, 0);
    let (code, text) = uninstall(&world, &["--yes"]);
    assert!(code == Some(0) && text.ends_with("nothing to do\n"), "{text}");

    let (code, text) = uninstall(&world, &["--drop-data"]);
    assert!(code == Some(1) && text.contains("with 3 dead letters"), "{text}");
    let (code, text) = uninstall(&world, &["--drop-data", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left(&world).await, "-");
    let (code, text) = uninstall(&world, &["--drop-data", "--yes"]);
    assert!(code == Some(0) && text.ends_with("nothing to do\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_while_a_relay_carries_or_stands_by() {
    let world = World::new("uninstall_active").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    for arguments in [[].as_slice(), &["--yes"], &["--yes", "--drop-data"]] {
        let (code, text) = uninstall(&world, arguments);
        assert!(code == Some(1) && text.contains("is in use (pid") && text.contains("stop its relay first"), "{text}");
    }
    let standby = Relay::start(world.config(&[]));
    standby.problem().await;
    relay.stop().await;
    // The one that stood by carries now, or is about to.
    let (code, text) = uninstall(&world, &["--yes"]);
    assert!(code == Some(1) && text.contains("stop"), "{text}");
    standby.stop().await;
    stopped(&world).await;
    let (code, text) = uninstall(&world, &["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left(&world).await, "- outbox postrider.progress");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.confirmed().await, None, "nobody makes the slot again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_about_to_take_the_slot_is_seen() {
    let world = used("uninstall_lock").await;
    let lock = format!("select pg_advisory_lock(hashtext('postrider'), hashtext('{}'))", world.name);
    world.sql.batch_execute(&lock).await.unwrap();
    let (code, text) = uninstall(&world, &["--yes"]);
    assert!(code == Some(1) && text.contains("about to take slot"), "{text}");
    assert!(world.confirmed().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_made_or_use_stays() {
    let world = used("uninstall_others").await;
    world
        .sql
        .batch_execute("create table t (id int primary key); alter publication postrider add table t")
        .await
        .unwrap();
    let (code, text) = uninstall(&world, &["--yes"]);
    assert!(code == Some(0) && text.contains("others use it for public.t"), "{text}");
    let published = "select string_agg(tablename, ' ') from pg_publication_tables where pubname = 'postrider'";
    assert_eq!(world.sql.query_one(published, &[]).await.unwrap().get::<_, String>(0), "t");
    let (code, text) = uninstall(&world, &["--yes", "--drop-data"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left(&world).await, "postrider", "the publication of the others");

    // Of our name, and not ours.
    for (plugin, code, says) in
        [("pgoutput", 1, "no record in postrider.progress"), ("test_decoding", 0, "nothing to do")]
    {
        let make = format!("select pg_create_logical_replication_slot('{}', '{plugin}')", world.name);
        world.sql.batch_execute(&make).await.unwrap();
        let (ended, text) = uninstall(&world, &["--yes", "--drop-data"]);
        assert!(ended == Some(code) && text.contains(says), "{text}");
        assert!(world.confirmed().await.is_some(), "{text}");
        world.sql.batch_execute(&format!("select pg_drop_replication_slot('{}')", world.name)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_relay_of_the_database_keeps_what_it_needs() {
    let world = used("uninstall_two").await;
    let other = format!("{}_b", world.name);
    let relay = Relay::carrying(&world, &[("POSTRIDER_SLOT", &other)]).await;
    let (code, text) = uninstall(&world, &["--yes", "--drop-data"]);
    assert!(code == Some(1) && text.contains(&other), "{text}");
    let (code, text) = uninstall(&world, &["--yes"]);
    assert!(code == Some(0) && text.contains("it stays"), "{text}");
    assert_eq!(left(&world).await, format!("{other} postrider outbox postrider.progress"));
    world.insert("2", "Placed", "{}").await;
    eventually("the other relay goes on", || async { (world.depth("all").await == 2).then_some(()) }).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_roles_may_do_its_part() {
    let world = used("uninstall_roles").await;
    let role = format!("{}_relay", world.name);
    let config = world.config(&[]);
    let target = postrider::migrate::Target::from(&*config);
    world.sql.batch_execute(&postrider::migrate::roles_script(&target, &role)).await.unwrap();
    world.sql.batch_execute(&format!("alter role {role} password '{role}'")).await.unwrap();
    let mut url: url::Url = world.database_url.parse().unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some(&role)).unwrap();
    let mut settings = world.settings(&[]);
    settings[0].1 = url.into();
    let output = Program::command(&settings, &["uninstall", "--yes"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("run it as the owner"), "{error}");
    assert_eq!(world.confirmed().await, None, "the slot is gone");
    let (code, text) = uninstall(&world, &["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left(&world).await, "- outbox postrider.progress");
    world.sql.batch_execute(&format!("drop owned by {role}; drop role {role}")).await.unwrap();
}
