//! `make bench`: the relay beside its baselines, on the same servers and the same WAL (docs/performance.md).
//!
//! A scenario fills a database with rows that several slots hold, and drains one slot after the other: `recv` (pg_recvlogical
//! to /dev/null), `bare` (a publisher that reads no WAL) and the relay, interleaved, so that a noisy machine is noisy for
//! all of them. Absolute figures mean little; ratios inside one run do.

mod bare;
mod contestants;
mod load;
mod measure;
mod report;
mod servers;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use contestants::{Ordering, Recv, Relay};
use load::{Keys, Load};
use report::Report;
use servers::Servers;

type Failure = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// What scripts/bench says: sizes, servers, and where the baselines are.
struct Settings {
    rows: u64,
    runs: u32,
    latency_seconds: u64,
    /// Only scenarios whose name has one of these in it.
    only: Vec<String>,
    /// Properties and headers of `bare`'s messages are those of the relay's, not only the bodies.
    bare_headers: bool,
}

/// One transaction of five million rows and a million keys: what is looked at is the memory.
const HUGE: &str = "huge-transaction";
const HUGE_ROWS: u64 = 5_000_000;

/// Rows of one scenario, and how the relay is told to order them.
struct Scenario {
    name: &'static str,
    load: Load,
    orderings: &'static [Ordering],
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == "bare" => bare::run(rest).await,
        _ => bench(&arguments).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Settings {
    fn read(arguments: &[String]) -> Outcome<Settings> {
        let number = |name: &str, otherwise: u64| match std::env::var(name) {
            Ok(text) if !text.is_empty() => text.parse().map_err(|_| format!("{name}: `{text}` is not a number")),
            _ => Ok(otherwise),
        };
        let (options, only): (Vec<_>, Vec<_>) = arguments.iter().cloned().partition(|each| each.starts_with("--"));
        if let Some(unknown) = options.iter().find(|option| !matches!(option.as_str(), "--bare-headers" | "--bench")) {
            return Err(
                format!("unknown option {unknown}; there is --bare-headers, and parts of names of scenarios").into()
            );
        }
        let quick = std::env::var("QUICK").is_ok_and(|text| !text.is_empty());
        Ok(Settings {
            rows: number("ROWS", if quick { 30_000 } else { 300_000 })?,
            runs: u32::try_from(number("RUNS", if quick { 1 } else { 3 })?.max(1))?,
            latency_seconds: if quick { 5 } else { 30 },
            only,
            bare_headers: options.iter().any(|option| option == "--bare-headers"),
        })
    }

    /// Where one event of a key at a time is the limit (one over the confirm latency) there are fewer rows, or it would take
    /// minutes to say the same.
    fn scenarios(&self) -> Vec<Scenario> {
        use Ordering::{Key, Pipelined};
        let load = |keys, rows_in_transaction, share: u64| Load {
            keys,
            rows_in_transaction,
            rows: (self.rows / share).max(rows_in_transaction) / rows_in_transaction * rows_in_transaction,
        };
        let mut all = vec![
            Scenario { name: "1-row", load: load(Keys::Even, 1, 1), orderings: &[Key, Pipelined] },
            Scenario { name: "100-row", load: load(Keys::Even, 100, 1), orderings: &[Key, Pipelined] },
            Scenario { name: "skewed", load: load(Keys::Skewed, 1, 5), orderings: &[Key, Pipelined] },
            Scenario { name: "1-aggregate-key", load: load(Keys::One, 1, 50), orderings: &[Key] },
            Scenario { name: "1-aggregate-pipelined", load: load(Keys::One, 1, 5), orderings: &[Pipelined] },
        ];
        // Only when it is asked for: it takes ten times as long as all the others, and gigabytes of disk.
        if self.only.iter().any(|part| HUGE.contains(part.as_str())) {
            let rows = self.rows.max(HUGE_ROWS);
            let load = Load { keys: Keys::Million, rows_in_transaction: rows, rows };
            all.push(Scenario { name: HUGE, load, orderings: &[Key] });
        }
        all.into_iter().filter(|scenario| self.wants(scenario.name)).collect()
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

async fn bench(arguments: &[String]) -> Outcome<()> {
    let settings = Settings::read(arguments)?;
    let servers = Servers::from_environment()?;
    let mut report = Report::begin(&settings, &servers).await?;
    for (number, scenario) in settings.scenarios().iter().enumerate() {
        run(scenario, number, &settings, &servers, &mut report).await?;
    }
    if settings.wants("latency") {
        report.latency(latency(&settings, &servers).await?);
    }
    report.end();
    Ok(())
}

async fn run(
    scenario: &Scenario,
    number: usize,
    settings: &Settings,
    servers: &Servers,
    report: &mut Report,
) -> Outcome<()> {
    let Scenario { name, load, orderings } = scenario;
    let database = servers.database(&format!("bench_{number}")).await?;
    let mut relays = Vec::new();
    for run in 0..settings.runs {
        database.make_slot(&format!("recv_{run}")).await?;
        for &ordering in *orderings {
            relays.push(Relay::prepare(servers, &database, format!("{}_{run}", ordering.name()), ordering)?);
        }
    }
    // Each makes its own slot, with all that belongs to it, before there are rows.
    Relay::settle(&mut relays).await?;
    say(&format!("{name}: {} rows", load.rows));
    load.fill(&database).await?;
    let end = database.wal_end().await?;

    let bodies: PathBuf = std::env::temp_dir().join(format!("postrider-bench-{}.bodies", std::process::id()));
    let mut relays = relays.into_iter();
    for run in 0..settings.runs {
        for (nth, relay) in relays.by_ref().take(orderings.len()).enumerate() {
            servers.empty_queue().await?;
            let ordering = relay.ordering;
            let drained = relay.drain(servers, &database, load.rows).await?;
            servers.expect_messages(load.rows).await?;
            report.relay(scenario, ordering, drained);
            if nth == 0 {
                if run == 0 {
                    servers.save_sample(&bodies).await?;
                }
                servers.empty_queue().await?;
                report.bare(scenario, bare::measure(servers, &bodies, load.rows, settings.bare_headers)?);
                servers.expect_messages(load.rows).await?;
            }
        }
        let slot = format!("recv_{run}");
        report.recv(scenario, Recv { slot: &slot, end: &end }.drain(servers, &database, load.rows).await?);
    }
    std::fs::remove_file(&bodies)?;
    report.rows(scenario);
    database.remove().await
}

/// One insert in a transaction of its own every 5 ms.
async fn latency(settings: &Settings, servers: &Servers) -> Outcome<report::Latency> {
    const PER_SECOND: u64 = 200;
    let database = servers.database("bench_latency").await?;
    let mut relays = vec![Relay::prepare(servers, &database, "latency".to_owned(), Ordering::Key)?];
    Relay::settle(&mut relays).await?;
    say(&format!("latency: {PER_SECOND} transactions a second for {} s", settings.latency_seconds));
    servers.empty_queue().await?;
    let relay = relays.pop().ok_or("no relay")?;
    let running = relay.start()?;
    running.carries().await?;
    let arrivals = servers.watch_arrivals().await?;
    let rows = PER_SECOND * settings.latency_seconds;
    Load { keys: Keys::Even, rows_in_transaction: 1, rows }.trickle(&database, PER_SECOND).await?;
    running.confirms(rows).await?;
    let metrics = running.metrics().await?;
    running.stop()?;
    let arrived = arrivals.collect(rows).await?;
    database.remove().await?;
    report::Latency::of(&metrics, arrived)
}

/// For people; the table alone goes to standard output.
fn say(text: &str) {
    eprintln!("bench: {text}");
}
