//! Rule R3: keys, bounds, back-off.

use super::*;

#[test]
fn events_of_different_keys_go_in_the_order_of_their_positions() {
    let mut bench = Bench::new();
    for n in 1..=5 {
        bench.key(n, &format!("k{n}"));
    }
    assert_eq!(bench.take_all(), [1, 2, 3, 4, 5]);
}

#[test]
fn at_most_one_event_of_a_key_is_undecided() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.key(2, "a");
    bench.key(3, "b");
    assert_eq!(bench.take_all(), [1, 3]);
    bench.deliver(3);
    assert!(bench.take_all().is_empty());
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
}

#[test]
fn a_hot_key_does_not_starve_the_others() {
    let mut bench = Bench::with(|limits| limits.window = 2);
    for n in 1..=100 {
        bench.key(n, "hot");
    }
    bench.key(101, "cool");
    bench.key(102, "cold");
    assert_eq!(bench.take_all(), [1, 101]);
    bench.deliver(101);
    assert_eq!(bench.take_all(), [102]);
}

#[test]
fn what_waits_for_its_key_is_bounded_apart_from_what_is_on_the_wire() {
    let mut bench = Bench::with(|limits| limits.waiting = 3);
    for n in 1..=4 {
        bench.key(n, "hot");
    }
    assert!(!bench.hold.has_room());
    assert_eq!(bench.take_all(), [1]);
    assert_eq!((bench.hold.stats().waiting, bench.hold.has_room()), (3, false));
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
    assert!(bench.hold.has_room());
}

#[test]
fn waiting_events_are_bounded_by_their_bytes_as_well() {
    let mut bench = Bench::with(|limits| limits.waiting_bytes = 10_000);
    let large = |n| Spec { n, key: "a", exchange: "x", ordering: Ordering::Key, content: Ok(4000) };
    bench.add(large(1));
    assert!(bench.hold.has_room());
    bench.add(large(2));
    assert!(!bench.hold.has_room(), "a third one would not fit");
    bench.take();
    assert!(bench.hold.has_room());
}

#[test]
fn one_event_larger_than_all_the_room_is_taken_while_little_waits() {
    let mut bench = Bench::with(|limits| limits.waiting_bytes = 10_000);
    let spec = |n, size| Spec { n, key: "a", exchange: "x", ordering: Ordering::Key, content: Ok(size) };
    bench.add(spec(1, 20_000));
    assert!(!bench.hold.has_room());
    bench.take();
    bench.add(spec(2, 1_000));
    bench.add(spec(3, 20_000));
    bench.deliver(1);
    bench.take();
    assert!(!bench.hold.has_room(), "it waits behind the small one");
    bench.deliver(2);
    bench.take();
    assert!(bench.hold.has_room());
}

#[test]
fn the_wire_is_bounded_by_count_and_bytes_and_a_giant_goes_alone() {
    let mut bench = Bench::with(|limits| (limits.window, limits.window_bytes) = (3, 3000));
    for (n, size) in [(1, 10), (2, 10), (3, 10), (4, 10), (5, 9000), (6, 10)] {
        bench.add(Spec { n, key: &format!("k{n}"), exchange: "x", ordering: Ordering::Key, content: Ok(size) });
    }
    assert_eq!(bench.take_all(), [1, 2, 3]);
    bench.deliver(2);
    assert_eq!(bench.take_all(), [4]);
    bench.deliver(1);
    bench.deliver(3);
    assert!(bench.take_all().is_empty());
    bench.deliver(4);
    assert_eq!(bench.take_all(), [5]);
    bench.deliver(5);
    assert_eq!(bench.take_all(), [6]);
    assert_eq!(bench.hold.stats().on_wire, 1);
}

