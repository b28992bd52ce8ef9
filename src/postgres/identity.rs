//! Whether captured tables can be written at all, and are captured as they are meant: the replica identity of every table and partition in
//! the publications of `[source]`.
//!
//! A publication of updates and deletes makes those of a table fail that has no replica identity, or one that the publication does not
//! cover; later DDL can do that to any table. What is looked for, and the statement that mends it, is in `capture_troubles.sql`.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Row};

use crate::config::{Config, Outbox, Source};
use crate::postgres::quote::{fill, quote_literal};
use crate::status::Status;

/// Between two looks of a relay that carries.
const PERIOD: Duration = Duration::from_secs(60);

/// What all statements about captured tables begin with.
const CAPTURED: &str = include_str!("../../sql/queries/captured.sql");

/// Something about a captured table that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// The application's writes fail, or nothing is carried; otherwise something is not carried as it is meant.
    pub fails: bool,
    /// `no_identity`, `filter`, `list`, `full_list` and `generated` make writes fail.
    pub cause: String,
    /// The table or partition, or the publication.
    pub subject: String,
    pub what: String,
    /// What mends it, in this order. Empty: `postrider migrate` does, or a person has to think.
    pub statements: Vec<String>,
}

impl Trouble {
    /// Another run of `postrider migrate` sets it right.
    pub fn is_for_migrate(&self) -> bool {
        matches!(self.cause.as_str(), "migrate" | "missing")
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for statement in &self.statements {
            write!(f, "; run `{statement}`")?;
        }
        if self.is_for_migrate() {
            f.write_str("; run `postrider migrate`")?;
        }
        Ok(())
    }
}

/// Everything that is to be said of the captured tables, the worst first. It reads the catalogue alone. It takes no lock on a table but that of
/// a reader for a moment, on one with a row filter, and only where a list of columns is in the same publication: `pg_get_expr` does.
pub async fn troubles(sql: &Client, config: &Config) -> Result<Vec<Trouble>, tokio_postgres::Error> {
    if !config.source.has_tables() {
        return Ok(Vec::new());
    }
    let statement = statement(include_str!("../../sql/queries/capture_troubles.sql"), &config.source, &config.outbox);
    let rows = sql.query(&statement, &[]).await?;
    Ok(rows.iter().map(trouble).collect())
}

/// What a carrying relay knows of it: looked at once a minute, and said when it changes.
#[derive(Debug)]
pub struct Watch {
    /// When the next look is due; `None`: nothing is captured.
    due: Option<Instant>,
    said: BTreeSet<Trouble>,
}

impl Watch {
    pub fn new(config: &Config) -> Watch {
        Watch { due: config.source.has_tables().then(Instant::now), said: BTreeSet::new() }
    }

    /// True once a minute.
    pub fn is_due(&mut self) -> bool {
        let due = self.due.is_some_and(|due| due <= Instant::now());
        if due {
            self.due = Some(Instant::now() + PERIOD);
        }
        due
    }

    pub fn told(&mut self, troubles: Vec<Trouble>, status: &Status) {
        let found: BTreeSet<Trouble> = troubles.into_iter().collect();
        for trouble in found.difference(&self.said) {
            match trouble.fails {
                true => tracing::error!(table = trouble.subject, "{trouble}"),
                false => tracing::warn!(table = trouble.subject, "{trouble}"),
            }
        }
        for trouble in self.said.difference(&found) {
            tracing::info!(table = trouble.subject, "no longer: {}", trouble.what);
        }
        status.update(|status| status.table_troubles = found.iter().map(Trouble::to_string).collect());
        self.said = found;
    }
}

fn trouble(row: &Row) -> Trouble {
    Trouble {
        fails: row.get::<_, &str>("level") == "fail",
        cause: row.get("cause"),
        subject: row.get("subject"),
        what: row.get("what"),
        statements: row.get("statements"),
    }
}

/// A statement whose first part is `captured.sql`, for the tables of `source`.
pub fn statement(rest: &str, source: &Source, outbox: &Outbox) -> String {
    let mut values = publications(source, "");
    let patterns: Vec<String> = source.tables.iter().map(|pattern| quote_literal(pattern)).collect();
    values.push(("patterns", format!("array[{}]::pg_catalog.text[]", patterns.join(", "))));
    values.push(("outbox_schema_text", quote_literal(&outbox.schema)));
    values.push(("outbox_table_text", quote_literal(&outbox.table)));
    fill(&format!("{CAPTURED}{rest}"), &values)
}

/// Without tables the configuration has no names: those of `publication` that it would have.
pub fn names(source: &Source, publication: &str) -> [String; 2] {
    let or_usual = |name: &str, suffix: &str| match name {
        "" => format!("{publication}_{suffix}"),
        name => name.to_owned(),
    };
    [or_usual(&source.publication, "tables"), or_usual(&source.publication_inserts, "inserts")]
}

/// The placeholders of both names.
pub fn publications(source: &Source, publication: &str) -> Vec<(&'static str, String)> {
    let [all_changes, inserts] = names(source, publication);
    vec![
        ("tables_publication_text", quote_literal(&all_changes)),
        ("inserts_publication_text", quote_literal(&inserts)),
    ]
}
