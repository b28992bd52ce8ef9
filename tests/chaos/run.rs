//! A run: writers and faults for a time, then quiet, then the account.

use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Outcome;
use crate::broker;
use crate::chaos::{Chaos, Start};
use crate::checks::{Account, Verdict, verdict};
use crate::database;
use crate::evidence::{
    ARRIVALS, Arrival, COMMITTED, Committed, Event, Evidence, FLUSHES, ORDER, PARKED, Parked, Placed, SCHEDULE,
    StatusUpdate,
};
use crate::faults::{self, Fault, Round};
use crate::ledger::Ledger;
use crate::samplers::Samplers;
use crate::workload::{SECRET, Workload};

/// After a fault, while everything is delivered.
const KEEP_WRITING: Duration = Duration::from_secs(20);
/// Before the first fault.
const WARM_UP: Duration = Duration::from_secs(3);
/// What PostgreSQL says when it ends a connection that it has heard nothing from (`wal_sender_timeout`, 10 s, see `database.rs`).
const UNHEARD: &str = "terminating walsender process due to replication timeout";
/// What a fault has silenced may be ended for so long after it.
const GHOST: Duration = Duration::from_secs(15);
/// What is lost on purpose is not waited for any longer.
const LOSSY: Duration = Duration::from_secs(20);
/// What the relay may take besides four times the largest row.
const RSS_MIB: f64 = 128.0;

pub(crate) struct Plan {
    pub seed: u64,
    pub seconds: u64,
    pub rate: f64,
    pub choice: Vec<&'static Fault>,
    pub control: Option<&'static Control>,
    pub bug: Option<String>,
    /// Settings of the relay.
    pub more: Vec<(String, String)>,
    /// Everything must have been delivered so long after a fault, and after the last row.
    pub patience: Duration,
}

/// A run in which something is lost on purpose: the check that is named has to see it.
#[derive(Debug)]
pub(crate) struct Control {
    pub name: &'static str,
    pub fails: &'static str,
    pub how: &'static str,
}

pub(crate) const CONTROLS: &[Control] = &[
    Control { name: "drop-head", fails: "I1 lost", how: "F31: a classic tap of 50 messages with drop-head" },
    Control { name: "forget", fails: "I1 lost", how: "one arrival is taken out of the consumer's log" },
    Control { name: "swap", fails: "I3 order", how: "two arrivals of a key change places in the consumer's log" },
];

pub(crate) fn control(name: &str) -> Option<&'static Control> {
    CONTROLS.iter().find(|control| control.name == name)
}

