-- The dead letters: events that could not be delivered, with all that is needed to deliver them later, and how people mark
-- what is to become of them.
--
-- Lock: none on anything that exists.

-- Bodies are stored as any other value, compressed where that helps (which is PostgreSQL's default): most are JSON, and what
-- is written while the broker is in trouble should be as little as possible. A row of less than two kilobytes is not touched.
create table postrider.dead_letters (
    id bigint generated always as identity,
    slot text not null,
    position text collate "C" not null,
    event_id text not null,
    keys text[] not null,
    aggregatetype text,
    aggregateid text,
    type text,
    route text not null,
    exchange text not null,
    routing_key text not null,
    reason text not null,
    error text not null,
    holds_key boolean not null,
    attempts integer not null,
    content_type text,
    correlation_id json,
    headers json not null,
    committed_at timestamptz not null,
    parked_at timestamptz not null default now(),
    last_attempt_at timestamptz,
    mark text,
    marked_at timestamptz,
    marked_by text,
    body bytea not null,
    body_bytes bigint not null,
    constraint dead_letters_pkey primary key (id),
    constraint dead_letters_position_is_unique unique (slot, position),
    constraint dead_letters_position_is_one check (position ~ '^[0-9a-f]{8}-[0-9a-f]{16}-[0-9a-f]{8}-[0-9a-f]{2}$'),
    constraint dead_letters_has_a_key check (cardinality(keys) > 0 and array_position(keys, null) is null),
    constraint dead_letters_reason_is_known check (reason in (
        'unroutable', 'nacked', 'timed_out', 'exchange_missing', 'access_refused', 'behind',
        'too_large', 'bad_property', 'headers_too_large', 'not_utf8', 'refused'
    )),
    constraint dead_letters_attempts_not_negative check (attempts >= 0),
    constraint dead_letters_mark_is_known check (mark in ('redrive', 'discard')),
    constraint dead_letters_mark_has_a_time check ((mark is null) = (marked_at is null)),
    constraint dead_letters_body_starts_here check (length(body) = least(body_bytes, 1048576))
);
create index dead_letters_marked_idx on postrider.dead_letters (slot, position) where mark is not null;
comment on table postrider.dead_letters is
    'Events that could not be delivered, until the way is free or a person has decided. Postrider writes it; people read postrider.parked and mark by postrider.redrive and postrider.discard.';
comment on column postrider.dead_letters.id is 'What people call it by.';
comment on column postrider.dead_letters.slot is 'Replication slot that it came through.';
comment on column postrider.dead_letters.position is
    'Place in the order of the slot''s events (x-postrider-position); sorts as text.';
comment on column postrider.dead_letters.event_id is 'Id of the event: the message id.';
comment on column postrider.dead_letters.keys is 'All its ordering keys: later events of each wait behind it.';
comment on column postrider.dead_letters.aggregatetype is 'Kind of the thing that changed, if known.';
comment on column postrider.dead_letters.aggregateid is 'Which thing changed, if known.';
comment on column postrider.dead_letters.type is 'What happened, if known.';
comment on column postrider.dead_letters.route is 'Route of the configuration that it took.';
comment on column postrider.dead_letters.exchange is 'Exchange that it is for.';
comment on column postrider.dead_letters.routing_key is 'Its routing key.';
comment on column postrider.dead_letters.reason is
    'Why it is here. behind: an earlier event of its key is. too_large, bad_property, headers_too_large, not_utf8, refused: it waits for a person. All others are released when the way is free.';
comment on column postrider.dead_letters.error is 'The same in words, perhaps the broker''s.';
comment on column postrider.dead_letters.holds_key is
    'Whether later events of its keys wait behind it. False: parked by on_poison = skip.';
comment on column postrider.dead_letters.attempts is 'How often it was published.';
comment on column postrider.dead_letters.content_type is 'Content type of the body; null where there was no message.';
-- Escaped JSON, because a text of this database may be unable to hold what a JSON string of the application says: U+0000,
-- or a character that its encoding does not have.
comment on column postrider.dead_letters.correlation_id is 'AMQP correlation id, a JSON string; null if it has none.';
comment on column postrider.dead_letters.headers is 'AMQP headers in their order: text, integers and booleans.';
comment on column postrider.dead_letters.committed_at is 'When its transaction was committed.';
comment on column postrider.dead_letters.parked_at is 'When it was put here.';
comment on column postrider.dead_letters.last_attempt_at is 'When it was last published from here, and refused again.';
comment on column postrider.dead_letters.mark is
    'What a person has asked for: redrive (publish it) or discard (take it out). The relay that carries the slot does it.';
comment on column postrider.dead_letters.marked_at is 'When it was marked.';
comment on column postrider.dead_letters.marked_by is 'Role that marked it.';
comment on column postrider.dead_letters.body is
    'The first MiB of the body; postrider.dead_letter_body(id) gives all of it.';
comment on column postrider.dead_letters.body_bytes is 'Size of the whole body.';
comment on index postrider.dead_letters_marked_idx is 'What the relay looks for.';

create table postrider.dead_letter_chunks (
    dead_letter bigint not null,
    no integer not null,
    data bytea not null,
    constraint dead_letter_chunks_pkey primary key (dead_letter, no),
    constraint dead_letter_chunks_belong foreign key (dead_letter) references postrider.dead_letters (id) on delete cascade,
    constraint dead_letter_chunks_are_small check (length(data) between 1 and 1048576)
);
comment on table postrider.dead_letter_chunks is 'What a body has beyond its first MiB, in pieces of one MiB.';
comment on column postrider.dead_letter_chunks.dead_letter is 'Whose body.';
comment on column postrider.dead_letter_chunks.no is 'Place in the body, from 1.';
comment on column postrider.dead_letter_chunks.data is 'The bytes.';

-- Without the contents, so that whoever looks after the queues need not be able to read them.
create view postrider.parked as
    select
        letter.id, letter.slot, letter.position, letter.event_id, letter.keys, letter.aggregatetype, letter.aggregateid,
        letter.type, letter.route, letter.exchange, letter.routing_key, letter.reason, letter.error, letter.holds_key, letter.attempts,
        letter.body_bytes, letter.committed_at, letter.parked_at, letter.last_attempt_at, letter.mark, letter.marked_at,
        letter.marked_by
    from postrider.dead_letters as letter;
comment on view postrider.parked is 'The dead letters without their contents.';
comment on column postrider.parked.id is 'What people call it by.';
comment on column postrider.parked.slot is 'Replication slot that it came through.';
comment on column postrider.parked.position is 'Place in the order of the slot''s events; sorts as text.';
comment on column postrider.parked.event_id is 'Id of the event: the message id.';
comment on column postrider.parked.keys is 'All its ordering keys: later events of each wait behind it.';
comment on column postrider.parked.aggregatetype is 'Kind of the thing that changed, if known.';
comment on column postrider.parked.aggregateid is 'Which thing changed, if known.';
comment on column postrider.parked.type is 'What happened, if known.';
comment on column postrider.parked.route is 'Route of the configuration that it took.';
comment on column postrider.parked.exchange is 'Exchange that it is for.';
comment on column postrider.parked.routing_key is 'Its routing key.';
comment on column postrider.parked.reason is 'Why it is here.';
comment on column postrider.parked.error is 'The same in words, perhaps the broker''s.';
comment on column postrider.parked.holds_key is 'Whether later events of its keys wait behind it.';
comment on column postrider.parked.attempts is 'How often it was published.';
comment on column postrider.parked.body_bytes is 'Size of the body.';
comment on column postrider.parked.committed_at is 'When its transaction was committed.';
comment on column postrider.parked.parked_at is 'When it was put here.';
comment on column postrider.parked.last_attempt_at is 'When it was last published from here, and refused again.';
comment on column postrider.parked.mark is 'What a person has asked for: redrive or discard.';
comment on column postrider.parked.marked_at is 'When it was marked.';
comment on column postrider.parked.marked_by is 'Role that marked it.';

create function postrider.dead_letter_body(id bigint) returns bytea language sql stable set search_path = '' as $postrider$
    select letter.body || coalesce(
        (
            select pg_catalog.string_agg(chunk.data, ''::bytea order by chunk.no)
            from postrider.dead_letter_chunks as chunk
            where chunk.dead_letter = letter.id
        ),
        ''::bytea
    )
    from postrider.dead_letters as letter
    where letter.id = dead_letter_body.id
$postrider$;
comment on function postrider.dead_letter_body(bigint) is 'The whole body of a dead letter; null if there is no such one.';

create function postrider.mark_dead_letters(
    new_mark text,
    ids bigint[],
    slot text,
    reason text,
    route text,
    exchange text,
    routing_key text,
    aggregatetype text,
    aggregateid text,
    type text,
    older_than interval,
    newer_than interval,
    everything boolean,
    dry_run boolean
) returns setof postrider.parked language plpgsql set search_path = '' as $postrider$
#variable_conflict use_column
declare
    -- Of the arguments that narrow the choice; the slot is not one of them, because most databases have one slot.
    filters constant integer := pg_catalog.num_nonnulls(
        ids, reason, route, exchange, routing_key, aggregatetype, aggregateid, type, older_than, newer_than
    );
    chosen bigint[];
begin
    if filters = 0 and everything is not true then
        raise exception 'nothing says which dead letters are meant'
            using hint = 'Give at least one of ids, reason, route, exchange, routing_key, aggregatetype, aggregateid, type, older_than, newer_than; or say that all of them are meant by everything => true.';
    end if;
    if filters > 0 and everything then
        raise exception 'everything and a filter exclude each other' using hint = 'Leave out one of the two.';
    end if;
    chosen := array(
        select parked.id
        from postrider.parked as parked
        where (mark_dead_letters.ids is null or parked.id = any (mark_dead_letters.ids))
            and (mark_dead_letters.slot is null or parked.slot = mark_dead_letters.slot)
            and (mark_dead_letters.reason is null or parked.reason = mark_dead_letters.reason)
            and (mark_dead_letters.route is null or parked.route = mark_dead_letters.route)
            and (mark_dead_letters.exchange is null or parked.exchange = mark_dead_letters.exchange)
            and (mark_dead_letters.routing_key is null or parked.routing_key = mark_dead_letters.routing_key)
            and (mark_dead_letters.aggregatetype is null or parked.aggregatetype = mark_dead_letters.aggregatetype)
            and (mark_dead_letters.aggregateid is null or parked.aggregateid = mark_dead_letters.aggregateid)
            and (mark_dead_letters.type is null or parked.type = mark_dead_letters.type)
            and (mark_dead_letters.older_than is null or parked.parked_at < pg_catalog.now() - mark_dead_letters.older_than)
            and (mark_dead_letters.newer_than is null or parked.parked_at > pg_catalog.now() - mark_dead_letters.newer_than)
    );
    if dry_run is not true then
        -- Locked in the order in which the relay locks them, so that neither can wait for the other in a circle.
        perform
        from postrider.parked as parked
        where parked.id = any (chosen)
        order by parked.slot, parked.position
        for no key update;
        update postrider.parked as parked
        set mark = mark_dead_letters.new_mark, marked_at = pg_catalog.now(), marked_by = session_user
        where parked.id = any (chosen);
    end if;
    return query
        select parked.*
        from postrider.parked as parked
        where parked.id = any (chosen)
        order by parked.slot, parked.position;
end
$postrider$;
comment on function postrider.mark_dead_letters(
    text, bigint[], text, text, text, text, text, text, text, text, interval, interval, boolean, boolean
) is 'What postrider.redrive and postrider.discard have in common.';

create function postrider.redrive(
    ids bigint[] default null,
    slot text default null,
    reason text default null,
    route text default null,
    exchange text default null,
    routing_key text default null,
    aggregatetype text default null,
    aggregateid text default null,
    type text default null,
    older_than interval default null,
    newer_than interval default null,
    everything boolean default false,
    dry_run boolean default false
) returns setof postrider.parked language sql set search_path = '' as $postrider$
    select * from postrider.mark_dead_letters(
        'redrive', ids, slot, reason, route, exchange, routing_key, aggregatetype, aggregateid, type, older_than, newer_than,
        everything, dry_run
    )
$postrider$;
comment on function postrider.redrive(
    bigint[], text, text, text, text, text, text, text, text, interval, interval, boolean, boolean
) is
    'Marks dead letters to be published again and returns them; with dry_run it only returns those that it would mark. The relay that carries the slot publishes them, each once those before it of its key are gone. Ages are counted from parked_at.';

create function postrider.discard(
    ids bigint[] default null,
    slot text default null,
    reason text default null,
    route text default null,
    exchange text default null,
    routing_key text default null,
    aggregatetype text default null,
    aggregateid text default null,
    type text default null,
    older_than interval default null,
    newer_than interval default null,
    everything boolean default false,
    dry_run boolean default false
) returns setof postrider.parked language sql set search_path = '' as $postrider$
    select * from postrider.mark_dead_letters(
        'discard', ids, slot, reason, route, exchange, routing_key, aggregatetype, aggregateid, type, older_than, newer_than,
        everything, dry_run
    )
$postrider$;
comment on function postrider.discard(
    bigint[], text, text, text, text, text, text, text, text, interval, interval, boolean, boolean
) is
    'Marks dead letters to be taken out without being published and returns them; with dry_run it only returns those that it would mark. The relay that carries the slot takes them out. Ages are counted from parked_at.';

-- They run with the rights of whoever calls them; still, nobody calls them by default.
revoke all on function
    postrider.dead_letter_body,
    postrider.mark_dead_letters,
    postrider.redrive,
    postrider.discard
from public;

-- What is parked must not come back through the slot.
do $postrider$
declare
    publishing pg_catalog.pg_publication;
begin
    select publication.* into publishing
    from postrider.settings as here
    join pg_catalog.pg_publication as publication on publication.pubname = here.publication
    join pg_catalog.pg_publication_tables as published on published.pubname = publication.pubname
    where published.schemaname = 'postrider' and published.tablename in ('dead_letters', 'dead_letter_chunks')
    limit 1;
    if found then
        raise exception 'publication "%" publishes every table of the schema postrider, and each dead letter would come back through it', publishing.pubname
            using errcode = 'object_not_in_prerequisite_state',
            hint = 'Choose another name by the setting publication: the migrations make one for the outbox and the heartbeat alone.';
    end if;
end
$postrider$;
