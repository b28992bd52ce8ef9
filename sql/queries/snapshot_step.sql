-- Records how far a snapshot is. $1: slot, $2: schema, $3: table, $4: request, $5: epoch, $6: state, $7: last key, $8: rows read since the
-- last step, $9: rows expected or null, $10: problem or null, $11: begins from the start.
--
-- Finds no row if it was cancelled or asked for again, or if another relay has taken over.
with carrying as (
    select from postrider.progress where slot = $1 and relay_epoch = $5 for share
)
update postrider.snapshots
set state = $6,
    last_key = case when $11 then null else coalesce($7, last_key) end,
    rows_read = case when $11 then 0 else rows_read end + $8,
    rows_expected = coalesce($9, rows_expected),
    problem = $10,
    started_at = coalesce(started_at, now()),
    finished_at = case when $6 = 'done' then now() end,
    updated_at = now()
from carrying
where slot = $1 and schema_name = $2 and table_name = $3 and request = $4 and state in ('wanted', 'running')
