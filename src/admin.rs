//! The admin listener: read-only, over HTTP/1.
//!
//! * `GET /live`: 200 while the event loop turns, whatever the servers do; a probe that restarts must ask nothing more.
//! * `GET /ready`: 200 while this relay carries, or stands by and could take over; otherwise 503 with the reason.
//! * `GET /metrics`: Prometheus' text format.
//! * `GET /status`: [`crate::status::Snapshot`] as JSON.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::metrics::Metrics;
use crate::status::{Snapshot, Status};

/// Connections at a time; more of them wait. Prometheus and the probes need one each.
const CONNECTIONS: usize = 32;
/// From the accept, or the end of the last answer, to the end of the next request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The whole life of a connection, so that clients that read nothing cannot hold all of them.
const LIFE: Duration = Duration::from_secs(600);
/// hyper's smallest buffer: no request here has a body, and no head needs more.
const BUFFER: usize = 8 * 1024;
/// Sixteen segments of the default size.
const LITTLE_WAL: i64 = 256 << 20;
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "the admin listener cannot have {address}: it is in use; stop what has it, or set admin_listen \
         (POSTRIDER_ADMIN_LISTEN) to another address"
    )]
    InUse { address: SocketAddr, source: io::Error },
    #[error("the admin listener cannot have {address}: {source}; set admin_listen (POSTRIDER_ADMIN_LISTEN)")]
    Bind { address: SocketAddr, source: io::Error },
}

/// Takes the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => AdminError::InUse { address, source },
        _ => AdminError::Bind { address, source },
    })
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Metrics, status: Status) {
    let shared = Arc::new(Shared { metrics, status });
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    converse(stream, &shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: going on at once would only burn the processor.
                warn!(%error, "the admin listener cannot accept connections");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

struct Shared {
    metrics: Metrics,
    status: Status,
}

async fn converse(stream: TcpStream, shared: &Shared) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, shared))));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LIFE, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!(%error, "an admin connection ended early"),
    }
}

fn answer<B>(request: &Request<B>, shared: &Shared) -> Response<Full<Bytes>> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/live" | "/ready" | "/metrics" | "/status" if !get => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "read-only: use GET\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        "/live" => text(StatusCode::OK, "live\n".to_owned()),
        "/ready" => ready(&shared.status.snapshot()),
        "/metrics" => match shared.metrics.render() {
            Ok(exposition) => response(StatusCode::OK, PROMETHEUS_TEXT, exposition),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/status" => {
            let snapshot = Snapshot {
                delivery_lag_seconds: shared.metrics.delivery_lag_seconds(),
                samples: shared.metrics.samples(),
                ..shared.status.snapshot()
            };
            match serde_json::to_string_pretty(&snapshot) {
                Ok(json) => response(StatusCode::OK, "application/json", json + "\n"),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "there are /live, /ready, /metrics and /status\n".to_owned()),
    }
}

fn ready(snapshot: &Snapshot) -> Response<Full<Bytes>> {
    match unready_because(snapshot) {
        None => text(StatusCode::OK, format!("ready\n{}", warnings(snapshot))),
        Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

/// What may cost the slot its WAL later, a line each: it is ready all the same, and nothing is helped by starting it anew.
fn warnings(snapshot: &Snapshot) -> String {
    let Some(slot) = &snapshot.slot_state else { return String::new() };
    let mut lines = String::new();
    let left = slot.safe_wal_bytes.filter(|left| *left < LITTLE_WAL);
    if left.is_some() || slot.wal_status.as_deref() == Some("unreserved") {
        let left = left.unwrap_or_default().max(0);
        lines.push_str(&format!("warning: the slot is lost after {left} more bytes of WAL (max_slot_wal_keep_size)\n"));
    }
    for holder in &slot.restart_held_by {
        lines.push_str(&format!("warning: WAL is kept for {}\n", holder.description));
    }
    lines
}

/// Why it is not ready, for a person; `None` if it is.
pub fn unready_because(snapshot: &Snapshot) -> Option<String> {
    if snapshot.ready() {
        return None;
    }
    let guess = || {
        if snapshot.stopping {
            "stopping".to_owned()
        } else if let Some(reason) = &snapshot.broker_blocked {
            format!("RabbitMQ has blocked publishing: {reason}")
        } else if !snapshot.broker_up {
            "no connection to RabbitMQ yet".to_owned()
        } else if !snapshot.session_up {
            "no replication session yet".to_owned()
        } else {
            format!("{}: another relay may hold the slot", snapshot.role.as_str())
        }
    };
    Some(snapshot.problem.clone().unwrap_or_else(guess))
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body)
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::status::Role;

    async fn listening() -> (SocketAddr, Metrics, Status) {
        let metrics = Metrics::new("shop", &["default".to_owned()]).unwrap();
        let status = Status::new("shop", "postrider");
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, metrics.clone(), status.clone()));
        (address, metrics, status)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn carrying(status: &Status) {
        status.update(|snapshot| {
            (snapshot.role, snapshot.session_up, snapshot.broker_up) = (Role::Active, true, true);
        });
    }

    #[tokio::test]
    async fn live_says_nothing_of_the_servers() {
        let (address, ..) = listening().await;
        assert!(ask(address, "GET /live").await.starts_with("HTTP/1.1 200 OK\r\n"));
    }

    #[tokio::test]
    async fn ready_gives_the_reason_while_it_is_red() {
        let (address, _, status) = listening().await;
        let answer = ask(address, "GET /ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("not ready: no connection to RabbitMQ yet\n"), "{answer}");

        status.update(|snapshot| snapshot.problem = Some("wal_level is replica: set it to logical".to_owned()));
        let answer = ask(address, "GET /ready").await;
        assert!(answer.ends_with("not ready: wal_level is replica: set it to logical\n"), "{answer}");

        carrying(&status);
        status.update(|snapshot| snapshot.problem = None);
        assert!(ask(address, "GET /ready").await.starts_with("HTTP/1.1 200 OK\r\n"));
        status.update(|snapshot| snapshot.broker_blocked = Some("low on memory".to_owned()));
        assert!(ask(address, "GET /ready").await.ends_with("blocked publishing: low on memory\n"));
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format() {
        let (address, ..) = listening().await;
        let answer = ask(address, "GET /metrics?a=b").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("postrider_session_up{slot=\"shop\"} 0\n"), "{answer}");
    }

    #[tokio::test]
    async fn status_is_json() {
        let (address, metrics, status) = listening().await;
        carrying(&status);
        metrics.sampled("slot");
        metrics.sampler_errors.with_label_values(&["management"]).inc();
        let answer = ask(address, "GET /status").await;
        let json: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((&json["role"], &json["slot"]), (&"active".into(), &"shop".into()));
        let samples = json["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2, "what was never tried is left out: {samples:?}");
        assert!(samples[0]["target"] == "slot" && samples[0]["age_seconds"].as_f64().unwrap() < 60.0, "{samples:?}");
        assert_eq!((&samples[1]["age_seconds"], &samples[1]["errors"]), (&serde_json::Value::Null, &1.into()));
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        let (address, ..) = listening().await;
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "GET /metrics/").await.starts_with("HTTP/1.1 404 "));
        for method in ["POST", "PUT", "DELETE"] {
            let answer = ask(address, &format!("{method} /status")).await;
            assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_names_the_setting() {
        let (address, ..) = listening().await;
        let error = bind(address).await.unwrap_err();
        assert!(error.to_string().contains("POSTRIDER_ADMIN_LISTEN"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_does_not_keep_the_others_out() {
        let (address, ..) = listening().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(address, "GET /live").await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
}
