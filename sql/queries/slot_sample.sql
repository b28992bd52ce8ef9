-- How far a slot of this database is behind, and how much WAL is kept for it. $1: the slot. No row: there is no such slot.
--
-- safe_wal_size is null while max_slot_wal_keep_size is unlimited, and restart_lsn and safe_wal_size once the slot is lost.
select
    slot.active,
    pg_catalog.pg_wal_lsn_diff(wal.position, slot.confirmed_flush_lsn)::bigint as confirmed_lag_bytes,
    pg_catalog.pg_wal_lsn_diff(wal.position, slot.restart_lsn)::bigint as retained_bytes,
    slot.safe_wal_size as safe_wal_bytes,
    slot.wal_status,
    pg_catalog.age(slot.catalog_xmin)::bigint as catalog_xmin_age,
    stats.spill_bytes
from pg_catalog.pg_replication_slots as slot
cross join (select pg_catalog.pg_current_wal_lsn() as position) as wal
left join pg_catalog.pg_stat_replication_slots as stats on stats.slot_name = slot.slot_name
where slot.slot_name = $1 and slot.database = pg_catalog.current_database()
