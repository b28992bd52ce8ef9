,
step as (
    -- What stands in the way.
    select
        0 as step,
        pattern.place::pg_catalog.text as ordinal,
        null as statement,
        null as said,
        pg_catalog.format('source.tables: %L matches no table', pattern.text) as problem,
        coalesce(
            (
                select pg_catalog.format('%s is %s. Correct the pattern, or leave it out', matched.quoted, matched.excluded)
                from matched
                where matched.place = pattern.place
                order by matched.quoted
                limit 1
            ),
            'Create the table first, or correct the pattern: schema.table as the catalogue has the names, * for any run of characters'
        ) as hint
    from pattern
    where not exists (
        select from matched
        where matched.place = pattern.place and matched.excluded is null and matched.relkind in ('r', 'p')
    )
    union all
    select
        0, pattern.place::pg_catalog.text, null, null,
        pg_catalog.format('source.tables: %L matches partitions only', pattern.text),
        pg_catalog.format(
            'Changes of partitions are captured as those of the table that they are partitions of: name %s instead',
            coalesce(pg_catalog.string_agg(distinct root.quoted, ', '), 'that one, unless it is the outbox,')
        )
    from pattern
    join matched on matched.place = pattern.place and matched.excluded is null and matched.relkind in ('r', 'p')
    left join tree on tree.oid = matched.oid and matched.relispartition
    left join relation as root on root.oid = tree.root
    group by pattern.place, pattern.text
    having pg_catalog.bool_and(matched.relispartition)
        and not pg_catalog.bool_and(exists (select from captured where captured.oid = tree.root))
    union all
    select
        0, ours.name, null, null,
        pg_catalog.format('publication "%s" is for all tables', ours.name),
        pg_catalog.format(
            'Such a publication makes writes of tables fail that have no replica identity. Choose another name by the setting %s',
            case when ours.takes_all then 'source.publication' else 'source.publication_inserts' end
        )
    from ours
    where ours.is_for_all
    -- The publications.
    union all
    select 1, ours.place::pg_catalog.text, pg_catalog.format('create publication %I with (%s)', ours.name, ours.options),
        pg_catalog.format('publication %s made', ours.name), null, null
    from ours
    where ours.oid is null
    union all
    select 2, ours.place::pg_catalog.text,
        pg_catalog.format(
            'comment on publication %I is %L', ours.name,
            'Tables that Postrider captures' || case when ours.takes_all
                then ': all changes of those whose replica identity is proven.'
                else ': inserts and truncates of those whose replica identity is not proven.' end
                || ' Change it by postrider migrate, never drop and make it again while the slot exists.'
        ),
        null, null, null
    from ours
    where ours.oid is null
    union all
    select 3, ours.place::pg_catalog.text, pg_catalog.format('alter publication %I set (%s)', ours.name, ours.options),
        pg_catalog.format('publication %s changed: %s', ours.name, ours.options), null, null
    from ours
    where not ours.is_right
    -- A table joins one publication before it leaves the other; while it is in both, its changes are sent once.
    union all
    select 4, captured.quoted,
        pg_catalog.format('alter publication %I add table only %s', ours.name, captured.quoted),
        case
            when exists (
                select
                from pg_catalog.pg_publication_rel as member
                join ours as other on other.oid = member.prpubid and other.place <> ours.place
                where member.prrelid = captured.oid
            ) then pg_catalog.format('%s moved to %s', captured.quoted, ours.name)
            else pg_catalog.format('%s added to %s', captured.quoted, ours.name)
        end,
        null, null
    from captured
    join ours on ours.takes_all = captured.proven
    where not exists (
        select from pg_catalog.pg_publication_rel as member where member.prpubid = ours.oid and member.prrelid = captured.oid
    )
    union all
    select 5, relation.quoted,
        case when other.slots is null then pg_catalog.format('alter publication %I drop table only %s', ours.name, relation.quoted) end,
        case
            when captured.oid is not null then null
            when other.slots is not null then pg_catalog.format(
                '%s stays in %s: no pattern of source.tables matches it, but slot %s captures it. Give each relay publications of its own, by source.publication and source.publication_inserts',
                relation.quoted, ours.name, other.slots
            )
            else pg_catalog.format('%s dropped from %s: no pattern of source.tables matches it%s', relation.quoted, ours.name,
                case when relation.relispartition then ' (it is a partition: its changes are those of its root)' else '' end)
        end,
        null, null
    from ours
    join pg_catalog.pg_publication_rel as member on member.prpubid = ours.oid
    join relation on relation.oid = member.prrelid
    left join captured on captured.oid = member.prrelid
    -- Another relay that reads the same publication would halt: the record of its slot has the member, as `captured_state.sql` writes it.
    left join lateral (
        select pg_catalog.string_agg(progress.slot, ', ' order by progress.slot) as slots
        from postrider.progress as progress
        where captured.oid is null and progress.slot <> {{slot_text}}
            and pg_catalog.concat_ws(' ', member.prrelid, case when ours.takes_all then 'a' else 'i' end, member.oid) = any (
                pg_catalog.string_to_array(
                    pg_catalog.split_part(pg_catalog.split_part(progress.publication_state, '; tables of ', 2), ': ', 2), ', '
                )
            )
    ) as other on true
    where captured.oid is null or captured.proven <> ours.takes_all
    union all
    select 6, namespace.nspname::pg_catalog.text,
        pg_catalog.format('alter publication %I drop tables in schema %I', ours.name, namespace.nspname),
        pg_catalog.format('schema %s dropped from %s: only the tables of source.tables belong there', namespace.nspname, ours.name),
        null, null
    from ours
    join pg_catalog.pg_publication_namespace as member on member.pnpubid = ours.oid
    join pg_catalog.pg_namespace as namespace on namespace.oid = member.pnnspid
    -- What a person may want to know.
    union all
    select 7, judged.quoted, null,
        pg_catalog.format(
            '%s: updates and deletes are not captured, %s. To have them: %sthen postrider migrate again',
            judged.quoted,
            case
                when judged.relreplident = 'f' then 'because its replica identity full has a virtual generated column'
                when judged.relreplident = 'd' and judged.has_deferrable_key then 'because its primary key is deferrable, and so is no replica identity'
                when judged.relreplident = 'n' then 'because its replica identity is nothing'
                when judged.relreplident = 'i' then 'because the index of its replica identity is gone or not valid'
                else 'because it has no primary key'
            end || case when tree.oid = tree.root then '' else pg_catalog.format(' (a partition of %s)', captured.quoted) end,
            case
                when coalesce(remedy.statement, judged.proof) is null then 'add a primary key, '
                when judged.has_key then coalesce(remedy.statement, judged.proof) || '; '
                else coalesce(remedy.statement, judged.proof) || '; or add a primary key, '
            end
        ),
        null, null
    from captured
    join tree on tree.root = captured.oid
    join judged on judged.oid = tree.oid
    left join remedy on remedy.root = captured.oid and remedy.oid = judged.oid
    where not captured.proven and not judged.proven
    union all
    select 7, identified.quoted, null,
        pg_catalog.format(
            '%s: updates and deletes are not captured, because the replica identity of a partitioned table and those of its partitions have to be the same (%s). To have them: %sthen postrider migrate again',
            captured.quoted, identified.quoted, coalesce(remedy.statement || '; ', 'add a primary key, ')
        ),
        null, null
    from captured
    join tree on tree.root = captured.oid
    join identified on identified.oid = tree.oid
    left join remedy on remedy.root = captured.oid and remedy.oid = identified.oid
    where captured.is_partitioned and not captured.proven
        and case
            when identified.oid = captured.oid
                then remedy.oid is not null
                or captured.disagree and not exists (select from remedy as any_of where any_of.root = captured.oid)
            else identified.relkind = 'r' and identified.proven and remedy.oid is not null
        end
    union all
    select 7, captured.quoted, null,
        pg_catalog.format(
            '%s: %s. Give each one its replica identity in the transaction that makes it (alter table ... replica identity full), or its %s',
            captured.quoted,
            case when captured.inherits_key then 'a new partition would not have replica identity full'
                else 'has no primary key that a new partition would inherit' end,
            case when captured.inherits_key then 'rows are sent with wrong old values' else 'updates and deletes fail' end
        ),
        null, null
    from captured
    where captured.is_fragile and captured.proven
    union all
    select 7, captured.quoted, null,
        pg_catalog.format(
            '%s: somebody has given it a filter or a list of columns in %s, which stays. postrider check says whether writes fail by it',
            captured.quoted, ours.name
        ),
        null, null
    from captured
    join ours on ours.takes_all = captured.proven
    join pg_catalog.pg_publication_rel as member on member.prpubid = ours.oid and member.prrelid = captured.oid
    where member.prqual is not null or member.prattrs is not null
    union all
    select 8, matched.quoted, null,
        pg_catalog.format('%s is not captured: it is a partition of %s, which no pattern matches', matched.quoted, root.quoted),
        null, null
    from matched
    join tree on tree.oid = matched.oid
    join relation as root on root.oid = tree.root
    where matched.relispartition and matched.excluded is null and not exists (select from captured where captured.oid = tree.root)
)
select distinct step.step, step.ordinal, step.statement, step.said, step.problem, step.hint
from step
order by step.step, step.ordinal
