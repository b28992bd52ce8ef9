//! The migrations of `sql/`: applied, taken back, or printed for people who run their own.
//!
//! What is printed is what is applied, statement by statement: every check and every decision is in the SQL.

pub(crate) mod capture;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use crate::config::{Config, Outbox, Source};
use crate::postgres::identity;
use crate::postgres::quote::{fill, outbox_values, quote_ident, quote_literal};

/// One pair of files in `sql/`.
struct Migration {
    version: i32,
    name: &'static str,
    up: &'static str,
    down: &'static str,
}

/// All of them, in order.
const MIGRATIONS: [Migration; 9] = [
    Migration {
        version: 1,
        name: "bookkeeping",
        up: include_str!("../sql/0001_bookkeeping.up.sql"),
        down: include_str!("../sql/0001_bookkeeping.down.sql"),
    },
    Migration {
        version: 2,
        name: "outbox",
        up: include_str!("../sql/0002_outbox.up.sql"),
        down: include_str!("../sql/0002_outbox.down.sql"),
    },
    Migration {
        version: 3,
        name: "state",
        up: include_str!("../sql/0003_state.up.sql"),
        down: include_str!("../sql/0003_state.down.sql"),
    },
    Migration {
        version: 4,
        name: "publication",
        up: include_str!("../sql/0004_publication.up.sql"),
        down: include_str!("../sql/0004_publication.down.sql"),
    },
    Migration {
        version: 5,
        name: "outbox_status",
        up: include_str!("../sql/0005_outbox_status.up.sql"),
        down: include_str!("../sql/0005_outbox_status.down.sql"),
    },
    Migration {
        version: 6,
        name: "dead_letters",
        up: include_str!("../sql/0006_dead_letters.up.sql"),
        down: include_str!("../sql/0006_dead_letters.down.sql"),
    },
    Migration {
        version: 7,
        name: "continuity",
        up: include_str!("../sql/0007_continuity.up.sql"),
        down: include_str!("../sql/0007_continuity.down.sql"),
    },
    Migration {
        version: 8,
        name: "capture",
        up: include_str!("../sql/0008_capture.up.sql"),
        down: include_str!("../sql/0008_capture.down.sql"),
    },
    Migration {
        version: 9,
        name: "snapshots",
        up: include_str!("../sql/0009_snapshots.up.sql"),
        down: include_str!("../sql/0009_snapshots.down.sql"),
    },
];

/// The version that this program works with.
pub const LATEST: i32 = 9;

const SETTLE: &str = include_str!("../sql/settle.sql");
const ROLES: &str = include_str!("../sql/roles.sql");
const EMIT_RIGHTS: &str = include_str!("../sql/emit_rights.sql");

/// What a database is migrated for: the part of the configuration that its objects are named after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub outbox: Outbox,
    pub publication: String,
    /// The tables that are captured.
    pub source: Source,
    /// The slot that keeps `--down` from going on while it exists.
    pub slot: String,
}

impl From<&Config> for Target {
    fn from(config: &Config) -> Self {
        Target {
            outbox: config.outbox.clone(),
            publication: config.publication.clone(),
            source: config.source.clone(),
            slot: config.slot.clone(),
        }
    }
}

impl Target {
    /// The names of the publications of captured tables, whether anything is captured or not.
    pub fn captures(&self) -> Vec<String> {
        identity::names(&self.source, &self.publication).to_vec()
    }

    fn values(&self, drop_data: bool) -> Vec<(&'static str, String)> {
        let mut values = outbox_values(&self.outbox);
        values.push(("publication", quote_ident(&self.publication)));
        values.push(("publication_text", quote_literal(&self.publication)));
        values.push(("slot_text", quote_literal(&self.slot)));
        values.push(("drop_data", drop_data.to_string()));
        values
    }
}

/// What was done, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied { from: i32, to: i32 },
    Removed { from: i32 },
    NothingToDo { version: i32 },
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Applied { from, to } => write!(f, "migrated from version {from} to version {to}"),
            Outcome::Removed { from } => write!(f, "migrations {from} to 1 taken back"),
            Outcome::NothingToDo { version: 0 } => f.write_str("nothing to do: this database has no migrations"),
            Outcome::NothingToDo { version } => write!(f, "nothing to do: this database is at version {version}"),
        }
    }
}

