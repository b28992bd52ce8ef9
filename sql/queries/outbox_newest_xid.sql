-- The newest transaction number in the outbox table, and among those that have sent its rows again. Reads the whole table.
select greatest(max({{xid}}), (select max(xid) from postrider.repaired))::text from {{outbox}}
