-- Says that a slot is about to be made. Returns nothing if the slot has a complete record already.
insert into postrider.progress as progress (slot, publication, system_identifier, database_oid, timeline, phase)
values ($1, $2, $3, $4, $5, 'creating')
on conflict (slot) do update
set publication = excluded.publication,
    system_identifier = excluded.system_identifier,
    database_oid = excluded.database_oid,
    timeline = excluded.timeline,
    updated_at = now()
where progress.phase = 'creating'
returning slot
