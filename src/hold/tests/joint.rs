//! Rule R3: events of several keys.

use super::*;

#[test]
fn a_change_of_a_key_waits_for_both_keys() {
    let mut bench = Bench::new();
    bench.key(1, "new");
    bench.key(2, "old");
    bench.joint(3, "new", old("old"));
    assert_eq!(bench.take_all(), [1, 2]);
    bench.deliver(2);
    assert!(bench.take_all().is_empty());
    bench.deliver(1);
    assert_eq!(bench.take_all(), [3]);
}

#[test]
fn both_keys_wait_for_a_change_of_the_key_and_others_do_not() {
    let mut bench = Bench::new();
    bench.joint(1, "new", old("old"));
    bench.key(2, "old");
    bench.key(3, "new");
    bench.key(4, "other");
    assert_eq!(bench.take_all(), [1, 4]);
    assert_eq!(bench.hold.stats().waiting, 2, "it is published once, and waits once");
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2, 3]);
}

#[test]
fn a_change_of_a_key_that_waits_keeps_its_place_in_both_keys() {
    let mut bench = Bench::new();
    bench.key(1, "old");
    bench.joint(2, "new", old("old"));
    for n in 3..=6 {
        bench.key(n, "new");
    }
    assert_eq!(bench.take_all(), [1]);
    bench.deliver(1);
    for n in 2..=6 {
        assert_eq!(bench.take_all(), [n]);
        bench.deliver(n);
    }
    assert!(bench.hold.idle(bench.now) && bench.hold.recount().is_ok());
}

#[test]
fn keys_that_are_exchanged_again_and_again_go_in_the_order_of_the_commits() {
    let mut bench = Bench::new();
    let keys = ["a", "b", "c"];
    for n in 1..=9 {
        let at = usize::try_from(n).unwrap();
        bench.joint(n, keys[at % 3], old(keys[(at + 1) % 3]));
        bench.hold.recount().unwrap();
    }
    for n in 1..=9 {
        assert_eq!(bench.take_all(), [n]);
        bench.deliver(n);
        bench.hold.recount().unwrap();
    }
}

#[test]
fn a_refused_change_of_a_key_holds_both_keys_until_its_retry() {
    let mut bench = Bench::new();
    bench.joint(1, "new", old("old"));
    bench.key(2, "old");
    bench.key(3, "new");
    assert_eq!(bench.take_all(), [1]);
    let at = bench.refuse(1, Refusal::Nacked);
    assert!(bench.take_all().is_empty());
    assert_eq!(bench.hold.stats().held_keys, 2);
    bench.now = at;
    assert_eq!(bench.take_all(), [1]);
    bench.deliver(1);
    assert_eq!((bench.take_all(), bench.hold.stats().held_keys), (vec![2, 3], 0));
}

#[test]
fn a_lost_connection_sends_a_change_of_a_key_again_before_what_is_behind_it() {
    let mut bench = Bench::new();
    bench.joint(1, "new", old("old"));
    bench.key(2, "old");
    assert_eq!(bench.take_all(), [1]);
    bench.hold.wire_lost();
    bench.hold.recount().unwrap();
    assert_eq!(bench.take_all(), [1]);
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
}

#[test]
fn a_barrier_waits_for_its_table_and_its_table_for_it() {
    let mut bench = Bench::new();
    bench.key(1, &row("orders", "1"));
    bench.key(2, &row("orders", "2"));
    bench.key(3, &row("bills", "1"));
    bench.barrier(4, "orders");
    bench.key(5, &row("orders", "1"));
    bench.key(6, &row("orders", "3"));
    bench.key(7, &row("bills", "2"));
    bench.key(8, "outbox");
    assert_eq!(bench.take_all(), [1, 2, 3, 7, 8]);
    bench.deliver(1);
    assert!(bench.take_all().is_empty());
    bench.deliver(2);
    assert_eq!(bench.take_all(), [4]);
    bench.key(9, &row("orders", "4"));
    assert!(bench.take_all().is_empty());
    bench.deliver(4);
    assert_eq!(bench.take_all(), [5, 6, 9]);
    bench.hold.recount().unwrap();
}

#[test]
fn barriers_of_two_tables_do_not_wait_for_each_other() {
    let mut bench = Bench::new();
    bench.key(1, &row("orders", "1"));
    bench.barrier(2, "orders");
    bench.barrier(3, "order");
    bench.key(4, &row("order", "1"));
    assert_eq!(bench.take_all(), [1, 3]);
    bench.deliver(3);
    assert_eq!(bench.take_all(), [4]);
}

