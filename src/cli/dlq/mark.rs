//! `postrider dlq redrive` and `discard`: marks, and what will become of them.

use clap::Args;
use tokio_postgres::types::Type;

use super::text::{counted, table};
use super::{Chosen, DlqError, Filter, Parked, letters};
use crate::postgres::sql::Sql;

/// Rows that are shown of what was marked.
const SHOWN: usize = 20;

#[derive(Args, Debug)]
pub struct MarkArgs {
    #[command(flatten)]
    pub filter: Filter,
    /// All of the slot, or of the queue
    #[arg(long)]
    pub all: bool,
    /// Change nothing: only show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

impl MarkArgs {
    /// Before anything is asked of a server.
    pub(super) fn check(&self) -> Result<(), DlqError> {
        match (self.filter.is_empty(), self.all) {
            (true, false) => Err(DlqError::NoFilter),
            (false, true) => Err(DlqError::AllAndFilter),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Verb {
    Redrive,
    Discard,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Verb::Redrive => "redrive",
            Verb::Discard => "discard",
        }
    }

    fn statement(self) -> &'static str {
        match self {
            Verb::Redrive => include_str!("../../../sql/queries/dlq_redrive.sql"),
            Verb::Discard => include_str!("../../../sql/queries/dlq_discard.sql"),
        }
    }

    /// What the relay that carries does with a mark.
    fn future(self) -> &'static str {
        match self {
            Verb::Redrive => {
                "publishes them in a moment, each once those before it of its key are gone; one that is refused again stays and loses its mark"
            }
            Verb::Discard => "takes them out in a moment, for good; later events of their keys go on",
        }
    }
}

pub(super) async fn run(verb: Verb, args: &MarkArgs, slot: &String, sql: &Sql) -> Result<(), DlqError> {
    let mut chosen = Chosen::default();
    let mut parameters = args.filter.parameters(slot, &mut chosen);
    parameters.push((&args.dry_run, Type::BOOL));
    let marked = letters(sql, verb.statement(), &parameters).await?;
    let marked: Vec<Parked> = marked.iter().map(|letter| serde_json::from_str(letter)).collect::<Result<_, _>>()?;

    let missing: Vec<i64> =
        args.filter.ids.iter().copied().filter(|id| !marked.iter().any(|letter| letter.id == *id)).collect();
    if marked.is_empty() {
        if !missing.is_empty() {
            return Err(DlqError::NotFound { slot: slot.clone(), ids: missing });
        }
        crate::cli::print(&format!("slot {slot} has no dead letters that match: nothing is marked\n"))?;
        return Ok(());
    }
    let shown = marked.get(..SHOWN).unwrap_or(&marked);
    let mut text = table(shown);
    if marked.len() > shown.len() {
        text.push_str(&format!("... and {} more\n", marked.len() - shown.len()));
    }
    text.push('\n');
    let how_many = counted(i64::try_from(marked.len()).unwrap_or(i64::MAX));
    if args.dry_run {
        text.push_str(&format!("{how_many} would be marked `{}`; nothing was changed\n", verb.as_str()));
    } else {
        text.push_str(&format!("{how_many} marked `{}`\n", verb.as_str()));
    }
    if !missing.is_empty() {
        text.push_str(&format!("not there, or not matched by the other filters: {}\n", super::list(&missing)));
    }
    text.push_str(&outlook(verb, slot, sql).await?);
    crate::cli::print(&text)?;
    Ok(())
}

/// Whether anybody is there to do it.
async fn outlook(verb: Verb, slot: &str, sql: &Sql) -> Result<String, DlqError> {
    let found =
        sql.client().query_typed_opt(include_str!("../../../sql/queries/dlq_slot.sql"), &[(&slot, Type::TEXT)]).await?;
    let Some(found) = found else {
        return Ok(format!(
            "there is no slot {slot} in this database, so no relay carries it: marks wait until one does\n"
        ));
    };
    let Some(pid) = found.get::<_, Option<i32>>("active_pid") else {
        return Ok(format!("no relay carries slot {slot} now: marks wait until one does (postrider run)\n"));
    };
    let reader = found.get::<_, Option<String>>("reader").unwrap_or_default();
    let reader = if reader.is_empty() { "a relay".to_owned() } else { crate::cli::text::harmless(&reader, &[]) };
    Ok(format!("slot {slot} is carried by {reader} (pid {pid}): it {}\n", verb.future()))
}
