//! The publications of captured tables, as the halt rules compare them (D9): tables may be added at any time, and none may leave.
//!
//! `migrate` makes and changes them, as the owner ([`crate::migrate`]); the relay only looks. What it has found is kept as one line of text
//! behind what the outbox's publication is made of, in `postrider.progress`:
//!
//! ```text
//! publication 16400 inserts ...; tables of 16410 iudtr, 16411 itr: 16390 a 16420, 16395 i 16421
//! ```
//!
//! **When they begin to count.** PostgreSQL reads the catalogue as of each change. Before 18 it refuses, again and again, to decode a change
//! from before a publication was made. So a slot that is older than they are is read without them until everything that it still has to send
//! knows them. From then on they are in the record.

use std::fmt;

use tokio_postgres::Client;

use crate::config::Source;

/// Between what the outbox's publication is made of and the rest.
const MARK: &str = "; tables of ";

/// What the two publications are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    all_changes: Publication,
    inserts: Publication,
    members: Vec<Member>,
}

/// A publication by its OID, and a letter for each thing that it publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Publication {
    oid: u32,
    publishes: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    table: u32,
    /// `a` or `i`.
    place: String,
    membership: u32,
}

/// A record that no relay has written so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// What the server shows.
#[derive(Clone, Debug)]
pub struct Found {
    pub captured: Captured,
    /// All that the slot still has to send knows the publications.
    pub settled: bool,
}

/// Looks at both; the name of one that is missing.
pub async fn look(sql: &Client, source: &Source, slot: &str) -> Result<Result<Found, String>, tokio_postgres::Error> {
    let row = sql
        .query_one(
            include_str!("../../sql/queries/captured_state.sql"),
            &[&source.publication, &source.publication_inserts, &slot],
        )
        .await?;
    let (all_changes, inserts) = match (row.get("all_changes"), row.get("inserts")) {
        (Some(all_changes), Some(inserts)) => (all_changes, inserts),
        (None, _) => return Ok(Err(source.publication.clone())),
        (_, None) => return Ok(Err(source.publication_inserts.clone())),
    };
    let members = row.get::<_, Vec<String>>("members");
    Ok(Ok(Found {
        captured: Captured {
            all_changes: Publication { oid: all_changes, publishes: row.get("publishes") },
            inserts: Publication { oid: inserts, publishes: row.get("publishes_inserts") },
            members: members.iter().filter_map(|member| Member::parse(member)).collect(),
        },
        settled: row.get("settled"),
    }))
}

impl Captured {
    /// What of `recorded` is not there any more: rows have passed unseen, or will. A table that was dropped has left nothing behind, and
    /// one that the configuration does not name any more is not missed.
    pub async fn lost(
        &self,
        recorded: &Captured,
        source: &Source,
        sql: &Client,
    ) -> Result<Option<String>, tokio_postgres::Error> {
        let pairs = [(&recorded.all_changes, &self.all_changes), (&recorded.inserts, &self.inserts)];
        for (recorded, found) in pairs {
            if recorded.oid != found.oid {
                return Ok(Some("a publication of captured tables was made again".to_owned()));
            }
            if !recorded.publishes.chars().all(|letter| found.publishes.contains(letter)) {
                return Ok(Some("a publication of captured tables does not publish what it did".to_owned()));
            }
        }
        let absent: Vec<u32> =
            recorded.members.iter().filter(|member| !self.keeps(member)).map(|member| member.table).collect();
        if absent.is_empty() {
            return Ok(None);
        }
        let rows = sql.query(include_str!("../../sql/queries/captured_left.sql"), &[&absent, &source.tables]).await?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        Ok((!names.is_empty())
            .then(|| format!("{} left the publications of captured tables, or was away", names.join(", "))))
    }

    /// `migrate` moves a table from one to the other in one transaction. In the same one it has the same membership, or was away.
    fn keeps(&self, recorded: &Member) -> bool {
        let mut found = self.members.iter().filter(|member| member.table == recorded.table).peekable();
        let there = found.peek().is_some();
        there && found.all(|member| member.place != recorded.place || member.membership == recorded.membership)
    }

