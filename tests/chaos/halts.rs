//! Faults after which the relay has to halt: each is a short run of its own, without other faults.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;

use crate::chaos::{Chaos, Start};
use crate::checks::{Verdict, verdict};
use crate::database::SLOT;
use crate::evidence::Evidence;
use crate::relay::Status;
use crate::{Failure, Outcome};

/// How long a halt may take.
const HALT: Duration = Duration::from_secs(40);
/// Nothing may be published for so long after it.
const SILENCE: Duration = Duration::from_secs(6);

#[derive(Debug)]
pub(crate) struct Case {
    pub name: &'static str,
    pub number: &'static str,
    pub how: &'static str,
    /// It may also go on, if nothing is missing then.
    may_go_on: bool,
}

const fn case(name: &'static str, number: &'static str, how: &'static str) -> Case {
    Case { name, number, how, may_go_on: false }
}

pub(crate) const ALL: &[Case] = &[
    case("halt-dropped", "F14", "the slot is dropped under the running relay"),
    case(
        "halt-recreated",
        "F15",
        "the slot is dropped, rows are committed, and it is made again, while the relay is down",
    ),
    Case {
        may_go_on: true,
        ..case(
            "halt-recreated-idle",
            "F15",
            "the slot is dropped and made again while the relay is down, nothing committed between",
        )
    },
    case("halt-advanced", "F16", "the slot is advanced past committed rows while the relay is down"),
    case("halt-publication", "F24", "the publication is dropped under the running relay"),
    case("halt-restored", "F20", "the server's volume is restored from a copy, and the relay runs on"),
];

pub(crate) fn by_name(name: &str) -> Option<&'static Case> {
    ALL.iter().find(|case| case.name == name)
}

pub(crate) async fn run(case: &Case, evidence: Evidence, bug: Option<String>) -> Outcome<bool> {
    let more = bug.into_iter().map(|bug| ("POSTRIDER_BUG".to_owned(), bug)).collect();
    let chaos = Chaos::start(Start { evidence, tap: None, more, failpoint: None }).await?;
    let copy = case.name == "halt-restored";
    if copy {
        volume(&chaos, "save").await?;
    }
    for _ in 0..10 {
        chaos.commit_marker(20).await?;
    }
    chaos.recovered(HALT).await?;
    // The acknowledgement and its record follow the delivery.
    sleep(Duration::from_secs(3)).await;
    let gap = damage(case.name, &chaos).await?;
    let verdicts = judge(case, &chaos, &gap).await?;
    println!("{} ({}): {}", case.name, case.number, case.how);
    for verdict in &verdicts {
        println!("  {} {:<14} {}", if verdict.passed { "ok  " } else { "FAIL" }, verdict.check, verdict.says);
    }
    std::fs::write(chaos.evidence.file("ledger.json"), serde_json::to_vec_pretty(&verdicts)?)?;
    Ok(verdicts.iter().all(|verdict| verdict.passed))
}

