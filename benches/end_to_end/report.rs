//! What is printed: a Markdown table.

use std::collections::BTreeMap;
use std::fs;

use crate::contestants::{Drained, Ordering};
use crate::servers::Servers;
use crate::{Outcome, Scenario, Settings, say};

/// Collects runs, prints medians.
#[derive(Default)]
pub(crate) struct Report {
    relay: BTreeMap<(&'static str, Ordering), Vec<Drained>>,
    bare: BTreeMap<&'static str, Vec<Drained>>,
    recv: BTreeMap<&'static str, Vec<Drained>>,
}

impl Report {
    pub(crate) async fn begin(settings: &Settings, servers: &Servers) -> Outcome<Report> {
        let (postgres, rabbitmq) = servers.versions().await?;
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let model = model.trim_start_matches(['\t', ' ', ':']);
        let cores = std::thread::available_parallelism()?;
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().unwrap_or_default();
        println!(
            "{cores} cores ({model}), load {load} before the start; PostgreSQL {postgres} and RabbitMQ {rabbitmq} ({}); {} rows, \
             median of {}; postrider {}{}\n",
            servers.engine,
            settings.rows,
            settings.runs,
            env!("CARGO_PKG_VERSION"),
            if settings.bare_headers { "; bare with the relay's headers" } else { "" },
        );
        println!(
            "| scenario | rows | contestant | events/s | of bare | CPU s/M | CPU of recv + bare | machine s/M | broker s/M | walsender s/M | peak MiB |"
        );
        println!("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        Ok(Report::default())
    }

    pub(crate) fn relay(&mut self, scenario: &Scenario, ordering: Ordering, drained: Drained) {
        note(scenario, ordering.name(), &drained);
        self.relay.entry((scenario.name, ordering)).or_default().push(drained);
    }

    pub(crate) fn bare(&mut self, scenario: &Scenario, drained: Drained) {
        note(scenario, "bare", &drained);
        self.bare.entry(scenario.name).or_default().push(drained);
    }

    pub(crate) fn recv(&mut self, scenario: &Scenario, drained: Drained) {
        note(scenario, "recv", &drained);
        self.recv.entry(scenario.name).or_default().push(drained);
    }

    /// The rows of one scenario, once all its runs are over.
    pub(crate) fn rows(&self, scenario: &Scenario) {
        let bare = Medians::of(self.bare.get(scenario.name));
        let recv = Medians::of(self.recv.get(scenario.name));
        let row = |contestant: &str, medians: &Medians| {
            let ratio = |number: f64| if number.is_finite() { format!("{number:.2}") } else { "-".to_owned() };
            let relay = !matches!(contestant, "bare" | "recv");
            let of = |own: f64, other: f64| if relay { ratio(own / other) } else { String::new() };
            println!(
                "| {} | {} | {contestant} | {:.0} | {} | {:.1} | {} | {:.1} | {:.1} | {:.1} | {} |",
                scenario.name,
                scenario.load.rows,
                medians.rate,
                of(medians.rate, bare.rate),
                medians.own,
                of(medians.own, bare.own + recv.own),
                medians.machine,
                medians.broker,
                medians.walsender,
                if contestant == "recv" { String::new() } else { format!("{:.1}", medians.memory) },
            );
        };
        row("recv", &recv);
        row("bare", &bare);
        for &ordering in scenario.orderings {
            row(ordering.name(), &Medians::of(self.relay.get(&(scenario.name, ordering))));
        }
    }

    pub(crate) fn latency(&self, latency: Latency) {
        println!("\n| latency at 200 transactions a second, ms | p50 | p95 | p99 |\n|---|--:|--:|--:|");
        for (name, [p50, p95, p99]) in
            [("commit to confirm (the relay's histogram)", latency.confirm), ("commit to consumer", latency.consumer)]
        {
            println!("| {name} | {:.1} | {:.1} | {:.1} |", p50 * 1e3, p95 * 1e3, p99 * 1e3);
        }
    }

    pub(crate) fn end(&self) {
        println!(
            "\ns/M: CPU seconds, user and system, per million events. recv: from start to end of pg_recvlogical; all others: from the \
             first confirm to the last."
        );
    }
}

/// Progress, for people.
fn note(scenario: &Scenario, contestant: &str, drained: &Drained) {
    let (rate, own) = (drained.events / drained.seconds, drained.own / drained.events * 1e6);
    say(&format!("{} {contestant}: {rate:.0} events/s, CPU {own:.1} s/M, {:.1} s", scenario.name, drained.seconds));
}

/// Medians over the runs, each column by itself.
struct Medians {
    rate: f64,
    own: f64,
    machine: f64,
    broker: f64,
    walsender: f64,
    memory: f64,
}

impl Medians {
    fn of(runs: Option<&Vec<Drained>>) -> Medians {
        let median = |value: fn(&Drained) -> f64| median(runs.into_iter().flatten().map(value).collect());
        Medians {
            rate: median(|run| run.events / run.seconds),
            own: median(|run| run.own / run.events * 1e6),
            machine: median(|run| run.spent.machine / run.all * 1e6),
            broker: median(|run| run.spent.broker / run.all * 1e6),
            walsender: median(|run| run.spent.walsender / run.all * 1e6),
            memory: median(|run| run.peak_memory / f64::from(1 << 20)),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    if values.len() % 2 == 1 { at(middle) } else { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 }
}

/// Seconds at p50, p95 and p99.
pub(crate) struct Latency {
    confirm: [f64; 3],
    consumer: [f64; 3],
}

const QUANTILES: [f64; 3] = [0.50, 0.95, 0.99];

impl Latency {
    pub(crate) fn of(metrics: &str, mut arrived: Vec<f64>) -> Outcome<Latency> {
        arrived.sort_by(f64::total_cmp);
        let last = arrived.len().saturating_sub(1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index between 0 and the last")]
        let at = |quantile: f64| arrived.get((quantile * last).round() as usize).copied().unwrap_or(f64::NAN);
        let buckets = buckets(metrics, "postrider_commit_to_confirm_seconds_bucket")?;
        Ok(Latency {
            confirm: QUANTILES.map(|quantile| histogram_quantile(&buckets, quantile)),
            consumer: QUANTILES.map(at),
        })
    }
}

/// Upper bound and cumulative count of each bucket.
fn buckets(metrics: &str, name: &str) -> Outcome<Vec<(f64, f64)>> {
    let mut buckets = Vec::new();
    for line in metrics.lines().filter(|line| line.starts_with(name)) {
        let bound = line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).ok_or("a bucket without le")?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse()? };
        buckets.push((bound, line.rsplit(' ').next().unwrap_or_default().parse()?));
    }
    Ok(buckets)
}

/// As Prometheus does it: linear inside a bucket.
fn histogram_quantile(buckets: &[(f64, f64)], quantile: f64) -> f64 {
    let rank = buckets.last().map_or(0.0, |(_, count)| *count) * quantile;
    let (mut low, mut below) = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= rank {
            return if bound.is_finite() { low + (bound - low) * (rank - below) / (count - below) } else { low };
        }
        (low, below) = (bound, count);
    }
    f64::NAN
}
