
select captured.quoted, pg_catalog.quote_ident(namespace.nspname) as schema
from captured
join pg_catalog.pg_class as class on class.oid = captured.oid
join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
