-- Writes dead letters. $1: slot, $2: relay epoch, then an array a column; old_key is null unless there are two keys. One that is
-- there already is left as it is.
--
-- The lock is one that a takeover's update waits for or that waits for the takeover: a relay that was replaced finds no row,
-- and what it has written before is committed before its successor reads. `for key share` would not do: an update that
-- changes no key passes it.
--
-- One row. carries: whether this relay still does. collides: whether a position is taken by another event: then
-- nothing is written. tall_position and
-- tall_id: of what was written just now and has more body than its row holds.
with carried as (
    select slot from postrider.progress where slot = $1 and relay_epoch = $2 for share
),
letter as (
    select *
    from unnest(
        $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
        $12::text[], $13::text[], $14::text[], $15::boolean[], $16::integer[], $17::text[], $18::text[], $19::text[],
        $20::timestamptz[], $21::bytea[], $22::bigint[]
    ) as letter (
        position, event_id, key, old_key, aggregatetype, aggregateid, type, route, exchange, routing_key,
        reason, error, holds_key, attempts, content_type, correlation_id, headers, committed_at,
        body, body_bytes
    )
),
stranger as (
    select there.position
    from letter
    join postrider.dead_letters as there on there.slot = $1 and there.position = letter.position
    where there.event_id <> letter.event_id
),
parked as (
    insert into postrider.dead_letters (
        slot, position, event_id, keys, aggregatetype, aggregateid, type, route, exchange, routing_key, reason, error,
        holds_key, attempts, content_type, correlation_id, headers, committed_at, body, body_bytes
    )
    select
        carried.slot, letter.position, letter.event_id, array_remove(array[letter.key, letter.old_key], null),
        letter.aggregatetype, letter.aggregateid, letter.type, letter.route, letter.exchange, letter.routing_key,
        letter.reason, letter.error, letter.holds_key, letter.attempts, letter.content_type, letter.correlation_id::json,
        letter.headers::json, letter.committed_at, letter.body, letter.body_bytes
    from carried
    cross join letter
    where not exists (select from stranger)
    order by letter.position
    on conflict (slot, position) do nothing
    returning id, position, body_bytes
),
tall as (
    select id, position from parked where body_bytes > 1048576
)
select
    exists (select from carried) as carries,
    exists (select from stranger) as collides,
    array(select tall.position from tall order by tall.position) as tall_position,
    array(select tall.id from tall order by tall.position) as tall_id
