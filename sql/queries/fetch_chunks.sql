-- What bodies have beyond their first MiB, piece by piece. $1: ids of dead letters.
select dead_letter, data
from postrider.dead_letter_chunks
where dead_letter = any ($1)
order by dead_letter, no
