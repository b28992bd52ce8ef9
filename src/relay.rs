//! Sessions in a loop: connect the broker, run one session, and when it ends say why, wait, and start again from the slot.

use std::future::Future;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::config::Config;
use crate::dead_letters::desk::{Registry, desk};
use crate::error::{self, Error};
use crate::metrics::Metrics;
use crate::postgres::halt::Halt;
use crate::postgres::witness::Witness;
use crate::rabbitmq::publisher::{Batch, Broker, BrokerError};
use crate::session::{Ended, Session, SessionError};
use crate::status::{DeadLetters, InDoubt, Role, Status};
use crate::traces::Spans;

/// Batches between the session and the publisher. One is made while one is taken; what waits belongs into the window, which is bounded in
/// bytes: a batch may be a row of the largest size.
const BATCHES: usize = 1;
/// Pause between attempts: doubled from the first to the last, with jitter. It starts over after a session that carried for
/// longer than [`RECOVERED`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(10);
const RECOVERED: Duration = Duration::from_secs(10);
/// The same trouble is said again after this time, so that a log's tail shows it.
const REPEAT: Duration = Duration::from_secs(300);
/// How long a session is given to end once the publisher has. It closes two connections.
const SESSION_END: Duration = Duration::from_secs(10);

/// Carries until `shutdown` resolves, then drains within `limits.drain_timeout` and returns.
///
/// Trouble with a server never ends it: one log line per change of state says what to do, readiness turns red, and it is
/// tried again with back-off.
///
/// `spans`: where the spans of sampled events go, if anywhere.
///
/// # Errors
/// Only what concerns this process itself.
pub async fn run(
    config: Arc<Config>,
    metrics: Metrics,
    status: Status,
    spans: Option<Spans>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (stop_sender, stop) = watch::channel(false);
    let mut relay = Relay {
        broker: Broker::new(Arc::clone(&config), metrics.clone(), status.clone(), spans),
        witness: Witness::new(config.state_dir.as_deref(), &config.slot),
        config,
        metrics,
        status,
        stop,
        sessions: 0,
        trouble: Trouble::default(),
    };
    {
        let status = relay.status.clone();
        let carrying = relay.carry();
        tokio::pin!(shutdown, carrying);
        tokio::select! {
            () = &mut carrying => {}
            () = &mut shutdown => {
                status.update(|status| status.stopping = true);
                stop_sender.send_replace(true);
                carrying.await;
            }
        }
    }
    relay.broker.close().await;
    tracing::info!("stopped");
    Ok(())
}

struct Relay {
    config: Arc<Config>,
    metrics: Metrics,
    status: Status,
    stop: watch::Receiver<bool>,
    broker: Broker,
    witness: Witness,
    sessions: u64,
    trouble: Trouble,
}

/// What keeps the relay from carrying, as last said.
#[derive(Default)]
struct Trouble {
    said: Option<(String, Instant)>,
    pause: Option<Duration>,
}

/// Which side of a round ended first.
enum First {
    Session(Result<Ended, oneshot::error::RecvError>),
    Publisher(Option<BrokerError>),
}

