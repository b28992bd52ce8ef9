//! From a file and the environment to a [`Config`]: every error at once, each with the key and where it came from.
//!
//! A setting is looked up in its variable (`limits.window` in `POSTRIDER_LIMITS_WINDOW`), then in the file, then it has
//! its default. An empty variable counts as absent, because that is what `${NAME:-}` in a compose file leaves behind.
//! The environment is a parameter: nothing here reads or changes the process's own.

mod file;
mod reader;
mod rules;
mod secret;
mod sections;
mod source;
#[cfg(test)]
mod tests;
mod topology;
mod values;

use std::fmt;
use std::path::Path;

pub use secret::SecretError;

use super::Config;
use reader::Reader;

/// Which of the two URLs a command cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    BothServers,
    Database,
    Broker,
    Nothing,
}

impl Config {
    /// The configuration of a relay: both URLs are required.
    ///
    /// `file` wins over the variable `POSTRIDER_CONFIG`; without either there is no file.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
        Config::load_for(Needs::BothServers, file, env)
    }

    /// As [`Config::load`], for a command that needs less. A URL that is needed less is checked all the same if given.
    pub fn load_for(
        needs: Needs,
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        Config::read(needs, Reader::open(file, env)?)
    }

    /// As [`Config::load`], of a file that has this text.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
        Config::read(Needs::BothServers, Reader::of_text("postrider.toml", text, env)?)
    }

    fn read(needs: Needs, mut reader: Reader) -> Result<Config, ConfigErrors> {
        let config = sections::config(&mut reader, needs);
        rules::check(&mut reader, &config);
        reader.finish().map(|()| config)
    }
}

/// One thing that is wrong, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `limits.window`, or the name of an unknown variable.
    pub key: String,
    pub origin: Origin,
    pub problem: String,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    Variable(String),
    /// Line numbers begin with 1.
    File {
        path: String,
        line: usize,
    },
}

/// Everything that is wrong with a configuration, in the order in which it was found. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// A key may be any text in quotes, and a value is quoted as it is: a terminal or a log shall not obey it.
fn one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { origin, .. } = self;
        // TOML allows a key without a name.
        let key = if self.key.is_empty() { "\"\"".to_owned() } else { one_line(&self.key) };
        let (key, problem) = (&key, one_line(&self.problem));
        match origin {
            Origin::Variable(name) if name != key => write!(f, "{key} ({name}): {problem}"),
            Origin::Default | Origin::Variable(_) => write!(f, "{key}: {problem}"),
            Origin::File { path, line } => write!(f, "{key} ({path}:{line}): {problem}"),
        }
    }
}
