-- The publications of captured tables: `source.publication` has those whose replica identity is proven, with all changes;
-- `source.publication_inserts` has the others, with inserts and truncates, which no publication can make fail.
--
-- The patterns of source.tables are resolved here, each time it is run. It can be run again whenever tables have changed.
-- Nothing is ever dropped and made again: the slot would miss what was written meanwhile.
--
-- Needs CREATE on the database where a publication is to be made, and ownership of the publications and of the tables.
-- Lock: SHARE UPDATE EXCLUSIVE on the tables that are added or dropped: reads and writes go on, DDL and VACUUM wait.

do $postrider$
declare
    planned record;
begin
    for planned in
        {{plan}}
    loop
        if planned.problem is not null then
            raise exception '%', planned.problem using errcode = 'object_not_in_prerequisite_state', hint = planned.hint;
        end if;
        if planned.statement is not null then
            execute planned.statement;
        end if;
        if planned.said is not null then
            raise notice '%', planned.said;
        end if;
    end loop;
end
$postrider$;
