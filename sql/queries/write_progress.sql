-- Records how far the relay is about to acknowledge, and how far it has. Finds no row if another relay has taken over.
update postrider.progress
set intended_lsn = $3, acknowledged_lsn = $4, updated_at = now()
where slot = $1 and relay_epoch = $2
