//! The exporter: off unless the standard variables of OpenTelemetry name a collector.
//!
//! It has a thread and a runtime of its own, so that what a collector does, or does not do, costs the relay nothing but
//! that thread's time. `opentelemetry-otlp` reads the variables, encodes and retries; the SDK's batch processor is not used,
//! because it drops spans without a count.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use opentelemetry::trace::SpanId;
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_TIMEOUT,
    SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prometheus::IntCounter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};
use url::Url;

use super::Spans;
use super::client::{Client, Problem};
use super::span::Span;
use crate::error;
use crate::tls::{Identity, TlsConfigError, Trust, Verify};

/// Spans that wait, at most: what the SDK's own processor has by default. A span has about a kilobyte here, and never more
/// than four.
const QUEUE: usize = 2_048;
/// Spans of one request, at most; likewise.
const BATCH: usize = 512;
/// How long a span waits for others to share its request.
const GATHER: Duration = Duration::from_secs(1);
/// For one batch with its retries, unless the variables say otherwise: the default of the specification.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What a stopping relay gives to spans that are not exported yet.
pub const FLUSH: Duration = Duration::from_secs(1);

/// Nothing is exported though a collector is named. Spans are not worth a relay that does not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0} is no http or https URL")]
    Endpoint(String),
    #[error("{variable} is {value:?}; there is only http/protobuf here (port 4318 of most collectors)")]
    Protocol { variable: String, value: String },
    #[error("{0} and {1} belong together")]
    Identity(String, String),
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
    #[error("cannot start its thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// What the variables say, as far as it is not the library that reads them.
struct Settings {
    /// Of the collector, for the log: a URL may have a password in it.
    collector: String,
    timeout: Duration,
    trust: Trust,
    identity: Option<Identity>,
}

/// The exporter's thread, until it has ended.
pub struct Exporting {
    ended: oneshot::Receiver<()>,
}

/// Starts the exporter if the environment names a collector. `None`: it does not, or it cannot be used, which is logged.
pub fn start(slot: &str, dropped: &IntCounter) -> Option<(Spans, Exporting)> {
    let started = settings(|name| std::env::var(name).ok()).and_then(|settings| match settings {
        Some(settings) => start_thread(settings, slot, dropped.clone()).map(Some),
        None => Ok(None),
    });
    started.unwrap_or_else(|error| {
        warn!(error = error::chain(&error), "no spans are exported; mend the variables and start again, or unset them");
        None
    })
}

