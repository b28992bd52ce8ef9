use super::*;

fn parse(text: &str) -> Target {
    Target::parse(text, false).unwrap()
}

fn refused(text: &str) -> String {
    Target::parse(text, false).unwrap_err().to_string()
}

fn mode_of(target: &Target, ip: &str) -> SslMode {
    target.ssl_mode_for(&target.hosts[0], Some(ip.parse().unwrap()))
}

const REMOTE: &str = "192.0.2.7";

#[test]
fn urls_are_read_as_people_write_them() {
    let target = parse("postgres://app:p%40ss%2Fw@db.example:6432/shop?application_name=x&connect_timeout=3");
    assert_eq!(target.describe(), "postgresql://app@db.example:6432/shop");
    assert_eq!(target.password(), Some("p@ss/w"));
    assert_eq!(target.application_name("ours"), "x");
    assert_eq!(target.connect_timeout, Duration::from_secs(3));

    let target = parse("postgresql://app@db");
    assert_eq!(target.describe(), "postgresql://app@db:5432/app", "the database is called like the user");
    assert_eq!(target.application_name("ours"), "ours");
    assert_eq!(target.password(), None);
    assert_eq!(target.connect_timeout, Duration::from_secs(10));
    assert_eq!(target.session, SessionAttrs::ReadWrite);
}

#[test]
fn several_hosts_have_a_port_each_or_one_for_all() {
    assert_eq!(parse("postgres://u@a:1,b,[::1]:3/d").describe(), "postgresql://u@a:1,b:5432,[::1]:3/d");
    assert_eq!(parse("postgres://u@a,b/d?port=7").describe(), "postgresql://u@a:7,b:7/d");
    assert_eq!(parse("postgres://u@db/?dbname=").describe(), "postgresql://u@db:5432/u", "as if it were not given");
    assert_eq!(parse("host=a,b port=1,2 user=u dbname=d").describe(), "postgresql://u@a:1,b:2/d");
    assert_eq!(refused("host=a,b,c port=1,2 user=u"), "there are 2 ports for 3 hosts: give one for all, or one each");
}

#[test]
fn a_unix_socket_is_a_directory() {
    for text in [
        "postgres:///d?host=/run/pg&user=u",
        "postgres://u@%2Frun%2Fpg/d",
        "host=/run/pg user=u dbname=d",
        "host='/run/pg' user = u dbname='d'",
    ] {
        let target = parse(text);
        assert_eq!(target.hosts, [Host { place: Place::Unix("/run/pg".into()), port: 5432 }], "{text}");
        assert_eq!(target.database(), "d");
    }
}

#[test]
fn without_a_host_the_usual_socket_comes_first_and_then_localhost() {
    assert_eq!(parse("postgres:///d?user=u").describe(), "postgresql://u@/var/run/postgresql:5432,localhost:5432/d");
}

#[test]
fn quoted_values_may_hold_spaces_quotes_and_backslashes() {
    let target = parse(r"host=h user='a b' password='it\'s \\ here' dbname=d\ e");
    assert_eq!(target.user(), "a b");
    assert_eq!(target.password(), Some(r"it's \ here"));
    assert_eq!(target.database(), "d e");
    assert_eq!(refused("host=h password='open"), "a quoted value does not end: its closing `'` is missing");
}

#[test]
fn hostaddr_says_where_and_host_says_who() {
    let target = parse("host=db.example hostaddr=192.0.2.7 user=u");
    let place = Place::Tcp { host: "db.example".to_owned(), addr: Some(REMOTE.parse().unwrap()) };
    assert_eq!(target.hosts[0].place, place);
    assert!(refused("host=a hostaddr=b user=u").contains("hostaddr"));
}

#[test]
fn unknown_keys_and_bad_values_are_named() {
    assert_eq!(refused("postgres://u@h/d?pool=3"), "unknown key `pool` in the URL");
    assert!(refused("postgres://u@h/d?sslmode=on").contains("`sslmode=on` in the URL: expected disable"));
    assert!(refused("postgres://u@h/d?target_session_attrs=standby").contains("expected read-write"));
    assert!(refused("postgres://u@h/d?connect_timeout=0").contains("connect_timeout"));
    assert!(refused("postgres://u@h/d?passfile=x").contains("DATABASE_URL_FILE"));
    assert!(refused("postgres://u@h/d?sslcert=x").contains("sslkey"));
    assert!(refused("mysql://u@h/d").contains("postgres://"));
    assert!(refused("jdbc:postgresql://h/d").contains("must begin with"));
    assert_eq!(refused("  "), "the URL is empty");
}

