-- The table that a person means. $1: its name, with its schema or without (then of public); $2: the publications of captured tables.
select
    namespace.nspname::text as schema_name,
    class.relname::text as table_name,
    exists (
        select from pg_catalog.pg_publication_rel as member
        join pg_catalog.pg_publication as publication on publication.oid = member.prpubid
        where member.prrelid = class.oid and publication.pubname = any ($2::text[])
    ) as captured
from pg_catalog.pg_class as class
join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
where class.relkind in ('r', 'p')
    and (pg_catalog.concat(namespace.nspname, '.', class.relname) = $1 or namespace.nspname = 'public' and class.relname = $1)
order by namespace.nspname = 'public' desc
limit 1
