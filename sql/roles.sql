-- The role that the relay connects as, and exactly what it may do. Run it in the database of the outbox, after the
-- migrations, as an administrator. It can be run again, and in every database of the cluster.
--
-- It sets no password. In psql, as the last step, with the name of the role:  \password postrider
--
-- REPLICATION is a right over the whole cluster: whoever has this password can read all of it. Let it in from the relay's
-- host only, over TLS. In pg_hba.conf, with the name of the database (the word "replication" there does not mean
-- logical replication):
--
--     hostssl  shop  postrider  10.0.0.5/32  scram-sha-256
--
-- Managed services:
--   Amazon RDS and Aurora   set rds.logical_replication = 1 in the parameter group and reboot. The right to replicate is
--                           membership in rds_replication, which this script grants where that role exists.
--   Google Cloud SQL        set the flags cloudsql.logical_decoding = on (and restart), and run this script as a member
--                           of cloudsqlsuperuser.
--   Azure                   set the server parameter wal_level = logical and restart, and run this script as the
--                           server's administrator.

begin;

do $postrider$
begin
    begin
        if not exists (select from pg_catalog.pg_roles where rolname = {{role_text}}::pg_catalog.name) then
            create role {{role}} login replication;
        elsif exists (
            select from pg_catalog.pg_roles where rolname = {{role_text}}::pg_catalog.name and not (rolcanlogin and rolreplication)
        ) then
            alter role {{role}} login replication;
        end if;
    exception when insufficient_privilege then
        -- Not a superuser. Where the service has a role that stands for the right, membership in it is as good.
        if not exists (select from pg_catalog.pg_roles where rolname = 'rds_replication') then
            raise;
        end if;
        if not exists (select from pg_catalog.pg_roles where rolname = {{role_text}}::pg_catalog.name) then
            create role {{role}} login;
        end if;
        grant rds_replication to {{role}};
    end;
    execute pg_catalog.format('grant connect on database %I to %I', pg_catalog.current_database(), {{role_text}}::pg_catalog.text);
end
$postrider$;

-- The relay's own state.
grant usage on schema postrider to {{role}};
grant select on postrider.migrations, postrider.settings, postrider.outbox_status to {{role}};
grant select, insert, update on postrider.progress, postrider.lives to {{role}};
grant select, insert, update, delete on postrider.halts to {{role}};
grant select, insert, delete on postrider.heartbeat to {{role}};
grant select, insert, update, delete on postrider.dead_letters to {{role}};
grant select, insert on postrider.dead_letter_chunks to {{role}};
grant select, insert, update on postrider.snapshots to {{role}};

-- Looking after the dead letters: postrider dlq, with the relay's own role. Another role that is to look after them, without
-- being able to read what is in them, needs usage on the schema and the following without dead_letter_body.
grant select, update (mark, marked_at, marked_by) on postrider.parked to {{role}};
grant execute on function postrider.mark_dead_letters, postrider.redrive, postrider.discard to {{role}};
grant execute on function postrider.dead_letter_body to {{role}};

-- Getting over a halt: postrider adopt and postrider repair, with the relay's own role.
grant select, insert on postrider.adoptions to {{role}};
grant select, insert, update, delete on postrider.repaired to {{role}};
grant select, insert, delete on postrider.resend to {{role}};

-- Reading the outbox: how many rows were committed before the slot existed, and which transactions wrote them. The events
-- themselves come from the write-ahead log. The relay runs without these two, and says what it could not count; repair needs them.
grant usage on schema {{outbox_schema}} to {{role}};
grant select on {{outbox}} to {{role}};

-- Captured tables (source.tables): nothing. Their changes come from the write-ahead log too. Only a snapshot reads them: where
-- source.snapshot is "initial", grants of select follow below.

commit;

-- Applications need no more than:  grant insert on the outbox table to the application's role;