#[test]
fn what_says_nothing_new_is_taken() {
    parse(
        "postgres://u@h/d?gssencmode=disable&sslnegotiation=postgres&client_encoding=UTF8&load_balance_hosts=disable",
    );
    assert_eq!(mode_of(&parse("postgres://u@h/d?ssl=true"), REMOTE), SslMode::Require);
}

#[test]
fn no_error_and_no_debug_output_holds_a_part_of_the_password() {
    let secret = "s3cr3t";
    let broken = [
        "postgres://u:s3cr3t/x@h/d",
        "postgres://u:12/s3cr3t@h/d",
        "postgres://u:?s3cr3t@h/d",
        "postgres://u:s3cr3t#x@h/d",
        "postgres://u:s3cr3t%zz@h/d",
        "postgres://u:s3cr3t@h:port/d",
        "postgres://u:s3cr3t@h/d?sslmode=no",
        "host=h password=x s3cr3t user=u",
        "host=h password='s3cr3t user=u",
    ];
    for text in broken {
        let error = Target::parse(text, true).unwrap_err();
        assert!(!error.to_string().contains(secret) && !format!("{error:?}").contains(secret), "{text}: {error}");
    }
    let target = parse("postgres://u:s3cr3t@h/d");
    assert!(!format!("{target:?} {target}").contains(secret));
}

#[test]
fn a_plain_at_sign_in_a_password_is_understood() {
    assert_eq!(parse("postgres://u:a@b@h/d").password(), Some("a@b"));
}

#[test]
fn without_sslmode_everything_is_verified_but_what_stays_on_the_machine() {
    for (url, ip, mode) in [
        ("postgres://u@db/d", REMOTE, SslMode::VerifyFull),
        ("postgres://u@192.0.2.7/d", REMOTE, SslMode::VerifyFull),
        ("postgres://u@db/d", "127.0.0.1", SslMode::VerifyFull),
        ("postgres://u@localhost/d", "127.0.0.1", SslMode::Disable),
        ("postgres://u@localhost/d", "::1", SslMode::Disable),
        ("postgres://u@127.0.0.2/d", "127.0.0.2", SslMode::Disable),
        ("postgres://u@[::1]/d", "::1", SslMode::Disable),
        // Whatever a name server says `localhost` is.
        ("postgres://u@localhost/d", REMOTE, SslMode::VerifyFull),
    ] {
        let target = parse(url);
        assert_eq!(mode_of(&target, ip), mode, "{url} at {ip}");
        assert_eq!(target.tls_warnings(), [""; 0]);
    }
    let socket = parse("postgres:///d?host=/run/pg&user=u");
    assert_eq!(socket.ssl_mode_for(&socket.hosts[0], None), SslMode::Disable);
}

#[test]
fn each_sslmode_does_what_libpq_does_and_says_what_it_lacks() {
    for (mode, warning) in [
        ("disable", "plaintext"),
        ("allow", "may send"),
        ("prefer", "may send"),
        ("require", "does not verify who answers"),
        ("require&sslrootcert=/ca.pem", "not its host name"),
        ("verify-ca&sslrootcert=/ca.pem", "not its host name"),
    ] {
        let warnings = parse(&format!("postgres://u@db,localhost/d?sslmode={mode}")).tls_warnings();
        assert_eq!(warnings.len(), 1, "one host is remote");
        assert!(warnings[0].contains(warning) && warnings[0].contains("db:5432"), "{mode}: {}", warnings[0]);
    }
    assert_eq!(parse("postgres://u@db/d?sslmode=verify-full").tls_warnings(), [""; 0]);
    let named = parse("postgres://u@db/d?sslmode=require&sslrootcert=/ca.pem");
    assert_eq!(mode_of(&named, REMOTE), SslMode::VerifyCa);
    assert!(refused("postgres://u@db/d?sslmode=verify-ca").contains("sslrootcert"));
    assert!(refused("postgres://u@db/d?sslmode=require&sslrootcert=system").contains("any host's certificate"));
}

#[test]
fn require_tls_refuses_what_could_end_in_plaintext() {
    for mode in ["disable", "allow", "prefer"] {
        let error = Target::parse(&format!("postgres://u@localhost/d?sslmode={mode}"), true).unwrap_err();
        assert!(error.to_string().contains("require_tls"), "{error}");
    }
    for mode in ["require", "verify-full"] {
        Target::parse(&format!("postgres://u@db/d?sslmode={mode}"), true).unwrap();
    }
    let local = Target::parse("postgres://u@localhost/d", true).unwrap();
    assert_eq!(mode_of(&local, "127.0.0.1"), SslMode::VerifyFull);
}
