-- What `postrider check` asks about the slot. $1: its name.
select
    coalesce(slot.plugin, slot.slot_type)::text as plugin,
    slot.database::text as database,
    slot.database = pg_catalog.current_database() as ours,
    slot.temporary,
    slot.active_pid,
    slot.wal_status,
    slot.confirmed_flush_lsn::text as confirmed,
    (select application_name from pg_catalog.pg_stat_replication where pid = slot.active_pid) as reader
from pg_catalog.pg_replication_slots as slot
where slot.slot_name = $1
