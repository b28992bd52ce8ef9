use std::time::Duration;

use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn progress() -> Progress {
    Progress::new(1, Lsn(100))
}

/// A transaction that ends at `end`, with one ticket for each event.
fn transaction(progress: &mut Progress, end: u64, events: usize) -> Vec<Ticket> {
    progress.begin().unwrap();
    let tickets = (0..events).map(|_| progress.event().unwrap()).collect();
    progress.commit(Lsn(end), at(end)).unwrap();
    tickets
}

#[test]
fn a_transaction_is_acknowledged_when_its_last_event_is_resolved() {
    let mut progress = progress();
    let tickets = transaction(&mut progress, 200, 3);
    assert!(progress.resolve(tickets[0]));
    assert!(progress.resolve(tickets[1]));
    assert_eq!((progress.acknowledged(), progress.unresolved()), (Lsn(100), 1));
    assert!(progress.resolve(tickets[2]));
    assert_eq!((progress.acknowledged(), progress.unresolved()), (Lsn(200), 0));
    assert_eq!(progress.delivered_up_to(), Some(at(200)));
}

#[test]
fn nothing_is_acknowledged_past_an_unresolved_transaction() {
    let mut progress = progress();
    let first = transaction(&mut progress, 200, 1);
    let second = transaction(&mut progress, 300, 1);
    progress.keepalive(Lsn(350));
    assert!(progress.resolve(second[0]));
    assert_eq!((progress.acknowledged(), progress.delivered_up_to()), (Lsn(100), None));
    assert!(progress.resolve(first[0]));
    assert_eq!((progress.acknowledged(), progress.delivered_up_to()), (Lsn(350), Some(at(300))));
}

#[test]
fn a_keepalive_is_not_acknowledged_past_a_non_transactional_message_in_flight() {
    let mut progress = progress();
    let ticket = progress.message(Lsn(200)).unwrap();
    progress.keepalive(Lsn(300));
    assert_eq!(progress.acknowledged(), Lsn(100));
    assert!(progress.resolve(ticket));
    assert_eq!(progress.acknowledged(), Lsn(300));
}

#[test]
fn a_late_ticket_of_an_old_session_resolves_nothing_in_the_new_one() {
    let mut old = progress();
    let late = transaction(&mut old, 200, 1)[0];
    let mut new = Progress::new(2, Lsn(100));
    let fresh = transaction(&mut new, 200, 1)[0];
    assert_eq!(late.entry, fresh.entry);
    assert!(!new.resolve(late));
    assert_eq!((new.acknowledged(), new.unresolved()), (Lsn(100), 1));
    assert!(new.resolve(fresh));
    assert_eq!(new.acknowledged(), Lsn(200));
}

#[test]
fn a_ticket_counts_once() {
    let mut progress = progress();
    let first = transaction(&mut progress, 200, 1)[0];
    let second = transaction(&mut progress, 300, 1)[0];
    assert!(progress.resolve(second));
    assert!(!progress.resolve(second));
    assert!(progress.resolve(first));
    assert!(!progress.resolve(first));
    assert!(!progress.resolve(Ticket { session: 1, entry: 99 }));
    assert_eq!((progress.acknowledged(), progress.unresolved()), (Lsn(300), 0));
}

#[test]
fn events_resolved_before_their_commit_is_received_are_not_acknowledged_before_it() {
    let mut progress = progress();
    progress.begin().unwrap();
    let ticket = progress.event().unwrap();
    assert!(progress.resolve(ticket));
    assert_eq!((progress.acknowledged(), progress.unresolved()), (Lsn(100), 0));
    let more = progress.event().unwrap();
    progress.commit(Lsn(200), at(200)).unwrap();
    assert_eq!(progress.acknowledged(), Lsn(100));
    assert!(progress.resolve(more));
    assert_eq!(progress.acknowledged(), Lsn(200));
}

#[test]
fn a_transaction_without_events_is_passed_like_a_keepalive() {
    let mut progress = progress();
    transaction(&mut progress, 200, 0);
    assert_eq!((progress.acknowledged(), progress.delivered_up_to()), (Lsn(200), Some(at(200))));
    progress.keepalive(Lsn(300));
    progress.empty_message(Lsn(400)).unwrap();
    assert_eq!((progress.acknowledged(), progress.delivered_up_to()), (Lsn(400), Some(at(200))));
    assert_eq!(progress.entries(), 0);
}

#[test]
fn a_keepalive_inside_a_transaction_is_only_received() {
    let mut progress = progress();
    progress.begin().unwrap();
    progress.keepalive(Lsn(150));
    assert_eq!((progress.acknowledged(), progress.received()), (Lsn(100), Lsn(150)));
    assert!(progress.is_transaction_open());
    progress.commit(Lsn(200), at(200)).unwrap();
    assert_eq!((progress.acknowledged(), progress.received()), (Lsn(200), Lsn(200)));
    assert!(!progress.is_transaction_open());
}

