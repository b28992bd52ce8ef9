-- Asks for the snapshots of the captured tables that never had one. $1: slot, $2: its publications of captured tables. The names that are new.
insert into postrider.snapshots (slot, schema_name, table_name)
select $1, namespace.nspname, class.relname
from pg_catalog.pg_class as class
join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
where class.oid in (
        select member.prrelid
        from pg_catalog.pg_publication_rel as member
        join pg_catalog.pg_publication as publication on publication.oid = member.prpubid
        where publication.pubname = any ($2::text[])
    )
    and not exists (
        select from postrider.snapshots as known
        where known.slot = $1 and known.schema_name = namespace.nspname and known.table_name = class.relname
    )
on conflict do nothing
