//! Dead letters for a terminal.

use super::Parked;
use crate::cli::text::{bytes, harmless};

/// Longest value of a column in a table: more is for `--json`.
const WIDEST: usize = 40;

/// `2026-11-21T10:15:30.123456+00:00` as a table shows it. Sessions of ours are in UTC.
pub(super) fn seconds(timestamp: &str) -> String {
    format!("{}Z", timestamp.get(..19).unwrap_or(timestamp))
}

/// "1 dead letter", "2 dead letters".
pub(super) fn counted(count: i64) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}

/// One line a letter, in columns as wide as they need to be.
pub(super) fn table(letters: &[Parked]) -> String {
    let header = ["ID", "PARKED", "REASON", "TRIES", "AGGREGATE", "TYPE", "EXCHANGE", "ROUTING KEY", "SIZE", "MARK"];
    let mut rows = vec![header.map(str::to_owned)];
    for letter in letters {
        let aggregate = match (&letter.aggregatetype, &letter.aggregateid) {
            (None, None) => "-".to_owned(),
            (kind, id) => format!("{}/{}", kind.as_deref().unwrap_or("?"), id.as_deref().unwrap_or("?")),
        };
        rows.push([
            letter.id.to_string(),
            seconds(&letter.parked_at),
            letter.reason.clone(),
            letter.attempts.to_string(),
            cut(&aggregate),
            cut(letter.r#type.as_deref().unwrap_or("-")),
            cut(&letter.exchange),
            cut(&letter.routing_key),
            bytes(letter.body_bytes),
            letter.mark.clone().unwrap_or_default(),
        ]);
    }
    let mut widths = [0; 10];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        table.push_str(cells.join("  ").trim_end());
        table.push('\n');
    }
    table
}

fn cut(text: &str) -> String {
    let shown = harmless(text, &[]);
    match shown.char_indices().nth(WIDEST) {
        Some(_) => shown.chars().take(WIDEST - 1).chain(['…']).collect(),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut() {
        assert_eq!(cut(&"ä".repeat(41)).chars().count(), 40);
        assert_eq!(cut(&"ä".repeat(40)), "ä".repeat(40));
    }

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let json = r#"{"id": 7, "slot": "s", "position": "p", "event_id": "e", "keys": ["k"], "aggregatetype": "order",
            "aggregateid": "42", "type": null, "route": "default", "exchange": "events", "routing_key": "order.Placed",
            "reason": "unroutable", "error": "NO_ROUTE", "holds_key": true, "attempts": 3, "body_bytes": 440,
            "committed_at": "2026-11-21T10:15:30.123456+00:00", "parked_at": "2026-11-21T10:16:30.123456+00:00",
            "last_attempt_at": null, "mark": "redrive", "marked_at": null, "marked_by": null}"#;
        let letters = [serde_json::from_str(json).unwrap()];
        insta::assert_snapshot!(table(&letters), @r"
        ID  PARKED                REASON      TRIES  AGGREGATE  TYPE  EXCHANGE  ROUTING KEY   SIZE   MARK
        7   2026-11-21T10:16:30Z  unroutable  3      order/42   -     events    order.Placed  440 B  redrive
        ");
    }
}
