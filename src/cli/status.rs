//! `postrider status`: asks the admin listener of a running relay.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::config::Config;
use crate::http::{self, Answer, HttpError};

const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where the relay's admin listener is [default: what admin_listen says]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Only say whether it is ready (exit 0) or not (exit 1): for health checks
    #[arg(long)]
    pub ready: bool,
    /// Print /status as it is
    #[arg(long, conflicts_with = "ready")]
    pub json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("--url must be an http:// URL, as in http://127.0.0.1:9750")]
    Url,
    #[error("no relay answers: {source}; is it running, and is its admin listener there (admin_listen, or --url)?")]
    NoAnswer { source: HttpError },
    #[error("that is not a relay's admin listener: {status} {body}")]
    Stranger { status: u16, body: String },
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

/// 0 if it is ready, 1 if it is not; without `--ready`, 0 if it answers.
pub async fn run(args: &StatusArgs, config: &Config) -> Result<ExitCode, StatusError> {
    let (host, port) = match &args.url {
        Some(url) => place(url)?,
        None => (reachable(config.admin_listen.ip()).to_string(), config.admin_listen.port()),
    };
    let path = if args.ready { "/ready" } else { "/status" };
    let answer = http::get(&host, port, path, DEADLINE).await.map_err(|source| StatusError::NoAnswer { source })?;
    if args.ready {
        super::print(&format!("{answer}\n"))?;
        return Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let snapshot = parsed(&answer)?;
    let text = if args.json { format!("{answer}\n") } else { describe(&snapshot) };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn parsed(answer: &Answer) -> Result<Value, StatusError> {
    let snapshot: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let known = |value: &Value| value.get("role").is_some() && value.get("slot").is_some();
    snapshot.filter(|value| answer.status == 200 && known(value)).ok_or_else(|| {
        let body = answer.to_string().chars().take(200).collect();
        StatusError::Stranger { status: answer.status, body }
    })
}

/// An address that listens on every interface is reached by the loopback one.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

fn place(url: &str) -> Result<(String, u16), StatusError> {
    if let Ok(address) = url.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    let parsed = url::Url::parse(url).map_err(|_| StatusError::Url)?;
    match (parsed.scheme(), parsed.host()) {
        ("http", Some(host)) => {
            let host = host.to_string();
            // Brackets belong to the URL, not to the address.
            let host = host.trim_matches(['[', ']']).to_owned();
            Ok((host, parsed.port_or_known_default().unwrap_or(80)))
        }
        _ => Err(StatusError::Url),
    }
}

/// The snapshot for a person. A verdict first; what is empty is left out.
fn describe(snapshot: &Value) -> String {
    let text = |key: &str| snapshot.get(key).and_then(Value::as_str);
    let flag = |key: &str| snapshot.get(key).and_then(Value::as_bool).unwrap_or(false);
    let number = |key: &str| snapshot.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mut lines = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        writeln!(lines, "{name:<14}{value}").ok();
    };

    let carrying =
        text("role") == Some("active") && flag("session_up") && flag("broker_up") && text("broker_blocked").is_none();
    let verdict = match (flag("stopping"), text("problem"), carrying) {
        (true, ..) => "stopping".to_owned(),
        (_, Some(problem), _) => problem.to_owned(),
        (_, None, true) => "carrying events".to_owned(),
        (_, None, false) => "not carrying yet".to_owned(),
    };
    line("verdict", verdict);
    line("role", text("role").unwrap_or("unknown").to_owned());
    line("slot", format!("{} (publication {})", text("slot").unwrap_or(""), text("publication").unwrap_or("")));
    let up = |up: bool| if up { "connected" } else { "not connected" };
    line("postgresql", up(flag("session_up")).to_owned());
    line(
        "rabbitmq",
        match text("broker_blocked") {
            Some(reason) => format!("blocks publishing: {reason}"),
            None => up(flag("broker_up")).to_owned(),
        },
    );
    if let Some(lag) = snapshot.get("delivery_lag_seconds").and_then(Value::as_f64) {
        line("lag", format!("{lag:.1} s"));
    }
    line("unresolved", format!("{} events, {} bytes", number("unresolved_events"), number("unresolved_bytes")));
    line("held keys", number("held_keys").to_string());
    if let Some(key) = snapshot.get("most_delayed").filter(|key| key.is_object()) {
        let field = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or("");
        let seconds = key.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
        line("most delayed", format!("{} for {seconds:.1} s: {}", field("key"), field("reason")));
    }
    for exchange in snapshot.get("failing_exchanges").and_then(Value::as_array).into_iter().flatten() {
        let field = |name: &str| exchange.get(name).and_then(Value::as_str).unwrap_or("");
        line("failing", format!("exchange {}: {}", field("exchange"), field("error")));
    }
    if let Some(dead) = snapshot.get("dead_letters").filter(|dead| dead.get("waiting").is_some_and(|count| *count != 0))
    {
        let number = |name: &str| dead.get(name).and_then(Value::as_u64).unwrap_or(0);
        let reasons = dead.get("by_reason").and_then(Value::as_object).into_iter().flatten();
        let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{reason} {count}")).collect();
        let oldest = dead.get("oldest_seconds").and_then(Value::as_f64).unwrap_or(0.0);
        line(
            "dead letters",
            format!("{} of {} keys, oldest {oldest:.0} s: {}", number("waiting"), number("keys"), reasons.join(", ")),
        );
        for way in dead.get("failing").and_then(Value::as_array).into_iter().flatten() {
            let field = |name: &str| way.get(name).and_then(Value::as_str).unwrap_or("");
            line("failing", format!("{} {}: {}", field("exchange"), field("routing_key"), field("error")));
        }
        if let Some(bound) = dead.get("stalled").and_then(Value::as_str) {
            line("stalled", format!("nothing is read: the dead letters have reached {bound} (postrider dlq list)"));
        }
    }
    if let Some(lsn) = text("acknowledged_lsn") {
        line("acknowledged", format!("{lsn} (received {})", text("received_lsn").unwrap_or("nothing")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::status::{DelayedKey, Role, Status};

    fn config(address: SocketAddr) -> Config {
        let listen = ("POSTRIDER_ADMIN_LISTEN".to_owned(), address.to_string());
        Config::load_for(crate::config::load::Needs::Nothing, None, [listen]).unwrap()
    }

    #[tokio::test]
    async fn ready_is_the_exit_code() {
        let listener = crate::admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let config = config(listener.local_addr().unwrap());
        let status = Status::new("postrider", "postrider");
        tokio::spawn(crate::admin::serve(listener, Metrics::new("postrider", &[]).unwrap(), status.clone()));
        let args = StatusArgs { url: None, ready: true, json: false };
        let ready = async || format!("{:?}", run(&args, &config).await.unwrap());
        assert_eq!(ready().await, format!("{:?}", ExitCode::FAILURE));
        status.update(|snapshot| {
            (snapshot.role, snapshot.session_up, snapshot.broker_up) = (Role::Active, true, true);
        });
        assert_eq!(ready().await, format!("{:?}", ExitCode::SUCCESS));
        let url = StatusArgs { url: Some(format!("http://{}/", config.admin_listen)), ready: false, json: true };
        assert!(run(&url, &config).await.is_ok());
    }

    #[tokio::test]
    async fn no_relay_is_an_error_that_names_the_setting() {
        let listener = crate::admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let config = config(listener.local_addr().unwrap());
        drop(listener);
        let args = StatusArgs { url: None, ready: false, json: false };
        let error = run(&args, &config).await.unwrap_err().to_string();
        assert!(error.contains("cannot connect to 127.0.0.1:") && error.contains("admin_listen"), "{error}");
    }

    #[test]
    fn every_interface_is_asked_by_the_loopback_one() {
        assert_eq!(reachable([0, 0, 0, 0].into()).to_string(), "127.0.0.1");
        assert_eq!(reachable("::".parse().unwrap()).to_string(), "::1");
        assert_eq!(place("http://[::1]:9750").unwrap(), ("::1".to_owned(), 9750));
        assert_eq!(place("http://relay:9750/").unwrap(), ("relay".to_owned(), 9750));
        assert!(place("https://relay").is_err() && place("relay").is_err());
    }

    #[test]
    fn what_is_wrong_stands_first_and_what_is_empty_is_left_out() {
        let status = Status::new("shop", "postrider");
        status.update(|snapshot| {
            snapshot.role = Role::Active;
            snapshot.session_up = true;
            snapshot.problem = Some("exchange `events` does not exist".to_owned());
            snapshot.unresolved_events = 3;
            snapshot.held_keys = 1;
            snapshot.most_delayed =
                Some(DelayedKey { key: "order/42".to_owned(), seconds: 12.25, reason: "returned".to_owned() });
            snapshot.delivery_lag_seconds = Some(12.5);
        });
        status.update(|snapshot| {
            snapshot.dead_letters.waiting = 3;
            snapshot.dead_letters.keys = 2;
            snapshot.dead_letters.oldest_seconds = Some(61.5);
            snapshot.dead_letters.by_reason = [("behind", 1), ("unroutable", 2)].into();
            snapshot.dead_letters.stalled = Some("max_parked");
        });
        let text = describe(&serde_json::to_value(status.snapshot()).unwrap());
        insta::assert_snapshot!(text, @r#"
verdict       exchange `events` does not exist
role          active
slot          shop (publication postrider)
postgresql    connected
rabbitmq      not connected
lag           12.5 s
unresolved    3 events, 0 bytes
held keys     1
most delayed  order/42 for 12.2 s: returned
dead letters  3 of 2 keys, oldest 62 s: behind 1, unroutable 2
stalled       nothing is read: the dead letters have reached max_parked (postrider dlq list)
"#);
    }
}
