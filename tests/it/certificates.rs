//! Client certificates: the relay logs in with nothing else, at both servers, and a refusal says what to do.

use std::path::{Path, PathBuf};

use postrider::postgres::replication::ReplicationConnection;
use postrider::postgres::sql::Sql;
use postrider::postgres::url::Target as Database;
use postrider::rabbitmq::connection::connect_to;
use postrider::rabbitmq::url::Target as Broker;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::replication::SECONDS_30;
use crate::support::consumer::Consumer;
use crate::support::eventually;
use crate::support::own::{self, Own};
use crate::support::relay::Program;
use crate::support::world::World;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key as files of this name.
fn certificate(directory: &Path, file: &str, authority: &Authority, name: &str) -> (PathBuf, PathBuf) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let (certificate_file, key_file) =
        (directory.join(format!("{file}cert.pem")), directory.join(format!("{file}key.pem")));
    std::fs::write(&certificate_file, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    (certificate_file, key_file)
}

/// Authorities and certificates as files: of the servers, of `relay`, of somebody else, and of a stranger's authority.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let ours = authority("the authority of the tests");
        std::fs::write(path.join("ca.pem"), ours.pem()).unwrap();
        certificate(path, "", &ours, "localhost");
        certificate(path, "relay-", &ours, "relay");
        certificate(path, "other-", &ours, "somebody");
        certificate(path, "stranger-", &authority("the authority of a stranger"), "relay");
        Files { directory }
    }

    fn path(&self) -> String {
        self.directory.path().display().to_string()
    }

    fn options(&self) -> [String; 2] {
        ["--tls".to_owned(), self.path()]
    }
}

fn start(kind: fn(&[&str]) -> Own, files: &Files, more: &[&str]) -> Own {
    let options = files.options();
    kind(&[&[options[0].as_str(), options[1].as_str()], more].concat())
}

fn postgres(files: &Files) -> Own {
    // The tests' own sessions in plaintext, everybody else by certificate.
    let more = ["--hba", "hostnossl all postgres all scram-sha-256", "--hba", "hostssl all all all cert"];
    start(Own::postgres, files, &more)
}

/// The refusal at the SQL connection, which is that of the replication connection too.
async fn refused_by_postgres(url: &str) -> String {
    let target = Database::parse(url, true).unwrap();
    let sql = Sql::connect(&target, "it", SECONDS_30).await.expect_err("refused").to_string();
    let replication = ReplicationConnection::connect(&target, "it").await.err().expect("refused").to_string();
    assert_eq!(sql, replication);
    sql
}

