//! `postrider adopt`: get over a halt.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ConnectError;
use crate::config::Config;
use crate::postgres::adoption::{self, AdoptError, Plan, Way};

#[derive(Args, Debug)]
pub struct AdoptArgs {
    /// Why what is in doubt is accepted; kept in postrider.adoptions
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub reason: Option<String>,
    /// Change nothing: only show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AdoptCommandError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

pub async fn run(args: &AdoptArgs, config: &Config) -> Result<ExitCode, AdoptCommandError> {
    // Beginning a life and reading what is left in a slot take as long as they take.
    let mut sql = super::connect(config, "postrider adopt", Duration::ZERO).await?;
    let plan = adoption::plan(sql.client_mut(), config).await?;
    super::print(&describe(&plan, &config.slot))?;
    let Some(reason) = args.reason.as_deref().filter(|_| !args.dry_run) else {
        super::print("nothing was changed\n")?;
        return Ok(ExitCode::SUCCESS);
    };
    adoption::adopt(sql.client_mut(), config, &plan, reason).await?;
    super::print(&format!(
        "adopted; the reason is kept in postrider.adoptions\n\n\
         The relay goes on within half a minute, without a restart{}. See `postrider status`.\n\
         Then `postrider repair --dry-run` counts the rows in doubt, and `postrider repair` sends them again.\n",
        if plan.halt.reason() == "source_rewound" || plan.halt.reason() == "timeline_diverged" {
            ", and what it has sent from the lost time stays sent"
        } else {
            ""
        },
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(plan: &Plan, slot: &str) -> String {
    let Plan { halt, way, source_epoch, .. } = plan;
    let way = match way {
        Way::Keep { confirmed } => format!("slot {slot} is kept, and goes on from {confirmed}"),
        Way::Anew { exists: true } => {
            format!("slot {slot} is dropped, and the relay makes a new one, which starts at the present")
        }
        Way::Anew { exists: false } => format!("the relay makes slot {slot} anew, which starts at the present"),
    };
    format!(
        "halted     {}\nin doubt   what was committed after {} and up to {}\nadopting   {way}\nepoch      positions begin with {source_epoch:08x} from now on\n\n",
        halt.reason(),
        halt.from,
        halt.to,
    )
}
