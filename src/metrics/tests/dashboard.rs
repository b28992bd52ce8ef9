//! The dashboard and the alerts, against the metrics that there are and against each other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::complete;
use super::promql::named;

fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&file("grafana/dashboards/postrider.json")).unwrap()
}

/// Everything but rows, in order; panels of collapsed rows too.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let list = dashboard["panels"].as_array().unwrap().iter();
    list.flat_map(|panel| {
        if panel["type"] == "row" { panel["panels"].as_array().unwrap().iter().collect() } else { vec![panel] }
    })
    .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

fn rules() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&file("grafana/alerts/postrider.yml")).unwrap();
    assert_eq!(rules["groups"].as_array().unwrap().len(), 1);
    rules["groups"][0]["rules"].as_array().unwrap().clone()
}

fn alert(name: &str) -> Value {
    rules().into_iter().find(|rule| rule["alert"] == name).unwrap_or_else(|| panic!("no alert {name}"))
}

/// Names of series with their labels: ours, and those of others that are used.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in complete().render().unwrap().lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once('{').unwrap();
        let labels =
            rest.rsplit_once('}').unwrap().0.split("\",").map(|label| label.split_once('=').unwrap().0.to_owned());
        known.entry(name.to_owned()).or_default().extend(labels.chain(["job".to_owned(), "instance".to_owned()]));
    }
    let others = [
        ("up", &["job", "instance"][..]),
        ("ALERTS", &["job", "slot", "alertname", "alertstate"]),
        ("rabbitmq_identity_info", &["instance", "rabbitmq_node"]),
        ("rabbitmq_alarms_memory_used_watermark", &["instance"]),
        ("rabbitmq_alarms_free_disk_space_watermark", &["instance"]),
    ];
    for (name, labels) in others {
        known.insert(name.to_owned(), labels.iter().map(|&label| label.to_owned()).collect());
    }
    known
}

/// Panics unless every series, and every label of it, exists.
fn check(place: &str, expr: &str, known: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let named = named(expr);
    let mut there = BTreeSet::new();
    for (series, labels) in &named.series {
        let Some(of_series) = known.get(series) else { panic!("{place}: there is no metric {series}: {expr}") };
        assert!(labels.is_subset(of_series), "{place}: {series} has the labels {of_series:?}, not all of {labels:?}");
        there.extend(of_series.iter().cloned());
    }
    assert!(named.grouped.is_subset(&there), "{place}: labels {:?} in {expr}, of {there:?}", named.grouped);
    named.grouped
}

#[test]
fn every_metric_and_label_of_the_alerts_exists() {
    let mut known = known();
    for rule in rules() {
        let place = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        let labels = check(place, text(&rule["expr"]), &known);
        if let Some(name) = rule["record"].as_str() {
            let labels = if labels.is_empty() || name.starts_with("instance:") {
                ["job", "instance", "slot", "target"].map(str::to_owned).into()
            } else {
                labels
            };
            known.insert(name.to_owned(), labels);
        }
    }
}

#[test]
fn every_metric_and_label_of_the_dashboard_exists() {
    let (dashboard, known) = (dashboard(), known());
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            check(text(&panel["title"]), text(&target["expr"]), &known);
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        check(text(&annotation["name"]), text(&annotation["expr"]), &known);
    }
}

#[test]
fn every_panel_says_what_it_is_and_what_to_do_in_a_chapter_that_exists() {
    let anchors = anchors();
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        let (title, description) = (text(&panel["title"]), text(&panel["description"]));
        for part in ["**What it is.** ", "**Normal.** ", "**Suspect.** ", "**Do.** "] {
            assert!(description.contains(part), "{title}: no {part}");
        }
        let (_, link) = description.split_once("docs/operating.md#").unwrap_or_else(|| panic!("{title}: no link"));
        let anchor = link.trim_end_matches(')');
        assert!(anchors.contains(anchor), "{title}: docs/operating.md has no chapter #{anchor}, of {anchors:?}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
    }
}

#[test]
fn panels_have_numbers_of_their_own_and_do_not_overlap() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    let top = dashboard["panels"].as_array().unwrap();
    let inner = top.iter().filter_map(|panel| panel["panels"].as_array()).flatten();
    for panel in top.iter().chain(inner) {
        let title = text(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's too");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title}: 24 columns");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title}: something else is at {cell:?}");
        }
    }
}

#[test]
fn the_dashboard_asks_the_chosen_data_source_only_and_for_the_chosen_relays() {
    let dashboard = dashboard();
    assert_eq!((text(&dashboard["uid"]), text(&dashboard["title"])), ("postrider", "Postrider"));
    let rows = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] == "row");
    let rows: Vec<_> = rows.map(|row| text(&row["title"])).collect();
    let questions = [
        "Is it delivering?",
        "Flow",
        "Delay",
        "Consumers",
        "Dead letters",
        "Database safety",
        "Connections",
        "Process",
    ];
    assert_eq!(rows, questions);
    for panel in panels(&dashboard) {
        let title = text(&panel["title"]);
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for source in targets.iter().chain([panel]).map(|it| &it["datasource"]["uid"]) {
            assert_eq!(source, "${datasource}", "{title}");
        }
        for target in targets {
            for (series, labels) in named(text(&target["expr"])).series {
                let ours = series.starts_with("postrider_") || series.starts_with("process_");
                assert!(
                    !ours || labels.contains("slot") && labels.contains("instance"),
                    "{title}: {series} of every relay"
                );
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            assert!(
                variable["allValue"] == ".*" && variable["multi"] == true && variable["includeAll"] == true,
                "{variable}"
            );
        }
    }
}

