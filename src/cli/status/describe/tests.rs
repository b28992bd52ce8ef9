use super::*;
use crate::metrics::{DeadLetterQueueSample, QueueSample};
use crate::status::{
    DeadLetterQueue, DelayedKey, FailingExchange, Holder, Queue, Role, Samples, SlotState, Snapshot, Status,
};

fn carrying(change: impl FnOnce(&mut Snapshot)) -> (Verdict, String) {
    let status = Status::new("shop", "postrider");
    status.update(|snapshot| {
        (snapshot.role, snapshot.session_up, snapshot.broker_up) = (Role::Active, true, true);
        change(snapshot);
    });
    describe(&serde_json::to_value(status.snapshot()).unwrap())
}

fn verdict(change: impl FnOnce(&mut Snapshot)) -> (Verdict, String) {
    let (verdict, text) = carrying(change);
    (verdict, text.lines().next().unwrap().trim_start_matches("verdict").trim().to_owned())
}

fn queue(change: impl FnOnce(&mut QueueSample)) -> Queue {
    let mut queue = Queue { vhost: "/".to_owned(), queue: "billing".to_owned(), ..Queue::default() };
    let sample = &mut queue.sample;
    (sample.ready, sample.unacked, sample.consumers) = (Some(10), Some(2), Some(1));
    (sample.lag_seconds, sample.objective_seconds, sample.stalled_seconds) = (Some(4.0), Some(30.0), Some(0.0));
    change(sample);
    queue
}

fn dead(messages: u64) -> DeadLetterQueueSample {
    DeadLetterQueueSample { messages, ..DeadLetterQueueSample::default() }
}

