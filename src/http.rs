//! One HTTP/1.1 GET: of a running relay's admin listener, and of RabbitMQ's management API.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Larger answers are an error: what is asked for here has kilobytes.
const LARGEST_BODY: usize = 16 << 20;

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// No answer. Holds nothing of the request.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("{0}")]
    Protocol(#[from] hyper::Error),
    #[error("not a request that HTTP allows: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("the answer is broken or larger than {LARGEST_BODY} bytes: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Asks for `path` over plaintext. `deadline` is for everything together.
pub async fn get(host: &str, port: u16, path: &str, deadline: Duration) -> Result<Answer, HttpError> {
    within(deadline, async { over(connect(host, port).await?, host, path, None).await }).await
}

pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, HttpError> {
    let connected = TcpStream::connect((host, port)).await;
    connected.map_err(|source| HttpError::Connect { address: format!("{host}:{port}"), source })
}

pub(crate) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(HttpError::TimedOut(deadline)))
}

/// One request over a connection of its own. `authorization` is the whole header.
pub(crate) async fn over<S>(stream: S, host: &str, path: &str, authorization: Option<&str>) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Connection::open(stream).await?.get(host, path, authorization).await
}

/// For requests one after the other. Closed when dropped.
pub(crate) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// Does the reading and writing; its errors show in the requests.
    driver: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    pub(crate) async fn open<S>(stream: S) -> Result<Self, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            connection.await.ok();
        });
        Ok(Connection { sender, driver: AbortOnDrop(driver) })
    }

    /// Whether another request can be tried.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed() && !self.driver.0.is_finished()
    }

    /// `authorization` is the whole header.
    pub(crate) async fn get(
        &mut self,
        host: &str,
        path: &str,
        authorization: Option<&str>,
    ) -> Result<Answer, HttpError> {
        let mut request = Request::get(path).header(HOST, host);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST_BODY).collect().await.map_err(HttpError::Body)?;
        Ok(Answer { status, body: body.to_bytes() })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(String::from_utf8_lossy(&self.body).trim())
    }
}
