-- What the relay's role may do. $1 and $2: schema and name of the outbox table. Asks the catalogue, so that it needs no grant.
--
-- A row for each right: what it is on (as GRANT wants it), which, whether this role has it, whether the relay can do without.
with wanted (schema, name, privilege, optional) as (
    values
        ('postrider', 'migrations', 'select', false),
        ('postrider', 'settings', 'select', false),
        ('postrider', 'outbox_status', 'select', false),
        ('postrider', 'progress', 'select', false),
        ('postrider', 'progress', 'insert', false),
        ('postrider', 'progress', 'update', false),
        ('postrider', 'lives', 'select', false),
        ('postrider', 'lives', 'insert', false),
        ('postrider', 'lives', 'update', false),
        ('postrider', 'heartbeat', 'select', false),
        ('postrider', 'heartbeat', 'insert', false),
        ('postrider', 'heartbeat', 'delete', false),
        ('postrider', 'halts', 'select', false),
        ('postrider', 'halts', 'insert', false),
        ('postrider', 'halts', 'update', false),
        ('postrider', 'halts', 'delete', false),
        ('postrider', 'dead_letters', 'select', false),
        ('postrider', 'dead_letters', 'insert', false),
        ('postrider', 'dead_letters', 'update', false),
        ('postrider', 'dead_letters', 'delete', false),
        ('postrider', 'dead_letter_chunks', 'select', false),
        ('postrider', 'dead_letter_chunks', 'insert', false),
        ('postrider', 'snapshots', 'select', true),
        ('postrider', 'snapshots', 'insert', true),
        ('postrider', 'snapshots', 'update', true),
        ('postrider', 'adoptions', 'select', false),
        ('postrider', 'adoptions', 'insert', true),
        ('postrider', 'repaired', 'select', false),
        ('postrider', 'repaired', 'insert', true),
        ('postrider', 'resend', 'insert', true),
        ('postrider', 'resend', 'delete', true),
        ($1::text, $2::text, 'select', true)
)
select
    pg_catalog.format('schema %I', namespace.nspname) as target,
    'usage' as privilege,
    pg_catalog.has_schema_privilege(namespace.oid, 'usage') as held,
    pg_catalog.bool_and(wanted.optional) as optional
from wanted
join pg_catalog.pg_namespace as namespace on namespace.nspname = wanted.schema
group by namespace.oid, namespace.nspname
union all
select
    pg_catalog.format('%I.%I', wanted.schema, wanted.name),
    wanted.privilege,
    pg_catalog.has_table_privilege(class.oid, wanted.privilege),
    wanted.optional
from wanted
join pg_catalog.pg_namespace as namespace on namespace.nspname = wanted.schema
join pg_catalog.pg_class as class on class.relnamespace = namespace.oid and class.relname = wanted.name
order by 4, 1, 2
