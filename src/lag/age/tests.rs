use proptest::prelude::*;

use super::*;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Feeds samples of (second, R, messages); the last reading.
fn read(age: &mut Age, samples: &[(u64, u64, u64)]) -> Reading {
    let mut last = None;
    for (second, removed, messages) in samples {
        last = Some(age.observe(Duration::from_secs(*second), *removed, *messages));
    }
    last.unwrap()
}

#[test]
fn the_age_is_since_entries_passed_departures() {
    // Ten messages a second come in; from the 30th second on ten a second are acknowledged.
    let samples: Vec<_> =
        (0..=20_u64).map(|step| (step * 5, (step * 50).saturating_sub(300), (step * 50).min(300))).collect();
    let reading = read(&mut Age::exact(), &samples);
    assert!((reading.lag.as_secs_f64() - 30.0).abs() < 0.2, "{reading:?}");
    assert!(!reading.is_lower_bound && reading.stalled.is_zero());
}

#[test]
fn rejected_messages_leave_no_age_behind() {
    // A hundred messages; ninety acknowledged, ten rejected to a dead-letter queue.
    let samples = [(0, 0, 0), (5, 0, 100), (10, 45, 50), (15, 90, 0), (20, 90, 0), (3600, 90, 0)];
    assert!(read(&mut Age::exact(), &samples).lag.is_zero());
    // And the next message is as old as itself.
    let mut age = Age::exact();
    read(&mut age, &samples);
    let reading = read(&mut age, &[(3605, 90, 1), (3610, 90, 1)]);
    assert!(reading.lag <= Duration::from_secs(10) && !reading.is_lower_bound, "{reading:?}");
    // Also while the rejected ones are fresh in memory.
    let mut age = Age::exact();
    let reading = read(&mut age, &[(0, 0, 0), (5, 0, 100), (10, 45, 50), (15, 90, 0), (20, 90, 1)]);
    assert!(reading.lag <= Duration::from_secs(5), "{reading:?}");
}

#[test]
fn a_backlog_from_before_is_a_lower_bound_until_it_is_gone() {
    let mut age = Age::exact();
    let reading = read(&mut age, &[(0, 50, 100), (5, 60, 90), (10, 70, 100)]);
    assert_eq!((reading.lag, reading.is_lower_bound), (seconds(10.0), true));
    // The hundred have left; the twenty that came in between 5 and 10 are next.
    let reading = read(&mut age, &[(15, 150, 20)]);
    assert!(!reading.is_lower_bound, "{reading:?}");
    assert!((5.0..=10.0).contains(&reading.lag.as_secs_f64()), "{reading:?}");
}

#[test]
fn a_counter_that_falls_begins_the_series_again() {
    let mut age = Age::exact();
    read(&mut age, &[(0, 0, 0), (5, 1000, 500), (100, 1000, 500)]);
    let reading = read(&mut age, &[(105, 0, 500)]);
    assert_eq!((reading.lag, reading.is_lower_bound, reading.stalled), (Duration::ZERO, true, Duration::ZERO));
}

#[test]
fn stalled_is_the_time_with_messages_and_without_an_acknowledgement() {
    let mut age = Age::of_statistics(seconds(5.0));
    assert_eq!(read(&mut age, &[(0, 7, 0), (5, 7, 3), (10, 7, 9), (60, 7, 9)]).stalled, seconds(60.0));
    assert_eq!(read(&mut age, &[(65, 8, 8)]).stalled, Duration::ZERO, "an acknowledgement");
    assert_eq!(read(&mut age, &[(70, 8, 8), (75, 8, 0)]).stalled, Duration::ZERO, "an empty queue");
}

#[test]
fn acknowledgements_that_are_seen_before_or_after_the_messages_leave_are_not_counted_twice() {
    for (delay_removed, delay_messages) in [(0, 10), (5, 0)] {
        let mut age = Age::of_statistics(seconds(5.0));
        // Ten a second; every 60 s the 600 oldest are acknowledged at once, so that the oldest is 60 to 120 s old.
        let removed = |second: u64| (second / 60).saturating_sub(1) * 600;
        for second in (0..3600_u64).step_by(5) {
            let (seen, left) = (second.saturating_sub(delay_removed), second.saturating_sub(delay_messages));
            let reading = age.observe(Duration::from_secs(second), removed(seen), left * 10 - removed(left));
            let truth = 60 + second % 60;
            let settled = second > 300 && second % 60 >= 30;
            let error = reading.lag.as_secs_f64() - f64::from(u32::try_from(truth).unwrap());
            assert!(!settled || error.abs() <= 15.0, "{second}: {reading:?} is not {truth}");
        }
    }
}

