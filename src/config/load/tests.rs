mod dead_letters;
mod documents;

use std::io::Write;
use std::time::Duration;

use secrecy::ExposeSecret;
use tempfile::NamedTempFile;

use super::*;
use crate::config::{Argument, Consumers, Format, Limits, LogFormat, SecretSource, WatchedQueue};
use crate::event::Ordering;

fn env(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://app@localhost/shop");
const AMQP: (&str, &str) = ("AMQP_URL", "amqp://localhost/%2F");

/// With both URLs and the file given.
fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let file = file(text);
    let all = [&[DATABASE, AMQP], variables].concat();
    Config::load(Some(file.path()), env(&all))
}

/// The errors, one a line, with the name of the temporary file left out.
fn errors(text: &str, variables: &[(&str, &str)]) -> String {
    let file = file(text);
    let all = [&[DATABASE, AMQP], variables].concat();
    let errors = Config::load(Some(file.path()), env(&all)).unwrap_err();
    errors.to_string().replace(&file.path().display().to_string(), "file")
}

fn secret(source: &SecretSource) -> String {
    source.read().unwrap().expose_secret().to_owned()
}

#[test]
fn two_urls_are_enough() {
    let config = Config::load(None, env(&[DATABASE, AMQP, ("PATH", "/bin")])).unwrap();
    assert_eq!(secret(&config.database_url), DATABASE.1);
    assert_eq!(secret(&config.amqp_url), AMQP.1);
    assert_eq!((config.slot.as_str(), config.publication.as_str()), ("postrider", "postrider"));
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9750");
    assert_eq!((config.outbox.schema.as_str(), config.outbox.table.as_str()), ("public", "outbox"));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.routes.len(), 1);
    let route = &config.routes[0];
    assert_eq!((route.name.as_str(), route.exchange.as_str()), ("default", "events"));
    assert_eq!(route.routing_key, "{aggregatetype}.{type}");
    assert!(config.topology.is_none() && config.queues.is_empty() && config.management_url.is_none());
}

#[test]
fn what_is_missing_says_where_to_put_it() {
    let errors = Config::load(None, env(&[])).unwrap_err().to_string();
    assert_eq!(
        errors,
        "database_url: not set: give the URL in DATABASE_URL, or a file that has it in DATABASE_URL_FILE\n\
         amqp_url: not set: give the URL in AMQP_URL, or a file that has it in AMQP_URL_FILE"
    );
    assert!(Config::load_for(Needs::Database, None, env(&[DATABASE])).is_ok());
    assert!(Config::load_for(Needs::Nothing, None, env(&[])).is_ok());
}

#[test]
fn a_variable_wins_over_the_file_and_the_file_over_the_default() {
    let text = "slot = 'from_file'\npublication = 'from_file'\n[limits]\nwindow = 5\nconfirm_timeout = '2m'\n[outbox]\ntable = 'app.events'\n";
    let variables =
        [("POSTRIDER_SLOT", "from_env"), ("POSTRIDER_LIMITS_WINDOW", "7"), ("POSTRIDER_LIMITS_WAITING_BYTES", "64MiB")];
    let config = load(text, &variables).unwrap();
    assert_eq!((config.slot.as_str(), config.publication.as_str()), ("from_env", "from_file"));
    assert_eq!((config.outbox.schema.as_str(), config.outbox.table.as_str()), ("app", "events"));
    assert_eq!((config.limits.window, config.limits.waiting), (7, 10_000));
    assert_eq!(config.limits.confirm_timeout, Duration::from_secs(120));
    assert_eq!(config.limits.waiting_bytes, 64 << 20);
}

