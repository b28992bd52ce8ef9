-- Reading the captured tables for a snapshot: of a partitioned table the root is enough. Run it again when tables have come.
do $postrider$
declare
    granted record;
begin
    for granted in
        {{tables}}
    loop
        execute pg_catalog.format('grant usage on schema %s to %I', granted.schema, {{role_text}}::pg_catalog.text);
        execute pg_catalog.format('grant select on %s to %I', granted.quoted, {{role_text}}::pg_catalog.text);
    end loop;
end
$postrider$;
