//! Rule R4: which ways are probed, when, and with what.

use super::*;

/// Keys `k1` to `kn`, each parked, each with a way of its own.
fn ways(count: u64) -> Yard {
    let mut yard = Yard::with(|limits| limits.hold_for = Duration::ZERO);
    for n in 1..=count {
        yard.add(n, &format!("k{n}"), &format!("way{n}"));
    }
    for n in yard.go() {
        assert_eq!(yard.refuse(n, Refusal::Returned), Decision::Park);
    }
    yard.write();
    yard.commit_all();
    yard
}

#[test]
fn few_ways_are_probed_at_a_time_and_each_gets_its_turn() {
    let mut yard = ways(20);
    yard.bench.pass(10 * SECOND);
    let first = yard.write().fetch;
    assert_eq!(first.len(), 8);
    yard.rests(true);
    yard.arrive(&first);
    for n in yard.go() {
        yard.refuse(n, Refusal::Returned);
    }
    let second = yard.write().fetch;
    assert!(second.len() == 8 && second.iter().all(|n| !first.contains(n)), "{second:?}");
}

#[test]
fn a_way_is_probed_with_one_event_at_a_time_less_and_less_often() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Returned);
    let mut waits = Vec::new();
    for _ in 0..6 {
        let since = yard.bench.now;
        yard.bench.now = yard.bench.hold.next_wake(true).unwrap();
        waits.push(yard.bench.now - since);
        assert_eq!(yard.write().fetch, [1]);
        yard.arrive(&[1]);
        assert_eq!(yard.go(), [1]);
        yard.rests(true);
        yard.refuse(1, Refusal::Returned);
        yard.write();
    }
    assert!(waits[0] <= SECOND && waits[5] >= 2 * SECOND && waits[5] <= 4 * SECOND, "{waits:?}");
}

#[test]
fn an_event_that_is_refused_for_what_it_is_does_not_keep_its_way_shut_for_the_others() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Nacked);
    yard.add(2, "b", "way");
    yard.go();
    yard.write();
    yard.commit_all();
    // The queue takes 2, and never 1: it is too large for what is left there, or a header of it binds to nothing.
    let mut tried = Vec::new();
    for _ in 0..10 {
        yard.bench.pass(10 * SECOND);
        let fetch = yard.write().fetch;
        yard.arrive(&fetch);
        for n in yard.go() {
            tried.push(n);
            if n == 1 {
                yard.refuse(1, Refusal::Nacked);
            } else {
                yard.deliver(n);
            }
        }
    }
    assert!(tried.contains(&2), "{tried:?}");
    assert_eq!(yard.parked(), 1);
}

#[test]
fn a_probe_that_ends_without_a_verdict_is_made_again() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Returned);
    yard.bench.pass(10 * SECOND);
    yard.write();
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    yard.bench.hold.wire_lost();
    assert_eq!(yard.go(), [1]);
    // Somebody deletes the row of a probe that is on its way.
    yard.refuse(1, Refusal::Returned);
    yard.add(2, "b", "way");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.bench.pass(10 * SECOND);
    let probe = yard.write().fetch;
    assert_eq!(probe.len(), 1);
    yard.rows.remove(&probe[0]);
    yard.arrive(&probe);
    assert_eq!(yard.write().fetch.len(), 1, "with the other head, and at once");
}

#[test]
fn a_way_that_passes_lets_new_events_go_again_and_one_without_parked_events_is_forgotten() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Returned);
    assert_eq!(yard.bench.hold.lot().failing_ways().count(), 1);
    yard.mark(1, Mark::Discard);
    assert_eq!(yard.bench.hold.lot().failing_ways().count(), 0);
    yard.add(2, "a", "way");
    assert_eq!(yard.go(), [2]);
}

#[test]
fn nothing_is_probed_and_nothing_is_due_while_nothing_is_released() {
    let mut yard = ways(3);
    yard.bench.pass(10 * SECOND);
    assert_eq!(yard.errands(false), Round::default());
    yard.rests(false);
}

#[test]
fn ten_thousand_failing_ways_are_handled_quickly() {
    let mut yard = Yard::with(|limits| {
        limits.hold_for = Duration::ZERO;
        limits.window = 50_000;
        limits.waiting = 50_000;
        limits.window_bytes = 1 << 30;
    });
    let began = Instant::now();
    for n in 1..=10_000 {
        yard.add(n, &format!("k{n}"), &format!("way{n}"));
    }
    for n in yard.go() {
        yard.refuse(n, Refusal::Returned);
    }
    yard.write();
    yard.commit_all();
    let letters: Vec<DeadLetter> = yard.rows.values().map(|row| letter(row, None)).collect();
    yard.restart_with(letters);
    yard.bench.hold.exchange_failed("x", Reason::ExchangeMissing, "words", yard.bench.now);
    assert!(began.elapsed() < 20 * SECOND, "{:?}", began.elapsed());
}