#[test]
fn an_empty_variable_counts_as_absent() {
    let config = load("slot = 'mine'", &[("POSTRIDER_SLOT", ""), ("POSTRIDER_LOG", "")]).unwrap();
    assert_eq!((config.slot.as_str(), config.log.as_str()), ("mine", "info"));
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let file = file("slot = 'mine'");
    let path = file.path().display().to_string();
    let config = Config::load(None, env(&[DATABASE, AMQP, ("POSTRIDER_CONFIG", &path)])).unwrap();
    assert_eq!(config.slot, "mine");
    let missing = Config::load(Some(Path::new("/nowhere/postrider.toml")), env(&[])).unwrap_err().to_string();
    assert!(missing.starts_with("--config: cannot read /nowhere/postrider.toml: "), "{missing}");
}

#[test]
fn every_error_is_reported_at_once_with_its_key_and_its_place() {
    let text = "slott = 'x'\nslot = 'Upper'\n\n[limits]\nwindow = 0\nretry_min = '5'\n[limit]\nwindow = 1\n[event]\nordering = 'random'\n";
    let variables = [
        ("POSTRIDER_LIMITS_WINDO", "5"),
        ("POSTRIDER_REQUIRE_TLS", "yes"),
        ("POSTRIDER_ADMIN_LISTEN", "9750"),
        ("POSTRIDER_LOG", "inof"),
    ];
    insta::assert_snapshot!(errors(text, &variables), @r#"
event.ordering (file:10): must be "key" or "pipelined", not "random"
require_tls (POSTRIDER_REQUIRE_TLS): must be true or false, not "yes"
slot (file:2): must be at most 63 lower-case letters, digits and underscores, not "Upper"
admin_listen (POSTRIDER_ADMIN_LISTEN): must be an IP address and a port, as in "127.0.0.1:9750", not "9750"
log (POSTRIDER_LOG): must be log directives, as in "info" or "postrider=debug": "inof" is no level (error, warn, info, debug, trace, off); for a target write target=level
limits.window (file:5): must be a whole number from 1 to 100000, not 0
limits.retry_min (file:6): must be a time from 10ms to 3600s, as in "500ms", "30s" or "2m", not "5"
limit (file:7): unknown key; did you mean limits?
slott (file:1): unknown key; did you mean slot?
POSTRIDER_LIMITS_WINDO: unknown variable; did you mean POSTRIDER_LIMITS_WINDOW?
"#);
}

#[test]
fn faults_of_syntax_have_their_lines() {
    insta::assert_snapshot!(errors("slot = 'a'\nslot = 'b'\n[limits\nwindow = 1 2\n", &[]), @r#"
not TOML (file:2): duplicate key
not TOML (file:3): unclosed table, expected `]`
"#);
}

#[test]
fn a_table_that_is_no_table_is_an_error() {
    insta::assert_snapshot!(errors("limits = 5\nqueues = ['a']\n[route]\nname = 'x'\n[[event]]\nformat = 'cdc'\n", &[]), @r#"
route (file:3): must be a list of tables: write [[route]], not [route]
queues (file:2): must be a table, not a text: write [[queues]]
event (file:5): must be a table, not a list: write [event]
limits (file:1): must be a table, not a number: write [limits]
"#);
}

#[test]
fn variables_that_others_set_are_not_ours() {
    let foreign = [
        ("POSTRIDER_TEST_MANAGEMENT_URL", "x"),
        ("POSTRIDER_SERVICE_HOST", "10.0.0.1"),
        ("POSTRIDER_SERVICE_PORT_METRICS", "9750"),
        ("POSTRIDER_PORT", "tcp://10.0.0.1:9750"),
        ("POSTRIDER_PORT_9750_TCP_ADDR", "10.0.0.1"),
    ];
    assert!(load("", &foreign).is_ok());
}

#[test]
fn secrets_come_from_the_most_specific_place() {
    let password = file("postgres://app@from-file/shop\n");
    let path = password.path().display().to_string();
    let config = load("database_url = 'postgres://app@toml/shop'", &[]).unwrap();
    assert_eq!(secret(&config.database_url), DATABASE.1, "a variable wins over the file");
    let config = load("", &[("POSTRIDER_DATABASE_URL", "postgres://app@prefixed/shop")]).unwrap();
    assert_eq!(secret(&config.database_url), "postgres://app@prefixed/shop");
    let config = load("", &[("POSTRIDER_DATABASE_URL_FILE", &path)]).unwrap();
    assert_eq!(secret(&config.database_url), "postgres://app@from-file/shop", "without its final line break");

    let config = Config::load(None, env(&[AMQP, ("DATABASE_URL_FILE", &path)])).unwrap();
    std::fs::write(password.path(), "postgres://app@rotated/shop").unwrap();
    assert_eq!(secret(&config.database_url), "postgres://app@rotated/shop", "the file is read at each use");
}

#[test]
fn a_secret_given_twice_or_not_to_be_had_is_an_error() {
    let empty = file("");
    let path = empty.path().display().to_string();
    let variables = [("AMQP_URL_FILE", "/nowhere/url"), ("POSTRIDER_DATABASE_URL_FILE", path.as_str())];
    insta::assert_snapshot!(errors("", &variables).replace(&path, "empty"), @r#"
amqp_url (AMQP_URL): given twice: as a value and as a file; keep one
database_url (POSTRIDER_DATABASE_URL_FILE): empty is empty
"#);
    insta::assert_snapshot!(errors("", &[("POSTRIDER_AMQP_URL_FILE", "/nowhere/url")]), @r#"
amqp_url (POSTRIDER_AMQP_URL_FILE): cannot read /nowhere/url: No such file or directory (os error 2)
"#);
}

#[test]
fn routes_inherit_from_event_and_the_default_comes_last() {
    let text = "
        [event]
        exchange = 'shop'
        format = 'payload'
        headers = ['tenant', 'x-shop-*']
        [[route]]
        name = 'orders'
        aggregatetype = 'order'
        routing_key = 'orders'
        ordering = 'pipelined'
        [[route]]
        name = 'audit'
        type = 'Audit*'
        exchange = 'audit'
        format = 'cdc'
    ";
    let config = load(text, &[]).unwrap();
    let names: Vec<_> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["orders", "audit", "default"]);
    let [orders, audit, default] = config.routes.as_slice() else { panic!("three routes") };
    assert_eq!(
        (orders.exchange.as_str(), orders.format, orders.ordering),
        ("shop", Format::Payload, Ordering::Pipelined)
    );
    assert_eq!(
        (orders.aggregatetype.as_str(), orders.kind.as_str(), orders.routing_key.as_str()),
        ("order", "*", "orders")
    );
    assert_eq!((audit.exchange.as_str(), audit.format, audit.kind.as_str()), ("audit", Format::Cdc, "Audit*"));
    assert_eq!(
        (default.exchange.as_str(), default.format, default.aggregatetype.as_str()),
        ("shop", Format::Payload, "*")
    );
    assert_eq!(config.allowed_headers, ["tenant", "x-shop-*"]);
}

#[test]
fn faults_of_routes_name_key_and_line() {
    let text = "[[route]]\nname = 'a'\nexchang = 'x'\n[[route]]\nname = 'a'\n[[route]]\ntype = 'x'\n[[route]]\nname = 'default'\nexchange = ''\n";
    insta::assert_snapshot!(errors(text, &[]), @r#"
route.exchang (file:3): unknown key; did you mean route.exchange?
route.name (file:5): "a" is taken: every route needs a name of its own
route.name (file:7): missing
route.name (file:9): "default" is taken: every route needs a name of its own
route.exchange (file:10): must not be empty
"#);
}

#[test]
fn topology_is_what_it_lists() {
    let text = "
        [[topology.exchanges]]
        name = 'events'
        [[topology.queues]]
        name = 'billing'
        arguments = { x-max-length = 1000, x-overflow = 'reject-publish', x-single-active-consumer = true }
        [[topology.bindings]]
        exchange = 'events'
        queue = 'elsewhere'
        routing_key = 'order.#'
        [[queues]]
        name = 'billing'
    ";
    let topology = load(text, &[]).unwrap().topology.unwrap();
    assert_eq!(topology.exchanges[0].kind, "topic");
    let arguments = [
        ("x-max-length".to_owned(), Argument::Integer(1000)),
        ("x-overflow".to_owned(), Argument::Text("reject-publish".to_owned())),
        ("x-single-active-consumer".to_owned(), Argument::Bool(true)),
    ];
    assert_eq!(topology.queues[0].arguments, arguments);
    assert_eq!(topology.bindings[0].queue, "elsewhere", "a binding may name a queue that exists already");
    assert_eq!(
        load("[topology]", &[]).unwrap().topology,
        Some(Default::default()),
        "present and empty: declare nothing"
    );
    let queues = load(text, &[("POSTRIDER_QUEUES", "a, b")]).unwrap().queues;
    assert_eq!(queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_watched_queue_may_have_an_objective_and_the_others_have_a_common_one() {
    let text = "
        management_url = 'http://localhost:15672'
        [[queues]]
        name = 'billing'
        max_lag = '30s'
        [[queues]]
        name = 'ship*'
        [consumers]
        discover = false
        max_lag = '5m'
        period = '5s'
    ";
    let config = load(text, &[("POSTRIDER_CONSUMERS_PERIOD", "20s")]).unwrap();
    let queue = |name: &str, seconds: Option<u64>| WatchedQueue {
        name: name.to_owned(),
        max_lag: seconds.map(Duration::from_secs),
    };
    assert_eq!(config.queues, [queue("billing", Some(30)), queue("ship*", None)]);
    assert_eq!((config.queues[0].is_pattern(), config.queues[1].is_pattern()), (false, true));
    let (max_lag, period) = (Some(Duration::from_secs(300)), Duration::from_secs(20));
    assert_eq!(config.consumers, Consumers { discover: false, max_lag, period });
    let default = load("", &[]).unwrap().consumers;
    assert_eq!(default, Consumers { discover: true, max_lag: None, period: Duration::from_secs(15) });
}

#[test]
fn a_pattern_needs_the_management_api() {
    let text = "[[queues]]\nname = 'ship*'\nmax_lag = '0s'\n[[queues]]\nname = 'billing'\n[consumers]\nperiod = '1s'\n";
    insta::assert_snapshot!(errors(text, &[]), @r#"
queues.max_lag (file:3): must be a time from 1s to 2592000s, as in "500ms", "30s" or "2m", not "0s"
queues.name (file:2): "ship*" is a pattern, which needs management_url: AMQP cannot list queues
consumers.period (file:7): must be a time from 5s to 60s, as in "500ms", "30s" or "2m", not "1s"
"#);
    insta::assert_snapshot!(errors("", &[("POSTRIDER_QUEUES", "billing,ship*")]), @r#"
queues.name (POSTRIDER_QUEUES): "ship*" is a pattern, which needs management_url: AMQP cannot list queues
"#);
}

#[test]
fn faults_of_the_topology_name_key_and_line() {
    let long = "x".repeat(256);
    let text = format!(
        "[[topology.exchanges]]\nname = 'e'\ntype = 'topics'\n[[topology.exchanges]]\nname = 'e'\n\
         [[topology.queues]]\nname = '{long}'\narguments = {{ x = 1.5 }}\n[[topology.bindings]]\nqueue = 'q'\nrouting_key = ''\n\
         [[queues]]\nname = 'q'\n[[queues]]\nname = 'q'\n"
    );
    insta::assert_snapshot!(errors(&text, &[]), @r#"
topology.exchanges.type (file:3): must be "topic", "direct", "fanout", "headers" or a plugin's "x-...", not "topics"
topology.exchanges.name (file:5): "e" is listed twice
topology.queues.name (file:7): must be at most 255 bytes, not 256
topology.queues.arguments (file:8): x must be a text, a whole number, true or false, not a fraction
topology.bindings.exchange (file:10): missing
queues.name (file:15): "q" is listed twice
"#);
}

#[test]
fn settings_that_contradict_each_other_are_errors() {
    let text = "amqp_cert_file = '/dev/null'\n[event]\nheaders = ['CC', 'a*b', 'bcc']\n[limits]\nwindow = 100\nwaiting = 10\nwindow_bytes = '1MiB'\nretry_min = '5s'\nretry_max = '1s'\ndrain_timeout = '30s'\n";
    insta::assert_snapshot!(errors(text, &[]), @r#"
limits.drain_timeout (file:10): must be a time from 0ns to 15s, as in "500ms", "30s" or "2m", not "30s"
limits.waiting (file:6): must be at least limits.window (100), not 10
limits.window_bytes (file:7): must be at least limits.max_message_bytes (16777216), not 1048576
limits.retry_max (file:9): must be at least limits.retry_min (5s), not 1s
event.headers (file:3): CC never passes: a row could send copies to any queue by it
event.headers (file:3): "a*b" must be a name of at most 255 bytes; a * may stand at its end
event.headers (file:3): bcc never passes: a row could send copies to any queue by it
amqp_cert_file (file:1): needs amqp_key_file, the key of the certificate
"#);
}

#[test]
fn a_table_is_named_as_in_sql() {
    let table = |name: &str| {
        let outbox = load(&format!("[outbox]\ntable = '{name}'"), &[]).map(|config| config.outbox);
        outbox.map(|outbox| (outbox.schema, outbox.table)).ok()
    };
    let names = |schema: &str, table: &str| Some((schema.to_owned(), table.to_owned()));
    assert_eq!(table("outbox"), names("public", "outbox"));
    assert_eq!(table("app.events"), names("app", "events"));
    assert_eq!(table("\"App\".\"Out.box\""), names("App", "Out.box"));
    assert_eq!(table("app.\"say \"\"hi\"\"\""), names("app", "say \"hi\""));
    for wrong in ["", ".", "a.", ".b", "a.b.c", "a b", "\"a", "\"\"", "a;b", "Outbox", "\"A\"b"] {
        assert_eq!(table(wrong), None, "{wrong}");
    }
}

#[test]
fn columns_are_mapped_and_optional_ones_can_be_switched_off() {
    let text = "[outbox.columns]\naggregateid = 'aggregate_id'\nversion = ''\n";
    let columns = load(text, &[("POSTRIDER_OUTBOX_COLUMNS_TYPE", "event_type")]).unwrap().outbox.columns;
    assert_eq!(
        (columns.aggregateid.as_str(), columns.kind.as_str(), columns.version.as_str()),
        ("aggregate_id", "event_type", "")
    );
    assert!(errors("[outbox.columns]\nid = ''", &[]).contains("outbox.columns.id (file:2): must not be empty"));
}

#[test]
fn sizes_and_times_have_units() {
    for (text, bytes) in [("1048576", 1 << 20), ("'1 MiB'", 1 << 20), ("'2kB'", 2_000), ("'3KiB'", 3 << 10)] {
        let config = load(&format!("[limits]\nmax_message_bytes = {text}"), &[]).unwrap();
        assert_eq!(config.limits.max_message_bytes, bytes, "{text}");
    }
    for (text, millis) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
        let config = load(&format!("[limits]\nretry_min = '{text}'\nretry_max = '1h'"), &[]).unwrap();
        assert_eq!(config.limits.retry_min, Duration::from_millis(millis), "{text}");
    }
    for wrong in ["5", "'5'", "'-1s'", "'1.5s'", "'s'", "'99999999999999999999s'", "'18446744073709551615h'", "true"] {
        assert!(load(&format!("[limits]\nretry_max = {wrong}"), &[]).is_err(), "{wrong}");
    }
}

#[test]
fn neither_an_error_nor_a_debug_print_shows_a_password() {
    let urls =
        [("POSTRIDER_MANAGEMENT_URL", "htp://monitor:s3cret@host"), ("POSTRIDER_SLOT", "postgres://u:s3cret@host/db")];
    assert!(!errors("", &urls).contains("s3cret"));
    let config = load("", &[("POSTRIDER_DATABASE_URL", "postgres://u:s3cret@localhost/db")]).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
    assert_eq!(config.log_format, LogFormat::Auto);
}
