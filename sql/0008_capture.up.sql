-- Capture of ordinary tables by triggers that write into the outbox, and events that need no table.
--
-- Lock: none on anything that exists.

-- How a value is written is the same as in the format cdc. A table's owner may have made types and casts of his own, and these functions
-- write with the rights of the outbox's owner. So of a value of such a type only the output function is called, never a cast. The array
-- of a domain is such a type too, whatever the domain is made of: casts of a domain itself are ignored, those of its array are not.
create function postrider.capture_value(type oid, value text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $postrider$
declare
    first_user_defined constant oid := 16384;
    printed constant text := format('case when num_nulls(%1$s) = 0 then concat(%1$s) end', value);
    -- The printed array, read as an array of texts.
    texts constant text := format('(%s)::text[]', printed);
    described pg_type;
    element pg_type;
begin
    select * into described from pg_type where oid = capture_value.type;
    while described.typtype = 'd' loop
        select * into described from pg_type where oid = described.typbasetype;
    end loop;
    if described.typoutput = 'pg_catalog.array_out'::regproc then
        select * into element from pg_type where oid = described.typelem;
        while element.typtype = 'd' loop
            select * into element from pg_type where oid = element.typbasetype;
        end loop;
        return case
            when element.oid < first_user_defined and element.typtype <> 'c' then
                case element.oid
                    when 'numeric'::regtype then texts
                    when 'oid'::regtype then format('%s::bigint[]', texts)
                    when 'bytea'::regtype then format('postrider.capture_elements(to_jsonb(%s), ''bytea'')', texts)
                    when 'timestamp'::regtype then format('postrider.capture_elements(to_jsonb(%s), ''timestamp'')', texts)
                    when 'timestamptz'::regtype then format('postrider.capture_elements(to_jsonb(%s), ''timestamptz'')', texts)
                    else value
                end
            when element.typdelim = ',' then texts
            else printed
        end;
    end if;
    if described.oid is null or described.oid >= first_user_defined or described.typtype = 'c' then
        return printed;
    end if;
    return case described.oid
        when 'numeric'::regtype then format('%s::text', value)
        when 'oid'::regtype then format('%s::bigint', value)
        when 'bytea'::regtype then format('replace(encode(%s, ''base64''), chr(10), '''')', value)
        when 'timestamp'::regtype then format(
            'case when %1$s >= ''0001-01-01''::timestamp and %1$s < ''10000-01-01''::timestamp then replace(%1$s::text, '' '', ''T'') else %1$s::text end',
            value
        )
        when 'timestamptz'::regtype then format(
            'case when %1$s >= ''0001-01-01 00:00:00+00''::timestamptz and %1$s < ''10000-01-01 00:00:00+00''::timestamptz then replace(replace(%1$s::text, '' '', ''T''), ''+00'', ''Z'') else %1$s::text end',
            value
        )
        else value
    end;
end
$postrider$;
comment on function postrider.capture_value(oid, text) is
    'SQL that makes of a value of a type what events have of it, for jsonb_build_object.';

create function postrider.capture_elements(elements jsonb, type text) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $postrider$
begin
    return coalesce(
        (
            select jsonb_agg(
                case jsonb_typeof(part.element)
                    when 'array' then postrider.capture_elements(part.element, capture_elements.type)
                    when 'string' then to_jsonb(case
                        when capture_elements.type = 'bytea' then
                            replace(encode(decode(substr(part.element #>> '{}', 3), 'hex'), 'base64'), chr(10), '')
                        when part.element #>> '{}' ~ '^\d{4}-\d\d-\d\d [0-9:.]+(\+00)?$' then
                            replace(replace(part.element #>> '{}', ' ', 'T'), '+00', 'Z')
                        else part.element #>> '{}'
                    end)
                    else part.element
                end
                order by part.number
            )
            from jsonb_array_elements(elements) with ordinality as part (element, number)
        ),
        elements
    );
end
$postrider$;
comment on function postrider.capture_elements(jsonb, text) is
    'Elements of an array of bytea, timestamp or timestamptz, given as PostgreSQL prints them, as events have them.';

create function postrider.capture_image(relation oid, source text, columns text[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $postrider$
    -- A function takes 100 arguments at most. Names are always in quotes: PL/pgSQL does not know new.by and other words of its own.
    select coalesce(string_agg(part.object, ' || '), $$'{}'::jsonb$$)
    from (
        select format(
            'jsonb_build_object(%s)',
            string_agg(
                format('%L::text, %s', chosen.attname, postrider.capture_value(chosen.atttypid, format('%s."%s"', source, replace(chosen.attname, '"', '""')))),
                ', '
                order by chosen.attnum
            )
        ) as object
        from (
            select attname, atttypid, attnum, (row_number() over (order by attnum) - 1) / 50 as place
            from pg_attribute
            -- A virtual generated column has no value in a trigger.
            where attrelid = relation and attnum > 0 and not attisdropped and attgenerated <> 'v' and attname = any (columns)
        ) as chosen
        group by chosen.place
    ) as part
$postrider$;
comment on function postrider.capture_image(oid, text, text[]) is
    'SQL that makes the image of a row, as jsonb. source is new, old or ($1).';

create function postrider.capture_key(relation oid, source text, key text[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $postrider$
    select case
        when count(*) = 0 then null
        when count(*) = 1 then format('concat(%s)', min(format('%s."%s"', source, replace(part.name, '"', '""'))))
        else format(
            'jsonb_build_array(%s)::text',
            string_agg(postrider.capture_value(described.atttypid, format('%s."%s"', source, replace(part.name, '"', '""'))), ', ' order by part.number)
        )
    end
    from unnest(key) with ordinality as part (name, number)
    join pg_attribute as described on described.attrelid = relation and described.attname = part.name
$postrider$;
comment on function postrider.capture_key(oid, text, text[]) is
    'SQL that makes the aggregateid of a row: the value of one column, or a JSON array of those of several.';

create function postrider.capture_fit(id text, size integer) returns text
language sql stable set search_path = pg_catalog, pg_temp as $postrider$
    -- Not md5, which servers in FIPS mode refuse.
    select case
        when char_length(id) <= size then id
        else right(
            left(id, greatest(size - 33, 0)) || '-' || left(encode(sha256(convert_to(id, getdatabaseencoding())), 'hex'), 32), size
        )
    end
$postrider$;
comment on function postrider.capture_fit(text, integer) is
    'An aggregateid for a column of this size: of one that is longer, its beginning, - and 32 hexadecimal digits of its SHA-256; of these alone the last ones where the column has less than 33 characters.';

create function postrider.capture_primary_key(relation oid) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $postrider$
    select array_agg(described.attname::text order by part.number)
    from pg_index as index
    cross join unnest(index.indkey::int2[]) with ordinality as part (attnum, number)
    join pg_attribute as described on described.attrelid = index.indrelid and described.attnum = part.attnum
    where index.indrelid = relation and index.indisprimary and part.number <= index.indnkeyatts
$postrider$;
comment on function postrider.capture_primary_key(oid) is 'Columns of the primary key of a table, in its order; null without one.';

create function postrider.capture_check(relation oid, partitioned boolean, source text, columns text[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $postrider$
    -- Numbers of columns are never used again, but a restored table has no gaps in them. Asking the catalogue by a query would take as
    -- long as all the rest.
    select format(
        'has_column_privilege(%1$s, %2$L::int2, ''select'') is not null and has_column_privilege(%1$s, %3$L::int2, ''select'') is null and has_column_privilege(%1$s, %4$L::int2, ''select'') is null and %5$s',
        case when partitioned then 'coalesce(pg_partition_root(tg_relid), tg_relid)' else 'tg_relid' end,
        max(attnum), max(attnum) + 1, (select relnatts + 1 from pg_class where oid = relation),
        string_agg(
            format('pg_typeof(%s."%s") = %L::regtype', source, replace(attname, '"', '""'), atttypid::regtype), ' and ' order by attnum
        ) filter (where attgenerated <> 'v' and attname = any (columns))
    )
    from pg_attribute
    where attrelid = relation and attnum > 0 and not attisdropped
$postrider$;
comment on function postrider.capture_check(oid, boolean, text, text[]) is
    'SQL that is true as long as no column was added and these have the types that they have now. It fails where one is gone.';

create function postrider.capture_shape(relation oid) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $postrider$
    select bit_xor(hashtextextended(attname || ' ' || atttypid::regtype, 0)) # max(attnum)
    from pg_attribute
    where attrelid = relation and attnum > 0 and not attisdropped
$postrider$;
comment on function postrider.capture_shape(oid) is 'A number that is another one when columns were added, dropped, renamed or given another type.';

-- The slow way, which always works: for tables that have changed since they were captured, and for values that jsonb cannot hold.
create function postrider.capture_row(
    relation oid, data record, known text[], excluded text[], key text[], out image jsonb, out omitted text[], out id text
) language plpgsql stable set search_path = pg_catalog, pg_temp as $postrider$
declare
    wanted text[];
    sizes text;
    one text;
    value jsonb;
begin
    -- Where columns are excluded, one that is not known may be one of them under another name.
    select
        coalesce(array_agg(attname::text) filter (where attname = any (known) or excluded = '{}'), '{}'),
        coalesce(array_agg(attname::text) filter (where attname <> all (known || excluded) and excluded <> '{}'), '{}')
    into wanted, omitted
    from pg_attribute
    where attrelid = relation and attnum > 0 and not attisdropped and attgenerated <> 'v';
    begin
        execute 'select ' || postrider.capture_image(relation, '($1)', wanted) into image using data;
    exception when others then
        image := null;
    end;
    if image is null then
        -- One by one, small ones first: what does not fit is left out.
        image := '{}';
        select string_agg(format('(%L, pg_column_size(($1).%I))', wanted_column.name, wanted_column.name), ', ') into sizes
        from unnest(wanted) as wanted_column (name);
        for one in execute format('select name::text from (values %s) as part (name, size) order by size nulls first', sizes) using data loop
            begin
                execute 'select ' || postrider.capture_image(relation, '($1)', array[one]) into value using data;
                image := image || value;
            exception when others then
                omitted := omitted || one;
            end;
        end loop;
    end if;
    begin
        if exists (
            select from unnest(key) as part (name)
            where part.name <> all (array(
                select attname::text from pg_attribute where attrelid = relation and attnum > 0 and not attisdropped
            ))
        ) then
            key := postrider.capture_primary_key(relation);
        end if;
        execute 'select ' || postrider.capture_key(relation, '($1)', key) into id using data;
    exception when others then
        id := null;
    end;
    id := coalesce(id, '*');
end
$postrider$;
comment on function postrider.capture_row(oid, record, text[], text[], text[]) is
    'Image and aggregateid of a row by the catalogue as it is now. What cannot be in jsonb is left out and named in omitted. Never fails because of data.';

create function postrider.define_capture(
    target regclass, exclude text[], aggregatetype text, aggregateid text[], created text, updated text, deleted text, truncated text, skip_unchanged boolean
) returns regprocedure language plpgsql security definer set search_path = pg_catalog, pg_temp as $postrider$
#variable_conflict use_variable
declare
    outbox constant regclass := {{outbox_text}}::regclass;
    captured pg_class;
    key text[] := aggregateid;
    known text[];
    unknown text;
    pascal text;
    type_of jsonb;
    id_column text := '';
    id_value text := '';
    image_type text;
    header_type text;
    made text := 'postrider.captured_' || replace(gen_random_uuid()::text, '-', '');
    hindrance record;
    id_size integer;
    fitted text;
    about text;
    body text;
begin
    select * into captured from pg_class where oid = target;
    -- Here the rights are those of the outbox's owner, and whose they are that called cannot be known: session_user is not the role in
    -- effect. So this touches nothing that is in use. The function that it makes does nothing until it is the trigger of a table, and only
    -- the owner of the table can make it that: nobody else may execute it.
    if captured.relkind not in ('r', 'p') or captured.relpersistence = 't' then
        raise exception '% is not a table that can be captured', target using errcode = 'wrong_object_type',
            hint = 'Views, foreign tables and temporary tables cannot be captured.';
    end if;
    if target = outbox or captured.relnamespace in ('postrider'::regnamespace, 'pg_catalog'::regnamespace, 'information_schema'::regnamespace) then
        raise exception '% cannot be captured', target using errcode = 'wrong_object_type', hint = 'It is where events are written, or belongs to the system.';
    end if;
    if captured.relkind = 'p' and captured.relispartition then
        raise exception '% is a partition with partitions of its own', target using errcode = 'wrong_object_type',
            hint = format('Capture the whole table: select postrider.capture(%L);', pg_partition_root(target));
    end if;
    if key is null then
        key := postrider.capture_primary_key(target);
        if key is null then
            raise exception 'table % has no primary key', target using errcode = 'object_not_in_prerequisite_state',
                hint = 'Name the columns that tell its rows apart, or at least what they are about: aggregateid => ''{...}''.';
        end if;
    end if;
    select part.name into unknown
    from unnest(key || exclude) as part (name)
    where part.name is null or part.name not in (
        select attname::text from pg_attribute
        where attrelid = target and attnum > 0 and not attisdropped and (attgenerated <> 'v' or part.name <> all (key))
    )
    limit 1;
    if found or key = '{}' then
        raise exception 'table % has no column "%" that aggregateid or exclude could mean', target, coalesce(unknown, '')
            using errcode = 'undefined_column', hint = 'Names are as in the catalogue, without quotes.';
    end if;
    select coalesce(array_agg(attname::text), '{}') into known
    from pg_attribute
    where attrelid = target and attnum > 0 and not attisdropped and attname <> all (exclude);

    aggregatetype := coalesce(aggregatetype, captured.relname);
    -- order_item: OrderItem
    select coalesce(string_agg(upper(left(part.word, 1)) || substr(part.word, 2), '' order by part.number), '') into pascal
    from unnest(regexp_split_to_array(aggregatetype, '[ _.-]+')) with ordinality as part (word, number);
    created := coalesce(created, pascal || 'Created');
    updated := coalesce(updated, pascal || 'Updated');
    deleted := coalesce(deleted, pascal || 'Deleted');
    truncated := coalesce(truncated, pascal || 'Truncated');

    -- The outbox may have been made by somebody else.
    select jsonb_object_agg(attname, atttypid::regtype::text) into type_of
    from pg_attribute where attrelid = outbox and attnum > 0 and not attisdropped;
    image_type := type_of ->> {{payload_text}};
    header_type := type_of ->> {{headers_text}};
    if image_type not in ('jsonb', 'json', 'text') or (type_of ->> {{before_text}}) is distinct from image_type
        or header_type is null or header_type not in ('jsonb', 'json', 'text')
    then
        raise exception 'the outbox % cannot take the images of rows', outbox using errcode = 'object_not_in_prerequisite_state',
            hint = 'Its columns for payload and before have to be of one type (jsonb, json or text), and it needs one for headers of such a type.';
    end if;
    -- What would make each write of the captured table fail is said now.
    for hindrance in
        select described.attname as name, format_type(described.atttypid, described.atttypmod) as type,
            constant.wanted, described.atttypid::regtype::text = any (array['text', 'character varying', 'character']) as takes_text,
            nullif(described.atttypmod, -1) - 4 as size,
            (described.attnotnull or type.typnotnull) and not described.atthasdef and described.attidentity = '' and type.typdefault is null as required,
            described.attname = any (array[{{aggregatetype_text}}, {{aggregateid_text}}, {{type_text}}]) as written,
            described.attnotnull and described.attname = any (array[{{payload_text}}, {{before_text}}]) as image
        from pg_attribute as described
        join pg_type as type on type.oid = described.atttypid
        left join (
            select {{aggregatetype_text}} as name, array[aggregatetype] as wanted
            union all
            select {{type_text}}, array[created, updated, deleted, truncated]
        ) as constant on constant.name = described.attname
        where described.attrelid = outbox and described.attnum > 0 and not described.attisdropped
            and described.attname <> all (array[{{id_text}}, {{headers_text}}])
        order by described.attnum
    loop
        if hindrance.written then
            if not hindrance.takes_text then
                raise exception 'the column "%" of the outbox % is of type %', hindrance.name, outbox, hindrance.type
                    using errcode = 'object_not_in_prerequisite_state', hint = 'To capture tables, make it text or varchar.';
            end if;
            select part.word into fitted from unnest(hindrance.wanted) as part (word) where char_length(part.word) > hindrance.size limit 1;
            if found then
                raise exception '"%" does not fit into the column "%" of the outbox %, which is %', fitted, hindrance.name, outbox, hindrance.type
                    using errcode = 'string_data_right_truncation',
                    hint = 'Give a shorter one: the arguments are aggregatetype, created, updated, deleted and truncated. Or make the column longer.';
            end if;
            if hindrance.name = {{aggregateid_text}} then
                id_size := hindrance.size;
            end if;
        elsif hindrance.image then
            raise exception 'the column "%" of the outbox % is not null', hindrance.name, outbox using errcode = 'object_not_in_prerequisite_state',
                hint = format('The event of an insert has no row before, that of a delete none after: alter table %s alter column %I drop not null.', outbox, hindrance.name);
        elsif hindrance.required then
            raise exception 'the column "%" of the outbox % is not null and has no default', hindrance.name, outbox
                using errcode = 'object_not_in_prerequisite_state',
                hint = format('Capture does not know what to write there. Give it a default: alter table %s alter column %I set default ... Or drop not null.', outbox, hindrance.name);
        end if;
    end loop;
    if not exists (
        select from pg_attribute
        where attrelid = outbox and attname = {{id_text}} and not attisdropped and (atthasdef or attidentity <> '')
    ) then
        select format_type(atttypid, atttypmod) into fitted from pg_attribute
        where attrelid = outbox and attname = {{id_text}} and atttypmod between 0 and 36 + 3;
        if found then
            raise exception 'the id of the outbox % is %, too short for a UUID', outbox, fitted using errcode = 'object_not_in_prerequisite_state',
                hint = 'Make it uuid or varchar(36), or give it a default.';
        end if;
        if type_of ->> {{id_text}} not in ('uuid', 'text', 'character varying', 'character') then
            raise exception 'the id of the outbox % has no default', outbox using errcode = 'object_not_in_prerequisite_state',
                hint = 'Give it one: capture does not know how to make ids of this type.';
        end if;
        id_column := quote_ident({{id_text}}) || ', ';
        id_value := case type_of ->> {{id_text}} when 'uuid' then 'gen_random_uuid(), ' else 'gen_random_uuid()::text, ' end;
    end if;

    about := case captured.relkind
        when 'p' then
            '(select jsonb_build_object(''schema'', schema.nspname, ''table'', root.relname) from pg_class as root join pg_namespace as schema on schema.oid = root.relnamespace where root.oid = coalesce(pg_partition_root(tg_relid), tg_relid))'
        else 'jsonb_build_object(''schema'', tg_table_schema, ''table'', tg_table_name)'
    end;
    body := format(
        $body$
#variable_conflict use_variable
-- shape %1$s
declare
    image_before jsonb;
    image_after jsonb;
    id_before text;
    id_after text;
    omitted_before text[] := '{}';
    omitted_after text[] := '{}';
    done boolean := false;
    about jsonb := %2$s;
begin
    if tg_op = 'TRUNCATE' then
        about := jsonb_build_object('postrider', about || jsonb_build_object('op', 't'));
        insert into %3$s values (%4$s%5$L, '*', %9$L, null, null, about::%11$s);
        return null;
    end if;
    if %12$L::boolean and tg_op = 'UPDATE' and old *= new then
        return null;
    end if;
    begin
        if tg_op <> 'DELETE' then
            done := %20$s;
            if done then
                image_after := %13$s;
                id_after := %14$s;
            end if;
        end if;
        if tg_op <> 'INSERT' then
            done := (tg_op = 'DELETE' or done) and %21$s;
            if done then
                image_before := %15$s;
                id_before := %16$s;
            end if;
        end if;
    exception when others then
        done := false;
    end;
    if not done then
        begin
            if tg_op <> 'DELETE' then
                select made.image, made.omitted, made.id into image_after, omitted_after, id_after
                from postrider.capture_row(tg_relid, new, %17$L, %18$L, %19$L) as made;
            end if;
            if tg_op <> 'INSERT' then
                select made.image, made.omitted, made.id into image_before, omitted_before, id_before
                from postrider.capture_row(tg_relid, old, %17$L, %18$L, %19$L) as made;
            end if;
        exception when others then
            image_after := case when tg_op <> 'DELETE' then '{}'::jsonb end;
            image_before := case when tg_op <> 'INSERT' then '{}'::jsonb end;
            id_after := '*';
            id_before := '*';
            omitted_after := array['*'];
            omitted_before := omitted_after;
        end;
        if omitted_after <> '{}' or omitted_before <> '{}' then
            about := about || jsonb_build_object(
                'omitted', array(select distinct missing.name from unnest(omitted_after || omitted_before) as missing (name) order by missing.name)
            );
        end if;
    end if;
    about := jsonb_build_object('postrider', about);
%22$s    if tg_op = 'UPDATE' and id_before = id_after then
        insert into %3$s values (%4$s%5$L, id_after, %7$L, image_after::%10$s, image_before::%10$s, about::%11$s);
        return null;
    end if;
    if tg_op <> 'INSERT' then
        insert into %3$s values (%4$s%5$L, id_before, %8$L, null, image_before::%10$s, about::%11$s);
    end if;
    if tg_op <> 'DELETE' then
        insert into %3$s values (%4$s%5$L, id_after, %6$L, image_after::%10$s, null, about::%11$s);
    end if;
    return null;
end
$body$,
        postrider.capture_shape(target), about,
        format(
            '%s (%s%I, %I, %I, %I, %I, %I)',
            outbox, id_column, {{aggregatetype_text}}, {{aggregateid_text}}, {{type_text}}, {{payload_text}}, {{before_text}}, {{headers_text}}
        ),
        id_value, aggregatetype, created, updated, deleted, truncated, image_type, header_type, skip_unchanged,
        postrider.capture_image(target, 'new', known), postrider.capture_key(target, 'new', key),
        postrider.capture_image(target, 'old', known), postrider.capture_key(target, 'old', key),
        known, exclude, key,
        postrider.capture_check(target, captured.relkind = 'p', 'new', known || key),
        postrider.capture_check(target, captured.relkind = 'p', 'old', known || key),
        case when id_size is not null then format(
            E'    id_before := postrider.capture_fit(id_before, %1$s);\n    id_after := postrider.capture_fit(id_after, %1$s);\n', id_size
        ) end
    );
    execute format(
        'create function %s() returns trigger language plpgsql security definer
            set search_path = pg_catalog, pg_temp set "TimeZone" = ''UTC'' set "DateStyle" = ''ISO, YMD'' set "IntervalStyle" = ''iso_8601''
            set bytea_output = ''hex'' set extra_float_digits = 3 set quote_all_identifiers = off as %L',
        made, body
    );
    execute format('revoke all on function %s from public', made);
    execute format('grant execute on function %s to %s', made, captured.relowner::regrole);
    execute format(
        'comment on function %s() is %L', made,
        format('Writes the changes of %s into the outbox as aggregatetype %s; aggregateid: %s; left out: %s.', target, aggregatetype, array_to_string(key, ', '), coalesce(nullif(array_to_string(exclude, ', '), ''), 'nothing'))
    );
    return (made || '()')::regprocedure;
end
$postrider$;
comment on function postrider.define_capture(regclass, text[], text, text[], text, text, text, text, boolean) is
    'Makes the trigger function of a table. Part of postrider.capture that needs the rights of the outbox''s owner.';

create function postrider.drop_unused_captures() returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $postrider$
declare
    unused regprocedure;
begin
    -- Two at once would drop the same. What one leaves, the next one drops.
    if not pg_try_advisory_xact_lock(hashtextextended('postrider.drop_unused_captures', 0)) then
        return;
    end if;
    for unused in
        select function.oid::regprocedure
        from pg_proc as function
        where function.pronamespace = 'postrider'::regnamespace and function.proname ~ '^captured_[0-9a-f]{32}$'
            and not exists (select from pg_trigger where tgfoid = function.oid)
    loop
        execute format('drop function %s', unused);
    end loop;
end
$postrider$;
comment on function postrider.drop_unused_captures() is
    'Drops the trigger functions that no table uses any more. Part of postrider.release that needs the rights of their owner.';

create function postrider.capture(
    target regclass,
    exclude text[] default '{}',
    aggregatetype text default null,
    aggregateid text[] default null,
    created text default null,
    updated text default null,
    deleted text default null,
    truncated text default null,
    skip_unchanged boolean default false
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $postrider$
declare
    made regprocedure;
    wanted record;
begin
    -- The role in effect, which making the triggers asks for as well.
    if not (select pg_has_role(relowner, 'USAGE') from pg_class where oid = target) then
        raise exception 'must be owner of table %', target using errcode = 'insufficient_privilege';
    end if;
    made := postrider.define_capture(
        target, coalesce(exclude, '{}'), aggregatetype, aggregateid, created, updated, deleted, truncated, coalesce(skip_unchanged, false)
    );
    for wanted in
        select *
        from (values
            ('postrider_capture', 'insert or update or delete', 'row', 'Writes each change of a row into the outbox.'),
            ('postrider_capture_truncate', 'truncate', 'statement', 'Writes each truncate into the outbox.')
        ) as part (name, events, level, purpose)
    loop
        -- Waits for those who write to the table.
        execute format('create or replace trigger %I after %s on %s for each %s execute function %s', wanted.name, wanted.events, target, wanted.level, made);
        execute format('comment on trigger %I on %s is %L', wanted.name, target, wanted.purpose);
    end loop;
    -- Those that these were before.
    perform postrider.drop_unused_captures();
end
$postrider$;
comment on function postrider.capture(regclass, text[], text, text[], text, text, text, text, boolean) is
    'From now on each change of the table is written into the outbox, in its own transaction, with the row before and after. Call it again to change how, and after each change of the table''s columns. For the owner of the table.';

create function postrider.release(target regclass) returns void language plpgsql set search_path = pg_catalog, pg_temp as $postrider$
begin
    if not (select pg_has_role(relowner, 'USAGE') from pg_class where oid = target) then
        raise exception 'must be owner of table %', target using errcode = 'insufficient_privilege';
    end if;
    execute format('drop trigger if exists postrider_capture on %s', target);
    execute format('drop trigger if exists postrider_capture_truncate on %s', target);
    perform postrider.drop_unused_captures();
end
$postrider$;
comment on function postrider.release(regclass) is 'Ends the capture of the table. For its owner.';

create view postrider.captures (captured, description, up_to_date) as
    select
        trigger.tgrelid::regclass,
        pg_catalog.obj_description(function.oid, 'pg_proc'),
        pg_catalog.substring(function.prosrc, '-- shape (-?[0-9]+)')::bigint = postrider.capture_shape(trigger.tgrelid)
    from pg_catalog.pg_trigger as trigger
    join pg_catalog.pg_proc as function on function.oid = trigger.tgfoid
    where trigger.tgname = 'postrider_capture' and trigger.tgparentid = 0
        and function.pronamespace = 'postrider'::pg_catalog.regnamespace and function.proname ~ '^captured_[0-9a-f]{32}$';
comment on view postrider.captures is 'The tables that postrider.capture writes events for.';
comment on column postrider.captures.captured is 'The table.';
comment on column postrider.captures.description is 'What becomes of its changes.';
comment on column postrider.captures.up_to_date is
    'Whether its columns are those of the last call of postrider.capture. If not, each change takes longer, and with exclude new columns are left out.';

create function postrider.emit(
    aggregatetype text,
    aggregateid text,
    type text,
    payload jsonb,
    before jsonb default null,
    version integer default 1,
    sequence bigint default null,
    headers jsonb default '{}',
    id uuid default gen_random_uuid(),
    occurred_at timestamptz default now()
) returns uuid language plpgsql security definer
    set search_path = pg_catalog, pg_temp set "TimeZone" = 'UTC' set "DateStyle" = 'ISO, YMD' as $postrider$
begin
    if num_nulls(aggregatetype, aggregateid, type, id) > 0 then
        raise exception 'an event needs an id, an aggregatetype, an aggregateid and a type' using errcode = 'not_null_violation';
    end if;
    -- A payload that is not there is SQL NULL; JSON null is a value.
    perform pg_logical_emit_message(
        true,
        'postrider',
        (
            jsonb_build_object(
                'id', id, 'aggregatetype', aggregatetype, 'aggregateid', aggregateid, 'type', type, 'version', version,
                'sequence', sequence, 'headers', headers, 'occurred_at', occurred_at::text
            )
            || case when payload is null then '{}' else jsonb_build_object('payload', payload) end
            || case when before is null then '{}' else jsonb_build_object('before', before) end
        )::text
    );
    return id;
end
$postrider$;
comment on function postrider.emit(text, text, text, jsonb, jsonb, integer, bigint, jsonb, uuid, timestamptz) is
    'An event without a row: it is in the write-ahead log alone. Sent if the transaction commits and the relay has source.emit = true. Returns its id.';

-- Capturing is writing into the outbox, and so is emitting, nearly: nobody may by default.
revoke all on function
    postrider.capture_value,
    postrider.capture_elements,
    postrider.capture_image,
    postrider.capture_key,
    postrider.capture_fit,
    postrider.capture_primary_key,
    postrider.capture_check,
    postrider.capture_shape,
    postrider.capture_row,
    postrider.define_capture,
    postrider.drop_unused_captures,
    postrider.capture,
    postrider.release,
    postrider.emit
from public;
