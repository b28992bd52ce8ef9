//! `postrider dlq --queue NAME`: a dead-letter queue of consumers in RabbitMQ. What RabbitMQ did not take at all is in the
//! database, and the rest of `dlq` is about that.

mod list;
mod redrive;

use std::io;
use std::process::ExitCode;
use std::task::{Context, Waker};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::list::ListArgs;
use super::{DlqArgs, DlqCommand, mark};
use crate::config::Config;
use crate::rabbitmq::connection::{ConnectError, Link, Purpose, connect};
use crate::rabbitmq::dead_letter_queue::{DeadLetterQueue, DeadLetterQueueError};
use crate::rabbitmq::greeting::Version;
use crate::rabbitmq::management::{self, QueueDetails};

#[derive(Args, Debug)]
pub struct RedriveArgs {
    #[command(flatten)]
    pub mark: mark::MarkArgs,
    /// With --queue: publish all of them to this queue [default: the one in which each died first, x-first-death-queue]
    #[arg(long, value_name = "QUEUE", value_parser = NonEmptyStringValueParser::new())]
    pub to: Option<String>,
    /// With --queue: only the first messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error(
        "--queue and --slot exclude each other: --queue is about a queue of RabbitMQ, --slot about the dead letters in the database"
    )]
    Slot,
    #[error("`{0}` is about the dead letters in the database; with --queue there are list and redrive")]
    Command(&'static str),
    #[error(
        "numbers and filters are about the dead letters in the database; with --queue, list takes --peek N, and redrive takes --all or --limit N"
    )]
    Filter,
    #[error("--limit of list is about the dead letters in the database; with --queue it is --peek N")]
    ListLimit,
    #[error("nothing says how many are meant: give --limit N (the first N messages) or --all")]
    HowMany,
    #[error("--all and --limit exclude each other")]
    AllAndLimit,
    #[error("queue `{0}` cannot be redriven to itself: each message would come again")]
    ToItself(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Queue(#[from] DeadLetterQueueError),
    #[error("the broker was lost before anything was sent: {0}")]
    Outlet(#[source] lapin::Error),
    #[error("interrupted; what was looked at is back in the queue")]
    Interrupted,
    #[error("stopped: {0}")]
    Stopped(#[from] crate::rabbitmq::dead_letter_queue::redrive::Stopped),
    #[error("cannot listen to signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
    #[error("cannot print it as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// 0 if all that was asked for was done.
pub(super) async fn run(args: &DlqArgs, name: &str, config: &Config) -> Result<ExitCode, QueueError> {
    let asked = check(args, name)?;
    let link = connect(config, Purpose::DeadLetters).await?;
    let queue = DeadLetterQueue::open(&link, name).await?;
    let open = Open { details: Details::ask(config, &link, name).await, link, queue };
    match asked {
        Asked::List(args) => list::run(args, open).await,
        Asked::Redrive(args) => redrive::run(args, config, open).await,
    }
}

/// The commands that there are for a queue.
enum Asked<'a> {
    List(&'a ListArgs),
    Redrive(&'a RedriveArgs),
}

/// What goes together, before anything is asked of a server.
fn check<'a>(args: &'a DlqArgs, name: &str) -> Result<Asked<'a>, QueueError> {
    if args.slot.is_some() {
        return Err(QueueError::Slot);
    }
    match &args.command {
        DlqCommand::Show(_) => Err(QueueError::Command("show")),
        DlqCommand::Discard(_) => Err(QueueError::Command("discard")),
        DlqCommand::List(list) if !list.filter.is_empty() => Err(QueueError::Filter),
        DlqCommand::List(list) if list.limit.is_some() => Err(QueueError::ListLimit),
        DlqCommand::List(list) => Ok(Asked::List(list)),
        DlqCommand::Redrive(RedriveArgs { mark, .. }) if !mark.filter.is_empty() => Err(QueueError::Filter),
        DlqCommand::Redrive(RedriveArgs { to, .. }) if to.as_deref() == Some(name) => {
            Err(QueueError::ToItself(name.to_owned()))
        }
        DlqCommand::Redrive(redrive) => match (redrive.mark.all, redrive.limit) {
            (false, None) => Err(QueueError::HowMany),
            (true, Some(_)) => Err(QueueError::AllAndLimit),
            _ => Ok(Asked::Redrive(redrive)),
        },
    }
}

/// The queue, and what the management API says of it.
struct Open {
    link: Link,
    queue: DeadLetterQueue,
    details: Details,
}

enum Details {
    /// There is no `management_url`.
    NotAsked,
    /// Why has been said.
    Failed,
    Known(QueueDetails),
}

impl Details {
    async fn ask(config: &Config, link: &Link, name: &str) -> Details {
        let Some(url) = &config.management_url else { return Details::NotAsked };
        match management::queue_details(config, url, link.vhost(), name).await {
            Ok(Some(details)) => Details::Known(details),
            // It has just been made, and the API does not know it yet.
            Ok(None) => Details::Known(QueueDetails::default()),
            Err(error) => {
                say(&format!("the management API cannot be asked about the queue: {error}"));
                Details::Failed
            }
        }
    }

    fn known(&self) -> Option<&QueueDetails> {
        match self {
            Details::Known(details) => Some(details),
            Details::NotAsked | Details::Failed => None,
        }
    }
}

impl Open {
    /// What a message that was got and given back has to do with a delivery limit.
    fn warning(&self) -> Option<String> {
        warning(self.link.version()?, self.details.known())
    }
}

/// Before 4.3 a quorum queue counts every delivery that is given back; since then only those that failed, and `basic.nack` is no
/// failure. Since 4.0 there is a limit of 20 where nobody has set one.
fn warning(version: Version, details: Option<&QueueDetails>) -> Option<String> {
    /// Nobody looks so often.
    const OUT_OF_REACH: i64 = 1_000;
    let has_default = version >= Version { major: 4, minor: 0 };
    if version >= (Version { major: 4, minor: 3 }) {
        return None;
    }
    let limit = match details.and_then(|details| Some((details, details.kind.as_deref()?))) {
        Some((_, kind)) if kind != "quorum" => return None,
        Some((details, _)) => match details.delivery_limit().or_else(|| has_default.then_some(20))? {
            limit @ 0..OUT_OF_REACH => limit.to_string(),
            _ => return None,
        },
        None if has_default => "20 unless the queue or a policy says otherwise".to_owned(),
        None => "if it has one".to_owned(),
    };
    Some(format!(
        "RabbitMQ {version} counts each look at a message of a quorum queue as a delivery; beyond the queue's delivery limit ({limit}) the \
         message is dropped, or dead-lettered again"
    ))
}

/// Asked to end by SIGINT or SIGTERM.
struct Interrupts(Signal, Signal);

impl Interrupts {
    /// From here on a signal no longer ends the process: to be called when there is something to put in order first.
    fn listen() -> Result<Self, QueueError> {
        let listen = |kind| signal(kind).map_err(QueueError::Signals);
        Ok(Interrupts(listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?))
    }

    fn came(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.0.poll_recv(&mut cx).is_ready() || self.1.poll_recv(&mut cx).is_ready()
    }
}

/// The exchange without a name has one for people.
fn exchange(name: &str) -> String {
    if name.is_empty() { "the default exchange".to_owned() } else { format!("exchange {name}") }
}

/// For the person, beside what is printed.
fn say(text: &str) {
    eprintln!("postrider: {text}");
}

/// "1 message", "2 messages".
fn messages(count: u64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn refused(line: &str) -> String {
        let cli = Cli::try_parse_from(format!("postrider dlq --queue q {line}").split(' ')).unwrap();
        let Command::Dlq(args) = cli.command else { panic!("{line}") };
        check(&args, args.queue.as_deref().unwrap()).map_or_else(|error| error.to_string(), |_| "fine".to_owned())
    }

    #[test]
    fn what_does_not_go_together_is_said_with_what_does() {
        for fine in ["list", "list --peek 5 --bodies", "redrive --all", "redrive --limit 3 --to p --dry-run"] {
            assert_eq!(refused(fine), "fine", "{fine}");
        }
        for (line, words) in [
            ("list --slot s", "--queue and --slot exclude each other"),
            ("show 1", "`show` is about the dead letters in the database"),
            ("discard --all", "`discard` is about the dead letters in the database"),
            ("list 17", "with --queue, list takes --peek N"),
            ("list --reason unroutable", "with --queue, list takes --peek N"),
            ("list --limit 5", "with --queue it is --peek N"),
            ("redrive --type Paid", "redrive takes --all or --limit N"),
            ("redrive", "give --limit N"),
            ("redrive --all --limit 5", "--all and --limit exclude each other"),
            ("redrive --all --to q", "cannot be redriven to itself"),
        ] {
            let said = refused(line);
            assert!(said.contains(words), "{line}: {said}");
        }
    }

    fn warned(minor: &str, details: Option<&str>) -> Option<String> {
        let (major, minor) = minor.split_once('.').unwrap();
        let version = Version { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
        warning(version, details.map(|json| serde_json::from_str(json).unwrap()).as_ref())
    }

    #[test]
    fn a_look_is_warned_of_where_it_counts() {
        let quorum = r#"{"type": "quorum", "arguments": {}, "effective_policy_definition": []}"#;
        for version in ["4.0", "4.1", "4.2"] {
            assert!(warned(version, None).unwrap().contains("(20 unless"), "{version}");
            assert!(warned(version, Some(quorum)).unwrap().contains("limit (20) "), "{version}");
        }
        assert_eq!(warned("4.3", None), None);
        assert_eq!(warned("5.0", None), None);
        assert_eq!(warned("4.0", Some(r#"{"type": "classic"}"#)), None);
        assert!(warned("3.13", None).unwrap().contains("(if it has one)"));
        assert_eq!(warned("3.13", Some(quorum)), None, "there is no limit unless somebody sets one");
        let limit = |argument: i64, policy: i64| {
            format!(
                r#"{{"type": "quorum", "arguments": {{"x-delivery-limit": {argument}}},
                     "effective_policy_definition": {{"delivery-limit": {policy}}}}}"#
            )
        };
        for (argument, policy) in [(5, 7), (7, 5), (-1, 5), (5, -1)] {
            let said = warned("3.13", Some(&limit(argument, policy))).unwrap();
            assert!(said.contains("limit (5) "), "{said}");
        }
        assert_eq!(warned("4.0", Some(&limit(-1, -1))), None);
        assert_eq!(warned("4.0", Some(&limit(1_000_000, 1_000_000))), None, "that of [topology]");
    }
}
