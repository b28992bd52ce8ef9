-- Ends the open life of a slot, if it has one.
update postrider.lives set ended_at = now() where slot = $1 and ended_at is null
