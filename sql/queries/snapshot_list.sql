-- The snapshots of a slot. $1: slot, $2: schema or null for all, $3: table.
select
    schema_name,
    table_name,
    condition,
    state,
    request,
    rows_read,
    rows_expected,
    problem,
    requested_by,
    pg_catalog.to_char(requested_at, 'YYYY-MM-DD HH24:MI:SS TZ') as requested_at,
    pg_catalog.to_char(finished_at, 'YYYY-MM-DD HH24:MI:SS TZ') as finished_at
from postrider.snapshots
where slot = $1 and ($2::text is null or schema_name = $2 and table_name = $3)
order by requested_at, schema_name, table_name
