-- What of the outbox this slot has not surely delivered. Reads the whole table.
--
-- $1: slot; $2: whether its relay is halted: then nothing comes by itself; $3: transactions (32 bits) that the slot, once it is adopted,
-- will send all the same. Transaction numbers mean something in the cluster that gave them only, and what another slot has delivered
-- went to that slot's consumers.
with own as (
    select life.born, life.ended_at, life.heartbeat_snapshot
    from postrider.lives as life
    where life.slot = $1::text
        and life.system_identifier = (select control.system_identifier from pg_catalog.pg_control_system() as control)
        and life.database_oid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
),
bounds as (
    select
        (select born from own order by born limit 1) as first,
        (select born from own where ended_at is null and not $2::boolean) as open
),
undelivered as (
    select
        true as here,
        candidate.xid,
        coalesce((candidate.xid::text::numeric % 4294967296)::text = any ($3::text[]), false) as in_slot
    from (
        select {{written_by}} as xid
        from {{outbox}} as written
        left join postrider.repaired as sent on sent.slot = $1::text and sent.id = written.{{id}}::text
    ) as candidate
    where not exists (
        select from own
        where candidate.xid >= own.born and pg_catalog.pg_visible_in_snapshot(candidate.xid, own.heartbeat_snapshot)
    )
)
select
    count(*) filter (where here and not in_slot and (xid is null or (xid >= bounds.first and (bounds.open is null or xid < bounds.open)))) as in_doubt,
    count(*) filter (where in_slot or xid >= bounds.open) as under_way,
    count(*) filter (where not in_slot and (xid < bounds.first or (xid is not null and bounds.first is null))) as earlier,
    exists (select from own where ended_at is null) as lives,
    exists (
        select from pg_catalog.pg_attribute
        where attrelid = {{outbox_text}}::pg_catalog.regclass and attname = {{xid_text}}::pg_catalog.name
            and atttypid = 'pg_catalog.xid8'::pg_catalog.regtype and not attisdropped
    ) as has_xid,
    pg_catalog.current_setting('track_commit_timestamp')::boolean as commit_timestamps
from bounds
left join undelivered on true
group by bounds.first, bounds.open