/// Why one round ended.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Relay {
    async fn carry(&mut self) {
        while !*self.stop.borrow() {
            let Err(error) = self.round().await else { continue };
            self.report(&error);
            let pause = self.trouble.next_pause();
            let mut stop = self.stop.clone();
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }

    /// One session, from a usable broker on. The broker is connected before the slot is taken (R5), so that a relay without
    /// one never holds the slot.
    async fn round(&mut self) -> Result<(), RoundError> {
        let mut stop = self.stop.clone();
        let ready = tokio::select! {
            ready = self.broker.ready() => ready,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let missing_topology = match ready {
            Ok(()) => None,
            // One exchange of several must not keep the others' events back.
            Err(error) if error.is_topology() => Some(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        self.sessions += 1;
        let (batches, inbox) = mpsc::channel::<Batch>(BATCHES);
        let (outbox, resolved) = mpsc::unbounded_channel();
        let (desk, registry) = desk();
        let session = Session {
            number: self.sessions,
            config: Arc::clone(&self.config),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            batches,
            resolved,
            stop: self.stop.clone(),
            witness: self.witness.clone(),
            missing_topology,
        };
        let mut session = spawn(session, registry)?;
        let first = {
            let publishing = self.broker.publish(inbox, outbox, desk);
            tokio::pin!(publishing);
            tokio::select! {
                // What is on the wire is not waited for: the slot has not passed it.
                ended = &mut session => First::Session(ended),
                published = &mut publishing => First::Publisher(published.err()),
            }
        };
        match first {
            First::Session(ended) => self.session_ended(ended),
            // With the publisher the channel has ended that the session listens to, so it ends too.
            First::Publisher(error) => {
                let ended = tokio::time::timeout(SESSION_END, session).await;
                let result = ended.map_or(Err(SessionError::Thread(None).into()), |ended| self.session_ended(ended));
                error.map_or(result, |error| Err(error.into()))
            }
        }
    }

    fn session_ended(&mut self, ended: Result<Ended, oneshot::error::RecvError>) -> Result<(), RoundError> {
        let Ok(ended) = ended else { return Err(SessionError::Thread(None).into()) };
        // One that fails at once, each time, is no recovery.
        if ended.carried.is_some_and(|carried| carried > RECOVERED) {
            self.trouble = Trouble::default();
        }
        // What a session and its publisher knew holds no longer.
        self.metrics.unresolved_events.set(0);
        self.metrics.unresolved_bytes.set(0);
        self.metrics.held_keys.set(0);
        self.metrics.forget_dead_letters();
        self.status.update(|status| {
            status.standing_by = false;
            status.unresolved_events = 0;
            status.unresolved_bytes = 0;
            status.held_keys = 0;
            status.dead_letters = DeadLetters::default();
            status.failing_exchanges.clear();
            status.most_delayed = None;
        });
        Ok(ended.result?)
    }

    /// One log line per change of state.
    fn report(&mut self, error: &RoundError) {
        let text = error::chain(error);
        let halt = match error {
            RoundError::Session(error) => error.halt().map(Halt::reason),
            RoundError::Broker(error) => matches!(error, BrokerError::Halted(_)).then_some("poison"),
        };
        // Trouble with a server decides nothing: a halt ends when a relay carries.
        let still_halted = halt.is_none() && self.status.snapshot().role == Role::Halted;
        let role = if halt.is_some() || still_halted { Role::Halted } else { Role::Standby };
        if let RoundError::Session(error) = error
            && let Some(reason) = error.reconnect_reason()
        {
            self.metrics.reconnects.with_label_values(&["postgres", reason]).inc();
        }
        let in_doubt = match error {
            RoundError::Session(error) => error.halt().map(|halt| InDoubt {
                reason: halt.reason(),
                from_lsn: halt.from.to_string(),
                to_lsn: halt.to.to_string(),
            }),
            RoundError::Broker(_) => None,
        };
        self.metrics.set_role(role);
        if !still_halted {
            self.metrics.set_halted(halt);
        }
        self.status.update(|status| {
            status.role = role;
            status.problem = Some(text.clone());
            if !still_halted {
                status.halt = in_doubt;
            }
        });
        // The interval in doubt grows while it is looked at.
        let kind = match error {
            RoundError::Session(error) => error.halt().map(|halt| format!("{} {}", halt.reason(), halt.from)),
            RoundError::Broker(_) => None,
        };
        if self.trouble.is_news(kind.as_deref().unwrap_or(&text)) {
            if halt.is_some() {
                tracing::error!(problem = text, "halted: nothing is published until this is decided");
            } else {
                tracing::warn!(problem = text, "not carrying; trying again");
            }
        }
    }
}

impl Trouble {
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE));
        self.pause = Some(pause);
        pause.mul_f64(0.5 + rand::random::<f64>())
    }

    fn is_news(&mut self, text: &str) -> bool {
        let news = self.said.as_ref().is_none_or(|(said, at)| said != text || at.elapsed() > REPEAT);
        if news {
            self.said = Some((text.to_owned(), Instant::now()));
        }
        news
    }
}

/// Starts a session on an OS thread of its own (see [`crate::session`]).
fn spawn(session: Session, registry: Registry) -> Result<oneshot::Receiver<Ended>, SessionError> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        let ended = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            // Dropping the runtime ends the tasks of both connections.
            Ok(runtime) => {
                let ended = runtime.block_on(session.run(registry));
                // Does not wait for a name that is being resolved.
                runtime.shutdown_background();
                ended
            }
            Err(error) => Ended { carried: None, result: Err(SessionError::Thread(Some(error))) },
        };
        // Nobody listens any more when the relay itself has been dropped.
        sender.send(ended).ok();
    };
    thread::Builder::new()
        .name("postrider-session".to_owned())
        .spawn(run)
        .map_err(|error| SessionError::Thread(Some(error)))?;
    Ok(receiver)
}
