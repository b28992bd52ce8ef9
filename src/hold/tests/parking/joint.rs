//! Events of several keys, into the dead letters and out of them.

use super::*;

impl Yard {
    /// `kind` is the routing key, as in [`Yard::add`].
    fn joint(&mut self, n: u64, key: &str, joins: Joins, kind: &str) {
        self.add_with(n, key, kind, |_, event| event.joins = joins);
    }

    fn barrier(&mut self, n: u64, table: &str, kind: &str) {
        self.joint(n, &row(table, ""), Joins::Table, kind);
    }

    /// A relay that takes over, whose slot gives nothing again.
    fn restarts(mut self) -> Self {
        self.restart();
        self.bench.hold.recount().unwrap();
        self
    }

    /// The rows that may be taken now.
    fn fetched_next(&mut self) -> Vec<u64> {
        self.bench.pass(60 * SECOND);
        self.write().fetch
    }
}

/// Each of these both with the relay that has parked them and with one that takes over.
fn with_and_without_a_restart(park: impl Fn() -> Yard, then: impl Fn(Yard)) {
    then(park());
    then(park().restarts());
}

#[test]
fn an_event_of_either_key_is_parked_behind_a_change_of_the_key() {
    let park = || {
        let mut yard = Yard::new();
        yard.joint(1, "new", old("old"), "free");
        yard.park(1, Refusal::Nacked);
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        yard.add(2, "old", "free");
        yard.add(3, "new", "free");
        yard.add(4, "other", "open");
        assert_eq!(yard.errands(false).park, [(2, "behind"), (3, "behind")]);
        yard.commit_all();
        assert_eq!(yard.keys(), 2);
        assert_eq!(yard.go(), [4]);
        yard.deliver(4);
        assert_eq!(yard.flow_on(), [1, 2, 3]);
    });
}

#[test]
fn a_change_of_the_key_is_parked_behind_either_key_and_goes_after_both() {
    for parked in ["old", "new"] {
        let park = || {
            let mut yard = Yard::new();
            yard.add(1, parked, "free");
            yard.park(1, Refusal::Nacked);
            yard.joint(2, "new", old("old"), "free");
            assert_eq!(yard.errands(false).park, [(2, "behind")]);
            yard.commit_all();
            yard
        };
        with_and_without_a_restart(park, |mut yard| {
            yard.add(3, "old", "free");
            yard.add(4, "new", "free");
            assert_eq!(yard.errands(false).park, [(3, "behind"), (4, "behind")]);
            yard.commit_all();
            assert_eq!(yard.flow_on(), [1, 2, 3, 4]);
        });
    }
}

#[test]
fn a_parked_change_of_the_key_is_head_only_of_both_keys() {
    let park = || {
        let mut yard = Yard::new();
        yard.poison(1, "old", OnPoison::ParkKey);
        yard.poison(2, "new", OnPoison::ParkKey);
        yard.joint(3, "new", old("old"), "free");
        yard.errands(false);
        yard.commit_all();
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        assert!(yard.fetched_next().is_empty());
        yard.mark(3, Mark::Redrive);
        assert!(yard.fetched_next().is_empty(), "a mark on a follower waits for its head");
        assert!(yard.mark(1, Mark::Discard));
        assert!(yard.fetched_next().is_empty());
        assert!(yard.mark(2, Mark::Discard));
        assert_eq!(yard.flow_on(), [3]);
    });
}

