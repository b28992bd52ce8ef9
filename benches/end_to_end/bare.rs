//! The baseline `bare`: what a relay on lapin does, without the WAL. It is a process of its own, so that its CPU can be told
//! from ours, and prints what it has measured itself.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll, Waker};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

use crate::contestants::Drained;
use crate::measure::{Sample, cpu};
use crate::servers::{EXCHANGE, Servers};
use crate::{Failure, Outcome};

/// As many as the relay has by default (`limits.window`).
const WINDOW: usize = 1_000;

/// Runs it as a process, and what the machine and the broker spend meanwhile.
pub(crate) fn measure(servers: &Servers, bodies: &Path, rows: u64, headers: bool) -> Outcome<Drained> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bare").arg(&servers.amqp_url).arg(bodies).arg(rows.to_string()).arg(headers.to_string());
    let begin = servers.sample()?;
    let output = command.stderr(Stdio::inherit()).output()?;
    let end = servers.sample()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let (true, [seconds, own, confirmed, peak]) = (output.status.success(), numbers.as_slice()) else {
        return Err(format!("bare failed: {text}").into());
    };
    // Connecting is in the shares of machine and broker: milliseconds.
    let spent = Sample::until(&begin, &end);
    Ok(Drained { events: *confirmed, seconds: *seconds, own: *own, peak_memory: *peak, spent, all: rows as f64 })
}

/// The process: AMQP URL, file of bodies (one a line), number of messages, whether with a relay's headers.
pub(crate) async fn run(arguments: &[String]) -> Outcome<()> {
    let [url, bodies, rows, headers] = arguments else { return Err("bare URL BODIES ROWS HEADERS".into()) };
    let (rows, headers): (u64, bool) = (rows.parse()?, headers.parse()?);
    let text = std::fs::read(bodies)?;
    let bodies: Vec<&[u8]> = text.split(|&byte| byte == b'\n').filter(|body| !body.is_empty()).collect();
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;

    let mut bodies = bodies.iter().cycle();
    let mut window = VecDeque::with_capacity(WINDOW);
    let (mut published, mut confirmed) = (0, 0);
    let mut began = None;
    while confirmed < rows {
        while window.len() < WINDOW && published < rows {
            let body = bodies.next().ok_or("no bodies")?;
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let properties = properties(published, headers);
            let publish = channel.basic_publish(EXCHANGE.into(), "order.OrderPlaced".into(), options, body, properties);
            let mut publish: Pending<'_> = Box::pin(async move { publish.await?.await });
            // The first poll writes.
            if publish.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                return Err("a publish was over before it was sent".into());
            }
            window.push_back(publish);
            published += 1;
        }
        let group = poll_fn(|cx| take_confirmed(&mut window, cx)).await?;
        confirmed += group;
        // From the first confirm on, like the relay.
        began.get_or_insert((Instant::now(), cpu(std::process::id())?, confirmed));
    }
    let (at, own, first) = began.ok_or("nothing to publish")?;
    let pid = std::process::id();
    let (seconds, own) = (at.elapsed().as_secs_f64(), cpu(pid)? - own);
    println!("{seconds} {own} {} {}", rows - first, crate::measure::peak_memory(pid)?);
    connection.close(200, "done".into()).await?;
    Ok(())
}

type Pending<'a> = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>;

/// Confirms in a group: whatever is confirmed at the front of the window, once there is anything.
fn take_confirmed(window: &mut VecDeque<Pending<'_>>, cx: &mut Context<'_>) -> Poll<Outcome<u64>> {
    let mut group = 0;
    while let Some(front) = window.front_mut() {
        match front.as_mut().poll(cx) {
            Poll::Pending => break,
            Poll::Ready(Ok(Confirmation::Ack(None))) => {
                window.pop_front();
                group += 1;
            }
            Poll::Ready(Ok(other)) => return Poll::Ready(Err(format!("not delivered: {other:?}").into())),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::from(error))),
        }
    }
    if group == 0 { Poll::Pending } else { Poll::Ready(Ok(group)) }
}

/// Persistent and with an identity, as any serious publisher's. `headers`: and with what the relay sends in the header table.
fn properties(number: u64, headers: bool) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(format!("{number:036}").into())
        .with_type("OrderPlaced".into())
        .with_content_type("application/json".into());
    if !headers {
        return properties;
    }
    let text = |text: String| AMQPValue::LongString(LongString::from(text));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut table = FieldTable::default();
    table.insert("aggregatetype".into(), text("order".to_owned()));
    table.insert("aggregateid".into(), text(number.to_string()));
    table.insert("version".into(), AMQPValue::LongLongInt(1));
    table.insert("occurred_at".into(), text("2026-11-21T10:15:30.123456Z".to_owned()));
    table.insert("x-postrider-position".into(), text(format!("00000001-{number:016x}-00000000-00")));
    table.insert("x-postrider-sent-at".into(), AMQPValue::LongLongInt(i64::try_from(now.as_millis()).unwrap_or(0)));
    properties.with_app_id("postrider".into()).with_timestamp(now.as_secs()).with_headers(table)
}
