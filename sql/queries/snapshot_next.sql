-- The snapshot to take now. $1: slot. One that had trouble is tried again after a while.
select schema_name, table_name, condition, request, last_key
from postrider.snapshots
where slot = $1 and state in ('wanted', 'running') and (problem is null or updated_at < now() - interval '10 seconds')
order by state = 'running' desc, requested_at, schema_name, table_name
limit 1
