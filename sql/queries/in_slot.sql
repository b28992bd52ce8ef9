-- The transactions (32 bits) with rows of the publication that a slot still has to send. $1: slot, $2: publication. Decodes all of them.
select distinct change.xid::text
from pg_catalog.pg_logical_slot_peek_binary_changes($1::text::name, null, null, 'proto_version', '1', 'publication_names', $2::text) as change
