-- The newest transaction number in the outbox table. Reads the whole table.
select max({{xid}})::text from {{outbox}}
