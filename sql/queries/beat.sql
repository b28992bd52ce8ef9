-- One heartbeat, in one transaction: sent as one message, whose statements PostgreSQL runs as one transaction.
-- Returns its number, or nothing if another relay has taken over.
with beaten as (
    update postrider.progress set heartbeat_no = heartbeat_no + 1, updated_at = now()
    where slot = {{slot_text}} and relay_epoch = {{epoch}}
    returning slot, heartbeat_no
)
insert into postrider.heartbeat (slot, no, snapshot)
select slot, heartbeat_no, pg_catalog.pg_current_snapshot() from beaten
returning no;
delete from postrider.heartbeat where slot = {{slot_text}};