pub(crate) async fn run(plan: Plan, evidence: Evidence) -> Outcome<bool> {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let drop_head =
        r#"{"x-queue-type":"classic","x-max-length":50,"x-overflow":"drop-head","x-single-active-consumer":true}"#;
    let drops = plan.control.is_some_and(|control| control.name == "drop-head");
    let failpoints = plan.choice.iter().any(|fault| fault.name == "failpoint");
    let start = Start {
        evidence: evidence.clone(),
        tap: drops.then_some(drop_head),
        more: plan.bug.iter().map(|bug| ("POSTRIDER_BUG".to_owned(), bug.clone())).chain(plan.more.clone()).collect(),
        failpoint: (failpoints && rng.random_bool(0.5)).then_some("SlotMade"),
    };
    let chaos = Chaos::start(start).await?;
    let url = &chaos.database.url;
    let mut samplers = Samplers::start(url, vec![chaos.relay.address.clone()], &evidence, chaos.began)?;
    let mut workload = Workload::start(url, &evidence, chaos.began, plan.seed, plan.rate)?;
    let mut events = Vec::new();
    let mut verdicts = Vec::new();
    if drops {
        chaos.consumer.pause(true);
    }
    tokio::time::sleep(WARM_UP).await;
    let until = Instant::now() + Duration::from_secs(plan.seconds);
    let mut feedback = Feedback::default();
    let failed = faults_until(until, &plan, &mut rng, (&chaos, &workload, &mut feedback), &mut events).await?;
    verdicts.extend(failed);
    feedback.look(&chaos, false).await?;
    verdicts.push(feedback.verdict(samplers.longest_silence()));
    workload.stop().await?;
    chaos.consumer.pause(false);
    verdicts.push(drained(&chaos, if drops { LOSSY } else { plan.patience }).await);
    verdicts.push(metrics(&chaos, drops).await);
    verdicts.push(verdict("I8 halt", !samplers.halted(), "no fault of this run may halt the relay"));
    verdicts.push(verdict("ends", chaos.relay.surprises() == 0, "times that the relay ended by itself: see relay.log"));
    samplers.stop().await?;

    let (kills, aborts, rss) = (chaos.relay.kills(), chaos.relay.aborts(), chaos.max_rss_kib());
    let (largest, max_parked) = (workload.largest_row(), samplers.max_parked());
    let engine = chaos.database.server.value("POSTRIDER_TEST_ENGINE")?.to_owned();
    save(chaos, &events).await?;
    if let Some(control) = plan.control {
        spoil(control, &evidence)?;
    }

    let rss_bound_mib = RSS_MIB + 4.0 * mib(largest);
    let max_rss_mib = mib(rss * 1024);
    verdicts.push(verdict(
        "I6 memory",
        max_rss_mib <= rss_bound_mib,
        format!("{max_rss_mib:.1} of {rss_bound_mib:.0} MiB"),
    ));
    verdicts.push(secrets(&evidence)?);
    let account = Account::read(&evidence)?;
    verdicts.splice(0..0, account.verdicts());
    let passed = match plan.control {
        Some(control) => verdicts.iter().any(|verdict| verdict.check == control.fails && !verdict.passed),
        None => verdicts.iter().all(|verdict| verdict.passed),
    };
    let Plan { seed, seconds, bug, .. } = plan;
    let counts = account.counts();
    let ledger = Ledger {
        seed,
        seconds,
        engine,
        bug,
        passed,
        counts,
        kills,
        aborts,
        max_parked,
        max_rss_mib,
        rss_bound_mib,
        verdicts,
        events,
    };
    ledger.save(&evidence.file("ledger.json"))?;
    println!("{}", ledger.text());
    match plan.control {
        Some(control) if passed => println!("as it has to be: {} has failed", control.fails),
        Some(control) => println!("{} did not see what was done", control.fails),
        None if passed => println!("every check has passed"),
        None => println!("a check has failed; the evidence is in {}", evidence.0.display()),
    }
    Ok(passed)
}

/// The writers go on for a while, and hold back then: a machine that cannot keep up with them would never get to the end of what a fault has
/// left.
async fn recovered(chaos: &Chaos, workload: &Workload, patience: Duration) -> Outcome<Duration> {
    let recovery = chaos.recovered(patience);
    tokio::pin!(recovery);
    let recovery = match tokio::time::timeout(KEEP_WRITING, &mut recovery).await {
        Ok(recovery) => recovery,
        Err(_) => {
            workload.rest(true);
            recovery.await
        }
    };
    workload.rest(false);
    recovery
}

/// Rounds of faults, each until it is undone and everything is delivered.
async fn faults_until(
    until: Instant,
    plan: &Plan,
    rng: &mut StdRng,
    (chaos, workload, feedback): (&Chaos, &Workload, &mut Feedback),
    events: &mut Vec<Event>,
) -> Outcome<Option<Verdict>> {
    let mut left = Vec::new();
    let kills = plan.choice.iter().any(|fault| fault.name == "kill");
    while Instant::now() < until {
        if plan.choice.is_empty() {
            tokio::time::sleep_until(until.into()).await;
            break;
        }
        let round = faults::next(rng, &plan.choice, &mut left, kills);
        let from = chaos.now();
        inject(&round, chaos).await?;
        let to = chaos.now();
        let recovery = recovered(chaos, workload, plan.patience).await;
        feedback.look(chaos, round.faults.iter().any(|fault| fault.silences_the_relay())).await?;
        let names: Vec<&str> = round.faults.iter().map(|fault| fault.name).collect();
        let what = format!("{}{}", names.join(" + "), if round.kills { " + kills" } else { "" });
        let error = recovery.as_ref().err().map(ToString::to_string);
        let database_down = round.faults.iter().any(|fault| fault.stops_the_database());
        let recovery = recovery.ok().map(|time| time.as_secs_f64());
        eprintln!("chaos: {from:6.1} s  {what}: recovered after {recovery:?}");
        events.push(Event { from, to, what: what.clone(), database_down, recovery });
        if let Some(error) = error {
            return Ok(Some(verdict("I10 recovery", false, format!("after {what}, {to:.1} s: {error}"))));
        }
    }
    let longest = events.iter().filter_map(|event| event.recovery).fold(0.0, f64::max);
    Ok(Some(verdict("I10 recovery", true, format!("after each fault within {longest:.1} s"))))
}

