-- What is needed to publish dead letters, but for what their bodies have beyond the first MiB. $1: slot, $2: positions.
select
    id, position, event_id, type, routing_key, content_type, correlation_id::text as correlation_id, headers::text as headers,
    committed_at, body, body_bytes
from postrider.dead_letters
where slot = $1 and position = any ($2)
order by position
