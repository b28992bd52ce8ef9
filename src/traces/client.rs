//! HTTP to the collector, with TLS as for the servers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};

use crate::error;
use crate::tls::{self, Identity, TlsConfigError, Trust};

/// An answer says how many spans were refused, at most.
const LARGEST_ANSWER: usize = 64 << 10;

/// Keeps its connection between requests.
#[derive(Clone)]
pub(super) struct Client {
    inner: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// For one request with its answer.
    timeout: Duration,
    problem: Problem,
}

/// Why the last request failed: the exporter's error says only that it did.
#[derive(Clone, Debug, Default)]
pub(super) struct Problem(Arc<Mutex<Option<String>>>);

impl Problem {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, problem: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

impl Client {
    pub(super) fn new(
        trust: &Trust,
        identity: Option<&Identity>,
        timeout: Duration,
        problem: Problem,
    ) -> Result<Self, TlsConfigError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(trust, identity)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Client { inner: legacy::Client::builder(TokioExecutor::new()).build(connector), timeout, problem })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let (head, body) = self.inner.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        let late = || format!("no answer within {} s", self.timeout.as_secs_f32()).into();
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| Err(late()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.send(request).await;
        self.problem.set(match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(error::chain(error.as_ref())),
        });
        answer
    }
}

/// The exporter prints itself; nothing of a request may be in that.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
