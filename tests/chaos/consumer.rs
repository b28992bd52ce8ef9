//! The consumer: reads the tap with a client that shares no code with the relay's, and never loses what it got.
//!
//! A message is on the disk before it is acknowledged. When the connection breaks, the broker gives again what was not
//! acknowledged, in its old place; that is marked `redelivered`, and no duplicate of the relay's.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amqprs::channel::{BasicAckArguments, BasicConsumeArguments, BasicQosArguments, Channel, ConsumerMessage};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::{FieldTable, FieldValue, ShortStr};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::JoinHandle;

use crate::Outcome;
use crate::broker::{Broker, TAP};
use crate::evidence::{ARRIVALS, Arrival, Evidence, Lines, hash};

/// Messages without an acknowledgement.
const PREFETCH: u16 = 500;

/// Counts that a run looks at while it lasts; the checks read the file.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub ids: HashSet<String>,
    pub arrivals: u64,
}

pub(crate) struct Consumer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    host: String,
    port: u16,
    began: Instant,
    log: Lines,
    seen: Mutex<Seen>,
    stop: AtomicBool,
    /// It is away meanwhile.
    paused: AtomicBool,
}

/// What is needed of the body: the row's columns and the payload as it was written.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    aggregateid: String,
    sequence: Option<i64>,
}

impl Consumer {
    pub(crate) fn start(broker: &Broker, evidence: &Evidence, began: Instant) -> Outcome<Self> {
        let shared = Arc::new(Shared {
            host: broker.host.clone(),
            port: broker.port,
            began,
            log: evidence.lines(ARRIVALS)?,
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        });
        let task = tokio::spawn(read(Arc::clone(&shared)));
        Ok(Consumer { shared, task })
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Relaxed);
    }

    pub(crate) async fn stop(self) -> Outcome<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        self.shared.log.sync()
    }
}

async fn read(shared: Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.paused.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        // A broker that is down or starting: its end and its beginning are the faults' business.
        read_until_it_breaks(&shared).await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn read_until_it_breaks(shared: &Shared) -> Outcome<()> {
    let mut arguments = OpenConnectionArguments::new(&shared.host, shared.port, "guest", "guest");
    // A paused broker is not a lost one: the connection ends when the broker does.
    arguments.heartbeat(0);
    let patience = Duration::from_secs(10);
    let connection = tokio::time::timeout(patience, Connection::open(&arguments)).await??;
    let channel = connection.open_channel(None).await?;
    channel.basic_qos(BasicQosArguments::new(0, PREFETCH, false)).await?;
    let (_, mut inbox) = channel.basic_consume_rx(BasicConsumeArguments::new(TAP, "tap")).await?;
    let wanted = || !shared.stop.load(Ordering::Relaxed) && !shared.paused.load(Ordering::Relaxed);
    while wanted() && connection.is_open() && channel.is_open() {
        let mut batch = Vec::new();
        let received = inbox.recv_many(&mut batch, usize::from(PREFETCH));
        match tokio::time::timeout(Duration::from_millis(200), received).await {
            Ok(0) => break,
            Ok(_) => take(shared, &channel, batch).await?,
            Err(_) => {}
        }
    }
    connection.close().await.ok();
    Ok(())
}

async fn take(shared: &Shared, channel: &Channel, batch: Vec<ConsumerMessage>) -> Outcome<()> {
    let mut last = None;
    let mut arrivals = Vec::new();
    for message in batch {
        let Some(deliver) = &message.deliver else { continue };
        last = Some(deliver.delivery_tag());
        arrivals.push(arrival(shared, &message));
    }
    for arrival in &arrivals {
        shared.log.add(arrival)?;
    }
    shared.log.sync()?;
    {
        let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for arrival in arrivals {
            seen.arrivals += 1;
            seen.ids.insert(arrival.id);
        }
    }
    if let Some(tag) = last {
        channel.basic_ack(BasicAckArguments::new(tag, true)).await?;
    }
    Ok(())
}

fn arrival(shared: &Shared, message: &ConsumerMessage) -> Arrival {
    let content = message.content.as_deref().unwrap_or_default();
    let properties = message.basic_properties.as_ref();
    let body: Option<Body<'_>> = serde_json::from_slice(content).ok();
    let deliver = message.deliver.as_ref();
    Arrival {
        at: shared.began.elapsed().as_secs_f64(),
        id: properties.and_then(|properties| properties.message_id()).cloned().unwrap_or_default(),
        position: properties.and_then(|properties| properties.headers()).map(position).unwrap_or_default(),
        seq: body.as_ref().and_then(|body| body.sequence).unwrap_or_default(),
        hash: body.as_ref().and_then(|body| body.after).map(|after| hash(after.get().as_bytes())).unwrap_or_default(),
        key: body.map(|body| body.aggregateid).unwrap_or_default(),
        body: hash(content),
        routing_key: deliver.map(|deliver| deliver.routing_key().clone()).unwrap_or_default(),
        redelivered: deliver.is_some_and(amqprs::Deliver::redelivered),
    }
}

fn position(headers: &FieldTable) -> String {
    let name = ShortStr::try_from("x-postrider-position").ok();
    match name.and_then(|name| headers.get(&name)) {
        Some(FieldValue::S(text)) => text.clone().into(),
        _ => String::new(),
    }
}
