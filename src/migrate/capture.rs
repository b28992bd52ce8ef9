//! The publications of captured tables: made and adjusted each time `migrate` is run, because patterns mean other tables as tables come and go.
//!
//! One statement of `sql/queries` finds out what there is to do. It is asked until it finds nothing more: each step has locked what it is
//! about, so that what it was decided by is so when it is committed.

use tokio_postgres::{Row, Transaction};

use super::{MigrateError, Target};
use crate::config::Snapshot;
use crate::postgres::identity;
use crate::postgres::quote::{fill, quote_literal};

const PLAN: &str = include_str!("../../sql/queries/capture_plan.sql");
const SCRIPT: &str = include_str!("../../sql/capture.sql");
const GRANTED: &str = include_str!("../../sql/queries/capture_granted.sql");
const GRANTS: &str = include_str!("../../sql/capture_grants.sql");
const REMOVE: &str = include_str!("../../sql/queries/drop_captures.sql");
/// A table that changes between two looks takes another one.
const ROUNDS: usize = 5;

/// Makes the publications what `source.tables` asks for. What was done and what a person may do, one line each.
pub(super) async fn apply(transaction: &Transaction<'_>, target: &Target) -> Result<Vec<String>, MigrateError> {
    if !target.source.has_tables() {
        return Ok(Vec::new());
    }
    let plan = plan(target);
    let mut said = Vec::new();
    for _ in 0..ROUNDS {
        let steps = transaction.query(&plan, &[]).await?;
        if let Some(refused) = steps.iter().find_map(refusal) {
            return Err(refused);
        }
        let mut changed = false;
        for step in &steps {
            let Some(statement) = step.get::<_, Option<&str>>("statement") else { continue };
            transaction.batch_execute(statement).await?;
            said.extend(step.get::<_, Option<String>>("said"));
            changed = true;
        }
        if !changed {
            said.extend(steps.iter().filter_map(|step| step.get::<_, Option<String>>("said")));
            return Ok(said);
        }
    }
    Err(MigrateError::Unsettled)
}

fn refusal(step: &Row) -> Option<MigrateError> {
    let problem = step.get::<_, Option<String>>("problem")?;
    Some(MigrateError::Capture { problem, hint: step.get::<_, Option<String>>("hint").unwrap_or_default() })
}

/// The SQL of [`apply`].
pub(super) fn script(target: &Target) -> String {
    if !target.source.has_tables() {
        return String::new();
    }
    format!("\n{}", fill(SCRIPT, &[("plan", plan(target))]))
}

/// The SQL that lets `role` read what it is to make a snapshot of. The stream needs no right on any table.
pub(super) fn grants(target: &Target, role: &str) -> String {
    if !target.source.has_tables() || target.source.snapshot == Snapshot::Never {
        return String::new();
    }
    let tables = identity::statement(GRANTED, &target.source, &target.outbox);
    format!("\n{}", fill(GRANTS, &[("tables", tables), ("role_text", quote_literal(role))]))
}

/// The SQL that drops what [`apply`] has made.
pub(crate) fn removal(target: &Target) -> String {
    fill(REMOVE, &identity::publications(&target.source, &target.publication))
}

fn plan(target: &Target) -> String {
    let plan = fill(PLAN, &[("slot_text", quote_literal(&target.slot))]);
    identity::statement(&plan, &target.source, &target.outbox)
}
