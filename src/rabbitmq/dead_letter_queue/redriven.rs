//! What a message is published again with.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::event::REDELIVERED;

/// The properties of the message without those that would change its way, end it, or lie about it:
/// * `CC` and `BCC` send copies to other queues;
/// * what RabbitMQ has noted of deaths and deliveries belongs to the message's earlier life, and 3.x would take it for a cycle;
/// * `expiration` would begin to count anew, and lose a message that a person wants to be handled;
/// * `user_id` has to be the publisher's own: another closes the channel.
pub(super) fn properties(found: &BasicProperties) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in found.headers().iter().flat_map(|headers| headers.inner()) {
        if !is_of_its_earlier_life(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(REDELIVERED.into(), AMQPValue::Boolean(true));
    let mut kept = BasicProperties::default().with_headers(headers);
    macro_rules! keep {
        ($($get:ident $with:ident),*) => {
            $(if let Some(value) = found.$get() {
                kept = kept.$with(value.clone());
            })*
        };
    }
    keep!(
        content_type with_content_type,
        content_encoding with_content_encoding,
        delivery_mode with_delivery_mode,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        message_id with_message_id,
        timestamp with_timestamp,
        kind with_type,
        app_id with_app_id,
        cluster_id with_cluster_id
    );
    kept
}

fn is_of_its_earlier_life(header: &str) -> bool {
    // Case counts (RabbitMQ's documentation on sender-selected distribution): `cc` is the application's own.
    const COPIES: [&str; 2] = ["CC", "BCC"];
    // `x-acquired-count` is what RabbitMQ 4.3 counts beside the failures.
    const COUNTS: [&str; 3] = ["x-death", "x-delivery-count", "x-acquired-count"];
    if COPIES.contains(&header) {
        return true;
    }
    let header = header.to_ascii_lowercase();
    COUNTS.contains(&header.as_str()) || header.starts_with("x-first-death-") || header.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_what_it_is_and_loses_what_would_mislead_it() {
        let mut headers = FieldTable::default();
        let position = AMQPValue::LongString("0/1".into());
        headers.insert("x-postrider-position".into(), position.clone());
        headers.insert("cc".into(), position.clone());
        headers.insert("Bcc".into(), position.clone());
        let never = [
            "CC",
            "BCC",
            "x-death",
            "x-first-death-queue",
            "x-last-death-reason",
            "x-delivery-count",
            "x-acquired-count",
        ];
        for name in never {
            headers.insert(name.into(), AMQPValue::LongString("x".into()));
        }
        let kept = BasicProperties::default()
            .with_content_type("a".into())
            .with_content_encoding("b".into())
            .with_delivery_mode(2)
            .with_priority(3)
            .with_correlation_id("c".into())
            .with_reply_to("d".into())
            .with_message_id("e".into())
            .with_timestamp(4)
            .with_type("f".into())
            .with_app_id("g".into())
            .with_cluster_id("h".into());
        let found = kept.clone().with_headers(headers).with_expiration("1000".into()).with_user_id("guest".into());
        let mut expected = FieldTable::default();
        for name in ["x-postrider-position", "cc", "Bcc"] {
            expected.insert(name.into(), position.clone());
        }
        expected.insert("x-postrider-redelivered".into(), AMQPValue::Boolean(true));
        assert_eq!(properties(&found), kept.with_headers(expected));
    }

    #[test]
    fn a_message_without_headers_gets_one() {
        let headers = properties(&BasicProperties::default()).headers().clone().unwrap();
        assert_eq!(headers.inner().keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-postrider-redelivered"]);
    }
}
