//! Parked events of an exchange that refuses everything (rules R4 and R5).

use super::*;

/// Keys `k1` to `kn`, parked because exchange `gone` is missing.
fn missing(count: u64) -> Yard {
    let mut yard = Yard::new();
    for n in 1..=count {
        yard.add_to(n, &format!("k{n}"), "gone");
    }
    yard.bench.hold.exchange_failed("gone", Reason::ExchangeMissing, "words", yard.bench.now);
    assert!(yard.go().is_empty());
    yard.bench.pass(HOLD_FOR);
    assert!(yard.go().is_empty());
    assert_eq!(yard.errands(false).park.len() as u64, count);
    yard.commit_all();
    yard
}

/// The next probe of exchange `gone`, with what it has to be fed with. Its event.
fn probe(yard: &mut Yard) -> Option<u64> {
    yard.bench.pass(10 * SECOND);
    let fetch = yard.write().fetch;
    assert!(yard.bench.hold.probe_due(yard.bench.now).is_none() || fetch.is_empty());
    yard.rests(true);
    yard.arrive(&fetch);
    assert!(yard.go().is_empty());
    let probe = yard.bench.hold.probe_due(yard.bench.now).expect("a probe is due");
    assert_eq!(probe.exchange, "gone");
    yard.rests(true);
    probe.event.map(|event| event.position.commit.0)
}

fn still_missing(yard: &mut Yard) {
    let words = ProbeOutcome::StillFailing("words".to_owned());
    yard.bench.hold.probe_ended("gone", words, yard.bench.now);
    yard.bench.hold.recount().unwrap();
}

#[test]
fn the_events_of_an_exchange_that_is_missing_for_hold_for_are_parked() {
    let mut yard = missing(3);
    assert_eq!((yard.parked(), yard.keys()), (3, 3));
    yard.add_to(4, "k4", "gone");
    assert!(yard.go().is_empty());
    assert_eq!(yard.errands(true).park, [(4, "exchange_missing")], "a new one is parked at once");
}

#[test]
fn each_probe_of_an_exchange_has_a_parked_event_the_second_as_well_as_the_first() {
    let mut yard = missing(2);
    for _ in 0..5 {
        assert!(probe(&mut yard).is_some(), "a user that may not look can only publish");
        still_missing(&mut yard);
        assert_eq!(yard.write().failed.len(), 1);
        assert_eq!(yard.bench.hold.stats().released, 0);
    }
}

#[test]
fn once_an_exchange_is_there_each_of_its_ways_is_probed_and_all_go() {
    let mut yard = missing(3);
    let n = probe(&mut yard).unwrap();
    yard.deliver(n);
    yard.bench.hold.probe_ended("gone", ProbeOutcome::Passed, yard.bench.now);
    let mut published = yard.flow_on();
    published.push(n);
    published.sort_unstable();
    assert_eq!(published, [1, 2, 3]);
}

#[test]
fn while_nothing_is_released_the_probe_of_an_exchange_does_not_wake_anybody() {
    let mut yard = missing(2);
    yard.bench.pass(100 * SECOND);
    assert!(yard.go().is_empty());
    assert!(yard.bench.hold.probe_due(yard.bench.now).is_none());
    assert_eq!(yard.errands(false), Round::default());
    yard.rests(false);
}

#[test]
fn what_people_redrive_of_a_missing_exchange_does_not_keep_the_others_from_being_released() {
    let mut yard = missing(1_500);
    yard.add(2_000, "other", "way");
    yard.park(2_000, Refusal::Returned);
    for n in 1..=1_500 {
        yard.mark(n, Mark::Redrive);
    }
    yard.bench.pass(10 * SECOND);
    let fetch = yard.write().fetch;
    assert!(fetch.contains(&2_000) && fetch.len() == 2, "the probe of the way, and that of the exchange: {fetch:?}");
}

#[test]
fn a_redriven_event_of_a_missing_exchange_keeps_its_mark_until_it_has_been_tried() {
    let mut yard = missing(2);
    yard.mark(1, Mark::Redrive);
    yard.mark(2, Mark::Redrive);
    let n = probe(&mut yard).unwrap();
    still_missing(&mut yard);
    assert_eq!(yard.write().failed, [(n, "exchange_missing")]);
    let marked = |n| yard.bench.hold.lot.is_redriven(position(n));
    assert!(!marked(n) && marked(3 - n));
}

#[test]
fn a_follower_that_goes_to_a_missing_exchange_stays_parked_and_its_key_with_it() {
    let mut yard = Yard::new();
    yard.add(1, "a", "way");
    yard.add_to(2, "a", "gone");
    yard.park(1, Refusal::Returned);
    yard.bench.hold.exchange_failed("gone", Reason::ExchangeMissing, "words", yard.bench.now);
    // New to the lot, so that nothing is known of its way.
    yard.add_with(3, "a", "another", |route, _| "gone".clone_into(&mut route.exchange));
    yard.write();
    yard.commit_all();
    yard.mark(2, Mark::Discard);
    yard.bench.pass(10 * SECOND);
    assert!(yard.bench.hold.probe_due(yard.bench.now).unwrap().event.is_none());
    still_missing(&mut yard);
    let fetch = yard.write().fetch;
    assert_eq!(fetch, [1]);
    yard.arrive(&fetch);
    yard.go();
    yard.deliver(1);
    yard.write();
    yard.add(4, "a", "way");
    assert!(yard.go().is_empty());
    assert_eq!(yard.write().park, [(4, "behind")], "it does not wait in the window for a probe");
}

#[test]
fn parked_events_in_the_window_go_back_when_their_exchange_begins_to_refuse_everything() {
    let mut yard = Yard::new();
    for n in 1..=3 {
        yard.add_to(n, "a", "gone");
    }
    yard.park(1, Refusal::Returned);
    yard.bench.pass(10 * SECOND);
    yard.write();
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    yard.deliver(1);
    let fetch = yard.write().fetch;
    assert_eq!(fetch, [2, 3]);
    yard.arrive(&fetch);
    assert_eq!(yard.go(), [2]);
    // The exchange is deleted, and the channel closed.
    let judgement = yard.bench.fail(ChannelFault::NotFound);
    assert!(matches!(judgement, ChannelJudgement::ExchangeFailing(_)));
    yard.add_to(4, "a", "gone");
    let round = yard.write();
    assert_eq!((round.park, yard.bench.hold.stats().released), (vec![(4, "behind")], 0));
    yard.commit_all();
    assert_eq!((yard.parked(), yard.keys()), (3, 1));
    assert!(probe(&mut yard).is_some());
}
