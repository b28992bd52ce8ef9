//! One publishing channel: the attempts on it, their confirms, and what rule R2 makes of them.
//!
//! Confirms are not awaited one by one: all pending ones are polled at each wake, which costs a quarter of the CPU and
//! gives the [`Judge`] the order of events that its proof needs.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tracing::error;

use super::connection::{Channels, deadline};
use crate::confirms::{AttemptId, Decided, Judge, JudgeError, Outcome};
use crate::event::{Event, HeaderValue, Message, Poison, PoisonReason, Position};
use crate::faults::{self, Bug};

/// The header by which returned messages are matched (rule R2).
const POSITION: &str = "x-postrider-position";
/// When this publish was made, in milliseconds since the Unix epoch, by the relay's clock. With the next one all that differs
/// between two publishes of the same event.
const SENT_AT: &str = "x-postrider-sent-at";
/// Which relay made it: `relay_epoch` of its `/status`, which each takeover raises.
const RELAY_EPOCH: &str = "x-postrider-relay-epoch";
/// Persistent (AMQP 0-9-1, "basic" class).
const PERSISTENT: u8 = 2;
/// A content header is one frame: 8 bytes around it, 14 of its own, and the fixed properties with their lengths.
const FRAME_OVERHEAD: usize = 8 + 14 + 64;

/// With more publishes pending than this, sweeps rest: see [`rest`].
const MANY: usize = 100;
/// Longest rest between two sweeps.
const LONGEST_REST: Duration = Duration::from_millis(16);

/// How long confirms are let pile up before the next sweep. A sweep polls all pending publishes, at a quarter of a microsecond each (a
/// pending promise of lapin's moves half a kilobyte), which for each of a few confirms would cost more than all the rest of a
/// publish. A window of 1,000 that is full rests for 16 ms, less than a broker needs to confirm half of it. One that is not
/// full waits for confirms of its keys rather than for room, so that it rests for much less: 4 ms at 500, 0.2 ms at 100.
fn rest(pending: usize) -> Duration {
    const NANOS: u64 = 16;
    let pending = u64::try_from(pending).unwrap_or(u64::MAX);
    Duration::from_nanos(pending.saturating_mul(pending).saturating_mul(NANOS)).min(LONGEST_REST)
}

/// A channel in confirm mode and the publishes on it that have no confirm yet.
pub(super) struct Wire {
    channel: Channel,
    frame_max: usize,
    judge: Judge,
    attempts: Vec<Attempt>,
    /// Why the channel is gone, in the broker's words if it gave any.
    failure: Option<lapin::Error>,
    /// When the broker last confirmed or refused anything.
    last_answer: Option<Instant>,
    suspect: Option<Suspect>,
    swept_at: Option<Instant>,
}

/// A publish that may close the channel, and goes alone for that.
enum Suspect {
    /// It is not in the socket yet.
    Sending(Position),
    /// The broker has been asked something that it answers only if it has handled the publish and not closed the channel.
    Asked(Position, Pin<Box<dyn Future<Output = Result<(), lapin::Error>> + Send>>),
    /// It did not close the channel.
    Acquitted(Position),
}

struct Attempt {
    id: AttemptId,
    position: Position,
    stage: Stage,
}

type Publishing = Pin<Box<dyn Future<Output = Result<PublisherConfirm, lapin::Error>> + Send>>;

/// lapin's two futures for one publish: the first is done when its frames are in the socket.
enum Stage {
    Publishing(Publishing),
    Confirming(PublisherConfirm),
}

