//! Dead letters that are not what the relay has written.

use super::*;

/// Given by the slot; returns where it goes, if it goes anywhere, and whether it is resolved.
fn given(yard: &mut Yard, n: u64, key: &str, kind: &str) -> (Option<Position>, bool) {
    yard.add(n, key, kind);
    let now = yard.bench.now;
    let out = yard.bench.hold.take_next(now).map(|event| event.position);
    (out, !yard.bench.hold.take_resolved().is_empty())
}

#[test]
fn an_event_is_not_taken_for_the_dead_letter_of_another_one_at_its_position() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Returned);
    let own = letter(&yard.rows[&1], None);
    let other = DeadLetter { event_id: "another".into(), ..own.clone() };
    yard.restart_with(vec![other.clone()]);
    let place = Position { part: 128, ..position(1) };
    assert_eq!(given(&mut yard, 1, "b", "free"), (Some(place), false));
    let displaced = yard.bench.hold.take_displaced();
    assert_eq!((displaced[0].from, displaced[0].to, displaced.len()), (position(1), place, 1));

    // Parked there, it is known there; whether the other one is still there or not.
    let moved = DeadLetter { position: place, ..own };
    for letters in [vec![other.clone(), moved.clone()], vec![moved]] {
        yard.restart_with(letters);
        assert_eq!(given(&mut yard, 1, "b", "free"), (None, true));
    }
    // What has left is told by its id too.
    yard.restart_with(vec![other]);
    assert!(yard.mark(1, Mark::Discard));
    assert_eq!(given(&mut yard, 1, "b", "free"), (Some(position(1)), false));
}

#[test]
fn what_cannot_be_read_waits_for_a_person_and_the_rest_of_its_key_behind_it() {
    let mut yard = Yard::new();
    for (n, key) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        yard.add(n, key, "way");
    }
    yard.go();
    yard.refuse(1, Refusal::Returned);
    yard.refuse(4, Refusal::Returned);
    yard.bench.pass(HOLD_FOR);
    yard.go();
    yard.errands(false);
    yard.commit_all();
    yard.restart();
    assert_eq!(yard.parked(), 4);
    let unreadable = |yard: &mut Yard, fetch: &[u64]| {
        if fetch.contains(&1) {
            yard.bench.hold.unreadable(position(1), "why", yard.bench.now);
        }
        yard.arrive(fetch);
        yard.bench.hold.recount().unwrap();
    };
    let mut delivered = Vec::new();
    let mut failed = Vec::new();
    for _ in 0..20 {
        let round = yard.write();
        failed.extend(round.failed);
        unreadable(&mut yard, &round.fetch);
        for n in yard.go() {
            yard.deliver(n);
            delivered.push(n);
        }
        yard.bench.pass(SECOND);
    }
    assert_eq!((delivered, failed), (vec![4], vec![(1, "unreadable")]));
    yard.rests(true);
    // Asked for and still not readable: once more, and no more.
    yard.mark(1, Mark::Redrive);
    let fetch = yard.write().fetch;
    assert_eq!(fetch, [1, 2, 3], "with what may follow it");
    unreadable(&mut yard, &fetch);
    assert_eq!((yard.write().failed, yard.write()), (vec![(1, "unreadable")], Round::default()));
    // Mended.
    yard.mark(1, Mark::Redrive);
    assert_eq!(yard.flow_on(), [1, 2, 3]);
}
