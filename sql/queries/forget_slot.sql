-- Ends the life of a slot that was dropped on purpose, and removes its record: a later one of its name begins anew.
with ended as (
    update postrider.lives set ended_at = now() where slot = $1::text and ended_at is null
),
halted as (
    delete from postrider.halts where slot = $1::text
)
delete from postrider.progress where slot = $1::text
