-- The lock of the relay that carries a slot (see src/postgres/slot.rs). $1: the slot.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('postrider'), pg_catalog.hashtext($1::text)) as got
