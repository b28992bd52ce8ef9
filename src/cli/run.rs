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
use crate::traces::export;

/// What a stopping relay may take beyond `limits.drain_timeout`: to acknowledge, to close its connections, and to export its
/// last spans.
const REST: Duration = Duration::from_secs(4).saturating_add(export::FLUSH);
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
    let (spans, exporting) = export::start(&config.slot, &metrics.spans_dropped).unzip();
    let relay = relay::run(Arc::clone(&config), metrics.clone(), status.clone(), spans, async {
        // A sender that is gone means the same.
        stopped.await.ok();
    });
    let relay = async {
        let result = relay.await;
        if let Some(exporting) = exporting {
            exporting.flush().await;
        }
        result
    };
    let beside = admin::serve(listener, metrics.clone(), status.clone());
    start_samplers(Arc::clone(&config), metrics.clone(), status)?;
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
        () = beside => Ok(()),
        () = ending => std::process::exit(EXIT_AT_ONCE),
    }
}

/// They have a thread of their own: to read a large answer of the management API takes time, and nothing of the relay may wait for
/// it. It ends with the process.
fn start_samplers(config: Arc<Config>, metrics: Metrics, status: Status) -> Result<(), Error> {
    let started = |source| Error::Io { doing: "start the samplers", source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(started)?;
    let sample = move || {
        runtime.block_on(async {
            tokio::join!(lag::sample_slot(&config, &metrics, &status), lag::sample_queues(&config, &metrics, &status),)
        });
    };
    std::thread::Builder::new().name("postrider-lag".to_owned()).spawn(sample).map_err(started)?;
    Ok(())
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
