-- What `postrider check` asks about the outbox table. $1: schema, $2: table. Asks the catalogue, so that it needs no grant.
select
    class.relkind in ('r', 'p') as is_table,
    class.relpersistence = 'p' as is_logged,
    array(
        select attribute.attname::text
        from pg_catalog.pg_attribute as attribute
        where attribute.attrelid = class.oid and attribute.attnum > 0 and not attribute.attisdropped
    ) as columns
from pg_catalog.pg_class as class
join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
where namespace.nspname = $1::text and class.relname = $2::text
