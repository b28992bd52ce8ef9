-- $1: slot, $2: schema, $3: table.
update postrider.snapshots
set state = 'cancelled', finished_at = now(), updated_at = now()
where slot = $1 and schema_name = $2 and table_name = $3 and state in ('wanted', 'running')
