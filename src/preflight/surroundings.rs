//! What is around the database and concerns the slot: standbys, Patroni, a pooler, a provider's own roles.

use tokio_postgres::Client;

use super::Finding;
use crate::config::Config;
use crate::postgres::error::ConnectError;
use crate::postgres::quote::{quote_ident, quote_literal};
use crate::postgres::replication::ReplicationConnection;
use crate::postgres::sql::SqlError;
use crate::postgres::url::Target;

/// From here on slots can be kept by the standbys too.
const FAILOVER_SLOTS: i32 = 170_000;
/// What PgBouncer says of `replication=database`, which it passes on from 1.23 only.
const REFUSED_BY_A_POOLER: &str = "unsupported startup parameter";

/// The connection over which the WAL comes.
pub(super) async fn replication(
    config: &Config,
    target: &Target,
    client: &Client,
    findings: &mut Vec<Finding>,
) -> Result<(), SqlError> {
    const CHECK: &str = "postgres.replication";
    let mut connection = match ReplicationConnection::connect(target, &config.application_name()).await {
        Ok(connection) => connection,
        Err(error) => {
            let finding = Finding::fail(CHECK, error.to_string());
            findings.push(match &error {
                ConnectError::NoReplicationRight { .. } => right_to_replicate(finding, target, client).await?,
                _ if error.to_string().contains(REFUSED_BY_A_POOLER) => finding.say(PAST_THE_POOLER),
                _ => finding,
            });
            return Ok(());
        }
    };
    findings.push(Finding::ok(CHECK, "a replication connection was opened"));
    // A pooler invents the process id that a client cancels by; a server tells its own.
    let announced = connection.process_id().to_string();
    let asked = connection.query("select pg_catalog.pg_backend_pid()", super::postgres::STATEMENT_TIMEOUT).await;
    let own = asked.ok().and_then(|rows| rows.into_iter().next()?.into_iter().next()?);
    if own.is_some_and(|own| own != announced) {
        findings.push(
            Finding::fail(
                "postgres.pooler",
                "DATABASE_URL leads to a pooler (PgBouncer or the like), not to PostgreSQL",
            )
            .say(PAST_THE_POOLER),
        );
    }
    Ok(())
}

const PAST_THE_POOLER: &str = "give the address of PostgreSQL itself in DATABASE_URL: behind a pooler the lock that keeps two relays apart, and the settings of the session, belong to whoever comes next";

/// Providers give no superuser: the right comes by a role of theirs, or may be given by their administrator.
async fn right_to_replicate(finding: Finding, target: &Target, client: &Client) -> Result<Finding, SqlError> {
    let row = client.query_one(include_str!("../../sql/queries/check_provider.sql"), &[]).await?;
    let role = quote_ident(&target.user);
    let provider: Option<String> = row.try_get("provider")?;
    Ok(match provider.as_deref() {
        Some("rds_replication") => finding.sql(format!("grant rds_replication to {role}")),
        Some(administrator) => {
            finding.sql(format!("alter role {role} with replication")).say(format!("as a member of {administrator}"))
        }
        None => finding.sql(format!("alter role {role} with replication")),
    })
}

/// What becomes of the slot when the primary changes.
pub(super) async fn failover(config: &Config, client: &Client, findings: &mut Vec<Finding>) -> Result<(), SqlError> {
    let slot = &config.slot;
    let row = client.query_one(include_str!("../../sql/queries/check_surroundings.sql"), &[slot]).await?;
    if row.try_get("patroni")? {
        let database: String = row.try_get("database")?;
        findings.push(
            Finding::warn(
                "postgres.patroni",
                "Patroni manages this server, and removes slots that its configuration does not name",
            )
            .say("unless it is there already, add this with `patronictl edit-config`:")
            .say("slots:")
            .say(format!("  {slot}:"))
            .say("    type: logical")
            .say(format!("    database: {database}"))
            .say("    plugin: pgoutput"),
        );
    }
    let standbys: i64 = row.try_get("standbys")?;
    if standbys == 0 {
        return Ok(());
    }
    const CHECK: &str = "postgres.failover";
    let kept: Option<bool> = row.try_get("failover")?;
    let wait_for: String = row.try_get("synchronized_standby_slots")?;
    let many = format!("{standbys} standby{}", if standbys == 1 { "" } else { "s" });
    findings.push(if row.try_get::<_, i32>("version")? < FAILOVER_SLOTS {
        Finding::warn(CHECK, format!("{many}, and before PostgreSQL 17 none of them has the slot: after a promotion the relay halts"))
            .say("PostgreSQL 17 keeps slots on standbys; Patroni does it for earlier ones")
    } else if kept == Some(false) {
        let alter = quote_literal(&format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote_ident(slot)));
        Finding::warn(CHECK, format!("{many}, and slot {slot} is not kept by them (failover is false): after a promotion the relay halts"))
            .shell(format!("psql \"$DATABASE_URL replication=database\" -c {alter}"))
            .say("while no relay runs; DATABASE_URL in the form of keywords (host=... dbname=...)")
    } else if wait_for.trim().is_empty() {
        Finding::warn(
            CHECK,
            format!("{many}, and synchronized_standby_slots is empty: an event may be published whose commit a promotion undoes"),
        )
        .say("name the standbys' physical slots there, and set sync_replication_slots and hot_standby_feedback on the standbys")
    } else {
        Finding::ok(CHECK, format!("{many}; the slot is kept by those that synchronize slots, {wait_for} are waited for"))
    });
    Ok(())
}
