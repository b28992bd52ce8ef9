//! Just enough of PromQL to say which series and labels an expression names.

use std::collections::BTreeSet;

const WORDS: [&str; 11] =
    ["and", "or", "unless", "bool", "by", "without", "on", "ignoring", "group_left", "group_right", "offset"];

/// What an expression names.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Named {
    /// Series with the labels of their selector.
    pub(super) series: Vec<(String, BTreeSet<String>)>,
    /// Labels of `by (...)`, `on (...)` and the like.
    pub(super) grouped: BTreeSet<String>,
}

pub(super) fn named(expr: &str) -> Named {
    let mut named = Named::default();
    let expr = without_strings(expr);
    let mut rest = expr.as_str();
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':' || c == '[') {
        let before = rest[..at].chars().next_back();
        rest = &rest[at..];
        if rest.starts_with('[') {
            rest = &rest[rest.find(']').unwrap()..];
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        // The e of 1e9.
        if before.is_some_and(|c| c.is_ascii_digit()) {
            continue;
        }
        let next = after.trim_start();
        if WORDS.contains(&word) {
            if let Some(list) = next.strip_prefix('(').filter(|_| !["and", "or", "unless", "bool"].contains(&word)) {
                let (list, after) = list.split_once(')').unwrap();
                named.grouped.extend(list.split(',').map(|label| label.trim().to_owned()).filter(|it| !it.is_empty()));
                rest = after;
            }
        } else if let Some(selector) = next.strip_prefix('{') {
            let (selector, after) = selector.split_once('}').unwrap();
            let labels = selector.split(',').filter(|matcher| !matcher.trim().is_empty());
            let labels = labels.map(|matcher| matcher.split(['=', '!']).next().unwrap().trim().to_owned()).collect();
            named.series.push((word.to_owned(), labels));
            rest = after;
        // A function or an aggregation, whose grouping may come before its argument.
        } else if !next.starts_with('(') && !next.starts_with("by ") {
            named.series.push((word.to_owned(), BTreeSet::new()));
        }
    }
    named
}

/// Texts have braces, commas and words in them.
fn without_strings(expr: &str) -> String {
    expr.split('"').step_by(2).collect()
}

#[test]
fn names_are_found_wherever_they_stand() {
    let expr =
        r#"max by (job, slot) (rate(a_total{op=~"b|c{}", x!="d"}[5m])) > 2 * 60 and on (q) (r:s:max == bool 0) or f"#;
    let labels = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let series = vec![
        ("a_total".to_owned(), labels(&["op", "x"])),
        ("r:s:max".to_owned(), labels(&[])),
        ("f".to_owned(), labels(&[])),
    ];
    assert_eq!(named(expr), Named { series, grouped: labels(&["job", "slot", "q"]) });
}
