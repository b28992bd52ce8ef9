-- Statements after which nobody can emit events past postrider.emit: a revoke and a grant for each form of the function that this server has
-- and that PUBLIC may call.
select pg_catalog.format('revoke execute on function %s(%s) from public', 'pg_catalog.pg_logical_emit_message', arguments) as revoke,
    pg_catalog.format('grant execute on function %s(%s) to %s', 'pg_catalog.pg_logical_emit_message', arguments, owner) as keep
from (
    select pg_catalog.oidvectortypes(message.proargtypes) as arguments, emit.proowner::pg_catalog.regrole as owner
    from pg_catalog.pg_proc as message
    join pg_catalog.pg_proc as emit on emit.pronamespace = pg_catalog.to_regnamespace('postrider') and emit.proname = 'emit'
    where message.pronamespace = 'pg_catalog'::pg_catalog.regnamespace and message.proname = 'pg_logical_emit_message'
        and pg_catalog.has_function_privilege('public', message.oid, 'execute')
) as form
order by arguments desc