/// Why an event was not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    #[error(transparent)]
    Poison(#[from] Poison),
    #[error(transparent)]
    Judge(#[from] JudgeError),
}

impl Wire {
    pub(super) async fn open(channels: &Channels, frame_max: u32) -> Result<Self, lapin::Error> {
        let channel = channels.open().await?;
        deadline(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Wire {
            channel,
            frame_max: usize::try_from(frame_max).unwrap_or(usize::MAX),
            judge: Judge::new(),
            attempts: Vec::new(),
            failure: None,
            last_answer: None,
            suspect: None,
            swept_at: None,
        })
    }

    /// Publishes the event now. What becomes of it, [`Self::poll_sweep`] tells.
    pub(super) fn publish(&mut self, event: &Event, relay_epoch: i64) -> Result<(), PublishError> {
        let message = event.content.as_ref().map_err(Clone::clone)?;
        let sending = Sending { relay_epoch, frame_max: self.frame_max };
        let publish = publish(&self.channel, event, message, sending)?;
        let id = self.judge.published(event.position)?;
        let mut attempt = Attempt { id, position: event.position, stage: Stage::Publishing(publish) };
        // The first poll hands the frames to lapin. Whatever it answers, the next sweep polls again with a real waker:
        // a result must not be lost here, so that of a publish which failed at once is kept as it is.
        if let Stage::Publishing(future) = &mut attempt.stage {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => {}
                Poll::Ready(Ok(confirm)) => attempt.stage = Stage::Confirming(confirm),
                Poll::Ready(Err(error)) => {
                    self.judge.outcome(id, Outcome::Failed);
                    self.fail(error);
                    return Ok(());
                }
            }
        }
        self.attempts.push(attempt);
        Ok(())
    }

    /// When to sweep again. With many publishes pending, confirms are let pile up for a moment: a sweep polls them all, and a
    /// broker that confirms one by one would have it done for each, which costs more than all the rest of a publish.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        let pending = self.attempts.len();
        self.swept_at.filter(|_| pending > MANY).map(|at| at + rest(pending))
    }

    /// Polls every pending confirm and appends the verdicts. Ready when there may be some, when a suspect has been acquitted,
    /// when the channel has failed, or when it is to be called again after a rest.
    pub(super) fn poll_sweep(&mut self, cx: &mut Context<'_>, decided: &mut Vec<Decided>) -> Poll<()> {
        self.swept_at = Some(Instant::now());
        // While confirms keep coming to a full window the clock says when to sweep: nobody is woken for each of them, and
        // what needs another pass has it after the rest.
        let flowing = self.attempts.len() > MANY && self.pass(&mut Context::from_waker(Waker::noop()), false);
        let mut again = false;
        while !flowing && self.failure.is_none() {
            self.pass(cx, again);
            if self.failure.is_none() {
                self.judge.verdicts(decided);
                again = self.judge.needs_another_pass();
                if !again {
                    break;
                }
            }
        }
        if self.failure.is_some() {
            // lapin fails the attempts one by one, so some of what was confirmed before may not have been seen yet.
            self.pass(cx, false);
            self.judge.channel_closed();
            self.judge.verdicts(decided);
            return Poll::Ready(());
        }
        self.judge.verdicts(decided);
        self.poll_suspect(cx);
        let acquitted = matches!(self.suspect, Some(Suspect::Acquitted(_)));
        if flowing || acquitted || !decided.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The last look at a channel whose connection is lost: what was confirmed before counts.
    pub(super) fn last_sweep(&mut self, decided: &mut Vec<Decided>) {
        let mut cx = Context::from_waker(Waker::noop());
        self.pass(&mut cx, false);
        self.pass(&mut cx, false);
        self.judge.channel_closed();
        self.judge.verdicts(decided);
    }

    /// Why the channel is gone.
    pub(super) fn failure(&self) -> Option<&lapin::Error> {
        self.failure.as_ref()
    }

    /// A return came that belongs to nothing on this channel: what its confirms say means nothing any more.
    pub(super) fn is_confused(&self) -> bool {
        self.judge.unmatched_returns() > 0
    }

    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.last_answer
    }

    /// The publish of this event, made just now, goes alone: find out whether it closes the channel without waiting for its
    /// confirm, which a stuck queue may never give.
    pub(super) fn suspect(&mut self, position: Position) {
        self.suspect = Some(Suspect::Sending(position));
    }

    /// The suspect that the broker has acquitted, once.
    pub(super) fn take_acquitted(&mut self) -> Option<Position> {
        match self.suspect {
            Some(Suspect::Acquitted(position)) => {
                self.suspect = None;
                Some(position)
            }
            _ => None,
        }
    }

    /// AMQP handles the methods of a channel in order, and selecting confirms once more changes nothing.
    fn poll_suspect(&mut self, cx: &mut Context<'_>) {
        if let Some(Suspect::Sending(position)) = self.suspect {
            // Not before the publish is in the socket: lapin sends other methods before publishes that still wait.
            match self.attempts.iter().find(|attempt| attempt.position == position).map(|attempt| &attempt.stage) {
                Some(Stage::Publishing(_)) => {}
                Some(Stage::Confirming(_)) => {
                    let channel = self.channel.clone();
                    let question =
                        async move { deadline(channel.confirm_select(ConfirmSelectOptions::default())).await };
                    self.suspect = Some(Suspect::Asked(position, Box::pin(question)));
                }
                None => self.suspect = None,
            }
        }
        if let Some(Suspect::Asked(position, question)) = &mut self.suspect
            && let Poll::Ready(answer) = question.as_mut().poll(cx)
        {
            // Without an answer its confirm decides, or the failure of the channel.
            self.suspect = answer.is_ok().then_some(Suspect::Acquitted(*position));
        }
    }

    /// Polls the pending attempts; `again`: only those that the newest outcome was seen after. Whether any has ended.
    fn pass(&mut self, cx: &mut Context<'_>, again: bool) -> bool {
        let Wire { judge, attempts, failure, last_answer, .. } = self;
        let (before, now) = (attempts.len(), Instant::now());
        attempts.retain_mut(|attempt| {
            if again && !judge.is_behind(attempt.id) {
                return true;
            }
            let Poll::Ready(result) = attempt.poll(cx) else {
                judge.pending(attempt.id);
                return true;
            };
            let outcome = match result {
                Ok(Confirmation::Ack(message)) => carried(message).map(Outcome::Ack),
                Ok(Confirmation::Nack(message)) => carried(message).map(Outcome::Nack),
                // Confirms were selected before the first publish.
                Ok(Confirmation::NotRequested) => Err(lapin::ErrorKind::FutureCompleted.into()),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(outcome) => {
                    *last_answer = Some(now);
                    judge.outcome(attempt.id, outcome);
                }
                Err(error) => {
                    judge.outcome(attempt.id, Outcome::Failed);
                    keep_the_cause(failure, error);
                }
            }
            false
        });
        attempts.len() < before
    }

    fn fail(&mut self, error: lapin::Error) {
        keep_the_cause(&mut self.failure, error);
    }
}

