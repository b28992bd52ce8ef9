//! The captured tables: whether the application can write them, and whether they are captured as they are meant.

use tokio_postgres::Client;

use super::Finding;
use crate::config::Config;
use crate::postgres::identity;
use crate::postgres::sql::SqlError;

const CHECK: &str = "postgres.tables";

/// A finding for each trouble, with the statements that mend it; nothing where nothing is captured.
pub(super) async fn check(config: &Config, client: &Client, findings: &mut Vec<Finding>) -> Result<(), SqlError> {
    if !config.source.has_tables() {
        return Ok(());
    }
    let troubles = identity::troubles(client, config).await?;
    if troubles.is_empty() {
        let (all, inserts) = (&config.source.publication, &config.source.publication_inserts);
        findings.push(Finding::ok(CHECK, format!("{all} and {inserts} let every write of the captured tables pass")));
    }
    for trouble in troubles {
        let for_migrate = trouble.is_for_migrate();
        let finding = if trouble.fails { Finding::fail } else { Finding::warn };
        let nothing_helps = trouble.statements.is_empty() && !for_migrate;
        let finding = trouble.statements.into_iter().fold(finding(CHECK, trouble.what), Finding::sql);
        findings.push(if for_migrate {
            finding.shell("postrider migrate")
        } else if nothing_helps {
            finding.say("add a primary key, or take the table out of source.tables and run postrider migrate")
        } else {
            finding
        });
    }
    Ok(())
}
