-- What there is to uninstall, from the catalogue alone, so that any role gets an answer. $1: slot, $2: publication,
-- $3: application name of its relays.
with relation as (
    select class.relname
    from pg_catalog.pg_class as class
    join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
    where namespace.nspname = 'postrider'
)
select
    exists (select from relation where relname = 'migrations') as migrated,
    exists (select from relation where relname = 'parked') as has_dead_letters,
    slot.slot_name is not null as slot_found,
    coalesce(slot.plugin = 'pgoutput' and slot.database = pg_catalog.current_database() and not slot.temporary, false) as slot_usable,
    pg_catalog.format('plugin %s, database %s%s', coalesce(slot.plugin, 'none'), coalesce(slot.database, 'none'),
        case when slot.temporary then ', temporary' else '' end) as slot_is,
    slot.active_pid,
    pg_catalog.pg_wal_lsn_diff(wal.position, slot.confirmed_flush_lsn)::bigint as lag_bytes,
    pg_catalog.pg_wal_lsn_diff(wal.position, slot.restart_lsn)::bigint as retained_bytes,
    exists (select from pg_catalog.pg_publication where pubname = $2::text) as publication_found,
    -- Tables whose changes a trigger goes on writing into the outbox.
    array(
        select trigger.tgrelid::pg_catalog.regclass::text
        from pg_catalog.pg_trigger as trigger
        where trigger.tgname = 'postrider_capture' and trigger.tgparentid = 0
        order by 1
    ) as captured,
    -- A relay that stands by has a replication connection too. Who it is, is shown to every role.
    array(
        select sender.pid from pg_catalog.pg_stat_replication as sender where sender.application_name = $3::text order by sender.pid
    ) as relay_pids
from (select case when not pg_catalog.pg_is_in_recovery() then pg_catalog.pg_current_wal_lsn() end as position) as wal
left join pg_catalog.pg_replication_slots as slot on slot.slot_name = $1::text
