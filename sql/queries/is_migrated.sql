-- Whether this database has migrations. Asks the catalogue, so that a role without any right on the schema gets an answer.
select exists (
    select
    from pg_catalog.pg_class as class
    join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
    where namespace.nspname = 'postrider' and class.relname = 'migrations' and class.relkind = 'r'
)