#[test]
fn a_keepalive_from_behind_changes_nothing() {
    let mut progress = progress();
    progress.keepalive(Lsn(50));
    assert_eq!((progress.acknowledged(), progress.received(), progress.delivered_up_to()), (Lsn(100), Lsn(100), None));
    transaction(&mut progress, 200, 0);
    progress.keepalive(Lsn(150));
    assert_eq!((progress.acknowledged(), progress.delivered_up_to()), (Lsn(200), Some(at(200))));
}

#[test]
fn a_keepalive_with_a_backlog_behind_it_does_not_claim_to_be_on_time() {
    let mut progress = progress();
    // The walsender has begun to read, and says so; the WAL's end is far away.
    progress.keepalive(Lsn(110));
    progress.reading(Lsn(300), at(9_000));
    assert_eq!(progress.delivered_up_to(), None);
    let first = transaction(&mut progress, 200, 1)[0];
    progress.keepalive(Lsn(210));
    assert!(progress.resolve(first));
    assert_eq!(progress.delivered_up_to(), Some(at(200)), "as old as what was delivered");
    let last = transaction(&mut progress, 300, 1)[0];
    assert!(progress.resolve(last));
    assert_eq!(progress.delivered_up_to(), Some(at(9_000)));
}

#[test]
fn a_database_without_traffic_is_not_late() {
    let mut progress = progress();
    progress.reading(Lsn(100), at(500));
    assert_eq!(progress.delivered_up_to(), Some(at(500)));
    // One that is not passed yet stays until it is: under load a later one would never be.
    progress.reading(Lsn(150), at(600));
    progress.reading(Lsn(250), at(700));
    progress.keepalive(Lsn(200));
    assert_eq!(progress.delivered_up_to(), Some(at(600)));
    progress.reading(Lsn(200), at(800));
    assert_eq!(progress.delivered_up_to(), Some(at(800)));
}

#[test]
fn the_length_is_bounded_by_the_unresolved_events() {
    let mut progress = progress();
    let blocking = transaction(&mut progress, 101, 1)[0];
    let mut other = Vec::new();
    for n in 0..1000 {
        let base = 102 + n * 10;
        let tickets = transaction(&mut progress, base, 2);
        progress.keepalive(Lsn(base + 1));
        progress.empty_message(Lsn(base + 2)).unwrap();
        transaction(&mut progress, base + 3, 0);
        progress.keepalive(Lsn(base + 4));
        other.extend(tickets);
        assert!(progress.entries() as u64 <= progress.unresolved());
    }
    // Every second one first, so that resolved and unresolved entries alternate.
    for tickets in [other.iter().step_by(4), other[1..].iter().step_by(4)] {
        for ticket in tickets {
            assert!(progress.resolve(*ticket));
        }
    }
    assert_eq!((progress.unresolved(), progress.entries()), (1001, 501));
    for ticket in other[2..].chunks(4).flat_map(|chunk| &chunk[..2]) {
        assert!(progress.resolve(*ticket));
    }
    assert_eq!((progress.unresolved(), progress.entries(), progress.acknowledged()), (1, 1, Lsn(100)));
    assert!(progress.resolve(blocking));
    assert_eq!((progress.acknowledged(), progress.entries()), (progress.received(), 0));
}

#[test]
fn a_transaction_of_a_million_rows_is_one_entry() {
    let mut progress = progress();
    let tickets = transaction(&mut progress, 200, 1_000_000);
    assert_eq!(progress.entries(), 1);
    for ticket in tickets {
        assert!(progress.resolve(ticket));
    }
    assert_eq!(progress.acknowledged(), Lsn(200));
}

#[test]
fn what_pgoutput_never_sends_is_an_error() {
    let mut progress = progress();
    assert_eq!(progress.event(), Err(ProgressError::EventWithoutBegin));
    assert_eq!(progress.commit(Lsn(200), at(200)), Err(ProgressError::CommitWithoutBegin));
    progress.begin().unwrap();
    assert_eq!(progress.begin(), Err(ProgressError::BeginInTransaction));
    assert_eq!(progress.message(Lsn(200)), Err(ProgressError::MessageInTransaction));
    assert_eq!(progress.empty_message(Lsn(200)), Err(ProgressError::MessageInTransaction));
    let backwards = ProgressError::Backwards { end: Lsn(99), after: Lsn(100) };
    assert_eq!(progress.commit(Lsn(99), at(99)), Err(backwards));
    progress.commit(Lsn(200), at(200)).unwrap();
    let backwards = ProgressError::Backwards { end: Lsn(150), after: Lsn(200) };
    assert_eq!(progress.message(Lsn(150)), Err(backwards));
    assert_eq!((progress.acknowledged(), progress.unresolved(), progress.entries()), (Lsn(200), 0, 0));
}
