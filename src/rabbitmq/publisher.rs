//! The publisher: what a session hands over goes to RabbitMQ, confirmed and in order, and comes back as resolved tickets.
//!
//! [`Broker`] belongs to the relay and outlives sessions, because what it knows of the broker must: a connection that is
//! blocked, and the events of which one has closed a channel (rule R5).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use super::connection::{self, Change, ConnectError, Link, Purpose};
use super::journal::Journal;
use super::topology::{self, TopologyError};
use super::window::Window;
use crate::config::Config;
use crate::dead_letters::desk::Desk;
use crate::event::{Event, Ticket};
use crate::hold::{Halted, OutOfOrder, Suspects};
use crate::metrics::Metrics;
use crate::status::Status;
use crate::traces::Spans;

/// Events of one read, in order.
#[derive(Debug)]
pub struct Batch {
    pub events: Vec<Event>,
}

/// RabbitMQ, as far as one relay is concerned.
pub struct Broker {
    pub(super) config: Arc<Config>,
    pub(super) journal: Journal,
    pub(super) link: Option<Link>,
    /// Address of the newest link.
    pub(super) last: Option<String>,
    /// Nothing is left on the link of what an earlier session published.
    pub(super) clean: bool,
    topology_seen: bool,
    pub(super) suspects: Suspects,
}

/// There is no publishing now. The relay ends the session and tries again, with back-off.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error("RabbitMQ has blocked publishers for {} s ({reason}); free memory or disk there", .waited.as_secs())]
    Blocked { reason: String, waited: Duration },
    #[error("no usable connection to RabbitMQ for {} s; last: {last}", .waited.as_secs())]
    Unavailable { last: String, waited: Duration },
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    #[error(
        "{0}. Its route says on_poison = \"halt\": nothing after it is carried until a person has decided. Mend what keeps it \
         from being published (`max_message_bytes`, the broker's limits) and it goes by itself, or set on_poison to \
         \"park_key\" or \"skip\" and start again to have it in the dead letters"
    )]
    Halted(#[source] Halted),
    #[error(
        "dead letters were deleted by hand; starting again to see what is left (`postrider dlq discard` needs no restart)"
    )]
    DeadLettersChanged,
}

impl BrokerError {
    /// Something is missing that the events need, but the broker is there and connected. It keeps a relay from its first
    /// start; later the events of what is missing are held, and the others flow (rule R5).
    pub fn is_topology(&self) -> bool {
        matches!(self, BrokerError::Topology(TopologyError::Missing(_) | TopologyError::NameTooLong(_)))
    }
}

impl Broker {
    /// `spans`: where the spans of sampled events go, if anywhere.
    pub fn new(config: Arc<Config>, metrics: Metrics, status: Status, spans: Option<Spans>) -> Self {
        Broker {
            config,
            journal: Journal::new(metrics, status, spans),
            link: None,
            last: None,
            clean: false,
            topology_seen: false,
            suspects: Suspects::default(),
        }
    }

    /// Connects if there is no connection, waits as long as the broker blocks it, and sees to the topology. One attempt;
    /// the caller waits between them. Cancel-safe.
    ///
    /// With an error of [`BrokerError::is_topology`] the connection is made, and [`Self::publish`] works.
    pub async fn ready(&mut self) -> Result<(), BrokerError> {
        self.wait_while_blocked().await;
        if !self.clean
            && let Some(link) = self.link.take()
        {
            // lapin may still hold publishes of the last session in its queues, and the broker their confirms.
            link.close().await;
        }
        if self.link.as_ref().is_none_or(|link| !link.is_open()) {
            self.link = None;
            self.topology_seen = false;
            match connection::connect_again(&self.config, Purpose::Publish, self.last.as_deref()).await {
                Ok(link) => self.adopt(link),
                Err(error) => {
                    self.journal.disconnected("connect", error.to_string());
                    return Err(error.into());
                }
            }
        }
        let Some(link) = &self.link else { return Ok(()) };
        if !self.topology_seen {
            if let Err(error) = topology::ensure(link, &self.config).await {
                self.journal.topology(error.to_string());
                return Err(error.into());
            }
            self.topology_seen = true;
        }
        Ok(())
    }

    /// Publishes what comes from `batches`, once `desk` has opened, parks and releases, and sends the tickets of what is delivered to `resolved`, until
    /// * `batches` is closed, nothing is on the wire and nothing may go: only held events are left, or the broker blocks;
    ///   or the other end of `resolved` is gone: `Ok`;
    /// * there has been no usable broker for `limits.broker_patience`, or it has blocked that long: an error.
    ///
    /// What has not been resolved is forgotten: the next session reads it again from the slot. Dropping the future is the
    /// same; the connection is replaced before the next session then, unless the broker blocks it.
    pub async fn publish(
        &mut self,
        batches: mpsc::Receiver<Batch>,
        resolved: mpsc::UnboundedSender<Vec<Ticket>>,
        desk: Desk,
    ) -> Result<(), BrokerError> {
        Window::new(self, batches, resolved, desk).run().await
    }

    /// Closes the connection. Takes a second at most.
    pub async fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    pub(super) fn adopt(&mut self, link: Link) {
        self.journal.connected(&link);
        if let Some(reason) = link.blocked() {
            self.journal.blocked(reason);
        }
        self.last = Some(link.address().to_owned());
        self.link = Some(link);
        self.clean = true;
    }

    /// A new connection to a broker with an alarm looks healthy until it has published, so a blocked one is kept: it is the
    /// one that hears `connection.unblocked`.
    async fn wait_while_blocked(&mut self) {
        while let Some(link) = &mut self.link
            && link.is_open()
            && link.blocked().is_some()
        {
            match link.changed().await {
                Change::Blocked(_) => {}
                Change::Unblocked => self.journal.unblocked(),
                Change::Lost(error) => {
                    warn!(%error, "the blocked connection to RabbitMQ was lost; connecting again");
                    self.journal.disconnected("lost", error.to_string());
                    self.link = None;
                }
            }
        }
    }
}
