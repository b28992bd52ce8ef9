-- What `postrider check` asks about the publication. $1: its name, $2 and $3: schema and name of the outbox table.
select
    publication.pubinsert and not (publication.pubupdate or publication.pubdelete or publication.pubtruncate) as inserts_only,
    publication.pubinsert as inserts,
    publication.pubviaroot as via_root,
    exists (
        select from pg_catalog.pg_publication_tables as published
        where published.pubname = publication.pubname and published.schemaname = $2::text and published.tablename = $3::text
    ) or exists (
        -- A partitioned table that is published by its partitions, which via_root tells.
        select
        from pg_catalog.pg_publication_rel as member
        join pg_catalog.pg_class as class on class.oid = member.prrelid
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        where member.prpubid = publication.oid and namespace.nspname = $2::text and class.relname = $3::text
    ) as has_outbox,
    exists (
        select from pg_catalog.pg_publication_tables as published
        where published.pubname = publication.pubname and published.schemaname = 'postrider' and published.tablename = 'heartbeat'
    ) as has_heartbeat,
    -- Each dead letter would come back through the slot. The first: whether they are published; the second: what can be taken out.
    exists (
        select from pg_catalog.pg_publication_tables as published
        where published.pubname = publication.pubname and published.schemaname = 'postrider'
            and published.tablename in ('dead_letters', 'dead_letter_chunks')
    ) as has_dead_letters,
    array(
        select pg_catalog.format('%I.%I', namespace.nspname, class.relname)
        from pg_catalog.pg_publication_rel as member
        join pg_catalog.pg_class as class on class.oid = member.prrelid
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        where member.prpubid = publication.oid and namespace.nspname = 'postrider'
            and class.relname in ('dead_letters', 'dead_letter_chunks')
        order by class.relname
    ) as dead_letters,
    exists (
        select
        from pg_catalog.pg_publication_rel as member
        join pg_catalog.pg_class as class on class.oid = member.prrelid
        join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
        where member.prpubid = publication.oid and (member.prqual is not null or member.prattrs is not null)
            and namespace.nspname = $2::text and class.relname = $3::text
    ) as is_partial
from pg_catalog.pg_publication as publication
where publication.pubname = $1::text
