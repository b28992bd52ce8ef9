-- Drops a slot, if it is still there. $1: its name. Not undone by a rollback.
select pg_catalog.pg_drop_replication_slot(slot_name)
from pg_catalog.pg_replication_slots
where slot_name = $1::text and database = pg_catalog.current_database()
