-- Makes this relay the one that writes: a write with a lower epoch finds no row from now on.
update postrider.progress set relay_epoch = relay_epoch + 1, updated_at = now() where slot = $1 and phase = 'ready'
returning relay_epoch
