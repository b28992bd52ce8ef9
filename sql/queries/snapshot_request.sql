-- Asks for a snapshot. $1: slot, $2: schema, $3: table, $4: condition or null. The number of the request, or no row while one is under way.
insert into postrider.snapshots as known (slot, schema_name, table_name, condition)
values ($1, $2, $3, $4)
on conflict (slot, schema_name, table_name) do update
set condition = excluded.condition,
    state = 'wanted',
    request = known.request + 1,
    last_key = null,
    rows_read = 0,
    rows_expected = null,
    problem = null,
    requested_by = current_user,
    requested_at = now(),
    started_at = null,
    finished_at = null,
    updated_at = now()
where known.state in ('done', 'cancelled')
returning request
