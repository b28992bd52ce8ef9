-- What the relay knows of its slots: how far each is, and what it has surely delivered.
--
-- Lock: none on anything that exists.

-- Updated about once a second for ever. A page nine tenths empty and no index on what changes make each update a
-- heap-only one in the same page: it needs no new page, so it works on a full disk.
create table postrider.progress (
    slot text not null,
    publication text not null,
    system_identifier bigint not null,
    database_oid oid not null,
    timeline integer not null,
    phase text not null,
    intended_lsn pg_lsn,
    acknowledged_lsn pg_lsn,
    relay_epoch bigint not null default 0,
    source_epoch integer not null default 0,
    heartbeat_no bigint not null default 0,
    updated_at timestamptz not null default now(),
    constraint progress_pkey primary key (slot),
    constraint progress_phase_is_known check (phase in ('creating', 'ready')),
    constraint progress_ready_has_positions
        check (phase <> 'ready' or (intended_lsn is not null and acknowledged_lsn is not null)),
    constraint progress_intended_before_acknowledged check (acknowledged_lsn <= intended_lsn),
    constraint progress_source_epoch_not_negative check (source_epoch >= 0)
) with (fillfactor = 10);
comment on table postrider.progress is
    'One row a replication slot: what the relay compares the slot with before it goes on. Every write checks relay_epoch.';
comment on column postrider.progress.slot is 'Name of the replication slot.';
comment on column postrider.progress.publication is 'Publication that the slot is read through.';
comment on column postrider.progress.system_identifier is
    'Cluster that the slot belongs to, as pg_control_system() gives it (64 bits, signed).';
comment on column postrider.progress.database_oid is 'Database that the slot belongs to.';
comment on column postrider.progress.timeline is 'Timeline of the cluster when the slot was made.';
comment on column postrider.progress.phase is
    'creating: written before the slot is made, so a crash in between is recognised. ready: the slot is there.';
comment on column postrider.progress.intended_lsn is
    'Furthest position that the relay may have acknowledged: written before the acknowledgement is sent.';
comment on column postrider.progress.acknowledged_lsn is
    'Position that the relay had acknowledged to PostgreSQL when it wrote this row.';
comment on column postrider.progress.relay_epoch is
    'Number of takeovers of this slot. A relay whose number is lower has been replaced and writes nothing.';
comment on column postrider.progress.source_epoch is
    'First part of every position that consumers see. Raised when positions of the source may repeat.';
comment on column postrider.progress.heartbeat_no is 'Number of the last heartbeat written. Without gaps.';
comment on column postrider.progress.updated_at is 'When the row was last written.';

create table postrider.lives (
    life bigint generated always as identity,
    system_identifier bigint not null,
    database_oid oid not null,
    slot text not null,
    born xid8 not null,
    started_at timestamptz not null default now(),
    ended_at timestamptz,
    heartbeat_no bigint,
    heartbeat_snapshot pg_snapshot,
    heartbeat_at timestamptz,
    constraint lives_pkey primary key (life)
) with (fillfactor = 10);
create unique index lives_one_open_idx on postrider.lives (slot) where ended_at is null;
comment on table postrider.lives is
    'One row a life of a slot: the transactions from born to the last confirmed heartbeat''s snapshot are surely delivered. Finished lives are kept.';
comment on column postrider.lives.life is 'Number of the life.';
comment on column postrider.lives.system_identifier is
    'Cluster in which the slot lived, as pg_control_system() gives it (64 bits, signed). Transaction numbers mean nothing in another one.';
comment on column postrider.lives.database_oid is 'Database in which the slot lived.';
comment on column postrider.lives.slot is 'Name of the replication slot.';
comment on column postrider.lives.born is 'Transactions from this one on began after the slot existed.';
comment on column postrider.lives.started_at is 'When the life began.';
comment on column postrider.lives.ended_at is 'When it ended; null while the slot lives.';
comment on column postrider.lives.heartbeat_no is 'Number of the last heartbeat that came back through the slot with everything before it delivered.';
comment on column postrider.lives.heartbeat_snapshot is 'Snapshot that this heartbeat carried.';
comment on column postrider.lives.heartbeat_at is 'When it was confirmed.';
comment on index postrider.lives_one_open_idx is 'A slot has one life at a time.';

create table postrider.heartbeat (
    slot text not null,
    no bigint not null,
    snapshot pg_snapshot not null,
    written_at timestamptz not null default now(),
    -- A key lets the row be deleted even where another publication of all tables publishes deletes.
    constraint heartbeat_pkey primary key (slot, no)
);
comment on table postrider.heartbeat is
    'Always empty: a heartbeat is an insert and a delete in one transaction, and travels with the outbox''s rows.';
comment on column postrider.heartbeat.slot is 'Replication slot that it is meant for.';
comment on column postrider.heartbeat.no is 'Its number, without gaps for the slot.';
comment on column postrider.heartbeat.snapshot is 'Which transactions had ended: those come before the heartbeat in the stream.';
comment on column postrider.heartbeat.written_at is 'When it was written.';