/// `Ok(None)`: nothing is to be exported.
fn settings(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Settings>, StartError> {
    // An empty variable is an unset one (OpenTelemetry, "Environment Variable Specification").
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    // The one for traces comes before the one for all signals.
    let either = |name: &str| {
        let own = name.replace("OTLP_", "OTLP_TRACES_");
        value(&own).map(|value| (own, value)).or_else(|| value(name).map(|value| (name.to_owned(), value)))
    };
    let disabled = value("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let elsewhere = value("OTEL_TRACES_EXPORTER").is_some_and(|value| value != "otlp");
    let Some((name, endpoint)) = either(OTEL_EXPORTER_OTLP_ENDPOINT).filter(|_| !disabled && !elsewhere) else {
        return Ok(None);
    };
    // The library's error would quote a URL that only one of the two takes.
    let url = Url::parse(&endpoint).ok().filter(|_| endpoint.parse::<hyper::Uri>().is_ok());
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some((url, host)) = url.as_ref().and_then(|url| Some((url, url.host_str()?))) else {
        return Err(StartError::Endpoint(name));
    };
    if let Some((variable, value)) = either(OTEL_EXPORTER_OTLP_PROTOCOL).filter(|(_, value)| value != "http/protobuf") {
        return Err(StartError::Protocol { variable, value });
    }
    let file = |name: &str| either(name).map(|(_, path)| PathBuf::from(path));
    const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
    const KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";
    let identity = match (file(CERTIFICATE), file(KEY)) {
        (Some(cert_file), Some(key_file)) => Some(Identity { cert_file, key_file }),
        (None, None) => None,
        _ => return Err(StartError::Identity(CERTIFICATE.to_owned(), KEY.to_owned())),
    };
    let milliseconds = either(OTEL_EXPORTER_OTLP_TIMEOUT).and_then(|(_, value)| value.parse().ok());
    Ok(Some(Settings {
        collector: format!("{host}:{}", url.port_or_known_default().unwrap_or_default()),
        timeout: milliseconds.map_or(TIMEOUT, Duration::from_millis),
        trust: Trust {
            verify: Verify::ChainAndName,
            // Where there is no TLS, a system without any authorities will do.
            system_roots: url.scheme() == "https",
            ca_file: file("OTEL_EXPORTER_OTLP_CERTIFICATE"),
        },
        identity,
    }))
}

fn start_thread(settings: Settings, slot: &str, dropped: IntCounter) -> Result<(Spans, Exporting), StartError> {
    let Settings { collector, timeout, trust, identity } = settings;
    let problem = Problem::default();
    let client = Client::new(&trust, identity.as_ref(), timeout, problem.clone())?;
    let mut exporter = SpanExporter::builder().with_http().with_http_client(client).with_timeout(timeout).build()?;
    exporter.set_resource(&resource(slot));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let (queue, spans) = mpsc::channel(QUEUE);
    let (ending, ended) = oneshot::channel();
    let exporter = Exporter { exporter, timeout, problem, dropped: dropped.clone(), collector, works: None };
    let run = move || {
        runtime.block_on(exporter.run(spans));
        // Nobody waits for it any more when the relay has been dropped.
        ending.send(()).ok();
    };
    thread::Builder::new().name("postrider-spans".to_owned()).spawn(run).map_err(StartError::Thread)?;
    Ok((Spans::new(queue, dropped), Exporting { ended }))
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` come first.
fn resource(slot: &str) -> Resource {
    let found = Resource::builder().build();
    let name = found.get(&Key::new("service.name")).map(|name| name.to_string());
    let unnamed = name.is_none_or(|name| name.starts_with("unknown_service"));
    let mut ours = vec![KeyValue::new("postrider.slot", slot.to_owned())];
    if unnamed {
        ours.push(KeyValue::new("service.name", "postrider"));
    }
    if found.get(&Key::new("service.version")).is_none() {
        ours.push(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    Resource::builder().with_attributes(ours).build()
}

impl Exporting {
    /// Waits until everything is exported, once the other end of the queue is gone; at most [`FLUSH`].
    pub async fn flush(self) {
        if timeout(FLUSH, self.ended).await.is_err() {
            warn!("the last spans were not exported in time, and are lost");
        }
    }
}

struct Exporter {
    exporter: SpanExporter,
    /// For a batch.
    timeout: Duration,
    problem: Problem,
    dropped: IntCounter,
    collector: String,
    /// As last said.
    works: Option<bool>,
}

impl Exporter {
    /// Ends when the other end of the queue is gone and everything is out.
    async fn run(mut self, mut queue: mpsc::Receiver<Span>) {
        info!(collector = self.collector, "spans of sampled events are exported");
        let scope = InstrumentationScope::builder("postrider").with_version(env!("CARGO_PKG_VERSION")).build();
        let mut batch = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let full = Instant::now() + GATHER;
            while let room @ 1.. = BATCH.saturating_sub(batch.len()) {
                match timeout_at(full, queue.recv_many(&mut batch, room)).await {
                    Ok(1..) => {}
                    // Nothing more will come, or not soon.
                    Ok(0) | Err(_) => break,
                }
            }
            let spans = batch.drain(..).map(|span| span.into_data(new_id(), scope.clone())).collect();
            self.export(spans).await;
        }
    }

    async fn export(&mut self, spans: Vec<SpanData>) {
        let count = u64::try_from(spans.len()).unwrap_or(u64::MAX);
        // The library begins no retry after its time-out, and the client ends each request by the same. So this is only for
        // what neither of them foresees.
        let done = timeout(self.timeout * 2, self.exporter.export(spans)).await;
        let error = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(self.problem.take().unwrap_or_else(|| error.to_string())),
            Err(_) => Some("it does not end".to_owned()),
        };
        let Some(error) = error else {
            if self.works == Some(false) {
                info!(collector = self.collector, "spans are exported again");
            }
            self.works = Some(true);
            return;
        };
        self.dropped.inc_by(count);
        if self.works != Some(false) {
            warn!(
                collector = self.collector,
                error, "the collector takes no spans; events are not concerned, and spans are dropped until it does"
            );
        }
        self.works = Some(false);
    }
}

/// Never the one that is invalid.
fn new_id() -> SpanId {
    SpanId::from(rand::random::<u64>().max(1))
}

#[cfg(test)]
mod tests;
