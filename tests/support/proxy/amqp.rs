//! AMQP 0-9-1, as far as publishing goes: frames, heartbeats, publishes, confirms. (Specification, 2.3.5 and 4.2.)

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use super::Shared;
use super::confirms::{Confirms, Kind};
use super::evidence::What;
use super::mischief::Direction;

const METHOD: u8 = 1;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
const PROTOCOL_HEADER: usize = 8;

const CONNECTION_CLOSE: (u16, u16) = (10, 50);
const CHANNEL_OPEN: (u16, u16) = (20, 10);
const CHANNEL_OPEN_OK: (u16, u16) = (20, 11);
const CHANNEL_CLOSE: (u16, u16) = (20, 40);
const PUBLISH: (u16, u16) = (60, 40);
const RETURN: (u16, u16) = (60, 50);
pub(super) const ACK: (u16, u16) = (60, 80);
pub(super) const NACK: (u16, u16) = (60, 120);
const CONFIRM_SELECT: (u16, u16) = (85, 10);

pub(super) struct AmqpHalf {
    direction: Direction,
    connection: u64,
    shared: Arc<Shared>,
    /// The client begins with eight bytes that are no frame.
    started: bool,
    /// Of the client: channels with confirms, and their newest tag.
    tags: HashMap<u16, u64>,
    /// Of the server.
    confirms: Confirms,
    frames: u64,
    end_after: Option<u64>,
}

impl AmqpHalf {
    pub(super) fn new(direction: Direction, connection: u64, end_after: Option<u64>, shared: Arc<Shared>) -> Self {
        let started = direction == Direction::ToClient;
        let confirms = Confirms::new(connection, Arc::clone(&shared));
        AmqpHalf { direction, connection, shared, started, tags: HashMap::new(), confirms, frames: 0, end_after }
    }

    pub(super) fn take(&mut self, bytes: &mut BytesMut, out: &mut Vec<u8>) {
        if !self.started {
            if bytes.len() < PROTOCOL_HEADER {
                return;
            }
            out.extend(bytes.split_to(PROTOCOL_HEADER));
            self.started = true;
        }
        while !self.is_at_its_end()
            && let Some(frame) = Frame::take(bytes)
        {
            self.frames += 1;
            if frame.bytes[0] == HEARTBEAT && self.shared.active().swallows(self.direction) {
                self.shared.evidence().counts.swallowed += 1;
                continue;
            }
            if self.direction == Direction::ToServer {
                self.note_client(&frame);
                out.extend(frame.bytes);
            } else {
                self.let_through(frame, out);
            }
        }
    }

    pub(super) fn tick(&mut self, out: &mut Vec<u8>) {
        if self.direction == Direction::ToClient {
            self.confirms.tick(out);
        }
    }

    pub(super) fn is_at_its_end(&self) -> bool {
        self.direction == Direction::ToClient && self.end_after.is_some_and(|frames| self.frames >= frames)
    }

    fn note_client(&mut self, frame: &Frame) {
        let channel = frame.channel();
        match frame.method() {
            Some(CHANNEL_OPEN) => {
                self.tags.remove(&channel);
            }
            Some(CONFIRM_SELECT) => {
                self.tags.insert(channel, 0);
            }
            Some(PUBLISH) => {
                if let Some(tag) = self.tags.get_mut(&channel) {
                    *tag += 1;
                    self.shared.evidence().note(self.connection, channel, What::Published { tag: *tag });
                }
            }
            _ => {}
        }
    }

    fn let_through(&mut self, frame: Frame, out: &mut Vec<u8>) {
        let channel = frame.channel();
        match frame.method() {
            Some(ACK) => return self.confirms.take(&frame, Kind::Ack, out),
            Some(NACK) => return self.confirms.take(&frame, Kind::Nack, out),
            Some(RETURN) => self.confirms.returned(channel),
            Some(CHANNEL_OPEN_OK) => self.confirms.forget(channel),
            // What the broker confirmed before it closed the channel arrives before.
            Some(CHANNEL_CLOSE) => self.confirms.release_channel(channel, out),
            Some(CONNECTION_CLOSE) => self.confirms.release_all(out),
            _ => {}
        }
        out.extend(frame.bytes);
    }
}

pub(super) struct Frame {
    /// Header, payload and end.
    pub(super) bytes: Bytes,
}

impl Frame {
    /// The first whole frame.
    fn take(bytes: &mut BytesMut) -> Option<Frame> {
        if bytes.len() < 7 {
            return None;
        }
        let length = 7 + (&bytes[3..]).get_u32() as usize + 1;
        if bytes.len() < length {
            return None;
        }
        let bytes = bytes.split_to(length).freeze();
        assert_eq!(bytes.last(), Some(&FRAME_END), "not a frame");
        Some(Frame { bytes })
    }

    pub(super) fn channel(&self) -> u16 {
        (&self.bytes[1..]).get_u16()
    }

    fn method(&self) -> Option<(u16, u16)> {
        (self.bytes[0] == METHOD).then(|| ((&self.bytes[7..]).get_u16(), (&self.bytes[9..]).get_u16()))
    }

    /// Delivery tag and `multiple` of an ack or nack.
    pub(super) fn confirm(&self) -> (u64, bool) {
        ((&self.bytes[11..]).get_u64(), self.bytes[19] & 1 == 1)
    }
}

pub(super) fn confirm_frame(channel: u16, tag: u64, kind: Kind, multiple: bool) -> Vec<u8> {
    let (class, method) = match kind {
        Kind::Ack => ACK,
        Kind::Nack => NACK,
    };
    let mut bytes = vec![METHOD];
    bytes.extend(channel.to_be_bytes());
    bytes.extend(13u32.to_be_bytes());
    bytes.extend(class.to_be_bytes());
    bytes.extend(method.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.push(u8::from(multiple));
    bytes.push(FRAME_END);
    bytes
}
