-- The types of `$1`, and those that they are made of: elements of arrays, what domains are over.
--
-- An array is what is written as one: `int2vector` and `point` can be subscripted too. `union` ends at what was met before.
with recursive reached as (
    select type.oid, type.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc and type.typelem <> 0 as is_array, type.typelem, type.typbasetype
    from pg_catalog.pg_type as type
    where type.oid = any ($1::pg_catalog.oid[])
    union
    select type.oid, type.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc and type.typelem <> 0, type.typelem, type.typbasetype
    from reached
    join pg_catalog.pg_type as type
        on type.oid = case when reached.typbasetype <> 0 then reached.typbasetype when reached.is_array then reached.typelem end
)
select
    type.oid,
    namespace.nspname::text as schema,
    type.typname::text as name,
    type.typtype::text as type,
    type.typdelim::text as delimiter,
    case when reached.is_array and type.typtype <> 'd' then type.typelem end as element,
    case when type.typtype = 'd' then type.typbasetype end as base,
    type.typtypmod as modifier
from reached
join pg_catalog.pg_type as type on type.oid = reached.oid
join pg_catalog.pg_namespace as namespace on namespace.oid = type.typnamespace
