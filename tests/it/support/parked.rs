//! Dead letters without a relay.

use tokio_postgres::Client;

/// Puts dead letters `first` to `last` of `slot` into the table: aggregates 0 to 2 in turn, a key each.
pub(crate) async fn put(sql: &Client, slot: &str, numbers: std::ops::RangeInclusive<i32>, reason: &str, body: &[u8]) {
    let insert = r#"
        insert into postrider.dead_letters (
            slot, position, event_id, keys, aggregatetype, aggregateid, type, route, exchange, routing_key, reason, error,
            holds_key, attempts, content_type, correlation_id, headers, committed_at, body, body_bytes
        )
        select $1, format('00000000-0000000000000abc-%s-00', lpad(to_hex(number), 8, '0')), 'event-' || number,
            array['order/' || number % 3], 'order', (number % 3)::text, 'OrderPlaced', 'default', 'events',
            'order.OrderPlaced', $4, 'NO_ROUTE', true, 3, 'application/json', '"c-1"', '{"b": "x\u001b[31m", "a": 7}',
            now(), $5::bytea, length($5::bytea)
        from generate_series($2::integer, $3::integer) as number"#;
    sql.execute(insert, &[&slot, numbers.start(), numbers.end(), &reason, &body]).await.unwrap();
}
