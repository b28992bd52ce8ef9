-- name: publication
-- Whether the publication is there and publishes what the relay lives by. $1: publication, $2: schema, $3: table.
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
    ) as heartbeat
from (select 1) as one
left join pg_catalog.pg_publication p on p.pubname = $1::text
