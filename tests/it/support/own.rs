//! Servers that a test may break, started by `scripts/servers` with whichever engine there is.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use url::Url;

use super::servers::Servers;
use super::unique;

/// One server of the test's own. Removed when dropped.
pub(crate) struct Own {
    name: String,
    values: HashMap<String, String>,
}

impl Own {
    /// `options` are those of `scripts/servers start postgres`.
    pub(crate) fn postgres(options: &[&str]) -> Self {
        Self::start("postgres", options)
    }

    /// `options` are those of `scripts/servers start rabbitmq`.
    pub(crate) fn rabbitmq(options: &[&str]) -> Self {
        Self::start("rabbitmq", options)
    }

    /// `options` are those of `scripts/servers start prometheus`.
    pub(crate) fn prometheus(options: &[&str]) -> Self {
        Self::start("prometheus", options)
    }

    /// A copy of `primary` that streams from it. Its slot there: [`Own::standby_slot`].
    pub(crate) fn standby_of(primary: &Own, options: &[&str]) -> Self {
        Self::start("postgres", &[&["--standby-of", &primary.name], options].concat())
    }

    /// Of a standby, on its primary.
    pub(crate) fn standby_slot(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Three nodes of one RabbitMQ; the first one is to be dropped last.
    pub(crate) fn cluster() -> Vec<Self> {
        let name = Self::unused("rabbitmq");
        let mut nodes = vec![Self::start_as("rabbitmq", name.clone(), &["--cluster", &name])];
        nodes.extend((1..3).map(|_| Self::start("rabbitmq", &["--cluster", &name])));
        nodes.reverse();
        nodes
    }

    /// A name that `scripts/test` knows to remove.
    fn unused(kind: &str) -> String {
        let prefix = prefix().unwrap_or_else(|| "it".to_owned());
        unique(&format!("{prefix}-{kind}")).replace('_', "-")
    }

    fn start(kind: &str, options: &[&str]) -> Self {
        Self::start_as(kind, Self::unused(kind), options)
    }

    fn start_as(kind: &str, name: String, options: &[&str]) -> Self {
        let mut arguments = vec!["start", kind, &name];
        arguments.extend(options);
        let output = script(&arguments);
        let values = output
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Own { name, values }
    }

    /// For several tests: it is removed when this process ends.
    pub(crate) fn keep_until_exit(self) -> &'static Self {
        if prefix().is_none() {
            super::at_exit(&[&path().display().to_string(), "remove", &self.name]);
        }
        Box::leak(Box::new(self))
    }

    /// Publishers are blocked: the broker is told that it has hardly any memory.
    pub(crate) fn block(&self) {
        self.command("ctl", &["set_vm_memory_high_watermark", "0.0000001"]);
    }

    pub(crate) fn unblock(&self) {
        self.command("ctl", &["set_vm_memory_high_watermark", "0.6"]);
    }

    /// One of the lines that `scripts/servers start` prints.
    pub(crate) fn value(&self, key: &str) -> String {
        self.values.get(key).unwrap_or_else(|| panic!("scripts/servers did not print {key}")).clone()
    }

    /// One of them that is a URL.
    pub(crate) fn url(&self, key: &str) -> Url {
        self.value(key).parse().unwrap()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `stop fast`, `start-again`, `pause`, `unpause`, `ctl ...`: the server's name is put in second place.
    pub(crate) fn command(&self, verb: &str, arguments: &[&str]) -> String {
        let mut all = vec![verb, self.name.as_str()];
        all.extend(arguments);
        script(&all)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = Command::new(path()).args(["logs", &self.name]).output();
            let text = log.map(|log| String::from_utf8_lossy(&log.stdout).into_owned()).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(20).collect();
            eprintln!("last lines of {}:", self.name);
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
        Command::new(path()).args(["remove", &self.name]).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
}

/// A pair of the test's own.
pub(crate) fn pair(postgres: &Own, rabbitmq: &Own) -> Servers {
    Servers {
        database_url: postgres.url("DATABASE_URL"),
        amqp_url: rabbitmq.url("AMQP_URL"),
        management_url: rabbitmq.url("MANAGEMENT_URL"),
    }
}

/// A port of 127.0.0.1 that nobody listens on, outside the range of outgoing connections.
pub(crate) fn free_port() -> u16 {
    script(&["free-port"]).trim().parse().unwrap()
}

/// `scripts/test` removes at its end every server whose name begins so.
fn prefix() -> Option<String> {
    std::env::var("POSTRIDER_TEST_PREFIX").ok()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/servers")
}

fn script(arguments: &[&str]) -> String {
    let output = Command::new(path()).args(arguments).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/servers {}: {}\n{error}", arguments.join(" "), output.status);
    String::from_utf8(output.stdout).unwrap()
}
