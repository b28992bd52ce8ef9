-- Copies of these rows, in this order. $1: their ids.
insert into postrider.resend ({{columns}})
select {{written_columns}}
from pg_catalog.unnest($1::text[]) with ordinality as wanted (id, place)
join {{outbox}} as written on written.{{id}} = wanted.id::{{id_type}}
order by wanted.place
