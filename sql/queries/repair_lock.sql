-- One repair of a slot at a time; the lock lasts as long as its session.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('postrider repair'), pg_catalog.hashtext($1::text))
