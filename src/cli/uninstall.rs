//! `postrider uninstall`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ConnectError;
use super::text::bytes;
use crate::config::Config;
use crate::uninstall::{self, Publication, Slot, Survey, UninstallError};

/// Counting what is not delivered reads the whole outbox; where that takes longer it is not said.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub struct UninstallArgs {
    /// Do it; without this it only shows what it would do, and exits with 1
    #[arg(long)]
    pub yes: bool,
    /// Also drop the schema postrider with its dead letters, and the outbox table if postrider made it
    #[arg(long)]
    pub drop_data: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UninstallCommandError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Uninstall(#[from] UninstallError),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
}

/// 0 if nothing of the slot is left, 1 if something is.
pub async fn run(args: &UninstallArgs, config: &Config) -> Result<ExitCode, UninstallCommandError> {
    let mut sql = super::connect(config, "postrider uninstall", STATEMENT_TIMEOUT).await?;
    let survey = uninstall::survey(sql.client(), config, &relay_name(config)?).await?;
    super::print(&describe(&survey, config))?;
    if survey.is_done(args.drop_data) {
        super::print("nothing to do\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    survey.check(&config.slot, args.drop_data)?;
    super::print(&plan(&survey, config, args.drop_data))?;
    if !args.yes {
        super::print("nothing was changed: run it again with --yes\n")?;
        return Ok(ExitCode::FAILURE);
    }
    uninstall::remove(sql.client_mut(), config, &survey, args.drop_data).await?;
    super::print("done\n")?;
    Ok(ExitCode::SUCCESS)
}

/// What the sessions of a relay with this configuration call themselves.
fn relay_name(config: &Config) -> Result<String, ConnectError> {
    let target = super::target(config)?;
    Ok(target.application_name(&config.application_name()).to_owned())
}

fn describe(survey: &Survey, config: &Config) -> String {
    let size = |size: Option<i64>| size.map_or_else(|| "an unknown amount".to_owned(), bytes);
    let slot = match &survey.slot {
        Slot::Absent => "does not exist".to_owned(),
        Slot::Ours { active_pid, lag_bytes, retained_bytes } => format!(
            "{}, {} of WAL behind, keeps {}",
            active_pid.map_or_else(|| "nobody reads it".to_owned(), |pid| format!("in use (pid {pid})")),
            size(*lag_bytes),
            size(*retained_bytes),
        ),
        Slot::Unrecorded => "exists, without a record of it in postrider.progress".to_owned(),
        Slot::Foreign { what } => format!("is not Postrider's ({what}): it stays"),
    };
    let dead_letters = match survey.dead_letters {
        None => "none: there is no such table".to_owned(),
        Some((0, 0)) => "none".to_owned(),
        Some((own, all)) if own == all => format!("{own} (postrider dlq list)"),
        Some((own, all)) => format!("{own} (postrider dlq list), and {} of other slots", all - own),
    };
    let outbox = format!("{}.{}", config.outbox.schema, config.outbox.table);
    let undelivered = match survey.undelivered {
        Some(0) => format!("every row of {outbox} is surely delivered or parked"),
        Some(rows) => format!("{rows} rows of {outbox} are not known to be delivered or parked"),
        None => format!("of the rows of {outbox} it could not be said which are delivered"),
    };
    let captures: String = survey
        .captures
        .iter()
        .map(|(name, made)| {
            let what = match (made, survey.other_slots.is_empty()) {
                (true, true) => "made by postrider migrate for captured tables",
                (true, false) => "other relays of this database have a slot: it stays",
                (false, _) => "not made by postrider migrate: it stays",
            };
            format!("publication   {name}: {what}\n")
        })
        .collect();
    format!(
        "slot          {}: {slot}\nundelivered   {undelivered}\ndead letters  {dead_letters}\npublication   {}: {}\n{captures}\n",
        config.slot,
        config.publication,
        publication(&survey.publication),
    )
}

fn publication(publication: &Publication) -> String {
    match publication {
        Publication::Absent => "does not exist".to_owned(),
        Publication::Ours => "made by the migrations".to_owned(),
        Publication::Shared => "other relays of this database have a slot: it stays".to_owned(),
        Publication::Grown { tables } => {
            format!("made by the migrations, and others use it for {}: it stays without ours", tables.join(", "))
        }
        Publication::Foreign { has_ours: true } => "not made by the migrations: it stays without ours".to_owned(),
        Publication::Foreign { has_ours: false } => "not made by the migrations: it stays".to_owned(),
    }
}

fn plan(survey: &Survey, config: &Config, drop_data: bool) -> String {
    let mut steps = Vec::new();
    if let Slot::Ours { .. } = survey.slot {
        steps.push(format!("drop slot {}: what is not delivered by then never will be", config.slot));
    }
    if survey.recorded {
        steps.push(
            "remove its record from postrider.progress: a relay that starts later begins at the present".to_owned(),
        );
    }
    match survey.publication {
        Publication::Ours => steps.push(format!("drop publication {}", config.publication)),
        Publication::Grown { .. } | Publication::Foreign { has_ours: true } => {
            steps.push(format!("take the outbox and the heartbeat out of publication {}", config.publication));
        }
        Publication::Absent | Publication::Shared | Publication::Foreign { has_ours: false } => {}
    }
    steps.extend(survey.dropped_captures().into_iter().map(|name| format!("drop publication {name}")));
    if drop_data && survey.migrated {
        let letters = survey.dead_letters.map_or(0, |(_, all)| all);
        steps.push(format!(
            "drop the schema postrider with {letters} dead letters, and the outbox table with its rows if the migrations made it"
        ));
    } else {
        steps.push("keep the outbox table and the schema postrider (--drop-data)".to_owned());
        if !survey.captured.is_empty() {
            let tables = survey.captured.join(", ");
            steps.push(format!(
                "keep the captures of {tables}: they go on writing into the outbox until select postrider.release(...)"
            ));
        }
    }
    steps.iter().map(|step| format!("* {step}\n")).collect()
}
