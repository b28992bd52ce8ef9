-- The halt of a slot, if its relay has left one.
select reason, from_lsn, to_lsn, message, decided_by_a_person, source_epoch, halted_at::text as halted_at
from postrider.halts
where slot = $1