    /// Tells a record into what the outbox's publication is made of, and this; `None`: captured tables were never recorded.
    pub fn split(recorded: &str) -> (&str, Option<Result<Captured, Damaged>>) {
        match recorded.split_once(MARK) {
            Some((main, captured)) => (main, Some(Captured::parse(captured).ok_or(Damaged))),
            None => (recorded, None),
        }
    }

    /// The record of both.
    pub fn join(main: &str, captured: Option<&Captured>) -> String {
        captured.map_or_else(|| main.to_owned(), |captured| format!("{main}{MARK}{captured}"))
    }

    fn parse(text: &str) -> Option<Captured> {
        let (publications, members) = text.split_once(": ")?;
        let (all_changes, inserts) = publications.split_once(", ")?;
        Some(Captured {
            all_changes: Publication::parse(all_changes)?,
            inserts: Publication::parse(inserts)?,
            members: match members {
                "" => Vec::new(),
                members => members.split(", ").map(Member::parse).collect::<Option<_>>()?,
            },
        })
    }
}

impl Publication {
    fn parse(text: &str) -> Option<Publication> {
        let (oid, publishes) = text.split_once(' ')?;
        Some(Publication { oid: oid.parse().ok()?, publishes: publishes.to_owned() })
    }
}

impl Member {
    fn parse(text: &str) -> Option<Member> {
        let mut words = text.split(' ');
        let (table, place, membership) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !matches!(place, "a" | "i") {
            return None;
        }
        Some(Member { table: table.parse().ok()?, place: place.to_owned(), membership: membership.parse().ok()? })
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Captured { all_changes, inserts, members } = self;
        write!(f, "{} {}, {} {}: ", all_changes.oid, all_changes.publishes, inserts.oid, inserts.publishes)?;
        let members: Vec<String> =
            members.iter().map(|Member { table, place, membership }| format!("{table} {place} {membership}")).collect();
        f.write_str(&members.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(table: u32, place: &str, membership: u32) -> Member {
        Member { table, place: place.to_owned(), membership }
    }

    fn captured(members: Vec<Member>) -> Captured {
        Captured {
            all_changes: Publication { oid: 1, publishes: "iudtr".to_owned() },
            inserts: Publication { oid: 2, publishes: "itr".to_owned() },
            members,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for members in [vec![], vec![member(7, "a", 8)], vec![member(7, "a", 8), member(9, "i", 10)]] {
            let captured = captured(members);
            let text = Captured::join("publication 3 inserts by root", Some(&captured));
            assert_eq!(Captured::split(&text), ("publication 3 inserts by root", Some(Ok(captured))));
        }
    }

    #[test]
    fn a_record_that_is_damaged_is_told_from_none() {
        for captured in
            ["", "1 iudtr, 2 itr", "1 iudtr: ", "x iudtr, 2 itr: ", "1 iudtr, 2 itr: 7 a", "1 iudtr, 2 itr: 7 b 8"]
        {
            let text = format!("publication 3 inserts{MARK}{captured}");
            assert_eq!(Captured::split(&text), ("publication 3 inserts", Some(Err(Damaged))), "{text}");
        }
    }

    #[test]
    fn a_record_from_before_there_were_captured_tables_is_what_it_was() {
        assert_eq!(Captured::split("publication 3 inserts"), ("publication 3 inserts", None));
        assert_eq!(Captured::join("publication 3 inserts", None), "publication 3 inserts");
    }

    #[test]
    fn a_table_may_move_and_may_not_leave_or_come_back() {
        let recorded = member(7, "i", 8);
        assert!(captured(vec![member(7, "i", 8)]).keeps(&recorded));
        assert!(captured(vec![member(7, "a", 9)]).keeps(&recorded), "moved");
        assert!(captured(vec![member(7, "a", 9), member(7, "i", 8)]).keeps(&recorded), "in both for a moment");
        assert!(!captured(vec![member(7, "i", 9)]).keeps(&recorded), "away and back");
        assert!(!captured(vec![member(6, "i", 8)]).keeps(&recorded), "gone");
    }
}
