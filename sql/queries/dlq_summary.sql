-- What `postrider dlq list` says first. $1 to $12: the filters, as of postrider.redrive up to everything.
with chosen as (
    select *
    from postrider.redrive(
        $1::bigint[], $2::text, $3::text, $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text::interval,
        $11::text::interval, $12::boolean, dry_run => true
    )
)
select
    count(*) as count,
    (select count(distinct key) from chosen, unnest(chosen.keys) as key) as keys,
    pg_catalog.to_char(min(parked_at), 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as oldest,
    coalesce(sum(body_bytes), 0)::bigint as bytes,
    count(*) filter (where mark = 'redrive') as redrive,
    count(*) filter (where mark = 'discard') as discard,
    array(select reason from chosen group by reason order by count(*) desc, reason) as reasons,
    array(select count(*) from chosen group by reason order by count(*) desc, reason) as counts,
    -- A slot that was not meant is soon taken for an empty one.
    array(
        select format('%s (%s)', parked.slot, count(*))
        from postrider.parked as parked
        where parked.slot <> $2
        group by parked.slot
        order by parked.slot
    ) as elsewhere
from chosen
