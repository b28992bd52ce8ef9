//! Rule R4: what is released, when, and before whom.

use super::*;

/// `n` is parked, its way failing, and its probe due.
fn parked(n: u64, key: &str, kind: &str) -> Yard {
    let mut yard = Yard::new();
    yard.add(n, key, kind);
    yard.park(n, Refusal::Returned);
    yard
}

#[test]
fn only_the_head_of_a_key_is_published_as_a_probe() {
    let mut yard = parked(1, "a", "unbound");
    yard.add(2, "a", "unbound");
    yard.add(3, "b", "unbound");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.bench.pass(10 * SECOND);
    assert_eq!(yard.write().fetch, [1]);
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    yard.rests(true);
    assert_eq!(yard.deliver(1).released, Some(Released::ByItself));
    // Its way has passed: the others go, each key in its order.
    assert_eq!(yard.write(), Round { remove: vec![1], fetch: vec![2, 3], ..Round::default() });
}

#[test]
fn a_follower_does_not_go_when_its_own_way_passes_while_its_head_is_stuck() {
    let mut yard = parked(1, "k", "Placed");
    yard.add(2, "k", "Paid");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.add(3, "other", "Paid");
    yard.park(3, Refusal::Nacked);
    yard.bench.pass(10 * SECOND);
    let mut fetch = yard.write().fetch;
    fetch.sort_unstable();
    assert_eq!(fetch, [1, 3]);
    yard.arrive(&fetch);
    assert_eq!(yard.go(), [1, 3]);
    yard.deliver(3);
    assert_eq!(yard.write(), Round { remove: vec![3], ..Round::default() });
    yard.refuse(1, Refusal::Returned);
    assert_eq!(yard.write().failed, [(1, "unroutable")]);
    yard.bench.pass(10 * SECOND);
    let fetch = yard.write().fetch;
    assert_eq!(fetch, [1], "its head is a probe, and nothing else goes");
    yard.arrive(&fetch);
    assert_eq!(yard.flow_on(), [1, 2]);
}

#[test]
fn a_key_is_parked_as_long_as_an_insert_of_it_is_not_committed() {
    let mut yard = parked(50, "k", "unbound");
    yard.add(51, "k", "bound");
    // The insert of 51 takes its time. 50 goes out as a probe meanwhile, and arrives.
    assert_eq!(yard.write().park, [(51, "behind")]);
    yard.bench.pass(10 * SECOND);
    assert_eq!(yard.write().fetch, [50]);
    yard.arrive(&[50]);
    assert_eq!(yard.go(), [50]);
    yard.deliver(50);
    assert_eq!(yard.keys(), 1);
    yard.add(52, "k", "bound");
    assert!(yard.go().is_empty());
    assert_eq!(yard.write(), Round { park: vec![(52, "behind")], remove: vec![50], ..Round::default() });
    yard.commit_all();
    assert_eq!(yard.flow_on(), [51, 52]);
}

#[test]
fn an_insert_that_is_not_committed_is_taken_with_its_head_and_later_events_wait_behind_it() {
    let mut yard = parked(1, "a", "way");
    yard.add(50, "k", "way");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.add(51, "k", "way");
    assert_eq!(yard.write().park, [(51, "behind")]);
    yard.bench.pass(10 * SECOND);
    yard.write();
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    yard.deliver(1);
    assert_eq!(yard.write().fetch, [50, 51], "after the insert of 51, in the order of the desk");
    assert_eq!(yard.keys(), 0);
    yard.add(52, "k", "way");
    assert!(yard.go().is_empty(), "52 waits in the window for what comes from the database");
    assert_eq!(yard.commit_all(), [51]);
    yard.arrive(&[50, 51]);
    assert_eq!(yard.flow(), [50, 51, 52]);
}

