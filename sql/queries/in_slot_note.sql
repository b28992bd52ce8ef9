-- Rows that a slot which was kept still sends: for repair they count as sent by this transaction, which is of the new life.
-- $1: slot; $2: transactions (32 bits).
insert into postrider.repaired as sent (slot, id, xid)
select $1::text, written.{{id}}::text, pg_catalog.pg_current_xact_id()
from {{outbox}} as written
left join postrider.repaired as earlier on earlier.slot = $1::text and earlier.id = written.{{id}}::text
where (greatest(earlier.xid, written.{{xid}})::text::numeric % 4294967296)::text = any ($2::text[])
on conflict (slot, id) do update set xid = excluded.xid, repaired_at = now()
