//! The publications of captured tables: what `migrate` makes of them, what makes writes fail and how that is mended, and what halts a relay.

mod breaking;
mod partitions;

use std::time::Duration;

use postrider::config::Config;
use postrider::migrate::{MigrateError, Target, down, up_saying, up_script};
use postrider::preflight::{self, Finding, Level};
use postrider::status::{Role, Snapshot};
use tokio_postgres::Client;

use crate::support::relay::Relay;
use crate::support::world::{World, connect};
use crate::support::{servers, within};

const TABLES: &str = "POSTRIDER_SOURCE_TABLES";
/// Two looks of the relay, and what the server needs to let go of what is old.
const LONG: Duration = Duration::from_secs(180);

async fn bare(name: &str, statements: &str) -> World {
    let world = World::bare(servers::shared().await, name).await;
    world.sql.batch_execute(statements).await.unwrap();
    world
}

async fn version(world: &World) -> i32 {
    world.sql.query_one("select current_setting('server_version_num')::int / 10000", &[]).await.unwrap().get(0)
}

/// Runs `migrate` as the owner; what it says.
async fn migrate(world: &World, tables: &str) -> Result<Vec<String>, MigrateError> {
    let config = world.config(&[(TABLES, tables)]);
    let mut owner = connect(&world.database_url).await;
    up_saying(&mut owner, &Target::from(&*config)).await.map(|(_, said)| said)
}

async fn refused(world: &World, tables: &str) -> String {
    migrate(world, tables).await.expect_err("refused").to_string()
}

