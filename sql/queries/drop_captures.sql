-- Drops the publications of captured tables, if postrider migrate has made them: it says so in their comments.
--
-- Lock: none on the tables: reads and writes go on.
do $postrider$
declare
    made record;
begin
    for made in
        select publication.pubname
        from pg_catalog.pg_publication as publication
        where publication.pubname in ({{tables_publication_text}}, {{inserts_publication_text}})
            and pg_catalog.obj_description(publication.oid, 'pg_publication') like 'Tables that Postrider captures%'
    loop
        execute pg_catalog.format('drop publication %I', made.pubname);
    end loop;
end
$postrider$;
