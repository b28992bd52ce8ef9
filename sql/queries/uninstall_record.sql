-- What the migrations have noted of a slot and of the publication. $1: slot, $2: publication.
select
    exists (select from postrider.progress as progress where progress.slot = $1::text) as recorded,
    exists (
        select from postrider.settings as here where here.publication = $2::text and here.publication_made
    ) as publication_made,
    exists (
        select
        from pg_catalog.pg_publication_rel as published
        join pg_catalog.pg_publication as publication on publication.oid = published.prpubid
        join pg_catalog.pg_class as class on class.oid = published.prrelid
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        cross join postrider.settings as here
        where publication.pubname = $2::text and here.publication = $2::text
            and (
                (namespace.nspname = here.outbox_schema and class.relname = here.outbox_table and here.outbox_published)
                or (namespace.nspname = 'postrider' and class.relname in ('heartbeat', 'resend'))
            )
    ) as has_ours,
    -- Slots that another relay of this database reads, through this publication or another one.
    array(
        select progress.slot
        from postrider.progress as progress
        join pg_catalog.pg_replication_slots as slot on slot.slot_name = progress.slot
        where progress.slot <> $1::text and slot.database = pg_catalog.current_database()
        order by progress.slot
    ) as other_slots,
    -- Members of the publication that the migrations did not put there.
    array(
        select pg_catalog.format('%I.%I', published.schemaname, published.tablename)
        from pg_catalog.pg_publication_tables as published
        cross join postrider.settings as here
        where published.pubname = $2::text
            and (published.schemaname, published.tablename) <> (here.outbox_schema, here.outbox_table)
            and (published.schemaname, published.tablename) not in (('postrider', 'heartbeat'), ('postrider', 'resend'))
        order by 1
    ) as other_tables
