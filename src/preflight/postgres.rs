//! What `run` needs of PostgreSQL.

use std::time::Duration;

use secrecy::ExposeSecret;
use tokio_postgres::{Client, Row};

use super::{Finding, publication, surroundings, tables};
use crate::config::Config;
use crate::migrate;
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::state::{self, Phase};
use crate::postgres::url::Target;

pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let target = config
        .database_url
        .read()
        .map_err(|error| format!("database_url: {error}"))
        .and_then(|url| Target::parse(url.expose_secret(), config.require_tls).map_err(|error| error.to_string()));
    let target = match target {
        Ok(target) => target,
        Err(error) => return vec![Finding::fail("postgres.connection", error)],
    };
    findings.extend(target.tls_warnings().into_iter().map(|warning| Finding::warn("postgres.tls", warning)));
    let sql = match Sql::connect(&target, &config.application_name(), STATEMENT_TIMEOUT).await {
        Ok(sql) => sql,
        Err(error) => {
            findings.push(Finding::fail("postgres.connection", error.to_string()));
            findings.push(Finding::skipped("postgres", "nothing else was checked: no connection"));
            return findings;
        }
    };
    findings.push(Finding::ok("postgres.connection", target.describe()));
    if let Err(error) = ask(config, &target, sql.client(), &mut findings).await {
        findings.push(Finding::fail("postgres", format!("a check could not be done: {error}")));
    }
    findings
}

async fn ask(config: &Config, target: &Target, client: &Client, findings: &mut Vec<Finding>) -> Result<(), SqlError> {
    let server = client.query_one(include_str!("../../sql/queries/check_server.sql"), &[]).await?;
    let slot = client.query_opt(include_str!("../../sql/queries/check_slot.sql"), &[&config.slot]).await?;
    settings(target, &config.application_name(), &server, slot.is_some(), findings)?;
    surroundings::replication(config, target, client, findings).await?;
    surroundings::failover(config, client, findings).await?;
    let migrated = migrations(config, client, findings).await?;
    findings.push(outbox(config, client).await?);
    findings.push(publication::check(config, client, migrated).await?);
    tables::check(config, client, findings).await?;
    if migrated {
        let role: String = server.try_get("role")?;
        publication::privileges(config, client, &role, findings).await?;
        if config.source.emit {
            findings.push(emit(client).await?);
        }
    }
    findings.push(slot_state(config, client, slot.as_ref(), migrated).await?);
    Ok(())
}

/// What the server is set to.
fn settings(
    target: &Target,
    ours: &str,
    server: &Row,
    slot_exists: bool,
    findings: &mut Vec<Finding>,
) -> Result<(), SqlError> {
    let version: String = server.try_get("version")?;
    findings.push(if server.try_get("in_recovery")? {
        Finding::fail("postgres.server", format!("PostgreSQL {version}, and a standby: the relay writes its state"))
            .say("give the address of the primary in DATABASE_URL")
    } else {
        Finding::ok("postgres.server", format!("PostgreSQL {version}"))
    });

    let wal_level: String = server.try_get("wal_level")?;
    findings.push(if wal_level == "logical" {
        Finding::ok("postgres.wal_level", "logical")
    } else {
        Finding::fail("postgres.wal_level", format!("is {wal_level}, must be logical"))
            .sql("alter system set wal_level = logical")
            .say("then restart PostgreSQL; on a managed service set it in the server's parameters instead")
    });

    let (allowed, used): (i64, i64) = (server.try_get("slots_allowed")?, server.try_get("slots_used")?);
    findings.push(if slot_exists || used < allowed {
        Finding::ok("postgres.slots", format!("{used} of {allowed} replication slots are used"))
    } else {
        let idle: Option<String> = server.try_get("slots_idle")?;
        let idle = idle.map_or_else(|| "none is idle".to_owned(), |names| format!("idle: {names}"));
        Finding::fail("postgres.slots", format!("all {allowed} replication slots are used ({idle})"))
            .sql(format!("alter system set max_replication_slots = {}", allowed + 10))
            .say("then restart PostgreSQL; or drop a slot that nobody needs")
    });

    let (allowed, used): (i64, i64) = (server.try_get("senders_allowed")?, server.try_get("senders_used")?);
    findings.push(if used < allowed {
        Finding::ok("postgres.walsenders", format!("{used} of {allowed} walsenders are used"))
    } else {
        Finding::fail("postgres.walsenders", format!("all {allowed} walsenders are used"))
            .sql(format!("alter system set max_wal_senders = {}", allowed + 10))
            .say("then restart PostgreSQL")
    });

    let name = target.application_name(ours);
    let standbys: String = server.try_get("synchronous_standby_names")?;
    findings.push(if waits_for(&standbys, name) {
        Finding::fail(
            "postgres.synchronous",
            format!("synchronous_standby_names ({standbys}) names `{name}`: every commit would wait for the relay"),
        )
        .say("name the standbys there, without * and without this name; or set application_name in DATABASE_URL")
    } else {
        Finding::ok("postgres.synchronous", "no commit waits for the relay")
    });

    let keep: String = server.try_get("max_slot_wal_keep_size")?;
    findings.push(if keep == "-1" {
        Finding::warn(
            "postgres.wal_keep",
            "max_slot_wal_keep_size is unlimited: while the relay is away, WAL may fill the disk",
        )
        .sql("alter system set max_slot_wal_keep_size = '50GB'")
        .sql("select pg_reload_conf()")
        .say("with what the disk can spare instead of 50GB; beyond it the slot is lost and events with it: alert on postrider_slot_safe_wal_bytes")
    } else {
        Finding::ok("postgres.wal_keep", format!("max_slot_wal_keep_size is {keep}"))
    });
    if server.try_get::<_, String>("wal_sender_timeout")? == "0" {
        findings.push(
            Finding::warn(
                "postgres.sender_timeout",
                "wal_sender_timeout is 0: PostgreSQL never gives up a connection that has gone silent. The relay asks for 60 s for its own",
            )
            .sql("alter system set wal_sender_timeout = '60s'")
            .sql("select pg_reload_conf()"),
        );
    }
    let timeout: String = server.try_get("idle_slot_timeout")?;
    if timeout != "0" {
        findings.push(
            Finding::warn(
                "postgres.idle_slot",
                format!("idle_replication_slot_timeout is {timeout}: PostgreSQL gives the slot up while the relay is away for that long"),
            )
            .sql("alter system set idle_replication_slot_timeout = 0")
            .sql("select pg_reload_conf()"),
        );
    }
    let encoding: String = server.try_get("encoding")?;
    if encoding != "UTF8" {
        findings.push(Finding::warn(
            "postgres.encoding",
            format!("the database is in {encoding}: texts are converted to UTF-8, and what cannot be is poison"),
        ));
    }
    Ok(())
}

