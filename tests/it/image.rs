//! The built image, started beside the two servers as a user's own test suite would.

use std::time::Duration;

use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{GenericImage, ImageExt};

use crate::support::consumer::Consumer;
use crate::support::{servers, unique};

const NO_IMAGE: &str =
    "the image postrider:test does not start; `scripts/test` builds it, or `docker build -t postrider:test .`";

/// `scripts/test` builds the image where an engine answers, and leaves this test out, saying so, where none does.
#[tokio::test(flavor = "multi_thread")]
async fn the_built_image_carries_an_event_between_two_containers() {
    let (name, tag) = ("postrider", "test");
    let network = unique("postrider").replace('_', "-");
    let postgres_host = format!("{network}-postgres");
    let rabbitmq_host = format!("{network}-rabbitmq");
    let (postgres, rabbitmq) = tokio::join!(
        servers::postgres_image().with_network(&network).with_container_name(&postgres_host).start(),
        servers::rabbitmq_image().with_network(&network).with_container_name(&rabbitmq_host).start(),
    );
    let (postgres, rabbitmq) = (postgres.unwrap(), rabbitmq.unwrap());
    let settings = [
        ("DATABASE_URL", format!("postgres://postgres:postgres@{postgres_host}/postgres?sslmode=disable")),
        ("AMQP_URL", format!("amqp://guest:guest@{rabbitmq_host}")),
    ];
    let image = |command: &str, ready: WaitFor| {
        let image = GenericImage::new(name, tag).with_wait_for(ready).with_network(&network).with_cmd([command]);
        settings.iter().fold(image, |image, (name, value)| image.with_env_var(*name, value.clone()))
    };
    image("migrate", WaitFor::exit(testcontainers::core::wait::ExitWaitStrategy::new().with_exit_code(0)))
        .start()
        .await
        .expect(NO_IMAGE);

    let amqp_url = servers::address("amqp://guest:guest", &rabbitmq, 5672, "").await.to_string();
    let connection = lapin::Connection::connect(&amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let relay = image("run", WaitFor::healthcheck()).with_mapped_port(0, 9750.tcp()).start().await.unwrap();
    channel
        .queue_declare(
            "all".into(),
            lapin::options::QueueDeclareOptions { durable: true, ..Default::default() },
            Default::default(),
        )
        .await
        .unwrap();
    channel
        .queue_bind("all".into(), "events".into(), "#".into(), Default::default(), Default::default())
        .await
        .unwrap();

    let database_url = servers::address("postgres://postgres:postgres", &postgres, 5432, "postgres").await;
    let sql = crate::support::world::connect(database_url.as_str()).await;
    sql.batch_execute(
        "insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', '1', 'Placed', '{}')",
    )
    .await
    .unwrap();
    let arrival = Consumer::open(&amqp_url, "all").await.next(Duration::from_secs(10)).await.expect("an event");
    assert_eq!(arrival.routing_key, "order.Placed");

    let port = relay.get_host_port_ipv4(9750.tcp()).await.unwrap();
    let (code, _) = crate::support::http::get(&format!("127.0.0.1:{port}"), "/ready").await.unwrap();
    assert_eq!(code, 200);
}
