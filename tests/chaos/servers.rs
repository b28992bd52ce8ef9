//! Servers of the run's own, by `scripts/servers`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Outcome};

/// One server. Removed when dropped; `scripts/chaos` removes what is left if this process can't.
pub(crate) struct Server {
    pub name: String,
    values: HashMap<String, String>,
}

impl Server {
    pub(crate) async fn start(kind: &str, name: &str, options: &[&str]) -> Outcome<Self> {
        let prefix = std::env::var("POSTRIDER_TEST_PREFIX").unwrap_or_else(|_| format!("chaos-{}", std::process::id()));
        let name = format!("{prefix}-{name}");
        let mut arguments = vec!["start", kind, name.as_str()];
        arguments.extend(options);
        let output = script(&arguments).await?;
        let values = output.lines().filter_map(|line| line.split_once('='));
        let values = values.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(Server { name, values })
    }

    /// One of the lines that `scripts/servers start` prints.
    pub(crate) fn value(&self, key: &str) -> Outcome<&str> {
        let value = self.values.get(key).map(String::as_str);
        value.ok_or_else(|| format!("scripts/servers did not print {key}").into())
    }

    /// `stop kill`, `start-again`, `pause`, `ctl ...`: the server's name is put in second place.
    pub(crate) async fn command(&self, verb: &str, arguments: &[&str]) -> Outcome<String> {
        let mut all = vec![verb, self.name.as_str()];
        all.extend(arguments);
        script(&all).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        Command::new(path()).args(["remove", &self.name]).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
}

/// A port of 127.0.0.1 that nobody listens on.
pub(crate) async fn free_port() -> Outcome<u16> {
    Ok(script(&["free-port"]).await?.trim().parse()?)
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers")
}

async fn script(arguments: &[&str]) -> Outcome<String> {
    let what = arguments.join(" ");
    let mut command = Command::new(path());
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::from(format!("scripts/servers {what}: {}\n{error}", output.status)))
}
