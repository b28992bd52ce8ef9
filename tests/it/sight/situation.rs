//! Situations in which a person would look at the dashboard, each with a relay of its own, and what each lights.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use tokio::task::JoinHandle;

use crate::support::own::{Own, free_port};
use crate::support::relay::Program;
use crate::support::world::{World, connect};

/// How the title of a panel begins, and what it must show.
pub(crate) type Panel = (&'static str, fn(f64) -> bool);

/// A relay, its world, and what goes on there until it is dropped.
pub(crate) struct Situation {
    /// The job of its scrapes: nothing else has this name.
    pub job: String,
    /// The alert that it must light; none for the one that is well.
    pub alert: Option<&'static str>,
    /// The panel of the dashboard that must show it.
    pub panel: Option<Panel>,
    pub world: World,
    pub address: String,
    program: Program,
    tasks: Vec<JoinHandle<()>>,
    _config: tempfile::TempDir,
}

/// How a situation is set up: `file` is its postrider.toml.
pub(crate) struct Plan {
    pub name: &'static str,
    pub alert: Option<&'static str>,
    pub panel: Option<Panel>,
    pub settings: Vec<(&'static str, String)>,
    pub file: &'static str,
}

impl Plan {
    pub(crate) fn new(name: &'static str, alert: &'static str, panel: Panel) -> Self {
        Plan { name, alert: Some(alert), panel: Some(panel), settings: Vec::new(), file: "" }
    }

    pub(crate) fn with(mut self, settings: &[(&'static str, &str)]) -> Self {
        self.settings.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        self
    }

    /// With the management API, and what `file` says of the queues.
    pub(crate) fn watching(mut self, world: &World, file: &'static str) -> Self {
        self.settings.push(("POSTRIDER_MANAGEMENT_URL", world.servers.management_url.to_string()));
        self.file = file;
        self
    }

    /// The relay runs and carries when this returns.
    pub(crate) async fn start(self, world: World) -> Situation {
        let port = free_port();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("postrider.toml");
        std::fs::write(&file, self.file).unwrap();
        let (address, file) = (format!("127.0.0.1:{port}"), file.display().to_string());
        let mut settings: Vec<(&str, &str)> = vec![("POSTRIDER_ADMIN_LISTEN", &address), ("POSTRIDER_CONFIG", &file)];
        settings.extend(self.settings.iter().map(|(name, value)| (*name, value.as_str())));
        let program = Program::start(&world.settings(&settings), &["run"]);
        program.says("carrying").await;
        let job = format!("postrider-{}", self.name);
        let (alert, panel, tasks) = (self.alert, self.panel, Vec::new());
        Situation { job, alert, panel, world, address, program, tasks, _config: directory }
    }
}

impl Situation {
    /// One event each `pause`, from a connection of its own, each of a key of its own.
    pub(crate) async fn writes(&mut self, kind: &'static str, pause: Duration) {
        let sql = connect(&self.world.database_url).await;
        let statement = "insert into outbox (aggregatetype, aggregateid, type, payload) values ('order', gen_random_uuid()::text, $1, '{}')";
        self.tasks.push(tokio::spawn(async move {
            loop {
                // The database of a situation may be gone before the situation.
                if sql.execute(statement, &[&kind]).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }));
    }

    /// A consumer of `queue` that does with each message what `verdict` says after `pause`.
    pub(crate) async fn consumes(&mut self, queue: &str, pause: Duration, verdict: Verdict) {
        let connection = Connection::connect(&self.world.amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        // 0: as many as there are.
        let prefetch = if verdict == Verdict::Keep { 0 } else { 1 };
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
        let tag = "situation".into();
        let mut consumer = channel
            .basic_consume(queue.into(), tag, BasicConsumeOptions::default(), FieldTable::default())
            .await
            .unwrap();
        self.tasks.push(tokio::spawn(async move {
            let _connection = connection;
            let mut kept = Vec::new();
            while let Some(Ok(delivery)) = consumer.next().await {
                tokio::time::sleep(pause).await;
                let reject = BasicNackOptions { requeue: false, ..BasicNackOptions::default() };
                match verdict {
                    Verdict::Acknowledge => drop(delivery.ack(BasicAckOptions::default()).await),
                    Verdict::Reject => drop(delivery.nack(reject).await),
                    Verdict::Keep => kept.push(delivery),
                }
            }
        }));
    }

    /// The slot is dropped behind the relay's back.
    pub(crate) async fn drops_the_slot(&self) {
        let slot = &self.world.name;
        let drop = format!(
            "select pg_terminate_backend(active_pid, 1000) from pg_replication_slots where slot_name = '{slot}' and active_pid is not null;
             select pg_drop_replication_slot('{slot}')"
        );
        crate::support::eventually("the slot can be dropped", || async {
            // The relay may be back before the drop.
            self.world.admin.batch_execute(&drop).await.ok()
        })
        .await;
    }

    pub(crate) fn log(&self) -> String {
        self.program.log()
    }
}

impl Drop for Situation {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Acknowledge,
    Reject,
    /// Never answers, and takes everything that there is.
    Keep,
}

/// A server whose slots may keep 256 MiB of WAL.
pub(crate) fn frugal_postgres() -> Own {
    Own::postgres(&["-c", "max_slot_wal_keep_size=256MB", "-c", "wal_keep_size=0"])
}

/// An open transaction holds the slot's WAL while 224 of 256 MiB are written beside it; segments have 16, and one more than fits is
/// kept.
pub(crate) async fn fills_the_wal(world: &World) -> tokio_postgres::Client {
    let holder = connect(&world.database_url).await;
    // Only one that has written something is waited for.
    holder.batch_execute("begin; select pg_logical_emit_message(true, 'noise', 'x')").await.unwrap();
    for _ in 0..14 {
        world.admin.batch_execute("select pg_logical_emit_message(false, 'noise', 'x')").await.unwrap();
        world.admin.batch_execute("select pg_switch_wal()").await.unwrap();
    }
    holder
}
