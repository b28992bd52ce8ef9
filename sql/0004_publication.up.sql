-- The publication: inserts into the outbox and the heartbeat, in the name of the root where a table is partitioned.
--
-- It never publishes updates or deletes: those would make the writes of a table without a replica identity fail.
-- A publication of that name that exists already is used if it does the same, and tables that it lacks are added.
--
-- Needs CREATE on the database, and ownership of the outbox table.
-- Lock: SHARE UPDATE EXCLUSIVE on the outbox table: reads and writes go on, DDL and VACUUM wait.

do $postrider$
declare
    existing pg_catalog.pg_publication;
    outbox constant pg_catalog.regclass := {{outbox_text}}::pg_catalog.regclass;
    heartbeat constant pg_catalog.regclass := 'postrider.heartbeat'::pg_catalog.regclass;
begin
    select * into existing from pg_catalog.pg_publication where pubname = {{publication_text}}::pg_catalog.name;
    if not found then
        create publication {{publication}} for table {{outbox}}, postrider.heartbeat
            with (publish = 'insert', publish_via_partition_root = true);
        comment on publication {{publication}} is
            'What Postrider reads: inserts into the outbox and the heartbeat. Change it by ALTER, never drop and make it again while the slot exists.';
        update postrider.settings set publication_made = true, outbox_published = true;
        return;
    end if;

    if not existing.pubinsert or existing.pubupdate or existing.pubdelete or existing.pubtruncate or not existing.pubviaroot then
        raise exception 'publication "%" exists already and does not publish inserts only, by partition root', existing.pubname
            using errcode = 'object_not_in_prerequisite_state',
            hint = pg_catalog.format('If nothing else reads it: alter publication %I set (publish = ''insert'', publish_via_partition_root = true); otherwise choose another name by the setting publication.', existing.pubname);
    end if;
    if exists (
        select from pg_catalog.pg_publication_rel
        where prpubid = existing.oid and prrelid in (outbox, heartbeat) and (prqual is not null or prattrs is not null)
    ) then
        raise exception 'publication "%" exists already and leaves out rows or columns of the outbox', existing.pubname
            using errcode = 'object_not_in_prerequisite_state',
            hint = pg_catalog.format('If nothing else reads it: alter publication %I drop table %s; otherwise choose another name by the setting publication.', existing.pubname, outbox);
    end if;
    if not exists (
        select from pg_catalog.pg_publication_tables as published
        where published.pubname = existing.pubname
            and published.schemaname = {{outbox_schema_text}}::pg_catalog.name
            and published.tablename = {{outbox_table_text}}::pg_catalog.name
    ) then
        alter publication {{publication}} add table {{outbox}};
        update postrider.settings set outbox_published = true;
    end if;
    if not exists (
        select from pg_catalog.pg_publication_tables as published
        where published.pubname = existing.pubname and published.schemaname = 'postrider' and published.tablename = 'heartbeat'
    ) then
        alter publication {{publication}} add table postrider.heartbeat;
    end if;
end
$postrider$;
