//! What a log says of an event: its id and where it stands; and what it never says (rule R12).

use serde_json::Value;

use crate::parking::{QUICK, until_parked};
use crate::support::eventually;
use crate::support::relay::Program;
use crate::support::world::World;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// One event with secrets wherever a row has room for them; its id.
async fn insert(world: &World, kind: &str) -> String {
    let statement = "insert into outbox (aggregatetype, aggregateid, type, payload, headers) \
                     values ('order', 'planted-aggregate', $1, '{\"card\": \"planted-payload\"}', \
                             jsonb_build_object('traceparent', $2::text, 'tenant', 'planted-header', 'hidden', 'planted-denied')) \
                     returning id::text";
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-00");
    world.sql.query_one(statement, &[&kind, &traceparent]).await.unwrap().get(0)
}

/// Users of their own for both servers, with passwords that nothing else contains.
async fn with_planted_passwords(world: &World) -> (String, String) {
    let create = format!("create role {} superuser login password 'planted-postgres'", world.name);
    world.admin.batch_execute(&create).await.unwrap();
    let path = format!("/api/users/{}", world.name);
    world.servers.management("PUT", &path, r#"{"password":"planted-rabbitmq","tags":"administrator"}"#).await;
    let path = format!("/api/permissions/{}/{}", world.name, world.name);
    world.servers.management("PUT", &path, r#"{"configure":".*","write":".*","read":".*"}"#).await;
    let login = |url: &str, password: &str| {
        let mut url: url::Url = url.parse().unwrap();
        url.set_username(&world.name).unwrap();
        url.set_password(Some(password)).unwrap();
        url.to_string()
    };
    (login(&world.database_url, "planted-postgres"), login(&world.amqp_url, "planted-rabbitmq"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_about_an_event_names_it_and_no_line_has_a_payload_a_header_or_a_password() {
    let world = World::new("log").await;
    let full = r#"{"x-queue-type":"classic","x-max-length":1,"x-overflow":"reject-publish"}"#;
    world.queue_with("full", "order.Full", full).await;
    let (database_url, amqp_url) = with_planted_passwords(&world).await;
    let mut settings = world.settings(
        &[
            QUICK.as_slice(),
            &[
                ("POSTRIDER_LOG", "trace"),
                ("POSTRIDER_LOG_FORMAT", "json"),
                ("POSTRIDER_EVENT_HEADERS", "tenant"),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:planted-collector@127.0.0.1:1"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=planted-token"),
            ],
        ]
        .concat(),
    );
    settings.extend([("DATABASE_URL".to_owned(), database_url), ("AMQP_URL".to_owned(), amqp_url)]);
    let program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    insert(&world, "Full").await;
    let taken = "the queue is full";
    eventually(taken, || async { (world.depth("full").await == 1).then_some(()) }).await;

    // In this order, each behind the one before: they have one key.
    let nacked = insert(&world, "Full").await;
    until_parked(&world, "nacked and parked", 1).await;
    let discard = "select postrider.discard(ids => array[(select min(id) from postrider.parked)])";
    world.sql.execute(discard, &[]).await.unwrap();
    until_parked(&world, "given up", 0).await;
    let poison = insert(&world, &"P".repeat(300)).await;
    until_parked(&world, "poison", 1).await;
    world.sql.execute(discard, &[]).await.unwrap();
    until_parked(&world, "given up too", 0).await;
    let returned = insert(&world, "Unread").await;
    until_parked(&world, "returned and parked", 1).await;
    world.queue("unread", "order.Unread").await;
    until_parked(&world, "released", 0).await;
    program.says("events pass here again").await;

    let log = program.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about = |sentence: &str, id: &str| {
        let found: Vec<&Value> =
            lines.iter().filter(|line| line["message"].as_str().unwrap_or_default().contains(sentence)).collect();
        assert!(found.iter().any(|line| line["event_id"] == id), "{sentence}: {found:?}");
        for line in found {
            assert!(line["event_id"].is_string() && line["position"].is_string(), "{line}");
        }
    };
    about("a queue behind this routing key refuses events", &nacked);
    about("events that cannot be delivered go into the dead letters", &nacked);
    about("a dead letter was discarded", &nacked);
    about("an event can never be published as it is", &poison);
    about("no queue is bound for this routing key", &returned);
    about("events that cannot be delivered go into the dead letters", &returned);
    about("events pass here again", &returned);
    assert!(lines.iter().filter(|line| line["trace_id"] == TRACE).count() >= 6, "{log}");
    let told = log.lines().find(|line| line.contains("planted-"));
    assert_eq!(told, None);
    for secret in ["planted-payload", "planted-header", "planted-rabbitmq"] {
        let decimal: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
        assert!(!log.contains(&decimal.join(", ")) && !log.contains(&decimal.join(",")), "{secret} as bytes");
    }
    let drop_role = format!("drop role {}", world.name);
    drop(program);
    world.admin.batch_execute(&drop_role).await.ok();
}