#[test]
fn a_barrier_waits_for_a_change_of_a_key_and_that_for_a_barrier() {
    let mut bench = Bench::new();
    bench.joint(1, &row("orders", "1"), old(&row("orders", "2")));
    bench.barrier(2, "orders");
    bench.joint(3, &row("orders", "3"), old(&row("orders", "1")));
    bench.barrier(4, "orders");
    for n in 1..=4 {
        assert_eq!(bench.take_all(), [n]);
        bench.hold.recount().unwrap();
        bench.deliver(n);
    }
}

#[test]
fn events_of_a_table_without_a_key_are_barriers_for_those_that_it_has_with_one() {
    let mut bench = Bench::new();
    bench.key(1, &row("orders", ""));
    bench.key(2, &row("orders", ""));
    bench.key(3, &row("orders", "1"));
    bench.key(4, &row("orders", "2"));
    bench.key(5, &row("orders", ""));
    for expected in [vec![1], vec![2], vec![3, 4], vec![5]] {
        assert_eq!(bench.take_all(), expected);
        expected.into_iter().for_each(|n| drop(bench.deliver(n)));
    }
    assert_eq!(bench.hold.recount(), Ok(()));
}

#[test]
fn pipelined_events_of_a_table_go_up_to_its_barrier_and_from_there() {
    let mut bench = Bench::new();
    let key = row("orders", "1");
    bench.pipelined(1, &key);
    bench.pipelined(2, &key);
    bench.insert(Event {
        joins: Joins::Table,
        ..Spec { n: 3, key: &row("orders", ""), exchange: "x", ordering: Ordering::Pipelined, content: Ok(10) }.event()
    });
    bench.pipelined(4, &key);
    bench.pipelined(5, &key);
    assert_eq!(bench.take_all(), [1, 2]);
    bench.deliver(2);
    assert!(bench.take_all().is_empty());
    bench.deliver(1);
    assert_eq!(bench.take_all(), [3]);
    bench.deliver(3);
    assert_eq!(bench.take_all(), [4, 5]);
}

#[test]
fn a_pipelined_change_of_a_key_neither_overtakes_nor_is_overtaken() {
    let mut bench = Bench::new();
    bench.pipelined(1, "new");
    bench.insert(Event {
        joins: old("old"),
        ..Spec { n: 2, key: "new", exchange: "x", ordering: Ordering::Pipelined, content: Ok(10) }.event()
    });
    bench.pipelined(3, "new");
    bench.pipelined(4, "old");
    assert_eq!(bench.take_all(), [1]);
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
    bench.deliver(2);
    assert_eq!(bench.take_all(), [3, 4]);
}

#[test]
fn a_probe_takes_no_barrier_that_has_something_before_it() {
    let mut bench = Bench::new();
    bench.key(1, &row("orders", "1"));
    assert_eq!(bench.take_all(), [1]);
    bench.insert(Event {
        joins: Joins::Table,
        ..Spec { n: 2, key: &row("orders", ""), exchange: "gone", ordering: Ordering::Key, content: Ok(10) }.event()
    });
    bench.hold.exchange_failed("gone", crate::dead_letters::Reason::ExchangeMissing, "words", bench.now);
    bench.now = bench.hold.next_wake(true).unwrap();
    assert!(bench.hold.probe_due(bench.now).unwrap().event.is_none());
    bench.hold.probe_ended("gone", ProbeOutcome::StillFailing("words".to_owned()), bench.now);
    bench.deliver(1);
    bench.now = bench.hold.next_wake(true).unwrap();
    assert_eq!(bench.hold.probe_due(bench.now).unwrap().event.unwrap().position, position(2));
}

#[test]
fn the_most_delayed_barrier_says_how_much_of_its_table_waits() {
    let mut bench = Bench::new();
    bench.barrier(1, "orders");
    bench.key(2, &row("orders", "1"));
    bench.key(3, &row("orders", "2"));
    bench.key(4, &row("bills", "2"));
    assert_eq!(bench.hold.most_delayed(bench.now).unwrap().behind, 2);
}

#[test]
fn what_has_one_key_twice_or_its_tables_key_in_another_form_is_taken_for_what_it_is() {
    let mut bench = Bench::new();
    bench.joint(1, "a", old("a"));
    // There is no table that it could be a barrier of.
    bench.joint(2, "b", Joins::Table);
    bench.joint(3, &row("orders", "1"), Joins::Table);
    bench.joint(4, &row("orders", "2"), old(&row("orders", "")));
    assert_eq!(bench.take_all(), [1, 2, 3]);
    bench.hold.recount().unwrap();
    bench.deliver(3);
    assert_eq!(bench.take_all(), [4]);
}
