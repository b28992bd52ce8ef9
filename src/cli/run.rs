//! `postrider run`: everything that runs beside the relay, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::admin;
use crate::config::Config;
use crate::error::Error;
use crate::lag;
use crate::metrics::Metrics;
use crate::relay;
use crate::status::Status;

/// What a stopping relay may take beyond `limits.drain_timeout`: to acknowledge, and to close its connections.
const REST: Duration = Duration::from_secs(4);
/// Of a process that was told twice to end.
const EXIT_AT_ONCE: i32 = 1;

/// Carries events until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), Error> {
    let config = Arc::new(config);
    let routes: Vec<String> = config.routes.iter().map(|route| route.name.clone()).collect();
    let metrics = Metrics::new(&config.slot, &routes)?;
    let status = Status::new(&config.slot, &config.publication);
    let mut signals = Signals::listen()?;
    let listener = admin::bind(config.admin_listen).await?;

    info!(
        version = env!("CARGO_PKG_VERSION"),
        slot = config.slot,
        publication = config.publication,
        admin = %config.admin_listen,
        "postrider starts"
    );
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let relay = relay::run(Arc::clone(&config), metrics.clone(), status.clone(), async {
        // A sender that is gone means the same.
        stopped.await.ok();
    });
    let beside = async {
        tokio::join!(
            admin::serve(listener, metrics.clone(), status.clone()),
            lag::sample_slot(&config, &metrics),
            lag::sample_queues(&config, &metrics),
        )
    };
    let ending = async {
        let name = signals.next().await;
        info!(signal = name, "stopping: waits for what is on the wire; a second signal ends it at once");
        stop.send(()).ok();
        let grace = config.limits.drain_timeout + REST;
        tokio::select! {
            name = signals.next() => warn!(signal = name, "ends at once"),
            () = tokio::time::sleep(grace) => {
                warn!(seconds = grace.as_secs(), "did not end in time; what was not acknowledged will be sent again");
            }
        }
    };

    tokio::select! {
        result = relay => result,
        _ = beside => Ok(()),
        () = ending => std::process::exit(EXIT_AT_ONCE),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|source| Error::Io { doing: "listen to signals", source });
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
