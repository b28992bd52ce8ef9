//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::Outcome;
use crate::checks::Account;
use crate::evidence::Evidence;
use crate::faults::{self, Fault};
use crate::halts;
use crate::run::{self, Plan};

/// Runs the relay against real servers with faults, and accounts for every event.
///
/// Ends with 0 if every check passes, with 1 if one fails, with 2 if the harness itself could not run.
#[derive(Debug, Parser)]
#[command(name = "chaos", args_override_self = true)]
struct Arguments {
    /// Decides workload and faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long writers write and faults come
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Names of faults with commas between them, all, none, or the name of one case (--list)
    #[arg(long, default_value = "all")]
    faults: String,
    /// A bug for the relay to have: POSTRIDER_BUG
    #[arg(long)]
    bug: Option<String>,
    /// A setting of the relay: NAME=VALUE, as in its environment
    #[arg(long)]
    set: Vec<String>,
    /// Seconds until everything must have been delivered, after a fault and at the end
    #[arg(long, default_value_t = 90)]
    patience: u64,
    /// Rows a second
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Where the files of the run go; emptied first
    #[arg(long, default_value = "target/chaos")]
    evidence: PathBuf,
    /// Only judge what an earlier run has left there
    #[arg(long)]
    judge: bool,
    /// List faults and cases
    #[arg(long)]
    list: bool,
}

/// True if everything is as it should be.
pub(crate) async fn run() -> Outcome<bool> {
    let arguments = Arguments::parse();
    if arguments.list {
        list();
        return Ok(true);
    }
    if arguments.judge {
        return judge(&Evidence(arguments.evidence));
    }
    let evidence = Evidence::create(&arguments.evidence)?;
    if let Some(case) = halts::by_name(&arguments.faults) {
        return halts::run(case, evidence, arguments.bug).await;
    }
    let mut plan = Plan {
        seed: arguments.seed,
        seconds: arguments.seconds,
        rate: arguments.rate,
        choice: Vec::new(),
        control: None,
        bug: arguments.bug,
        more: settings(&arguments.set)?,
        patience: Duration::from_secs(arguments.patience),
    };
    match run::control(&arguments.faults) {
        Some(control) => plan.control = Some(control),
        None => plan.choice = choice(&arguments.faults)?,
    }
    run::run(plan, evidence).await
}

fn settings(set: &[String]) -> Outcome<Vec<(String, String)>> {
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    set.iter().map(|text| pair(text).ok_or_else(|| format!("--set {text}: NAME=VALUE is expected").into())).collect()
}

fn choice(names: &str) -> Outcome<Vec<&'static Fault>> {
    match names {
        "all" => Ok(faults::ALL.iter().collect()),
        "none" => Ok(Vec::new()),
        names => {
            let known = |name: &str| faults::by_name(name).ok_or_else(|| format!("no fault {name}: see --list").into());
            names.split(',').map(|name| known(name.trim())).collect()
        }
    }
}

fn list() {
    println!("Faults, one or two at a time:");
    for fault in faults::ALL {
        println!("  {:<18} {}  {}", fault.name, fault.number, fault.how);
    }
    println!("Controls, which must fail the check that is named:");
    for control in run::CONTROLS {
        println!("  {:<18} {}  {}", control.name, control.fails, control.how);
    }
    println!("Halts, each a run of its own:");
    for case in halts::ALL {
        println!("  {:<18} {}  {}", case.name, case.number, case.how);
    }
}

fn judge(evidence: &Evidence) -> Outcome<bool> {
    let verdicts = Account::read(evidence)?.verdicts();
    for verdict in &verdicts {
        println!("{} {:<14} {}", if verdict.passed { "ok  " } else { "FAIL" }, verdict.check, verdict.says);
    }
    Ok(verdicts.iter().all(|verdict| verdict.passed))
}
