//! From a [`Target`] to a socket on which PostgreSQL's protocol can start: hosts and their addresses in turn, TCP options,
//! TLS as `sslmode` says. Both kinds of connection, ordinary SQL and replication, begin here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::ConnectError;
use super::tls;
use super::url::{Host, Place, SslMode, Target};

/// SSLRequest (manual, chapter "Message Formats"): the length 8, then 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A connected socket, not yet logged in.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// A socket, where it leads, and how it was made (to make another one like it: a CancelRequest needs that).
pub(crate) struct Dialled {
    pub(crate) socket: Socket,
    pub(crate) route: Route,
}

/// One way to one server.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) place: String,
    host: Host,
    ip: Option<IpAddr>,
    security: Security,
    timeout: Duration,
}

#[derive(Clone)]
enum Security {
    Plain,
    /// With `optional`, a server without TLS is taken in plaintext.
    Tls {
        config: Arc<ClientConfig>,
        optional: bool,
    },
}

/// Tries the hosts of `target` in order, each of their addresses, and the encryptions that `sslmode` allows, until `login`
/// succeeds. Connect, TLS and login of one address have `connect_timeout` together.
///
/// A refused login ends the search, as in libpq: the same user and password would be refused elsewhere.
pub(crate) async fn connect<T, L, F>(target: &Target, login: L) -> Result<T, ConnectError>
where
    L: Fn(Dialled) -> F,
    F: Future<Output = Result<T, ConnectError>>,
{
    let mut errors = Vec::new();
    'hosts: for host in &target.hosts {
        let addresses = match resolve(host).await {
            Ok(addresses) => addresses,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        for ip in addresses {
            match connect_to(target, host, ip, &login).await {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    let last = error.is_login_refusal();
                    errors.push(error);
                    if last {
                        break 'hosts;
                    }
                }
            }
        }
    }
    Err(if errors.len() == 1 { errors.remove(0) } else { ConnectError::Several(errors) })
}

/// The addresses of a host; one `None` for a Unix socket.
async fn resolve(host: &Host) -> Result<Vec<Option<IpAddr>>, ConnectError> {
    let name = match &host.place {
        Place::Unix(_) => return Ok(vec![None]),
        Place::Tcp { addr: Some(ip), .. } => return Ok(vec![Some(*ip)]),
        Place::Tcp { host, addr: None } => host,
    };
    let found = tokio::net::lookup_host((name.as_str(), host.port)).await;
    let mut addresses: Vec<Option<IpAddr>> = found
        .map_err(|source| ConnectError::Resolve { host: name.clone(), source })?
        .map(|address| Some(address.ip()))
        .collect();
    addresses.dedup();
    Ok(addresses)
}

/// One address, by each encryption that `sslmode` allows, in libpq's order.
async fn connect_to<T, L, F>(target: &Target, host: &Host, ip: Option<IpAddr>, login: &L) -> Result<T, ConnectError>
where
    L: Fn(Dialled) -> F,
    F: Future<Output = Result<T, ConnectError>>,
{
    let mode = target.ssl_mode_for(host, ip);
    let tls = |optional| Ok::<_, ConnectError>(Security::Tls { config: tls::config_for(target, mode)?, optional });
    let (first, second) = match mode {
        SslMode::Disable => (Security::Plain, None),
        SslMode::Allow => (Security::Plain, Some(tls(false)?)),
        SslMode::Prefer => (tls(true)?, Some(Security::Plain)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (tls(false)?, None),
    };
    let route =
        |security| Route { place: host.to_string(), host: host.clone(), ip, security, timeout: target.connect_timeout };
    let error = match attempt(target, route(first), login).await {
        Ok(connected) => return Ok(connected),
        Err(error) => error,
    };
    match second {
        Some(second) if error.is_about_encryption() => attempt(target, route(second), login).await,
        _ => Err(error),
    }
}

async fn attempt<T, L, F>(target: &Target, route: Route, login: &L) -> Result<T, ConnectError>
where
    L: Fn(Dialled) -> F,
    F: Future<Output = Result<T, ConnectError>>,
{
    let timeout = ConnectError::Timeout { place: route.place.clone(), seconds: route.timeout.as_secs() };
    let both = async {
        let socket = route.open(target).await?;
        login(Dialled { socket, route: route.clone() }).await
    };
    // Boxed: the login's future is large, and this one lives inside the session's.
    tokio::time::timeout(route.timeout, Box::pin(both)).await.unwrap_or(Err(timeout))
}

impl Route {
    /// Connects and negotiates TLS. No deadline of its own.
    pub(crate) async fn open(&self, target: &Target) -> Result<Socket, ConnectError> {
        let failed = |source| ConnectError::Io { place: self.place.clone(), source };
        let (ip, name) = match (&self.host.place, self.ip) {
            (Place::Unix(directory), _) => {
                let path = directory.join(format!(".s.PGSQL.{}", self.host.port));
                return UnixStream::connect(path).await.map(Socket::Unix).map_err(failed);
            }
            (Place::Tcp { host, .. }, Some(ip)) => (ip, host),
            (Place::Tcp { host, .. }, None) => {
                let source = io::Error::from(io::ErrorKind::AddrNotAvailable);
                return Err(ConnectError::Resolve { host: host.clone(), source });
            }
        };
        let stream = TcpStream::connect(SocketAddr::new(ip, self.host.port)).await.map_err(failed)?;
        set_options(&stream, target).map_err(failed)?;
        match &self.security {
            Security::Plain => Ok(Socket::Tcp(stream)),
            Security::Tls { config, optional } => self.negotiate(stream, name, Arc::clone(config), *optional).await,
        }
    }

    async fn negotiate(
        &self,
        mut stream: TcpStream,
        name: &str,
        config: Arc<ClientConfig>,
        optional: bool,
    ) -> Result<Socket, ConnectError> {
        let place = || self.place.clone();
        let failed = |source| ConnectError::Io { place: place(), source };
        stream.write_all(&SSL_REQUEST).await.map_err(failed)?;
        // One byte and not more: whatever is sent behind it in plaintext must not be taken for the server's word.
        match stream.read_u8().await.map_err(failed)? {
            b'S' => {}
            b'N' if optional => return Ok(Socket::Tcp(stream)),
            b'N' => return Err(ConnectError::NoTls { place: place() }),
            _ => return Err(ConnectError::Protocol { place: place(), what: "not an answer to SSLRequest".to_owned() }),
        }
        let server_name = ServerName::try_from(name.to_owned()).map_err(|error| ConnectError::Tls {
            place: place(),
            what: format!("`{name}` is not a host name that a certificate could be for"),
            source: io::Error::other(error),
        })?;
        match TlsConnector::from(config).connect(server_name, stream).await {
            Ok(stream) => Ok(Socket::Tls(Box::new(stream))),
            Err(source) => Err(ConnectError::Tls { place: place(), what: tls::explain(&source, name), source }),
        }
    }
}

fn set_options(stream: &TcpStream, target: &Target) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(keepalive) = target.keepalive {
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(keepalive.idle)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.count),
        )?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(target.tcp_user_timeout)?;
    Ok(())
}

impl Socket {
    /// What SCRAM binds to: see [`tls::end_point`].
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Socket::Tls(stream) = self else { return None };
        tls::end_point(stream.get_ref().1.peer_certificates()?.first()?)
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Socket::Tls(_))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
