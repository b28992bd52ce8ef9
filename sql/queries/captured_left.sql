-- Those tables of $1 (OIDs) that are still there and still asked for by the patterns $2.
select pg_catalog.format('%I.%I', namespace.nspname, class.relname) as name
from pg_catalog.pg_class as class
join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
where class.oid = any ($1::pg_catalog.oid[])
    and exists (
        select
        from pg_catalog.unnest($2::pg_catalog.text[]) as pattern (text)
        where namespace.nspname::pg_catalog.text || '.' || class.relname::pg_catalog.text like
            pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(
                pattern.text, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') escape '!'
    )
order by 1
