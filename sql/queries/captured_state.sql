-- What the publications of captured tables are made of. $1: the one of all changes, $2: the one of inserts, $3: slot.
--
-- A letter for each thing that is published; a member as `table place membership`. A table that is taken out and added again has
-- another membership.
select
    all_changes.oid as all_changes,
    inserts.oid as inserts,
    described.all_changes as publishes,
    described.inserts as publishes_inserts,
    array(
        select pg_catalog.concat_ws(' ', member.prrelid, case when member.prpubid = all_changes.oid then 'a' else 'i' end, member.oid)
        from pg_catalog.pg_publication_rel as member
        where member.prpubid in (all_changes.oid, inserts.oid)
        order by member.prrelid, member.oid
    ) as members,
    -- Every snapshot that the slot decodes with sees them: the oldest is that of its catalog_xmin. A publication that was altered since looks
    -- younger than it is. No row is from the future: one that seems so was frozen, and more than half of all transaction numbers ago.
    coalesce(
        slot.catalog_xmin is not null
        and (pg_catalog.age(all_changes.xmin) > pg_catalog.age(slot.catalog_xmin) or pg_catalog.age(all_changes.xmin) < 0)
        and (pg_catalog.age(inserts.xmin) > pg_catalog.age(slot.catalog_xmin) or pg_catalog.age(inserts.xmin) < 0),
        false
    ) as settled
from (select $1::pg_catalog.text as all_changes, $2::pg_catalog.text as inserts) as named
left join pg_catalog.pg_publication as all_changes on all_changes.pubname = named.all_changes::pg_catalog.name
left join pg_catalog.pg_publication as inserts on inserts.pubname = named.inserts::pg_catalog.name
left join pg_catalog.pg_replication_slots as slot on slot.slot_name = $3::pg_catalog.text
cross join lateral (
    select
        pg_catalog.concat(
            case when all_changes.pubinsert then 'i' end, case when all_changes.pubupdate then 'u' end,
            case when all_changes.pubdelete then 'd' end, case when all_changes.pubtruncate then 't' end,
            case when all_changes.pubviaroot then 'r' end
        ) as all_changes,
        pg_catalog.concat(
            case when inserts.pubinsert then 'i' end, case when inserts.pubupdate then 'u' end,
            case when inserts.pubdelete then 'd' end, case when inserts.pubtruncate then 't' end,
            case when inserts.pubviaroot then 'r' end
        ) as inserts
) as described