/// Whether `synchronous_standby_names` may choose a standby of that name: `a, b`, `2 (a, b)`, `first 1 (a)`, `any 1 (*)`.
/// Names are compared without regard to case (manual, "synchronous_standby_names").
fn waits_for(standbys: &str, name: &str) -> bool {
    let list = standbys.split_once('(').map_or(standbys, |(_, list)| list.trim_end().trim_end_matches(')'));
    list.split(',')
        .map(|entry| entry.trim().trim_matches('"'))
        .any(|entry| entry == "*" || entry.eq_ignore_ascii_case(name))
}

/// Whether the schema `postrider` is there, as this program needs it.
async fn migrations(config: &Config, client: &Client, findings: &mut Vec<Finding>) -> Result<bool, SqlError> {
    const CHECK: &str = "postgres.migrations";
    let version = match migrate::version(client).await.map_err(SqlError::from) {
        Ok(version) => version,
        // The grant is named by the check of the privileges.
        Err(error) if error.sqlstate() == Some("42501") => {
            findings.push(Finding::skipped(CHECK, "the version cannot be read: a grant is missing"));
            return Ok(true);
        }
        Err(error) => return Err(error),
    };
    let latest = migrate::LATEST;
    findings.push(if version == latest {
        let made_for =
            client.query_opt(include_str!("../../sql/queries/settings.sql"), &[]).await.map_err(SqlError::from);
        match made_for {
            Ok(Some(row)) => made_for_us(config, &row)?,
            _ => Finding::ok(CHECK, format!("at version {version}")),
        }
    } else if version > latest {
        Finding::fail(CHECK, format!("at version {version}, and this program knows {latest}"))
            .say("run the newer postrider")
    } else {
        let state = if version == 0 { "none applied".to_owned() } else { format!("at version {version} of {latest}") };
        Finding::fail(CHECK, state)
            .shell("postrider migrate")
            .say("as the owner of the database; --print shows the SQL, --print-roles the grants for the relay")
    });
    Ok(version > 0)
}

fn made_for_us(config: &Config, row: &Row) -> Result<Finding, SqlError> {
    let named: [(&str, String, &str); 3] = [
        ("schema of outbox.table", row.try_get("outbox_schema")?, &config.outbox.schema),
        ("outbox.table", row.try_get("outbox_table")?, &config.outbox.table),
        ("publication", row.try_get("publication")?, &config.publication),
    ];
    Ok(match named.iter().find(|(_, database, configured)| database != configured) {
        None => Finding::ok("postgres.migrations", format!("at version {}", migrate::LATEST)),
        Some((setting, database, configured)) => Finding::fail(
            "postgres.migrations",
            format!("made for {setting} = {database:?}, and the configuration says {configured:?}"),
        )
        .say("change the configuration, or take the migrations back with the old one (postrider migrate --down) and apply them again"),
    })
}

