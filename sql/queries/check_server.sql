-- What `postrider check` asks about the server.
select
    pg_catalog.current_setting('server_version') as version,
    pg_catalog.pg_is_in_recovery() as in_recovery,
    pg_catalog.current_setting('wal_level') as wal_level,
    pg_catalog.current_setting('max_replication_slots')::bigint as slots_allowed,
    (select count(*) from pg_catalog.pg_replication_slots) as slots_used,
    (select pg_catalog.string_agg(slot_name, ', ' order by slot_name) from pg_catalog.pg_replication_slots where not active) as slots_idle,
    pg_catalog.current_setting('max_wal_senders')::bigint as senders_allowed,
    (select count(*) from pg_catalog.pg_stat_replication) as senders_used,
    pg_catalog.current_setting('synchronous_standby_names') as synchronous_standby_names,
    pg_catalog.current_setting('max_slot_wal_keep_size') as max_slot_wal_keep_size,
    -- PostgreSQL 18 and later.
    coalesce(pg_catalog.current_setting('idle_replication_slot_timeout', true), '0') as idle_slot_timeout,
    pg_catalog.current_setting('wal_sender_timeout') as wal_sender_timeout,
    pg_catalog.current_setting('server_encoding') as encoding,
    current_user::text as role
