//! Rule R4: poison, and what people have marked.

use super::*;

/// A poison, and two events behind it.
fn poisoned() -> Yard {
    let mut yard = Yard::new();
    yard.poison(1, "a", OnPoison::ParkKey);
    yard.add(2, "a", "bound");
    yard.add(3, "a", "bound");
    yard.write();
    assert_eq!(yard.commit_all(), [1, 2, 3]);
    yard
}

#[test]
fn a_poison_head_stops_its_key_until_a_person_decides() {
    let mut yard = poisoned();
    yard.bench.pass(24 * 3600 * SECOND);
    assert_eq!(yard.write(), Round::default());
    yard.rests(true);
    yard.restart();
    assert_eq!(yard.write(), Round::default());
}

#[test]
fn a_mark_on_a_follower_waits_for_its_head() {
    let mut yard = poisoned();
    assert!(!yard.mark(2, Mark::Redrive));
    assert_eq!(yard.write(), Round::default());
    yard.mark(1, Mark::Redrive);
    assert_eq!(yard.flow(), [1, 2, 3]);
    assert_eq!(yard.parked(), 0);
}

#[test]
fn a_redriven_event_says_so_and_those_that_follow_by_themselves_do_not() {
    let mut yard = poisoned();
    yard.mark(1, Mark::Redrive);
    let fetch = yard.write().fetch;
    assert_eq!(fetch, [1, 2, 3]);
    yard.arrive(&fetch);
    let event = yard.bench.hold.take_next(yard.bench.now).unwrap();
    let headers = &event.content.as_ref().unwrap().properties.headers;
    assert!(headers.iter().any(|(name, _)| name == "x-postrider-redelivered"));
    assert_eq!(yard.deliver(1).released, Some(Released::Redriven));
    let event = yard.bench.hold.take_next(yard.bench.now).unwrap();
    assert!(event.content.as_ref().unwrap().properties.headers.is_empty());
    assert_eq!(yard.deliver(2).released, Some(Released::ByItself));
}

#[test]
fn a_redriven_poison_that_is_poison_still_stays_and_its_mark_is_gone() {
    let mut yard = poisoned();
    yard.mark(1, Mark::Redrive);
    let fetch = yard.write().fetch;
    yard.arrive(&fetch);
    assert_eq!(yard.go(), [1]);
    yard.bench.hold.poisoned(position(1), poison(), yard.bench.now);
    assert_eq!(yard.write(), Round { failed: vec![(1, "too_large")], ..Round::default() });
    assert_eq!((yard.parked(), yard.keys()), (3, 1));
    yard.bench.pass(24 * 3600 * SECOND);
    assert_eq!(yard.write(), Round::default());
}

#[test]
fn a_redriven_event_that_is_refused_again_stays_and_is_probed_as_before() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Returned);
    // Before its probe is due.
    yard.mark(1, Mark::Redrive);
    assert_eq!(yard.write().fetch, [1]);
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    assert_eq!(yard.refuse(1, Refusal::Returned), Decision::Park);
    assert_eq!(yard.write().failed, [(1, "unroutable")]);
    assert_eq!(yard.flow_on(), [1]);
}

#[test]
fn a_discarded_head_is_taken_out_at_once_and_its_key_goes_on() {
    let mut yard = poisoned();
    assert!(yard.mark(1, Mark::Discard));
    assert_eq!(yard.flow(), [2, 3]);
    assert_eq!((yard.parked(), yard.keys()), (0, 0));
}

#[test]
fn a_discarded_follower_is_taken_out_at_once_and_its_head_stays() {
    let mut yard = poisoned();
    assert!(yard.mark(2, Mark::Discard));
    assert_eq!((yard.write(), yard.keys()), (Round::default(), 1));
    yard.mark(1, Mark::Redrive);
    assert_eq!(yard.flow(), [1, 3]);
}

#[test]
fn what_is_on_its_way_out_is_not_discarded() {
    let mut yard = poisoned();
    yard.mark(1, Mark::Redrive);
    yard.write();
    assert!(!yard.mark(2, Mark::Discard));
    yard.arrive(&[1, 2, 3]);
    assert_eq!(yard.go(), [1]);
    assert!(!yard.mark(1, Mark::Discard));
    yard.deliver(1);
    assert!(!yard.mark(1, Mark::Discard), "its row is about to go");
}

#[test]
fn marks_that_were_made_while_no_relay_was_there_are_heeded() {
    let mut yard = poisoned();
    let mark = |n: u64| (n == 1).then_some(Mark::Redrive);
    let letters = yard.rows.iter().map(|(n, row)| letter(row, mark(*n))).collect();
    yard.restart_with(letters);
    assert_eq!(yard.flow(), [1, 2, 3]);
}

#[test]
fn a_poison_that_was_skipped_goes_alone_when_it_is_redriven() {
    let mut yard = Yard::new();
    yard.poison(1, "a", OnPoison::Skip);
    yard.add(2, "a", "bound");
    yard.write();
    yard.commit_all();
    assert_eq!(yard.go(), [2]);
    yard.mark(1, Mark::Redrive);
    let fetch = yard.write().fetch;
    yard.arrive(&fetch);
    assert!(yard.go().is_empty(), "one event of a key at a time");
    yard.deliver(2);
    assert_eq!(yard.go(), [1]);
    yard.add(3, "a", "bound");
    assert_eq!(yard.refuse(1, Refusal::Returned), Decision::Park);
    assert_eq!((yard.go(), yard.keys()), (vec![3], 0));
}

#[test]
fn a_poison_that_is_parked_behind_another_event_stops_its_key_when_its_turn_comes() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.park(1, Refusal::Returned);
    yard.add(2, "a", "way");
    yard.poison(3, "a", OnPoison::ParkKey);
    yard.add(4, "a", "way");
    yard.errands(false);
    yard.commit_all();
    yard.mark(1, Mark::Redrive);
    let fetch = yard.write().fetch;
    yard.arrive(&fetch);
    assert_eq!(yard.flow(), [1, 2]);
    yard.bench.pass(3600 * SECOND);
    assert_eq!((yard.write(), yard.keys(), yard.parked()), (Round::default(), 1, 2));
    yard.mark(3, Mark::Discard);
    assert_eq!(yard.flow(), [4]);
}