#[test]
fn a_month_of_backlog_is_a_few_hundred_points_and_still_right() {
    let mut age = Age::of_statistics(seconds(5.0));
    let month = 30 * 86_400_u64;
    age.observe(Duration::ZERO, 0, 0);
    let mut second = 0;
    while second < month {
        // Coarser than in life, so that the test is fast; the bound does not depend on it.
        second += 97;
        age.observe(Duration::from_secs(second), 0, second);
    }
    let points = age.series.as_ref().unwrap().history.len();
    assert!(points < 350, "{points}");
    // The first half is acknowledged.
    let half = second / 2;
    let reading = age.observe(Duration::from_secs(second + 97), half, second - half);
    let (lag, truth) = (reading.lag.as_secs_f64(), Duration::from_secs(second - half).as_secs_f64());
    assert!((lag - truth).abs() < truth * 0.05, "{lag} is not {truth}");
}

/// What happens to a queue between two samples, and how long that takes.
#[derive(Clone, Debug)]
struct Step {
    seconds: f64,
    arrivals: usize,
    /// From the head, in this order.
    acknowledged: usize,
    rejected: usize,
}

fn step(rejects: usize) -> impl Strategy<Value = Step> {
    (0.5_f64..20.0, 0_usize..40, 0_usize..40, 0..=rejects)
        .prop_map(|(seconds, arrivals, acknowledged, rejected)| Step { seconds, arrivals, acknowledged, rejected })
}

/// Plays the steps on a queue that is first in, first out; tells after each the reading, the true age of the oldest message and
/// the longest span between two samples.
fn play(steps: &[Step], mut check: impl FnMut(Reading, Duration, Duration)) {
    let (mut age, mut queue, mut removed) = (Age::exact(), VecDeque::<f64>::new(), 0);
    let (mut now, mut longest) = (0.0, 0.0_f64);
    age.observe(Duration::ZERO, 0, 0);
    for step in steps {
        // Arrivals are spread over the step; what leaves, leaves at its end.
        for number in 0..step.arrivals {
            let part = f64::from(u32::try_from(number).unwrap()) / f64::from(u32::try_from(step.arrivals).unwrap());
            queue.push_back(now + step.seconds * part);
        }
        now += step.seconds;
        longest = longest.max(step.seconds);
        let acknowledged = step.acknowledged.min(queue.len());
        queue.drain(..acknowledged);
        removed += u64::try_from(acknowledged).unwrap();
        queue.drain(..step.rejected.min(queue.len()));
        let reading = age.observe(seconds(now), removed, u64::try_from(queue.len()).unwrap());
        check(reading, seconds(queue.front().map_or(0.0, |entered| now - entered)), seconds(longest));
    }
}

proptest! {
    #[test]
    fn of_a_queue_in_order_the_age_is_right_within_one_sampling_period(
        steps in prop::collection::vec(step(0), 1..200),
    ) {
        play(&steps, |reading, truth, period| {
            prop_assert_in(reading.lag, truth, period + truth / GAPS_PER_AGE);
            assert!(!reading.is_lower_bound);
        });
    }

    #[test]
    fn rejects_and_expiries_never_make_it_look_younger_and_an_empty_queue_has_no_age(
        steps in prop::collection::vec(step(20), 1..200),
    ) {
        play(&steps, |reading, truth, period| {
            assert!(reading.lag + period + truth / GAPS_PER_AGE >= truth, "{reading:?} is below {truth:?}");
            assert!(!truth.is_zero() || reading.lag <= period, "{reading:?} of an empty queue");
        });
    }
}

fn prop_assert_in(lag: Duration, truth: Duration, tolerance: Duration) {
    assert!(lag.abs_diff(truth) <= tolerance, "{lag:?} is not {truth:?} within {tolerance:?}");
}
