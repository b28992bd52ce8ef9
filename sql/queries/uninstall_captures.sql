-- The publications of captured tables that are there, and whether postrider migrate has made them. $1: both names.
select
    publication.pubname::pg_catalog.text as name,
    coalesce(pg_catalog.obj_description(publication.oid, 'pg_publication') like 'Tables that Postrider captures%', false) as made
from pg_catalog.pg_publication as publication
where publication.pubname = any ($1::pg_catalog.text[])
order by 1
