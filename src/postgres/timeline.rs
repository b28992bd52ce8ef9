//! The history of a server's timelines (manual, chapter "Continuous Archiving", section "Timelines").

use std::time::Duration;

use crate::lsn::Lsn;
use crate::postgres::replication::ReplicationConnection;

const QUICK: Duration = Duration::from_secs(10);

/// Where timeline `recorded` was left for the one that led to timeline `current`. `Err`: why it is not part of the history of `current`,
/// or why that is not known.
pub async fn fork(replication: &mut ReplicationConnection, recorded: i32, current: i32) -> Result<Lsn, String> {
    let rows = replication.query(&format!("TIMELINE_HISTORY {current}"), QUICK).await;
    let rows = rows.map_err(|error| format!("its history cannot be read: {}", crate::error::chain(&error)))?;
    // Two columns: the name of the file, and its content.
    let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten().unwrap_or_default();
    left_at(&content, recorded).ok_or_else(|| format!("timeline {recorded} is not part of the history of {current}"))
}

/// A line of a history file is a timeline, where it was left, and why, with tabs between them.
fn left_at(history: &str, timeline: i32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let number: i32 = words.next()?.parse().ok()?;
        if number == timeline { words.next()?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_was_left_where_its_line_says() {
        let history = "1\t0/A000198\tno recovery target specified\n\n2\t0/B0000A0\tbefore 2026-11-21\n";
        assert_eq!(left_at(history, 1), Some(Lsn(0xA00_0198)));
        assert_eq!(left_at(history, 2), Some(Lsn(0xB00_00A0)));
        assert_eq!(left_at(history, 3), None);
        assert_eq!(left_at("", 1), None);
    }
}
