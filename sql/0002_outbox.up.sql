-- The outbox table, and what keeps its rows facts.
--
-- A table of that name that exists already belongs to somebody else: its required columns are checked and nothing is
-- added to it.
--
-- Needs CREATE on the outbox's schema, if the table is to be made.
-- Lock: none on anything that exists.

create function postrider.stamp_xid() returns trigger language plpgsql as $postrider$
begin
    new.{{xid}} := pg_catalog.pg_current_xact_id();
    return new;
end
$postrider$;
comment on function postrider.stamp_xid() is
    'Writes the inserting transaction into the row, whatever the row says: COPY and an apply worker bring numbers of another cluster.';

create function postrider.refuse_change() returns trigger language plpgsql as $postrider$
begin
    raise exception 'a row of %.% is a fact and does not change', tg_table_schema, tg_table_name
        using errcode = 'restrict_violation', hint = 'Insert another row that says what is new. Deleting old rows is free.';
end
$postrider$;
comment on function postrider.refuse_change() is
    'Refuses the update: the event of this row may have been delivered already, and a repair would send another one under its id.';

do $postrider$
declare
    found_table constant pg_catalog.regclass := pg_catalog.to_regclass({{outbox_text}});
    required record;
begin
    if found_table is null then
        create table {{outbox}} (
            {{id}} uuid not null default gen_random_uuid(),
            {{aggregatetype}} text not null,
            {{aggregateid}} text not null,
            {{type}} text not null,
            {{payload}} jsonb,
            {{before}} jsonb,
            {{version}} integer default 1,
            {{sequence}} bigint,
            {{headers}} jsonb default '{}',
            {{occurred_at}} timestamptz default now(),
            {{xid}} xid8,
            constraint {{outbox_pkey}} primary key ({{id}})
        );
        comment on table {{outbox}} is
            'Events to be sent, written in the transaction of the change that they tell of. Postrider carries each committed row to RabbitMQ.';
        comment on column {{outbox}}.{{id}} is 'The event''s identity: message id in RabbitMQ.';
        comment on column {{outbox}}.{{aggregatetype}} is
            'Kind of the thing that changed. With the aggregate''s id it is the ordering key.';
        comment on column {{outbox}}.{{aggregateid}} is 'Which thing changed.';
        comment on column {{outbox}}.{{type}} is 'What happened: a fact in the past tense, such as OrderPlaced.';
        comment on column {{outbox}}.{{payload}} is
            'State after the fact. SQL NULL: the thing is gone. A fact without data is {}. JSON null is a value.';
        comment on column {{outbox}}.{{before}} is 'State before the fact, where the producer wants before and after.';
        comment on column {{outbox}}.{{version}} is 'Schema version of the payload.';
        comment on column {{outbox}}.{{sequence}} is
            'Number of the event in the history of its aggregate, where the producer keeps one.';
        comment on column {{outbox}}.{{headers}} is
            'Metadata: correlation_id, causation_id, traceparent, tenant and so on.';
        comment on column {{outbox}}.{{occurred_at}} is
            'When it happened, for people. The order of events is the order of commits.';
        comment on column {{outbox}}.{{xid}} is
            'Transaction that wrote the row, set by a trigger. Tells whether the row is surely delivered.';

        create trigger postrider_stamp_xid before insert on {{outbox}}
            for each row execute function postrider.stamp_xid();
        alter table {{outbox}} enable always trigger postrider_stamp_xid;
        comment on trigger postrider_stamp_xid on {{outbox}} is
            'Sets the transaction of the row. Enabled always, so that an apply worker''s rows are stamped too.';

        -- jsonb is compared as text: 1 and 1.0 are equal as jsonb and different bytes in an event.
        create trigger postrider_refuse_change before update on {{outbox}}
            for each row when (
                old.{{id}} is distinct from new.{{id}}
                or old.{{aggregatetype}} is distinct from new.{{aggregatetype}}
                or old.{{aggregateid}} is distinct from new.{{aggregateid}}
                or old.{{type}} is distinct from new.{{type}}
                or old.{{payload}}::text is distinct from new.{{payload}}::text
                or old.{{before}}::text is distinct from new.{{before}}::text
                or old.{{version}} is distinct from new.{{version}}
                or old.{{sequence}} is distinct from new.{{sequence}}
                or old.{{headers}}::text is distinct from new.{{headers}}::text
                or old.{{occurred_at}} is distinct from new.{{occurred_at}}
                or old.{{xid}} is distinct from new.{{xid}}
            ) execute function postrider.refuse_change();
        comment on trigger postrider_refuse_change on {{outbox}} is
            'Refuses an update that changes a column of the contract. One that changes nothing passes.';

        update postrider.settings set outbox_made = true;
        return;
    end if;

    if not exists (select from pg_catalog.pg_class where oid = found_table and relkind in ('r', 'p')) then
        raise exception 'the outbox % is not a table', {{outbox_text}}
            using errcode = 'wrong_object_type', hint = 'Give the table''s own name by the settings outbox.schema and outbox.table.';
    end if;
    for required in
        select wanted.setting, wanted.name
        from (values
            (1, 'id', {{id_text}}),
            (2, 'aggregatetype', {{aggregatetype_text}}),
            (3, 'aggregateid', {{aggregateid_text}}),
            (4, 'type', {{type_text}}),
            (5, 'payload', {{payload_text}})
        ) as wanted (place, setting, name)
        where not exists (
            select from pg_catalog.pg_attribute
            where attrelid = found_table and attname = wanted.name and attnum > 0 and not attisdropped
        )
        order by wanted.place
    loop
        raise exception 'the outbox table % exists already and has no column "%"', {{outbox_text}}, required.name
            using errcode = 'undefined_column',
            hint = pg_catalog.format('Name the column that holds it by the setting outbox.columns.%s, or add it, or name another table by outbox.table.', required.setting);
    end loop;
end
$postrider$;
