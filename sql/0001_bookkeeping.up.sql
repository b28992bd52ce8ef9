-- The schema, which migrations it has, and what they were applied for.
--
-- Needs CREATE on the database.
-- Lock: none on anything that exists.

create schema postrider;
comment on schema postrider is 'Postrider, the outbox relay: its machinery. Applications write to the outbox table only.';

create table postrider.migrations (
    version integer not null,
    name text not null,
    applied_at timestamptz not null default now(),
    constraint migrations_pkey primary key (version)
);
comment on table postrider.migrations is 'The migrations that this database has, one row each.';
comment on column postrider.migrations.version is 'Number of the migration.';
comment on column postrider.migrations.name is 'Name of the migration, as in its file.';
comment on column postrider.migrations.applied_at is 'When it was applied.';

create table postrider.settings (
    only_row boolean not null default true,
    outbox_schema text not null,
    outbox_table text not null,
    outbox_made boolean not null default false,
    publication text not null,
    publication_made boolean not null default false,
    outbox_published boolean not null default false,
    constraint settings_pkey primary key (only_row),
    constraint settings_has_only_one_row check (only_row)
);
comment on table postrider.settings is
    'What the migrations were applied for, and what they found or made: what going back may remove. One row.';
comment on column postrider.settings.only_row is 'Always true: it keeps the table at one row.';
comment on column postrider.settings.outbox_schema is 'Schema of the outbox table.';
comment on column postrider.settings.outbox_table is 'Name of the outbox table.';
comment on column postrider.settings.outbox_made is 'Whether the migrations made the outbox table. If not, it is never dropped.';
comment on column postrider.settings.publication is 'Name of the publication.';
comment on column postrider.settings.publication_made is
    'Whether the migrations made the publication. If not, it is never dropped.';
comment on column postrider.settings.outbox_published is
    'Whether the migrations added the outbox table to the publication. If not, it is never taken out.';

insert into postrider.settings (outbox_schema, outbox_table, publication)
values ({{outbox_schema_text}}, {{outbox_table_text}}, {{publication_text}});
