-- The record of a slot, with the start of its open life.
select
    progress.slot,
    progress.publication,
    progress.system_identifier,
    progress.database_oid,
    progress.timeline,
    progress.phase,
    progress.intended_lsn,
    progress.acknowledged_lsn,
    progress.relay_epoch,
    progress.source_epoch,
    progress.heartbeat_no,
    progress.recorded_heartbeat_no,
    progress.publication_state,
    life.born::text as born,
    progress.updated_at
from postrider.progress as progress
left join postrider.lives as life on life.slot = progress.slot and life.ended_at is null
where progress.slot = $1
