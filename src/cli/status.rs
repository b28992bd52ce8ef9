//! `postrider status`: asks the admin listener of a running relay.
//!
//! Exit codes are for scripts: see `Verdict`.

mod describe;

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::text::harmless;
use crate::config::Config;
use crate::http::{self, Answer, HttpError};

use describe::{Verdict, describe};

const DEADLINE: Duration = Duration::from_secs(5);
/// Puts the cursor home and clears what is below (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// It carries, or could, but something wants a person. 2 is clap's.
const EXIT_ATTENTION: u8 = 3;

#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 carrying events or standing by, and nothing waits for a person; 1 not ready, or no answer; \
3 ready, but something waits for a person: the verdict says what."
)]
pub struct StatusArgs {
    /// Where the relay's admin listener is [default: what admin_listen says]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Only say whether it is ready (exit 0) or not (exit 1): for health checks
    #[arg(long)]
    pub ready: bool,
    /// Print /status as it is; with --watch one line each time
    #[arg(long, conflicts_with = "ready")]
    pub json: bool,
    /// Show it again and again until ctrl-c, with this pause
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        require_equals = true,
        value_parser = clap::value_parser!(u64).range(1..=3600),
        conflicts_with = "ready"
    )]
    pub watch: Option<u64>,
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

/// Says how the relay is, and gives the exit code of its verdict. With `--ready`: 0 if it is ready, 1 if it is not.
pub async fn run(args: &StatusArgs, config: &Config) -> Result<ExitCode, StatusError> {
    let (host, port) = match &args.url {
        Some(url) => place(url)?,
        None => (reachable(config.admin_listen.ip()).to_string(), config.admin_listen.port()),
    };
    let ask = async |path: &str| {
        http::get(&host, port, path, DEADLINE).await.map_err(|source| StatusError::NoAnswer { source })
    };
    if args.ready {
        let answer = ask("/ready").await?;
        super::print(&format!("{answer}\n"))?;
        return Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Some(seconds) = args.watch {
        let clear = if std::io::stdout().is_terminal() && !args.json { CLEAR } else { "" };
        loop {
            let text = match ask("/status").await.and_then(|answer| parsed(&answer)) {
                Ok(snapshot) if args.json => format!("{snapshot}\n"),
                Ok(snapshot) => describe(&snapshot).1,
                // It may be starting again: that is what somebody watches. Programs read standard output.
                Err(error @ (StatusError::NoAnswer { .. } | StatusError::Stranger { .. })) if args.json => {
                    eprintln!("postrider: {error}");
                    String::new()
                }
                Err(error @ (StatusError::NoAnswer { .. } | StatusError::Stranger { .. })) => format!("{error}\n"),
                Err(error) => return Err(error),
            };
            super::print(&format!("{clear}{text}"))?;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }
    let answer = ask("/status").await?;
    let snapshot = parsed(&answer)?;
    let (verdict, text) = describe(&snapshot);
    super::print(&if args.json { format!("{answer}\n") } else { text })?;
    Ok(match verdict {
        Verdict::Well => ExitCode::SUCCESS,
        Verdict::NotReady => ExitCode::FAILURE,
        Verdict::Attention => ExitCode::from(EXIT_ATTENTION),
    })
}

fn parsed(answer: &Answer) -> Result<Value, StatusError> {
    let snapshot: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let known = |value: &Value| value.get("role").is_some() && value.get("slot").is_some();
    snapshot.filter(|value| answer.status == 200 && known(value)).ok_or_else(|| {
        let body = harmless(&answer.to_string().chars().take(200).collect::<String>(), &[]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::status::{Role, Status};

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
        let args = StatusArgs { url: None, ready: true, json: false, watch: None };
        let ready = async || format!("{:?}", run(&args, &config).await.unwrap());
        assert_eq!(ready().await, format!("{:?}", ExitCode::FAILURE));
        status.update(|snapshot| {
            (snapshot.role, snapshot.session_up, snapshot.broker_up) = (Role::Active, true, true);
        });
        assert_eq!(ready().await, format!("{:?}", ExitCode::SUCCESS));
        let url =
            StatusArgs { url: Some(format!("http://{}/", config.admin_listen)), ready: false, json: true, watch: None };
        assert!(run(&url, &config).await.is_ok());
    }

    #[tokio::test]
    async fn no_relay_is_an_error_that_names_the_setting() {
        let listener = crate::admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let config = config(listener.local_addr().unwrap());
        drop(listener);
        let args = StatusArgs { url: None, ready: false, json: false, watch: None };
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
}