impl Attempt {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Confirmation, lapin::Error>> {
        loop {
            match &mut self.stage {
                Stage::Publishing(future) => match future.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(confirm)) => self.stage = Stage::Confirming(confirm),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                },
                Stage::Confirming(confirm) => return Pin::new(confirm).poll(cx),
            }
        }
    }
}

/// What the broker said comes before what lapin says about a channel that is gone already.
fn keep_the_cause(failure: &mut Option<lapin::Error>, error: lapin::Error) {
    if failure.as_ref().is_none_or(|known| !known.is_amqp_error() && error.is_amqp_error()) {
        *failure = Some(error);
    }
}

/// The position of the returned message that came with a confirm.
fn carried(message: Option<lapin::message::BasicReturnMessage>) -> Result<Option<Position>, lapin::Error> {
    let Some(message) = message else { return Ok(None) };
    let header = message.properties.headers().as_ref().and_then(|headers| headers.inner().get(POSITION));
    let position = match header {
        Some(AMQPValue::LongString(text)) => {
            std::str::from_utf8(text.as_bytes()).ok().and_then(|text| text.parse().ok())
        }
        _ => None,
    };
    if position.is_none() {
        // Somebody's proxy or plugin has changed the message: nothing on this channel can be proven any more.
        error!(
            event_id = message.properties.message_id().as_ref().map(|id| id.as_str()),
            exchange = %message.exchange,
            "a returned message has lost its header {POSITION}; the channel is replaced"
        );
        return Err(lapin::ErrorKind::FutureCompleted.into());
    }
    Ok(position)
}

