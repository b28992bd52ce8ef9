//! A real Prometheus beside the relays, with the alert rules in a quicker form.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::support::http;
use crate::support::own::Own;

/// Every minute of the rules is five seconds here: the longest `for` of three minutes becomes 15 s. Not less, because the samplers
/// of the relay ask every five seconds, whatever the rules say.
const FACTOR: u64 = 12;
const MINUTE: u64 = 60 / FACTOR;

pub(crate) struct Prometheus {
    _own: Own,
    address: String,
}

impl Prometheus {
    /// Scrapes every second each (job, address).
    pub(crate) fn start(targets: &[(String, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let jobs = targets.iter().map(|(job, address)| {
            format!("  - job_name: {job}\n    static_configs:\n      - targets: ['{address}']\n")
        });
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\nscrape_configs:\n{}",
            jobs.collect::<String>()
        );
        std::fs::write(directory.path().join("prometheus.yml"), config).unwrap();
        std::fs::write(directory.path().join("rules.yml"), quicker(&rules())).unwrap();
        let own = Own::prometheus(&["--conf", directory.path().to_str().unwrap()]);
        let url = own.url("PROMETHEUS_URL");
        let address = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        Prometheus { _own: own, address }
    }

    /// The series of an instant query, and their values. Panics with the query if Prometheus refuses it.
    pub(crate) async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let path = format!("/api/v1/query?query={}", utf8_percent_encode(query, NON_ALPHANUMERIC));
        let (code, body) = http::get(&self.address, &path).await.unwrap();
        assert_eq!(code, 200, "{query}\n{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let result = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{query}: {body}"));
        let number = |value: &Value| value[1].as_str().unwrap().parse().unwrap();
        result.iter().map(|series| (series["metric"].clone(), number(&series["value"]))).collect()
    }

    /// Alerts that fire now.
    pub(crate) async fn firing(&self, job: &str) -> BTreeSet<String> {
        self.alerts(&format!("ALERTS{{alertstate=\"firing\",job=\"{job}\"}}")).await
    }

    /// Alerts that have fired at any time of the last hour.
    pub(crate) async fn fired(&self, job: &str) -> BTreeSet<String> {
        self.alerts(&format!("max_over_time(ALERTS{{alertstate=\"firing\",job=\"{job}\"}}[1h])")).await
    }

    async fn alerts(&self, query: &str) -> BTreeSet<String> {
        let found = self.query(query).await;
        found.iter().map(|(labels, _)| labels["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// How long an alert may take from its cause, on a loaded machine.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(40 * MINUTE);
}

fn rules() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana/alerts/postrider.yml");
    std::fs::read_to_string(path).unwrap()
}

/// Rules or queries with each of their times divided by [`FACTOR`]. They stand there as `for: 2m`, `[2m]` and `2 * 60`, and in no
/// other way.
pub(crate) fn quicker(rules: &str) -> String {
    let mut text = String::new();
    for line in rules.lines() {
        if !line.trim_start().starts_with('#') {
            text.push_str(&quicker_line(line));
            text.push('\n');
        }
    }
    text
}

fn quicker_line(line: &str) -> String {
    let seconds = |minutes: &str| minutes.parse::<u64>().unwrap() * MINUTE;
    if let Some((indent, minutes)) = line.split_once("for: ").filter(|(indent, _)| indent.trim().is_empty()) {
        return format!("{indent}for: {}s", seconds(minutes.trim_end_matches('m')));
    }
    let mut text = line.replace(" * 60", &format!(" * {MINUTE}"));
    let mut from = 0;
    while let Some(start) = text[from..].find('[').map(|found| from + found + 1) {
        let end = start + text[start..].find(']').unwrap();
        let range = format!("{}s", seconds(text[start..end].trim_end_matches('m')));
        text.replace_range(start..end, &range);
        from = start + range.len();
    }
    text
}

#[test]
fn a_minute_of_the_rules_becomes_five_seconds() {
    assert_eq!(quicker_line("        for: 3m"), "        for: 15s");
    assert_eq!(
        quicker_line("max_over_time(a[2m]) > 2 * 60 and avg_over_time(b[15m]) < 1"),
        "max_over_time(a[10s]) > 2 * 5 and avg_over_time(b[75s]) < 1"
    );
    let text = quicker(&rules());
    assert!(!text.contains("m]") && !text.contains("* 60"), "no time was left out:\n{text}");
}
