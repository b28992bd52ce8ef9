-- Removes the publication if the migrations made it and nothing else is in it; otherwise takes out of it what they added.
--
-- Lock: SHARE UPDATE EXCLUSIVE on the outbox table: reads and writes go on.
do $postrider$
declare
    here postrider.settings;
    member record;
begin
    select * into here from postrider.settings;
    if here.publication is distinct from {{publication_text}} then
        return;
    end if;
    if here.publication_made and not exists (
        select
        from pg_catalog.pg_publication_tables as published
        where published.pubname = here.publication
            and (published.schemaname, published.tablename) <> (here.outbox_schema, here.outbox_table)
            and (published.schemaname, published.tablename) not in (('postrider', 'heartbeat'), ('postrider', 'resend'))
    ) then
        execute pg_catalog.format('drop publication if exists %I', here.publication);
        return;
    end if;
    for member in
        select namespace.nspname, class.relname
        from pg_catalog.pg_publication_rel as published
        join pg_catalog.pg_publication as publication on publication.oid = published.prpubid
        join pg_catalog.pg_class as class on class.oid = published.prrelid
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        where publication.pubname = here.publication
            and (
                (namespace.nspname = here.outbox_schema and class.relname = here.outbox_table and here.outbox_published)
                or (namespace.nspname = 'postrider' and class.relname in ('heartbeat', 'resend'))
            )
    loop
        execute pg_catalog.format('alter publication %I drop table %I.%I', here.publication, member.nspname, member.relname);
    end loop;
    -- What is left is somebody else's: going back must not drop it.
    update postrider.settings set publication_made = false, outbox_published = false;
end
$postrider$;