#[test]
fn a_hot_key_leaves_the_lot_though_its_events_keep_coming() {
    let mut yard = parked(1, "hot", "way");
    let mut next = 2;
    for _ in 0..1_000 {
        yard.add(next, "hot", "way");
        next += 1;
    }
    yard.go();
    yard.write();
    yard.commit_all();
    yard.bench.pass(10 * SECOND);
    // Two more for each round of the database, and one after each publish: it never catches up row by row.
    let mut published = Vec::new();
    for _ in 0..5_000 {
        let round = yard.write();
        yard.commit_all();
        yard.add(next, "hot", "way");
        yard.arrive(&round.fetch);
        yard.add(next + 1, "hot", "way");
        next += 2;
        for n in yard.go() {
            yard.deliver(n);
            published.push(n);
        }
        while let Some(n) = yard.go().first().copied() {
            yard.deliver(n);
            published.push(n);
            if n % 4 == 0 {
                yard.add(next, "hot", "way");
                next += 1;
            }
        }
        if yard.keys() == 0 && yard.parked() == 0 {
            break;
        }
    }
    assert_eq!((yard.keys(), yard.parked()), (0, 0));
    assert!(published.is_sorted() && published.len() > 1_000);
}

#[test]
fn a_released_event_that_is_refused_again_stays_parked_and_its_followers_with_it() {
    let mut yard = parked(1, "a", "way");
    for n in 2..=4 {
        yard.add(n, "a", "way");
    }
    yard.go();
    yard.write();
    yard.commit_all();
    yard.bench.pass(10 * SECOND);
    yard.write();
    yard.arrive(&[1]);
    yard.go();
    yard.deliver(1);
    assert_eq!(yard.write().fetch, [2, 3, 4]);
    yard.arrive(&[2, 3, 4]);
    assert_eq!(yard.go(), [2]);
    yard.add(5, "a", "way");
    assert_eq!(yard.keys(), 0);
    assert_eq!(yard.refuse(2, Refusal::Nacked), Decision::Park);
    assert_eq!((yard.keys(), yard.parked()), (1, 4), "2, 3, 4, and 5 behind them");
    let round = yard.write();
    assert_eq!((round.failed, round.park), (vec![(2, "nacked")], vec![(5, "behind")]));
    assert!(yard.go().is_empty());
    yard.commit_all();
    assert_eq!(yard.flow_on(), [2, 3, 4, 5]);
}

#[test]
fn a_way_that_fails_while_events_for_it_are_on_their_way_takes_them_back() {
    let mut yard = parked(1, "a", "way");
    yard.add(2, "b", "way");
    yard.add(3, "b", "way");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.bench.pass(10 * SECOND);
    yard.write();
    yard.arrive(&[1]);
    yard.go();
    yard.deliver(1);
    assert_eq!(yard.write().fetch, [2, 3]);
    // The queue is gone again before they have come.
    yard.add(4, "c", "way");
    yard.add(5, "d", "way");
    assert_eq!(yard.go(), [4, 5]);
    while yard.refuse(4, Refusal::Returned) != Decision::Park {
        yard.bench.pass(SECOND);
        yard.bench.now = yard.bench.now.max(yard.bench.hold.next_wake(true).unwrap_or(yard.bench.now));
        if !yard.go().contains(&4) {
            break;
        }
    }
    yard.write();
    yard.commit_all();
    yard.arrive(&[2, 3]);
    assert!(yard.go().is_empty(), "their way is known to fail");
    assert_eq!(yard.bench.hold.stats().released, 0);
    yard.bench.hold.recount().unwrap();
}

#[test]
fn what_was_released_is_not_asked_for_again_while_it_is_on_its_way() {
    let mut yard = parked(1, "a", "way");
    yard.bench.pass(10 * SECOND);
    assert_eq!(yard.write().fetch, [1]);
    yard.bench.pass(100 * SECOND);
    assert_eq!(yard.write(), Round::default());
    yard.rests(true);
}

#[test]
fn a_row_that_somebody_has_deleted_frees_its_key() {
    let mut yard = parked(1, "a", "way");
    yard.add(2, "a", "bound");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.rows.remove(&1);
    yard.bench.pass(10 * SECOND);
    let fetch = yard.write().fetch;
    yard.arrive(&fetch);
    assert_eq!(yard.parked(), 1);
    assert_eq!(yard.flow(), [2]);
}

