//! `postrider.emit`: events without a table.

use std::collections::HashMap;
use std::time::Duration;

use postrider::preflight::Level;
use serde_json::{Value, json};

use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::relay::{Program, Relay};
use crate::support::world::World;

const EMIT: (&str, &str) = ("POSTRIDER_SOURCE_EMIT", "true");
const SILENCE: Duration = Duration::from_secs(2);

async fn takes(world: &World, statements: &str) {
    world.sql.batch_execute(statements).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emitted_event_is_the_event_of_the_row() {
    let world = World::new("emit").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[EMIT, ("POSTRIDER_EVENT_HEADERS", "tenant")]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    let values = r#"'order', '42', 'Placed', '{"b": 1.50, "a": ["ü", null]}', '{"n": 1}', 2, 7, '{"tenant": "t", "correlation_id": "c"}',
        'ID', '2026-11-21 10:15:30.123456+01'"#;
    let [one, other] = ["6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c11", "6b1f7d3a-3f0e-4a52-9c6e-0d8a0a7f2c12"];
    takes(
        &world,
        &format!(
            "begin; set local timezone = 'Asia/Kathmandu'; set local datestyle = 'German';
             insert into outbox (aggregatetype, aggregateid, type, payload, before, version, sequence, headers, id, occurred_at) values ({});
             select postrider.emit({}); commit;
             select postrider.emit('order', '42', 'Withdrawn', null), postrider.emit('order', '42', 'Nulled', 'null')",
            values.replace("ID", one),
            values.replace("ID", other),
        ),
    )
    .await;
    let arrivals = consumer.take(4).await;
    let (row, emitted) = (&arrivals[0], &arrivals[1]);
    let mut bodies = [row, emitted].map(|arrival| arrival.json());
    for (body, id) in bodies.iter_mut().zip([one, other]) {
        assert_eq!(body["id"], id);
        body["id"] = Value::Null;
        body["source"]["lsn"] = Value::Null;
        body["source"]["sequence"] = Value::Null;
    }
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(bodies[1]["occurred_at"], "2026-11-21T09:15:30.123456Z");
    // Payload and before byte for byte.
    let start = |arrival: &crate::support::consumer::Arrival| {
        String::from_utf8(arrival.body.clone()).unwrap().split_once(",\"source\"").unwrap().0.to_owned()
    };
    assert_eq!(start(row), start(emitted));
    for header in ["aggregatetype", "aggregateid", "version", "sequence", "occurred_at", "tenant"] {
        assert_eq!(row.header(header), emitted.header(header), "{header}");
    }
    assert_eq!((&emitted.id, &emitted.routing_key), (&other.to_owned(), &row.routing_key));
    assert_eq!(emitted.properties.correlation_id(), row.properties.correlation_id());
    assert_eq!((&arrivals[2].json()["op"], &arrivals[3].json()["op"]), (&json!("d"), &json!("c")));
    let lsns: Vec<u64> = arrivals.iter().map(|arrival| arrival.json()["source"]["lsn"].as_u64().unwrap()).collect();
    assert!(lsns.windows(2).all(|pair| pair[0] < pair[1]), "{lsns:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_emits_among_a_thousand_inserts_arrive_in_commit_order() {
    let world = World::new("emit_order").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[EMIT]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    // Transactions of one to five; some savepoints that are undone, and every seventh transaction too.
    takes(
        &world,
        "do $$
         declare n int := 0; tries int := 0; wrote int;
         begin
            while n < 2000 loop
                tries := tries + 1;
                wrote := 0;
                for i in 1..least(1 + tries % 5, 2000 - n) loop
                    wrote := wrote + 1;
                    if (n + wrote) % 2 = 0 then
                        perform postrider.emit('order', ((n + wrote) % 40)::text, 'Placed', jsonb_build_object('n', n + wrote));
                    else
                        insert into public.outbox (aggregatetype, aggregateid, type, payload)
                        values ('order', ((n + wrote) % 40)::text, 'Placed', jsonb_build_object('n', n + wrote));
                    end if;
                    begin
                        perform postrider.emit('order', '0', 'Undone', '{}');
                        raise exception 'undo';
                    exception when others then
                        null;
                    end;
                end loop;
                if tries % 7 = 0 then
                    rollback;
                else
                    n := n + wrote;
                    commit;
                end if;
            end loop;
         end $$",
    )
    .await;
    let mut arrivals = consumer.take(2000).await;
    let number = |body: &Value| body["after"]["n"].as_i64().unwrap();
    let mut of_key: HashMap<String, i64> = HashMap::new();
    for arrival in &arrivals {
        let body = arrival.json();
        let last = of_key.insert(body["aggregateid"].as_str().unwrap().to_owned(), number(&body));
        assert!(last.is_none_or(|last| last < number(&body)), "{last:?} before {body}");
    }
    arrivals.sort_by_key(|arrival| arrival.header("x-postrider-position"));
    let numbers: Vec<i64> = arrivals.iter().map(|arrival| number(&arrival.json())).collect();
    assert_eq!(numbers, (1..=2000).collect::<Vec<_>>());
    assert!(consumer.rest(SILENCE).await.is_empty(), "nothing that was rolled back");
    assert_eq!(world.count("select count(*) from outbox").await, 1000);
    let written = world.current_lsn().await;
    eventually("the slot passes the events", || async { (world.confirmed().await? >= written).then_some(()) }).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_not_told_to_takes_no_messages() {
    let world = World::new("emit_off").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    takes(&world, "select postrider.emit('order', '1', 'Emitted', '{}')").await;
    world.insert("1", "Placed", "{}").await;
    assert_eq!(consumer.take(1).await[0].kind, "Placed");
    assert!(consumer.rest(SILENCE).await.is_empty());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_message_is_parked_and_nothing_else_suffers() {
    let world = World::new("emit_poison").await;
    world.queue("all", "#").await;
    let relay = Relay::carrying(&world, &[EMIT]).await;
    let mut consumer = Consumer::open(&world.amqp_url, "all").await;
    // Several in one call would be one transaction.
    for statement in [
        "select pg_logical_emit_message(true, 'postrider', 'nonsense')",
        r"select pg_logical_emit_message(true, 'postrider', '\xff00fe'::bytea)",
        r#"select pg_logical_emit_message(true, 'postrider', '{"id": 5, "aggregatetype": "order", "aggregateid": "9", "type": "Placed"}')"#,
        r#"select pg_logical_emit_message(true, 'postrider2', '{"id": "a", "aggregatetype": "order", "aggregateid": "1", "type": "Foreign"}')"#,
        "select pg_logical_emit_message(true, 'Postrider', 'x'), pg_logical_emit_message(true, '', 'x')",
        r#"begin; select pg_logical_emit_message(false, 'postrider', '{"id": "b", "aggregatetype": "order", "aggregateid": "1", "type": "Stray"}'); rollback"#,
        "begin; select postrider.emit('order', '1', 'RolledBack', '{}'); rollback",
        "select postrider.emit('order', '1', 'Placed', '{}')",
    ] {
        takes(&world, statement).await;
    }
    world.insert("1", "Confirmed", "{}").await;
    let kinds: Vec<String> = consumer.take(2).await.into_iter().map(|arrival| arrival.kind).collect();
    assert_eq!(kinds, ["Placed", "Confirmed"]);
    assert!(consumer.rest(SILENCE).await.is_empty());
    eventually("three are parked", || async {
        (world.count("select count(*) from postrider.parked").await == 3).then_some(())
    })
    .await;
    let parked = "select string_agg(reason || ' ' || aggregateid || ' ' || encode(postrider.dead_letter_body(id), 'escape'), E'\\n' order by position) from postrider.parked";
    let parked: String = world.sql.query_one(parked, &[]).await.unwrap().get(0);
    assert_eq!(
        parked,
        "bad_property  nonsense\nnot_utf8  \\377\\000\\376\n\
         bad_property 9 {\"id\": 5, \"aggregatetype\": \"order\", \"aggregateid\": \"9\", \"type\": \"Placed\"}"
    );
    for (call, said) in [("null, '1', 'T', '{}'", "needs an id"), ("'a', '1', null, '{}'", "needs an id")] {
        let error = world.sql.batch_execute(&format!("select postrider.emit({call})")).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains(said));
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_prints_what_keeps_others_from_emitting() {
    let world = World::new("emit_rights").await;
    let run = |arguments: &[&str], more: &[(&str, &str)]| {
        let output = Program::command(&world.settings(more), arguments).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert!(!run(&["migrate"], &[]).contains("revoke"));
    assert!(!run(&["migrate", "--print-roles"], &[]).contains("pg_logical_emit_message"));
    let printed = run(&["migrate"], &[EMIT]);
    let statements = printed.split_once("has run:").unwrap().1;
    assert!(
        statements.contains("revoke execute on function pg_catalog.pg_logical_emit_message(boolean, text, text"),
        "{printed}"
    );

    let role = format!("{}_app", world.name);
    takes(&world, &format!("create role {role}; grant usage on schema postrider to {role}")).await;
    let direct = "select pg_logical_emit_message(true, 'postrider', 'x')";
    let emit = "select postrider.emit('order', '1', 'Placed', '{}')";
    let may = async |statement: &str| {
        let done = world.sql.batch_execute(&format!("set role {role}; {statement}")).await;
        if done.is_ok() { "may" } else { "may not" }
    };
    for (statement, expected) in [(direct, "may"), (emit, "may not")] {
        assert_eq!(may(statement).await, expected, "{statement}");
        takes(&world, "reset role").await;
    }
    let found = async || {
        let findings = postrider::preflight::check(&world.config(&[EMIT])).await;
        findings.into_iter().find(|finding| finding.check == "postgres.emit").unwrap()
    };
    assert_eq!((found().await.level, found().await.remedies.len()), (Level::Warn, 4));
    takes(&world, statements).await;
    assert_eq!(found().await.level, Level::Ok);
    assert_eq!(run(&["migrate"], &[EMIT]).lines().count(), 1, "there is nothing left to say");
    takes(&world, &format!("grant execute on function postrider.emit to {role}")).await;
    for (statement, expected) in [(direct, "may not"), (emit, "may")] {
        assert_eq!(may(statement).await, expected, "{statement}");
        takes(&world, "reset role").await;
    }
    // The script says the same, and can be run again.
    let script = run(&["migrate", "--print-roles", "--role", &role], &[EMIT]);
    let part = script.split_once("-- Events without a table").unwrap().1;
    let body = part.split_once("begin;").unwrap().1.split_once("commit;").unwrap().0;
    takes(&world, body).await;
    takes(&world, &format!("drop owned by {role}; drop role {role}")).await;
}
