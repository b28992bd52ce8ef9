//! `postrider dlq list`.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::value::RawValue;
use tokio_postgres::types::Type;

use super::text::{counted, table};
use super::{Chosen, DlqError, Filter, Parked, letters};
use crate::cli::text::bytes;
use crate::postgres::sql::Sql;

/// Rows, unless told otherwise.
const LISTED: u32 = 50;

#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub filter: Filter,
    /// How many to list at most; the summary counts all [default: 50]
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
    /// With --queue: show the first messages and put them back, at most 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub peek: Option<u32>,
    /// With --peek: show bodies too. They may hold personal data, and stay in a terminal's history and in logs of jobs
    #[arg(long, requires = "peek")]
    pub bodies: bool,
    /// Print the summary and the list as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(serde::Serialize)]
struct Listing<'a> {
    summary: &'a Summary,
    dead_letters: Vec<&'a RawValue>,
}

#[derive(serde::Serialize)]
struct Summary {
    slot: String,
    count: i64,
    keys: i64,
    bytes: i64,
    oldest: Option<String>,
    /// The most frequent first, for people.
    #[serde(skip)]
    reasons: Vec<(String, i64)>,
    by_reason: BTreeMap<String, i64>,
    marked_redrive: i64,
    marked_discard: i64,
    #[serde(skip)]
    elsewhere: Vec<String>,
}

pub(super) async fn run(args: &ListArgs, slot: &String, sql: &Sql) -> Result<(), DlqError> {
    let mut chosen = Chosen::default();
    let mut parameters = args.filter.parameters(slot, &mut chosen);
    let summary =
        sql.client().query_typed_one(include_str!("../../../sql/queries/dlq_summary.sql"), &parameters).await?;
    let (reasons, counts): (Vec<String>, Vec<i64>) = (summary.get("reasons"), summary.get("counts"));
    let summary = Summary {
        slot: slot.clone(),
        count: summary.get("count"),
        keys: summary.get("keys"),
        bytes: summary.get("bytes"),
        oldest: summary.get("oldest"),
        by_reason: reasons.iter().cloned().zip(counts.iter().copied()).collect(),
        reasons: reasons.into_iter().zip(counts).collect(),
        marked_redrive: summary.get("redrive"),
        marked_discard: summary.get("discard"),
        elsewhere: summary.get("elsewhere"),
    };
    let limit = i64::from(args.limit.unwrap_or(LISTED));
    parameters.push((&limit, Type::INT8));
    let listed = letters(sql, include_str!("../../../sql/queries/dlq_list.sql"), &parameters).await?;
    if args.json {
        let raw = listed.iter().map(|letter| serde_json::from_str(letter)).collect::<Result<_, _>>()?;
        let listing = serde_json::to_string_pretty(&Listing { summary: &summary, dead_letters: raw })?;
        crate::cli::print(&(listing + "\n"))?;
        return Ok(());
    }
    let listed: Vec<Parked> = listed.iter().map(|letter| serde_json::from_str(letter)).collect::<Result<_, _>>()?;
    crate::cli::print(&describe(&summary, !args.filter.is_empty(), &listed))?;
    Ok(())
}

fn describe(summary: &Summary, filtered: bool, listed: &[Parked]) -> String {
    let Summary { slot, count, keys, oldest, reasons, marked_redrive, marked_discard, elsewhere, .. } = summary;
    let that = if filtered { " that match" } else { "" };
    if *count == 0 {
        let elsewhere = match elsewhere.as_slice() {
            [] => String::new(),
            slots => format!("; other slots have some: {} (--slot)", slots.join(", ")),
        };
        return format!("slot {slot} has no dead letters{that}{elsewhere}\n");
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let keys = if *keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") };
    let mut text = format!(
        "slot {slot}: {}{that}, of {keys}, {}, oldest {}: {}",
        counted(*count),
        bytes(summary.bytes),
        oldest.as_deref().unwrap_or("-"),
        reasons.join(", "),
    );
    if marked_redrive + marked_discard > 0 {
        text.push_str(&format!("; marked: redrive {marked_redrive}, discard {marked_discard}"));
    }
    text.push_str("\n\n");
    text.push_str(&table(listed));
    let unlisted = count.saturating_sub(i64::try_from(listed.len()).unwrap_or(i64::MAX));
    if unlisted > 0 {
        text.push_str(&format!("... and {unlisted} more (--limit)\n"));
    }
    text
}
