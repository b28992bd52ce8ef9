-- Removes what the relay knows of its slots, once the slots are gone.
--
-- Lock: ACCESS EXCLUSIVE on the tables of the state: a running relay waits and then finds them missing.

lock table postrider.progress, postrider.lives, postrider.heartbeat in access exclusive mode;

do $postrider$
declare
    name_of_slot pg_catalog.name;
begin
    select slot_name into name_of_slot
    from pg_catalog.pg_replication_slots
    where database = current_database()
        and (slot_name = {{slot_text}} or slot_name in (select slot from postrider.progress))
    order by slot_name
    limit 1;
    if found then
        raise exception 'replication slot "%" still exists', name_of_slot
            using errcode = 'object_in_use',
            hint = pg_catalog.format('Stop the relay. What it has not delivered by then it never will. Then: select pg_drop_replication_slot(%L);', name_of_slot);
    end if;
end
$postrider$;

drop table postrider.heartbeat;
drop table postrider.lives;
drop table postrider.progress;
