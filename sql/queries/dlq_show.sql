-- One dead letter. $1: its id, $2: how many bytes of its body.
select
    (select pg_catalog.row_to_json(parked)::text from postrider.parked as parked where parked.id = letter.id) as letter,
    letter.content_type,
    letter.correlation_id::text as correlation_id,
    letter.headers::text as headers,
    substring(letter.body for $2::integer) as body
from postrider.dead_letters as letter
where letter.id = $1::bigint
