//! `postrider tail`.

mod show;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::cli::message;
use crate::config::{Config, SecretSource};
use crate::rabbitmq::connection::{Change, ConnectError, Link, Purpose, connect};
use crate::rabbitmq::management;
use crate::rabbitmq::tap::{Tap, TapError};

/// How soon a change of the others' bindings is followed.
const FOLLOW: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
#[command(
    after_help = "Needs RabbitMQ alone: AMQP_URL (or --amqp-url) of a user who may make a queue postrider.tail.* and read from \
the exchanges, which the relay's own user need not be. It shows what other queues get, which the management API tells \
(POSTRIDER_MANAGEMENT_URL): a queue for everything would take events that nobody else is bound for, and they would count as \
delivered. With --unrouted it is such a queue, and needs no management API."
)]
pub struct TailArgs {
    /// Watch this exchange; may be given several times [default: the exchanges of the routes]
    #[arg(long, value_name = "NAME")]
    pub exchange: Vec<String>,
    /// Only routing keys that match: words with dots, * for one word, # for any number of them
    #[arg(long, value_name = "PATTERN", default_value = "#")]
    pub routing_key: String,
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// Only this aggregate
    #[arg(long, value_name = "ID")]
    pub aggregateid: Option<String>,
    /// One JSON object for each event, with properties, headers and body
    #[arg(long)]
    pub json: bool,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Take also what no other queue is bound for: it counts as delivered then, and is gone. Binds --routing-key as it is: a
    /// pattern for a topic exchange, the exact key for a direct one, anything for a fanout or headers exchange
    #[arg(long)]
    pub unrouted: bool,
    /// Broker and user to watch with, in place of AMQP_URL (other users of this machine can see a command line)
    #[arg(long, value_name = "URL")]
    pub amqp_url: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(
        "cannot see what is bound to {0}: set management_url (a user with the tag monitoring, or management and the same vhost), or \
         say --unrouted if events that no other queue takes may be lost to this one"
    )]
    NoManagement(String),
    #[error("the connection to RabbitMQ was lost: {0}")]
    Lost(lapin::Error),
    #[error("RabbitMQ has ended the temporary queue")]
    Ended,
    #[error("cannot listen to signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
}

/// 0 when it was told to end: by a signal, by `--count`, or by a reader that has gone away.
pub async fn run(args: &TailArgs, mut config: Config) -> Result<ExitCode, TailError> {
    let listen = |kind| signal(kind).map_err(TailError::Signals);
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    if let Some(url) = &args.amqp_url {
        config.amqp_url = SecretSource::Value(SecretString::from(url.clone()));
    }
    let told = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let mut told = std::pin::pin!(told);
    let mut watch = tokio::select! {
        watch = Watch::open(args, &config) => watch?,
        () = &mut told => return Ok(ExitCode::SUCCESS),
    };
    let mut shown = 0;
    while args.count.is_none_or(|count| shown < count) {
        let delivery = tokio::select! {
            next = watch.next() => next?,
            () = &mut told => break,
        };
        if wanted(args, &delivery) {
            shown += 1;
            let line = if args.json { show::json(&delivery) } else { show::line(&delivery) };
            if !print(&line).map_err(TailError::Print)? {
                break;
            }
        }
    }
    watch.link.close().await;
    Ok(ExitCode::SUCCESS)
}

/// A queue that gets copies, and what keeps it bound.
struct Watch<'c> {
    config: &'c Config,
    /// `None`: nobody is followed.
    api: Option<&'c SecretSource>,
    link: Link,
    tap: Tap,
    messages: Consumer,
    follow: Interval,
}

impl<'c> Watch<'c> {
    async fn open(args: &TailArgs, config: &'c Config) -> Result<Self, TailError> {
        let exchanges = exchanges(args, config);
        let names = exchanges.join(", ");
        let api = match (&config.management_url, args.unrouted) {
            (_, true) => None,
            (Some(url), false) => Some(url),
            (None, false) => return Err(TailError::NoManagement(names)),
        };
        let link = connect(config, Purpose::Tail).await?;
        let mut tap = Tap::open(&link, &exchanges).await?;
        let mut bound = true;
        match api {
            Some(url) => bound = tap.follow(config, url).await?,
            None => tap.bind_directly(&args.routing_key).await?,
        }
        let messages = tap.consume().await?;
        say(&format!("watching {names} at {}, vhost {}", link.address(), link.vhost()));
        if !bound {
            say("no queue is bound there, so nothing passes; waiting for one");
        }
        if args.unrouted {
            say("while this runs, an event that no other queue takes counts as delivered, and is gone");
        }
        let mut follow = tokio::time::interval_at(Instant::now() + FOLLOW, FOLLOW);
        follow.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Watch { config, api, link, tap, messages, follow })
    }

    async fn next(&mut self) -> Result<Delivery, TailError> {
        loop {
            tokio::select! {
                change = self.link.changed() => if let Change::Lost(error) = change {
                    return Err(TailError::Lost(error));
                },
                message = self.messages.next() => {
                    let delivery = message.ok_or(TailError::Ended)?.map_err(TailError::Lost)?;
                    // Acknowledged, not sent without waiting for it: while a terminal stands still the rest stays in the queue,
                    // which is bounded, and does not fill this process's memory.
                    delivery.ack(BasicAckOptions::default()).await.map_err(TailError::Lost)?;
                    return Ok(delivery);
                }
                _ = self.follow.tick() => if let Some(url) = self.api {
                    self.tap.follow(self.config, url).await?;
                },
            }
        }
    }
}

fn exchanges(args: &TailArgs, config: &Config) -> Vec<String> {
    let given = args.exchange.iter();
    let mut all: Vec<String> = match args.exchange.is_empty() {
        true => config.routes.iter().map(|route| route.exchange.clone()).collect(),
        false => given.cloned().collect(),
    };
    all.sort();
    all.dedup();
    all
}

/// Looked at here and not by the binding, which the others' decide.
fn wanted(args: &TailArgs, delivery: &Delivery) -> bool {
    let words = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let key = args.routing_key == "#"
        || args.unrouted
        || management::topic(&words(&args.routing_key), &words(delivery.routing_key.as_str()));
    let is = |wanted: &Option<String>, found: Option<String>| wanted.is_none() || *wanted == found;
    let kind = delivery.properties.kind().as_ref().map(ToString::to_string);
    key && is(&args.kind, kind) && is(&args.aggregateid, message::header(&delivery.properties, "aggregateid"))
}

/// For the person, beside what is printed.
fn say(text: &str) {
    eprintln!("postrider: {text}");
}

/// False: the reader (`| head`) has gone away.
fn print(line: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}
