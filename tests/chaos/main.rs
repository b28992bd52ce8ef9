//! `make chaos`: writers, faults, and an account of every event, kept by other means than the relay's own.
//!
//! A run starts its own PostgreSQL and RabbitMQ (`scripts/servers`) and the relay as a child process. Faults come one or two
//! at a time, chosen by the seed; each is followed by a wait until everything has been delivered. At the end nothing may be
//! lost, invented, or out of the order of commits (docs/faults.md tells what is injected, docs/testing.md how to read the result).

#[cfg(test)]
mod broker;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod checks;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod consumer;
#[cfg(test)]
mod database;
#[cfg(test)]
mod evidence;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod halts;
#[cfg(test)]
mod http;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod run;
#[cfg(test)]
mod samplers;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod workload;

use std::process::ExitCode;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(cli::run()));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("chaos: the harness could not run: {error}");
            ExitCode::from(2)
        }
    }
}