/// Does it. Gives the ids of events that cannot come any more.
async fn damage(name: &str, chaos: &Chaos) -> Outcome<Vec<String>> {
    let client = chaos.database.connect().await?;
    let make = format!("select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    let mut gap = Vec::new();
    match name {
        "halt-dropped" => drop_slot(chaos).await?,
        "halt-recreated" | "halt-recreated-idle" => {
            chaos.relay.stay_down();
            drop_slot(chaos).await?;
            if name == "halt-recreated" {
                gap = chaos.commit_marker(20).await?;
            }
            client.batch_execute(&make).await?;
            chaos.relay.go_on();
        }
        "halt-advanced" => {
            chaos.relay.stay_down();
            gap = chaos.commit_marker(20).await?;
            let statement = format!("select pg_replication_slot_advance('{SLOT}', pg_current_wal_flush_lsn())");
            chaos.until("the slot can be advanced", HALT, async || client.batch_execute(&statement).await.ok()).await?;
            chaos.relay.go_on();
        }
        "halt-publication" => client.batch_execute("drop publication postrider").await?,
        "halt-restored" => volume(chaos, "restore").await?,
        _ => return Err("unknown".into()),
    }
    Ok(gap)
}

async fn judge(case: &Case, chaos: &Chaos, gap: &[String]) -> Outcome<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    let halted = chaos
        .until("the relay halts", HALT, async || {
            chaos.relay.status().await.ok().filter(|status| status.role == "halted")
        })
        .await;
    let status = match halted {
        Ok(status) => status,
        Err(_) if case.may_go_on => {
            let recovered = chaos.recovered(HALT).await;
            verdicts.push(verdict("I8 halt", recovered.is_ok(), "it went on, and nothing is missing"));
            return Ok(verdicts);
        }
        Err(error) => {
            let status = chaos.relay.status().await.unwrap_or_default();
            verdicts.push(verdict("I8 halt", false, format!("{error}; {status:?}")));
            return Ok(verdicts);
        }
    };
    verdicts.push(verdict("I8 halt", true, status.problem.clone().unwrap_or_default()));
    verdicts.push(interval(&status));
    let metric = chaos.relay.metric_sum("postrider_halted").await?;
    verdicts.push(verdict("I8 metric", metric > 0.5, format!("the sum of postrider_halted is {metric}")));

    let before: HashSet<String> = chaos.consumer.seen().ids.clone();
    // What comes after the halt, too, stays where it is.
    let later = chaos.commit_marker(20).await;
    sleep(SILENCE).await;
    let (count, none_of_the_gap) = {
        let seen = chaos.consumer.seen();
        (seen.ids.difference(&before).count(), gap.iter().all(|id| !seen.ids.contains(id)))
    };
    let says = format!(
        "{count} events came in {} s after the halt, {} were committed",
        SILENCE.as_secs(),
        later.map_or(0, |ids| ids.len())
    );
    verdicts.push(verdict("I8 silence", count == 0 && none_of_the_gap, says));
    let still = chaos.relay.status().await?.role == "halted";
    verdicts.push(verdict("I8 stays", still, "the halt lasts"));
    let attached = chaos.database.connect().await?;
    let statement = "select count(*) from pg_stat_replication where application_name like '%postrider%'";
    let count: i64 = attached.query_one(statement, &[]).await?.get(0);
    verdicts.push(verdict("I8 lets go", count == 0, format!("{count} replication connections while halted")));
    Ok(verdicts)
}

/// The message names both ends of what is in doubt.
fn interval(status: &Status) -> Verdict {
    let problem = status.problem.as_deref().unwrap_or_default();
    let is_lsn = |word: &str| {
        let hex =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_lowercase());
        word.split_once('/').is_some_and(|(high, low)| hex(high) && hex(low))
    };
    let words = problem.split(|c: char| !(c.is_ascii_alphanumeric() || c == '/'));
    let lsns: HashSet<&str> = words.filter(|word| is_lsn(word)).collect();
    verdict("I8 interval", lsns.len() >= 2, format!("the message names {} positions", lsns.len()))
}

async fn drop_slot(chaos: &Chaos) -> Outcome<()> {
    let client = chaos.database.connect().await?;
    let terminate = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active";
    // The relay comes back between the two, now and then.
    chaos
        .until("the slot can be dropped", HALT, async || {
            client.execute(terminate, &[&SLOT]).await.ok()?;
            client.execute("select pg_drop_replication_slot($1)", &[&SLOT]).await.ok()
        })
        .await
        .map(drop)
}

/// Saves the server's files as they are, or puts them back: with the server stopped, by the engine's own means.
async fn volume(chaos: &Chaos, verb: &str) -> Outcome<()> {
    let server = &chaos.database.server;
    server.command("stop", &["fast"]).await?;
    let within = match verb {
        "save" => "mkdir .copy; find . -mindepth 1 -maxdepth 1 ! -name .copy -exec cp -a {} .copy/ \\;",
        _ => "find . -mindepth 1 -maxdepth 1 ! -name .copy -exec rm -rf {} +; cp -a .copy/. .",
    };
    let mut command = Command::new("sh");
    match server.value("CONTAINER") {
        Ok(container) => {
            let script = format!("cd /var/lib/postgresql/data && {within}");
            command = Command::new("docker");
            let tag = std::env::var("POSTRIDER_TEST_POSTGRES_TAG").unwrap_or_else(|_| "17".to_owned());
            command.args(["run", "--rm", "--volumes-from", container, "--entrypoint", "sh"]);
            command.arg(format!("postgres:{tag}")).args(["-c", &script]);
        }
        Err(_) => {
            let record = format!("{}/.servers/{}/server", env!("CARGO_MANIFEST_DIR"), server.name);
            let text = std::fs::read_to_string(record)?;
            let private = text.lines().find_map(|line| line.strip_prefix("private=")).ok_or("no directory")?;
            command.args(["-c", &format!("cd '{private}/data' && {within}")]);
        }
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        return Err(Failure::from(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    server.command("start-again", &[]).await.map(drop)
}
