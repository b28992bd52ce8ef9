-- Begins a life of a slot that exists. $2: the newest transaction number in the outbox table, if it has any.
--
-- Every transaction below this snapshot's xmax may have begun before the slot did. A row with a higher number than that
-- was written by another cluster, and its number must not be taken for one of this life.
insert into postrider.lives (system_identifier, database_oid, slot, born)
select
    progress.system_identifier,
    progress.database_oid,
    progress.slot,
    greatest(
        pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()),
        ($2::text::numeric + 1)::text::xid8
    )
from postrider.progress as progress
where progress.slot = $1
returning born::text
