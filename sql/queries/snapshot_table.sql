-- A captured table as the stream describes it, a row for each of its columns. $1: schema, $2: table, $3: slot's publications of captured tables.
--
-- No row if it is not in them. Of generated columns a publication has those that are stored, and only if it says so (PostgreSQL 18).
select
    class.oid,
    class.relkind::text as kind,
    class.relreplident::text as identity,
    class.reltuples::double precision as estimate,
    attribute.attname::text as name,
    attribute.atttypid as type,
    attribute.atttypmod as modifier,
    namespace_of_type.nspname::text as type_schema,
    class.relreplident = 'f'
        or coalesce(attribute.attnum = any (identity.indkey::pg_catalog.int2[]), false) as identifies,
    attribute.attgenerated <> '' as generated
from pg_catalog.pg_class as class
join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
join pg_catalog.pg_attribute as attribute on attribute.attrelid = class.oid
join pg_catalog.pg_type as type on type.oid = attribute.atttypid
join pg_catalog.pg_namespace as namespace_of_type on namespace_of_type.oid = type.typnamespace
left join pg_catalog.pg_index as identity on identity.indrelid = class.oid
    and (class.relreplident = 'd' and identity.indisprimary or class.relreplident = 'i' and identity.indisreplident)
where namespace.nspname = $1 and class.relname = $2
    and attribute.attnum > 0 and not attribute.attisdropped
    and exists (
        select from pg_catalog.pg_publication_rel as member
        join pg_catalog.pg_publication as publication on publication.oid = member.prpubid
        where member.prrelid = class.oid and publication.pubname = any ($3::text[])
            and (
                attribute.attgenerated = ''
                or attribute.attgenerated = 's' and pg_catalog.to_jsonb(publication) ->> 'pubgencols' = 's'
            )
    )
order by attribute.attnum
