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
        relay_epoch: 1,
        source_epoch: 0,
        heartbeat_no: 0,
        confirmed_heartbeat_no: None,
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
        active_pid: None,
    }
}

fn identity() -> ServerIdentity {
    ServerIdentity {
        system_identifier: 1,
        database_oid: 5,
        database: "shop".to_owned(),
        timeline: 1,
        version_num: 170_000,
        in_recovery: false,
        postmaster_started: SystemTime::UNIX_EPOCH,
    }
}

const BOUNDS: Bounds = Bounds { remembered: Lsn::ZERO, flushed: Lsn(1_000) };

#[test]
fn a_slot_between_its_checkpoint_and_what_was_intended_is_resumed() {
    for confirmed in [100, 190, 200] {
        resumable(&record(), &slot(confirmed), &identity(), &BOUNDS).unwrap();
    }
}

#[test]
fn a_slot_beyond_what_was_ever_intended_halts_with_the_interval() {
    let halt = resumable(&record(), &slot(201), &identity(), &BOUNDS).unwrap_err();
    assert!(matches!(halt, Halt::SlotAdvanced { intended: Lsn(200), confirmed: Lsn(201), .. }));
}

#[test]
fn what_this_process_remembers_stands_in_for_a_record_that_could_not_be_written() {
    let bounds = Bounds { remembered: Lsn(250), ..BOUNDS };
    resumable(&record(), &slot(250), &identity(), &bounds).unwrap();
    assert!(resumable(&record(), &slot(251), &identity(), &bounds).is_err());
}

#[test]
fn wal_that_ends_before_what_was_acknowledged_halts() {
    let bounds = Bounds { flushed: Lsn(189), ..BOUNDS };
    assert!(matches!(
        resumable(&record(), &slot(100), &identity(), &bounds),
        Err(Halt::SourceRewound { flushed: Lsn(189), acknowledged: Lsn(190), .. })
    ));
}

#[test]
fn another_cluster_or_database_with_a_slot_of_the_same_name_halts() {
    for other in
        [ServerIdentity { system_identifier: 2, ..identity() }, ServerIdentity { database_oid: 6, ..identity() }]
    {
        let halt = resumable(&record(), &slot(190), &other, &BOUNDS).unwrap_err();
        assert!(matches!(halt, Halt::SourceChanged { .. }), "{halt}");
    }
}

#[test]
fn a_slot_that_is_lost_or_of_another_kind_halts() {
    let lost = SlotRow { wal_status: Some("lost".to_owned()), ..slot(190) };
    assert!(matches!(resumable(&record(), &lost, &identity(), &BOUNDS), Err(Halt::SlotLost { .. })));
    let others = [
        SlotRow { plugin: Some("wal2json".to_owned()), ..slot(190) },
        SlotRow { database: Some("other".to_owned()), ..slot(190) },
        SlotRow { plugin: None, database: None, ..slot(190) },
        SlotRow { temporary: true, ..slot(190) },
    ];
    for other in others {
        assert!(matches!(resumable(&record(), &other, &identity(), &BOUNDS), Err(Halt::WrongSlot { .. })));
    }
}

#[test]
fn a_slot_whose_making_was_announced_and_never_recorded_is_ours_wherever_it_stands() {
    let announced = Record { phase: Phase::Creating, intended: None, acknowledged: None, ..record() };
    resumable(&announced, &slot(500), &identity(), &BOUNDS).unwrap();
}
