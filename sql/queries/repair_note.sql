-- From now on this transaction is the one that counts for these rows. $1: slot; $2: their ids.
insert into postrider.repaired as sent (slot, id, xid)
select $1::text, wanted.id, pg_catalog.pg_current_xact_id()
from pg_catalog.unnest($2::text[]) as wanted (id)
on conflict (slot, id) do update set xid = excluded.xid, repaired_at = now()
