-- Whether the slot of Debezium can be taken over. $1: slot, $2: the publication of the outbox, $3 and $4: those of captured tables, or ''.
select
    slot.plugin::text as plugin,
    slot.database::text as database,
    slot.database = pg_catalog.current_database() as ours,
    slot.temporary,
    slot.active_pid,
    (select application_name from pg_catalog.pg_stat_replication where pid = slot.active_pid) as reader,
    slot.wal_status,
    slot.confirmed_flush_lsn::text as confirmed,
    slot.catalog_xmin::text as catalog_xmin,
    -- Publications that are missing, and those that are younger, or have a table that is, than the oldest snapshot that the slot decodes with.
    array(
        select named.publication
        from pg_catalog.unnest(array[$2::text, $3::text, $4::text]) as named (publication)
        where named.publication <> ''
            and not exists (select from pg_catalog.pg_publication where pubname = named.publication::pg_catalog.name)
    ) as missing,
    array(
        select publication.pubname::text || ' (transaction ' || publication.xmin::text || ')'
        from pg_catalog.pg_publication as publication
        where publication.pubname in ($2::text::pg_catalog.name, $3::text::pg_catalog.name, $4::text::pg_catalog.name)
            and not coalesce(
                pg_catalog.age(publication.xmin) > pg_catalog.age(slot.catalog_xmin)
                -- A table that came later: its changes of before would pass unseen.
                and not exists (
                    select from pg_catalog.pg_publication_rel as member
                    where member.prpubid = publication.oid and pg_catalog.age(member.xmin) <= pg_catalog.age(slot.catalog_xmin)
                ),
                false
            )
        order by publication.pubname
    ) as too_young
from pg_catalog.pg_replication_slots as slot
where slot.slot_name = $1::text
