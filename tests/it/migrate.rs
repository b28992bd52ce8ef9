//! The migrations, the contract of the outbox table, and the relay's state, as a database without superusers sees them.

mod database;
mod dead_letters;
mod marks;
mod rows;
mod state;

use std::time::Duration;

use database::Database;
use postrider::config::Outbox;
use postrider::migrate::{
    LATEST, MigrateError, Outcome, Target, down, down_script, roles_script, up, up_script, version,
};
use tokio_postgres::Client;

const MIGRATED: Outcome = Outcome::Applied { from: 0, to: LATEST };

async fn migrated() -> (Database, Client, Target) {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let target = database.target();
    assert_eq!(up(&mut owner, &target).await.unwrap(), MIGRATED);
    (database, owner, target)
}

async fn text(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.unwrap().get(0)
}

/// The message and the hint of a refusal.
fn refusal(result: Result<Outcome, MigrateError>) -> String {
    match result {
        Err(error @ MigrateError::Refused { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn up_down_up_leaves_the_schema_equal() {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let target = database.target();
    let empty = database.dump(&[]).await;
    up(&mut owner, &target).await.unwrap();
    let once = database.dump(&[]).await;
    assert_eq!(down(&mut owner, &target, false).await.unwrap(), Outcome::Removed { from: LATEST });
    assert_eq!(database.dump(&[]).await, empty);
    up(&mut owner, &target).await.unwrap();
    assert_eq!(database.dump(&[]).await, once);
    assert!(once.contains("CREATE PUBLICATION") && once.contains("ENABLE ALWAYS TRIGGER"), "{once}");
}

#[tokio::test]
async fn going_back_from_an_empty_database_is_nothing_to_do() {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let outcome = down(&mut owner, &database.target(), true).await.unwrap();
    assert_eq!(outcome, Outcome::NothingToDo { version: 0 });
}

#[tokio::test]
async fn of_two_migrations_at_once_one_applies_and_the_other_has_nothing_to_do() {
    let database = Database::new().await;
    let target = database.target();
    let gate = database.connect().await;
    gate.batch_execute("select pg_advisory_lock(8101821198635721829)").await.unwrap();
    let [mut one, mut other] = [database.connect().await, database.connect().await];
    let both_wait = async {
        let waiting = "select count(*)::text from pg_locks where locktype = 'advisory' and not granted
                       and database = (select oid from pg_database where datname = current_database())";
        while text(&gate, waiting).await != "2" {
            tokio::task::yield_now().await;
        }
    };
    let opened = async {
        let both_waited = tokio::time::timeout(Duration::from_secs(30), both_wait).await;
        gate.batch_execute("select pg_advisory_unlock(8101821198635721829)").await.unwrap();
        both_waited.expect("a migration did not wait for the lock");
    };
    let (one, other, ()) = tokio::join!(up(&mut one, &target), up(&mut other, &target), opened);
    let mut outcomes = [one.unwrap(), other.unwrap()];
    outcomes.sort_by_key(|outcome| *outcome != MIGRATED);
    assert_eq!(outcomes, [MIGRATED, Outcome::NothingToDo { version: LATEST }]);
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_says_the_version() {
    let (database, mut owner, target) = migrated().await;
    let before = database.dump(&[]).await;
    let outcome = up(&mut owner, &target).await.unwrap();
    assert_eq!(outcome.to_string(), format!("nothing to do: this database is at version {LATEST}"));
    assert_eq!(database.dump(&[]).await, before);
    assert_eq!(version(&owner).await.unwrap(), LATEST);
}

#[tokio::test]
async fn another_configuration_or_a_newer_database_is_not_migrated() {
    let (_database, mut owner, mut target) = migrated().await;
    target.outbox.table = "events".into();
    let error = up(&mut owner, &target).await.unwrap_err().to_string();
    assert!(error.contains(r#"outbox.table = "outbox""#) && error.contains("events"), "{error}");
    owner.batch_execute("insert into postrider.migrations (version, name) values (1000, 'later')").await.unwrap();
    assert!(matches!(up(&mut owner, &target).await, Err(MigrateError::Newer { database: 1000 })));
    assert!(matches!(down(&mut owner, &target, true).await, Err(MigrateError::Newer { database: 1000 })));
}

#[tokio::test]
async fn every_object_and_every_column_has_a_comment() {
    let (_database, owner, _) = migrated().await;
    let uncommented = "
        select coalesce(string_agg(what, ', '), '') from (
            select 'schema' where obj_description('postrider'::regnamespace, 'pg_namespace') is null
            union all
            select c.relname || coalesce('.' || a.attname, '')
            from pg_class c left join pg_attribute a on a.attrelid = c.oid and c.relkind in ('r', 'v') and a.attnum >= 0
            where (c.relnamespace = 'postrider'::regnamespace or c.oid = 'outbox'::regclass) and c.relkind in ('r', 'v')
                and col_description(c.oid, coalesce(a.attnum, 0)) is null
            union all
            select c.relname from pg_class c
            where (c.relnamespace = 'postrider'::regnamespace or c.oid = 'outbox'::regclass) and c.relkind in ('r', 'v')
                and obj_description(c.oid, 'pg_class') is null
            union all
            select proname from pg_proc
            where pronamespace = 'postrider'::regnamespace and obj_description(oid, 'pg_proc') is null
            union all
            select tgname from pg_trigger where not tgisinternal and obj_description(oid, 'pg_trigger') is null
            union all
            select pubname from pg_publication where obj_description(oid, 'pg_publication') is null
        ) as without (what)";
    assert_eq!(text(&owner, uncommented).await, "");
}

#[tokio::test]
async fn going_back_is_refused_while_a_slot_exists_and_keeps_rows_unless_told() {
    let (database, mut owner, target) = migrated().await;
    let superuser = database.connect_as_superuser().await;
    let recorded = format!("{}_recorded", database.name);
    owner
        .execute(
            "insert into postrider.progress (slot, publication, system_identifier, database_oid, timeline, phase)
             values ($1, 'postrider', 0, 0, 1, 'creating')",
            &[&recorded],
        )
        .await
        .unwrap();
    owner.batch_execute("insert into outbox (aggregatetype, aggregateid, type) values ('a', '1', 'T')").await.unwrap();

    for slot in [&target.slot, &recorded] {
        let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        superuser.execute(make, &[slot]).await.unwrap();
        let refused = refusal(down(&mut owner, &target, true).await);
        let remedy = format!("select pg_drop_replication_slot('{slot}');");
        assert!(refused.contains(slot.as_str()) && refused.contains(&remedy), "{refused}");
        superuser.batch_execute(&remedy).await.unwrap();
    }
    let refused = refusal(down(&mut owner, &target, false).await);
    assert!(refused.contains("public.outbox") && refused.contains("--drop-data"), "{refused}");
    assert_eq!(text(&owner, "select count(*)::text from outbox").await, "1");
    down(&mut owner, &target, true).await.unwrap();
    assert_eq!(text(&owner, "select coalesce(to_regclass('outbox')::text, 'gone')").await, "gone");
}

/// What Debezium's Outbox Event Router needs, with names of somebody's own.
async fn foreign_outbox(owner: &Client, target: &mut Target) {
    owner
        .batch_execute(
            r#"create schema shop;
               create table shop."Order Events" (id varchar(64) primary key, "aggType" varchar(255) not null,
                   aggregateid varchar(255) not null, type varchar(255) not null, body json);"#,
        )
        .await
        .unwrap();
    target.outbox.schema = "shop".into();
    target.outbox.table = "Order Events".into();
    target.outbox.columns.aggregatetype = "aggType".into();
    target.outbox.columns.payload = "body".into();
}

#[tokio::test]
async fn a_table_made_by_somebody_else_gets_only_the_publication_and_is_never_dropped() {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let mut target = database.target();
    foreign_outbox(&owner, &mut target).await;
    let [whole, table] = [database.dump(&[]).await, database.dump(&["-t", r#"shop."Order Events""#]).await];
    assert_eq!(up(&mut owner, &target).await.unwrap(), MIGRATED);
    assert_eq!(database.dump(&["-t", r#"shop."Order Events""#]).await, table);
    let published = "select string_agg(schemaname || '.' || tablename, ', ' order by tablename)
                     from pg_publication_tables where pubname = 'postrider'";
    assert_eq!(text(&owner, published).await, "shop.Order Events, postrider.heartbeat, postrider.resend");

    owner
        .batch_execute(r#"insert into shop."Order Events" values ('e1', 'order', '1', 'Placed', '{}')"#)
        .await
        .unwrap();
    assert_eq!(text(&owner, "select id || ' ' || state from postrider.outbox_status").await, "e1 unknown");
    down(&mut owner, &target, false).await.unwrap();
    assert_eq!(database.dump(&[]).await, whole);
    assert_eq!(text(&owner, r#"select count(*)::text from shop."Order Events""#).await, "1");
}

#[tokio::test]
async fn a_table_without_a_required_column_is_refused_with_the_setting_that_maps_it() {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let mut target = database.target();
    foreign_outbox(&owner, &mut target).await;
    target.outbox.columns.payload = "payload".into();
    let refused = refusal(up(&mut owner, &target).await);
    assert!(refused.contains(r#"no column "payload""#) && refused.contains("outbox.columns.payload"), "{refused}");
    assert_eq!(version(&owner).await.unwrap(), 0);

    owner.batch_execute("create view shop.v as select 1 as id").await.unwrap();
    target.outbox.table = "v".into();
    let refused = refusal(up(&mut owner, &target).await);
    assert!(refused.contains("not a table"), "{refused}");
}

#[tokio::test]
async fn a_publication_that_does_more_is_refused_until_the_printed_statement_has_run() {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let target = database.target();
    let theirs = "create table t (id int primary key); create publication postrider for table t;";
    owner.batch_execute(theirs).await.unwrap();
    let refused = refusal(up(&mut owner, &target).await);
    let statement = refused.split_once("reads it: ").and_then(|(_, rest)| rest.split_once(';')).unwrap().0;
    owner.batch_execute(statement).await.unwrap();

    let before = database.dump(&[]).await;
    up(&mut owner, &target).await.unwrap();
    let published = "select string_agg(tablename, ', ' order by tablename) from pg_publication_tables";
    assert_eq!(text(&owner, published).await, "heartbeat, outbox, resend, t");
    down(&mut owner, &target, false).await.unwrap();
    assert_eq!(database.dump(&[]).await, before);
}

#[tokio::test]
async fn a_publication_that_leaves_out_rows_is_refused() {
    let database = Database::new().await;
    let mut owner = database.connect().await;
    let mut target = database.target();
    foreign_outbox(&owner, &mut target).await;
    owner
        .batch_execute(
            r#"create publication postrider for table shop."Order Events" where (id <> 'x')
               with (publish = 'insert', publish_via_partition_root = true)"#,
        )
        .await
        .unwrap();
    let refused = refusal(up(&mut owner, &target).await);
    let statement = refused.split_once("reads it: ").and_then(|(_, rest)| rest.split_once(';')).unwrap().0;
    owner.batch_execute(statement).await.unwrap();
    up(&mut owner, &target).await.unwrap();
}

#[tokio::test]
async fn the_printed_sql_makes_and_removes_the_same_by_psql() {
    let (applied, printed) = (migrated().await.0, Database::new().await);
    let target = printed.target();
    let clean = printed.dump(&[]).await;
    let output = printed.psql(&up_script(&target));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let by_program = applied.dump(&[]).await.replace(&applied.name, &printed.name);
    assert_eq!(printed.dump(&[]).await, by_program);
    let mut owner = printed.connect().await;
    assert_eq!(up(&mut owner, &target).await.unwrap(), Outcome::NothingToDo { version: LATEST });

    let again = printed.psql(&up_script(&target));
    assert!(String::from_utf8_lossy(&again.stderr).contains(r#"schema "postrider" already exists"#));
    assert_eq!(version(&owner).await.unwrap(), LATEST);
    let output = printed.psql(&down_script(&target, false));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.dump(&[]).await, clean);
}

#[tokio::test]
async fn names_may_contain_anything() {
    let (database, nasty) = (Database::new().await, |name: &str| format!(r#"{name}'s "\ $postrider$ {{{{id}}}};--"#));
    let mut target = database.target();
    target.publication = nasty("pub");
    let columns = &mut target.outbox.columns;
    columns.id = nasty("id");
    columns.kind = "select".into();
    columns.payload = nasty("pay%I");
    columns.xid = nasty("xid");
    target.outbox.schema = nasty("Sch");
    target.outbox.table = nasty("out");
    let Outbox { schema, table, .. } = &target.outbox;

    let mut owner = database.connect().await;
    let quoted = text(&owner, &format!("select format('%I.%I', $a${schema}$a$, $a${table}$a$)")).await;
    owner.batch_execute(&format!("create schema {}", quoted.split_once(".\"").unwrap().0)).await.unwrap();
    let before = database.dump(&[]).await;
    up(&mut owner, &target).await.unwrap();
    let insert = format!(r#"insert into {quoted} (aggregatetype, aggregateid, "select") values ('a', '1', 'T')"#);
    owner.batch_execute(&insert).await.unwrap();
    let status = "select count(*) || state from postrider.outbox_status group by state";
    assert_eq!(text(&owner, status).await, "1unknown");
    let role = format!(r#"{}_re"l'ay\"#, database.name);
    let output = database.psql_as_superuser(&roles_script(&target, &role));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let quoted_role = text(&owner, &format!("select quote_ident($a${role}$a$)")).await;
    let superuser = database.connect_as_superuser().await;
    superuser.batch_execute(&format!("drop owned by {quoted_role}; drop role {quoted_role}")).await.unwrap();

    owner.batch_execute(&format!("delete from {quoted}")).await.unwrap();
    let output = database.psql(&down_script(&target, false));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(database.dump(&[]).await, before);
}

#[tokio::test]
async fn the_role_script_can_be_run_again_and_grants_exactly_this() {
    let (database, owner, target) = migrated().await;
    let role = format!("{}_relay", database.name);
    for _ in 0..2 {
        let output = database.psql_as_superuser(&roles_script(&target, &role));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let grants = format!(
        "select string_agg(line, E'\\n' order by line) from (
            select object || ': ' || string_agg(lower(privilege_type), ', ' order by privilege_type) from (
                select c.oid::regclass::text, (aclexplode(c.relacl)).* from pg_class c
                union all select 'schema ' || n.nspname, (aclexplode(n.nspacl)).* from pg_namespace n
                union all select 'function ' || p.proname, (aclexplode(p.proacl)).* from pg_proc p
                union all select 'database', (aclexplode(d.datacl)).* from pg_database d where d.datname = current_database()
            ) as acl (object, grantor, grantee, privilege_type, is_grantable)
            where grantee = '{role}'::regrole group by object
        ) as lines (line)"
    );
    let expected = [
        "database: connect",
        "function dead_letter_body: execute",
        "function discard: execute",
        "function mark_dead_letters: execute",
        "function redrive: execute",
        "outbox: select",
        "postrider.adoptions: insert, select",
        "postrider.dead_letter_chunks: insert, select",
        "postrider.dead_letters: delete, insert, select, update",
        "postrider.halts: delete, insert, select, update",
        "postrider.heartbeat: delete, insert, select",
        "postrider.lives: insert, select, update",
        "postrider.migrations: select",
        "postrider.outbox_status: select",
        "postrider.parked: select",
        "postrider.progress: insert, select, update",
        "postrider.repaired: delete, insert, select, update",
        "postrider.resend: delete, insert, select",
        "postrider.settings: select",
        "postrider.snapshots: insert, select, update",
        "schema postrider: usage",
        "schema public: usage",
    ];
    assert_eq!(text(&owner, &grants).await, expected.join("\n"));
    let attributes = format!(
        "select concat_ws(' ', rolcanlogin, rolreplication, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls)
         from pg_roles where rolname = '{role}'"
    );
    assert_eq!(text(&owner, &attributes).await, "t t f f f f");
}