/// Who sends, and over what.
#[derive(Clone, Copy)]
pub(crate) struct Sending {
    pub(crate) relay_epoch: i64,
    pub(crate) frame_max: usize,
}

/// The publish of one event: mandatory, persistent, with the properties of its message and nothing else but the time and the relay.
pub(super) fn publish(
    channel: &Channel,
    event: &Event,
    message: &Message,
    sending: Sending,
) -> Result<Publishing, Poison> {
    let exchange = short(&event.route.exchange, "exchange")?;
    let routing_key = short(&message.routing_key, "routing key")?;
    let properties = properties(event.position, message, sending)?;
    let (channel, body) = (channel.clone(), message.body.clone());
    // Boxed at once: it is kilobytes, most of them room for lapin, and each move would copy them all.
    Ok(Box::pin(async move {
        let options = BasicPublishOptions { mandatory: !faults::seeded(Bug::NotMandatory), immediate: false };
        channel.basic_publish(exchange, routing_key, options, &body, properties).await
    }))
}

/// What goes onto the wire with a message.
pub(crate) fn properties(position: Position, message: &Message, sending: Sending) -> Result<BasicProperties, Poison> {
    let given = &message.properties;
    let mut size = FRAME_OVERHEAD;
    let mut headers = FieldTable::default();
    for (name, value) in given.headers.iter().filter(|(name, _)| name != POSITION) {
        let value = match value {
            HeaderValue::Text(text) => {
                size += text.len();
                AMQPValue::LongString(LongString::from(text.as_str()))
            }
            HeaderValue::Integer(number) => AMQPValue::LongLongInt(*number),
            HeaderValue::Bool(flag) => AMQPValue::Boolean(*flag),
        };
        // A name with its length, a type, and a length or a number.
        size += 1 + name.len() + 1 + 8;
        headers.insert(short(name, "header name")?, value);
    }
    // Set here whatever the message says: without it a return could not be matched.
    headers.insert(short(POSITION, POSITION)?, AMQPValue::LongString(LongString::from(position.to_string())));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    headers.insert(short(SENT_AT, SENT_AT)?, AMQPValue::LongLongInt(i64::try_from(now).unwrap_or(i64::MAX)));
    headers.insert(short(RELAY_EPOCH, RELAY_EPOCH)?, AMQPValue::LongLongInt(sending.relay_epoch));
    size += 160 + given.message_id.len() + given.kind.len() + given.content_type.len();
    size += given.correlation_id.as_ref().map_or(0, String::len);
    let frame_max = sending.frame_max;
    if size > frame_max {
        // The broker would answer with FRAME_ERROR and close the connection, again and again.
        let detail = format!("properties and headers of {size} bytes; the broker's frame_max is {frame_max}");
        return Err(Poison { reason: PoisonReason::HeadersTooLarge, detail });
    }
    let message_id = match faults::seeded(Bug::RandomMessageIds) {
        true => short(&format!("{:032x}", rand::random::<u128>()), "message_id")?,
        false => short(&given.message_id, "message_id")?,
    };
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_app_id(short("postrider", "app_id")?)
        .with_message_id(message_id)
        .with_type(short(&given.kind, "type")?)
        .with_content_type(short(given.content_type, "content_type")?)
        .with_timestamp(given.timestamp)
        .with_headers(headers);
    Ok(match &given.correlation_id {
        Some(correlation_id) => properties.with_correlation_id(short(correlation_id, "correlation_id")?),
        None => properties,
    })
}