/// Why nothing was changed. There is no other outcome of a failure: all migrations are one transaction.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// PostgreSQL or a check in the migrations refused.
    #[error("{message}. {hint}")]
    Refused { message: String, hint: String, source: tokio_postgres::Error },
    #[error("the connection failed during the migration; run it again")]
    Connection(#[source] tokio_postgres::Error),
    #[error("the database is at version {database} and this program knows {LATEST}: run the newer postrider")]
    Newer { database: i32 },
    #[error(
        "the database was migrated for {setting} = {database:?} and the configuration says {configured:?}: \
         change the configuration, or take the migrations back with the old one (postrider migrate --down) and apply them again"
    )]
    OtherTarget { setting: &'static str, database: String, configured: String },
    #[error("{problem}. {hint}")]
    Capture { problem: String, hint: String },
    #[error("the captured tables change faster than they can be published: run it again")]
    Unsettled,
}

impl From<tokio_postgres::Error> for MigrateError {
    fn from(source: tokio_postgres::Error) -> Self {
        let Some(refusal) = source.as_db_error() else {
            return MigrateError::Connection(source);
        };
        let general = match *refusal.code() {
            SqlState::INSUFFICIENT_PRIVILEGE => {
                "Run it as a role that has CREATE on the database and on the outbox's schema, and owns the outbox table and the \
                 publication if they exist"
            }
            SqlState::LOCK_NOT_AVAILABLE => {
                "Another migration is running, or another session holds a lock on the outbox table (see pg_locks); run it again"
            }
            SqlState::DUPLICATE_SCHEMA => {
                "A schema of that name is left from something else: rename it, or drop it if nothing needs it"
            }
            _ => "Nothing was changed",
        };
        let message = refusal.message().to_owned();
        let hint = refusal.hint().unwrap_or(general).trim_end_matches('.').to_owned();
        MigrateError::Refused { message, hint, source }
    }
}

/// Brings the database to [`LATEST`], and the publications of captured tables to what the configuration says. Safe when two start at once
/// and when run again.
pub async fn up(client: &mut Client, target: &Target) -> Result<Outcome, MigrateError> {
    Ok(up_saying(client, target).await?.0)
}

/// The same, and what is to be said of the captured tables.
pub async fn up_saying(client: &mut Client, target: &Target) -> Result<(Outcome, Vec<String>), MigrateError> {
    let transaction = begin(client).await?;
    let outcome = async {
        let outcome = apply(&transaction, target).await?;
        Ok((outcome, capture::apply(&transaction, target).await?))
    };
    let outcome = outcome.await;
    finish(transaction, outcome).await
}

async fn apply(transaction: &Transaction<'_>, target: &Target) -> Result<Outcome, MigrateError> {
    let from = applied_version(transaction).await?;
    if from > 0 {
        check_target(transaction, target).await?;
    }
    if from == LATEST {
        return Ok(Outcome::NothingToDo { version: from });
    }
    let values = target.values(false);
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > from) {
        transaction.batch_execute(&render_up(migration, &values)).await?;
    }
    Ok(Outcome::Applied { from, to: LATEST })
}

/// Takes every migration back. Refuses while a slot of Postrider exists, and, unless `drop_data`, to drop an outbox table that
/// has rows or dead letters.
pub async fn down(client: &mut Client, target: &Target, drop_data: bool) -> Result<Outcome, MigrateError> {
    let transaction = begin(client).await?;
    let outcome = take_back(&transaction, target, drop_data).await;
    finish(transaction, outcome).await
}

async fn take_back(transaction: &Transaction<'_>, target: &Target, drop_data: bool) -> Result<Outcome, MigrateError> {
    let from = applied_version(transaction).await?;
    if from == 0 {
        return Ok(Outcome::NothingToDo { version: 0 });
    }
    let values = target.values(drop_data);
    transaction.batch_execute(&capture::removal(target)).await?;
    for migration in MIGRATIONS.iter().rev().filter(|migration| migration.version <= from) {
        transaction.batch_execute(&fill(migration.down, &values)).await?;
    }
    Ok(Outcome::Removed { from })
}

/// The version of a database: 0 without migrations.
pub async fn version(client: &Client) -> Result<i32, tokio_postgres::Error> {
    let migrated: bool = client.query_one(include_str!("../sql/queries/is_migrated.sql"), &[]).await?.get(0);
    if !migrated {
        return Ok(0);
    }
    Ok(client.query_one(include_str!("../sql/queries/migrated_version.sql"), &[]).await?.get(0))
}

/// The SQL of [`up`] on an empty database, for psql or any other runner.
pub fn up_script(target: &Target) -> String {
    let values = target.values(false);
    let body: String = MIGRATIONS.iter().map(|migration| render_up(migration, &values)).collect();
    script("apply the migrations", &format!("{body}{}", capture::script(target)))
}

