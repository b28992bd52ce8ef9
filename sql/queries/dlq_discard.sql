-- Marks dead letters, or shows what would be marked. $1 to $12 as in dlq_summary.sql, $13: only show.
select pg_catalog.row_to_json(chosen)::text as letter
from postrider.discard(
    $1::bigint[], $2::text, $3::text, $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text::interval,
    $11::text::interval, $12::boolean, $13::boolean
) as chosen
order by chosen.position
