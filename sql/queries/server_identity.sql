-- Which server and database this connection has reached.
--
-- The timeline is that of the next WAL record; a standby has none and tells that of its last restart point.
select
    control.system_identifier,
    own.oid as database_oid,
    own.datname::text as database,
    case
        when pg_catalog.pg_is_in_recovery() then (select timeline_id from pg_catalog.pg_control_checkpoint())
        else ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::integer
    end as timeline,
    pg_catalog.current_setting('server_version_num')::integer as version_num,
    pg_catalog.pg_is_in_recovery() as in_recovery,
    pg_catalog.pg_postmaster_start_time() as postmaster_started
from pg_catalog.pg_control_system() as control
cross join pg_catalog.pg_database as own
where own.datname = pg_catalog.current_database()
