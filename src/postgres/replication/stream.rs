//! The stream: frames in, status updates out.

use std::time::{Duration, Instant, SystemTime};

use pgwire::messages::PgWireFrontendMessage;
use pgwire::messages::copy::CopyData;
use pgwire::messages::terminate::Terminate;

use super::ReplicationError;
use super::frame::{self, Frame};
use super::wire::{Incoming, Wire};
use crate::lsn::Lsn;

/// Letting data pile up for this long after a batch that was small, while data keeps coming, makes the walsender faster
/// (through Docker's bridge 1.6 times, over a Unix socket more than twice) and costs us a fifth of the CPU: a reader that
/// waits takes every message at once, and the walsender pays a system call and a wake-up for each. 100 us is too short;
/// at 1 ms the socket's buffer is full.
const PAUSE: Duration = Duration::from_micros(250);
/// A batch below this was small.
const SMALL: usize = 64 * 1024;
/// Data keeps coming if a batch follows the one before it within this time. An idle stream never waits.
const KEEPS_COMING: Duration = Duration::from_millis(2);
const WRITE: Duration = Duration::from_secs(10);
/// program_limit_exceeded (manual, appendix "PostgreSQL Error Codes").
const LIMIT_EXCEEDED: &str = "54000";
const CLOSE: Duration = Duration::from_secs(1);

/// An open replication stream. Dropping it closes the connection without a word; the slot stays where it was acknowledged.
///
/// **Belongs on a thread of its own**, with a current-thread runtime: [`ReplicationStream::next_batch`] may put the thread
/// to sleep for a quarter of a millisecond, which is finer than tokio's timer.
pub struct ReplicationStream {
    wire: Wire,
    /// Came before the stream began.
    notices: Vec<String>,
    acknowledged: Lsn,
    last_batch: Instant,
    heard: Instant,
    pause_due: bool,
    sender_timeout: Duration,
}

impl ReplicationStream {
    pub(super) fn new(wire: Wire, notices: Vec<String>, sender_timeout: Duration) -> Self {
        let now = Instant::now();
        ReplicationStream {
            wire,
            notices,
            acknowledged: Lsn::ZERO,
            last_batch: now,
            heard: now,
            pause_due: false,
            sender_timeout,
        }
    }

    /// How long the server waits for a status update before it ends the connection.
    pub fn sender_timeout(&self) -> Duration {
        self.sender_timeout
    }

    /// Appends at least one frame to `frames`: waits for the first, then takes what has arrived already, up to about
    /// `max_bytes` (a single frame may be larger). **Cancel-safe**: nothing is lost when the future is dropped while it
    /// waits, and once it has a frame it does not wait again.
    ///
    /// After an error the stream is over.
    pub async fn next_batch(&mut self, frames: &mut Vec<Frame>, max_bytes: usize) -> Result<(), ReplicationError> {
        let mut bytes = 0;
        let mut got_any = false;
        for notice in self.notices.drain(..) {
            frames.push(Frame::Notice(notice));
            got_any = true;
        }
        loop {
            while bytes < max_bytes || !got_any {
                let Some(incoming) = self.wire.decode()? else { break };
                let frame = frame_of(incoming)?;
                bytes += frame.bytes();
                frames.push(frame);
                got_any = true;
            }
            if !got_any {
                self.pause();
                self.wire.read().await?;
                self.heard = Instant::now();
            } else if bytes >= max_bytes || !self.wire.read_now().await? {
                break;
            }
        }
        let now = Instant::now();
        self.pause_due = bytes < SMALL && now.duration_since(self.last_batch) < KEEPS_COMING;
        self.last_batch = now;
        Ok(())
    }

    /// When anything came last, be it a piece of a row of a gigabyte. Only reading hears.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// At most once a batch, however often `next_batch` is begun anew.
    fn pause(&mut self) {
        if std::mem::take(&mut self.pause_due) {
            std::thread::sleep(PAUSE);
        }
    }

