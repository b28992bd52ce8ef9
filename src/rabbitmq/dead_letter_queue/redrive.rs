//! Sends dead letters back to the queues that they came from, one at a time: got, published, confirmed, taken.
//!
//! A message leaves the dead-letter queue only when the broker has confirmed its copy and has not returned it. Whatever
//! breaks between the two leaves it in both queues, never in none.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::time::timeout;

use super::death::Death;
use super::{DeadLetterQueue, DeadLetterQueueError, Got, redriven};
use crate::rabbitmq::connection::{Change, Link, deadline, reply};
use crate::rabbitmq::topology::short;

/// Where one message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Queue(String),
    /// Its headers do not say where it was.
    Unknown,
    /// It was in this queue before: it would come again and again.
    Itself,
}

/// `to`, or where it died first.
pub fn target(properties: &lapin::BasicProperties, from: &str, to: Option<&str>) -> Target {
    match to.map(str::to_owned).or_else(|| Death::of(properties).first_queue) {
        None => Target::Unknown,
        Some(queue) if queue == from => Target::Itself,
        Some(queue) => Target::Queue(queue),
    }
}

/// Why it ended before it was through. What was in flight then is in the dead-letter queue.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("interrupted")]
    Interrupted,
    #[error("there is no queue `{0}` (the message came back as unroutable); declare it, or name another with --to")]
    NoSuchQueue(String),
    #[error("queue `{0}` refuses it (basic.nack): it is full, with overflow = reject-publish, or has no leader now")]
    Nacked(String),
    #[error(
        "queue `{queue}` did not confirm within {:.0} s; the message is still here, and may arrive there as well", .after.as_secs_f32()
    )]
    Unconfirmed { queue: String, after: Duration },
    #[error(
        "RabbitMQ takes no publishes now ({0}): a memory or disk alarm; the message is still here, and may arrive as well once that is over"
    )]
    Blocked(String),
    #[error("publishing to queue `{queue}` is refused: {words}")]
    Refused { queue: String, words: String },
    #[error("the broker was lost: {0}; the last message is still here, and may have arrived as well")]
    Lost(#[source] lapin::Error),
    #[error(transparent)]
    Source(#[from] DeadLetterQueueError),
}

#[derive(Debug, Default)]
pub struct Redriven {
    /// How many went to which queue.
    pub sent: BTreeMap<String, u64>,
    /// How many stay because nothing says where they were.
    pub unknown: u64,
    /// How many stay because they were in this very queue.
    pub itself: u64,
    pub stopped: Option<Stopped>,
}

/// Publishes into queues by their names, one message at a time. Its connection is its own: an alarm stops all that comes on a
/// connection that publishes, also acknowledgements.
pub struct Outlet {
    link: Link,
    channel: Channel,
    confirm_timeout: Duration,
}

impl Outlet {
    pub async fn open(link: Link, confirm_timeout: Duration) -> Result<Self, lapin::Error> {
        let channel = link.channel().await?;
        deadline(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Outlet { link, channel, confirm_timeout })
    }

    pub async fn close(self) {
        self.link.close().await;
    }

    /// Returns when the queue has confirmed it and it was not returned.
    async fn publish(&mut self, queue: &str, delivery: &Delivery) -> Result<(), Stopped> {
        let name = || queue.to_owned();
        let Ok(routing_key) = short(queue) else { return Err(Stopped::NoSuchQueue(name())) };
        if let Some(reason) = self.link.blocked() {
            return Err(Stopped::Blocked(reason.to_owned()));
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = redriven::properties(&delivery.properties);
        let (channel, after) = (self.channel.clone(), self.confirm_timeout);
        let confirmed = Box::pin(timeout(after, async {
            channel.basic_publish("".into(), routing_key, options, &delivery.data, properties).await?.await
        }));
        let confirmation = tokio::select! {
            biased;
            confirmed = confirmed => confirmed,
            trouble = trouble(&mut self.link) => return Err(trouble),
        };
        // Never two in flight, so a return that comes with a confirm belongs to it (`confirms` has the other case).
        match confirmation {
            Ok(Ok(Confirmation::Ack(None))) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(_)))) => Err(Stopped::NoSuchQueue(name())),
            Ok(Ok(Confirmation::Nack(_))) => Err(Stopped::Nacked(name())),
            Ok(Ok(Confirmation::NotRequested)) => {
                Err(Stopped::Refused { queue: name(), words: "confirms were not selected".to_owned() })
            }
            Ok(Err(error)) => Err(match reply(&error) {
                Some((_, words)) => Stopped::Refused { queue: name(), words: words.to_owned() },
                None => Stopped::Lost(error),
            }),
            Err(_) => Err(Stopped::Unconfirmed { queue: name(), after }),
        }
    }
}

