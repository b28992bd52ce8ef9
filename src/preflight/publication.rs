//! The publication, and what the relay's role may do. Each finding prints the statements that mend it.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::Finding;
use crate::config::Config;
use crate::postgres::quote::quote_ident;
use crate::postgres::sql::SqlError;

/// `migrated`: the tables are there, so that a statement can name them.
pub(super) async fn check(config: &Config, client: &Client, migrated: bool) -> Result<Finding, SqlError> {
    const CHECK: &str = "postgres.publication";
    const HEARTBEAT: &str = "postrider.heartbeat";
    let name = &config.publication;
    let publication = quote_ident(name);
    let outbox = format!("{}.{}", quote_ident(&config.outbox.schema), quote_ident(&config.outbox.table));
    let found = client
        .query_opt(
            include_str!("../../sql/queries/check_publication.sql"),
            &[name, &config.outbox.schema, &config.outbox.table],
        )
        .await?;
    let Some(found) = found else {
        let finding = Finding::fail(CHECK, format!("there is no publication {name}"));
        return Ok(if migrated {
            finding.sql(format!(
                "create publication {publication} for table {outbox}, {HEARTBEAT} \
                 with (publish = 'insert', publish_via_partition_root = true)"
            ))
        } else {
            finding.say("postrider migrate makes it")
        });
    };
    let flag = |column: &str| found.try_get::<_, bool>(column);
    let mut wrong = Vec::new();
    let mut statements = Vec::new();
    if !flag("inserts_only")? || !flag("via_root")? {
        let more = if flag("inserts")? {
            "does not publish inserts alone, by partition root"
        } else {
            "does not publish inserts"
        };
        wrong.push(more.to_owned());
        statements.push(format!(
            "alter publication {publication} set (publish = 'insert', publish_via_partition_root = true)"
        ));
    }
    if flag("is_partial")? {
        wrong.push(format!("leaves out rows or columns of {outbox}"));
        statements.push(format!("alter publication {publication} drop table {outbox}"));
        statements.push(format!("alter publication {publication} add table {outbox}"));
    } else if !flag("has_outbox")? {
        wrong.push(format!("does not have {outbox}"));
        statements.push(format!("alter publication {publication} add table {outbox}"));
    }
    if !flag("has_heartbeat")? {
        wrong.push(format!("does not have {HEARTBEAT}"));
        statements.push(format!("alter publication {publication} add table {HEARTBEAT}"));
    }
    let mut other_name = false;
    if flag("has_dead_letters")? {
        wrong.push("publishes the dead letters, which would come back through the slot".to_owned());
        let members: Vec<String> = found.try_get("dead_letters")?;
        other_name = members.is_empty();
        statements
            .extend(members.into_iter().map(|table| format!("alter publication {publication} drop table {table}")));
    }
    if wrong.is_empty() {
        return Ok(Finding::ok(CHECK, format!("{name} publishes inserts into {outbox} and heartbeats")));
    }
    let finding = Finding::fail(CHECK, format!("{name} {}", wrong.join(", and ")));
    let finding = statements.into_iter().fold(finding, Finding::sql);
    Ok(if other_name {
        finding.say("it is for all tables, or for all of the schema postrider: use another one (setting publication)")
    } else {
        finding
    })
}

/// Missing grants: of those the relay needs, and of those it can do without.
pub(super) async fn privileges(
    config: &Config,
    client: &Client,
    role: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), SqlError> {
    const CHECK: &str = "postgres.privileges";
    let rows = client
        .query(include_str!("../../sql/queries/check_privileges.sql"), &[&config.outbox.schema, &config.outbox.table])
        .await?;
    let (mut needed, mut useful) = (Missing::default(), Missing::default());
    for row in &rows {
        if row.try_get("held")? {
            continue;
        }
        let missing = if row.try_get("optional")? { &mut useful } else { &mut needed };
        missing.0.entry(row.try_get("target")?).or_default().push(row.try_get("privilege")?);
    }
    if needed.0.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{role} may use the schema postrider")));
    } else {
        findings.push(needed.grants(Finding::fail(CHECK, format!("{role} may not {}", needed.list())), role));
    }
    if !useful.0.is_empty() {
        let what = format!(
            "{role} may not {}: how many rows were there before the slot cannot be said, and old rows with a transaction \
             number of another cluster may be taken for delivered",
            useful.list()
        );
        findings.push(useful.grants(Finding::warn(CHECK, what), role));
    }
    Ok(())
}

/// Privileges by what they are on.
#[derive(Default)]
struct Missing(BTreeMap<String, Vec<String>>);

impl Missing {
    fn list(&self) -> String {
        let texts: Vec<_> =
            self.0.iter().map(|(target, privileges)| format!("{} {target}", privileges.join(", "))).collect();
        texts.join(", ")
    }

    fn grants(&self, finding: Finding, role: &str) -> Finding {
        let role = quote_ident(role);
        self.0.iter().fold(finding, |finding, (target, privileges)| {
            finding.sql(format!("grant {} on {target} to {role}", privileges.join(", ")))
        })
    }
}
