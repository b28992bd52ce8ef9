-- The view that tells of each row of the outbox whether it has surely been delivered.
--
-- Its columns are those of the table as it is now. To change the type of the outbox's id, drop the view first; afterwards,
-- and after giving the table an xid column, call postrider.define_outbox_status().
--
-- Lock: ACCESS SHARE on the outbox table.

create function postrider.define_outbox_status() returns void language plpgsql as $postrider$
begin
    if exists (
        select from pg_catalog.pg_attribute
        where attrelid = {{outbox_text}}::pg_catalog.regclass and attname = {{xid_text}}::pg_catalog.name
            and atttypid = 'pg_catalog.xid8'::pg_catalog.regtype and not attisdropped
    ) then
        -- Transaction numbers are compared in the cluster and the database that gave them, and in no other.
        create or replace view postrider.outbox_status (id, state) as
            select
                outbox.{{id}},
                case when exists (
                    select from postrider.lives as life
                    where life.system_identifier = (select control.system_identifier from pg_catalog.pg_control_system() as control)
                        and life.database_oid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
                        and outbox.{{xid}} >= life.born
                        and pg_catalog.pg_visible_in_snapshot(outbox.{{xid}}, life.heartbeat_snapshot)
                ) then 'delivered' else 'unknown' end
            from {{outbox}} as outbox;
    else
        create or replace view postrider.outbox_status (id, state) as
            select outbox.{{id}}, 'unknown'::text from {{outbox}} as outbox;
    end if;
    comment on view postrider.outbox_status is
        'Whether each row of the outbox is surely delivered (or parked in the dead letters).';
    comment on column postrider.outbox_status.id is 'The row''s id.';
    comment on column postrider.outbox_status.state is
        'delivered: surely delivered or parked. unknown: not yet, or nobody can tell (written before the slot was made, or by another cluster, or without a transaction number).';
end
$postrider$;
comment on function postrider.define_outbox_status() is
    'Makes the view outbox_status for the outbox table as it is now.';

select postrider.define_outbox_status();
