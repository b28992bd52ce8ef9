//! PostgreSQL's protocol on one socket: whole messages in and out, cancel-safe.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::response::{ErrorResponse, NoticeResponse};
use pgwire::messages::{DecodeContext, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ReplicationError;
use crate::postgres::dial::Socket;
use crate::postgres::error::ServerError;

/// PostgreSQL allocates at most 1 GiB for a value or a message; what claims to be longer is not from PostgreSQL.
const MAX_DATA: usize = (1 << 30) + (1 << 16);
/// Everything but data and rows is short.
const MAX_OTHER: usize = 1 << 20;
/// Room for one read.
const READ: usize = 128 * 1024;
/// Type and length; the length counts itself, but not the type.
const HEADER: usize = 5;

pub(super) struct Wire {
    socket: Socket,
    input: BytesMut,
    output: BytesMut,
}

/// The messages of the server that mean something to us.
#[derive(Debug)]
pub(super) enum Incoming {
    CopyData(Bytes),
    CopyBoth,
    /// A DataRow's fields as text.
    Row(Vec<Option<String>>),
    Error(ServerError),
    Notice(String),
    Other(PgWireBackendMessage),
}

impl Incoming {
    /// The error that this message is where it does not belong.
    pub(super) fn unexpected(&self) -> ReplicationError {
        let name = match self {
            Incoming::CopyData(_) => "CopyData",
            Incoming::CopyBoth => "CopyBothResponse",
            Incoming::Row(_) => "DataRow",
            Incoming::Error(_) => "ErrorResponse",
            Incoming::Notice(_) => "NoticeResponse",
            Incoming::Other(_) => "message",
        };
        ReplicationError::Protocol(format!("an unexpected {name}"))
    }
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Self {
        Wire { socket, input: BytesMut::new(), output: BytesMut::new() }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The next message. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Incoming, ReplicationError> {
        loop {
            if let Some(message) = self.decode()? {
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// A message that has arrived whole.
    pub(super) fn decode(&mut self) -> Result<Option<Incoming>, ReplicationError> {
        decode(&mut self.input)
    }

    /// Waits for bytes. Cancel-safe.
    pub(super) async fn read(&mut self) -> Result<(), ReplicationError> {
        self.input.reserve(READ);
        ended_if_nothing(self.socket.read_buf(&mut self.input).await)
    }

    /// Takes what has arrived, without waiting; `false` if there is nothing.
    pub(super) async fn read_now(&mut self) -> Result<bool, ReplicationError> {
        self.input.reserve(READ);
        let mut read = pin!(self.socket.read_buf(&mut self.input));
        poll_fn(|cx| match read.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(ended_if_nothing(result).map(|()| true)),
            Poll::Pending => Poll::Ready(Ok(false)),
        })
        .await
    }

    /// Puts a message into the buffer that [`Wire::flush`] sends.
    pub(super) fn put(&mut self, message: &PgWireFrontendMessage) -> Result<(), ReplicationError> {
        message.encode(&mut self.output).map_err(|error| ReplicationError::Protocol(error.to_string()))
    }

    /// Sends what was put. Cancel-safe: what is left is sent by the next call.
    pub(super) async fn flush(&mut self) -> Result<(), ReplicationError> {
        self.socket.write_all_buf(&mut self.output).await?;
        self.socket.flush().await?;
        Ok(())
    }

    pub(super) async fn send(&mut self, message: &PgWireFrontendMessage) -> Result<(), ReplicationError> {
        self.put(message)?;
        self.flush().await
    }

    /// Reads and drops whatever comes, until the server closes the connection.
    pub(super) async fn drain(&mut self) {
        loop {
            self.input.clear();
            if self.read().await.is_err() {
                return;
            }
        }
    }
}

/// Zero bytes read is the end; a TLS peer that is killed ends without saying so, which rustls reports as an error.
fn ended_if_nothing(read: io::Result<usize>) -> Result<(), ReplicationError> {
    match read {
        Ok(0) => Err(ReplicationError::Closed),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ReplicationError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes the first message that is whole and means something to us off `input`. A length that cannot be is refused before
/// anything is allocated for it.
fn decode(input: &mut BytesMut) -> Result<Option<Incoming>, ReplicationError> {
    loop {
        let Some((&[kind, a, b, c, d], _)) = input.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let max = if matches!(kind, b'd' | b'D') { MAX_DATA } else { MAX_OTHER };
        if length < 4 || length > max {
            let kind = char::from(kind).escape_default();
            return Err(ReplicationError::Protocol(format!("a message of type `{kind}` and length {length}")));
        }
        if input.len() < length + 1 {
            return Ok(None);
        }
        let message = input.split_to(length + 1);
        if let Some(incoming) = interpret(kind, message)? {
            return Ok(Some(incoming));
        }
    }
}

/// `message` is one whole message. `None`: nothing that concerns us.
fn interpret(kind: u8, mut message: BytesMut) -> Result<Option<Incoming>, ReplicationError> {
    let malformed =
        || ReplicationError::Protocol(format!("a malformed message of type `{}`", char::from(kind).escape_default()));
    match kind {
        b'd' => {
            message.advance(HEADER);
            return Ok(Some(Incoming::CopyData(message.freeze())));
        }
        b'D' => {
            message.advance(HEADER);
            return row(message.freeze()).map(|fields| Some(Incoming::Row(fields))).ok_or_else(malformed);
        }
        b'W' => return Ok(Some(Incoming::CopyBoth)),
        // RowDescription, EmptyQueryResponse, NotificationResponse, ParameterStatus.
        b'T' | b'I' | b'A' | b'S' => return Ok(None),
        b'R' if message.len() < HEADER + 4 => return Err(malformed()),
        b'K' if message.len() < HEADER + 8 => return Err(malformed()),
        // Authentication, BackendKeyData, ErrorResponse, NoticeResponse, ReadyForQuery, CommandComplete, CopyDone.
        b'R' | b'K' | b'E' | b'N' | b'Z' | b'C' | b'c' => {}
        _ => {
            return Err(ReplicationError::Protocol(format!(
                "a message of type `{}`",
                char::from(kind).escape_default()
            )));
        }
    }
    // pgwire's decoders take fields on trust and panic at the end of the buffer. Zeros behind the message end every list
    // and every text, and are more than any field of fixed length needs.
    message.extend_from_slice(&[0; 16]);
    let decoded = PgWireBackendMessage::decode(&mut message, &DecodeContext::new(ProtocolVersion::PROTOCOL3_0));
    Ok(Some(match decoded.ok().flatten().ok_or_else(malformed)? {
        PgWireBackendMessage::ErrorResponse(ErrorResponse { fields, .. }) => Incoming::Error(server_error(&fields)),
        PgWireBackendMessage::NoticeResponse(NoticeResponse { fields, .. }) => {
            Incoming::Notice(server_error(&fields).to_string())
        }
        other => Incoming::Other(other),
    }))
}

/// DataRow: Int16 fields, then for each Int32 length (-1: NULL) and its bytes.
fn row(mut body: Bytes) -> Option<Vec<Option<String>>> {
    let count = body.try_get_u16().ok()?;
    let mut fields = Vec::new();
    for _ in 0..count {
        let Ok(length) = usize::try_from(body.try_get_i32().ok()?) else {
            fields.push(None);
            continue;
        };
        if length > body.len() {
            return None;
        }
        fields.push(Some(String::from_utf8(body.split_to(length).into()).ok()?));
    }
    Some(fields)
}

fn server_error(fields: &[(u8, String)]) -> ServerError {
    let field = |code| fields.iter().find(|&&(each, _)| each == code).map(|(_, text)| text.clone());
    ServerError {
        severity: field(b'S').unwrap_or_default(),
        sqlstate: field(b'C').unwrap_or_default(),
        message: field(b'M').unwrap_or_default(),
        detail: field(b'D'),
        hint: field(b'H'),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::from(&[kind][..]);
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_message_waits_until_it_is_whole() {
        let whole = message(b'd', b"abc");
        for end in 0..whole.len() {
            assert!(decode(&mut BytesMut::from(&whole[..end])).unwrap().is_none(), "{end} bytes");
        }
        let mut two = whole.clone();
        two.extend_from_slice(&whole);
        for _ in 0..2 {
            assert!(matches!(decode(&mut two).unwrap(), Some(Incoming::CopyData(data)) if data == "abc"));
        }
        assert!(two.is_empty());
    }

    #[test]
    fn an_error_keeps_its_fields_and_survives_a_missing_end() {
        for end in [&b"\0"[..], b""] {
            let mut body = b"SFATAL\0C57P01\0Mterminating\0Hwait\0".to_vec();
            body.extend(end);
            let Some(Incoming::Error(error)) = decode(&mut message(b'E', &body)).unwrap() else { panic!("no error") };
            assert!(error.is_shutting_down());
            assert_eq!(error.to_string(), "terminating (SQLSTATE 57P01); wait");
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_with_the_header_alone() {
        for length in [0u32, 3, 0x4100_0000, u32::MAX] {
            let mut bytes = BytesMut::from(&b"d"[..]);
            bytes.extend(length.to_be_bytes());
            assert!(matches!(decode(&mut bytes), Err(ReplicationError::Protocol(_))), "{length}");
            assert!(bytes.capacity() < 1024);
        }
    }

    #[test]
    fn a_row_has_texts_and_nulls() {
        let mut body = vec![0, 2, 0, 0, 0, 2];
        body.extend(b"on");
        body.extend((-1i32).to_be_bytes());
        let Some(Incoming::Row(fields)) = decode(&mut message(b'D', &body)).unwrap() else { panic!("no row") };
        assert_eq!(fields, [Some("on".to_owned()), None]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            decode(&mut BytesMut::from(&bytes[..])).ok();
        }

        #[test]
        fn no_message_makes_the_decoder_panic(
            kind in prop::sample::select(&b"RSKZENTDCcdWGHvA123It"[..]),
            body in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            decode(&mut message(kind, &body)).ok();
        }

        #[test]
        fn no_authentication_request_makes_the_decoder_panic(
            code in 0u32..14,
            body in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut whole = code.to_be_bytes().to_vec();
            whole.extend(body);
            decode(&mut message(b'R', &whole)).ok();
        }
    }
}
