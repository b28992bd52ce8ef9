//! TLS to RabbitMQ: verified unless the user says otherwise. Of PostgreSQL: `replication/tls.rs`.

use std::path::Path;

use postrider::rabbitmq::connection::connect_to;
use postrider::rabbitmq::url::Target as Broker;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::support::own::Own;

/// A certificate authority and a server certificate for `host`, as `scripts/servers --tls` wants them.
fn certificates(directory: &Path, host: &str) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(vec!["postrider test authority".to_owned()]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let server_key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::new(vec![host.to_owned()]).unwrap();
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_certificate = server.signed_by(&server_key, &issuer).unwrap();
    std::fs::write(directory.join("ca.pem"), authority_certificate.pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), server_certificate.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), server_key.serialize_pem()).unwrap();
}

async fn rabbitmq(url: &str) -> Result<(), String> {
    let target = Broker::parse(url).map_err(|error| error.to_string())?;
    let link = connect_to(&target, "tls").await.map_err(|error| postrider::error::chain(&error))?;
    link.close().await;
    Ok(())
}

fn with(url: &str, query: &str) -> String {
    format!("{url}{}{query}", if url.contains('?') { '&' } else { '?' })
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmqs_certificate_is_verified() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path(), "localhost");
    let ca = directory.path().join("ca.pem");
    let ca = ca.display();
    let server = Own::rabbitmq(&["--tls", &directory.path().display().to_string()]);
    let by_address = server.value("AMQPS_URL");
    let by_name = by_address.replace("127.0.0.1", "localhost");

    let refused = rabbitmq(&by_name).await.unwrap_err();
    assert!(
        refused.contains("cacertfile") || refused.contains("amqp_ca_file"),
        "an unknown authority is refused: {refused}"
    );
    let refused = rabbitmq(&with(&by_address, &format!("cacertfile={ca}"))).await.unwrap_err();
    assert!(refused.contains("127.0.0.1"), "another host's certificate is refused: {refused}");
    rabbitmq(&with(&by_name, &format!("cacertfile={ca}"))).await.unwrap();
    rabbitmq(&with(&by_address, "verify=verify_none")).await.unwrap();
    assert!(!Broker::parse(&with(&by_address, "verify=verify_none")).unwrap().warnings().is_empty());
}
