-- A row for each column of a table: what the stream does not say of it. $1: its OID. No row if it is gone.
--
-- `key_place` and `unique_place` count from 0. The unique index is the first by name that holds for every row and every value.
select
    attribute.attname::text as name,
    attribute.attnotnull or (type.typtype = 'd' and type.typnotnull) as not_null,
    -- A generated column has its expression in the same place. A default refers to no column, so that the table need not be named, and
    -- its lock need not be waited for.
    case when attribute.attgenerated = '' then pg_catalog.pg_get_expr(value.adbin, 0) end as default_value,
    case when key_place.at < primary_key.indnkeyatts then key_place.at end as key_place,
    case when unique_place.at < unique_index.indnkeyatts then unique_place.at end as unique_place
from pg_catalog.pg_attribute as attribute
join pg_catalog.pg_type as type on type.oid = attribute.atttypid
left join pg_catalog.pg_attrdef as value on value.adrelid = attribute.attrelid and value.adnum = attribute.attnum
left join pg_catalog.pg_index as primary_key on primary_key.indrelid = attribute.attrelid and primary_key.indisprimary
left join lateral (
    select candidate.indkey, candidate.indnkeyatts
    from pg_catalog.pg_index as candidate
    join pg_catalog.pg_class as class on class.oid = candidate.indexrelid
    where candidate.indrelid = attribute.attrelid and primary_key.indexrelid is null
        and candidate.indisunique and candidate.indisvalid
        and candidate.indpred is null and candidate.indexprs is null
    order by class.relname
    limit 1
) as unique_index on true
-- An int2vector counts from 0, and so does what is made of it.
cross join lateral (
    select pg_catalog.array_position(primary_key.indkey::pg_catalog.int2[], attribute.attnum) as at
) as key_place
cross join lateral (
    select pg_catalog.array_position(unique_index.indkey::pg_catalog.int2[], attribute.attnum) as at
) as unique_place
where attribute.attrelid = $1 and attribute.attnum > 0 and not attribute.attisdropped
order by attribute.attnum