async fn refused_by_rabbitmq(url: &str) -> String {
    let target = Broker::parse(url).map_err(|error| error.to_string());
    match target {
        Ok(target) => postrider::error::chain(&connect_to(&target, "it").await.err().expect("refused")),
        Err(refused) => refused,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_has_nothing_but_certificates_carries_an_event() {
    let files = Files::new();
    let (postgres, rabbitmq) = (postgres(&files), start(Own::rabbitmq, &files, &[]));
    let world = World::bare(own::pair(&postgres, &rabbitmq), "certificates").await;
    world.migrate().await;
    world.admin.batch_execute("create role relay login superuser replication").await.unwrap();
    // Without a password: it cannot log in by one.
    world.servers.management("PUT", "/api/users/relay", r#"{"password_hash":"","tags":""}"#).await;
    let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
    world.servers.management("PUT", &format!("/api/permissions/{}/relay", world.name), everything).await;
    world.queue("all", "#").await;

    let (at, name) = (files.path(), &world.name);
    let database = format!(
        "postgres://relay@localhost:{}/{name}?sslmode=verify-full&sslrootcert={at}/ca.pem&sslcert={at}/relay-cert.pem&sslkey={at}/relay-key.pem",
        postgres.url("DATABASE_URL").port().unwrap()
    );
    let broker = format!(
        "amqps://localhost:{}/{name}?auth_mechanism=external&cacertfile={at}/ca.pem&certfile={at}/relay-cert.pem&keyfile={at}/relay-key.pem",
        rabbitmq.url("AMQPS_URL").port().unwrap()
    );
    let settings = world.settings(&[
        ("DATABASE_URL", database.as_str()),
        ("AMQP_URL", broker.as_str()),
        ("POSTRIDER_REQUIRE_TLS", "true"),
    ]);
    let program = Program::start(&settings, &["run"]);
    program.says("carrying").await;
    world.insert("1", "Placed", "{}").await;
    let mut all = Consumer::open(&world.amqp_url, "all").await;
    assert_eq!(all.take(1).await[0].kind, "Placed");

    let by_certificate = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)
                          where usename = 'relay' and client_dn = '/CN=relay'";
    assert!(world.count(by_certificate).await >= 2, "the SQL session and the walsender");
    // The management API learns of a connection a moment later.
    eventually("the broker shows how the relay logged in", || async {
        let connections = world.servers.management("GET", "/api/connections", "").await;
        connections.contains(r#""auth_mechanism":"EXTERNAL""#).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_refuses_other_certificates_and_the_message_says_what_to_do() {
    let files = Files::new();
    let server = postgres(&files);
    server.command("ctl", &["create role relay login superuser replication"]);
    let at = files.path();
    let url = format!(
        "postgres://relay@localhost:{}/postgres?sslmode=verify-full&sslrootcert={at}/ca.pem",
        server.url("DATABASE_URL").port().unwrap()
    );
    let with = |name: &str| format!("{url}&sslcert={at}/{name}-cert.pem&sslkey={at}/{name}-key.pem");
    assert!(Sql::connect(&Database::parse(&with("relay"), true).unwrap(), "it", SECONDS_30).await.is_ok());

    let none = refused_by_postgres(&url).await;
    assert!(none.contains("client certificate") && none.contains("sslcert=") && none.contains("sslkey="), "{none}");
    let other = refused_by_postgres(&with("other")).await;
    assert!(other.contains("common name") && other.contains("pg_ident.conf"), "{other}");
    let stranger = refused_by_postgres(&with("stranger")).await;
    assert!(stranger.contains("sslcert") && stranger.contains("ssl_ca_file"), "{stranger}");
    // A key that is not the certificate's, and a file that is not there, are found before anybody is asked.
    let mixed = format!("{url}&sslcert={at}/relay-cert.pem&sslkey={at}/other-key.pem");
    let mixed = refused_by_postgres(&mixed).await;
    assert!(mixed.contains("relay-cert.pem"), "{mixed}");
    let missing = refused_by_postgres(&format!("{url}&sslcert={at}/relay-cert.pem&sslkey=/no/such.pem")).await;
    assert!(missing.contains("/no/such.pem"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_refuses_other_certificates_and_the_message_says_what_to_do() {
    let files = Files::new();
    let server = start(Own::rabbitmq, &files, &[]);
    server.command("ctl", &["add_user", "relay", "unused"]);
    server.command("ctl", &["clear_password", "relay"]);
    server.command("ctl", &["set_permissions", "-p", "/", "relay", ".*", ".*", ".*"]);
    let at = files.path();
    let url = format!(
        "amqps://localhost:{}/%2F?auth_mechanism=external&cacertfile={at}/ca.pem",
        server.url("AMQPS_URL").port().unwrap()
    );
    let with = |name: &str| format!("{url}&certfile={at}/{name}-cert.pem&keyfile={at}/{name}-key.pem");
    let ours = Broker::parse(&with("relay")).unwrap();
    connect_to(&ours, "it").await.map_err(|error| postrider::error::chain(&error)).unwrap().close().await;

    let none = refused_by_rabbitmq(&url).await;
    assert!(none.contains("certfile") && none.contains("keyfile"), "{none}");
    let other = refused_by_rabbitmq(&with("other")).await;
    assert!(other.contains("client certificate") && other.contains("ssl_cert_login_from"), "{other}");
    let stranger = refused_by_rabbitmq(&with("stranger")).await;
    assert!(stranger.contains("certfile") && stranger.contains("ssl_options.cacertfile"), "{stranger}");
}
