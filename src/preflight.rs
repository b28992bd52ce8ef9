//! `postrider check`: looks at everything that `run` needs, changes nothing, and says what to do about each finding.
//!
//! To add a check: one more finding in `preflight::postgres` or `preflight::rabbitmq`.

mod management;
mod postgres;
mod publication;
mod rabbitmq;
mod surroundings;
mod tables;

use std::fmt;

use serde::Serialize;

use crate::config::Config;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at: `postgres.wal_level`. A closed set, for scripts.
    pub check: &'static str,
    pub what: String,
    /// In this order.
    #[serde(rename = "do", skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It could not be looked at, and why.
    Skipped,
    /// The relay works, and something may go wrong later.
    Warn,
    /// The relay cannot carry events.
    Fail,
}

/// What to do about it. After a statement or a command has been run the finding is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Remedy {
    /// One statement for PostgreSQL, without its semicolon.
    Sql(String),
    /// A command line.
    Shell(String),
    Say(String),
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Skipped => "skipped",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

impl Finding {
    fn new(level: Level, check: &'static str, what: impl Into<String>) -> Self {
        Finding { level, check, what: what.into(), remedies: Vec::new() }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Finding::new(Level::Ok, check, what)
    }

    fn skipped(check: &'static str, what: impl Into<String>) -> Self {
        Finding::new(Level::Skipped, check, what)
    }

    fn warn(check: &'static str, what: impl Into<String>) -> Self {
        Finding::new(Level::Warn, check, what)
    }

    fn fail(check: &'static str, what: impl Into<String>) -> Self {
        Finding::new(Level::Fail, check, what)
    }

    fn sql(mut self, statement: impl Into<String>) -> Self {
        self.remedies.push(Remedy::Sql(statement.into()));
        self
    }

    fn shell(mut self, command: impl Into<String>) -> Self {
        self.remedies.push(Remedy::Shell(command.into()));
        self
    }

    fn say(mut self, text: impl Into<String>) -> Self {
        self.remedies.push(Remedy::Say(text.into()));
        self
    }
}

/// Looks at everything. The two servers are asked at the same time.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("configuration", "valid")];
    let (postgres, rabbitmq) = tokio::join!(postgres::check(config), rabbitmq::check(config));
    findings.extend(postgres);
    findings.extend(rabbitmq);
    findings
}

/// Whether `run` would carry events.
pub fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.level != Level::Fail)
}

/// The report for a person: a line for each finding, below it what to do.
pub struct Report<'f>(pub &'f [Finding]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LEVEL: usize = "skipped".len();
        let check = self.0.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { level, check: name, what, remedies } in self.0 {
            writeln!(f, "{:LEVEL$}  {name:check$}  {what}", level.as_str())?;
            for remedy in remedies {
                let indent = LEVEL + check + 4;
                match remedy {
                    Remedy::Sql(statement) => writeln!(f, "{:indent$}sql> {statement};", "")?,
                    Remedy::Shell(command) => writeln!(f, "{:indent$}$ {command}", "")?,
                    Remedy::Say(text) => writeln!(f, "{:indent$}{text}", "")?,
                }
            }
        }
        let count = |level| self.0.iter().filter(|finding| finding.level == level).count();
        let (fail, warn) = (count(Level::Fail), count(Level::Warn));
        match (fail, warn) {
            (0, 0) => writeln!(f, "ready to run"),
            (0, _) => writeln!(f, "ready to run; warnings: {warn}"),
            _ => writeln!(f, "not ready to run; failures: {fail}, warnings: {warn}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_aligned_and_says_what_to_do() {
        let findings = [
            Finding::ok("configuration", "valid"),
            Finding::fail("postgres.wal_level", "is replica; must be logical")
                .sql("alter system set wal_level = logical")
                .say("then restart PostgreSQL"),
            Finding::warn("rabbitmq.tls", "plaintext"),
            Finding::skipped("rabbitmq.routing", "not checked").shell("postrider check"),
        ];
        insta::assert_snapshot!(Report(&findings).to_string(), @r#"
ok       configuration       valid
fail     postgres.wal_level  is replica; must be logical
                             sql> alter system set wal_level = logical;
                             then restart PostgreSQL
warn     rabbitmq.tls        plaintext
skipped  rabbitmq.routing    not checked
                             $ postrider check
not ready to run; failures: 1, warnings: 1
"#);
        assert!(!passed(&findings) && passed(&findings[2..]));
        let json = serde_json::to_string(&findings[1]).unwrap();
        insta::assert_snapshot!(json, @r#"
{"level":"fail","check":"postgres.wal_level","what":"is replica; must be logical","do":[{"sql":"alter system set wal_level = logical"},{"say":"then restart PostgreSQL"}]}
"#);
    }
}
