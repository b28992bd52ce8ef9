-- How far the WAL is, and the time before that was read: what was committed before that time lies before that position.
select
    pg_catalog.pg_current_wal_flush_lsn() as flushed,
    (extract(epoch from pg_catalog.statement_timestamp()) * 1000000)::bigint as unix_micros