/// What is in a publication, by name.
async fn members(sql: &Client, publication: &str) -> Vec<String> {
    let statement =
        "select format('%s.%s', schemaname, tablename) from pg_publication_tables where pubname = $1 order by 1";
    let rows = sql.query(statement, &[&publication]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn both(world: &World) -> (Vec<String>, Vec<String>) {
    (members(&world.sql, "postrider_tables").await, members(&world.sql, "postrider_inserts").await)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The findings about captured tables.
async fn findings(config: &Config) -> Vec<Finding> {
    preflight::check(config).await.into_iter().filter(|finding| finding.check == "postgres.tables").collect()
}

const MIXED: &str = r#"
create schema "Ünï ""q""";
create table "Ünï ""q"""."Größe.x" (id int primary key);
create table keyed (id int primary key);
create table "Bare" (id int);
create table full_one (id int);
alter table full_one replica identity full;
create table virtually (id int primary key, twice int generated always as (id * 2) stored);
create table sound (id int, at int, primary key (id, at)) partition by range (at);
create table sound_1 partition of sound for values from (0) to (10);
create table unsound (id int, at int) partition by range (at);
create table unsound_1 partition of unsound for values from (0) to (10);
create table unsound_2 partition of unsound for values from (10) to (20) partition by range (at);
create table unsound_2_1 partition of unsound_2 for values from (10) to (15);
create table parent (id int primary key);
create table child () inherits (parent);
create unlogged table fleeting (id int primary key);
create view seen as select 1 as id;
"#;

#[tokio::test(flavor = "multi_thread")]
async fn migrate_publishes_what_the_patterns_mean_and_says_how_to_have_the_rest() {
    let world = bare("patterns", MIXED).await;
    let said = migrate(&world, "public.*, Ünï \"q\".*").await.unwrap();
    let proven =
        ["Ünï \"q\".Größe.x", "public.full_one", "public.keyed", "public.parent", "public.sound", "public.virtually"];
    let (all_changes, inserts) = both(&world).await;
    let mut expected = names(&proven);
    expected.sort();
    let mut sorted = all_changes.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(inserts, names(&["public.Bare", "public.child", "public.unsound"]));
    for statement in [
        "alter table public.\"Bare\" replica identity full",
        "alter table public.unsound_1 replica identity full",
        "alter table public.unsound_2_1 replica identity full",
        "alter table public.unsound replica identity full",
    ] {
        assert!(said.iter().any(|line| line.contains(statement)), "{statement}: {said:#?}");
    }
    assert!(!said.iter().any(|line| line.contains("fleeting") || line.contains("outbox")), "{said:#?}");

    let again = migrate(&world, "public.*, Ünï \"q\".*").await.unwrap();
    assert!(!again.iter().any(|line| line.contains("added") || line.contains("dropped")), "{again:#?}");
    let config = world.config(&[(TABLES, "public.*, Ünï \"q\".*")]);
    assert!(!findings(&config).await.iter().any(|finding| finding.level == Level::Fail));
    assert_eq!(both(&world).await, (all_changes, inserts));

    // Following what it said proves them.
    for statement in ["public.\"Bare\"", "public.child", "public.unsound", "public.unsound_1", "public.unsound_2_1"] {
        world.sql.batch_execute(&format!("alter table {statement} replica identity full")).await.unwrap();
    }
    let said = migrate(&world, "public.*, Ünï \"q\".*").await.unwrap();
    assert!(said.iter().any(|line| line.contains("public.\"Bare\" moved to postrider_tables")), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("public.unsound") && line.contains("new partition")), "{said:#?}");
    let (all_changes, inserts) = both(&world).await;
    assert_eq!((all_changes.len(), inserts.len()), (9, 0));

    // A new partition starts without.
    let unproven = "create table unsound_3 partition of unsound for values from (20) to (30)";
    world.sql.batch_execute(unproven).await.unwrap();
    assert!(findings(&config).await.iter().any(|finding| finding.what.contains("public.unsound_3")));
    let said = migrate(&world, "public.*, Ünï \"q\".*").await.unwrap();
    assert!(said.iter().any(|line| line.contains("public.unsound moved to postrider_inserts")), "{said:#?}");
    world.sql.batch_execute("insert into unsound values (1, 25); update unsound set id = 2").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_there_is_taken_out_and_said() {
    let world = bare("intruders", MIXED).await;
    migrate(&world, "public.keyed, public.sound").await.unwrap();
    let add =
        "alter publication postrider_tables add table parent; alter publication postrider_inserts add table sound_1;
               alter publication postrider_inserts add tables in schema \"Ünï \"\"q\"\"\";
               alter publication postrider_tables set (publish = 'insert, update')";
    world.sql.batch_execute(add).await.unwrap();
    let said = migrate(&world, "public.keyed, public.sound").await.unwrap();
    for line in [
        "public.parent dropped",
        "public.child dropped",
        "public.sound_1 dropped",
        "dropped from postrider_inserts: only",
        "postrider_tables changed: publish",
    ] {
        assert!(said.iter().any(|said| said.contains(line)), "{line}: {said:#?}");
    }
    assert_eq!(both(&world).await, (names(&["public.keyed", "public.sound"]), vec![]));
    let said = migrate(&world, "public.sound").await.unwrap();
    assert!(said.iter().any(|line| line.contains("public.keyed dropped from postrider_tables")), "{said:#?}");
    assert_eq!(both(&world).await.0, names(&["public.sound"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_means_nothing_is_named_and_nothing_is_changed() {
    let world = bare("nothing", MIXED).await;
    let cases = [
        ("public.keyed, sales.*", "\"sales.*\" matches no table", "'sales.*' matches no table"),
        ("public.sound_1", "public.sound instead", "partitions only"),
        ("public.seen", "a view", "matches no table"),
        ("public.fleeting", "unlogged", "matches no table"),
        ("pg_catalog.pg_class", "of the system", "matches no table"),
    ];
    for (patterns, one, other) in cases {
        let text = refused(&world, patterns).await;
        assert!(text.contains(one) || patterns.contains("sales"), "{text}");
        assert!(text.contains(other), "{text}");
    }
    world.migrate().await;
    let text = refused(&world, "public.outbox").await;
    assert!(text.contains("the outbox"), "{text}");
    assert_eq!(world.count("select count(*) from pg_publication where pubname <> 'postrider'").await, 0);
    world.sql.batch_execute("create publication postrider_tables for all tables").await.unwrap();
    let text = refused(&world, "public.keyed").await;
    assert!(text.contains("for all tables") && text.contains("source.publication"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_does_the_same_and_going_back_removes_it() {
    let world = bare("printed", MIXED).await;
    let config = world.config(&[(TABLES, "public.*")]);
    let target = Target::from(&*config);
    let script = up_script(&target);
    world.sql.batch_execute(&script).await.unwrap();
    let printed = both(&world).await;
    assert_eq!(migrate(&world, "public.*").await.unwrap().iter().filter(|line| line.contains("added")).count(), 0);
    assert_eq!(both(&world).await, printed);
    let mut owner = connect(&world.database_url).await;
    down(&mut owner, &target, false).await.unwrap();
    assert_eq!(world.count("select count(*) from pg_publication").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_moved_without_an_instant_in_neither_and_without_a_write_that_fails() {
    let world = bare("moved", "create table moved (id int); insert into moved values (1)").await;
    migrate(&world, "public.moved").await.unwrap();
    let writer = connect(&world.database_url).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writes = tokio::spawn(async move {
        let mut writes = 0;
        while stopped.try_recv().is_err() {
            writer.batch_execute("update moved set id = id + 1").await.unwrap();
            let covered = "select count(*) from pg_publication_tables where tablename = 'moved' and pubname like 'postrider!_%' escape '!'";
            let covered: i64 = writer.query_one(covered, &[]).await.unwrap().get(0);
            assert!(covered >= 1);
            writes += 1;
        }
        writes
    });
    world.sql.batch_execute("alter table moved replica identity full").await.unwrap();
    migrate(&world, "public.moved").await.unwrap();
    stop.send(()).unwrap();
    assert!(writes.await.unwrap() > 0);
    assert_eq!(both(&world).await, (names(&["public.moved"]), vec![]));
}

async fn recorded(world: &World) -> String {
    let statement = "select coalesce(publication_state, '') from postrider.progress where slot = $1";
    world.sql.query_one(statement, &[&world.name]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_may_join_move_and_be_dropped_and_halts_the_relay_when_it_leaves() {
    let world = bare("leaves", "create table first (id int primary key); create table second (id int)").await;
    migrate(&world, "public.first, public.second").await.unwrap();
    let relay = Relay::carrying(&world, &[(TABLES, "public.*")]).await;
    let before = recorded(&world).await;
    assert!(before.contains("; tables of "), "{before}");

    let change = "create table third (id int primary key); create table passing (id int primary key);
                  alter table second replica identity full";
    world.sql.batch_execute(change).await.unwrap();
    migrate(&world, "public.*").await.unwrap();
    let grown = within(LONG, "what has joined is recorded", async || {
        let now = recorded(&world).await;
        (now != before).then_some(now)
    })
    .await;
    assert!(grown.matches(" a ").count() == 4 && !grown.contains(" i "), "{grown}");
    world.sql.batch_execute("drop table passing").await.unwrap();
    within(LONG, "what was dropped is forgotten", async || (recorded(&world).await != grown).then_some(())).await;
    assert!(relay.status.snapshot().carrying());

    world
        .sql
        .batch_execute(
            "alter publication postrider_tables drop table third; alter publication postrider_tables add table third",
        )
        .await
        .unwrap();
    let halted = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    let problem = halted.problem.unwrap();
    assert!(problem.contains("public.third"), "{problem}");
    assert_eq!(halted.halt.unwrap().reason, "publication_changed");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_while_no_relay_ran_halts_the_next_one_unless_it_is_not_asked_for_any_more() {
    let world = bare("left", "create table first (id int primary key); create table second (id int primary key)").await;
    migrate(&world, "public.*").await.unwrap();
    Relay::carrying(&world, &[(TABLES, "public.*")]).await.stop().await;
    migrate(&world, "public.first").await.unwrap();
    let relay = Relay::start(world.config(&[(TABLES, "public.*")]));
    let halted = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    let problem = halted.problem.unwrap();
    assert!(problem.contains("public.second") && !problem.contains("public.first"), "{problem}");
    relay.stop().await;
    // As if it had not been started with the old configuration.
    world.sql.batch_execute("delete from postrider.halts").await.unwrap();
    let relay = Relay::carrying(&world, &[(TABLES, "public.first")]).await;
    assert_eq!(recorded(&world).await.matches(" a ").count(), 1);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_gone_halts_the_relay_and_one_that_was_never_made_is_asked_for() {
    let world = World::new("unmade").await;
    world.sql.batch_execute("create table first (id int primary key)").await.unwrap();
    let tables = [(TABLES, "public.first")];
    let relay = Relay::start(world.config(&tables));
    let problem = relay.problem().await;
    assert!(problem.contains("postrider_tables") && problem.contains("postrider migrate"), "{problem}");
    migrate(&world, "public.first").await.unwrap();
    relay.until("the relay carries", Snapshot::carrying).await;
    assert!(recorded(&world).await.contains("; tables of "));
    world.sql.batch_execute("drop publication postrider_inserts").await.unwrap();
    let halted = relay.until("it halts", |snapshot| snapshot.role == Role::Halted).await;
    let problem = halted.problem.unwrap();
    assert!(problem.contains("postrider_inserts") && problem.contains("postrider migrate"), "{problem}");
    assert_eq!(halted.halt.unwrap().reason, "publication_missing");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_older_than_the_publications_is_read_with_them_when_it_can_be() {
    let world = World::new("older").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    world.insert("1", "Placed", "{}").await;
    let before = recorded(&world).await;
    relay.stop().await;
    world.sql.batch_execute("create table first (id int primary key)").await.unwrap();
    // What the slot has still to send was written before there were such publications.
    world.insert("2", "Placed", "{}").await;
    migrate(&world, "public.first").await.unwrap();
    let relay = Relay::carrying(&world, &[(TABLES, "public.first")]).await;
    let now = within(LONG, "captured tables are carried", async || {
        world.insert("3", "Placed", "{}").await;
        let now = recorded(&world).await;
        (now != before).then_some(now)
    })
    .await;
    assert!(now.starts_with(&format!("{before}; tables of ")), "{now}");
    relay.until("the relay carries", Snapshot::carrying).await;
    assert_eq!(relay.status.snapshot().halt, None);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrying_relay_says_when_ddl_makes_writes_fail() {
    let world = bare("watched", "create table first (id int primary key)").await;
    migrate(&world, "public.first").await.unwrap();
    let relay = Relay::carrying(&world, &[(TABLES, "public.first")]).await;
    world.sql.batch_execute("alter table first drop constraint first_pkey").await.unwrap();
    let troubles = within(LONG, "it is said", async || {
        Some(relay.status.snapshot().table_troubles).filter(|troubles| !troubles.is_empty())
    })
    .await;
    assert!(troubles[0].contains("alter table public.first replica identity full"), "{troubles:?}");
    assert!(relay.status.snapshot().carrying());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstall_drops_the_publications_that_migrate_has_made() {
    let world = bare("uninstalled", "create table first (id int primary key)").await;
    migrate(&world, "public.first").await.unwrap();
    world.sql.batch_execute("drop publication postrider_inserts; create publication postrider_inserts").await.unwrap();
    let said = world.postrider(&["uninstall", "--yes"]);
    assert!(
        said.contains("drop publication postrider_tables") && said.contains("postrider_inserts: not made by"),
        "{said}"
    );
    let left = "select count(*) from pg_publication where pubname = 'postrider_inserts'";
    assert_eq!(world.count(left).await, 1);
    assert_eq!(world.count("select count(*) from pg_publication").await, 1);
}

/// The first block of SQL in docs/tables.md with an event trigger.
fn guard() -> String {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tables.md")).unwrap();
    let mut blocks = document.split("```sql\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.find(|block| block.contains("create event trigger")).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_trigger_of_the_documents_refuses_ddl_that_makes_writes_fail() {
    let world = bare("guarded", MIXED).await;
    migrate(&world, "public.*").await.unwrap();
    world.sql.batch_execute(&guard()).await.unwrap();
    let loose = "alter table full_one replica identity default";
    for statement in [
        "alter table keyed drop constraint keyed_pkey",
        "alter table keyed replica identity nothing",
        "alter table sound_1 replica identity nothing",
        loose,
    ] {
        let error = world.sql.batch_execute(statement).await.expect_err(statement);
        let error = error.as_db_error().unwrap();
        assert!(error.message().contains("replica identity"), "{error:?}");
    }
    for statement in [
        "create table other (id int)",
        "alter table keyed add column v text",
        "create table sound_2 partition of sound for values from (10) to (20)",
        "alter table \"Bare\" add column v text",
        "update keyed set id = 2",
    ] {
        world.sql.batch_execute(statement).await.unwrap();
    }
    migrate(&world, "public.*").await.unwrap();
}
