
-- Events without a table (source.emit = true). PostgreSQL lets everybody who can connect write messages into the write-ahead log, and so
-- events, past the function postrider.emit and its grants. After this only that function's owner may, and who is granted it.
begin;

do $postrider$
declare
    function pg_catalog.regprocedure;
begin
    for function in
        select oid from pg_catalog.pg_proc
        where pronamespace = 'pg_catalog'::pg_catalog.regnamespace and proname = 'pg_logical_emit_message'
    loop
        execute pg_catalog.format('revoke execute on function %s from public', function);
        execute pg_catalog.format(
            'grant execute on function %s to %s', function,
            (
                select proowner::pg_catalog.regrole from pg_catalog.pg_proc
                where pronamespace = 'postrider'::pg_catalog.regnamespace and proname = 'emit'
            )
        );
    end loop;
end
$postrider$;

commit;

-- Applications that emit need usage on the schema postrider, and:  grant execute on function postrider.emit to the application's role;
