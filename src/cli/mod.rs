//! The command line: one module a command.

pub mod adopt;
pub mod check;
pub mod dlq;
pub mod import_debezium;
mod message;
pub mod migrate;
pub mod repair;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod tail;
mod text;
pub mod uninstall;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use secrecy::ExposeSecret;

use crate::config::Config;
use crate::config::load::{ConfigErrors, Needs, SecretError};
use crate::postgres::sql::Sql;
use crate::postgres::url::{ParseTargetError, Target};

/// EX_USAGE of sysexits.h: the configuration is wrong, and starting again will not help.
pub const EXIT_CONFIGURATION: u8 = 64;

/// Carries committed rows of an outbox table from PostgreSQL to RabbitMQ, confirmed and in order
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Configuration file (TOML); also by POSTRIDER_CONFIG
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "DATABASE_URL and AMQP_URL are enough to run. Every setting has a variable POSTRIDER_*; \
postrider.example.toml and docs/configuration.md list them.\n\
Exit codes: 0 done, 1 failed, 2 wrong command line, 64 wrong configuration.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry events until SIGTERM or SIGINT; a second signal ends it at once
    Run,
    Migrate(migrate::MigrateArgs),
    /// Look at everything that run needs, and say what to do about what is missing
    Check(check::CheckArgs),
    /// Ask a running relay how it is
    Status(status::StatusArgs),
    /// Show events as they pass, on a temporary queue
    Tail(tail::TailArgs),
    /// Look after the dead letters: the events that could not be delivered, or, with --queue, a dead-letter queue of consumers
    Dlq(Box<dlq::DlqArgs>),
    /// Get over a halt: accept what is in doubt, with a reason that is kept
    Adopt(adopt::AdoptArgs),
    /// Make a configuration from that of Debezium Server, and take over its slot
    ImportDebezium(import_debezium::ImportDebeziumArgs),
    /// Read the rows that a captured table has, and publish them between its changes
    Snapshot(snapshot::SnapshotArgs),
    /// Send again the rows of the outbox that are not surely delivered
    Repair(repair::RepairArgs),
    /// Drop the slot, then the publication: shows first what is undelivered
    Uninstall(uninstall::UninstallArgs),
}

impl Command {
    /// Which URLs the command cannot do without.
    pub fn needs(&self) -> Needs {
        match self {
            Command::Run | Command::Check(_) => Needs::BothServers,
            Command::Dlq(args) if args.queue.is_some() => Needs::Broker,
            Command::Snapshot(_) => Needs::Database,
            Command::Dlq(_) | Command::Adopt(_) | Command::Repair(_) | Command::Uninstall(_) => Needs::Database,
            Command::ImportDebezium(args) if args.adopt => Needs::Database,
            Command::Migrate(args) if !(args.print || args.print_roles) => Needs::Database,
            Command::Tail(args) if args.amqp_url.is_none() => Needs::Broker,
            Command::Migrate(_) | Command::Status(_) | Command::Tail(_) | Command::ImportDebezium(_) => Needs::Nothing,
        }
    }
}

impl Cli {
    /// The configuration of the command, from the file and these variables.
    pub fn load(&self, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
        Config::load_for(self.command.needs(), self.config.as_deref(), env)
    }
}

/// The database of the configuration cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("database_url: {0}")]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Target(#[from] ParseTargetError),
    #[error(transparent)]
    Connect(#[from] crate::postgres::error::ConnectError),
}

/// A session for a command. `statement_timeout` zero: none.
async fn connect(config: &Config, application_name: &str, statement_timeout: Duration) -> Result<Sql, ConnectError> {
    Ok(Sql::connect(&target(config)?, application_name, statement_timeout).await?)
}

fn target(config: &Config) -> Result<Target, ConnectError> {
    let url = config.database_url.read()?;
    Ok(Target::parse(url.expose_secret(), config.require_tls)?)
}

/// Writes to standard output. A reader that has gone away (`| head`) is no failure.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints an error for a person, and gives the exit code of a failure.
pub fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("postrider: {}", described(error));
    ExitCode::FAILURE
}

/// The error and its causes, each said once: many messages have their cause's words in them already.
pub fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// Applies the migrations, takes them back, or prints them.
pub async fn migrate(args: &migrate::MigrateArgs, config: &Config) -> Result<ExitCode, Box<dyn Error>> {
    let text = match args.script(config) {
        Some(script) => script,
        None => {
            // The migrations have time-outs of their own; building what they build may take long.
            let mut sql = connect(config, "postrider migrate", Duration::ZERO).await?;
            migrate::run(args, config, sql.client_mut()).await?
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_file_may_stand_on_either_side_of_the_command() {
        for line in ["postrider --config a.toml run", "postrider run --config a.toml"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.config, Some(PathBuf::from("a.toml")));
        }
    }

    #[test]
    fn the_dead_letters_of_consumers_need_no_database() {
        for line in ["postrider dlq --queue q list", "postrider dlq list --queue q"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.command.needs(), Needs::Broker, "{line}");
        }
        let cli = Cli::try_parse_from(["postrider", "dlq", "list"]).unwrap();
        assert_eq!(cli.command.needs(), Needs::Database);
    }

    #[test]
    fn status_needs_no_url() {
        let cli = Cli::try_parse_from(["postrider", "status"]).unwrap();
        assert!(cli.load([]).is_ok());
        let cli = Cli::try_parse_from(["postrider", "run"]).unwrap();
        assert_eq!(cli.load([]).unwrap_err().0.len(), 2);
    }
}
