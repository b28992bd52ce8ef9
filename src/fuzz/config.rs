//! The configuration: every text and every set of variables gives a configuration that can be run, or errors that name a key,
//! on one line each, and never a secret.

use super::{CANARY, keeps_its_secret};
use crate::config::Config;
use crate::config::load::ConfigErrors;
use crate::event::route::Router;

/// The file, then for each variable a zero byte and `NAME=VALUE`.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let variables = parts.filter_map(|part| part.split_once('='));
    // Given by the first two, unless the input says otherwise.
    let urls = [
        ("DATABASE_URL".to_owned(), format!("postgres://app:{CANARY}@db.example/shop")),
        ("AMQP_URL".to_owned(), format!("amqps://app:{CANARY}@mq.example")),
    ];
    // Files that the input names are not ours to read.
    let ours = |name: &str| name != "POSTRIDER_CONFIG" && !name.ends_with("URL_FILE");
    let given = variables.filter(|(name, _)| ours(name)).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let variables: Vec<(String, String)> = urls.into_iter().chain(given).collect();

    let load = || Config::of_text(file, variables.clone());
    match (load(), load()) {
        (Ok(config), Ok(again)) => {
            let shown = format!("{config:?}");
            assert_eq!(shown, format!("{again:?}"), "the same input");
            keeps_its_secret("a configuration", &shown);
            can_be_run(&config);
        }
        (Err(errors), Err(again)) => {
            assert_eq!(errors, again, "the same input");
            can_be_read(&errors);
        }
        (first, again) => assert!(first.is_ok() == again.is_ok(), "the same input"),
    }
}

fn can_be_run(config: &Config) {
    assert!(Router::new(&config.routes).is_ok());
    let last = config.routes.last().map(|route| (route.aggregatetype.as_str(), route.kind.as_str()));
    assert_eq!(last, Some(("*", "*")), "the last route takes everything");
    assert!(config.exchanges().iter().all(|exchange| exchange.len() <= 255));
    let slot = config.slot.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    assert!(slot && (1..=63).contains(&config.slot.len()), "{}", config.slot);
    let limits = &config.limits;
    assert!(limits.window > 0 && limits.waiting > 0 && limits.max_message_bytes > 0, "{limits:?}");
    assert!(!limits.retry_min.is_zero() && limits.retry_min <= limits.retry_max, "{limits:?}");
}

fn can_be_read(errors: &ConfigErrors) {
    assert!(!errors.0.is_empty());
    for error in &errors.0 {
        let text = error.to_string();
        assert!(!text.starts_with([' ', ':']) && !error.problem.is_empty(), "it names a key: {text:?}");
        assert!(!text.chars().any(char::is_control), "one line, and nothing that a terminal obeys: {text:?}");
        keeps_its_secret("an error", &text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            proptest::sample::select(vec![
                "[limits]",
                "[outbox]",
                "[outbox.columns]",
                "[[route]]",
                "[topology]",
                "[[topology.queues]]",
                "[event]",
                "window = 0",
                "window = -1",
                "window = 9223372036854775807",
                "retry_min = \"0s\"",
                "retry_max = \"1ms\"",
                "name = \"a\"",
                "exchange = \"\"",
                "type = \"*\"",
                "routing_key = \"{type}{\"",
                "slot = \"A\"",
                "\"a\\nb\" = 1",
                "\"\" = 1",
                "slot = \"\\u001b[31m\"",
                "max_message_bytes = \"1 TiB\"",
                "hold_for = 1.5",
            ])
            .prop_map(str::to_owned),
            ("[a-z_.]{1,12}", "[ -~]{0,12}").prop_map(|(key, value)| format!("{key} = {value}")),
            ("[A-Z_]{1,12}", "[ -~]{0,12}").prop_map(|(name, value)| format!("\0POSTRIDER_{name}={value}")),
            ("(LIMITS_WINDOW|SLOT|LIMITS_RETRY_MIN|ALLOWED_HEADERS|REQUIRE_TLS|MANAGEMENT_URL)", any::<String>())
                .prop_map(|(name, value)| format!("\0POSTRIDER_{name}={value}")),
        ]
    }

    proptest! {
        #[test]
        fn whatever_an_operator_writes(lines in proptest::collection::vec(line(), 0..8)) {
            check(lines.join("\n").as_bytes());
        }
    }
}
