//! `postrider repair`: send again what is not surely delivered.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ConnectError;
use crate::config::Config;
use crate::postgres::repair::{self, Order, RepairError, Survey};

/// Rows between two lines of progress.
const TOLD_EVERY: usize = 10_000;

#[derive(Args, Debug)]
pub struct RepairArgs {
    /// Change nothing: only count
    #[arg(long)]
    pub dry_run: bool,
    /// Also rows from before the slot's first life in this cluster: of them nothing is known
    #[arg(long)]
    pub earlier: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RepairCommandError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

pub async fn run(args: &RepairArgs, config: &Config) -> Result<ExitCode, RepairCommandError> {
    // It reads the whole outbox.
    let mut sql = super::connect(config, "postrider repair", Duration::ZERO).await?;
    let survey = repair::survey(sql.client_mut(), config).await?;
    super::print(&describe(&survey, config))?;
    if args.dry_run {
        super::print("nothing was changed\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut told = 0;
    let sent = repair::repair(sql.client_mut(), config, &survey, args.earlier, |sent| {
        if sent / TOLD_EVERY > told {
            told = sent / TOLD_EVERY;
            eprintln!("{sent} rows");
        }
    })
    .await?;
    super::print(&format!(
        "{sent} rows sent again, with their ids and the header x-postrider-redelivered; the relay publishes them. It may be run again: it \
         sends no row twice that is on its way\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(survey: &Survey, config: &Config) -> String {
    let Survey { halt, in_doubt, under_way, earlier, order, .. } = survey;
    let table = format!("{}.{}", config.outbox.schema, config.outbox.table);
    let mut text = String::new();
    if let Some(halt) = halt {
        text.push_str(&format!("halted      {halt}: `postrider adopt` comes before a repair\n"));
    }
    text.push_str(&format!("in doubt    {in_doubt} rows of {table} are not surely delivered\n"));
    if *under_way > 0 {
        text.push_str(&format!("under way   {under_way} more come through the slot by themselves\n"));
    }
    if *earlier > 0 {
        text.push_str(&format!(
            "earlier     {earlier} more are from before the slot's first life in this cluster: of them nothing is known (--earlier sends them too)\n"
        ));
    }
    let order = match order {
        Order::Commit => "in the order of their commits (track_commit_timestamp)",
        Order::Transaction => {
            "by transaction number, then by `sequence`: of transactions of one key that ran at the same time the order may differ from that of their commits"
        }
        Order::Occurrence => {
            "by occurred_at: the table has no xid column, so every row that it still has is in doubt, and the order is no better than those clocks"
        }
    };
    text.push_str(&format!("order       {order}; all of them after what has been delivered already\n\n"));
    text
}
