//! `postrider check`.

use std::process::ExitCode;

use clap::Args;

use crate::config::Config;
use crate::preflight::{self, Report};

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
    #[error("cannot print: {0}")]
    Json(#[from] serde_json::Error),
}

/// 0 if nothing fails; warnings do not count.
pub async fn run(args: &CheckArgs, config: &Config) -> Result<ExitCode, CheckError> {
    let findings = preflight::check(config).await;
    let text = if args.json { serde_json::to_string_pretty(&findings)? + "\n" } else { Report(&findings).to_string() };
    super::print(&text)?;
    Ok(if preflight::passed(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
