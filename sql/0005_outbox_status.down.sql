-- Removes the view of what has been delivered.
--
-- Lock: ACCESS EXCLUSIVE on the view.

drop view if exists postrider.outbox_status;
drop function postrider.define_outbox_status();
