//! Events that are of no table: logical decoding messages, and BEGIN and END of transactions.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::super::cdc::push;
use super::super::outbox::{self, RowContext};
use super::super::route::Rule;
use super::super::values::push_json;
use super::super::{Event, HeaderValue, Joins, Poison, Position, Ticket};
use super::{ChangeBuilder, CollectionCount, KEY, KeyValues, POSITION};
use crate::config::Format;
use crate::pgoutput::message::LogicalMessage;

/// What routes match messages and transactions by, as if they were tables.
const MESSAGES: &str = "pg_catalog.message";
const TRANSACTIONS: &str = "pg_catalog.transaction";
/// In ids, where changes have the OID of their table; no table has these.
const MESSAGE_RELATION: u32 = 0;
const TRANSACTION_RELATION: u32 = u32::MAX;

impl ChangeBuilder {
    /// The event of a logical decoding message.
    pub fn logical(&self, message: &LogicalMessage, context: &RowContext, ordinal: u32, ticket: Ticket) -> Event {
        let rule = self.router.choose_table(MESSAGES);
        let topic = format!("{}.message", self.name);
        let mut body = Vec::with_capacity(512 + message.content.len() * 2);
        let out = &mut body;
        // Debezium's has milliseconds alone, where its other envelopes have three times.
        push(out, r#"{"op":"m","ts_ms":"#);
        push_json(out, &outbox::unix_micros(context.commit_time).div_euclid(1_000));
        push(out, r#","source":"#);
        let source = if rule.format == Format::Debezium { &self.debezium } else { &self.cdc };
        source.push(out, context, br#","schema":"","table":"""#, "false", ("", &[]));
        push(out, r#","transaction":null,"message":{"prefix":"#);
        push_json(out, &message.prefix);
        push(out, r#","content":"#);
        push_json(out, &STANDARD.encode(&message.content));
        push(out, "}}");
        let mut key = br#"{"prefix":"#.to_vec();
        push_json(&mut key, &message.prefix);
        push(&mut key, "}");
        let lane = outbox::cut(&format!("\u{1e}\u{1e}message\u{1f}{}", message.prefix), 1_024).into();
        // One that is not transactional has neither a time nor a transaction to tell it from one at the same LSN of another timeline.
        let number = if context.xid == 0 { content_number(message) } else { ordinal };
        self.other(rule, "m", &topic, Some(key), lane, body, context, (MESSAGE_RELATION, number), ticket)
    }

    /// `BEGIN` and `END` of a transaction.
    pub fn transaction(
        &self,
        id: &str,
        end: Option<&[CollectionCount]>,
        context: &RowContext,
        ticket: Ticket,
    ) -> Event {
        let rule = self.router.choose_table(TRANSACTIONS);
        let topic = format!("{}.transaction", self.name);
        let status = if end.is_some() { "END" } else { "BEGIN" };
        let mut body = Vec::with_capacity(256);
        let out = &mut body;
        push(out, r#"{"status":""#);
        push(out, status);
        push(out, r#"","id":"#);
        push_json(out, id);
        push(out, r#","event_count":"#);
        push_json(out, &end.map(|counts| counts.iter().map(|count| count.events).sum::<u64>()));
        push(out, r#","data_collections":"#);
        match end {
            None => push(out, "null"),
            Some(counts) => {
                for (at, count) in counts.iter().enumerate() {
                    push(out, if at == 0 { r#"[{"data_collection":"# } else { r#",{"data_collection":"# });
                    push_json(out, &format!("{}.{}", count.schema, count.table));
                    push(out, r#","event_count":"#);
                    push_json(out, &count.events);
                    push(out, "}");
                }
                push(out, if counts.is_empty() { "[]" } else { "]" });
            }
        }
        push(out, r#","ts_ms":"#);
        push_json(out, &outbox::unix_micros(context.commit_time).div_euclid(1_000));
        push(out, "}");
        let mut key = br#"{"id":"#.to_vec();
        push_json(&mut key, id);
        push(&mut key, "}");
        let lane = format!("\u{1e}\u{1e}transaction\u{1f}{}", context.commit_lsn).into();
        let number = (TRANSACTION_RELATION, u32::from(end.is_some()));
        self.other(rule, status, &topic, Some(key), lane, body, context, number, ticket)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of an event")]
    fn other(
        &self,
        rule: &Rule,
        op: &'static str,
        topic: &str,
        message_key: Option<Vec<u8>>,
        lane: Arc<str>,
        body: Vec<u8>,
        context: &RowContext,
        (relation, ordinal): (u32, u32),
        ticket: Ticket,
    ) -> Event {
        let position = Position { epoch: context.epoch, commit: context.commit_lsn, ordinal: context.ordinal, part: 0 };
        let id = self.id(context, relation, ordinal, 0);
        let mut unfit = None;
        let mut note = |result: Result<(), Poison>| {
            if let Err(poison) = result {
                unfit.get_or_insert(poison);
            }
        };
        note(outbox::fits(&body, self.max_message_bytes));
        let mut headers = vec![(Cow::Borrowed(POSITION), HeaderValue::Text(position.to_string()))];
        headers.extend(
            message_key.map(|key| (Cow::Borrowed(KEY), HeaderValue::Text(String::from_utf8_lossy(&key).into_owned()))),
        );
        let kind = topic.rsplit_once('.').map_or(topic, |(_, kind)| kind);
        let routing_key = rule.routing_key(&KeyValues {
            aggregatetype: kind,
            aggregateid: "",
            kind: op,
            version: "1",
            op,
            schema: "",
            table: kind,
            topic,
        });
        let message = self.finished(routing_key, kind.to_owned(), &id, context, headers, body, &mut note);
        let (content, remains) = match unfit {
            None => (Ok(message), None),
            Some(poison) => (Err(poison), Some(Box::new(message))),
        };
        Event {
            position,
            id,
            key: lane,
            joins: Joins::Nothing,
            route: Arc::clone(&rule.route),
            commit_time: context.commit_time,
            ticket,
            content,
            remains,
        }
    }
}

fn content_number(message: &LogicalMessage) -> u32 {
    let digest =
        Sha256::new().chain_update(&message.prefix).chain_update([0]).chain_update(&message.content).finalize();
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}