/// Whether PostgreSQL has given up a relay whose words nothing kept from it.
#[derive(Default)]
struct Feedback {
    /// Connections that it has ended so far.
    ended: usize,
    unexcused: usize,
    excused_until: Option<Instant>,
}

impl Feedback {
    async fn look(&mut self, chaos: &Chaos, silenced: bool) -> Outcome<()> {
        let ended = chaos.database.server.command("logs", &[]).await?.matches(UNHEARD).count();
        if silenced {
            self.excused_until = Some(Instant::now() + GHOST);
        }
        if self.excused_until.is_none_or(|until| until < Instant::now()) {
            self.unexcused += ended - self.ended;
        }
        self.ended = ended;
        Ok(())
    }

    fn verdict(&self, (silence, at): (Duration, f64)) -> Verdict {
        let Feedback { ended, unexcused, .. } = self;
        let says = format!(
            "PostgreSQL gave up {ended} connections for their silence, {unexcused} of them without a reason; it heard nothing for {:.1} s at most (after {at:.1} s)",
            silence.as_secs_f64()
        );
        verdict("I10 feedback", *unexcused == 0, says)
    }
}

async fn inject(round: &Round, chaos: &Chaos) -> Outcome<()> {
    let faults = round.faults.iter().enumerate().map(|(number, fault)| async move {
        let mut rng = StdRng::seed_from_u64(round.seed.wrapping_add(number as u64));
        fault.inject(chaos, &mut rng, round.length).await
    });
    let kills = async {
        if round.kills {
            let mut rng = StdRng::seed_from_u64(round.seed ^ 1);
            faults::kills(chaos, &mut rng, round.length, 0.8..3.5).await;
        }
    };
    let (done, ()) = tokio::join!(join_all(faults), kills);
    done.into_iter().collect()
}

/// After the last fault and the last row everything is delivered or parked.
async fn drained(chaos: &Chaos, within: Duration) -> Verdict {
    let began = Instant::now();
    let result = chaos
        .until("everything that was committed is delivered or parked", within, async || {
            let client = chaos.client().await.ok()?;
            let statement = "select id::text from audit where id not in (select event_id::uuid from postrider.parked)";
            let ids = client.query(statement, &[]).await.ok()?;
            let seen = chaos.consumer.seen();
            ids.iter().all(|row| seen.ids.contains(row.get::<_, &str>(0))).then_some(())
        })
        .await;
    let says = match &result {
        Ok(()) => format!("everything was delivered {:.1} s after the last write", began.elapsed().as_secs_f64()),
        Err(error) => error.to_string(),
    };
    verdict("I10 drained", result.is_ok(), says)
}

/// The relay's counters and gauges, against what has happened.
async fn metrics(chaos: &Chaos, lossy: bool) -> Verdict {
    match compare_metrics(chaos).await {
        Ok(says) => verdict("I12 metrics", true, says),
        Err(error) => verdict("I12 metrics", lossy, error.to_string()),
    }
}