/// The SQL of [`down`].
pub fn down_script(target: &Target, drop_data: bool) -> String {
    let values = target.values(drop_data);
    let body: String =
        MIGRATIONS.iter().rev().map(|migration| format!("\n{}", fill(migration.down, &values))).collect();
    script("take the migrations back", &format!("\n{}{body}", capture::removal(target)))
}

/// The SQL that makes the relay's role and grants it what it needs. It can be run again.
pub fn roles_script(target: &Target, role: &str) -> String {
    let mut values = target.values(false);
    values.push(("role", quote_ident(role)));
    values.push(("role_text", quote_literal(role)));
    format!("{}{}", fill(ROLES, &values), capture::grants(target, role))
}

/// The SQL that takes from PUBLIC the right to emit events: for an administrator, and for a relay that has `source.emit`.
pub fn emit_rights_script() -> &'static str {
    EMIT_RIGHTS
}

/// Statements of [`emit_rights_script`] that this server still lacks, without semicolons.
pub async fn missing_emit_rights(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let forms = client.query(include_str!("../sql/queries/emit_rights.sql"), &[]).await?;
    let (mut revokes, mut keeps) = (Vec::new(), Vec::new());
    for form in forms {
        revokes.push(form.try_get("revoke")?);
        keeps.push(form.try_get("keep")?);
    }
    // The owner first: it must not lose the right meanwhile.
    keeps.append(&mut revokes);
    Ok(keeps)
}

async fn begin(client: &mut Client) -> Result<Transaction<'_>, MigrateError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false).start().await?;
    transaction.batch_execute(SETTLE).await?;
    Ok(transaction)
}

/// Ends the transaction before the outcome is told, so that its locks are gone by then.
async fn finish<T>(transaction: Transaction<'_>, outcome: Result<T, MigrateError>) -> Result<T, MigrateError> {
    match &outcome {
        Ok(_) => transaction.commit().await?,
        // What failed first is what to tell. A rollback that fails too means that the connection is gone, and the locks.
        Err(_) => drop(transaction.rollback().await),
    }
    outcome
}

async fn applied_version(transaction: &Transaction<'_>) -> Result<i32, MigrateError> {
    let version = version(transaction.client()).await?;
    if version > LATEST {
        return Err(MigrateError::Newer { database: version });
    }
    Ok(version)
}

/// The objects of a database carry the names that it was migrated for.
async fn check_target(transaction: &Transaction<'_>, target: &Target) -> Result<(), MigrateError> {
    let row = transaction.query_one(include_str!("../sql/queries/settings.sql"), &[]).await?;
    let settings = [
        ("outbox.schema", row.get::<_, String>("outbox_schema"), &target.outbox.schema),
        ("outbox.table", row.get("outbox_table"), &target.outbox.table),
        ("publication", row.get("publication"), &target.publication),
    ];
    for (setting, database, configured) in settings {
        if database != *configured {
            return Err(MigrateError::OtherTarget { setting, database, configured: configured.clone() });
        }
    }
    Ok(())
}

fn render_up(migration: &Migration, values: &[(&str, String)]) -> String {
    let Migration { version, name, up, .. } = migration;
    format!(
        "\n{}\ninsert into postrider.migrations (version, name) values ({version}, {});\n",
        fill(up, values),
        quote_literal(name)
    )
}

fn script(purpose: &str, body: &str) -> String {
    let program = env!("CARGO_PKG_VERSION");
    format!(
        "-- Postrider {program}: {purpose}. One transaction: all of it or nothing.\n\n\
         begin isolation level read committed read write;\n\n{SETTLE}{body}\ncommit;\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Columns, Snapshot};

    fn target() -> Target {
        Target {
            outbox: Outbox { schema: "public".into(), table: "outbox".into(), columns: Columns::default() },
            publication: "postrider".into(),
            source: Source { tables: vec!["public.*".into()], snapshot: Snapshot::Initial, ..Source::default() },
            slot: "postrider".into(),
        }
    }

    #[test]
    fn versions_ascend() {
        let versions: Vec<i32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert!(versions.is_sorted_by(|one, other| one < other), "{versions:?}");
        assert_eq!((versions.first(), versions.last()), (Some(&1), Some(&LATEST)));
    }

    #[test]
    fn every_placeholder_has_a_value() {
        for script in [up_script(&target()), down_script(&target(), false), roles_script(&target(), "postrider")] {
            assert!(!script.contains("{{"), "{script}");
        }
    }

    #[test]
    fn every_file_says_its_purpose_and_its_lock() {
        for Migration { name, up, down, .. } in MIGRATIONS {
            assert!(up.starts_with("-- ") && up.contains("-- Lock: "), "{name} up");
            assert!(down.starts_with("-- ") && down.contains("-- Lock: "), "{name} down");
        }
    }
}
