//! `postrider migrate`.

use tokio_postgres::Client;

use crate::config::Config;
use crate::migrate::{self, MigrateError, Target};

/// Prepare the database, or print the SQL that does.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct MigrateArgs {
    /// Print the SQL instead of running it (with --down: that of going back)
    #[arg(long)]
    pub print: bool,
    /// Print the SQL that makes the relay's role and grants it what it needs
    #[arg(long, conflicts_with_all = ["print", "down"])]
    pub print_roles: bool,
    /// Name of the role that --print-roles is about
    #[arg(long, default_value = "postrider", requires = "print_roles")]
    pub role: String,
    /// Remove what the migrations made; refuses while a replication slot of postrider exists
    #[arg(long)]
    pub down: bool,
    /// With --down: also drop an outbox table that has rows, and dead letters
    #[arg(long, requires = "down")]
    pub drop_data: bool,
}

impl MigrateArgs {
    /// The text to print, if that is all that is asked for: it needs no server.
    pub fn script(&self, config: &Config) -> Option<String> {
        let target = Target::from(config);
        match self {
            MigrateArgs { print_roles: true, role, .. } => {
                let emit = if config.source.emit { migrate::emit_rights_script() } else { "" };
                Some(migrate::roles_script(&target, role) + emit)
            }
            MigrateArgs { print: true, down: true, drop_data, .. } => Some(migrate::down_script(&target, *drop_data)),
            MigrateArgs { print: true, .. } => Some(migrate::up_script(&target)),
            _ => None,
        }
    }
}

/// Applies the migrations, or takes them back. Call it where [`MigrateArgs::script`] gives nothing; print what it says.
pub async fn run(args: &MigrateArgs, config: &Config, client: &mut Client) -> Result<String, MigrateError> {
    let target = Target::from(config);
    if args.down {
        return Ok(format!("{}\n", migrate::down(client, &target, args.drop_data).await?));
    }
    let (outcome, said) = migrate::up_saying(client, &target).await?;
    let said: String = said.iter().map(|line| format!("* {line}\n")).collect();
    let missing = if config.source.emit { migrate::missing_emit_rights(client).await? } else { Vec::new() };
    if missing.is_empty() {
        return Ok(format!("{outcome}\n{said}"));
    }
    Ok(format!(
        "{outcome}\n{said}\nsource.emit is on, and whoever can connect to this database can emit events until an administrator has run:\n\n{};\n",
        missing.join(";\n")
    ))
}
