-- Every dead letter of a slot without its content, in the order of the slot's events. $1: the slot.
select id, position, event_id, keys, route, exchange, routing_key, reason, holds_key, body_bytes, parked_at, mark
from postrider.dead_letters
where slot = $1
order by position
