-- Dead letters: of one slot ($1), and all.
select count(*) filter (where slot = $1::text) as own, count(*) as "all" from postrider.parked