/// What makes waiting for a confirm pointless.
async fn trouble(link: &mut Link) -> Stopped {
    loop {
        match link.changed().await {
            Change::Blocked(reason) => return Stopped::Blocked(reason),
            Change::Lost(error) => return Stopped::Lost(error),
            Change::Unblocked => {}
        }
    }
}

/// Redrives at most `most` messages, and never more than were there when it began: one that dies again at once comes back, and
/// would go round for ever. What it does not send stays unacknowledged until [`DeadLetterQueue::hand_back`], which is the
/// caller's duty. `interrupted` is asked between messages.
pub async fn redrive(
    from: &DeadLetterQueue,
    outlet: &mut Outlet,
    to: Option<&str>,
    most: Option<u64>,
    mut interrupted: impl FnMut() -> bool,
) -> Redriven {
    let mut redriven = Redriven::default();
    let mut left = most.unwrap_or(u64::MAX);
    let mut first = true;
    while left > 0 {
        if interrupted() {
            redriven.stopped = Some(Stopped::Interrupted);
            break;
        }
        let got = match from.get().await {
            Ok(Some(got)) => got,
            Ok(None) => break,
            Err(error) => {
                redriven.stopped = Some(error.into());
                break;
            }
        };
        if std::mem::take(&mut first) {
            left = left.min(u64::from(got.behind) + 1);
        }
        left -= 1;
        if let Err(stopped) = Box::pin(one(from, outlet, to, got, &mut redriven)).await {
            redriven.stopped = Some(stopped);
            break;
        }
    }
    redriven
}

async fn one(
    from: &DeadLetterQueue,
    outlet: &mut Outlet,
    to: Option<&str>,
    Got { delivery, .. }: Got,
    redriven: &mut Redriven,
) -> Result<(), Stopped> {
    let queue = match target(&delivery.properties, from.name(), to) {
        Target::Queue(queue) => queue,
        Target::Unknown => {
            redriven.unknown += 1;
            return Ok(());
        }
        Target::Itself => {
            redriven.itself += 1;
            return Ok(());
        }
    };
    outlet.publish(&queue, &delivery).await?;
    *redriven.sent.entry(queue).or_default() += 1;
    // It has arrived, so it counts as sent also if this fails: then it is in both queues.
    from.take(&delivery).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    #[test]
    fn a_message_goes_where_it_was_unless_told_otherwise_and_never_round() {
        let mut headers = FieldTable::default();
        headers.insert("x-first-death-queue".into(), AMQPValue::LongString("billing".into()));
        let dead = BasicProperties::default().with_headers(headers);
        let queue = |name: &str| Target::Queue(name.to_owned());
        assert_eq!(target(&dead, "billing.dlq", None), queue("billing"));
        assert_eq!(target(&dead, "billing.dlq", Some("other")), queue("other"));
        assert_eq!(target(&dead, "billing", None), Target::Itself);
        assert_eq!(target(&BasicProperties::default(), "billing.dlq", None), Target::Unknown);
        assert_eq!(target(&BasicProperties::default(), "billing.dlq", Some("other")), queue("other"));
    }
}
