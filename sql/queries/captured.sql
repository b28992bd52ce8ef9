-- The tables that `source.tables` may mean, what they consist of, and what their replica identity is worth. The first part of
-- `capture_plan.sql` and of `capture_troubles.sql`. It takes no lock on them: `pg_partition_tree` would, on every partition.
with recursive
server as (
    select pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 180000 as has_generated
),
pattern as (
    select
        given.text,
        given.place,
        pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(
            given.text, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') as likeness
    from pg_catalog.unnest({{patterns}}) with ordinality as given (text, place)
),
-- Whatever a pattern may match, and why it cannot be captured.
relation as (
    select
        class.oid,
        class.relkind,
        class.relispartition,
        class.relreplident,
        class.relpersistence,
        class.relnamespace,
        namespace.nspname::pg_catalog.text || '.' || class.relname::pg_catalog.text as name,
        pg_catalog.format('%I.%I', namespace.nspname, class.relname) as quoted,
        case
            when class.relpersistence = 't' then 'temporary'
            when namespace.nspname = 'information_schema' or namespace.nspname like 'pg!_%' escape '!' then 'of the system'
            when namespace.nspname = 'postrider' then 'Postrider''s own'
            when namespace.nspname = {{outbox_schema_text}} and class.relname = {{outbox_table_text}} then 'the outbox, which is published already'
            when class.relkind in ('v', 'm') then 'a view'
            when class.relkind = 'f' then 'a foreign table'
            when class.relpersistence = 'u' then 'unlogged'
        end as excluded
    from pg_catalog.pg_class as class
    join pg_catalog.pg_namespace as namespace on namespace.oid = class.relnamespace
    where class.relkind in ('r', 'p', 'v', 'm', 'f')
),
tree as (
    select relation.oid as root, relation.oid
    from relation
    where relation.relkind in ('r', 'p') and not relation.relispartition and relation.excluded is null
    union all
    select tree.root, child.oid
    from tree
    join pg_catalog.pg_inherits as link on link.inhparent = tree.oid
    join pg_catalog.pg_class as child on child.oid = link.inhrelid and child.relispartition
),
identified as (
    select
        relation.oid,
        relation.relkind,
        relation.quoted,
        relation.relreplident,
        identity.columns as identity,
        coalesce(primary_key.indisvalid and primary_key.indimmediate, false) as has_key,
        coalesce(not primary_key.indimmediate, false) as has_deferrable_key,
        generated.stored as has_stored,
        generated.virtual as has_virtual,
        coalesce(identity.generated, false) as identifies_by_generated,
        case when relation.relreplident = 'f' then not generated.virtual else identity.columns is not null end as proven,
        case
            when coalesce(primary_key.indisvalid and primary_key.indimmediate, false)
                then pg_catalog.format('alter table %s replica identity default', relation.quoted)
            when not generated.virtual then pg_catalog.format('alter table %s replica identity full', relation.quoted)
            when spare.relname is not null then pg_catalog.format('alter table %s replica identity using index %I', relation.quoted, spare.relname)
        end as proof
    from relation
    left join pg_catalog.pg_index as primary_key on primary_key.indrelid = relation.oid and primary_key.indisprimary
    left join lateral (
        select
            pg_catalog.array_agg(attribute.attname::pg_catalog.text order by attribute.attname) as columns,
            pg_catalog.bool_or(attribute.attgenerated = 's') as generated
        from pg_catalog.pg_index as index
        join pg_catalog.pg_attribute as attribute
            on attribute.attrelid = relation.oid
            and attribute.attnum = any ((index.indkey::pg_catalog.int2[])[0:index.indnkeyatts - 1])
        where index.indrelid = relation.oid and index.indisunique and index.indisvalid and index.indimmediate
            and (relation.relreplident = 'd' and index.indisprimary or relation.relreplident = 'i' and index.indisreplident)
    ) as identity on true
    cross join lateral (
        select
            coalesce(pg_catalog.bool_or(attribute.attgenerated = 's'), false) as stored,
            coalesce(pg_catalog.bool_or(attribute.attgenerated = 'v'), false) as virtual
        from pg_catalog.pg_attribute as attribute
        where attribute.attrelid = relation.oid and attribute.attnum > 0 and not attribute.attisdropped and attribute.attgenerated <> ''
    ) as generated
    left join lateral (
        -- An index that may be an identity: none of its columns can be null.
        select class.relname
        from pg_catalog.pg_index as index
        join pg_catalog.pg_class as class on class.oid = index.indexrelid
        where index.indrelid = relation.oid and index.indisunique and index.indisvalid and index.indimmediate
            and index.indpred is null and index.indexprs is null
            and not exists (
                select
                from pg_catalog.pg_attribute as attribute
                where attribute.attrelid = relation.oid and not attribute.attnotnull
                    and attribute.attnum = any ((index.indkey::pg_catalog.int2[])[0:index.indnkeyatts - 1])
            )
        order by class.relname
        limit 1
    ) as spare on true
    where relation.relkind in ('r', 'p') and relation.relpersistence = 'p'
),
-- Ordinary tables, partitions among them: the ones whose rows are written.
judged as (
    select identified.* from identified where identified.relkind = 'r'
),
matched as (
    select pattern.text, pattern.place, relation.oid, relation.relkind, relation.relispartition, relation.quoted, relation.excluded
    from pattern
    join relation on relation.name like pattern.likeness escape '!'
),
captured as (
    select
        relation.oid,
        relation.quoted,
        relation.relkind = 'p' as is_partitioned,
        parts.proven,
        parts.disagree,
        -- A partition that is added inherits the key, and nothing else of an identity.
        relation.relkind = 'p' and not (root.has_key and root.relreplident = 'd') as is_fragile,
        root.has_key as inherits_key
    from relation
    join identified as root on root.oid = relation.oid
    cross join lateral (
        -- pgoutput writes the identity of the root over the old rows of the partitions: with another one they would have nulls for what the
        -- WAL does not have.
        select
            coalesce(pg_catalog.bool_and(judged.proven and alike.yes), root.has_key and root.relreplident = 'd') as proven,
            coalesce(pg_catalog.bool_or(judged.proven and not alike.yes), false) as disagree
        from tree
        join judged on judged.oid = tree.oid
        cross join lateral (
            select case
                when root.relreplident = 'f' or judged.relreplident = 'f' then root.relreplident = judged.relreplident
                else root.identity is not distinct from judged.identity
            end as yes
        ) as alike
        where tree.root = relation.oid
    ) as parts
    where not relation.relispartition and relation.excluded is null and relation.relkind in ('r', 'p')
        and exists (select from matched where matched.oid = relation.oid)
),
-- What gives a partitioned table and its partitions one replica identity.
remedy as (
    select
        aim.root,
        identified.oid,
        identified.quoted,
        pg_catalog.format('alter table %s replica identity %s', identified.quoted, aim.kind) as statement
    from (
        select
            tree.root,
            case
                when not pg_catalog.bool_or(identified.has_virtual)
                    and (pg_catalog.bool_or(identified.relreplident = 'f') or not pg_catalog.bool_or(root.has_key)) then 'full'
                when pg_catalog.bool_or(root.has_key) then 'default'
            end as kind
        from tree
        join identified as root on root.oid = tree.root and root.relkind = 'p'
        join identified on identified.oid = tree.oid and (identified.relkind = 'r' or identified.oid = tree.root)
        group by tree.root
    ) as aim
    join tree on tree.root = aim.root
    join identified on identified.oid = tree.oid and (identified.relkind = 'r' or identified.oid = tree.root)
    where identified.relreplident::pg_catalog.text <> pg_catalog.left(aim.kind, 1)
),
-- The two publications as they are to be.
ours as (
    select
        wanted.place,
        wanted.name,
        wanted.takes_all,
        pg_catalog.concat_ws(
            ', ',
            pg_catalog.format('publish = %L', case when wanted.takes_all then 'insert, update, delete, truncate' else 'insert, truncate' end),
            'publish_via_partition_root = true',
            case when server.has_generated then 'publish_generated_columns = stored' end
        ) as options,
        publication.oid,
        coalesce(publication.puballtables, false) as is_for_all,
        coalesce(publication.pubupdate, false) or coalesce(publication.pubdelete, false) as needs_identity,
        coalesce(pg_catalog.to_jsonb(publication) ->> 'pubgencols' = 's', false) as sends_stored,
        publication.pubinsert and publication.pubtruncate and publication.pubviaroot
            and publication.pubupdate = wanted.takes_all and publication.pubdelete = wanted.takes_all
            and (not server.has_generated or pg_catalog.to_jsonb(publication) ->> 'pubgencols' = 's') as is_right
    from (values (1, {{tables_publication_text}}, true), (2, {{inserts_publication_text}}, false)) as wanted (place, name, takes_all)
    cross join server
    left join pg_catalog.pg_publication as publication on publication.pubname = wanted.name::pg_catalog.name
)
