//! The probe of a failing exchange: does it still refuse everything? (rule R5)

use std::time::Duration;

use lapin::Confirmation;
use lapin::options::ConfirmSelectOptions;
use tokio::time::timeout;

use super::channel::{Sending, publish};
use super::connection::{Channels, deadline, reply};
use super::topology::{Existence, close, passive_exchange};
use crate::event::{Poison, PoisonReason, Position};
use crate::hold::{Probe, ProbeOutcome, Refusal};

/// What a probe has found out.
pub(super) struct Probed {
    pub(super) exchange: String,
    pub(super) outcome: ProbeOutcome,
    /// The event that it published, and what became of it. `None`: nothing was published, or nothing is known.
    pub(super) event: Option<(Position, EventOutcome)>,
}

pub(super) enum EventOutcome {
    Delivered,
    Refused(Refusal),
    Poisoned(Poison),
}

/// A passive declare; if that passes, a publish of the probe's event, alone on a channel of its own, so that whatever is
/// said there is said of that event.
pub(super) async fn probe(channels: Channels, probe: Probe, sending: Sending, confirm_timeout: Duration) -> Probed {
    let exchange = probe.exchange.clone();
    match run(&channels, probe, sending, confirm_timeout).await {
        Ok((outcome, event)) => Probed { exchange, outcome, event },
        // The connection is in trouble; the window finds that out by itself.
        Err(error) => Probed { exchange, outcome: ProbeOutcome::StillFailing(error), event: None },
    }
}

async fn run(
    channels: &Channels,
    probe: Probe,
    sending: Sending,
    confirm_timeout: Duration,
) -> Result<(ProbeOutcome, Option<(Position, EventOutcome)>), String> {
    let text = |error: lapin::Error| error.to_string();
    let mut channel = channels.open().await.map_err(text)?;
    match passive_exchange(&channel, &probe.exchange).await.map_err(|error| error.to_string())? {
        Existence::Yes => {}
        Existence::No => {
            let words = format!("NOT_FOUND - no exchange '{}'", probe.exchange);
            return Ok((ProbeOutcome::StillFailing(words), None));
        }
        // The question was refused, and the channel is gone with it. A publish is answered all the same, and nothing else is:
        // a user that may not look may be allowed to write, or not.
        Existence::CannotTell if probe.event.is_none() => {
            let words = format!("ACCESS_REFUSED - this user may not look at exchange '{}'", probe.exchange);
            return Ok((ProbeOutcome::StillFailing(words), None));
        }
        Existence::CannotTell => channel = channels.open().await.map_err(text)?,
    }
    let Some(event) = probe.event else {
        close(&channel).await;
        return Ok((ProbeOutcome::Passed, None));
    };
    let Ok(message) = &event.content else { return Ok((ProbeOutcome::Passed, None)) };
    let passed = |outcome| Ok((ProbeOutcome::Passed, Some((event.position, outcome))));
    deadline(channel.confirm_select(ConfirmSelectOptions::default())).await.map_err(text)?;
    let publish = match publish(&channel, &event, message, sending) {
        Ok(publish) => publish,
        Err(poison) => return passed(EventOutcome::Poisoned(poison)),
    };
    let Ok(confirmation) = timeout(confirm_timeout, async { publish.await?.await }).await else {
        // The exchange took it; a queue behind it is stuck.
        return passed(EventOutcome::Refused(Refusal::TimedOut));
    };
    let answer = match confirmation {
        // The only publish of the channel: a return that comes with its confirm is its own.
        Ok(Confirmation::Ack(None)) => passed(EventOutcome::Delivered),
        Ok(Confirmation::Ack(Some(_))) => passed(EventOutcome::Refused(Refusal::Returned)),
        Ok(Confirmation::Nack(_)) => passed(EventOutcome::Refused(Refusal::Nacked)),
        Ok(Confirmation::NotRequested) => Err("confirms were not selected".to_owned()),
        Err(error) => match reply(&error) {
            Some((406, words)) if error.is_amqp_soft_error() => {
                passed(EventOutcome::Poisoned(Poison { reason: PoisonReason::Refused, detail: words.to_owned() }))
            }
            Some((_, words)) if error.is_amqp_soft_error() => Ok((ProbeOutcome::StillFailing(words.to_owned()), None)),
            _ => Err(error.to_string()),
        },
    };
    if channel.status().connected() {
        close(&channel).await;
    }
    answer
}