#[test]
fn a_change_of_the_key_stays_here_until_what_is_before_it_in_its_other_key_is_decided_and_is_parked_then() {
    let mut yard = Yard::new();
    yard.add(1, "old", "free");
    yard.add(2, "new", "free");
    assert_eq!(yard.go(), [1, 2]);
    yard.joint(3, "new", old("old"), "free");
    yard.add(4, "old", "free");
    yard.add(5, "new", "free");
    yard.bench.pass(HOLD_FOR);
    yard.refuse(1, Refusal::Nacked);
    yard.bench.pass(HOLD_FOR);
    yard.go();
    assert_eq!(
        yard.errands(false).park,
        [(1, "nacked")],
        "after a crash 2 comes again, and 3 must not be gone by then"
    );
    yard.commit_all();
    yard.add(6, "old", "free");
    assert_eq!(yard.errands(false), Round::default());
    yard.deliver(2);
    assert!(yard.go().is_empty());
    let mut park = yard.errands(false).park;
    park.sort_unstable();
    assert_eq!(park, [(3, "behind"), (4, "behind"), (5, "behind"), (6, "behind")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [1, 3, 4, 5, 6]);
}

#[test]
fn what_was_to_be_parked_behind_another_goes_on_once_that_has_left() {
    let mut yard = Yard::new();
    yard.add(1, "old", "free");
    yard.add(2, "new", "free");
    assert_eq!(yard.go(), [1, 2]);
    yard.joint(3, "new", old("old"), "free");
    yard.add(4, "old", "free");
    yard.refuse(1, Refusal::Nacked);
    yard.bench.pass(HOLD_FOR);
    yard.go();
    assert_eq!(yard.errands(false).park, [(1, "nacked")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [1]);
    yard.deliver(2);
    assert_eq!(yard.flow_on(), [3, 4]);
}

#[test]
fn every_later_event_of_its_table_is_parked_behind_a_barrier_and_no_other() {
    let park = || {
        let mut yard = Yard::new();
        yard.barrier(1, "orders", "free");
        yard.add(2, &row("orders", "1"), "free");
        yard.park(1, Refusal::Nacked);
        assert_eq!(yard.parked(), 2);
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        yard.add(4, &row("orders", "2"), "free");
        yard.joint(5, &row("orders", "3"), old(&row("orders", "4")), "free");
        yard.barrier(6, "orders", "free");
        yard.add(7, &row("bills", "1"), "open");
        yard.add(8, "outbox", "open");
        assert_eq!(yard.errands(false).park, [(4, "behind"), (5, "behind"), (6, "behind")]);
        yard.commit_all();
        assert_eq!(yard.go(), [7, 8]);
        yard.deliver(7);
        yard.deliver(8);
        assert_eq!(yard.flow_on(), [1, 2, 4, 5, 6]);
    });
}

#[test]
fn a_barrier_is_parked_behind_any_key_of_its_table_and_goes_after_all() {
    let park = || {
        let mut yard = Yard::new();
        yard.poison(1, &row("orders", "1"), OnPoison::ParkKey);
        yard.poison(2, &row("orders", "2"), OnPoison::ParkKey);
        yard.poison(3, &row("bills", "1"), OnPoison::ParkKey);
        yard.errands(false);
        yard.barrier(4, "orders", "free");
        yard.add(5, &row("orders", "3"), "free");
        assert_eq!(yard.errands(false).park, [(4, "behind"), (5, "behind")]);
        yard.commit_all();
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        yard.mark(4, Mark::Redrive);
        assert!(yard.fetched_next().is_empty(), "a mark on a follower waits for its head");
        yard.mark(1, Mark::Redrive);
        assert_eq!(yard.flow(), [1]);
        assert!(yard.fetched_next().is_empty());
        assert!(yard.mark(2, Mark::Discard));
        assert_eq!(yard.flow(), [4, 5]);
        assert_eq!(yard.parked(), 1);
    });
}

