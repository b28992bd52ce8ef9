-- Removes what halts have left, what was accepted, and what was sent again.
--
-- Lock: ACCESS EXCLUSIVE on these tables, on the view and on postrider.progress: a running relay waits and then finds them missing.

drop view if exists postrider.outbox_status;
drop function postrider.define_resend();
drop table postrider.resend;
drop table postrider.repaired;
drop table postrider.adoptions;
drop table postrider.halts;
alter table postrider.progress drop column recorded_heartbeat_no, drop column publication_state;
