//! Log lines: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterFn, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// What the libraries say below this concerns their developers; what lapin says at all comes to us as a value as well, and is
/// said once, with what to do. The user's directives come after these and win.
const NOISE: &str = "lapin=off,pgwire=warn,tokio_postgres=warn,rustls=warn,hyper=warn";

/// The filter is not usable.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("{0:?} is no level (error, warn, info, debug, trace, off); for a target write target=level")]
    NoLevel(String),
    #[error(transparent)]
    Syntax(#[from] ParseError),
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("logging is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging to standard error, for the whole process.
pub fn start(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    let human = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let filter = env_filter(filter)?;
    if human {
        human_lines(filter, std::io::stderr, std::io::stderr().is_terminal()).try_init()?;
    } else {
        json_lines(filter, std::io::stderr).try_init()?;
    }
    Ok(())
}

/// Whether the text is a filter.
pub fn check(filter: &str) -> Result<(), FilterError> {
    env_filter(filter).map(|_| ())
}

fn env_filter(directives: &str) -> Result<EnvFilter, FilterError> {
    // EnvFilter takes a lone word for a target at level trace, so that a misspelt level would be no error.
    if !directives.contains('[') {
        let lone = |part: &&str| !part.is_empty() && !part.contains('=') && part.parse::<LevelFilter>().is_err();
        if let Some(word) = directives.split(',').map(str::trim).find(lone) {
            return Err(FilterError::NoLevel(word.to_owned()));
        }
    }
    Ok(EnvFilter::try_new(format!("{NOISE},{directives}"))?)
}

fn human_lines<W>(filter: EnvFilter, writer: W, colours: bool) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).with_target(false);
    tracing_subscriber::registry().with(never_printed()).with(filter).with(lines)
}

fn json_lines<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
    tracing_subscriber::registry().with(never_printed()).with(filter).with(lines)
}

/// Stands beside the user's filter and knows no exceptions (rule R12).
fn never_printed() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(may_be_printed)
}

/// False for what prints messages or secrets of the user:
/// * lapin prints each returned message, body included, under a target of its own, at level warn;
/// * lapin at trace prints every frame it sends, bodies among them as decimal bytes, the URL that it connects to and the
///   credentials of its login; at debug, commands;
/// * tokio-postgres at debug prints statements, whose parameters are parked events.
fn may_be_printed(metadata: &Metadata<'_>) -> bool {
    const RETURNED: &str = "lapin::returned_messages";
    const TALKATIVE: [&str; 5] = ["lapin", "amq_protocol", "async_rs", "tokio_postgres", "pgwire"];
    let target = metadata.target();
    let within = |crate_name: &str| {
        target.strip_prefix(crate_name).is_some_and(|rest| rest.is_empty() || !rest.starts_with(char::is_alphanumeric))
    };
    !within(RETURNED)
        && (*metadata.level() <= tracing::Level::INFO || !TALKATIVE.iter().any(|crate_name| within(crate_name)))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects what is written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn logged(filter: &str, events: impl Fn()) -> String {
        let human = Lines::default();
        let writer = human.clone();
        tracing::subscriber::with_default(
            human_lines(env_filter(filter).unwrap(), move || writer.clone(), false),
            &events,
        );
        let json = Lines::default();
        let writer = json.clone();
        tracing::subscriber::with_default(json_lines(env_filter(filter).unwrap(), move || writer.clone()), &events);
        human.text() + &json.text()
    }

    #[test]
    fn a_returned_message_is_never_printed_whatever_the_filter_says() {
        for filter in [
            "info",
            "trace",
            "lapin=trace",
            "lapin::returned_messages=trace",
            "lapin::returned_messages=warn,trace",
            "off,lapin::returned_messages=error",
            "lapin[{message}]=trace,trace",
        ] {
            let text = logged(filter, || {
                tracing::warn!(target: "lapin::returned_messages", message = "planted", "server returned us a message");
                tracing::error!(target: "lapin::returned_messages", "planted");
            });
            assert_eq!(text, "", "with the filter {filter}");
        }
    }

    #[test]
    fn the_libraries_that_print_frames_and_statements_stop_at_info() {
        for filter in ["trace", "lapin=trace", "tokio_postgres=debug,lapin::channel=trace,pgwire=trace"] {
            let text = logged(filter, || {
                tracing::trace!(target: "lapin::channel", "planted");
                tracing::debug!(target: "lapin::io_loop", "planted");
                tracing::trace!(target: "lapin", "planted");
                tracing::debug!(target: "tokio_postgres::query", "planted");
                tracing::trace!(target: "amq_protocol::frame", "planted");
                tracing::debug!(target: "pgwire::api", "planted");
            });
            assert_eq!(text, "", "with the filter {filter}");
        }
        let text = logged("lapin=info", || tracing::info!(target: "lapin::channel", "channel closed"));
        assert!(text.contains("channel closed"), "up to info the user decides");
    }

    #[test]
    fn the_libraries_are_quiet_unless_asked_for() {
        let events = || {
            tracing::info!(target: "lapin::connection", "planted");
            tracing::info!(target: "tokio_postgres::connection", "planted");
        };
        assert_eq!(logged("info", events), "");
        assert_eq!(logged("debug", events), "");
        assert!(logged("info,tokio_postgres=info", events).contains("planted"));
    }

    #[test]
    fn our_own_lines_follow_the_filter() {
        let events = || {
            tracing::info!(target: "postrider::relay", slot = "postrider", "carrying");
            tracing::debug!(target: "postrider::relay", "details");
        };
        let text = logged("info", events);
        assert!(
            text.contains("carrying") && text.contains(r#""slot":"postrider""#) && !text.contains("details"),
            "{text}"
        );
        assert!(logged("info,postrider=debug", events).contains("details"));
    }

    #[test]
    fn a_misspelt_level_is_an_error() {
        assert!(check("inof").is_err());
        assert!(check("info,lapin").is_err());
        assert!(check("postrider=loud").is_err());
        assert!(check("warn,postrider=debug").is_ok());
    }
}
