-- What this database was migrated for.
select outbox_schema, outbox_table, publication from postrider.settings
