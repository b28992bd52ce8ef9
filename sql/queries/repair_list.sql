-- The rows that are to be sent again, in the order in which they are.
--
-- Those of the open life come by themselves; those from before the first one only if they are asked for.
declare postrider_repair no scroll cursor with hold for
with own as (
    select life.born, life.ended_at, life.heartbeat_snapshot
    from postrider.lives as life
    where life.slot = {{slot_text}}
        and life.system_identifier = (select control.system_identifier from pg_catalog.pg_control_system() as control)
        and life.database_oid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
),
candidates as (
    select written.*, written.ctid as postrider_place, {{written_by}} as postrider_xid
    from {{outbox}} as written
    left join postrider.repaired as sent on sent.slot = {{slot_text}} and sent.id = written.{{id}}::text
)
select written.{{id}}::text
from candidates as written
where not exists (
        select from own
        where written.postrider_xid >= own.born and pg_catalog.pg_visible_in_snapshot(written.postrider_xid, own.heartbeat_snapshot)
    )
    and (
        written.postrider_xid is null
        or (
            written.postrider_xid < (select born from own where ended_at is null)
            and ({{earlier}} or written.postrider_xid >= (select born from own order by born limit 1))
        )
    )
order by {{order}};