#[test]
fn parked_events_in_the_window_are_bounded() {
    let mut yard = Yard::with(|limits| limits.waiting = 10_000);
    yard.add(1, "first", "way");
    yard.park(1, Refusal::Returned);
    for n in 2..=3_000 {
        yard.add(n, &format!("k{}", n % 500), "way");
    }
    yard.go();
    yard.write();
    yard.commit_all();
    yard.bench.pass(10 * SECOND);
    yard.write();
    yard.arrive(&[1]);
    yard.go();
    yard.deliver(1);
    let fetch = yard.write().fetch;
    assert!((1_000..1_300).contains(&fetch.len()), "{}", fetch.len());
    assert_eq!(yard.write(), Round::default());
    yard.rests(true);
    yard.arrive(&fetch);
    assert_eq!(yard.flow_on().len(), 2_999);
}

#[test]
fn after_a_restart_events_go_in_their_order_whatever_the_table_says_of_their_reasons() {
    let mut yard = parked(1, "a", "way");
    yard.add(2, "a", "way");
    yard.go();
    yard.write();
    yard.commit_all();
    yard.restart();
    yard.add(3, "a", "way");
    assert!(yard.go().is_empty());
    assert_eq!(yard.flow_on(), [1, 2, 3]);
}

#[test]
fn what_has_left_the_lot_is_not_published_again_when_the_slot_gives_it_again() {
    let mut yard = parked(1, "a", "way");
    for n in 2..=3 {
        yard.add(n, "a", "way");
    }
    yard.go();
    yard.write();
    yard.commit_all();
    yard.restart();
    assert!(yard.mark(2, Mark::Discard));
    assert_eq!(yard.flow_on(), [1, 3]);
    for n in 1..=3 {
        yard.add(n, "a", "way");
    }
    let resolved: Vec<u64> = yard.bench.hold.take_resolved().iter().map(|ticket| ticket.entry).collect();
    assert_eq!((yard.go(), resolved), (vec![], vec![1, 2, 3]));
    // What is parked and discarded later on is no news either: the slot has given it in this session.
    yard.add(4, "a", "way");
    assert_eq!(yard.go(), [4]);
}

#[test]
fn what_follows_a_head_is_asked_for_as_far_as_it_may_go() {
    let mut yard = parked(1, "a", "shut");
    yard.add(2, "b", "way");
    yard.park(2, Refusal::Returned);
    yard.add(3, "b", "way");
    yard.add(4, "b", "shut");
    yard.add(5, "b", "way");
    yard.go();
    yard.errands(false);
    yard.commit_all();
    yard.add(6, "c", "way");
    yard.go();
    yard.errands(false);
    yard.commit_all();
    // Its way passes with another key's event.
    yard.mark(6, Mark::Redrive);
    let mut fetch = yard.write().fetch;
    fetch.retain(|n| *n == 6);
    yard.arrive(&fetch);
    yard.go();
    yard.mark(2, Mark::Redrive);
    yard.deliver(6);
    let fetch = yard.write().fetch;
    assert!(fetch.iter().all(|n| ![4, 5].contains(n)), "the way of 4 is failing: {fetch:?}");
}

#[test]
fn what_was_released_goes_back_when_an_older_event_of_its_key_is_parked_before_it() {
    let mut yard = parked(5, "a", "way");
    yard.restart();
    // The slot gives it again: somebody has deleted its row, or it was delivered and nothing is bound for it any more.
    yard.add(4, "a", "unbound");
    assert_eq!(yard.go(), [4]);
    let fetch = yard.write().fetch;
    assert_eq!(fetch, [5]);
    yard.arrive(&fetch);
    yard.refuse(4, Refusal::Returned);
    yard.bench.pass(HOLD_FOR);
    assert!(yard.go().is_empty(), "4 is parked, and 5 does not go before it");
    assert_eq!(yard.write().park, [(4, "unroutable")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [4, 5]);
}
