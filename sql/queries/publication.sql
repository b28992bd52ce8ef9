-- name: publication
-- Whether the publication is there and publishes what the relay lives by. $1: publication, $2: schema, $3: table.
--
-- `state` is different after any change that may have kept rows back, also one that was taken back: a table that is added again has
-- another membership, a publication that is made again another OID.
select
    p.oid is not null as found,
    coalesce(p.pubinsert, false) as inserts,
    coalesce(p.pubupdate or p.pubdelete or p.pubtruncate, false) as more_than_inserts,
    exists (
        select from pg_catalog.pg_publication_tables t
        where t.pubname = $1::text and t.schemaname = $2::text and t.tablename = $3::text
    ) as outbox,
    exists (
        select from pg_catalog.pg_publication_tables t
        where t.pubname = $1::text and t.schemaname = 'postrider' and t.tablename = 'heartbeat'
    ) as heartbeat,
    exists (
        select from pg_catalog.pg_publication_rel m
        where m.prpubid = p.oid and m.prqual is not null and m.prrelid in (own.outbox, own.heartbeat)
    ) as leaves_out_rows,
    pg_catalog.concat_ws(
        ' ',
        'publication ' || p.oid,
        case when p.pubinsert then 'inserts' else 'without inserts' end,
        case when p.pubviaroot then 'by root' else 'by partition' end,
        case when p.puballtables then 'of all tables' end,
        'outbox ' || own.outbox::oid::text,
        (
            select pg_catalog.string_agg('member ' || m.oid || case when m.prqual is null then '' else ' with a filter' end, ' ' order by m.oid)
            from pg_catalog.pg_publication_rel m
            where m.prpubid = p.oid and m.prrelid in (own.outbox, own.heartbeat)
        ),
        (
            select pg_catalog.string_agg('schema ' || m.oid, ' ' order by m.oid)
            from pg_catalog.pg_publication_namespace m
            join pg_catalog.pg_class c on c.relnamespace = m.pnnspid and c.oid in (own.outbox, own.heartbeat)
            where m.pnpubid = p.oid
        )
    ) as state
from (
    select
        pg_catalog.to_regclass(pg_catalog.format('%I.%I', $2::text, $3::text)) as outbox,
        pg_catalog.to_regclass('postrider.heartbeat') as heartbeat
) as own
left join pg_catalog.pg_publication p on p.pubname = $1::text
