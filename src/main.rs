//! The `postrider` program.

use std::process::ExitCode;

use clap::Parser;
use postrider::cli::{
    self, Cli, Command, adopt, check, dlq, import_debezium, repair, run, snapshot, status, tail, uninstall,
};
use postrider::config::Config;
use postrider::logging;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // `vars` panics on a variable that is not UTF-8, whosever it is.
    let env = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    let config = match cli.load(env) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(cli::EXIT_CONFIGURATION);
        }
    };
    // What the relay prints is logged; what the other commands print is for the one who typed them.
    let log = if matches!(cli.command, Command::Run) { config.log.as_str() } else { "off" };
    if let Err(error) = logging::start(config.log_format, log) {
        return cli::failed(&error);
    }
    // One thread: the session has another one, of its own. Work that moves between threads costs a third more.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(command(cli.command, config));
            // Does not wait for a name that is being resolved.
            runtime.shutdown_background();
            code
        }
        Err(error) => cli::failed(&error),
    }
}

async fn command(command: Command, config: Config) -> ExitCode {
    let result: Result<ExitCode, Box<dyn std::error::Error>> = match command {
        Command::Run => Box::pin(run::run(config)).await.map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::Migrate(args) => cli::migrate(&args, &config).await,
        Command::Check(args) => check::run(&args, &config).await.map_err(Into::into),
        Command::Snapshot(args) => snapshot::run(&args, &config).await.map_err(Into::into),
        Command::Dlq(args) => dlq::run(&args, &config).await.map_err(Into::into),
        Command::Adopt(args) => adopt::run(&args, &config).await.map_err(Into::into),
        Command::ImportDebezium(args) => Box::pin(import_debezium::run(&args, &config)).await.map_err(Into::into),
        Command::Repair(args) => repair::run(&args, &config).await.map_err(Into::into),
        Command::Uninstall(args) => uninstall::run(&args, &config).await.map_err(Into::into),
        Command::Status(args) => status::run(&args, &config).await.map_err(Into::into),
        Command::Tail(args) => Box::pin(tail::run(&args, config)).await.map_err(Into::into),
    };
    result.unwrap_or_else(|error| cli::failed(error.as_ref()))
}
