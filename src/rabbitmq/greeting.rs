//! What the broker says of itself when a connection begins: lapin reads it and keeps nothing of it, so the first frame is
//! copied on its way through our socket.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, parse_class};
use lapin::types::{AMQPValue, FieldTable};

/// Type, channel and size before a frame's payload.
const FRAME_HEADER: usize = 7;
/// RabbitMQ's needs less than a kilobyte. What is longer is not looked at.
const MOST: usize = 64 << 10;

/// The version of a RabbitMQ. Others that speak AMQP count their own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The bytes of the first frame that the broker sends, `connection.start`.
#[derive(Clone, Debug, Default)]
pub(super) struct Greeting(Arc<Mutex<Vec<u8>>>);

impl Greeting {
    /// Keeps what belongs to the first frame. Whether more of it is to come.
    pub(super) fn read(&self, bytes: &[u8]) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        kept.truncate(MOST);
        kept.len() < size(&kept).map_or(FRAME_HEADER, |size| (FRAME_HEADER + size).min(MOST))
    }

    /// `None`: it is no RabbitMQ, or does not say.
    pub(super) fn version(&self) -> Option<Version> {
        version(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Bytes of the payload.
fn size(frame: &[u8]) -> Option<usize> {
    let size: [u8; 4] = frame.get(3..FRAME_HEADER)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(size)).ok()
}

fn version(frame: &[u8]) -> Option<Version> {
    let payload = frame.get(FRAME_HEADER..FRAME_HEADER.checked_add(size(frame)?)?)?;
    let Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) = parse_class(payload) else { return None };
    let properties = &start.server_properties;
    if text(properties, "product")? != "RabbitMQ" {
        return None;
    }
    let version = text(properties, "version")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(Version { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
}

fn text(properties: &FieldTable, name: &str) -> Option<String> {
    match properties.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a `connection.start` with these two properties, mechanism PLAIN and locale en_US.
    fn frame(product: &str, version: &str) -> Vec<u8> {
        let entry = |name: &str, value: &str| {
            let (name_size, value_size) = (u8::try_from(name.len()).unwrap(), u32::try_from(value.len()).unwrap());
            [&[name_size], name.as_bytes(), b"S", &value_size.to_be_bytes(), value.as_bytes()].concat()
        };
        let sized = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        let table = sized(&[entry("product", product), entry("version", version)].concat());
        let payload = [&[0, 10, 0, 10, 0, 9], table.as_slice(), &sized(b"PLAIN"), &sized(b"en_US")].concat();
        [&[1, 0, 0], sized(&payload).as_slice(), &[0xce]].concat()
    }

    #[test]
    fn the_version_is_read_from_pieces_and_nothing_is_kept_of_later_frames() {
        let greeting = Greeting::default();
        let start = frame("RabbitMQ", "4.0.5+debian");
        let (last, first) = start.split_last().unwrap();
        assert!(first.chunks(5).take(first.len() / 5).all(|piece| greeting.read(piece) || piece.is_empty()));
        assert_eq!(greeting.version(), None);
        greeting.read(&first[first.len() / 5 * 5..]);
        assert!(!greeting.read(&[*last]));
        assert_eq!(greeting.version(), Some(Version { major: 4, minor: 0 }));
    }

    #[test]
    fn only_rabbitmq_has_a_version_of_rabbitmq() {
        let read = |bytes: &[u8]| {
            let greeting = Greeting::default();
            greeting.read(bytes);
            greeting.version()
        };
        assert_eq!(read(&frame("RabbitMQ", "3.10.8")), Some(Version { major: 3, minor: 10 }));
        assert_eq!(read(&frame("LavinMQ", "2.1.0")), None);
        assert_eq!(read(&frame("RabbitMQ", "unknown")), None);
        assert_eq!(read(b"HTTP/1.1 400 Bad Request\r\n"), None);
    }

    #[test]
    fn versions_are_compared_by_numbers() {
        assert!(Version { major: 3, minor: 13 } < Version { major: 4, minor: 0 });
        assert!(Version { major: 4, minor: 10 } > Version { major: 4, minor: 3 });
    }
}
