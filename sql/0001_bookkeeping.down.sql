-- Removes the schema. Fails if anybody else's objects are in it.
--
-- Lock: ACCESS EXCLUSIVE on the bookkeeping tables.

drop table postrider.settings;
drop table postrider.migrations;
drop schema postrider;
