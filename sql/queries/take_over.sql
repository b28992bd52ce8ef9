-- Makes this relay the one that writes: a write with a lower epoch finds no row from now on.
--
-- $2: the timeline of the server; $3: the source epoch; $4: what the publication is made of now.
update postrider.progress
set relay_epoch = relay_epoch + 1,
    timeline = $2,
    source_epoch = $3,
    publication_state = $4,
    updated_at = now()
where slot = $1 and phase = 'ready'
returning relay_epoch