async fn compare_metrics(chaos: &Chaos) -> Outcome<String> {
    const CONFIRMED: &str = "postrider_events_confirmed_total";
    const EVENTS: usize = 100;
    let before = chaos.relay.metric_sum(CONFIRMED).await?;
    for _ in 0..10 {
        chaos.commit_marker(EVENTS / 10).await?;
    }
    let parked = chaos.parked("true").await?;
    let within = Duration::from_secs(20);
    let what = format!("{EVENTS} more are counted as confirmed, {parked} as parked, and none is under way");
    chaos
        .until(&what, within, async || {
            let confirmed = chaos.relay.metric_sum(CONFIRMED).await.ok()?;
            let dead_letters = chaos.relay.metric_sum("postrider_dead_letters").await.ok()?;
            let status = chaos.relay.status().await.ok()?;
            #[allow(clippy::float_cmp, reason = "counts are exact")]
            let right = confirmed - before == EVENTS as f64 && dead_letters == parked as f64;
            (right && status.unresolved_events == 0 && status.held_keys == 0).then_some(())
        })
        .await?;
    Ok(what)
}

/// Ends everything and writes down what the checks read.
async fn save(chaos: Chaos, events: &[Event]) -> Outcome<()> {
    let Chaos { database, broker, relay, consumer, evidence, sql_proxy, .. } = chaos;
    // What it still gets belongs to the account.
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.end();
    tokio::time::sleep(Duration::from_secs(1)).await;
    consumer.stop().await?;
    let client = database.connect().await?;
    let rows = client.query("select id::text, key, seq, hash from audit", &[]).await?;
    let committed =
        rows.iter().map(|row| Committed { id: row.get(0), key: row.get(1), seq: row.get(2), hash: row.get(3) });
    evidence.write(COMMITTED, &committed.collect::<Vec<_>>())?;
    let rows = client.query("select event_id, reason from postrider.dead_letters order by position", &[]).await?;
    let parked = rows.iter().map(|row| Parked { event_id: row.get(0), reason: row.get(1) });
    evidence.write(PARKED, &parked.collect::<Vec<_>>())?;
    let order = database.commit_order().await?.into_iter().map(|(id, key)| Placed { id, key });
    evidence.write(ORDER, &order.collect::<Vec<_>>())?;
    evidence.write(SCHEDULE, events)?;
    let flushes = sql_proxy.evidence().flushes.into_iter();
    let flushes =
        flushes.map(|one| StatusUpdate { connection: one.connection, received: one.written, flushed: one.flushed });
    evidence.write(FLUSHES, &flushes.collect::<Vec<_>>())?;
    for server in [&database.server, &broker.server] {
        let log = server.command("logs", &[]).await?;
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(2_000)..].join("\n");
        fs::write(evidence.file(&format!("{}.log", server.name)), tail)?;
    }
    Ok(())
}

/// Does to the consumer's log what the control is about.
fn spoil(control: &Control, evidence: &Evidence) -> Outcome<()> {
    let path = evidence.file(ARRIVALS);
    let text = fs::read_to_string(&path)?;
    let mut lines: Vec<&str> = text.lines().collect();
    let read = |line: &&str| serde_json::from_str::<Arrival>(line);
    let arrivals: Vec<Arrival> = lines.iter().map(read).collect::<Result<_, _>>()?;
    let middle = lines.len() / 2;
    match control.name {
        "forget" => lines.retain(|line| !line.contains(&arrivals[middle].id)),
        "swap" => {
            let after = |at: &usize| {
                let same = |later: &usize| {
                    arrivals[*later].key == arrivals[*at].key && arrivals[*later].id != arrivals[*at].id
                };
                Some((*at, (at + 1..lines.len()).find(same)?))
            };
            let (one, other) = (0..lines.len()).find_map(|at| after(&at)).ok_or("no key has two arrivals")?;
            lines.swap(one, other);
        }
        _ => return Ok(()),
    }
    Ok(fs::write(path, lines.join("\n") + "\n")?)
}

/// Payloads and passwords are in nothing that the relay writes.
fn secrets(evidence: &Evidence) -> Outcome<Verdict> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&evidence.0)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !(name.starts_with("relay") || name == crate::evidence::SCRAPES) {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        for secret in [SECRET, broker::PASSWORD, database::PASSWORD] {
            if text.contains(secret) {
                found.push(format!("{secret} in {name}"));
            }
        }
    }
    let says = if found.is_empty() {
        "no payload and no password in logs, metrics and status".to_owned()
    } else {
        found.join(", ")
    };
    Ok(verdict("I13 secrets", found.is_empty(), says))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1024 * 1024)
}
