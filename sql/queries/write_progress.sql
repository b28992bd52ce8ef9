-- Records how far the relay is about to acknowledge, and how far it has. Finds no row if another relay has taken over.
--
-- $5: the newest heartbeat before $3, if there has been one in this session.
update postrider.progress
set intended_lsn = $3,
    acknowledged_lsn = $4,
    recorded_heartbeat_no = greatest(recorded_heartbeat_no, $5::bigint),
    updated_at = now()
where slot = $1 and relay_epoch = $2
