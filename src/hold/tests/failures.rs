//! Rule R5: channel errors, suspects, failing exchanges, late confirms.

use crate::dead_letters::Reason;

use super::*;

#[test]
fn what_fails_alone_with_404_makes_its_exchange_failing_and_no_other() {
    let mut bench = Bench::new();
    bench.to(1, "a", "gone");
    bench.take_all();
    assert!(matches!(bench.fail(ChannelFault::NotFound), ChannelJudgement::ExchangeFailing(_)));
    bench.to(2, "b", "gone");
    bench.to(3, "c", "here");
    assert_eq!(bench.take_all(), [3]);
    assert_eq!(bench.hold.failing_exchanges().collect::<Vec<_>>(), [("gone", "words")]);
    assert_eq!(bench.hold.stats().held_keys, 2);
    assert!(matches!(bench.hold.most_delayed(bench.now).unwrap().why, Why::Exchange { .. }));
}

#[test]
fn what_fails_alone_with_406_is_poison() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.take_all();
    assert!(matches!(bench.fail(ChannelFault::PreconditionFailed), ChannelJudgement::Poisoned(_)));
    bench.pass(3600 * SECOND);
    assert!(bench.take_all().is_empty());
    assert!(matches!(bench.fail(ChannelFault::Other), ChannelJudgement::Nobody));
}

#[test]
fn what_fails_alone_with_anything_else_is_retried_like_a_nack() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.take_all();
    assert!(matches!(bench.fail(ChannelFault::Other), ChannelJudgement::Refused(_)));
    assert!(bench.take_all().is_empty());
    bench.pass(SECOND);
    assert_eq!(bench.take_all(), [1]);
}

#[test]
fn after_a_channel_error_each_event_that_was_in_flight_goes_alone_until_it_has_a_verdict() {
    let mut bench = Bench::new();
    for n in 1..=3 {
        bench.key(n, &format!("k{n}"));
    }
    bench.take_all();
    bench.key(4, "k4");
    assert!(matches!(bench.fail(ChannelFault::PreconditionFailed), ChannelJudgement::Suspects(3)));
    assert_eq!(bench.take_all(), [1]);
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
    assert!(matches!(bench.fail(ChannelFault::PreconditionFailed), ChannelJudgement::Poisoned(_)));
    assert_eq!(bench.take_all(), [3]);
    bench.refuse(3, Refusal::TimedOut);
    assert!(bench.hold.suspects().is_empty());
    assert_eq!(bench.take_all(), [4]);
}

#[test]
fn a_lost_connection_does_not_clear_a_suspect() {
    let mut bench = Bench::new();
    bench.key(1, "a");
    bench.key(2, "b");
    bench.take_all();
    bench.fail(ChannelFault::Other);
    assert_eq!(bench.take_all(), [1]);
    bench.hold.wire_lost();
    assert_eq!((bench.take_all(), bench.hold.suspects().len()), (vec![1], 2));
}

#[test]
fn a_held_suspect_does_not_hinder_others_and_a_ready_one_is_not_starved() {
    let mut bench = Bench::with(|limits| limits.window = 2);
    bench.pipelined(1, "a");
    bench.pipelined(2, "a");
    bench.take_all();
    bench.fail(ChannelFault::Other);
    assert_eq!(bench.take_all(), [1]);
    let at = bench.refuse(1, Refusal::Nacked);
    for n in 3..=6 {
        bench.key(n, &format!("k{n}"));
    }
    // 2 is a suspect behind the held 1.
    assert_eq!(bench.take_all(), [3, 4]);
    bench.now = at;
    bench.deliver(3);
    assert_eq!(bench.take_all(), [1]);
    bench.deliver(1);
    assert!(bench.take_all().is_empty());
    bench.deliver(4);
    assert_eq!(bench.take_all(), [2]);
    bench.deliver(2);
    assert_eq!(bench.take_all(), [5, 6]);
}

