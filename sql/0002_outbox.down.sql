-- Removes the outbox table if the migrations made it, and never rows without being told to.
--
-- Lock: ACCESS EXCLUSIVE on the outbox table, if it is to be dropped: writers wait until the end of the transaction.

do $postrider$
declare
    here postrider.settings;
    has_rows boolean;
begin
    select * into here from postrider.settings;
    if here.outbox_made
        and pg_catalog.to_regclass(pg_catalog.format('%I.%I', here.outbox_schema, here.outbox_table)) is not null
    then
        execute pg_catalog.format('lock table %I.%I in access exclusive mode', here.outbox_schema, here.outbox_table);
        execute pg_catalog.format('select exists (select from %I.%I)', here.outbox_schema, here.outbox_table) into has_rows;
        if has_rows and not {{drop_data}} then
            raise exception 'the outbox table %.% has rows, and they would be lost', here.outbox_schema, here.outbox_table
                using errcode = 'object_in_use',
                hint = 'Delete what is no longer needed, or say that all of it may go: postrider migrate --down --drop-data';
        end if;
        execute pg_catalog.format('drop table %I.%I', here.outbox_schema, here.outbox_table);
    end if;
end
$postrider$;

drop function postrider.refuse_change();
drop function postrider.stamp_xid();