#[test]
fn a_barrier_stays_here_until_every_earlier_event_of_its_table_is_decided_and_is_parked_then() {
    let mut yard = Yard::new();
    yard.add(1, &row("orders", "1"), "free");
    yard.add(2, &row("orders", "2"), "free");
    assert_eq!(yard.go(), [1, 2]);
    yard.barrier(3, "orders", "free");
    yard.add(4, &row("orders", "1"), "free");
    yard.add(5, &row("orders", "3"), "free");
    yard.refuse(1, Refusal::Nacked);
    yard.bench.pass(HOLD_FOR);
    yard.go();
    assert_eq!(yard.errands(false).park, [(1, "nacked")]);
    yard.commit_all();
    yard.deliver(2);
    assert!(yard.go().is_empty());
    assert_eq!(yard.errands(false).park, [(3, "behind"), (4, "behind"), (5, "behind")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [1, 3, 4, 5]);
}

#[test]
fn an_event_that_is_parked_with_a_barrier_behind_it_takes_all_of_the_table_along() {
    let mut yard = Yard::new();
    yard.add(1, &row("orders", "1"), "free");
    yard.barrier(2, "orders", "free");
    for n in 3..=5 {
        yard.add(n, &row("orders", &n.to_string()), "free");
    }
    yard.park(1, Refusal::Nacked);
    assert_eq!(yard.parked(), 5);
    assert_eq!(yard.flow_on(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_barrier_that_is_on_its_way_out_is_waited_for_and_new_events_are_parked_no_longer() {
    let mut yard = Yard::new();
    yard.barrier(1, "orders", "free");
    yard.park(1, Refusal::Nacked);
    assert_eq!(yard.fetched_next(), [1]);
    yard.add(2, &row("orders", "1"), "free");
    assert_eq!(yard.errands(false), Round::default());
    assert!(yard.go().is_empty());
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    yard.add(3, &row("orders", "2"), "free");
    assert!(yard.go().is_empty());
    yard.deliver(1);
    assert_eq!(yard.go(), [2, 3]);
}

#[test]
fn a_barrier_waits_for_what_is_on_its_way_out() {
    let mut yard = Yard::new();
    yard.add(1, &row("orders", "1"), "free");
    yard.park(1, Refusal::Nacked);
    assert_eq!(yard.fetched_next(), [1]);
    yard.barrier(2, "orders", "free");
    assert_eq!((yard.errands(false), yard.go()), (Round::default(), vec![]));
    yard.arrive(&[1]);
    assert_eq!(yard.go(), [1]);
    yard.deliver(1);
    assert_eq!(yard.go(), [2]);
}

#[test]
fn a_released_event_that_fails_again_takes_the_barrier_that_has_waited_for_it_back_into_the_lot() {
    let mut yard = Yard::new();
    yard.add(1, &row("orders", "1"), "free");
    yard.park(1, Refusal::Nacked);
    assert_eq!(yard.fetched_next(), [1]);
    yard.arrive(&[1]);
    yard.barrier(2, "orders", "free");
    yard.add(3, &row("orders", "2"), "free");
    assert_eq!(yard.go(), [1]);
    yard.refuse(1, Refusal::Nacked);
    assert_eq!(yard.errands(false).park, [(2, "behind"), (3, "behind")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [1, 2, 3]);
}

#[test]
fn a_released_barrier_that_fails_again_takes_its_table_back_into_the_lot() {
    let mut yard = Yard::new();
    yard.barrier(1, "orders", "free");
    yard.park(1, Refusal::Nacked);
    assert_eq!(yard.fetched_next(), [1]);
    yard.arrive(&[1]);
    yard.add(2, &row("orders", "1"), "free");
    assert_eq!(yard.go(), [1]);
    yard.refuse(1, Refusal::Nacked);
    assert_eq!(yard.errands(false).park, [(2, "behind")]);
    yard.commit_all();
    assert_eq!(yard.flow_on(), [1, 2]);
}

#[test]
fn a_key_does_not_take_along_what_is_behind_a_barrier() {
    let park = || {
        let mut yard = Yard::new();
        let key = row("orders", "1");
        yard.poison(1, &key, OnPoison::ParkKey);
        yard.errands(false);
        yard.add(2, &key, "free");
        yard.poison(3, &row("orders", "2"), OnPoison::ParkKey);
        yard.barrier(4, "orders", "free");
        yard.add(5, &key, "free");
        yard.errands(false);
        yard.commit_all();
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        yard.mark(1, Mark::Discard);
        assert_eq!(yard.fetched_next(), [2]);
        yard.arrive(&[2]);
        assert_eq!(yard.go(), [2]);
        yard.deliver(2);
        assert!(yard.fetched_next().is_empty(), "4 waits for 3, and 5 for 4");
        yard.mark(3, Mark::Discard);
        assert_eq!(yard.flow_on(), [4, 5]);
    });
}

#[test]
fn events_of_a_table_without_a_key_leave_in_one_go_up_to_those_with_one() {
    let park = || {
        let mut yard = Yard::new();
        for n in 1..=3 {
            yard.add(n, &row("orders", ""), "free");
        }
        yard.add(4, &row("orders", "1"), "free");
        yard.add(5, &row("orders", ""), "free");
        yard.park(1, Refusal::Nacked);
        assert_eq!(yard.parked(), 5);
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        // A probe goes alone.
        assert_eq!(yard.fetched_next(), [1]);
        yard.arrive(&[1]);
        assert_eq!(yard.go(), [1]);
        yard.deliver(1);
        assert_eq!(yard.write().fetch, [2, 3]);
        yard.arrive(&[2, 3]);
        assert_eq!(yard.flow_on(), [2, 3, 4, 5]);
    });
}

#[test]
fn a_barrier_that_was_parked_alone_holds_nothing() {
    let park = || {
        let mut yard = Yard::new();
        yard.add(1, &row("orders", "1"), "free");
        yard.add_with(2, &row("orders", ""), "free", |route, event| {
            route.on_poison = OnPoison::Skip;
            event.joins = Joins::Table;
            let message = std::mem::replace(&mut event.content, Err(poison()));
            event.remains = message.ok().map(Box::new);
        });
        assert_eq!(yard.errands(false).park, [(2, "too_large")]);
        yard.commit_all();
        yard
    };
    with_and_without_a_restart(park, |mut yard| {
        yard.add(3, &row("orders", "2"), "free");
        assert!(yard.go().contains(&3));
        // Redriven, it waits for its table like any barrier.
        yard.mark(2, Mark::Redrive);
        assert_eq!(yard.fetched_next(), [2]);
        yard.arrive(&[2]);
        assert!(yard.go().is_empty());
        yard.deliver(3);
        if yard.bench.hold.event(position(1)).is_some() {
            assert!(yard.go().is_empty());
            yard.deliver(1);
        }
        assert_eq!(yard.go(), [2]);
    });
}

#[test]
fn a_poisoned_barrier_is_parked_when_its_turn_comes() {
    let mut yard = Yard::new();
    yard.add(1, &row("orders", "1"), "free");
    yard.poison(2, &row("orders", ""), OnPoison::ParkKey);
    yard.add(3, &row("orders", "2"), "free");
    assert_eq!(yard.go(), [1]);
    assert_eq!(yard.errands(false), Round::default());
    yard.deliver(1);
    assert_eq!(yard.errands(false).park, [(2, "too_large"), (3, "behind")]);
}

#[test]
fn a_way_that_fails_parks_a_change_of_the_key_without_a_publish_and_both_keys_behind_it() {
    let mut yard = Yard::new();
    yard.add(1, "a", "shut");
    yard.park(1, Refusal::Returned);
    yard.joint(2, "new", old("old"), "shut");
    yard.add(3, "old", "free");
    assert!(yard.go().is_empty());
    assert_eq!(yard.errands(false).park, [(2, "unroutable"), (3, "behind")]);
}

#[test]
fn a_change_of_the_key_that_is_parked_takes_both_keys_along() {
    let mut yard = Yard::new();
    yard.add(1, "old", "free");
    yard.joint(2, "new", old("old"), "free");
    yard.add(3, "new", "open");
    yard.park(1, Refusal::Nacked);
    assert_eq!(yard.parked(), 3);
    assert_eq!(yard.flow_on(), [1, 2, 3]);
}

#[test]
fn a_change_of_the_key_waits_for_what_is_on_its_way_out_of_either_key() {
    for parked in ["old", "new"] {
        let mut yard = Yard::new();
        yard.add(1, parked, "free");
        yard.park(1, Refusal::Nacked);
        assert_eq!(yard.fetched_next(), [1]);
        yard.joint(2, "new", old("old"), "free");
        assert!(yard.go().is_empty());
        yard.arrive(&[1]);
        assert_eq!(yard.go(), [1]);
        yard.deliver(1);
        assert_eq!(yard.go(), [2]);
    }
}

/// What comes first, and what is parked when that comes again.
fn pairs() -> [((String, Joins), (String, Joins)); 5] {
    let (key, barrier) = ((row("orders", "1"), Joins::Nothing), (row("orders", ""), Joins::Table));
    let (new, change) = ((row("orders", "2"), Joins::Nothing), (row("orders", "2"), old(&key.0)));
    [
        (key.clone(), barrier.clone()),
        (barrier, key.clone()),
        (change.clone(), key.clone()),
        (key, change.clone()),
        (new, change),
    ]
}

#[test]
fn what_is_on_its_way_out_goes_back_when_an_older_event_of_one_of_its_keys_is_parked() {
    for ((first, first_joins), (then, then_joins)) in pairs() {
        let mut yard = Yard::new();
        yard.joint(2, &then, then_joins, "free");
        yard.park(2, Refusal::Nacked);
        yard.restart();
        assert_eq!(yard.fetched_next(), [2]);
        yard.arrive(&[2]);
        yard.joint(1, &first, first_joins, "open");
        assert_eq!(yard.go(), [1], "{first:?}");
        yard.refuse(1, Refusal::Nacked);
        yard.bench.pass(HOLD_FOR);
        assert!(yard.go().is_empty(), "{first:?}");
        assert_eq!(yard.errands(false).park, [(1, "nacked")]);
        yard.commit_all();
        assert_eq!(yard.flow_on(), [1, 2]);
    }
}

#[test]
fn an_older_event_that_is_given_again_and_parked_is_before_what_is_parked_already() {
    for ((first, first_joins), (then, then_joins)) in pairs() {
        let mut yard = Yard::new();
        yard.joint(2, &then, then_joins, "free");
        yard.park(2, Refusal::Nacked);
        yard.restart();
        yard.joint(1, &first, first_joins, "open");
        assert_eq!(yard.go(), [1], "{first:?}");
        yard.refuse(1, Refusal::Nacked);
        yard.bench.pass(HOLD_FOR);
        assert!(yard.go().is_empty(), "{first:?}");
        assert_eq!(yard.errands(false).park, [(1, "nacked")]);
        yard.commit_all();
        assert_eq!(yard.flow_on(), [1, 2]);
    }
}
