//! `postrider import-debezium`: a configuration from that of Debezium Server, and its slot.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio_postgres::Client;

use super::ConnectError;
use crate::config::Config;
use crate::import_debezium::{self, Imported, Note};
use crate::postgres::adoption::{self, AdoptError, Way};
use crate::postgres::debezium::{self, NotYours};
use crate::postgres::halt::Cause;

/// Make a configuration from that of Debezium Server, or take over its slot
#[derive(Args, Clone, Debug)]
pub struct ImportDebeziumArgs {
    /// Debezium Server's application.properties
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write the configuration to this file, which must not exist, and say what to do next; without it: to standard output
    #[arg(long, value_name = "FILE", conflicts_with = "adopt")]
    pub output: Option<PathBuf>,
    /// Go on although there are properties that are not understood
    #[arg(long)]
    pub ignore_unknown: bool,
    /// Take over Debezium's slot, with the configuration that was made (--config): the last step before `postrider run`
    #[arg(long)]
    pub adopt: bool,
    /// With --adopt: change nothing, only say whether it could be done now
    #[arg(long, requires = "adopt")]
    pub dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportDebeziumError {
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} exists already, and is not overwritten", .0.display())]
    Exists(PathBuf),
    #[error("cannot write {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("the slot cannot be taken over: {0}")]
    NotAdoptable(String),
    #[error(
        "the configuration is for slot {ours}, and Debezium's is {theirs}: give the file that was made, by --config"
    )]
    OtherSlot { ours: String, theirs: String },
    #[error("slot {0} is carried already: there is nothing to take over")]
    Carried(String),
    #[error("slot {slot} cannot be taken over: {halt}")]
    Doubt { slot: String, halt: String },
    #[error(transparent)]
    NotYours(#[from] NotYours),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Adopt(#[from] AdoptError),
}

pub async fn run(args: &ImportDebeziumArgs, config: &Config) -> Result<ExitCode, ImportDebeziumError> {
    let path = args.file.display().to_string();
    let read = |source| ImportDebeziumError::Read { path: args.file.clone(), source };
    let text = std::fs::read(&args.file).map_err(read)?;
    // Java reads a file of UTF-8 as one of Latin 1 in some versions: what is sent is ASCII nearly always.
    let imported = import_debezium::import(&path, &String::from_utf8_lossy(&text));
    if !usable(&path, &imported, args.ignore_unknown) {
        return Ok(ExitCode::FAILURE);
    }
    if args.adopt {
        return adopt(args, config, &imported).await;
    }
    for note in &imported.warnings {
        eprintln!("{}", located(&path, "different", note));
    }
    match &args.output {
        None => super::print(&imported.toml)?,
        Some(output) => {
            write_new(output, &imported.toml)?;
            super::print(&steps(&path, &output.display().to_string(), &imported))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what stands in the way, each with its line.
fn usable(path: &str, imported: &Imported, ignore_unknown: bool) -> bool {
    for note in &imported.refused {
        eprintln!("{}", located(path, "refused", note));
    }
    let unknown = if ignore_unknown { &[] } else { imported.unknown.as_slice() };
    for note in unknown {
        eprintln!("{}", located(path, "not understood", note));
    }
    if !unknown.is_empty() {
        eprintln!("postrider: if no message depends on what is not understood, --ignore-unknown leaves it out");
    }
    if !imported.refused.is_empty() {
        eprintln!("postrider: what is refused would change what consumers are sent; nothing was written");
    }
    imported.refused.is_empty() && unknown.is_empty()
}

/// As compilers say it, so that an editor finds the line.
fn located(path: &str, what: &str, note: &Note) -> String {
    let line = note.line.map(|line| format!("{line}:")).unwrap_or_default();
    // What is not understood has no more to say.
    let text = if note.text == what { String::new() } else { format!(": {}", note.text) };
    super::text::harmless(&format!("{path}:{line} {what}: {}{text}", note.property), &[])
}

fn write_new(path: &Path, text: &str) -> Result<(), ImportDebeziumError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ImportDebeziumError::Exists(path.to_owned()),
        _ => ImportDebeziumError::Write { path: path.to_owned(), source },
    };
    let mut file: File = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

fn steps(file: &str, output: &str, imported: &Imported) -> String {
    let Imported { slot, publication, not_adoptable, .. } = imported;
    let first = format!(
        "{output} is written. Look through it, set DATABASE_URL and AMQP_URL, and then, while Debezium runs:\n\
         \x20 postrider migrate --config {output}\n\
         \x20 postrider check --config {output}\n"
    );
    if let Some(why) = not_adoptable.first() {
        return format!("{first}\nDebezium's slot cannot be taken over. {why}\n");
    }
    format!(
        "{first}\
         \x20 postrider import-debezium {file} --config {output} --adopt --dry-run\n\
         until it says nothing but that Debezium still reads slot {slot}. Stop Debezium, and then:\n\
         \x20 postrider import-debezium {file} --config {output} --adopt\n\
         \x20 postrider run --config {output}\n\
         When events arrive, Debezium's publication is of no use any more: drop publication {publication};\n"
    )
}

async fn adopt(
    args: &ImportDebeziumArgs,
    config: &Config,
    imported: &Imported,
) -> Result<ExitCode, ImportDebeziumError> {
    if let Some(why) = imported.not_adoptable.first() {
        return Err(ImportDebeziumError::NotAdoptable(why.clone()));
    }
    if config.slot != imported.slot {
        return Err(ImportDebeziumError::OtherSlot { ours: config.slot.clone(), theirs: imported.slot.clone() });
    }
    let mut session = super::connect(config, "postrider import-debezium", Duration::ZERO).await?;
    let sql = session.client_mut();
    refuse_our_own(sql, config).await?;
    debezium::examine(sql, config).await?;
    // Nobody can start to read it from here on who takes the lock, which Debezium does not: it is looked at once more.
    let plan = adoption::plan(sql, config).await?;
    let ready = debezium::examine(sql, config).await?;
    let unknown = matches!(plan.halt.cause, Cause::UnknownSlot) || plan.halt.reason() == "unknown_slot";
    if !unknown || !matches!(plan.way, Way::Keep { .. }) {
        return Err(ImportDebeziumError::Doubt { slot: config.slot.clone(), halt: plan.halt.to_string() });
    }
    let slot = &config.slot;
    if args.dry_run {
        super::print(&format!(
            "slot {slot} can be taken over: it goes on behind {}; nothing was changed\n",
            ready.confirmed
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let reason = format!("postrider import-debezium: slot {slot} was Debezium's");
    adoption::adopt(sql, config, &plan, &reason).await?;
    super::print(&format!(
        "slot {slot} is Postrider's, and goes on behind {}: what Debezium has confirmed is not sent again\n\n\
         Never start Debezium on it again. Next: `postrider run`; then drop publication {}\n",
        ready.confirmed, imported.publication
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A slot that Postrider has carried has a record, whatever else stands in the way.
async fn refuse_our_own(sql: &Client, config: &Config) -> Result<(), ImportDebeziumError> {
    if crate::migrate::version(sql).await.map_err(NotYours::from)? < crate::migrate::LATEST {
        return Err(NotYours::NotMigrated(config.publication.clone()).into());
    }
    let record = crate::postgres::state::load(sql, &config.slot).await.map_err(AdoptError::from)?;
    if record.is_some() { Err(ImportDebeziumError::Carried(config.slot.clone())) } else { Ok(()) }
}