fn short(text: &str, what: &str) -> Result<ShortString, Poison> {
    ShortString::try_new(text).map_err(|_| Poison {
        reason: PoisonReason::BadProperty,
        detail: format!("the {what} has {} bytes; AMQP allows 255", text.len()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::event::{Header, Properties};
    use crate::lsn::Lsn;

    const AT: Position = Position { epoch: 1, commit: Lsn(2), ordinal: 3, part: 0 };

    fn over(frame_max: usize) -> Sending {
        Sending { relay_epoch: 5, frame_max }
    }

    fn message(headers: Vec<Header>) -> Message {
        let properties = Properties {
            message_id: Arc::from("id"),
            kind: "OrderPlaced".to_owned(),
            content_type: "application/json",
            timestamp: 7,
            correlation_id: None,
            headers,
        };
        Message { routing_key: "order.OrderPlaced".to_owned(), properties, body: Bytes::from_static(b"{}") }
    }

    #[test]
    fn only_what_the_message_has_is_sent_with_the_position_the_time_and_the_relay() {
        let headers = vec![("tenant".into(), HeaderValue::Integer(4))];
        let sent = properties(AT, &message(headers), over(131_072)).unwrap();
        assert_eq!((*sent.delivery_mode(), *sent.timestamp()), (Some(2), Some(7)));
        assert_eq!(sent.app_id().as_ref().unwrap().as_str(), "postrider");
        let bare = sent.clone().with_headers(FieldTable::default());
        let expected = BasicProperties::default()
            .with_delivery_mode(2)
            .with_app_id("postrider".into())
            .with_message_id("id".into())
            .with_type("OrderPlaced".into())
            .with_content_type("application/json".into())
            .with_timestamp(7)
            .with_headers(FieldTable::default());
        assert_eq!(bare, expected);
        let headers = sent.headers().as_ref().unwrap().inner();
        let names: Vec<_> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        assert_eq!(names, ["tenant", POSITION, RELAY_EPOCH, SENT_AT]);
        assert_eq!(headers.get(RELAY_EPOCH), Some(&AMQPValue::LongLongInt(5)));
        assert_eq!(headers.get(POSITION), Some(&AMQPValue::LongString(AT.to_string().into())));
    }

    #[test]
    fn what_would_break_the_connection_is_poison_before_it_is_published() {
        let long = vec![("x".into(), HeaderValue::Text("x".repeat(9000)))];
        assert_eq!(
            properties(AT, &message(long.clone()), over(8192)).unwrap_err().reason,
            PoisonReason::HeadersTooLarge
        );
        assert!(properties(AT, &message(long), over(16384)).is_ok());
        let name = vec![("n".repeat(256).into(), HeaderValue::Bool(true))];
        assert_eq!(properties(AT, &message(name), over(131_072)).unwrap_err().reason, PoisonReason::BadProperty);
        let mut kind = message(Vec::new());
        kind.properties.kind = "é".repeat(128);
        assert_eq!(properties(AT, &kind, over(131_072)).unwrap_err().reason, PoisonReason::BadProperty);
    }

    #[test]
    fn the_brokers_words_win_over_lapins() {
        let state = || lapin::Error::from(lapin::ErrorKind::InvalidChannelState(lapin::ChannelState::Closed, ""));
        let soft = lapin::protocol::AMQPErrorKind::Soft(lapin::protocol::AMQPSoftError::NOTFOUND);
        let words = || {
            lapin::Error::from(lapin::ErrorKind::ProtocolError(lapin::protocol::AMQPError::new(
                soft.clone(),
                "no exchange".into(),
            )))
        };
        let mut failure = None;
        keep_the_cause(&mut failure, state());
        keep_the_cause(&mut failure, words());
        keep_the_cause(&mut failure, state());
        assert!(failure.unwrap().is_amqp_error());
    }
}
