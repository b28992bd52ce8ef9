//! TLS modes and pg_hba.conf, on a server that is reconfigured step by step.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use postrider::postgres::replication::ReplicationConnection;
use postrider::postgres::sql::Sql;
use postrider::postgres::url::Target;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::{SECONDS_30, Scratch, target};
use crate::support::eventually;

/// Writes a file, readable by the server alone; a relative path is one in the data directory. Needs a superuser, and no access
/// to the machine.
async fn write_file(scratch: &Scratch, path: &str, content: &str) {
    let lines: String = content.lines().filter(|line| !line.is_empty()).fold(String::new(), |mut lines, line| {
        write!(lines, "('{}'),", line.replace('\'', "''")).unwrap();
        lines
    });
    let lines = lines.trim_end_matches(',');
    scratch.execute(&format!("copy (values {lines}) to program 'umask 077; cat > {path}' with (format csv, delimiter E'\\x01', quote E'\\x02')")).await;
}

async fn set_ssl(scratch: &Scratch, on: &str) {
    scratch.execute(&format!("alter system set ssl = {on}")).await;
    scratch.execute("select pg_reload_conf()").await;
    eventually("ssl is switched", async || (scratch.text("select current_setting('ssl')").await == on).then_some(()))
        .await;
}

/// One test, since there is one server: each step changes what the server offers.
#[tokio::test]
async fn tls_is_what_sslmode_says_and_a_refusal_says_what_to_do() {
    let scratch = Scratch::new().await;
    let host = scratch.base.host_str().unwrap().to_owned();
    let ip: IpAddr = tokio::net::lookup_host((host.as_str(), 5432)).await.unwrap().next().unwrap().ip();
    let port = scratch.base.port().unwrap_or(5432);
    let role = scratch.role("r", "replication").await;
    let name = "db.example";
    let connect = async |host: &str, more: &str| -> Result<bool, String> {
        let words = format!(
            "host={host} hostaddr={ip} port={port} user={role} password=right dbname={} {more}",
            scratch.database
        );
        // Without sslmode the two differ on a loopback address only, where plaintext would be allowed.
        let target = Target::parse(&words, !more.contains("sslmode=")).unwrap();
        let sql = Sql::connect(&target, "it", SECONDS_30).await;
        let replication = ReplicationConnection::connect(&target, "it").await;
        match (sql, replication) {
            (Ok(sql), Ok(replication)) => {
                let pid: bool = sql
                    .client()
                    .query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[])
                    .await
                    .unwrap()
                    .get(0);
                assert_eq!(pid, replication.is_tls());
                Ok(pid)
            }
            (Err(sql), Err(replication)) => {
                assert_eq!(sql.to_string(), replication.to_string());
                Err(sql.to_string())
            }
            (sql, replication) => panic!("{:?} {:?}", sql.err(), replication.err()),
        }
    };

    set_ssl(&scratch, "off").await;
    assert_eq!(connect(name, "sslmode=disable").await, Ok(false));
    assert_eq!(connect(name, "sslmode=prefer").await, Ok(false));
    assert_eq!(connect(name, "sslmode=allow").await, Ok(false));
    assert!(connect(name, "sslmode=require").await.unwrap_err().contains("does not speak TLS"));
    assert!(connect(name, "").await.unwrap_err().contains("does not speak TLS"), "no sslmode is verify-full");

    // A CA of our own, a certificate of it, and a stranger's CA.
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().unwrap()).unwrap();
    let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    write_file(&scratch, "server.crt", &certificate.pem()).await;
    write_file(&scratch, "server.key", &key.serialize_pem()).await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let ca_file = file("ca.pem", &ca.pem()).display().to_string();
    let stranger_file = file("stranger.pem", &stranger.pem()).display().to_string();
    let pinned_file = file("pinned.pem", &certificate.pem()).display().to_string();
    set_ssl(&scratch, "on").await;

    assert_eq!(connect(name, "sslmode=disable").await, Ok(false));
    assert_eq!(connect(name, "sslmode=allow").await, Ok(false), "allow asks for plaintext first");
    assert_eq!(connect(name, "sslmode=prefer").await, Ok(true));
    assert_eq!(connect(name, "sslmode=require").await, Ok(true));
    assert_eq!(connect(name, "sslmode=require channel_binding=require").await, Ok(true));
    assert_eq!(connect(name, "sslmode=require channel_binding=disable").await, Ok(true));
    assert_eq!(connect(name, &format!("sslrootcert={ca_file}")).await, Ok(true), "no sslmode is verify-full");
    assert_eq!(connect(name, &format!("sslmode=verify-full sslrootcert={ca_file}")).await, Ok(true));
    assert_eq!(connect(name, &format!("sslmode=verify-full sslrootcert={pinned_file}")).await, Ok(true));
    assert_eq!(connect("other", &format!("sslmode=verify-ca sslrootcert={ca_file}")).await, Ok(true));

    let unknown = connect(name, "").await.unwrap_err();
    assert!(unknown.contains("not trusted here") && unknown.contains("sslrootcert="), "{unknown}");
    for mode in ["verify-full", "verify-ca", "require"] {
        let unknown = connect(name, &format!("sslmode={mode} sslrootcert={stranger_file}")).await.unwrap_err();
        assert!(unknown.contains("not trusted here"), "{mode}: {unknown}");
    }
    for file in [&ca_file, &pinned_file] {
        let other = connect("other", &format!("sslmode=verify-full sslrootcert={file}")).await.unwrap_err();
        assert!(other.contains("not for `other`") && other.contains(name), "{other}");
    }
    let missing = connect(name, "sslrootcert=/no/such.pem").await.unwrap_err();
    assert!(missing.contains("/no/such.pem"), "{missing}");

    // A self-signed certificate that calls itself an authority: what `openssl req -x509` makes.
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    write_file(&scratch, "server.crt", &own.pem()).await;
    write_file(&scratch, "server.key", &own.key().serialize_pem()).await;
    set_ssl(&scratch, "off").await;
    set_ssl(&scratch, "on").await;
    let own_file = file("own.pem", &own.pem()).display().to_string();
    assert_eq!(connect(name, &format!("sslrootcert={own_file}")).await, Ok(true));
    let unknown = connect(name, "").await.unwrap_err();
    assert!(unknown.contains("not trusted here"), "{unknown}");

    // pg_hba.conf asks for the other encryption; and MD5, where it still is.
    let md5 = scratch.role("md5", "replication").await;
    scratch.execute(&format!("set password_encryption = 'md5'; alter role {md5} password 'right'")).await;
    let hba = scratch.text("select pg_read_file(current_setting('hba_file'))").await;
    let lines = format!("hostnossl all {role} all reject\nhost all {md5} all md5\n{hba}");
    let hba_file = scratch.text("select current_setting('hba_file')").await;
    write_file(&scratch, &hba_file, &lines).await;
    scratch.execute("select pg_reload_conf()").await;
    eventually("plaintext is rejected", async || connect(name, "sslmode=disable").await.err()).await;
    let rejected = connect(name, "sslmode=disable").await.unwrap_err();
    assert!(rejected.contains("28000") && rejected.contains("pg_hba.conf"), "{rejected}");
    assert_eq!(connect(name, "sslmode=allow").await, Ok(true), "allow falls back to TLS");
    for password in ["right", "wrong"] {
        let target = target(&scratch.url(&md5, password, "sslmode=disable"));
        assert_eq!(ReplicationConnection::connect(&target, "it").await.is_ok(), password == "right");
        assert_eq!(Sql::connect(&target, "it", SECONDS_30).await.is_ok(), password == "right");
    }
    write_file(&scratch, &hba_file, &hba).await;
    scratch.execute("select pg_reload_conf()").await;
}
