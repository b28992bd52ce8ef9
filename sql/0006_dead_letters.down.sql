-- Removes the dead letters, and never one that is left without being told to.
--
-- Lock: ACCESS EXCLUSIVE on the dead letters: a running relay waits and then finds them missing.

lock table postrider.dead_letters, postrider.dead_letter_chunks in access exclusive mode;

do $postrider$
declare
    parked bigint;
begin
    select count(*) into parked from postrider.dead_letters;
    if parked > 0 and not {{drop_data}} then
        raise exception 'there are % dead letters, and they would be lost', parked
            using errcode = 'object_in_use',
            hint = 'Redrive or discard them first (postrider dlq), or say that all of it may go: postrider migrate --down --drop-data';
    end if;
end
$postrider$;

drop function postrider.redrive;
drop function postrider.discard;
drop function postrider.mark_dead_letters;
drop function postrider.dead_letter_body;
drop view postrider.parked;
drop table postrider.dead_letter_chunks;
drop table postrider.dead_letters;
