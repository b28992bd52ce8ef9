//! What ends the program, and how errors are shown. Each module has its own error type; they meet here.

use std::error::Error as StdError;
use std::fmt::Write;

use crate::admin::AdminError;
use crate::logging::LoggingError;

/// Why the program ended although nobody stopped it. Every variant says what to do.
///
/// Whatever concerns a *server* is never among them: it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error("cannot set up the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
}

/// An error with its causes in one line, each said once.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some libraries repeat their source in their own text.
        if !text.contains(&message) && write!(text, ": {message}").is_err() {
            break;
        }
        cause = error.source();
    }
    text
}
