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
    ] {
        gauge.get();
    }
    metrics.set_slot_wal_status("reserved");
    metrics.queue_messages_ready.with_label_values(&["/", "billing"]);
    metrics.queue_consumers.with_label_values(&["/", "billing"]);
    metrics.sampler_last_success.with_label_values(&["slot"]);
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
