-- First statements of the one transaction of all migrations.
--
-- Lock: an advisory lock of this database that only migrations take, so that a second one waits for the first; then five
-- seconds at most for any other lock, so that nobody queues for long behind a migration that waits.

set local search_path = '';
set local client_min_messages = warning;
set local lock_timeout = '60s';
select pg_catalog.pg_advisory_xact_lock(8101821198635721829);
set local lock_timeout = '5s';
