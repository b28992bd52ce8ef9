//! Rule R3: what is parked, when, and with whom.

use super::*;

#[test]
fn an_event_that_is_refused_for_hold_for_is_parked_with_what_waits_behind_it_in_order() {
    let mut yard = Yard::new();
    for n in 1..=3 {
        yard.add(n, "a", "unbound");
    }
    let since = yard.bench.now;
    let mut publishes = 0;
    let parked = loop {
        for n in yard.go() {
            assert_eq!(n, 1);
            publishes += 1;
            yard.refuse(n, Refusal::Returned);
        }
        let round = yard.write();
        if !round.park.is_empty() {
            break round.park;
        }
        yard.bench.now = yard.bench.hold.next_wake(true).unwrap();
    };
    assert_eq!(parked, [(1, "unroutable"), (2, "behind"), (3, "behind")]);
    assert_eq!(yard.bench.now - since, HOLD_FOR, "not before, and not later");
    assert!(publishes > 2, "it is retried meanwhile");
}

#[test]
fn only_the_commit_of_its_insert_resolves_an_event() {
    let mut yard = Yard::with(|limits| limits.hold_for = Duration::ZERO);
    yard.add(1, "a", "unbound");
    yard.add(2, "a", "unbound");
    assert_eq!(yard.go(), [1]);
    assert_eq!(yard.refuse(1, Refusal::Nacked), Decision::Park);
    assert_eq!(yard.write().park, [(1, "nacked"), (2, "behind")]);
    assert!(!yard.bench.hold.idle(yard.bench.now));
    assert!(yard.bench.hold.take_resolved().is_empty());
    assert_eq!(yard.commit(&[1]), [1]);
    assert!(!yard.bench.hold.idle(yard.bench.now));
    assert_eq!(yard.commit(&[2]), [2]);
    assert!(yard.bench.hold.idle(yard.bench.now));
    assert_eq!(yard.bench.hold.stats(), Stats::default());
}

#[test]
fn the_time_of_a_hold_stands_still_while_the_broker_takes_no_publishes() {
    let mut yard = Yard::new();
    yard.add(1, "a", "unbound");
    yard.go();
    yard.refuse(1, Refusal::Returned);
    yard.bench.hold.publishing(false, yard.bench.now);
    yard.bench.pass(3600 * SECOND);
    assert_eq!(yard.errands(false), Round::default());
    yard.bench.hold.publishing(true, yard.bench.now);
    yard.bench.pass(HOLD_FOR / 2);
    assert_eq!(yard.go(), [1]);
    assert!(matches!(yard.refuse(1, Refusal::Returned), Decision::Retry { .. }));
    yard.bench.pass(HOLD_FOR / 2);
    assert!(yard.go().is_empty());
    assert_eq!(yard.write().park, [(1, "unroutable")]);
}

#[test]
fn while_a_way_is_failing_its_new_events_are_parked_without_a_publish() {
    let mut yard = Yard::new();
    yard.add(1, "a", "unbound");
    yard.park(1, Refusal::Returned);
    yard.add(2, "b", "unbound");
    yard.add(3, "c", "bound");
    yard.add(4, "b", "bound");
    assert_eq!(yard.go(), [3]);
    assert_eq!(yard.write().park, [(2, "unroutable"), (4, "behind")]);
}

#[test]
fn a_later_event_of_a_parked_key_is_parked_behind_it_wherever_it_goes() {
    let mut yard = Yard::new();
    yard.add(1, "a", "unbound");
    yard.park(1, Refusal::Returned);
    yard.add(2, "a", "bound");
    assert!(yard.go().is_empty());
    assert_eq!((yard.write().park, yard.keys()), (vec![(2, "behind")], 1));
}

#[test]
fn what_is_parked_already_is_resolved_when_the_slot_gives_it_again() {
    let mut yard = Yard::new();
    yard.add(1, "a", "unbound");
    yard.park(1, Refusal::Returned);
    yard.restart();
    yard.add(1, "a", "unbound");
    assert_eq!(yard.bench.hold.take_resolved(), [Ticket { session: 1, entry: 1 }]);
    assert!(yard.go().is_empty());
    assert_eq!((yard.write().park, yard.parked()), (vec![], 1));
}