/// The number behind `operator` in an expression, which may be a product.
fn threshold(expr: &str, operator: &str) -> f64 {
    let (_, after) = expr.split_once(operator).unwrap_or_else(|| panic!("no {operator} in {expr}"));
    let number = after.trim_start().split(['\n', ')']).next().unwrap();
    number.split('*').map(|factor| factor.trim().parse::<f64>().unwrap()).product()
}

/// Every panel with a colour, and the alert whose threshold that is.
#[test]
fn what_is_coloured_is_what_alerts() {
    let active = rules().into_iter().find(|rule| rule["record"] == "slot:postrider_active:bool").unwrap();
    let of = |name: &str, operator: &str| threshold(text(&alert(name)["expr"]), operator);
    let stale = of("PostriderSamplesStale", "> ");
    let objective = text(&alert("PostriderConsumerBehind")["expr"]).to_owned();
    assert!(objective.starts_with("queue:postrider_lag_seconds:max > queue:postrider_lag_objective_seconds:max\n"));
    let mut expected: BTreeMap<&str, f64> = [
        ("Replicas that carry, below 1 nothing is delivered", threshold(text(&active["expr"]), ">= bool ")),
        ("Delivery lag, late above 5 min", of("PostriderBehind", ") > ")),
        ("Halted, a person has to decide", of("PostriderHalted", "== ")),
        ("Broker blocks publishers", of("PostriderBrokerBlocked", "== ")),
        ("Reading stopped, the dead letters are full", of("PostriderStalled", "== ")),
        ("Age of the oldest sample, not to be believed above 2 min", stale),
        ("Age of samples by target, not to be believed above 2 min", stale),
        ("WAL left before the slot is lost, at risk below 20 %", of("PostriderSlotAtRisk", "ratio < ")),
        ("WAL kept for the slot, alarming above 10 GiB", of("PostriderSlotRetainsWal", ") > ")),
        ("WAL kept, and how much of it is the relay's own lag", of("PostriderSlotRetainsWal", ") > ")),
        // Lag by objective.
        ("Slowest queue, beyond its max_lag above 100 %", 1.0),
        // Counts what alerts.
        ("Queues with messages and no consumer", 1.0),
        ("Without any acknowledgement, stalled above 2 min", of("PostriderConsumerStalled", "max > ")),
        ("Dead letters that wait", of("PostriderDeadLetters", ") >= ")),
        ("Dead letters that wait, by reason", of("PostriderDeadLetters", ") >= ")),
        ("Dead letters that wait, by route", of("PostriderDeadLetters", ") >= ")),
        ("Messages in the consumers' dead-letter queues", of("PostriderDeadLetterQueue", "max >= ")),
    ]
    .into();
    let mut seen = BTreeSet::new();
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        let title = text(&panel["title"]);
        let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
        let values: Vec<_> = steps.iter().filter_map(|step| step["value"].as_f64()).collect();
        assert!(steps.iter().any(|step| step["color"] == "transparent"), "{title}: what is fine has no colour");
        match values[..] {
            [] => {}
            [value] => {
                assert_eq!(expected.get(title), Some(&value), "{title}: the colour and the alert");
                seen.insert(title);
            }
            _ => panic!("{title}: one threshold"),
        }
    }
    expected.retain(|title, _| !seen.contains(title));
    assert!(expected.is_empty(), "without a colour, or renamed: {expected:?}");
}

/// Chapters of the runbook, as GitHub links them.
fn anchors() -> BTreeSet<String> {
    let slug = |title: &str| {
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    file("docs/operating.md")
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| slug(line.trim_start_matches('#').trim()))
        .collect()
}

#[test]
fn every_alert_has_a_severity_words_and_a_chapter_that_begins_with_a_command() {
    let runbook = file("docs/operating.md");
    let mut alerts = 0;
    for rule in rules() {
        let Some(name) = rule["alert"].as_str() else { continue };
        alerts += 1;
        assert!(["critical", "warning"].contains(&text(&rule["labels"]["severity"])), "{name}");
        assert!(
            text(&rule["annotations"]["description"]).contains("{{ $labels.slot }}")
                || text(&rule["annotations"]["description"]).contains("{{ $labels.queue }}"),
            "{name}: which one?"
        );
        assert!(!text(&rule["annotations"]["summary"]).contains("{{"), "{name}: the summary is the same for all");
        let expected =
            format!("https://github.com/postrider/postrider/blob/main/docs/operating.md#{}", name.to_lowercase());
        assert_eq!(text(&rule["annotations"]["runbook_url"]), expected);
        let begins = format!("\n### {name}\n\n```");
        assert!(runbook.contains(&begins), "docs/operating.md: {name} has no chapter that begins with a command");
    }
    assert_eq!(runbook.matches("\n### Postrider").count(), alerts, "chapters without an alert");
}

/// A test on a real Prometheus divides all times, by their shape: see the head of the alerts.
#[test]
fn every_time_of_the_alerts_is_in_minutes() {
    let whole_minutes = |text: &str| text.strip_suffix('m').is_some_and(|number| number.parse::<u32>().is_ok());
    for rule in rules() {
        let expr = text(&rule["expr"]);
        for range in expr.split('[').skip(1).map(|rest| rest.split(']').next().unwrap()) {
            assert!(whole_minutes(range), "[{range}]");
        }
        if rule["alert"].is_string() {
            assert!(whole_minutes(text(&rule["for"])), "{rule}");
        }
    }
}