#[test]
fn a_suspect_that_the_broker_has_let_pass_is_none_any_more_and_keeps_its_place_on_the_wire() {
    let mut bench = Bench::new();
    for n in 1..=3 {
        bench.key(n, &format!("k{n}"));
    }
    bench.take();
    bench.take();
    bench.fail(ChannelFault::Other);
    assert_eq!(bench.take_all(), [1]);
    bench.hold.acquitted(position(2));
    bench.hold.acquitted(position(1));
    assert_eq!(bench.hold.suspects().len(), 1);
    // 2 still has to go alone.
    assert!(bench.take_all().is_empty());
    bench.deliver(1);
    assert_eq!(bench.take_all(), [2]);
    bench.hold.acquitted(position(2));
    assert_eq!(bench.take_all(), [3]);
}

#[test]
fn suspects_outlive_the_session_and_do_no_harm_when_they_never_come() {
    let mut bench = Bench::new();
    for n in 1..=4 {
        bench.to(n, &format!("k{n}"), if n == 3 { "gone" } else { "here" });
    }
    bench.take_all();
    bench.fail(ChannelFault::NotFound);
    let mut bench = Bench::after(&Limits::default(), bench.hold.suspects().clone());
    // 1 was acknowledged before the session ended.
    for n in 2..=6 {
        bench.to(n, &format!("k{n}"), if n == 3 { "gone" } else { "here" });
    }
    assert_eq!(bench.hold.suspects().len(), 3);
    assert_eq!(bench.take_all(), [2]);
    bench.deliver(2);
    assert_eq!(bench.take_all(), [3]);
    assert!(matches!(bench.fail(ChannelFault::NotFound), ChannelJudgement::ExchangeFailing(_)));
    assert_eq!(bench.take_all(), [4]);
    bench.deliver(4);
    assert_eq!(bench.take_all(), [5, 6]);
}

#[test]
fn one_deleted_exchange_of_three_and_a_restart_stop_only_its_own_events() {
    let exchanges = ["one", "gone", "three"];
    let mut bench = Bench::new();
    for n in 1..=300 {
        bench.to(n, &format!("k{n}"), exchanges[usize::try_from(n % 3).unwrap()]);
    }
    let mut delivered = 0;
    for _ in 0..1000 {
        let taken = bench.take_all();
        if taken.iter().any(|n| n % 3 == 1) {
            bench.fail(ChannelFault::NotFound);
        } else {
            delivered += taken.into_iter().map(|n| bench.deliver(n)).count();
        }
    }
    assert_eq!(delivered, 200);
    assert!(bench.hold.idle(bench.now));
}

#[test]
fn three_hundred_late_confirms_hold_their_keys_and_do_not_make_the_window_one() {
    let mut bench = Bench::new();
    for n in 1..=300 {
        bench.key(n, &format!("k{n}"));
    }
    bench.take_all();
    bench.pass(20 * SECOND);
    for n in 301..=310 {
        bench.key(n, &format!("k{n}"));
    }
    bench.take_all();
    bench.pass(11 * SECOND);
    let late = bench.hold.overdue(bench.now, 30 * SECOND);
    assert_eq!(late.len(), 300);
    assert_eq!(bench.hold.oldest_on_wire(), Some(bench.now - 31 * SECOND));
    for position in late {
        bench.hold.refused(position, Refusal::TimedOut, bench.now).unwrap();
    }
    bench.hold.wire_lost();
    assert_eq!(bench.take_all(), (301..=310).collect::<Vec<_>>());
    assert_eq!(bench.hold.stats().held_keys, 300);
    assert_eq!(bench.hold.stats().poisoned, 0);
    bench.pass(SECOND);
    assert_eq!(bench.take_all().len(), 300);
}

#[test]
fn a_probe_takes_the_oldest_head_of_its_exchange_and_a_pass_releases_the_rest_in_order() {
    let mut bench = Bench::new();
    bench.to(1, "a", "gone");
    bench.take_all();
    bench.fail(ChannelFault::NotFound);
    bench.to(2, "b", "gone");
    bench.to(3, "a", "gone");
    assert!(bench.hold.probe_due(bench.now).is_none());
    let due = bench.hold.next_wake(true).unwrap();
    bench.now = due;
    let probe = bench.hold.probe_due(bench.now).unwrap();
    assert_eq!((probe.exchange.as_str(), probe.event.unwrap().position), ("gone", position(1)));
    assert!(bench.hold.probe_due(bench.now).is_none());
    assert_eq!((bench.take_all(), bench.hold.idle(bench.now)), (vec![], false));
    assert!(bench.hold.next_wake(true).unwrap() > bench.now + 3600 * SECOND, "only the end of the hold is left");
    bench.deliver(1);
    // Until the probe has ended the others wait.
    assert!(bench.take_all().is_empty());
    bench.hold.probe_ended("gone", ProbeOutcome::Passed, bench.now);
    assert_eq!(bench.take_all(), [2, 3]);
    assert_eq!((bench.hold.stats().failing_exchanges, bench.hold.stats().held_keys), (0, 0));
}

