-- The newest migration that this database has.
select coalesce(max(version), 0) from postrider.migrations
