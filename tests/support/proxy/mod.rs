//! A TCP proxy that understands enough of AMQP 0-9-1 and of PostgreSQL's protocol (both unencrypted) to misbehave as a server and a
//! network may, and to testify to what has passed.
//!
//! What it does to confirms keeps to what RabbitMQ guarantees (rule R2): a confirm may be late, merged, out of order or lost, but is
//! never moved ahead of the return of its own publish.

// Two test targets include this and each uses its part; in one of them nothing tells clippy that these are tests.
#![allow(dead_code, reason = "each target uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod amqp;
mod confirms;
mod connection;
mod evidence;
mod mischief;
mod postgres;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[allow(unused_imports, reason = "each target uses its part")]
pub(crate) use evidence::{Counts, Evidence, Flush, Passed, What};
pub(crate) use mischief::{Direction, Mischief, Which};

use mischief::Active;

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Amqp,
    Postgres,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    cut: watch::Sender<u64>,
    listener: tokio::task::JoinHandle<()>,
}

/// What all connections look at and write to.
struct Shared {
    active: Mutex<Active>,
    evidence: Mutex<Evidence>,
    listening: AtomicBool,
    seed: u64,
}

impl Shared {
    fn active(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap()
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap()
    }
}

impl Proxy {
    /// Forwards a free port to a RabbitMQ at `upstream` (`host:port`).
    pub(crate) async fn amqp(upstream: &str) -> Proxy {
        Proxy::amqp_with_seed(upstream, 1).await
    }

    /// The same; `seed` determines what is random about the order of confirms.
    pub(crate) async fn amqp_with_seed(upstream: &str, seed: u64) -> Proxy {
        Proxy::start(Protocol::Amqp, upstream, seed).await
    }

    /// Forwards a free port to a PostgreSQL at `upstream` (`host:port`).
    pub(crate) async fn postgres(upstream: &str) -> Proxy {
        Proxy::start(Protocol::Postgres, upstream, 1).await
    }

    async fn start(protocol: Protocol, upstream: &str, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            active: Mutex::default(),
            evidence: Mutex::default(),
            listening: AtomicBool::new(true),
            seed,
        });
        let (cut, _) = watch::channel(0);
        let accept = accept(listener, protocol, upstream.to_owned(), Arc::clone(&shared), cut.clone());
        Proxy { port, shared, cut, listener: tokio::spawn(accept) }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Misbehaves so from now on, beside what was set before.
    pub(crate) fn set(&self, mischief: Mischief) {
        self.shared.active().set(mischief);
    }

    /// Confirms late, merged and out of order, from now on.
    pub(crate) fn shuffle(&self) {
        for mischief in [Mischief::DelayAcks, Mischief::MergeAcks, Mischief::ReorderAcks] {
            self.set(mischief);
        }
    }

    /// Behaves again. What was stalled or held back goes on its way.
    pub(crate) fn clear(&self) {
        self.shared.active().clear();
    }

    /// Cuts all connections at once (RST to both ends), in the middle of whatever they carry.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|generation| *generation += 1);
    }

    /// Whether new connections are served; otherwise they are closed as soon as they are made.
    pub(crate) fn serve(&self, yes: bool) {
        self.shared.listening.store(yes, Ordering::SeqCst);
    }

    /// Everything that has passed so far.
    pub(crate) fn evidence(&self) -> Evidence {
        self.shared.evidence().clone()
    }

    /// Its numbers alone.
    pub(crate) fn counts(&self) -> Counts {
        self.shared.evidence().counts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    upstream: String,
    shared: Arc<Shared>,
    cut: watch::Sender<u64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        if !shared.listening.load(Ordering::SeqCst) {
            continue;
        }
        // Read before the connection counts: whoever waits for it may clear the mischief then.
        let end_after = shared.active().end_after;
        let number = {
            let mut evidence = shared.evidence();
            evidence.counts.connections += 1;
            evidence.counts.connections
        };
        let (shared, cut, upstream) = (Arc::clone(&shared), cut.subscribe(), upstream.clone());
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(upstream).await else { return };
            connection::carry(protocol, connection::Birth { number, end_after }, client, server, shared, cut).await;
        });
    }
}
