use std::time::SystemTime;

use super::*;

fn record() -> Record {
    Record {
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        system_identifier: 1,
        database_oid: 5,
        timeline: 1,
        phase: Phase::Ready,
        intended: Some(Lsn(200)),
        acknowledged: Some(Lsn(190)),
        relay_epoch: 4,
        source_epoch: 1,
        heartbeat_no: 9,
        recorded_heartbeat_no: None,
        publication_state: None,
        born: None,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

fn slot(confirmed: u64) -> SlotRow {
    SlotRow {
        plugin: Some("pgoutput".to_owned()),
        database: Some("shop".to_owned()),
        temporary: false,
        confirmed: Lsn(confirmed),
        wal_status: Some("reserved".to_owned()),
        invalidation_reason: None,
        active_pid: None,
    }
}

fn scene() -> Scene {
    let identity = ServerIdentity {
        system_identifier: 1,
        database_oid: 5,
        database: "shop".to_owned(),
        timeline: 1,
        version_num: 170_000,
        in_recovery: false,
        postmaster_started: SystemTime::UNIX_EPOCH,
    };
    Scene { identity, slot: Some(slot(190)), record: Some(record()), flushed: Lsn(1_000), fork: None }
}

fn known() -> Known {
    Known {
        slot: "s".to_owned(),
        system_identifier: 1,
        database_oid: 5,
        timeline: 1,
        intended: Lsn(200),
        acknowledged: Lsn(190),
        relay_epoch: 4,
        source_epoch: 1,
        heartbeat_no: 9,
        recorded_heartbeat_no: None,
        halt: None,
    }
}

/// Reason and interval of the halt, or `None`.
fn halt(scene: &Scene, known: Option<&Known>) -> Option<(&'static str, u64, u64)> {
    let halt = examine("s", scene, known).err()?;
    let text = halt.to_string();
    assert!(text.contains(&halt.from.to_string()) && text.contains(&halt.to.to_string()), "{text}");
    Some((halt.reason(), halt.from.0, halt.to.0))
}

#[test]
fn without_a_slot_and_without_a_witness_there_is_nothing_to_doubt() {
    let first_start = Scene { slot: None, record: None, ..scene() };
    assert_eq!(halt(&first_start, None), None);
    let announced = Record { phase: Phase::Creating, intended: None, acknowledged: None, ..record() };
    assert_eq!(halt(&Scene { slot: None, record: Some(announced), ..scene() }, None), None);
}

#[test]
fn a_slot_that_is_gone_halts_with_what_was_committed_since() {
    assert_eq!(halt(&Scene { slot: None, ..scene() }, None), Some(("slot_missing", 190, 1_000)));
    // The record went with it: the second witness is enough.
    let emptied = Scene { slot: None, record: None, ..scene() };
    assert_eq!(halt(&emptied, Some(&known())), Some(("slot_missing", 190, 1_000)));
}

#[test]
fn a_slot_that_nobody_recorded_halts() {
    assert_eq!(halt(&Scene { record: None, ..scene() }, None), Some(("unknown_slot", 0, 190)));
}

#[test]
fn a_slot_between_its_checkpoint_and_what_was_intended_is_resumed() {
    for confirmed in [100, 190, 200] {
        assert_eq!(halt(&Scene { slot: Some(slot(confirmed)), ..scene() }, Some(&known())), None);
    }
}

#[test]
fn a_slot_beyond_what_was_ever_intended_halts_with_the_interval() {
    let advanced = Scene { slot: Some(slot(201)), ..scene() };
    assert_eq!(halt(&advanced, None), Some(("slot_advanced", 200, 201)));
}

#[test]
fn the_second_witness_stands_in_for_a_record_that_could_not_be_written() {
    let unrecorded = Known { intended: Lsn(250), acknowledged: Lsn(240), ..known() };
    assert_eq!(halt(&Scene { slot: Some(slot(250)), ..scene() }, Some(&unrecorded)), None);
    let advanced = Scene { slot: Some(slot(251)), ..scene() };
    assert_eq!(halt(&advanced, Some(&unrecorded)), Some(("slot_advanced", 250, 251)));
}

#[test]
fn wal_that_ends_before_what_was_acknowledged_halts() {
    let rewound = Scene { flushed: Lsn(189), slot: Some(slot(100)), ..scene() };
    assert_eq!(halt(&rewound, None), Some(("source_rewound", 189, 190)));
}

#[test]
fn a_record_that_is_older_than_what_was_committed_to_it_halts() {
    let newer = [
        Known { relay_epoch: 5, ..known() },
        Known { heartbeat_no: 10, ..known() },
        Known { source_epoch: 2, ..known() },
    ];
    for newer in newer {
        let newer = Known { acknowledged: Lsn(400), ..newer };
        assert_eq!(halt(&scene(), Some(&newer)), Some(("source_rewound", 190, 1_000)), "{newer:?}");
    }
}

#[test]
fn another_cluster_or_database_halts_whichever_witness_says_so() {
    let mut elsewhere = scene();
    elsewhere.identity.system_identifier = 2;
    assert_eq!(halt(&elsewhere, None), Some(("source_changed", 190, 1_000)));
    let mut elsewhere = scene();
    elsewhere.identity.database_oid = 6;
    assert_eq!(halt(&elsewhere, None), Some(("source_changed", 190, 1_000)));
    let of_another = Known { system_identifier: 3, ..known() };
    assert_eq!(halt(&scene(), Some(&of_another)), Some(("source_changed", 190, 1_000)));
}

#[test]
fn a_slot_that_is_lost_or_of_another_kind_halts() {
    let lost = SlotRow { wal_status: Some("lost".to_owned()), ..slot(190) };
    assert_eq!(halt(&Scene { slot: Some(lost), ..scene() }, None), Some(("slot_lost", 190, 1_000)));
    let idle = SlotRow { invalidation_reason: Some("idle_timeout".to_owned()), ..slot(190) };
    assert_eq!(halt(&Scene { slot: Some(idle), ..scene() }, None), Some(("slot_lost", 190, 1_000)));
    let others = [
        SlotRow { plugin: Some("wal2json".to_owned()), ..slot(190) },
        SlotRow { database: Some("other".to_owned()), ..slot(190) },
        SlotRow { plugin: None, database: None, ..slot(190) },
        SlotRow { temporary: true, ..slot(190) },
    ];
    for other in others {
        let (reason, ..) = halt(&Scene { slot: Some(other), ..scene() }, None).unwrap();
        assert_eq!(reason, "wrong_slot");
    }
}

#[test]
fn a_slot_whose_making_was_announced_and_never_recorded_is_ours_wherever_it_stands() {
    let announced = Record { phase: Phase::Creating, intended: None, acknowledged: None, ..record() };
    assert_eq!(halt(&Scene { slot: Some(slot(500)), record: Some(announced), ..scene() }, None), None);
}

#[test]
fn a_new_timeline_that_has_all_that_was_acknowledged_is_resumed_and_another_is_not() {
    let promoted = |fork| {
        let mut scene = Scene { fork: Some(fork), ..scene() };
        scene.identity.timeline = 2;
        scene
    };
    assert_eq!(halt(&promoted(Ok(Lsn(190))), None), None);
    assert_eq!(halt(&promoted(Ok(Lsn(189))), None), Some(("timeline_diverged", 190, 1_000)));
    let newer = Known { acknowledged: Lsn(195), ..known() };
    assert_eq!(halt(&promoted(Ok(Lsn(190))), Some(&newer)), Some(("timeline_diverged", 195, 1_000)));
    let later = Known { timeline: 3, ..known() };
    assert_eq!(halt(&promoted(Ok(Lsn(190))), Some(&later)), Some(("source_rewound", 190, 1_000)));
    assert_eq!(halt(&promoted(Err("no".to_owned())), None), Some(("timeline_diverged", 190, 1_000)));
}

#[test]
fn each_halt_has_a_reason_that_the_metric_knows() {
    let left = |reason: &str| Left {
        reason: reason.to_owned(),
        from: Lsn(1),
        to: Lsn(2),
        message: String::new(),
        decided_by_a_person: true,
        source_epoch: 0,
        halted_at: String::new(),
    };
    for reason in crate::metrics::HALTS {
        assert_eq!(Halt::left("s", &left(reason)).reason(), reason);
    }
    assert_eq!(Halt::left("s", &left("whatever")).reason(), "heartbeat_gap");
}
