//! The socket under lapin: TCP with our options, TLS by our configuration, and a switch that ends it in every case.
//!
//! lapin brings a socket of its own, without time-outs and with TLS of its own choice, unless it is given a runtime whose
//! `TcpStream` is another type. That is all the runtime here is for: everything else in it is tokio's.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_compat::Compat;
use async_rs::Runtime;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use futures_util::Stream;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use super::connection::Fault;
use super::greeting::Greeting;
use super::tls;
use super::url::BrokerAddress;

/// A peer that vanished is noticed after twice the heartbeat by AMQP; the kernel's means are of the same size.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Plain or TLS, in the traits that lapin reads and writes by.
pub(super) type Socket = Compat<Watched>;

/// What lapin needs of a byte stream.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A stream that tells us too when it has ended: lapin keeps that to itself if it happens between two steps of the handshake.
pub(super) struct Watched {
    stream: Box<dyn ByteStream>,
    /// Dropped at the end.
    alive: Option<oneshot::Sender<()>>,
    /// Until it is complete.
    greeting: Option<Greeting>,
}

/// Completes when nothing more can be read from the socket, or written to it.
pub(super) struct Ended(oneshot::Receiver<()>);

impl Watched {
    fn new(stream: impl ByteStream + 'static, greeting: Greeting) -> (Self, Ended) {
        let (alive, ended) = oneshot::channel();
        (Watched { stream: Box::new(stream), alive: Some(alive), greeting: Some(greeting) }, Ended(ended))
    }

    fn watch<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(result, Poll::Ready(Err(_))) {
            self.alive = None;
        }
        result
    }
}

impl Ended {
    pub(super) async fn wait(self) {
        // The sender is only ever dropped.
        self.0.await.ok();
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (room, before) = (buffer.remaining(), buffer.filled().len());
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if result.is_ready() && room > 0 && buffer.remaining() == room {
            self.alive = None;
        }
        let read = buffer.filled().get(before..).unwrap_or_default();
        if self.greeting.as_ref().is_some_and(|greeting| !greeting.read(read)) {
            self.greeting = None;
        }
        self.watch(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A second handle on the socket; dropping it shuts the socket down.
pub(super) struct KillSwitch(socket2::Socket);

impl Drop for KillSwitch {
    fn drop(&mut self) {
        // It may be closed already.
        self.0.shutdown(std::net::Shutdown::Both).ok();
    }
}

/// Connects to the broker, TLS included. The broker's first words are kept in `greeting`.
pub(super) async fn open(broker: &BrokerAddress, greeting: Greeting) -> Result<(Socket, Ended, KillSwitch), Fault> {
    let tcp = connect(broker).await?;
    let options = SockRef::from(&tcp);
    options.set_tcp_nodelay(true).map_err(Fault::Tcp)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    options.set_tcp_keepalive(&keepalive).map_err(Fault::Tcp)?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(USER_TIMEOUT)).map_err(Fault::Tcp)?;
    let kill_switch = KillSwitch(options.try_clone().map_err(Fault::Tcp)?);

    let Some(options) = &broker.tls else {
        let (stream, ended) = Watched::new(tcp, greeting);
        return Ok((Compat::new(stream), ended, kill_switch));
    };
    let config = tls::config(options)?;
    let name = options.server_name.as_deref().unwrap_or(&broker.host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| Fault::Tls { hint: format!("`{name}` is no host name"), source: io::Error::other(error) })?;
    match TlsConnector::from(config).connect(name, tcp).await {
        Ok(stream) => {
            let (stream, ended) = Watched::new(stream, greeting);
            Ok((Compat::new(stream), ended, kill_switch))
        }
        Err(source) => Err(Fault::Tls { hint: tls::hint(&source), source }),
    }
}

async fn connect(broker: &BrokerAddress) -> Result<TcpStream, Fault> {
    let addresses = tokio::net::lookup_host((broker.host.as_str(), broker.port)).await.map_err(Fault::Resolve)?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        None => Fault::Resolve(io::ErrorKind::NotFound.into()),
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => Fault::Refused(error),
        Some(error) => Fault::Tcp(error),
    })
}

/// Tokio, with our sockets. To be called inside a tokio runtime.
pub(super) fn runtime() -> Runtime<RuntimeParts<async_rs::Tokio, Sockets>> {
    let tokio = async_rs::Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), Sockets(tokio)))
}

#[derive(Clone, Debug)]
pub(super) struct Sockets(async_rs::Tokio);

impl Reactor for Sockets {
    type TcpStream = Socket;
    type Sleep = tokio::time::Sleep;

    fn register<H: Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl futures_util::io::AsyncRead + futures_util::io::AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = std::time::Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        // lapin is given its socket, and never makes one.
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
