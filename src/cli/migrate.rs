//! `postrider migrate`.

use tokio_postgres::Client;

use crate::config::Config;
use crate::migrate::{self, MigrateError, Outcome, Target};

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
            MigrateArgs { print_roles: true, role, .. } => Some(migrate::roles_script(&target, role)),
            MigrateArgs { print: true, down: true, drop_data, .. } => Some(migrate::down_script(&target, *drop_data)),
            MigrateArgs { print: true, .. } => Some(migrate::up_script(&target)),
            _ => None,
        }
    }
}

/// Applies the migrations, or takes them back. Call it where [`MigrateArgs::script`] gives nothing; print the outcome.
pub async fn run(args: &MigrateArgs, config: &Config, client: &mut Client) -> Result<Outcome, MigrateError> {
    let target = Target::from(config);
    if args.down { migrate::down(client, &target, args.drop_data).await } else { migrate::up(client, &target).await }
}
