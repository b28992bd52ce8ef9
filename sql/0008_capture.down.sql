-- Ends every capture, and removes what captures and emits.
--
-- Lock: ACCESS EXCLUSIVE on the captured tables, for an instant.

do $postrider$
declare
    capture pg_catalog.regprocedure;
begin
    for capture in
        select oid::pg_catalog.regprocedure from pg_catalog.pg_proc
        where pronamespace = 'postrider'::pg_catalog.regnamespace and proname ~ '^captured_[0-9a-f]{32}$'
    loop
        -- With its triggers, on whosever tables they are: one that were left would make writes fail.
        execute pg_catalog.format('drop function %s cascade', capture);
    end loop;
end
$postrider$;

drop view postrider.captures;
drop function postrider.emit;
drop function postrider.release;
drop function postrider.capture;
drop function postrider.drop_unused_captures;
drop function postrider.define_capture;
drop function postrider.capture_row;
drop function postrider.capture_shape;
drop function postrider.capture_check;
drop function postrider.capture_primary_key;
drop function postrider.capture_fit;
drop function postrider.capture_key;
drop function postrider.capture_image;
drop function postrider.capture_elements;
drop function postrider.capture_value;
