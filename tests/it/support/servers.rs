//! The shared pair of servers: those of the environment, else one pair started through testcontainers.

use std::process::Command;
use std::time::Duration;

use testcontainers::core::wait::LogWaitStrategy;
use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::sync::OnceCell;
use url::Url;

use super::http;

const POSTGRES_TAG: &str = "POSTRIDER_TEST_POSTGRES_TAG";

/// Addresses of one PostgreSQL and one RabbitMQ.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    /// Superuser, maintenance database.
    pub database_url: Url,
    /// Administrator, virtual host `/`.
    pub amqp_url: Url,
    pub management_url: Url,
}

/// The pair that tests share, each in a database and a virtual host of its own.
pub(crate) async fn shared() -> Servers {
    static SHARED: OnceCell<Servers> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            match from_environment() {
                Some(servers) => servers,
                None => in_containers().await,
            }
        })
        .await
        .clone()
}

fn from_environment() -> Option<Servers> {
    let url = |name: &str| Some(std::env::var(name).ok()?.parse().unwrap_or_else(|error| panic!("{name}: {error}")));
    Some(Servers {
        database_url: url("DATABASE_URL")?,
        amqp_url: url("AMQP_URL")?,
        management_url: url("POSTRIDER_TEST_MANAGEMENT_URL")?,
    })
}

/// As PostgreSQL has to be for logical replication, with room for many tests.
pub(crate) fn postgres_image() -> ContainerRequest<GenericImage> {
    let settings =
        ["postgres", "-c", "wal_level=logical", "-c", "max_replication_slots=300", "-c", "max_wal_senders=100"];
    GenericImage::new("postgres", &tag(POSTGRES_TAG, "17"))
        .with_exposed_port(5432.tcp())
        // The first start initialises with a server of its own, which says so too. (Each wait reads the log from its beginning.)
        .with_wait_for(WaitFor::log(
            LogWaitStrategy::stdout_or_stderr("database system is ready to accept connections").with_times(2),
        ))
        .with_startup_timeout(Duration::from_secs(120))
        .with_env_var("POSTGRES_PASSWORD", "postgres")
        .with_cmd(settings)
}

pub(crate) fn rabbitmq_image() -> ContainerRequest<GenericImage> {
    GenericImage::new("rabbitmq", &tag("POSTRIDER_TEST_RABBITMQ_TAG", "4-management"))
        .with_exposed_port(5672.tcp())
        .with_exposed_port(15672.tcp())
        .with_wait_for(WaitFor::message_on_either_std("Server startup complete"))
        .with_startup_timeout(Duration::from_secs(120))
}

fn tag(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

/// One pair for the whole run; it is removed when the process ends.
async fn in_containers() -> Servers {
    let (postgres, rabbitmq) = tokio::join!(postgres_image().start(), rabbitmq_image().start());
    let help = "no servers: set DATABASE_URL, AMQP_URL and POSTRIDER_TEST_MANAGEMENT_URL, or run `make test`, which starts them";
    let postgres = postgres.unwrap_or_else(|error| panic!("{help}: {error}"));
    let rabbitmq = rabbitmq.unwrap_or_else(|error| panic!("{help}: {error}"));
    let servers = Servers {
        database_url: address("postgres://postgres:postgres", &postgres, 5432, "postgres").await,
        amqp_url: address("amqp://guest:guest", &rabbitmq, 5672, "").await,
        management_url: address("http://guest:guest", &rabbitmq, 15672, "").await,
    };
    keep_until_exit(postgres);
    keep_until_exit(rabbitmq);
    servers
}

/// Where a port of the container is reached from here.
pub(crate) async fn address(start: &str, container: &ContainerAsync<GenericImage>, port: u16, path: &str) -> Url {
    let host = container.get_host().await.unwrap();
    let port = container.get_host_port_ipv4(port.tcp()).await.unwrap();
    format!("{start}@{host}:{port}/{path}").trim_end_matches('/').parse().unwrap()
}

fn keep_until_exit(container: ContainerAsync<GenericImage>) {
    super::at_exit(&["docker", "rm", "-fv", container.id()]);
    std::mem::forget(container);
}

/// A client program of PostgreSQL from an image, where this machine has none that is new enough for the server.
pub(crate) fn client_program(program: &str, server_major: i32) -> Command {
    let own = tag(POSTGRES_TAG, "17");
    let tag = if own.starts_with(&server_major.to_string()) { own } else { server_major.to_string() };
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "-i", "--network", "host", "--entrypoint", program, &format!("postgres:{tag}")]);
    command
}

impl Servers {
    /// The same PostgreSQL, another database.
    pub(crate) fn database(&self, name: &str) -> String {
        let mut url = self.database_url.clone();
        url.set_path(name);
        url.to_string()
    }

    /// The same RabbitMQ, another virtual host.
    pub(crate) fn vhost(&self, name: &str) -> String {
        let mut url = self.amqp_url.clone();
        url.set_path(name);
        url.to_string()
    }

    /// A call of the management API; panics unless it succeeds. The path begins with `/api/`.
    pub(crate) async fn management(&self, method: &str, path: &str, body: &str) -> String {
        http::management(&self.management_url, method, path, body).await
    }
}
