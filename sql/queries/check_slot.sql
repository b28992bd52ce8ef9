-- What `postrider check` asks about the slot. $1: its name.
select
    coalesce(slot.plugin, slot.slot_type)::text as plugin,
    slot.database::text as database,
    slot.database = pg_catalog.current_database() as ours,
    slot.temporary,
    slot.active_pid,
    slot.wal_status,
    -- A fifth of what it may keep is left, or less.
    slot.wal_status = 'unreserved'
    or slot.safe_wal_size * 5 < pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_slot_wal_keep_size')) as endangered,
    pg_catalog.pg_size_pretty(greatest(slot.safe_wal_size, 0)) as safe_wal,
    slot.confirmed_flush_lsn::text as confirmed,
    (select application_name from pg_catalog.pg_stat_replication where pid = slot.active_pid) as reader
from pg_catalog.pg_replication_slots as slot
where slot.slot_name = $1
