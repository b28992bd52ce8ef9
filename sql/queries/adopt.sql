-- Accepts an interval in doubt: keeps why, and makes a record that the halt rules find right.
--
-- A relay of before that still runs is fenced by the epoch. $6: phase; $7: where a slot that is kept stands.
with kept as (
    insert into postrider.adoptions (slot, halt, from_lsn, to_lsn, reason, source_epoch, system_identifier, database_oid)
    values ($1, $10, $11, $12, $13, $8, $3, $4)
),
over as (
    delete from postrider.halts where slot = $1
)
insert into postrider.progress as progress (
    slot, publication, system_identifier, database_oid, timeline, phase, intended_lsn, acknowledged_lsn, relay_epoch, source_epoch,
    publication_state
)
values ($1, $2, $3, $4, $5, $6, $7, $7, 1, $8, $9)
on conflict (slot) do update
set publication = excluded.publication,
    system_identifier = excluded.system_identifier,
    database_oid = excluded.database_oid,
    timeline = excluded.timeline,
    phase = excluded.phase,
    intended_lsn = excluded.intended_lsn,
    acknowledged_lsn = excluded.acknowledged_lsn,
    relay_epoch = progress.relay_epoch + 1,
    source_epoch = excluded.source_epoch,
    publication_state = excluded.publication_state,
    recorded_heartbeat_no = null,
    updated_at = now()
