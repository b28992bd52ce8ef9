-- What a halt leaves behind, what a person has accepted, and how rows are sent again.
--
-- Needs ownership of the publication, if the migrations did not make it.
-- Lock: ACCESS EXCLUSIVE on postrider.progress, for an instant; ACCESS SHARE on the outbox table.

alter table postrider.progress
    add column recorded_heartbeat_no bigint,
    add column publication_state text;
comment on column postrider.progress.recorded_heartbeat_no is
    'Number of the newest heartbeat before intended_lsn: on a new connection the first may be at most one more.';
comment on column postrider.progress.publication_state is
    'What the publication was made of when the slot was taken first. Rows that were written while it was different were never sent.';

create table postrider.halts (
    slot text not null,
    reason text not null,
    from_lsn pg_lsn not null,
    to_lsn pg_lsn not null,
    message text not null,
    decided_by_a_person boolean not null,
    source_epoch integer not null,
    halted_at timestamptz not null default now(),
    constraint halts_pkey primary key (slot)
);
comment on table postrider.halts is 'Why the relay of a slot has halted: one row a slot, while it is so.';
comment on column postrider.halts.slot is 'Name of the replication slot.';
comment on column postrider.halts.reason is 'Label of the metric postrider_halted.';
comment on column postrider.halts.from_lsn is 'Everything before it is accounted for. 0/0: nothing is known.';
comment on column postrider.halts.to_lsn is 'Where the interval in doubt ended when the relay halted.';
comment on column postrider.halts.message is 'What the relay said.';
comment on column postrider.halts.decided_by_a_person is
    'Found in the stream: it cannot be looked up again, so the relay stays halted until postrider adopt. Otherwise it looks again and goes on when the cause is gone.';
comment on column postrider.halts.source_epoch is 'Highest source epoch that the relay knew of.';
comment on column postrider.halts.halted_at is 'When.';

create table postrider.adoptions (
    adoption bigint generated always as identity,
    slot text not null,
    halt text not null,
    from_lsn pg_lsn not null,
    to_lsn pg_lsn not null,
    reason text not null,
    source_epoch integer not null,
    system_identifier bigint not null,
    database_oid oid not null,
    adopted_by text not null default session_user,
    adopted_at timestamptz not null default now(),
    constraint adoptions_pkey primary key (adoption)
);
create index adoptions_slot_idx on postrider.adoptions (slot);
comment on table postrider.adoptions is 'Each time that somebody accepted an interval in doubt. Kept for ever.';
comment on column postrider.adoptions.adoption is 'Number of the adoption.';
comment on column postrider.adoptions.slot is 'Name of the replication slot.';
comment on column postrider.adoptions.halt is 'Why the relay had halted.';
comment on column postrider.adoptions.from_lsn is 'Start of the interval in doubt.';
comment on column postrider.adoptions.to_lsn is 'End of the interval in doubt, as far as it was known.';
comment on column postrider.adoptions.reason is 'Why it was accepted, in the words of the one who did.';
comment on column postrider.adoptions.source_epoch is 'First part of every position from then on.';
comment on column postrider.adoptions.system_identifier is 'Cluster that was adopted.';
comment on column postrider.adoptions.database_oid is 'Database that was adopted.';
comment on column postrider.adoptions.adopted_by is 'Role of the one who did.';
comment on column postrider.adoptions.adopted_at is 'When.';

-- Rows of the outbox that were sent again, and by which transaction: that one counts from then on, not the row's own.
create table postrider.repaired (
    slot text not null,
    id text not null,
    xid xid8 not null,
    repaired_at timestamptz not null default now(),
    constraint repaired_pkey primary key (slot, id)
);
comment on table postrider.repaired is
    'Rows of the outbox that postrider repair has sent again. Removed when the row of the outbox is gone.';
comment on column postrider.repaired.slot is 'Slot that they went through.';
comment on column postrider.repaired.id is 'The row''s id.';
comment on column postrider.repaired.xid is 'Transaction that sent it again: it is delivered when that one is.';
comment on column postrider.repaired.repaired_at is 'When.';

create function postrider.define_resend() returns void language plpgsql as $postrider$
begin
    drop table if exists postrider.resend;
    -- It is always empty: a row is inserted and deleted in one transaction, and so travels through the slot in the order of commits. With
    -- a key the row can be deleted even where another publication of all tables publishes deletes.
    create table postrider.resend (like {{outbox}} including comments, constraint resend_pkey primary key ({{id}}));
    comment on table postrider.resend is
        'Always empty: copies of rows of the outbox pass through it to the slot, so that the outbox itself is never written to.';
    if not (select puballtables from pg_catalog.pg_publication where pubname = {{publication_text}}::pg_catalog.name) then
        alter publication {{publication}} add table postrider.resend;
    end if;
end
$postrider$;
comment on function postrider.define_resend() is
    'Makes the table resend for the outbox table as it is now. To be called after its columns have changed.';
select postrider.define_resend();

-- A column more than before: grants on the view stay.
create or replace function postrider.define_outbox_status() returns void language plpgsql as $postrider$
declare
    written_by text := 'sent_again.xid';
begin
    if exists (
        select from pg_catalog.pg_attribute
        where attrelid = {{outbox_text}}::pg_catalog.regclass and attname = {{xid_text}}::pg_catalog.name
            and atttypid = 'pg_catalog.xid8'::pg_catalog.regtype and not attisdropped
    ) then
        written_by := 'greatest(sent_again.xid, outbox.' || pg_catalog.quote_ident({{xid_text}}) || ')';
    end if;
    -- Transaction numbers are compared in the cluster and the database that gave them, and in no other.
    execute pg_catalog.format($view$
        create or replace view postrider.outbox_status (id, state, written_by) as
            select
                written.id,
                case when exists (
                    select from postrider.lives as life
                    where life.system_identifier = (select control.system_identifier from pg_catalog.pg_control_system() as control)
                        and life.database_oid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
                        and written.xid >= life.born
                        and pg_catalog.pg_visible_in_snapshot(written.xid, life.heartbeat_snapshot)
                ) then 'delivered' else 'unknown' end,
                written.xid
            from (
                select outbox.%1$I as id, %2$s as xid
                from %3$s as outbox
                left join (select id, max(xid) as xid from postrider.repaired group by id) as sent_again on sent_again.id = outbox.%1$I::text
            ) as written
    $view$, {{id_text}}, written_by, {{outbox_text}});
    comment on view postrider.outbox_status is
        'Whether each row of the outbox is surely delivered (or parked in the dead letters).';
    comment on column postrider.outbox_status.id is 'The row''s id.';
    comment on column postrider.outbox_status.state is
        'delivered: surely delivered or parked. unknown: not yet, or nobody can tell (written before the slot was made, or by another cluster, or without a transaction number).';
    comment on column postrider.outbox_status.written_by is 'Transaction that wrote the row, or sent it again last.';
end
$postrider$;
select postrider.define_outbox_status();
