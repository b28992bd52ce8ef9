-- Rows of the outbox that are not surely delivered. Reads the whole table.
select count(*) as count from postrider.outbox_status where state <> 'delivered'
