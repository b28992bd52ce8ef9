-- Records in the slot's life the newest heartbeat that came back with everything before it delivered.
--
-- The lock makes a takeover wait for this transaction or this one see it; after a reconnect older heartbeats come again, and
-- must not put the newer one back. First result: whether this relay still carries; second: whether the slot has a life.
with carried as (
    select slot from postrider.progress where slot = $1 and relay_epoch = $2 for no key update
),
confirmed as (
    update postrider.lives as life
    set heartbeat_no = $3, heartbeat_snapshot = $4::text::pg_snapshot, heartbeat_at = now()
    from carried
    where life.slot = carried.slot and life.ended_at is null and (life.heartbeat_no is null or life.heartbeat_no <= $3)
)
select
    exists (select from carried) as carries,
    exists (select from postrider.lives where slot = $1 and ended_at is null) as lives
