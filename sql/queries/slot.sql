-- name: slot
-- The slot as the server has it. $1: its name.
select
    plugin::text as plugin,
    database::text as database,
    temporary,
    confirmed_flush_lsn::text as confirmed_flush_lsn,
    wal_status,
    active_pid
from pg_catalog.pg_replication_slots
where slot_name = $1::text
