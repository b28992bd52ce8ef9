//! An OTLP collector that keeps what it is sent.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

/// Listens until the test ends.
pub(crate) struct Collector {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Received>>>,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) authorization: String,
    /// As it came.
    pub(crate) body: Bytes,
    pub(crate) resource: Vec<KeyValue>,
    pub(crate) spans: Vec<Span>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::serve(true).await
    }

    /// Takes requests, and never answers one.
    pub(crate) async fn silent() -> Self {
        Self::serve(false).await
    }

    async fn serve(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Received>>> = Arc::default();
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let received = receive(request).await;
                        kept.lock().unwrap().push(received);
                        if !answers {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                    }
                });
                tokio::spawn(async move {
                    // A client that goes away is no failure of the test.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Collector { url, requests }
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.requests().into_iter().flat_map(|request| request.spans).collect()
    }
}

async fn receive(request: Request<Incoming>) -> Received {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("content-type").as_deref(), Some("application/x-protobuf"));
    let (path, authorization) = (request.uri().path().to_owned(), header("authorization").unwrap_or_default());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let decoded = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let mut received = Received { path, authorization, body, resource: Vec::new(), spans: Vec::new() };
    for group in decoded.resource_spans {
        received.resource = group.resource.unwrap().attributes;
        received.spans.extend(group.scope_spans.into_iter().flat_map(|scope| scope.spans));
    }
    received
}

/// The text of an attribute; a number in decimal digits.
pub(crate) fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}