#[test]
fn what_was_decided_before_the_first_parked_event_of_its_key_is_not_parked_behind_it() {
    let mut yard = Yard::new();
    yard.add(5, "a", "unbound");
    yard.park(5, Refusal::Returned);
    yard.restart();
    yard.add(4, "a", "bound");
    yard.add(6, "a", "bound");
    assert_eq!(yard.go(), [4]);
    let round = yard.write();
    assert_eq!((round.park, round.fetch), (vec![(6, "behind")], vec![5]));
    // It goes again before what follows it.
    yard.arrive(&[5]);
    assert!(yard.go().is_empty());
    yard.deliver(4);
    assert_eq!(yard.go(), [5]);
}

#[test]
fn on_unroutable_hold_never_parks_what_is_returned_and_parks_what_is_nacked() {
    let mut yard = Yard::new();
    yard.add_with(1, "a", "unbound", |route, _| route.on_unroutable = OnUnroutable::Hold);
    for _ in 0..100 {
        for n in yard.go() {
            assert!(matches!(yard.refuse(n, Refusal::Returned), Decision::Retry { .. }));
        }
        assert_eq!(yard.write(), Round::default());
        yard.bench.pass(SECOND);
    }
    while yard.go().is_empty() {
        yard.bench.pass(SECOND);
    }
    assert_eq!(yard.refuse(1, Refusal::Nacked), Decision::Park);
}

#[test]
fn on_unroutable_discard_resolves_what_is_returned_and_its_key_goes_on() {
    let mut yard = Yard::new();
    let discard = |route: &mut Route, _: &mut Event| route.on_unroutable = OnUnroutable::Discard;
    yard.add_with(1, "a", "unbound", discard);
    yard.add_with(2, "a", "bound", discard);
    yard.go();
    assert_eq!(yard.refuse(1, Refusal::Returned), Decision::Discard(Ticket { session: 1, entry: 1 }));
    assert_eq!(yard.go(), [2]);
    assert!(matches!(yard.refuse(2, Refusal::Nacked), Decision::Retry { .. }));
    assert_eq!(yard.parked(), 0);
}

#[test]
fn on_unroutable_discard_holds_for_what_was_parked_behind_another_too() {
    let mut yard = Yard::new();
    yard.add(1, "a", "bound late");
    yard.add_with(2, "a", "unbound", |route, _| route.on_unroutable = OnUnroutable::Discard);
    yard.add(3, "a", "bound");
    yard.park(1, Refusal::Returned);
    yard.bench.pass(10 * SECOND);
    let fetch = yard.write().fetch;
    yard.arrive(&fetch);
    assert_eq!(yard.go(), [1]);
    yard.deliver(1);
    let fetch = yard.write().fetch;
    yard.arrive(&fetch);
    assert_eq!(yard.go(), [2]);
    assert_eq!(yard.refuse(2, Refusal::Returned), Decision::Discard(Ticket::NONE));
    assert_eq!(yard.write().remove, [2]);
    assert_eq!(yard.flow(), [3]);
    assert_eq!(yard.parked(), 0);
}

#[test]
fn a_poison_is_parked_at_once_when_its_turn_comes_and_its_key_behind_it() {
    let mut yard = Yard::new();
    yard.add(1, "a", "bound");
    yard.poison(2, "a", OnPoison::ParkKey);
    yard.add(3, "a", "bound");
    assert_eq!(yard.go(), [1]);
    assert_eq!(yard.write(), Round::default());
    yard.deliver(1);
    assert_eq!(yard.write().park, [(2, "too_large"), (3, "behind")]);
    assert_eq!(yard.bench.hold.stats().poisoned, 0);
}

#[test]
fn with_skip_a_poison_is_parked_alone_and_before_its_turn() {
    let mut yard = Yard::new();
    yard.add(1, "a", "bound");
    yard.poison(2, "a", OnPoison::Skip);
    yard.add(3, "a", "bound");
    assert_eq!((yard.go(), yard.write().park), (vec![1], vec![(2, "too_large")]));
    yard.deliver(1);
    assert_eq!(yard.go(), [3]);
    assert_eq!((yard.keys(), yard.parked()), (0, 1));
}

