-- Whether anybody carries a slot. $1: its name. No row: there is no such slot in this database.
select
    slot.active_pid,
    (select activity.application_name from pg_catalog.pg_stat_activity as activity where activity.pid = slot.active_pid) as reader
from pg_catalog.pg_replication_slots as slot
where slot.slot_name = $1::text and slot.database = pg_catalog.current_database()