    /// Tells the server what was received and that everything before `flushed` is delivered: the slot moves there.
    /// Zero says nothing about the slot. `reply_requested` asks for a keepalive in return.
    ///
    /// The server believes any position, also one that it has not sent, and skips what lies before it. So this refuses
    /// a `flushed` above `received` or below an earlier one.
    pub async fn send_status(
        &mut self,
        received: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> Result<(), ReplicationError> {
        if flushed > received || flushed < self.acknowledged {
            let acknowledged = self.acknowledged;
            debug_assert!(false, "flushed {flushed}, received {received}, acknowledged {acknowledged}");
            return Err(ReplicationError::Status { received, flushed, acknowledged });
        }
        let status = frame::status(received, flushed, SystemTime::now(), reply_requested);
        self.wire.put(&PgWireFrontendMessage::CopyData(CopyData::new(status)))?;
        self.acknowledged = flushed;
        let timeout = Err(ReplicationError::Timeout { what: "a status update", seconds: WRITE.as_secs() });
        tokio::time::timeout(WRITE, self.wire.flush()).await.unwrap_or(timeout)
    }

    /// Ends the connection and gives the server a second to let go of the slot. What still comes is dropped: it is sent
    /// again next time. The walsender reads this also while it is busy sending.
    pub async fn close(mut self) {
        let goodbye = async {
            self.wire.send(&PgWireFrontendMessage::Terminate(Terminate::new())).await.ok()?;
            self.wire.drain().await;
            Some(())
        };
        tokio::time::timeout(CLOSE, goodbye).await.ok();
    }
}

fn frame_of(incoming: Incoming) -> Result<Frame, ReplicationError> {
    use pgwire::messages::PgWireBackendMessage::{CommandComplete, CopyDone, ReadyForQuery};
    match incoming {
        Incoming::CopyData(body) => {
            frame::parse(body).ok_or_else(|| ReplicationError::Protocol("a frame of an unknown kind".to_owned()))
        }
        Incoming::Notice(text) => Ok(Frame::Notice(text)),
        Incoming::Error(error) if error.sqlstate == LIMIT_EXCEEDED => Err(ReplicationError::RowTooLarge(error)),
        Incoming::Error(error) => Err(error.into()),
        Incoming::Other(CopyDone(_) | CommandComplete(_) | ReadyForQuery(_)) => Err(ReplicationError::Ended),
        other => Err(other.unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::postgres::dial::Socket;

    /// A stream and the server's end of it.
    fn pair() -> (ReplicationStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ReplicationStream::new(Wire::new(Socket::Unix(ours)), Vec::new(), Duration::from_secs(60)), theirs)
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        let mut body = vec![b'w'];
        body.extend([0; 24]);
        body.extend(payload);
        message(b'd', &body)
    }

    fn payloads(frames: &[Frame]) -> Vec<usize> {
        frames.iter().map(Frame::bytes).collect()
    }

    #[tokio::test]
    async fn a_batch_takes_what_has_arrived_up_to_its_bound() {
        let (mut stream, mut server) = pair();
        let mut frames = Vec::new();
        for _ in 0..3 {
            server.write_all(&data(&[1; 100])).await.unwrap();
        }
        stream.next_batch(&mut frames, 150).await.unwrap();
        assert_eq!(payloads(&frames), [100, 100]);
        stream.next_batch(&mut frames, 150).await.unwrap();
        assert_eq!(payloads(&frames), [100, 100, 100]);
    }

    #[tokio::test]
    async fn a_dropped_wait_loses_nothing() {
        let (mut stream, mut server) = pair();
        let mut frames = Vec::new();
        for byte in data(b"in small pieces") {
            server.write_all(&[byte]).await.unwrap();
            tokio::select! {
                biased;
                result = stream.next_batch(&mut frames, 1024) => result.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
        if frames.is_empty() {
            stream.next_batch(&mut frames, 1024).await.unwrap();
        }
        assert_eq!(payloads(&frames), [15]);
    }

    #[tokio::test]
    async fn a_notice_is_a_frame_of_its_own() {
        let (mut stream, mut server) = pair();
        let mut frames = Vec::new();
        server.write_all(&message(b'N', b"SWARNING\0C55000\0Mskipped loading publication\0\0")).await.unwrap();
        stream.next_batch(&mut frames, 1024).await.unwrap();
        assert_eq!(frames, [Frame::Notice("skipped loading publication (SQLSTATE 55000)".to_owned())]);
    }

    #[tokio::test]
    async fn the_servers_last_words_are_the_error() {
        let (mut stream, mut server) = pair();
        server.write_all(&message(b'E', b"SFATAL\0C57P01\0Mterminating\0\0")).await.unwrap();
        let error = stream.next_batch(&mut Vec::new(), 1024).await.unwrap_err();
        assert!(error.is_shutting_down(), "{error}");

        let (mut stream, mut server) = pair();
        server.write_all(&message(b'C', b"COPY 0\0")).await.unwrap();
        let error = stream.next_batch(&mut Vec::new(), 1024).await.unwrap_err();
        assert!(matches!(error, ReplicationError::Ended));

        let (mut stream, server) = pair();
        drop(server);
        let error = stream.next_batch(&mut Vec::new(), 1024).await.unwrap_err();
        assert!(matches!(error, ReplicationError::Closed));
    }

    #[tokio::test]
    async fn a_row_that_the_server_cannot_send_is_told_with_what_to_do() {
        let (mut stream, mut server) = pair();
        let text = b"SERROR\0C54000\0Mstring buffer exceeds maximum allowed length (1073741823 bytes)\0\0";
        server.write_all(&message(b'E', text)).await.unwrap();
        let error = stream.next_batch(&mut Vec::new(), 1024).await.unwrap_err().to_string();
        assert!(error.contains("1073741823") && error.contains("pg_replication_slot_advance"), "{error}");
    }

    #[tokio::test]
    async fn a_status_update_goes_out_in_one_message() {
        let (mut stream, mut server) = pair();
        stream.send_status(Lsn(7), Lsn(5), false).await.unwrap();
        stream.send_status(Lsn(7), Lsn(5), true).await.unwrap();
        let mut sent = [0; 2 * 39];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent[..6], [b'd', 0, 0, 0, 38, b'r']);
        assert_eq!((sent[38], sent[77]), (0, 1));
    }

    #[tokio::test]
    #[should_panic(expected = "flushed 0/8, received 0/7")]
    #[cfg(debug_assertions)]
    async fn what_was_not_received_is_not_acknowledged() {
        let (mut stream, _server) = pair();
        stream.send_status(Lsn(7), Lsn(8), false).await.unwrap();
    }

    #[tokio::test]
    #[should_panic(expected = "flushed 0/4, received 0/9, acknowledged 0/5")]
    #[cfg(debug_assertions)]
    async fn an_acknowledgement_never_goes_back() {
        let (mut stream, _server) = pair();
        stream.send_status(Lsn(7), Lsn(5), false).await.unwrap();
        stream.send_status(Lsn(9), Lsn(4), false).await.unwrap();
    }

    #[tokio::test]
    async fn closing_says_goodbye_and_waits_for_the_server() {
        let (stream, mut server) = pair();
        let closing = tokio::spawn(stream.close());
        let mut goodbye = [0; 5];
        server.read_exact(&mut goodbye).await.unwrap();
        assert_eq!(goodbye, [b'X', 0, 0, 0, 4]);
        assert!(!closing.is_finished());
        drop(server);
        closing.await.unwrap();
    }
}