#[test]
fn a_probe_that_fails_backs_off_and_keeps_everything_held() {
    let mut bench = Bench::new();
    bench.to(1, "a", "gone");
    bench.take_all();
    bench.fail(ChannelFault::AccessRefused);
    for _ in 0..3 {
        let due = bench.hold.next_wake(true).unwrap();
        assert!(due >= bench.now + SECOND);
        bench.now = due;
        assert!(bench.hold.probe_due(bench.now).unwrap().event.is_some());
        bench.hold.probe_ended("gone", ProbeOutcome::StillFailing("no".to_owned()), bench.now);
        assert!(bench.take_all().is_empty());
    }
    assert_eq!(bench.hold.failing_exchanges().collect::<Vec<_>>(), [("gone", "no")]);
    bench.now = bench.hold.next_wake(true).unwrap();
    assert_eq!(bench.hold.probe_due(bench.now).unwrap().event.unwrap().position, position(1));
    bench.refuse(1, Refusal::Returned);
    bench.hold.probe_ended("gone", ProbeOutcome::Passed, bench.now);
    assert!(bench.take_all().is_empty());
    bench.pass(SECOND);
    assert_eq!(bench.take_all(), [1]);
}

#[test]
fn a_lost_connection_ends_the_probes() {
    let mut bench = Bench::new();
    bench.to(1, "a", "gone");
    bench.take_all();
    bench.fail(ChannelFault::NotFound);
    bench.now = bench.hold.next_wake(true).unwrap();
    assert!(bench.hold.probe_due(bench.now).is_some());
    bench.hold.wire_lost();
    assert!(bench.take_all().is_empty());
    assert!(bench.hold.probe_due(bench.now).unwrap().event.is_some());
}

#[test]
fn an_exchange_without_waiting_events_is_probed_without_one() {
    let mut bench = Bench::new();
    bench.hold.exchange_failed("gone", Reason::ExchangeMissing, "words", bench.now);
    bench.now = bench.hold.next_wake(true).unwrap();
    let probe = bench.hold.probe_due(bench.now).unwrap();
    assert!(probe.event.is_none());
    bench.hold.probe_ended("gone", ProbeOutcome::Passed, bench.now);
    assert_eq!(bench.hold.stats().failing_exchanges, 0);
}

#[test]
fn an_exchange_that_fails_takes_back_what_was_ready() {
    let mut bench = Bench::new();
    bench.to(1, "a", "gone");
    bench.to(2, "b", "here");
    bench.hold.exchange_failed("gone", Reason::ExchangeMissing, "words", bench.now);
    assert_eq!(bench.take_all(), [2]);
}

#[test]
fn a_probe_takes_no_event_whose_key_has_an_earlier_one_on_the_wire() {
    let mut bench = Bench::new();
    bench.add(Spec { n: 1, key: "a", exchange: "here", ordering: Ordering::Pipelined, content: Ok(10) });
    bench.add(Spec { n: 2, key: "a", exchange: "gone", ordering: Ordering::Pipelined, content: Ok(10) });
    bench.hold.exchange_failed("gone", Reason::ExchangeMissing, "words", bench.now);
    assert_eq!(bench.take_all(), [1]);
    bench.now = bench.hold.next_wake(true).unwrap();
    assert!(bench.hold.probe_due(bench.now).unwrap().event.is_none());
    bench.hold.probe_ended("gone", ProbeOutcome::StillFailing("words".to_owned()), bench.now);
    bench.deliver(1);
    bench.now = bench.hold.next_wake(true).unwrap();
    assert_eq!(bench.hold.probe_due(bench.now).unwrap().event.unwrap().position, position(2));
}
