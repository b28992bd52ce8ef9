-- The columns of the outbox, and whether the table that its copies pass through has the same and is published. $1: publication.
with columns as (
    select
        class.relation,
        pg_catalog.array_agg(attribute.attname::text order by attribute.attname) as sorted,
        pg_catalog.array_agg(attribute.attname::text order by attribute.attnum) as names,
        pg_catalog.array_agg(attribute.atttypid order by attribute.attname) as types
    from (values ('outbox', {{outbox_text}}::pg_catalog.regclass), ('resend', 'postrider.resend'::pg_catalog.regclass)) as class (relation, oid)
    join pg_catalog.pg_attribute as attribute on attribute.attrelid = class.oid and attribute.attnum > 0 and not attribute.attisdropped
    group by class.relation
)
select
    outbox.names,
    outbox.sorted = resend.sorted and outbox.types = resend.types as equal,
    (
        select pg_catalog.format_type(atttypid, atttypmod)
        from pg_catalog.pg_attribute
        where attrelid = {{outbox_text}}::pg_catalog.regclass and attname = {{id_text}}::pg_catalog.name
    ) as id_type,
    exists (
        select from pg_catalog.pg_publication_tables
        where pubname = $1::text and schemaname = 'postrider' and tablename = 'resend'
    ) as published
from columns as outbox
join columns as resend on resend.relation = 'resend'
where outbox.relation = 'outbox'