#[test]
fn with_halt_what_is_before_a_poison_goes_and_nothing_after_it_or_out_of_the_lot() {
    let mut yard = Yard::new();
    yard.add(1, "z", "unbound");
    yard.park(1, Refusal::Returned);
    yard.add(2, "a", "bound");
    yard.poison(3, "b", OnPoison::Halt);
    yard.add(4, "c", "bound");
    yard.bench.pass(60 * SECOND);
    assert_eq!(yard.go(), [2]);
    assert_eq!(yard.write(), Round::default());
    yard.rests(true);
    yard.deliver(2);
    assert!(yard.bench.hold.idle(yard.bench.now) && !yard.bench.hold.has_room());
    assert_eq!(yard.bench.hold.halted().unwrap().position, position(3));
}

#[test]
fn above_max_parked_nothing_is_read_until_there_is_room() {
    let mut yard = Yard::with(|limits| limits.max_parked = 2);
    yard.add(1, "a", "unbound");
    yard.add(2, "a", "unbound");
    yard.park(1, Refusal::Returned);
    assert_eq!((yard.bench.hold.has_room(), yard.bench.hold.stalled()), (false, Some("max_parked")));
    yard.mark(2, Mark::Discard);
    assert_eq!((yard.bench.hold.has_room(), yard.bench.hold.stalled()), (true, None));
}

#[test]
fn above_max_parked_bytes_nothing_is_read_either() {
    let mut yard = Yard::with(|limits| limits.max_parked_bytes = 20);
    yard.add(1, "a", "unbound");
    yard.add(2, "a", "unbound");
    yard.park(1, Refusal::Returned);
    assert_eq!(yard.bench.hold.stalled(), Some("max_parked_bytes"));
}

#[test]
fn a_hold_ends_early_when_the_window_needs_its_room() {
    let mut yard = Yard::with(|limits| limits.waiting = 4);
    yard.add(1, "a", "unbound");
    yard.go();
    yard.refuse(1, Refusal::Returned);
    for n in 2..=3 {
        yard.add(n, "a", "unbound");
    }
    assert_eq!(yard.write(), Round::default());
    yard.add(4, "a", "unbound");
    assert!(!yard.bench.hold.has_room());
    assert_eq!(yard.write().park.len(), 4);
    yard.commit_all();
    assert!(yard.bench.hold.has_room());
}

#[test]
fn a_suspect_that_is_parked_behind_another_is_a_suspect_when_it_is_released_in_the_next_session() {
    let mut yard = Yard::new();
    for n in 1..=2 {
        yard.add_with(n, "a", "way", |route, _| route.ordering = Ordering::Pipelined);
    }
    assert_eq!(yard.go(), [1, 2]);
    yard.bench.fail(ChannelFault::PreconditionFailed);
    yard.park(1, Refusal::Returned);
    assert_eq!(yard.bench.hold.suspects().len(), 1);
    let suspects = yard.bench.hold.suspects().clone();
    yard.restart();
    yard.bench.hold.suspects = suspects;
    yard.add(3, "b", "another");
    assert!(yard.bench.hold.suspects().contains(position(2)));
}

/// 1 and 2 of a pipelined key are on the wire, and 1 is parked.
fn with_one_still_on_the_wire() -> Yard {
    let mut yard = Yard::new();
    for n in [1, 2] {
        yard.add_with(n, "a", "shut", |route, _| route.ordering = Ordering::Pipelined);
    }
    assert_eq!(yard.go(), [1, 2]);
    yard.refuse(1, Refusal::Returned);
    yard.bench.pass(HOLD_FOR);
    assert!(yard.go().is_empty());
    assert_eq!(yard.errands(false).park, [(1, "unroutable")]);
    yard.commit_all();
    yard
}

#[test]
fn what_was_on_the_wire_when_an_event_before_it_was_parked_follows_it_when_the_connection_is_lost() {
    let mut yard = with_one_still_on_the_wire();
    yard.bench.hold.wire_lost();
    assert!(yard.go().is_empty(), "it does not go again before the other");
    assert_eq!(yard.errands(false).park, [(2, "behind")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [1, 2]);
}

#[test]
fn what_the_broker_refuses_for_good_is_parked_behind_what_was_parked_meanwhile() {
    let mut yard = with_one_still_on_the_wire();
    yard.bench.fail(ChannelFault::PreconditionFailed);
    yard.bench.hold.recount().unwrap();
    assert_eq!(yard.errands(false).park, [(2, "refused")]);
}
