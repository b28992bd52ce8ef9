-- Snapshots of captured tables: what is asked for, and how far each is.
--
-- Lock: none on anything that exists.

create table postrider.snapshots (
    slot text not null,
    schema_name text not null,
    table_name text not null,
    condition text,
    state text not null default 'wanted',
    request integer not null default 1,
    last_key text[],
    rows_read bigint not null default 0,
    rows_expected bigint,
    problem text,
    requested_by text not null default current_user,
    requested_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    updated_at timestamptz not null default now(),
    constraint snapshots_pkey primary key (slot, schema_name, table_name),
    constraint snapshots_state_is_known check (state in ('wanted', 'running', 'done', 'cancelled'))
) with (fillfactor = 50);
comment on table postrider.snapshots is
    'One row a captured table that was, or is to be, read once. Whoever may insert here has a condition run with the rights of the relay.';
comment on column postrider.snapshots.slot is 'Replication slot whose relay reads the table.';
comment on column postrider.snapshots.schema_name is 'Schema of the table.';
comment on column postrider.snapshots.table_name is 'Name of the table.';
comment on column postrider.snapshots.condition is 'SQL condition on its rows; null for all of them. Run with the rights of the relay.';
comment on column postrider.snapshots.state is 'wanted: the relay that carries takes it up. running, done or cancelled.';
comment on column postrider.snapshots.request is 'Number of the request: a table may be read again.';
comment on column postrider.snapshots.last_key is
    'Primary key, as text, up to which the rows are delivered or parked: from here the snapshot goes on. Null for a table without one.';
comment on column postrider.snapshots.rows_read is 'Rows up to there.';
comment on column postrider.snapshots.rows_expected is 'How many rows PostgreSQL estimates the table to have.';
comment on column postrider.snapshots.problem is 'Why it does not go on. It is tried again.';
comment on column postrider.snapshots.requested_by is 'Role that asked for it.';
comment on column postrider.snapshots.requested_at is 'When.';
comment on column postrider.snapshots.started_at is 'When the relay began.';
comment on column postrider.snapshots.finished_at is 'When it was done or cancelled.';
comment on column postrider.snapshots.updated_at is 'When the row was last written.';
