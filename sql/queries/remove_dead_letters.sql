-- Takes out dead letters; their chunks go with them. $1: slot, $2: relay epoch, $3: positions.
--
-- Rows are locked in the order of positions, as by whoever marks them, so that neither waits for the other in a circle.
-- Result: whether this relay still carries (see park.sql for its lock).
with carried as (
    select slot from postrider.progress where slot = $1 and relay_epoch = $2 for share
),
locked as (
    select letter.id
    from carried
    join postrider.dead_letters as letter on letter.slot = carried.slot
    where letter.position = any ($3)
    order by letter.position
    for update of letter
),
removed as (
    delete from postrider.dead_letters as letter using locked where letter.id = locked.id
)
select exists (select from carried) as carries
