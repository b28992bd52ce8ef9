//! One connection: two streams, each with a reader that decides what goes through and a writer that decides how.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::amqp::AmqpHalf;
use super::mischief::Direction;
use super::postgres::{Greeting, PostgresHalf};
use super::{Protocol, Shared};

/// How often what is held back is looked at.
const TICK: Duration = Duration::from_millis(2);
/// Pieces on their way from reader to writer: enough for a second of latency at full speed.
const LINE: usize = 1024;
const READ_BYTES: usize = 64 * 1024;

/// Why a connection ends.
enum End {
    /// Both streams have ended as they should.
    Closed,
    /// An end, but with a FIN.
    Dropped,
    Reset,
}

/// What one direction makes of its bytes.
pub(super) enum Half {
    Amqp(Box<AmqpHalf>),
    Postgres(PostgresHalf),
}

impl Half {
    /// Takes whole messages out of `bytes` and gives what goes through.
    fn take(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        match self {
            Half::Amqp(half) => half.take(bytes, out),
            Half::Postgres(half) => half.take(bytes, out),
        }
    }

    fn tick(&mut self, out: &mut Vec<u8>) {
        if let Half::Amqp(half) = self {
            half.tick(out);
        }
    }

    fn is_sql(&self) -> bool {
        matches!(self, Half::Postgres(half) if half.is_sql())
    }

    fn is_at_its_end(&self) -> bool {
        matches!(self, Half::Amqp(half) if half.is_at_its_end())
    }
}

/// What a connection is from the beginning.
pub(super) struct Birth {
    pub(super) number: u64,
    /// See [`super::Mischief::EndAfterFrames`].
    pub(super) end_after: Option<u64>,
}

/// Until its end.
pub(super) async fn carry(
    protocol: Protocol,
    Birth { number, end_after }: Birth,
    mut client: TcpStream,
    mut server: TcpStream,
    shared: Arc<Shared>,
    mut cut: watch::Receiver<u64>,
) {
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (up, down) = match protocol {
        Protocol::Amqp => {
            let half =
                |direction| Half::Amqp(Box::new(AmqpHalf::new(direction, number, end_after, Arc::clone(&shared))));
            (half(Direction::ToServer), half(Direction::ToClient))
        }
        Protocol::Postgres => {
            let greeting = Arc::new(Greeting::default());
            let half = |direction| {
                Half::Postgres(PostgresHalf::new(direction, number, Arc::clone(&greeting), Arc::clone(&shared)))
            };
            (half(Direction::ToServer), half(Direction::ToClient))
        }
    };
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Stream::new(Direction::ToServer, &shared).run(from_client, to_server, up);
        let down = Stream::new(Direction::ToClient, &shared).run(from_server, to_client, down);
        tokio::select! {
            end = both(up, down) => end,
            _ = cut.changed() => End::Reset,
        }
    };
    if matches!(end, End::Reset) {
        for socket in [&client, &server] {
            SockRef::from(socket).set_linger(Some(Duration::ZERO)).ok();
        }
    }
}

/// One stream's end is passed on; the connection is over with both, or with the first trouble.
async fn both(up: impl Future<Output = End>, down: impl Future<Output = End>) -> End {
    tokio::pin!(up, down);
    let (first, is_up) = tokio::select! {
        end = &mut up => (end, true),
        end = &mut down => (end, false),
    };
    match (first, is_up) {
        (End::Closed, true) => down.await,
        (End::Closed, false) => up.await,
        (end, _) => end,
    }
}

/// One direction of a connection.
struct Stream<'a> {
    direction: Direction,
    shared: &'a Shared,
    /// Half-closes up to this one are not for this connection.
    half_closed: u64,
    /// Bytes written since the [`super::Mischief::CutAfter`] of this number was set.
    counted: (u64, u64),
}

impl<'a> Stream<'a> {
    fn new(direction: Direction, shared: &'a Shared) -> Self {
        let half_closed = shared.active().half_close.0;
        Stream { direction, shared, half_closed, counted: (0, 0) }
    }

    async fn run(mut self, from: ReadHalf<'_>, to: WriteHalf<'_>, half: Half) -> End {
        let (line, pieces) = mpsc::channel(LINE);
        let reader = read(self.direction, self.shared, from, half, line);
        let writer = self.write(to, pieces);
        match tokio::try_join!(reader, writer) {
            Ok(((), true)) => End::Closed,
            Ok(((), false)) => End::Dropped,
            Err(_) => End::Reset,
        }
    }

    /// Returns whether the reader has come to the end of its stream; otherwise the connection is to be closed.
    async fn write(&mut self, mut to: WriteHalf<'_>, mut pieces: mpsc::Receiver<Piece>) -> io::Result<bool> {
        let mut tick = ticks();
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                _ = tick.tick() => {
                    if self.is_half_closed() {
                        break;
                    }
                    continue;
                }
            };
            let Some(Piece { due, bytes, last }) = piece else { break };
            sleep_until(due).await;
            stalled(self.shared, self.direction, false).await;
            self.give(&mut to, &bytes).await?;
            if last {
                return Ok(false);
            }
        }
        to.shutdown().await?;
        // The reader must not wait for a writer that has gone.
        while pieces.recv().await.is_some() {}
        Ok(true)
    }

    fn is_half_closed(&self) -> bool {
        let (number, direction) = self.shared.active().half_close;
        number > self.half_closed && direction.is_some_and(|direction| direction.covers(self.direction))
    }

    async fn give(&mut self, to: &mut WriteHalf<'_>, bytes: &[u8]) -> io::Result<()> {
        let ((number, cut_after), slices) = {
            let active = self.shared.active();
            (active.cut_after, active.slices)
        };
        if self.counted.0 != number {
            self.counted = (number, 0);
        }
        let left = cut_after.map(|limit| usize::try_from(limit.saturating_sub(self.counted.1)).unwrap());
        let cut = left.is_some_and(|left| left <= bytes.len());
        let bytes = if cut { &bytes[..left.unwrap()] } else { bytes };
        if slices {
            for byte in bytes {
                to.write_all(std::slice::from_ref(byte)).await?;
            }
        } else {
            to.write_all(bytes).await?;
        }
        self.counted.1 += bytes.len() as u64;
        {
            let counts = &mut self.shared.evidence().counts;
            match self.direction {
                Direction::ToServer => counts.bytes_to_server += bytes.len() as u64,
                _ => counts.bytes_to_client += bytes.len() as u64,
            }
            counts.cuts += u64::from(cut);
        }
        if cut { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    last: bool,
}

async fn read(
    direction: Direction,
    shared: &Shared,
    mut from: ReadHalf<'_>,
    mut half: Half,
    line: mpsc::Sender<Piece>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut tick = ticks();
    loop {
        stalled(shared, direction, half.is_sql()).await;
        let mut bytes = Vec::new();
        buffer.reserve(READ_BYTES);
        tokio::select! {
            count = from.read_buf(&mut buffer) => {
                if count? == 0 {
                    return Ok(());
                }
                stalled(shared, direction, half.is_sql()).await;
                half.take(&mut buffer, &mut bytes);
            }
            _ = tick.tick() => half.tick(&mut bytes),
        }
        let last = half.is_at_its_end();
        if !bytes.is_empty() || last {
            let due = Instant::now() + shared.active().latency;
            line.send(Piece { due, bytes, last }).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        if last {
            return Ok(());
        }
    }
}

fn ticks() -> tokio::time::Interval {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

async fn stalled(shared: &Shared, direction: Direction, sql: bool) {
    while shared.active().stalls(direction, sql) {
        sleep(Duration::from_millis(5)).await;
    }
}
