//! Those who own a table, or nothing, get no rights by capture.

use serde_json::json;

use super::{as_role, events, refused, takes};
use crate::support::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_cast_that_a_user_made_for_an_array_of_his_domain_never_runs() {
    let world = World::new("capture_casts").await;
    let kinds = [
        ("numeric", "1.50", json!("1.50")),
        ("oid", "4294967295", json!(4_294_967_295_u32)),
        ("bytea", r"'\x00ff'", json!("AP8=")),
        ("timestamp", "timestamp '2026-11-21 10:15:30'", json!("2026-11-21T10:15:30")),
        ("timestamptz", "timestamptz '2026-11-21 10:15:30+00'", json!("2026-11-21T10:15:30Z")),
        ("int4", "7", json!(7)),
        ("jsonb", "'{\"a\": 1}'", json!({"a": 1})),
    ];
    takes(&world.sql, "create table ran (who text)").await;
    let (mut columns, mut values) = (vec!["id int primary key".to_owned()], vec!["1".to_owned()]);
    let mut expected = json!({"id": 1});
    for (kind, value, wanted) in kinds {
        takes(&world.sql, &format!("create domain my_{kind} as {kind}")).await;
        for (target, result) in
            [("text[]", "{evil}"), ("bigint[]", "{666}"), ("jsonb", "666"), ("json", "666"), ("text", "evil")]
        {
            takes(
                &world.sql,
                &format!(
                    "create function evil_{}(given my_{kind}[]) returns {target} language plpgsql as
                        $$ begin insert into ran values (current_user); return '{result}'; end $$;
                     create cast (my_{kind}[] as {target}) with function evil_{}(my_{kind}[])",
                    target.replace("[]", "s"),
                    target.replace("[]", "s"),
                ),
            )
            .await;
        }
        columns.push(format!("a_{kind} my_{kind}[]"));
        values.push(format!("array[{value}, null]::my_{kind}[]"));
        expected[format!("a_{kind}")] = json!([wanted, null]);
    }
    let (columns, values) = (columns.join(", "), values.join(", "));
    takes(
        &world.sql,
        &format!("create table t ({columns}); select postrider.capture('t'); insert into t values ({values})"),
    )
    .await;
    assert_eq!(events(&world.sql).await[0][3], expected);

    // Nor in the slow way.
    takes(&world.sql, "truncate outbox; alter table t add column later int; update t set later = 1").await;
    let slow = events(&world.sql).await.remove(0);
    assert_eq!(slow[2]["a_numeric"], expected["a_numeric"]);
    expected["later"] = json!(1);
    assert_eq!((&slow[3], slow[4].get("omitted")), (&expected, None));
    assert_eq!(world.count("select count(*) from ran").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_the_role_in_effect_that_has_to_own_the_table() {
    let world = World::new("capture_set_role").await;
    let [owner, lesser, both] = ["owner", "lesser", "both"].map(|who| format!("{}_{who}", world.name));
    takes(
        &world.sql,
        &format!(
            "create role {owner}; create role {lesser}; create role {both} login password '{both}';
             grant {owner}, {lesser} to {both}; grant usage on schema postrider, public to {owner}, {lesser};
             grant execute on function postrider.capture, postrider.define_capture, postrider.release, postrider.drop_unused_captures to {owner}, {lesser};
             create table t (id int primary key, secret text); alter table t owner to {owner}; grant trigger on t to {lesser}"
        ),
    )
    .await;
    let session = as_role(&world, &both).await;
    takes(
        &session,
        &format!("set role {owner}; select postrider.capture('t', exclude => '{{secret}}'); set role {lesser}"),
    )
    .await;
    for call in ["capture('t')", "release('t')"] {
        let said = refused(&session, &format!("select postrider.{call}")).await;
        assert!(said.contains("must be owner of table"), "{said}");
    }
    // The part that has the rights of the outbox's owner makes a function that this role can do nothing with.
    let made: String = session
        .query_one("select postrider.define_capture('t', '{}', null, null, null, null, null, null, false)::text", &[])
        .await
        .unwrap()
        .get(0);
    let said =
        refused(&session, &format!("create trigger x after insert on t for each row execute function {made}")).await;
    assert!(said.contains("permission denied for function"), "{said}");
    takes(&world.sql, "insert into t values (1, 's')").await;
    assert_eq!(events(&world.sql).await[0][3], json!({"id": 1}), "captured as its owner said");

    // Called again, it leaves nothing of what was before.
    takes(&session, &format!("set role {owner}; select postrider.capture('t', created => 'Made'); reset role")).await;
    takes(&world.sql, "truncate outbox; insert into t values (2, 's')").await;
    let event = events(&world.sql).await.remove(0);
    assert_eq!((&event[0], &event[3]), (&json!("Made"), &json!({"id": 2, "secret": "s"})));
    assert_eq!(world.count("select count(*) from pg_proc where proname ~ '^captured_'").await, 1);
    takes(&world.sql, &format!("drop owned by {owner}, {lesser}, {both} cascade; drop role {owner}, {lesser}, {both}"))
        .await;
}
