-- Removes the publication if the migrations made it; otherwise takes out of it what they added.
--
-- Lock: SHARE UPDATE EXCLUSIVE on the outbox table: reads and writes go on.

do $postrider$
declare
    here postrider.settings;
begin
    select * into here from postrider.settings;
    if here.publication_made then
        execute pg_catalog.format('drop publication if exists %I', here.publication);
    elsif exists (
        select from pg_catalog.pg_publication_rel as published
        join pg_catalog.pg_publication as publication on publication.oid = published.prpubid
        where publication.pubname = here.publication
            and published.prrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', here.outbox_schema, here.outbox_table))
            and here.outbox_published
    ) then
        execute pg_catalog.format('alter publication %I drop table %I.%I', here.publication, here.outbox_schema, here.outbox_table);
    end if;
end
$postrider$;