#[test]
fn pipelined_events_of_a_key_do_not_wait_for_each_other() {
    let mut bench = Bench::new();
    for n in 1..=3 {
        bench.pipelined(n, "a");
    }
    assert_eq!(bench.take_all(), [1, 2, 3]);
    assert!(!bench.deliver(2).overtook);
    bench.pipelined(4, "a");
    assert_eq!(bench.take_all(), [4]);
}

#[test]
fn an_event_of_ordering_key_neither_overtakes_nor_is_overtaken_by_pipelined_ones() {
    let mut bench = Bench::new();
    bench.pipelined(1, "a");
    bench.pipelined(2, "a");
    bench.key(3, "a");
    bench.pipelined(4, "a");
    bench.pipelined(5, "a");
    assert_eq!(bench.take_all(), [1, 2]);
    bench.deliver(1);
    assert!(bench.take_all().is_empty());
    bench.deliver(2);
    assert_eq!(bench.take_all(), [3]);
    bench.deliver(3);
    assert_eq!(bench.take_all(), [4, 5]);
}

#[test]
fn a_refused_event_holds_its_key_until_it_has_been_delivered_and_only_its_key() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.key(2, "a");
    bench.key(3, "b");
    assert_eq!(bench.take_all(), [1, 3]);
    let at = bench.refuse(1, Refusal::Returned);
    bench.deliver(3);
    bench.key(4, "b");
    assert_eq!(bench.take_all(), [4]);
    assert_eq!((bench.hold.stats().held_keys, bench.hold.next_wake(true)), (1, Some(at)));
    bench.now = at;
    assert_eq!(bench.take_all(), [1]);
    assert_eq!(bench.hold.stats().held_keys, 1);
    bench.deliver(1);
    assert_eq!((bench.take_all(), bench.hold.stats().held_keys), (vec![2], 0));
}

#[test]
fn the_back_off_doubles_from_the_minimum_to_the_maximum_with_jitter() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    let mut longest = SECOND;
    for _ in 0..10 {
        assert_eq!(bench.take(), Some(1));
        let wait = bench.refuse(1, Refusal::Nacked) - bench.now;
        assert!(wait >= (longest / 2).max(SECOND) && wait <= longest, "{wait:?} of {longest:?}");
        bench.pass(wait - Duration::from_nanos(1));
        assert_eq!(bench.take(), None);
        bench.pass(Duration::from_nanos(1));
        longest = (longest * 2).min(60 * SECOND);
    }
}

#[test]
fn a_held_pipelined_key_is_retried_one_at_a_time_from_its_head_and_then_pipelined_again() {
    let mut bench = Bench::new();
    for n in 1..=5 {
        bench.pipelined(n, "a");
    }
    assert_eq!(bench.take_all(), [1, 2, 3, 4, 5]);
    bench.pipelined(6, "a");
    bench.pipelined(7, "a");
    bench.hold.wire_lost();
    assert_eq!((bench.take(), bench.take(), bench.take()), (Some(1), Some(2), Some(3)));
    bench.refuse(2, Refusal::Returned);
    bench.pass(60 * SECOND);
    // 1 and 3 are on the wire still; nothing is sent beside them while 2 is not the head.
    assert!(bench.take_all().is_empty());
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
    bench.refuse(3, Refusal::Returned);
    bench.pass(60 * SECOND);
    assert!(bench.take_all().is_empty());
    bench.deliver(2);
    assert_eq!(bench.take_all(), [3]);
    bench.deliver(3);
    assert_eq!(bench.take_all(), [4, 5, 6, 7]);
}

#[test]
fn overtakes_are_counted_whichever_verdict_comes_first() {
    let mut bench = Bench::new();
    for n in 1..=4 {
        bench.pipelined(n, "a");
    }
    bench.take_all();
    assert!(!bench.deliver(3).overtook);
    let refused = bench.hold.refused(position(2), Refusal::Nacked, bench.now).unwrap();
    assert_eq!(refused.overtaken_by, 1);
    assert!(bench.deliver(4).overtook);
    assert!(!bench.deliver(1).overtook);
    bench.pass(SECOND);
    assert_eq!(bench.take_all(), [2]);
    assert!(!bench.deliver(2).overtook);
}

