-- name: slot
-- The slot as the server has it. $1: its name.
select
    plugin::text as plugin,
    database::text as database,
    temporary,
    confirmed_flush_lsn::text as confirmed_flush_lsn,
    wal_status,
    -- PostgreSQL 17 and later.
    pg_catalog.to_jsonb(slot) ->> 'invalidation_reason' as invalidation_reason,
    active_pid
from pg_catalog.pg_replication_slots as slot
where slot_name = $1::text
