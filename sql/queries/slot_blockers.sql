-- name: slot_blockers
-- Transactions of the cluster that have an xid, the oldest first: the making of a slot waits for them, and the restart LSN of one
-- that exists does not pass them.
-- From pg_locks, because pg_stat_activity hides backend_xid of other users' sessions from a role without pg_monitor.
select
    l.pid,
    l.transactionid::text as xid,
    case
        when p.gid is not null then
            pg_catalog.format('prepared transaction %L in database %s, prepared %s (commit prepared or rollback prepared)',
                p.gid, p.database, p.prepared)
        else
            pg_catalog.format('session pid %s, user %s, application %s, in transaction since %s (select pg_terminate_backend(%s) ends it)',
                l.pid, coalesce(a.usename, '?'), coalesce(nullif(a.application_name, ''), '?'),
                coalesce(a.xact_start::text, 'unknown'), l.pid)
    end as blocker
from pg_catalog.pg_locks l
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
left join pg_catalog.pg_prepared_xacts p on p.transaction = l.transactionid and l.pid is null
where l.locktype = 'transactionid'
  and l.mode = 'ExclusiveLock'
  and l.granted
  and l.pid is distinct from pg_catalog.pg_backend_pid()
order by a.xact_start nulls last
limit 10
