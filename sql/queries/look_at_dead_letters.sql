-- What people have marked, and how many dead letters the slot has: at least one row. $1: the slot.
select total.count, marked.position, marked.event_id, marked.mark
from (select count(*) as count from postrider.dead_letters where slot = $1) as total
left join postrider.dead_letters as marked on marked.slot = $1 and marked.mark is not null
order by marked.position
