//! The queries of the dashboard as Grafana would send them, so that a test can run each on a Prometheus.

use serde_json::Value;

/// One query of `grafana/dashboards/postrider.json`.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// Where it is: the panel's title, `annotation NAME` or `variable NAME`.
    pub panel: String,
    /// PromQL, with every variable replaced.
    pub expr: String,
}

/// Every query: of panels (collapsed rows too), annotations, and variables, for which it is the selector of their series.
/// Variables are "All"; `interval` is what Grafana would compute, as in `1m`.
pub(crate) fn queries(interval: &str) -> Vec<Query> {
    queries_for(interval, &[])
}

/// The same with some variables given, as in `("slot", "shop")`.
pub(crate) fn queries_for(interval: &str, given: &[(&str, &str)]) -> Vec<Query> {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/grafana/dashboards/postrider.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    panels(&dashboard["panels"], &mut queries);
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        let panel = format!("annotation {}", annotation["name"].as_str().unwrap());
        queries.push(Query { panel, expr: annotation["expr"].as_str().unwrap().to_owned() });
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            let panel = format!("variable {}", variable["name"].as_str().unwrap());
            let query = variable["query"]["query"].as_str().unwrap();
            let (selector, _) = query.strip_prefix("label_values(").unwrap().rsplit_once(',').unwrap();
            queries.push(Query { panel, expr: selector.to_owned() });
        }
    }
    let names: Vec<_> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    for query in &mut queries {
        for builtin in ["$__rate_interval", "$__interval", "$__range"] {
            query.expr = query.expr.replace(builtin, interval);
        }
        for name in &names {
            let value = given.iter().find(|(given, _)| given == name).map_or(".*", |(_, value)| *value);
            query.expr = query.expr.replace(&format!("${name}"), value);
        }
    }
    queries
}

fn panels(list: &Value, queries: &mut Vec<Query>) {
    for panel in list.as_array().unwrap() {
        if panel["type"] == "row" {
            panels(&panel["panels"], queries);
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            let (panel, expr) = (panel["title"].as_str().unwrap(), target["expr"].as_str().unwrap());
            queries.push(Query { panel: panel.to_owned(), expr: expr.to_owned() });
        }
    }
}

#[test]
fn every_variable_of_the_dashboard_is_replaced() {
    let all = queries("1m");
    assert!(all.len() > 60, "{}", all.len());
    for Query { panel, expr } in &all {
        assert!(!expr.contains('$'), "{panel}: {expr}");
    }
    let queries = queries_for("1m", &[("slot", "shop")]);
    let lag = queries.iter().find(|query| query.panel.starts_with("Delivery lag")).unwrap();
    assert_eq!(
        lag.expr,
        r#"min by (job, slot) (postrider_delivery_lag_seconds{job=~".*", instance=~".*", slot=~"shop"})"#
    );
}
