mod dashboard;
mod manifest;
mod promql;

use super::*;

/// Metrics of which every series is exported.
fn complete() -> Metrics {
    let metrics = Metrics::new("postrider", &["default".to_owned()]).unwrap();
    for gauge in [&metrics.last_received_commit, &metrics.last_confirmed_commit] {
        gauge.get();
    }
    for gauge in [
        &metrics.slot_active,
        &metrics.slot_confirmed_lag_bytes,
        &metrics.slot_retained_bytes,
        &metrics.slot_safe_wal_bytes,
        &metrics.slot_catalog_xmin_age,
    ] {
        gauge.get();
    }
    metrics.set_slot_wal_status("reserved");
    metrics.heartbeat_passed();
    let sample = QueueSample {
        ready: Some(1),
        unacked: Some(1),
        consumers: Some(1),
        lag_seconds: Some(1.0),
        objective_seconds: Some(30.0),
        stalled_seconds: Some(0.0),
        stream_lag_messages: Some(1),
        ..QueueSample::default()
    };
    metrics.queues.show("/", "billing", &sample);
    metrics.queues.show_dead_letter_queue("/", "billing.dlq", Some(DeadLetterQueueSample::default()));
    metrics.sampled("slot");
    metrics.set_delivered_up_to(SystemTime::now(), SystemTime::now(), SystemTime::now());
    metrics.set_dead_letters([(Reason::Behind, "default", 1)].into_iter());
    metrics.set_oldest_dead_letter(Some(SystemTime::now()));
    for op in OPS {
        metrics.changes_read.with_label_values(&[op]);
    }
    metrics
}

/// The table of `docs/metrics.md`: name, type, labels beside `slot`, and HELP.
fn table(exposition: &str) -> String {
    let mut table = "| metric | type | labels | what it says |\n|---|---|---|---|\n".to_owned();
    let mut help = "";
    for line in exposition.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let series = exposition
                .lines()
                .find(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name}_bucket{{")));
            let labels = series.unwrap().split_once('{').unwrap().1.split_once('}').unwrap().0;
            let names: Vec<_> = labels
                .split("\",")
                .map(|label| label.split_once('=').unwrap().0)
                .filter(|name| !["slot", "le"].contains(name))
                .map(|name| format!("`{name}`"))
                .collect();
            table += &format!("| `{name}` | {kind} | {} | {help} |\n", names.join(", "));
        }
    }
    table
}

#[test]
fn every_metric_is_documented_as_its_help_says() {
    let table = table(&complete().render().unwrap());
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    assert!(page.contains(&table), "docs/metrics.md must contain:\n\n{table}");
}

#[test]
fn a_sampled_gauge_appears_with_its_first_sample() {
    let metrics = Metrics::new("postrider", &[]).unwrap();
    assert!(!metrics.render().unwrap().contains("postrider_slot_active"));
    metrics.slot_active.get().set(0);
    assert!(metrics.render().unwrap().contains("postrider_slot_active{slot=\"postrider\"} 0\n"));
    metrics.slot_active.clear();
    assert!(!metrics.render().unwrap().contains("postrider_slot_active"));
}

/// For `promtool check metrics` in scripts/lint.
#[test]
fn a_whole_exposition_is_written_for_promtool() {
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    std::fs::create_dir_all(target).unwrap();
    std::fs::write(format!("{target}/exposition.prom"), complete().render().unwrap()).unwrap();
}

#[test]
fn the_process_says_when_it_started() {
    let text = complete().render().unwrap();
    let line = text.lines().find(|line| line.starts_with("process_start_time_seconds{slot=\"postrider\"} "));
    let started: f64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 3600.0..=now + 1.0).contains(&started), "{started} {now}");
}
