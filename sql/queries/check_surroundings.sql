-- What `postrider check` asks about what is around the server. $1: the slot's name.
select
    pg_catalog.current_setting('server_version_num')::integer as version,
    pg_catalog.current_database()::text as database,
    -- Physical slots, and walsenders without any slot that are not a relay's.
    (select count(*) from pg_catalog.pg_replication_slots where slot_type = 'physical' and not temporary)
    + (
        select count(*)
        from pg_catalog.pg_stat_replication as sender
        where sender.state = 'streaming'
            and not exists (select from pg_catalog.pg_replication_slots as slot where slot.active_pid = sender.pid)
    ) as standbys,
    -- The column and the setting are of PostgreSQL 17 and later.
    (
        select (pg_catalog.to_jsonb(slot) ->> 'failover')::boolean
        from pg_catalog.pg_replication_slots as slot
        where slot.slot_name = $1
    ) as failover,
    coalesce(pg_catalog.current_setting('synchronized_standby_slots', true), '') as synchronized_standby_slots,
    exists (select from pg_catalog.pg_stat_activity where application_name like 'Patroni%') as patroni
