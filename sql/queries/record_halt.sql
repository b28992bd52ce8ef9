-- Leaves a halt for `status` and `adopt`. One that a person has to decide stays as it was.
insert into postrider.halts as halt (slot, reason, from_lsn, to_lsn, message, decided_by_a_person, source_epoch)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (slot) do update
set reason = excluded.reason,
    from_lsn = excluded.from_lsn,
    to_lsn = excluded.to_lsn,
    message = excluded.message,
    decided_by_a_person = excluded.decided_by_a_person,
    source_epoch = greatest(halt.source_epoch, excluded.source_epoch),
    halted_at = now()
where not halt.decided_by_a_person and (halt.reason, halt.from_lsn) is distinct from (excluded.reason, excluded.from_lsn)
