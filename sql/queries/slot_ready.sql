-- Completes the record of an announced slot that exists now. Returns nothing if that has been done before.
update postrider.progress
set phase = 'ready', intended_lsn = $2, acknowledged_lsn = $2, updated_at = now()
where slot = $1 and phase = 'creating'
returning slot
