//! A dead-letter queue of consumers: looked at without taking anything, or sent back where its messages came from.
//!
//! Messages are got one by one (`basic.get`). A consumer under a prefetch would get the same ones, but the queue would have one
//! consumer more: an exclusive one shuts it out, the single active one makes it wait or has to wait for it, and an auto-delete
//! queue goes when it ends. Nor would it be told that there are no more messages. (RabbitMQ has no `basic.get` for streams and for
//! quorum queues with a single active consumer, and says so.)
//!
//! What was got stays unacknowledged until [`DeadLetterQueue::hand_back`] gives it all back by one `basic.nack`, so that nothing
//! comes twice meanwhile. Closing the channel would give it back too, but RabbitMQ 4.3 counts that as a failed delivery.

pub mod death;
pub mod redrive;
mod redriven;

use std::io;
use std::time::Duration;

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use tokio::time::timeout;

use super::connection::{Link, deadline, reply};
use super::queues::exactly;
use super::topology::{ACCESS_REFUSED, QueueDepth, queue_depth, short};

/// With a body of many MiB on a slow line it is not one of the answers that take milliseconds.
const GET_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of bodies that are kept of one look.
const MOST_BODIES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum DeadLetterQueueError {
    #[error("queue `{queue}` does not exist in vhost `{vhost}`; check the name, and the vhost in AMQP_URL")]
    NoQueue { queue: String, vhost: String },
    #[error("{what} is refused ({words}); allow it with {command}")]
    Refused { what: String, words: String, command: String },
    #[error("{what} failed: {words}")]
    Failed { what: String, words: String },
    #[error("`{0}` is longer than 255 bytes, which no name of a queue may be")]
    NameTooLong(String),
    #[error("the broker was lost: {0}; what was not taken is in the queue again")]
    Lost(#[source] lapin::Error),
}

/// An open queue, and a channel of its own on which messages are got.
pub struct DeadLetterQueue {
    name: String,
    vhost: String,
    channel: Channel,
    depth: QueueDepth,
}

/// A message that was got and is unacknowledged.
#[derive(Debug)]
pub struct Got {
    pub delivery: Delivery,
    /// How many were ready behind it.
    pub behind: u32,
}

/// What [`DeadLetterQueue::look`] has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub messages: Vec<SeenMessage>,
    /// Why it has seen less than it was asked to.
    pub cut_short: Option<CutShort>,
}

#[derive(Debug)]
pub struct SeenMessage {
    /// Without its body unless that was asked for.
    pub delivery: Delivery,
    /// Of the body.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutShort {
    Interrupted,
    /// The bodies reached the bound of what is kept.
    Bodies,
}

impl DeadLetterQueue {
    pub async fn open(link: &Link, name: &str) -> Result<Self, DeadLetterQueueError> {
        if short(name).is_err() {
            return Err(DeadLetterQueueError::NameTooLong(name.to_owned()));
        }
        let vhost = link.vhost().to_owned();
        let judged = |error| judge("looking at the queue", name, &vhost, error);
        let Some(depth) = queue_depth(link, name).await.map_err(judged)? else {
            return Err(DeadLetterQueueError::NoQueue { queue: name.to_owned(), vhost });
        };
        let channel = link.channel().await.map_err(DeadLetterQueueError::Lost)?;
        Ok(DeadLetterQueue { name: name.to_owned(), vhost, channel, depth })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it was opened.
    pub fn depth(&self) -> QueueDepth {
        self.depth
    }

    /// The next message that nobody has; `None`: there is none.
    pub async fn get(&self) -> Result<Option<Got>, DeadLetterQueueError> {
        let Ok(name) = short(&self.name) else { return Err(DeadLetterQueueError::NameTooLong(self.name.clone())) };
        let got = timeout(GET_TIMEOUT, self.channel.basic_get(name, BasicGetOptions::default()));
        let got = got.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let got = got.map_err(|error| judge("getting a message", &self.name, &self.vhost, error))?;
        Ok(got.map(|message| Got { behind: message.message_count, delivery: message.delivery }))
    }

    /// The first `most` messages. They are unacknowledged until [`Self::hand_back`], which is the caller's duty also after an
    /// error. Bodies are dropped as they come, unless `bodies`; `interrupted` is asked before each message.
    pub async fn look(
        &self,
        most: usize,
        bodies: bool,
        mut interrupted: impl FnMut() -> bool,
    ) -> Result<Seen, DeadLetterQueueError> {
        let mut seen = Seen::default();
        let mut kept = 0;
        while seen.messages.len() < most {
            if interrupted() {
                seen.cut_short = Some(CutShort::Interrupted);
                break;
            }
            if kept >= MOST_BODIES {
                seen.cut_short = Some(CutShort::Bodies);
                break;
            }
            let Some(Got { mut delivery, .. }) = self.get().await? else { break };
            let bytes = delivery.data.len();
            if bodies {
                kept += bytes;
            } else {
                delivery.data = Vec::new();
            }
            seen.messages.push(SeenMessage { delivery, bytes });
        }
        Ok(seen)
    }

    /// Takes one message out of the queue. The broker does not answer; [`Self::hand_back`] shows that it has read it.
    async fn take(&self, delivery: &Delivery) -> Result<(), DeadLetterQueueError> {
        let ack = self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
        deadline(ack).await.map_err(DeadLetterQueueError::Lost)
    }

    /// Gives back all that was got and not taken, and waits until the broker has read that, and what was taken before. An error
    /// means that it may not have: what was taken last is in the queue again then, too.
    pub async fn hand_back(self) -> Result<(), DeadLetterQueueError> {
        // Tag 0 is everything unacknowledged (AMQP 0-9-1, "basic.nack"), also what an answer that came too late has brought.
        let options = BasicNackOptions { multiple: true, requeue: true };
        deadline(self.channel.basic_nack(0, options)).await.map_err(DeadLetterQueueError::Lost)?;
        deadline(self.channel.close(200, "OK".into())).await.map_err(DeadLetterQueueError::Lost)
    }
}

/// A refusal has the words of the broker, also one that closes the whole connection, as that of a stream does.
fn judge(what: &str, queue: &str, vhost: &str, error: lapin::Error) -> DeadLetterQueueError {
    match reply(&error) {
        Some((ACCESS_REFUSED, words)) => DeadLetterQueueError::Refused {
            what: what.to_owned(),
            words: words.to_owned(),
            command: permission_command(vhost, queue),
        },
        Some((_, words)) => DeadLetterQueueError::Failed { what: what.to_owned(), words: words.to_owned() },
        None => DeadLetterQueueError::Lost(error),
    }
}

/// Read to get and take from the queue; write on the default exchange, which permissions call `amq.default`, to redrive.
fn permission_command(vhost: &str, queue: &str) -> String {
    let queue = exactly(queue);
    format!(
        r"`rabbitmqctl set_permissions -p '{vhost}' USER '' '^amq\.default$' '{queue}'` (configure, write, read; write is for redrive)"
    )
}
