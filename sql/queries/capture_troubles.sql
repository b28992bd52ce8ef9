,
membership as (
    select ours.oid as publication, member.prrelid as relid, member.prattrs, member.prqual
    from ours
    join pg_catalog.pg_publication_rel as member on member.prpubid = ours.oid
    union all
    select ours.oid, relation.oid, null, null
    from ours
    join pg_catalog.pg_publication_namespace as member on member.pnpubid = ours.oid
    join relation on relation.relnamespace = member.pnnspid and relation.relkind in ('r', 'p')
    union all
    select ours.oid, relation.oid, null, null
    from ours
    join relation on ours.is_for_all and relation.relkind = 'r' and relation.excluded is null
),
-- Members, and the partitions that are in through them.
published as (
    select membership.publication, membership.relid as member, membership.relid as oid, membership.prattrs, membership.prqual
    from membership
    union all
    select published.publication, published.member, child.oid, published.prattrs, published.prqual
    from published
    join pg_catalog.pg_inherits as link on link.inhparent = published.oid
    join pg_catalog.pg_class as child on child.oid = link.inhrelid and child.relispartition
),
written as (
    select
        ours.name as publication,
        ours.place,
        ours.needs_identity,
        ours.sends_stored,
        published.member,
        published.oid = published.member as is_member,
        published.prattrs is not null as has_list,
        listed.names as list,
        filtered.names as filter,
        judged.*
    from published
    join ours on ours.oid = published.publication
    join judged on judged.oid = published.oid
    cross join lateral (
        -- By name: a partition may have its columns in another order.
        select pg_catalog.array_agg(attribute.attname::pg_catalog.text) as names
        from pg_catalog.pg_attribute as attribute
        where attribute.attrelid = published.member and attribute.attnum = any (published.prattrs::pg_catalog.int2[])
    ) as listed
    cross join lateral (
        select coalesce(pg_catalog.array_agg(distinct attribute.attname::pg_catalog.text), '{}') as names
        from pg_catalog.regexp_matches(published.prqual::pg_catalog.text, ':varattno ([0-9]+)', 'g') as variable (place)
        join pg_catalog.pg_attribute as attribute
            on attribute.attrelid = published.member and attribute.attnum = variable.place[1]::pg_catalog.int4
    ) as filtered
),
-- The whole membership of a publication but for the list of columns of one table: what takes that list away in one statement.
unlisted as (
    select
        cleared.publication,
        cleared.relid,
        pg_catalog.format(
            'alter publication %I set table %s',
            ours.name,
            pg_catalog.string_agg(
                'only ' || relation.quoted
                || case
                    when kept.prattrs is null or kept.relid = cleared.relid then ''
                    else ' (' || (
                        select pg_catalog.string_agg(pg_catalog.quote_ident(attribute.attname), ', ' order by attribute.attnum)
                        from pg_catalog.pg_attribute as attribute
                        where attribute.attrelid = kept.relid and attribute.attnum = any (kept.prattrs::pg_catalog.int2[])
                    ) || ')'
                end
                || case when kept.prqual is null then '' else ' where (' || pg_catalog.pg_get_expr(kept.prqual, kept.relid) || ')' end,
                ', ' order by relation.quoted
            )
        ) as statement
    from membership as cleared
    join ours on ours.oid = cleared.publication
    join membership as kept on kept.publication = cleared.publication
    join relation on relation.oid = kept.relid
    where cleared.prattrs is not null
    group by cleared.publication, cleared.relid, ours.name
),
-- The five ways in which a publication makes writes of the application fail.
trouble as (
    select
        'fail' as level,
        'no_identity' as cause,
        written.quoted as subject,
        pg_catalog.format(
            'updates and deletes of %s fail, upserts and MERGE among them: %s publishes them, and %s',
            written.quoted,
            written.publication,
            case
                when written.relreplident = 'd' and written.has_deferrable_key then 'its primary key is deferrable, which is no replica identity'
                when written.relreplident = 'n' then 'its replica identity is nothing'
                when written.relreplident = 'i' then 'the index of its replica identity is gone or not valid'
                else 'it has no primary key and no other replica identity'
            end
        ) as what,
        -- No table with a list of columns can have replica identity full.
        pg_catalog.array_remove(
            array[case when written.proof like '% full' then unlisted.statement end, written.proof]::pg_catalog.text[], null
        ) as statements
    from written
    join ours on ours.place = written.place
    left join unlisted on unlisted.publication = ours.oid and unlisted.relid = written.member
    where written.needs_identity and written.relreplident <> 'f' and written.identity is null
    union all
    select
        'fail', 'filter', written.quoted,
        pg_catalog.format(
            'updates and deletes of %s fail: the WHERE of %s uses columns that are not part of the replica identity (%s)',
            written.quoted, written.publication, pg_catalog.array_to_string(written.filter, ', ')
        ),
        case
            when written.has_virtual or written.has_list then array[]::pg_catalog.text[]
            else array[pg_catalog.format('alter table %s replica identity full', written.quoted)]
        end
    from written
    where written.needs_identity and written.relreplident <> 'f' and not written.filter <@ written.identity
    union all
    select
        'fail', case when written.relreplident = 'f' then 'full_list' else 'list' end, written.quoted,
        pg_catalog.format(
            'updates and deletes of %s fail: %s has a list of columns for it%s',
            written.quoted, written.publication,
            case when written.relreplident = 'f' then ', which no table with replica identity full may have'
            else ' that leaves out part of the replica identity' end
        ),
        array[unlisted.statement]
    from written
    join ours on ours.place = written.place
    join unlisted on unlisted.publication = ours.oid and unlisted.relid = written.member
    where written.needs_identity and written.has_list
        and (written.relreplident = 'f' or not written.identity <@ written.list)
    union all
    select
        'fail', 'generated', written.quoted,
        pg_catalog.format(
            'updates and deletes of %s fail: its replica identity has a generated column, which %s does not publish',
            written.quoted, written.publication
        ),
        case
            when not (written.relreplident = 'f' and written.has_virtual)
                then array[pg_catalog.format('alter publication %I set (publish_generated_columns = stored)', written.publication)]
            when written.proof is not null then array[written.proof]
            when written.is_member and written.place = 1 then array[
                pg_catalog.format('alter publication %I add table only %s', other.name, written.quoted),
                pg_catalog.format('alter publication %I drop table only %s', written.publication, written.quoted)
            ]
            else array[]::pg_catalog.text[]
        end
    from written
    cross join server
    join ours as other on other.place <> written.place
    where written.needs_identity and server.has_generated
        and (
            written.relreplident = 'f' and (written.has_virtual or written.has_stored and not written.sends_stored)
            or written.identifies_by_generated and not written.has_list and not written.sends_stored
        )
    -- What is carried otherwise than it is meant.
    union all
    select
        'fail', 'partition', captured.quoted,
        pg_catalog.format(
            'old values of %s are sent wrongly, with nulls for what is not known: %s publishes its updates and deletes, and its replica identity is not that of its partitions. Make them the same, or run `postrider migrate`, after which only its inserts are captured',
            captured.quoted, ours.name
        ),
        array(select remedy.statement from remedy where remedy.root = captured.oid order by remedy.statement)
    from captured
    join ours on ours.needs_identity
    where captured.disagree
        and exists (select from membership where membership.publication = ours.oid and membership.relid = captured.oid)
    union all
    select
        'warn', 'inserts_only', identified.quoted,
        pg_catalog.format(
            'updates and deletes of %s are not carried: %s', identified.quoted,
            case when identified.relkind = 'p' or identified.proven
                then 'the replica identity of a partitioned table and those of its partitions have to be the same'
            else 'its replica identity is not proven' end
        ),
        case
            when coalesce(remedy.statement, identified.proof) is null then array[]::pg_catalog.text[]
            else array[coalesce(remedy.statement, identified.proof)]
        end
    from captured
    join ours on not ours.takes_all
    join pg_catalog.pg_publication_rel as member on member.prpubid = ours.oid and member.prrelid = captured.oid
    join tree on tree.root = captured.oid
    join identified on identified.oid = tree.oid
    left join remedy on remedy.root = captured.oid and remedy.oid = identified.oid
    where not captured.proven and (identified.relkind = 'r' and not identified.proven or remedy.oid is not null)
    -- What another run of `postrider migrate` sets right.
    union all
    select
        'warn', 'migrate', captured.quoted,
        case
            when other.relid is null then pg_catalog.format('%s is in source.tables, and in neither publication: nothing of it is carried', captured.quoted)
            else pg_catalog.format('the replica identity of %s is proven now: its updates and deletes could be carried too', captured.quoted)
        end,
        array[]::pg_catalog.text[]
    from captured
    join ours on ours.takes_all = captured.proven and ours.oid is not null
    left join (select distinct membership.relid from membership) as other on other.relid = captured.oid
    where not exists (select from membership where membership.publication = ours.oid and membership.relid = captured.oid)
        and (other.relid is null or captured.proven)
    union all
    select
        'warn', 'migrate', relation.quoted,
        pg_catalog.format('%s is in publication %s, and no pattern of source.tables matches it', relation.quoted, ours.name),
        array[]::pg_catalog.text[]
    from membership
    join ours on ours.oid = membership.publication
    join relation on relation.oid = membership.relid
    where not exists (select from captured where captured.oid = membership.relid)
    union all
    select
        case when publication.pubinsert and publication.pubviaroot then 'warn' else 'fail' end, 'options', ours.name,
        pg_catalog.format('publication %s does not publish what it is for', ours.name),
        array[pg_catalog.format('alter publication %I set (%s)', ours.name, ours.options)]
    from ours
    join pg_catalog.pg_publication as publication on publication.oid = ours.oid
    where not ours.is_right
    union all
    select
        'fail', 'missing', ours.name, pg_catalog.format('there is no publication %s', ours.name), array[]::pg_catalog.text[]
    from ours
    where ours.oid is null
)
select distinct trouble.level, trouble.cause, trouble.subject, trouble.what, trouble.statements
from trouble
order by trouble.level, trouble.subject, trouble.cause
