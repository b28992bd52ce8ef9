-- What was sent again of rows that are gone says nothing any more.
delete from postrider.repaired as sent
where sent.slot = {{slot_text}} and not exists (select from {{outbox}} as here where here.{{id}}::text = sent.id);