#[test]
fn what_is_wrong_stands_first_and_what_is_empty_is_left_out() {
    let (verdict, text) = carrying(|snapshot| {
        snapshot.broker_up = false;
        snapshot.problem = Some("exchange `events` does not exist".to_owned());
        snapshot.unresolved_events = 3;
        snapshot.held_keys = 1;
        snapshot.most_delayed =
            Some(DelayedKey { key: "order/42".to_owned(), seconds: 12.25, reason: "returned".to_owned() });
        snapshot.failing_exchanges =
            vec![FailingExchange { exchange: "events".to_owned(), error: "NOT_FOUND".to_owned() }];
        snapshot.delivery_lag_seconds = Some(12.5);
        snapshot.dead_letters.waiting = 3;
        snapshot.dead_letters.keys = 2;
        snapshot.dead_letters.oldest_seconds = Some(61.5);
        snapshot.dead_letters.by_reason = [("behind", 1), ("unroutable", 2)].into();
        snapshot.dead_letters.stalled = Some("max_parked");
    });
    assert_eq!(verdict, Verdict::NotReady);
    insta::assert_snapshot!(text, @r#"
    verdict       exchange `events` does not exist
    role          active
    slot          shop (publication postrider)
    postgresql    connected
    rabbitmq      not connected
    lag           12.5 s
    unresolved    3 events, 0 bytes
    held keys     1
    most delayed  order/42 for 12.2 s: returned
    failing       exchange events: NOT_FOUND
    dead letters  3 of 2 keys, oldest 61.5 s: behind 1, unroutable 2
    stalled       nothing is read: the dead letters have reached max_parked (postrider dlq list)
    "#);
}

#[test]
fn the_whole_picture_has_the_slot_and_the_queues() {
    let (verdict, text) = carrying(|snapshot| {
        snapshot.delivery_lag_seconds = Some(0.2);
        snapshot.slot_state = Some(SlotState {
            active: true,
            confirmed_lag_bytes: Some(1 << 10),
            retained_bytes: Some(48 << 20),
            safe_wal_bytes: Some(1 << 30),
            wal_status: Some("reserved".to_owned()),
            restart_held_by: vec![Holder {
                pid: Some(7),
                xid: "791".to_owned(),
                description: "session pid 7, user app".to_owned(),
            }],
            ..SlotState::default()
        });
        snapshot.queues = vec![queue(|_| {}), queue(|queue| queue.lag_is_lower_bound = true)];
        snapshot.dead_letter_queues =
            vec![DeadLetterQueue { queue: "billing.dlq".to_owned(), ..DeadLetterQueue::default() }];
    });
    assert_eq!(verdict, Verdict::Well);
    insta::assert_snapshot!(text, @r"
    verdict       carrying events
    role          active
    slot          shop (publication postrider)
    wal           48.0 MiB of WAL kept, 1.0 KiB not confirmed, 1.0 GiB more before it may be lost, status reserved
    held back by  xid 791: session pid 7, user app
    postgresql    connected
    rabbitmq      connected
    lag           0.2 s
    unresolved    0 events, 0 bytes
    held keys     0
    queue         billing: 10 ready, 2 held by consumers, 1 consumers, lag 4.0 s (30.0 s allowed)
    queue         billing: 10 ready, 2 held by consumers, 1 consumers, lag at least 4.0 s (30.0 s allowed)
    their dlq     billing.dlq: 0 messages
    ");
}

#[test]
fn the_verdict_says_what_a_person_should_look_at() {
    let said = |change: &dyn Fn(&mut Snapshot)| verdict(|snapshot| change(snapshot));
    let attention = |sentence: &str| (Verdict::Attention, format!("carrying events, but: {sentence}"));
    assert_eq!(said(&|_| {}), (Verdict::Well, "carrying events".to_owned()));
    assert_eq!(
        said(&|snapshot| snapshot.queues = vec![queue(|queue| queue.lag_seconds = Some(95.0))]),
        attention("billing is 95.0 s behind (30.0 s allowed)")
    );
    assert_eq!(
        said(&|snapshot| snapshot.queues = vec![queue(|queue| queue.consumers = Some(0))]),
        attention("nobody consumes billing")
    );
    assert_eq!(
        said(&|snapshot| {
            snapshot.queues = vec![queue(|queue| {
                (queue.lag_seconds, queue.stalled_seconds) = (Some(400.0), Some(400.0));
            })];
        }),
        attention("the consumers of billing have acknowledged nothing for 6 min 40 s")
    );
    let room = |left: i64| {
        let (safe_wal_bytes, retained_bytes) = (Some(left), Some(80 << 20));
        SlotState { safe_wal_bytes, retained_bytes, ..SlotState::default() }
    };
    assert_eq!(said(&|snapshot| snapshot.slot_state = Some(room(20 << 20))).0, Verdict::Well);
    assert_eq!(
        said(&|snapshot| snapshot.slot_state = Some(room(19 << 20))),
        attention("19.0 MiB more of WAL, and the slot may be lost")
    );
    assert_eq!(
        said(&|snapshot| {
            snapshot.delivery_lag_seconds = Some(3.0 * 3_600.0);
            snapshot.dead_letters.waiting = 2;
        }),
        attention("3 h 0 min behind; dead letters wait: 2 (postrider dlq list)")
    );
    assert_eq!(
        said(&|snapshot| {
            snapshot.slot_state = Some(SlotState { wal_status: Some("unreserved".to_owned()), ..SlotState::default() });
        }),
        attention("the slot's WAL is unreserved")
    );
    let delayed = |seconds| {
        let (key, reason) = ("order\u{1f}42".to_owned(), "returned".to_owned());
        Some(DelayedKey { key, seconds, reason })
    };
    assert_eq!(
        said(&|snapshot| snapshot.most_delayed = delayed(301.0)),
        attention("order / 42 has waited for 5 min 1 s: returned")
    );
    assert_eq!(said(&|snapshot| snapshot.most_delayed = delayed(299.0)).0, Verdict::Well);
    let samples = |age_seconds| vec![Samples { target: "management", age_seconds, errors: 3 }];
    assert_eq!(
        said(&|snapshot| snapshot.samples = samples(None)),
        attention("no sample of management could be taken yet (the log says why)")
    );
    assert_eq!(
        said(&|snapshot| snapshot.samples = samples(Some(121.0))),
        attention("what is shown of management is 2 min 1 s old (the log says why)")
    );
    assert_eq!(said(&|snapshot| snapshot.samples = samples(Some(20.0))).0, Verdict::Well);
}

#[test]
fn the_verdict_on_a_queue_is_that_of_the_alerts() {
    let dead_letter_queue =
        |messages| DeadLetterQueue { vhost: "/".to_owned(), queue: "billing".to_owned(), sample: dead(messages) };
    let unread = verdict(|snapshot| {
        snapshot.queues = vec![queue(|queue| queue.consumers = Some(0))];
        snapshot.dead_letter_queues = vec![dead_letter_queue(0)];
    });
    assert_eq!(unread.0, Verdict::Well, "nobody need read a dead-letter queue: {unread:?}");
    let stalled = |lag| {
        verdict(|snapshot| {
            snapshot.queues =
                vec![queue(|queue| (queue.lag_seconds, queue.stalled_seconds) = (Some(lag), Some(121.0)))];
        })
    };
    assert_eq!(stalled(20.0).0, Verdict::Well, "within its objective a queue may take its time");
    assert!(stalled(121.0).1.contains("have acknowledged nothing for 2 min 1 s"));
}

#[test]
fn a_dead_letter_queue_that_has_messages_is_named() {
    let said = |change: &dyn Fn(&mut Snapshot)| verdict(|snapshot| change(snapshot));
    let attention = |sentence: &str| (Verdict::Attention, format!("carrying events, but: {sentence}"));
    assert_eq!(
        said(&|snapshot| {
            let (queue, messages) = ("billing.dlq".to_owned(), 4);
            snapshot.dead_letter_queues =
                vec![DeadLetterQueue { queue, sample: dead(messages), ..DeadLetterQueue::default() }];
        }),
        attention("billing.dlq has 4 of the consumers' dead letters (postrider dlq --queue billing.dlq list)")
    );
}

#[test]
fn a_standby_is_well_and_a_relay_that_cannot_read_is_not() {
    let standby = verdict(|snapshot| {
        (snapshot.role, snapshot.session_up, snapshot.standing_by) = (Role::Standby, false, true);
        snapshot.problem = Some("another relay holds slot shop; standing by to take over".to_owned());
    });
    assert_eq!(standby.0, Verdict::Well, "{standby:?}");
    let full = verdict(|snapshot| snapshot.dead_letters.stalled = Some("max_parked"));
    assert_eq!(full.0, Verdict::NotReady, "{full:?}");
    let blocked = verdict(|snapshot| snapshot.broker_blocked = Some("low on memory".to_owned()));
    assert_eq!(blocked, (Verdict::NotReady, "not carrying: RabbitMQ has blocked publishing: low on memory".to_owned()));
    let stopping = verdict(|snapshot| snapshot.stopping = true);
    assert_eq!(stopping, (Verdict::NotReady, "stopping".to_owned()));
}