#[test]
fn confirms_out_of_order_are_no_overtakes() {
    let mut bench = Bench::new();
    for n in 1..=3 {
        bench.pipelined(n, "a");
    }
    bench.take_all();
    assert!(!bench.deliver(2).overtook);
    assert!(!bench.deliver(1).overtook);
    let refused = bench.hold.refused(position(3), Refusal::Nacked, bench.now).unwrap();
    assert_eq!(refused.overtaken_by, 0);
}

#[test]
fn a_lost_connection_sends_everything_again_in_order_and_counts_as_no_refusal() {
    let mut bench = Bench::with(|limits| limits.window = 4);
    for n in 1..=6 {
        bench.key(n, &format!("k{}", n % 5));
    }
    assert_eq!(bench.take_all(), [1, 2, 3, 4]);
    bench.deliver(2);
    assert_eq!(bench.take_all(), [5]);
    bench.hold.wire_lost();
    assert_eq!((bench.hold.stats().on_wire, bench.hold.stats().held_keys), (0, 0));
    assert_eq!(bench.take_all(), [1, 3, 4, 5]);
    assert!(bench.hold.delivered(position(2), bench.now).is_none());
}

#[test]
fn poison_is_never_published_and_holds_its_key_for_good() {
    let mut bench = Bench::new();
    bench.add(Spec { n: 1, key: "a", exchange: "x", ordering: Ordering::Key, content: Err(poison()) });
    bench.key(2, "a");
    bench.key(3, "b");
    bench.key(4, "b");
    assert_eq!(bench.take_all(), [3]);
    assert!(bench.hold.poisoned(position(3), poison(), bench.now));
    bench.pass(3600 * SECOND);
    assert!(bench.take_all().is_empty());
    assert_eq!((bench.hold.stats().poisoned, bench.hold.stats().held_keys, bench.hold.stats().on_wire), (2, 2, 0));
    assert!(bench.hold.idle(bench.now));
    assert_eq!(bench.hold.next_wake(true), None);
    assert!(matches!(bench.hold.most_delayed(bench.now).unwrap().why, Why::Poisoned(_)));
    bench.hold.wire_lost();
    assert!(bench.take_all().is_empty());
}

#[test]
fn events_out_of_order_are_refused() {
    let mut bench = Bench::new();
    bench.key(5, "a");
    let (position, after) = (position(5), position(5));
    let event = Event::clone(&bench.hold.take_next(bench.now).unwrap());
    assert_eq!(bench.hold.insert(event, bench.now), Err(OutOfOrder { position, after }));
}

#[test]
fn it_is_idle_when_only_held_events_and_those_behind_them_are_left() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.key(2, "a");
    assert!(!bench.hold.idle(bench.now));
    bench.take_all();
    assert!(!bench.hold.idle(bench.now));
    let at = bench.refuse(1, Refusal::Nacked);
    assert!(bench.hold.idle(bench.now));
    assert!(!bench.hold.idle(at));
}

#[test]
fn the_times_of_an_event_are_from_insertion_to_publish_and_from_publish_to_verdict() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.pass(SECOND);
    bench.take_all();
    bench.pass(2 * SECOND);
    bench.hold.wire_lost();
    bench.take_all();
    bench.pass(4 * SECOND);
    assert_eq!(bench.hold.most_delayed(bench.now).unwrap().waited, 7 * SECOND);
    let delivered = bench.deliver(1);
    assert_eq!((delivered.key_wait, delivered.confirm_wait), (SECOND, 4 * SECOND));
    assert_eq!(delivered.ticket, Ticket { session: 1, entry: 1 });
    assert!(bench.hold.most_delayed(bench.now).is_none());
    assert_eq!(bench.hold.stats(), Stats::default());
}
