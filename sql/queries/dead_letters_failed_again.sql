-- Dead letters that were published and refused again stay. $1: slot, $2: relay epoch, $3: positions, $4: reasons, $5: errors.
--
-- One without a reason was not published, because it could not be read: it keeps the one that it has.
-- A mark that asks for something else than this publish is left. Locks and result: as in remove_dead_letters.sql.
with carried as (
    select slot from postrider.progress where slot = $1 and relay_epoch = $2 for share
),
failed as (
    select * from unnest($3::text[], $4::text[], $5::text[]) as failed (position, reason, error)
),
locked as (
    select letter.id
    from carried
    join postrider.dead_letters as letter on letter.slot = carried.slot
    where letter.position = any ($3)
    order by letter.position
    for no key update of letter
),
noted as (
    update postrider.dead_letters as letter
    set attempts = letter.attempts + (failed.reason is not null)::integer,
        last_attempt_at = case when failed.reason is null then letter.last_attempt_at else now() end,
        reason = coalesce(failed.reason, letter.reason),
        error = failed.error,
        mark = nullif(letter.mark, 'redrive'),
        marked_at = case when letter.mark <> 'redrive' then letter.marked_at end,
        marked_by = case when letter.mark <> 'redrive' then letter.marked_by end
    from locked, failed
    where letter.id = locked.id and failed.position = letter.position
)
select exists (select from carried) as carries