async fn outbox(config: &Config, client: &Client) -> Result<Finding, SqlError> {
    const CHECK: &str = "postgres.outbox";
    let outbox = &config.outbox;
    let name = format!("{}.{}", outbox.schema, outbox.table);
    let found =
        client.query_opt(include_str!("../../sql/queries/check_outbox.sql"), &[&outbox.schema, &outbox.table]).await?;
    let Some(found) = found else {
        return Ok(Finding::fail(CHECK, format!("there is no table {name}"))
            .say("postrider migrate makes it; or name the table that you have in outbox.table"));
    };
    if !found.try_get::<_, bool>("is_table")? || !found.try_get::<_, bool>("is_logged")? {
        return Ok(Finding::fail(CHECK, format!("{name} is not an ordinary, logged table: it does not reach the WAL"))
            .say("name the right one in outbox.table, or make it logged (alter table ... set logged)"));
    }
    let columns: Vec<String> = found.try_get("columns")?;
    let required = [
        ("id", &outbox.columns.id),
        ("aggregatetype", &outbox.columns.aggregatetype),
        ("aggregateid", &outbox.columns.aggregateid),
        ("type", &outbox.columns.kind),
        ("payload", &outbox.columns.payload),
    ];
    let missing: Vec<String> = required
        .iter()
        .filter(|(_, column)| !columns.contains(column))
        .map(|(key, column)| format!("{column} (outbox.columns.{key})"))
        .collect();
    Ok(if missing.is_empty() {
        Finding::ok(CHECK, format!("{name} has the columns that it needs"))
    } else {
        Finding::fail(CHECK, format!("{name} has no column {}", missing.join(", ")))
            .say("name the columns that it has in [outbox.columns]")
    })
}

/// Who may write events without a table.
async fn emit(client: &Client) -> Result<Finding, SqlError> {
    const CHECK: &str = "postgres.emit";
    let missing = migrate::missing_emit_rights(client).await?;
    if missing.is_empty() {
        return Ok(Finding::ok(CHECK, "events are emitted by those alone who were granted it"));
    }
    let what = "source.emit is on, and whoever can connect to this database can emit events";
    Ok(missing.into_iter().fold(Finding::warn(CHECK, what), Finding::sql))
}

async fn slot_state(config: &Config, client: &Client, slot: Option<&Row>, migrated: bool) -> Result<Finding, SqlError> {
    const CHECK: &str = "postgres.slot";
    let name = &config.slot;
    let Some(slot) = slot else {
        // Without the right to read it there is no record to go by; the check of the privileges says so.
        let record = if migrated { state::load(client, name).await.ok().flatten() } else { None };
        return Ok(match record.filter(|record| record.phase == Phase::Ready) {
            None => Finding::ok(CHECK, format!("{name} does not exist yet: it is made at the first start")),
            Some(record) => {
                let since = record.acknowledged.map_or_else(|| "then".to_owned(), |lsn| lsn.to_string());
                Finding::fail(CHECK, format!("{name} was there and is gone: rows committed after {since} are not delivered"))
                    .say("restore it if it was dropped by mistake on a standby that was promoted; the relay never skips them by itself")
            }
        });
    };
    let plugin: String = slot.try_get("plugin")?;
    let database: Option<String> = slot.try_get("database")?;
    let wal_status: Option<String> = slot.try_get("wal_status")?;
    let other = "choose another name by the setting slot";
    Ok(if plugin != "pgoutput" || slot.try_get("temporary")? {
        Finding::fail(CHECK, format!("{name} belongs to something else (plugin {plugin})")).say(other)
    } else if slot.try_get::<_, Option<bool>>("ours")? != Some(true) {
        let database = database.unwrap_or_default();
        Finding::fail(CHECK, format!("{name} belongs to the database {database}")).say(other)
    } else if wal_status.as_deref() == Some("lost") {
        let confirmed: Option<String> = slot.try_get("confirmed")?;
        let since = confirmed.unwrap_or_else(|| "its last position".to_owned());
        Finding::fail(CHECK, format!("{name} is lost: PostgreSQL has removed WAL after {since} that was not delivered"))
            .say("the relay never skips it by itself")
    } else if slot.try_get::<_, Option<bool>>("endangered")? == Some(true) {
        let left: Option<String> = slot.try_get("safe_wal")?;
        let left = left.unwrap_or_else(|| "nothing".to_owned());
        Finding::warn(CHECK, format!("{name} will be lost after {left} more of WAL (max_slot_wal_keep_size): what was not delivered by then is gone"))
            .say("let the relay catch up (its status says what it waits for), or raise max_slot_wal_keep_size")
    } else if let Some(pid) = slot.try_get::<_, Option<i32>>("active_pid")? {
        let reader: Option<String> = slot.try_get("reader")?;
        Finding::ok(
            CHECK,
            format!("{name} is in use by {} (pid {pid})", reader.unwrap_or_else(|| "a session".to_owned())),
        )
    } else {
        let status = wal_status.unwrap_or_else(|| "unknown".to_owned());
        Finding::ok(CHECK, format!("{name} exists, nobody uses it, its WAL is {status}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_wait_for_a_name_in_any_form_of_the_list() {
        for list in [
            "*",
            "postrider",
            "a, Postrider",
            "1 (postrider)",
            "FIRST 2 (a, \"postrider\")",
            "any 1 (*)",
            "2(a,postrider )",
        ] {
            assert!(waits_for(list, "postrider"), "{list}");
        }
        for list in ["", "a", "first 1 (a, b)", "postrider2", "any 2 (\"post rider\")"] {
            assert!(!waits_for(list, "postrider"), "{list}");
        }
    }
}
