//! A TCP proxy that understands enough of AMQP 0-9-1 to misbehave as a broker and a network may.
//!
//! It can delay, reorder and merge confirms, drop them, stall and cut. It lets returns through as they come and never
//! moves a confirm ahead of the return of its own publish: RabbitMQ does not do that either, and the judging of confirms
//! (rule R2) rests on it. Frame layout: AMQP 0-9-1 specification, 2.3.5; methods: `basic.ack`, `basic.nack`, `basic.return`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const METHOD: u8 = 1;
const FRAME_END: u8 = 0xCE;
const BASIC: u16 = 60;
const BASIC_RETURN: u16 = 50;
const BASIC_ACK: u16 = 80;
const BASIC_NACK: u16 = 120;
const CHANNEL: u16 = 20;
const CHANNEL_CLOSE: u16 = 40;

/// How it misbehaves, changeable at any time, and what it has done.
#[derive(Default)]
pub(crate) struct Mischief {
    /// Hold confirms back and release them at random: late, out of order, merged.
    pub(crate) shuffle: AtomicBool,
    /// Drop every confirm.
    pub(crate) drop_confirms: AtomicBool,
    /// Drop the confirm of this many of the next publishes.
    pub(crate) drop_next: AtomicUsize,
    /// Cut each connection made from now on after this many frames of the broker; 0: don't. The first three are `start`, `tune` and
    /// `open-ok`.
    pub(crate) cut_after: AtomicUsize,
    /// Forward nothing in either direction.
    pub(crate) stall: AtomicBool,
    /// Confirms that were released as part of a `multiple`.
    pub(crate) merged: AtomicUsize,
    /// `multiple` confirms that released several publishes while several returns had been forwarded just before.
    pub(crate) returns_in_multiple: AtomicUsize,
    /// Confirms that were released before one of an earlier publish.
    pub(crate) reordered: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
    /// Connections accepted.
    pub(crate) connections: AtomicUsize,
    /// Bytes that came from the client.
    pub(crate) from_client: AtomicU64,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) mischief: Arc<Mischief>,
    cut: watch::Sender<u64>,
    listening: Arc<AtomicBool>,
    listener: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `upstream` (`host:port`).
    pub(crate) async fn start(upstream: String, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mischief = Arc::new(Mischief::default());
        let (cut, _) = watch::channel(0);
        let listening = Arc::new(AtomicBool::new(true));
        let accept = {
            let (mischief, cut, listening) = (Arc::clone(&mischief), cut.clone(), Arc::clone(&listening));
            async move {
                let mut number = 0;
                while let Ok((client, _)) = listener.accept().await {
                    if !listening.load(Ordering::SeqCst) {
                        continue;
                    }
                    number += 1;
                    let frames = mischief.cut_after.load(Ordering::SeqCst);
                    mischief.connections.fetch_add(1, Ordering::SeqCst);
                    let (mischief, mut cut, upstream) = (Arc::clone(&mischief), cut.subscribe(), upstream.clone());
                    tokio::spawn(async move {
                        let Ok(server) = TcpStream::connect(upstream).await else { return };
                        tokio::select! {
                            _ = forward(client, server, mischief, frames, seed.wrapping_add(number)) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        };
        Proxy { port, mischief, cut, listening, listener: tokio::spawn(accept) }
    }

    /// Cuts all connections at once, in the middle of whatever they carry.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|generation| *generation += 1);
    }

    /// Whether new connections are served; otherwise they are closed as soon as they are made.
    pub(crate) fn serve(&self, yes: bool) {
        self.listening.store(yes, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    mischief: Arc<Mischief>,
    cut_after: usize,
    seed: u64,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            stalled(&mischief).await;
            let count = from_client.read(&mut buffer).await?;
            if count == 0 {
                return to_server.shutdown().await;
            }
            mischief.from_client.fetch_add(count as u64, Ordering::SeqCst);
            stalled(&mischief).await;
            to_server.write_all(&buffer[..count]).await?;
        }
    };
    let down = async {
        // Frames are read by a task of their own: reading one is not cancel-safe.
        let (frames, mut received) = tokio::sync::mpsc::channel(64);
        let reader = async move {
            while let Ok(frame) = Frame::read(&mut from_server).await {
                if frames.send(frame).await.is_err() {
                    break;
                }
            }
        };
        let writer = async {
            let mut confirms = Confirms::new(seed);
            let mut frames = 0;
            let mut tick = tokio::time::interval(Duration::from_millis(2));
            loop {
                let mut out = Vec::new();
                tokio::select! {
                    frame = received.recv() => match frame {
                        Some(frame) => {
                            frames += 1;
                            confirms.take(frame, &mischief, &mut out);
                        }
                        None => return Ok(()),
                    },
                    _ = tick.tick() => confirms.release_some(&mischief, &mut out),
                }
                stalled(&mischief).await;
                to_client.write_all(&out).await?;
                if cut_after > 0 && frames >= cut_after {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            () = reader => Ok(()),
            result = writer => result,
        }
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

async fn stalled(mischief: &Mischief) {
    while mischief.stall.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Frame {
    /// Header, payload and end.
    bytes: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Frame> {
        let mut bytes = vec![0; 7];
        from.read_exact(&mut bytes).await?;
        let size = u32::from_be_bytes(bytes[3..7].try_into().unwrap()) as usize;
        bytes.resize(7 + size + 1, 0);
        from.read_exact(&mut bytes[7..]).await?;
        assert_eq!(bytes.last(), Some(&FRAME_END), "not a frame");
        Ok(Frame { bytes })
    }

    fn channel(&self) -> u16 {
        u16::from_be_bytes([self.bytes[1], self.bytes[2]])
    }

    fn method(&self) -> Option<(u16, u16)> {
        let number = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        (self.bytes[0] == METHOD).then(|| (number(7), number(9)))
    }

    /// Delivery tag and `multiple` of an ack or nack.
    fn confirm(&self) -> (u64, bool) {
        (u64::from_be_bytes(self.bytes[11..19].try_into().unwrap()), self.bytes[19] & 1 == 1)
    }
}

fn confirm_frame(channel: u16, tag: u64, kind: Kind, multiple: bool) -> Vec<u8> {
    let mut bytes = vec![METHOD];
    bytes.extend(channel.to_be_bytes());
    bytes.extend(13u32.to_be_bytes());
    bytes.extend(BASIC.to_be_bytes());
    bytes.extend(if kind == Kind::Ack { BASIC_ACK } else { BASIC_NACK }.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.push(u8::from(multiple));
    bytes.push(FRAME_END);
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ack,
    Nack,
}

/// The confirms that wait, by channel.
struct Confirms {
    channels: HashMap<u16, Channel>,
    rng: StdRng,
}

/// Tags count from 1 on each channel, without gaps.
#[derive(Default)]
struct Channel {
    /// Came from the broker, not yet released. Their returns have been forwarded.
    waiting: BTreeMap<u64, Kind>,
    /// Released or dropped, above `all_below`.
    done: BTreeMap<u64, ()>,
    /// Every tag below it is released or dropped.
    all_below: u64,
    /// Returned messages in lapin's queue, if it takes one with each confirm.
    returns: usize,
}

impl Channel {
    fn has_come(&self, tag: u64) -> bool {
        tag < self.all_below || self.done.contains_key(&tag) || self.waiting.contains_key(&tag)
    }

    fn finish(&mut self, tag: u64) {
        self.done.insert(tag, ());
        while self.done.remove(&self.all_below).is_some() {
            self.all_below += 1;
        }
    }
}

impl Confirms {
    fn new(seed: u64) -> Self {
        Confirms { channels: HashMap::new(), rng: StdRng::seed_from_u64(seed) }
    }

    fn take(&mut self, frame: Frame, mischief: &Mischief, out: &mut Vec<u8>) {
        let number = frame.channel();
        let kind = match frame.method() {
            Some((BASIC, BASIC_ACK)) => Kind::Ack,
            Some((BASIC, BASIC_NACK)) => Kind::Nack,
            Some((CHANNEL, CHANNEL_CLOSE)) => {
                // What the broker confirmed before it closed the channel arrives before.
                self.release(number, usize::MAX, mischief, out);
                self.channels.remove(&number);
                return out.extend(frame.bytes);
            }
            Some((BASIC, BASIC_RETURN)) => {
                self.channel(number).returns += 1;
                return out.extend(frame.bytes);
            }
            _ => return out.extend(frame.bytes),
        };
        let (tag, multiple) = frame.confirm();
        let channel = self.channel(number);
        let tags: Vec<u64> = if multiple { (channel.all_below..=tag).collect() } else { vec![tag] };
        for tag in tags {
            if channel.has_come(tag) {
                continue;
            }
            let drop_one =
                mischief.drop_next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if drop_one.is_ok() || mischief.drop_confirms.load(Ordering::SeqCst) {
                mischief.dropped.fetch_add(1, Ordering::SeqCst);
                channel.finish(tag);
            } else {
                channel.waiting.insert(tag, kind);
            }
        }
        if !mischief.shuffle.load(Ordering::SeqCst) {
            self.release(number, usize::MAX, mischief, out);
        }
    }

    fn channel(&mut self, number: u16) -> &mut Channel {
        self.channels.entry(number).or_insert_with(|| Channel { all_below: 1, ..Channel::default() })
    }

    /// One step of the shuffle on every channel.
    fn release_some(&mut self, mischief: &Mischief, out: &mut Vec<u8>) {
        let numbers: Vec<u16> = self.channels.keys().copied().collect();
        for number in numbers {
            let waiting = self.channel(number).waiting.len();
            if waiting > 0 {
                let steps = self.rng.random_range(0..=12);
                self.release(number, steps, mischief, out);
            }
        }
    }

    /// Releases confirms at random, in `steps` frames at most.
    fn release(&mut self, number: u16, steps: usize, mischief: &Mischief, out: &mut Vec<u8>) {
        let shuffle = mischief.shuffle.load(Ordering::SeqCst);
        for _ in 0..steps {
            let channel = self.channels.entry(number).or_insert_with(|| Channel { all_below: 1, ..Channel::default() });
            let Some((&first, &kind)) = channel.waiting.first_key_value() else { return };
            // The run of equal confirms that nothing is missing in, from the oldest tag that is not done.
            let run: Vec<u64> = if first == channel.all_below {
                let mut run = Vec::new();
                let mut tag = first;
                loop {
                    match channel.waiting.get(&tag) {
                        Some(other) if *other == kind => run.push(tag),
                        _ if channel.done.contains_key(&tag) => {}
                        _ => break,
                    }
                    tag += 1;
                }
                run
            } else {
                Vec::new()
            };
            if shuffle && run.len() > 1 && self.rng.random_bool(0.4) {
                let count = self.rng.random_range(2..=run.len());
                let last = run[count - 1];
                out.extend(confirm_frame(number, last, kind, true));
                let popped = count.min(channel.returns);
                channel.returns -= popped;
                mischief.merged.fetch_add(count, Ordering::SeqCst);
                mischief.returns_in_multiple.fetch_add(usize::from(popped > 1), Ordering::SeqCst);
                for tag in &run[..count] {
                    channel.waiting.remove(tag);
                    channel.finish(*tag);
                }
            } else {
                let index = if shuffle { self.rng.random_range(0..channel.waiting.len()) } else { 0 };
                let (&tag, &kind) = channel.waiting.iter().nth(index).unwrap();
                mischief.reordered.fetch_add(usize::from(index > 0), Ordering::SeqCst);
                out.extend(confirm_frame(number, tag, kind, false));
                channel.returns = channel.returns.saturating_sub(1);
                channel.waiting.remove(&tag);
                channel.finish(tag);
            }
        }
    }
}
