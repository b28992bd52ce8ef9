-- Whether the outbox table has an xid column that this role may read. $1: schema, $2: table, $3: column.
select exists (
    select
    from pg_catalog.pg_class as class
    join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
    join pg_catalog.pg_attribute as attribute on attribute.attrelid = class.oid
    where namespace.nspname = $1::text and class.relname = $2::text and attribute.attname = $3::text
        and attribute.atttypid = 'pg_catalog.xid8'::pg_catalog.regtype and not attribute.attisdropped
        and pg_catalog.has_schema_privilege(namespace.oid, 'usage')
        and pg_catalog.has_column_privilege(class.oid, attribute.attnum, 'select')
)
