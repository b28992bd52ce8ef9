-- The mark of a chunk, in one transaction: sent as one message, whose statements PostgreSQL runs as one transaction.
-- Returns its number, or nothing if another relay has taken over.
with carrying as (
    select from postrider.progress where slot = {{slot_text}} and relay_epoch = {{epoch}} for share
)
insert into postrider.heartbeat (slot, no, snapshot)
select {{mark_text}}, {{no}}, {{snapshot_text}}::pg_catalog.pg_snapshot from carrying
returning no;
delete from postrider.heartbeat where slot = {{mark_text}};
