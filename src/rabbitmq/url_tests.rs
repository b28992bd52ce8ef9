use secrecy::ExposeSecret;

use super::*;

fn one(url: &str) -> BrokerAddress {
    Target::parse(url).unwrap().brokers.remove(0)
}

fn plain(login: &Login) -> (&str, &str) {
    match login {
        Login::Plain { user, password } => (user, password.expose_secret()),
        other => panic!("not PLAIN: {other:?}"),
    }
}

#[test]
fn defaults_are_amqps() {
    let target = Target::parse("amqp://broker").unwrap();
    assert_eq!(target.vhost, "/");
    let broker = &target.brokers[0];
    assert_eq!((broker.host.as_str(), broker.port), ("broker", 5672));
    assert_eq!(plain(&broker.login), ("guest", "guest"));
    assert_eq!((broker.heartbeat_seconds, broker.connect_timeout), (10, Duration::from_secs(10)));
    assert!(broker.tls.is_none());
    assert_eq!(one("amqps://broker").port, 5671);
    assert_eq!(one("amqps://broker").tls, Some(TlsOptions::default()));
}

#[test]
fn everything_that_can_be_encoded_is_decoded() {
    let target = Target::parse("amqp://us%40er:p%2Fw%3a@h:1/v%2Fh").unwrap();
    assert_eq!(target.vhost, "v/h");
    assert_eq!(plain(&target.brokers[0].login), ("us@er", "p/w:"));
    assert_eq!(plain(&one("amqp://user:a:b@h").login), ("user", "a:b"));
    assert_eq!(plain(&one("amqp://user@h").login), ("user", ""));
    assert_eq!(Target::parse("amqp://h/%2F").unwrap().vhost, "/");
    assert_eq!(one("amqp://[::1]:5673").address(), "[::1]:5673");
    assert_eq!(one("amqp://[::1]").port, 5672);
}

#[test]
fn an_empty_vhost_is_an_error_that_names_the_escape() {
    let error = Target::parse("amqp://host/").unwrap_err();
    assert_eq!(error, UrlError::EmptyVhost);
    assert!(error.to_string().contains("%2F"));
    assert_eq!(Target::parse("amqp://host/?heartbeat=5").unwrap_err(), UrlError::EmptyVhost);
    assert_eq!(Target::parse("amqp://host/a/b").unwrap_err(), UrlError::VhostSlash);
}

#[test]
fn several_brokers_in_one_url_and_in_a_list() {
    let hosts =
        |url: &str| -> Vec<String> { Target::parse(url).unwrap().brokers.iter().map(BrokerAddress::address).collect() };
    assert_eq!(hosts("amqp://u:p@a:1,b:2,c/vh"), ["a:1", "b:2", "c:5672"]);
    assert_eq!(hosts("amqp://u:p@a/vh,amqp://u:p@b/vh"), ["a:5672", "b:5672"]);
    assert_eq!(hosts("amqp://u:p@a/vh amqps://u:p@b/vh"), ["a:5672", "b:5671"]);
    assert_eq!(hosts("amqp://u:p@a/vh, amqp://u:p@b/vh,\n"), ["a:5672", "b:5672"]);
    assert_eq!(hosts("amqp://u:p,w@a,b"), ["a:5672", "b:5672"]);
    let error = Target::parse("amqp://a/x,amqp://b/y").unwrap_err();
    assert_eq!(error, UrlError::DifferentVhosts("x".into(), "y".into()));
}

#[test]
fn query_keys_are_rabbitmqs_and_others_are_errors_that_name_the_key() {
    let broker = one("amqp://h?heartbeat=5&connection_timeout=2500&frame_max=16384&auth_mechanism=AMQPLAIN");
    assert_eq!((broker.heartbeat_seconds, broker.connect_timeout), (5, Duration::from_millis(2500)));
    assert_eq!(broker.frame_max, Some(16384));
    assert!(matches!(broker.login, Login::AmqPlain { .. }));

    let error = |url: &str| Target::parse(url).unwrap_err().to_string();
    assert!(error("amqp://h?hartbeat=5").contains("`hartbeat`"));
    assert!(error("amqp://h?heartbeat=0").contains("`heartbeat`"));
    assert!(error("amqp://h?frame_max=4096").contains("8192"));
    assert!(error("amqp://h?heartbeat=5&heartbeat=6").contains("twice"));
    assert!(error("amqp://h?cacertfile=/x").contains("amqps://"));
    assert!(error("amqps://h?certfile=/x").contains("keyfile"));
    assert!(error("amqps://h?verify=yes").contains("verify_peer"));
    assert!(error("amqp://h?auth_mechanism=external").contains("certificate"));
    assert!(error("http://h").contains("amqp://"));
    assert!(error("amqp://").contains("host"));
    assert!(error("amqp://h:0").contains("port"));
    assert!(error("amqp://h%zz").contains("percent"));
    assert!(error(" ").contains("empty"));
}

#[test]
fn tls_keys_and_a_client_certificate_without_a_user_mean_external() {
    let broker = one("amqps://h?cacertfile=/ca&certfile=/c&keyfile=/k&verify=verify_none&server_name_indication=name");
    assert!(matches!(broker.login, Login::External));
    let tls = broker.tls.unwrap();
    assert_eq!(tls.ca_file, Some("/ca".into()));
    assert_eq!(tls.identity, Some(("/c".into(), "/k".into())));
    assert_eq!(tls.server_name.as_deref(), Some("name"));
    assert!(tls.verify_none);
    let with_user = one("amqps://u:p@h?certfile=/c&keyfile=/k");
    assert_eq!(plain(&with_user.login), ("u", "p"));
}

#[test]
fn plaintext_and_unverified_tls_are_warned_about_except_on_loopback() {
    let warnings = |url: &str| Target::parse(url).unwrap().warnings();
    for url in ["amqp://localhost", "amqp://127.0.0.2", "amqp://[::1]", "amqps://h"] {
        assert!(warnings(url).is_empty(), "{url}");
    }
    assert!(warnings("amqp://h")[0].contains("plaintext"));
    assert!(warnings("amqps://h?verify=verify_none")[0].contains("verify_none"));
}

#[test]
fn no_error_and_no_debug_output_holds_a_password() {
    let secrets = [
        "amqp://user:sec:ret@host:bad/vh",
        "amqp://user:sec/ret@host/vh",
        "amqp://user:sec?ret@host/vh",
        "amqp://user:sec#ret@host/vh",
        "amqp://user:sec@ret@host/vh",
        "amqp://user:sec%ret@host/vh",
        "amqp://user:secret@host/",
        "amqp://user:secret@host?unknown=1",
        "amqp://user:secret@a,user:secret@b",
        "amqp//user:secret@host",
    ];
    for url in secrets {
        let error = Target::parse(url).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("sec") && !text.contains("ret@"), "{url}: {text}");
    }
    let target = Target::parse("amqp://user:hidden@host").unwrap();
    assert!(!format!("{target:?} {target}").contains("hidden"));
    assert_eq!(target.to_string(), "amqp://host:5672 vhost `/`");
}
