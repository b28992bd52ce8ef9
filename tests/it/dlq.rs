//! `postrider dlq` as an operator calls it: with a database, and no relay.

use serde_json::Value;

use crate::support::parked::put;
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

/// Exit code, standard output, standard error.
fn dlq(world: &World, arguments: &[&str]) -> (Option<i32>, Vec<u8>, String) {
    let settings =
        [("DATABASE_URL".to_owned(), world.database_url.clone()), ("POSTRIDER_SLOT".to_owned(), world.name.clone())];
    let output = Program::command(&settings, &[&["dlq"], arguments].concat()).output().unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

fn succeeds(world: &World, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = dlq(world, arguments);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments:?}");
    String::from_utf8(stdout).unwrap()
}

fn fails(world: &World, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = dlq(world, arguments);
    assert_eq!((code, stdout.as_slice()), (Some(1), b"".as_slice()), "{arguments:?}");
    stderr
}

async fn marks(world: &World) -> String {
    let marks =
        "select coalesce(string_agg(id || mark, ' ' order by id), '') from postrider.parked where mark is not null";
    world.sql.query_one(marks, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn list_counts_first_and_lists_in_the_order_of_events() {
    let world = World::new("dlq_list").await;
    assert_eq!(succeeds(&world, &["list"]), format!("slot {} has no dead letters\n", world.name));
    put(&world.sql, &world.name, 1..=5, "behind", b"12345678").await;
    put(&world.sql, &world.name, 0..=0, "unroutable", b"").await;
    put(&world.sql, "another", 1..=2, "nacked", b"").await;

    let text = succeeds(&world, &["list", "--limit", "2"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with(&format!("slot {}: 6 dead letters, of 3 keys, 40 B, oldest 20", world.name)),
        "{text}"
    );
    assert!(lines[0].ends_with(": behind 5, unroutable 1"), "{text}");
    assert!(lines[3].starts_with("6 ") && lines[4].starts_with("1 "), "{text}");
    assert_eq!(lines[5..], ["... and 4 more (--limit)"]);

    let filtered = succeeds(&world, &["list", "--aggregateid", "0", "--reason", "behind"]);
    assert!(filtered.contains(": 1 dead letter that match, of 1 key,") && filtered.lines().count() == 4, "{filtered}");
    let elsewhere = succeeds(&world, &["list", "--slot", "nobodys"]);
    assert!(elsewhere.contains("other slots have some: another (2)"), "{elsewhere}");

    let json: Value = serde_json::from_str(&succeeds(&world, &["list", "--json", "--limit", "1"])).unwrap();
    assert_eq!((&json["summary"]["count"], &json["summary"]["by_reason"]["behind"]), (&6.into(), &5.into()));
    assert_eq!((&json["dead_letters"][0]["id"], json["dead_letters"].as_array().unwrap().len()), (&6.into(), 1));
}

#[tokio::test]
async fn show_has_everything_and_body_is_exact() {
    let world = World::new("dlq_show").await;
    let binary: Vec<u8> = (0..=255).cycle().take(2_000).collect();
    put(&world.sql, &world.name, 1..=1, "unroutable", br#"{"total": "99.5"}"#).await;
    put(&world.sql, &world.name, 2..=2, "too_large", &binary).await;

    let text = succeeds(&world, &["show", "1"]);
    for wanted in ["unroutable", "NO_ROUTE", "event-1", "order.OrderPlaced", "c-1", r#"{"total": "99.5"}"#] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(text.contains("headers\n  b: x\\u{1b}[31m\n  a: 7\n"), "in their order, and harmless: {text}");
    let text = succeeds(&world, &["show", "2"]);
    assert!(text.contains("00000000  00 01 02 03") && text.contains("1744 bytes more: --body"), "{text}");
    let (code, stdout, _) = dlq(&world, &["show", "2", "--body"]);
    assert!(code == Some(0) && stdout == binary);
    for arguments in [["show", "77"].as_slice(), &["show", "77", "--body"]] {
        let error = fails(&world, arguments);
        assert!(error.contains("no dead letter 77") && error.contains("dlq list"), "{error}");
    }
}

#[tokio::test]
async fn marks_are_set_by_filter_and_never_by_accident() {
    let world = World::new("dlq_mark").await;
    put(&world.sql, &world.name, 1..=3, "unroutable", b"x").await;
    put(&world.sql, "another", 4..=4, "unroutable", b"x").await;
    for arguments in [["redrive"].as_slice(), &["discard"], &["discard", "--dry-run"]] {
        assert!(fails(&world, arguments).contains("--all"), "{arguments:?}");
    }
    assert!(fails(&world, &["discard", "1", "--all"]).contains("exclude each other"));
    assert!(fails(&world, &["redrive", "--older-than", "soon"]).contains("interval"));
    assert!(fails(&world, &["redrive", "4"]).contains("has no dead letter 4"), "it is another slot's");

    let text = succeeds(&world, &["redrive", "--type", "OrderPlaced", "--dry-run"]);
    assert!(text.contains("3 dead letters would be marked `redrive`; nothing was changed"), "{text}");
    assert_eq!(marks(&world).await, "");
    let text = succeeds(&world, &["redrive", "1", "2", "99"]);
    assert!(
        text.contains("2 dead letters marked `redrive`") && text.contains("not there") && text.contains(": 99"),
        "{text}"
    );
    assert!(text.contains("no relay carries it"), "{text}");
    succeeds(&world, &["discard", "--newer-than", "1h", "--aggregateid", "2"]);
    assert_eq!(marks(&world).await, "1redrive 2discard");
    succeeds(&world, &["discard", "--all"]);
    assert_eq!(marks(&world).await, "1discard 2discard 3discard");
    let text = succeeds(&world, &["list"]);
    assert!(text.contains("; marked: redrive 0, discard 3"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_marks_is_told_whether_a_relay_will_do_it() {
    let world = World::new("dlq_relay").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    put(&world.sql, &world.name, 1..=1, "too_large", b"x").await;
    let text = succeeds(&world, &["discard", "1", "--dry-run"]);
    assert!(
        text.contains(&format!("is carried by postrider/{} (pid ", world.name)) && text.contains("takes them out"),
        "{text}"
    );
    relay.stop().await;
    let text = succeeds(&world, &["discard", "1", "--dry-run"]);
    assert!(text.contains("no relay carries slot") && text.contains("postrider run"), "{text}");
}

#[tokio::test]
async fn a_database_without_the_table_or_a_role_without_the_right_is_told_what_to_do() {
    let servers = crate::support::servers::shared().await;
    let mut world = World::bare(servers, "dlq_bare").await;
    for arguments in [["list"].as_slice(), &["show", "1"], &["redrive", "--all"]] {
        let error = fails(&world, arguments);
        assert!(error.contains("run postrider migrate"), "{error}");
    }
    world.migrate().await;
    let role = format!("{}_nobody", world.name);
    world.admin.batch_execute(&format!("create role {role} login password '{role}'")).await.unwrap();
    let mut url: url::Url = world.database_url.parse().unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some(&role)).unwrap();
    world.database_url = url.into();
    let error = fails(&world, &["list"]);
    assert!(error.contains("permission denied") && error.contains("--print-roles"), "{error}");
    world.admin.batch_execute(&format!("drop role {role}")).await.unwrap();
}
