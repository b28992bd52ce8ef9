//! The relay, and pg_recvlogical.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::measure::{self, Sample, Spent};
use crate::servers::{Database, Servers};
use crate::{Failure, Outcome};

/// How often a relay is asked how far it is: often enough for a drain of a second, and seldom enough to cost nothing.
const ASK: Duration = Duration::from_millis(20);
/// Without any progress for this long something is wrong.
const STUCK: Duration = Duration::from_secs(60);

/// `POSTRIDER_EVENT_ORDERING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ordering {
    Key,
    Pipelined,
}

impl Ordering {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Ordering::Key => "key",
            Ordering::Pipelined => "pipelined",
        }
    }
}

/// What one contestant has done and spent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    /// Events in `seconds`, from the first confirm to the last: the time to connect is no time to drain.
    pub events: f64,
    pub seconds: f64,
    /// Its own CPU in that time.
    pub own: f64,
    pub peak_memory: f64,
    /// What others spent, for `all` events.
    pub spent: Spent,
    pub all: f64,
}

/// A relay with a slot of its own.
pub(crate) struct Relay {
    pub(crate) ordering: Ordering,
    slot: String,
    database_url: String,
    amqp_url: String,
    program: PathBuf,
    /// While its slot is made.
    running: Option<Running>,
}

impl Relay {
    pub(crate) fn prepare(servers: &Servers, database: &Database, slot: String, ordering: Ordering) -> Outcome<Relay> {
        let mut relay = Relay {
            ordering,
            slot,
            database_url: database.url.clone(),
            amqp_url: servers.amqp_url.clone(),
            program: servers.program.clone(),
            running: None,
        };
        relay.running = Some(relay.start()?);
        Ok(relay)
    }

    /// Waits until each has made its slot, and ends it again.
    pub(crate) async fn settle(relays: &mut [Relay]) -> Outcome<()> {
        for relay in relays {
            if let Some(running) = relay.running.take() {
                running.carries().await?;
                running.stop()?;
            }
        }
        Ok(())
    }

    pub(crate) fn start(&self) -> Outcome<Running> {
        let port = free_port()?;
        let process = Command::new(&self.program)
            .arg("run")
            .env_clear()
            .env("DATABASE_URL", &self.database_url)
            .env("AMQP_URL", &self.amqp_url)
            .env("POSTRIDER_SLOT", &self.slot)
            .env("POSTRIDER_EVENT_ORDERING", self.ordering.name())
            .env("POSTRIDER_ADMIN_LISTEN", format!("127.0.0.1:{port}"))
            .env("POSTRIDER_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        Ok(Running { process, port })
    }

    /// Until `rows` events are confirmed.
    pub(crate) async fn drain(self, servers: &Servers, database: &Database, rows: u64) -> Outcome<Drained> {
        let running = self.start()?;
        let rows = rows as f64;
        let (first, begin, own) = loop {
            let confirmed = running.confirmed().await?;
            if confirmed > 0.0 {
                break (confirmed, servers.sample()?, measure::cpu(running.pid())?);
            }
        };
        running.confirms_all(rows).await?;
        let (end, own) = (servers.sample()?, measure::cpu(running.pid())? - own);
        let peak_memory = measure::peak_memory(running.pid())?;
        let retries = running.counter("postrider_publish_retries_total").await?;
        if retries > 0.0 {
            return Err(format!("{retries} events were published again: this is no drain to measure").into());
        }
        running.stop()?;
        database.drop_slot(&self.slot).await?;
        let spent = Sample::until(&begin, &end);
        let events = rows - first;
        Ok(Drained { events, seconds: spent.seconds, own, peak_memory, spent, all: events })
    }
}

/// A relay's process.
pub(crate) struct Running {
    process: Child,
    port: u16,
}

impl Running {
    fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Until it has its slot.
    pub(crate) async fn carries(&self) -> Outcome<()> {
        let began = Instant::now();
        while self.counter("postrider_session_up").await.unwrap_or(0.0) < 1.0 {
            if began.elapsed() > STUCK {
                return Err("the relay does not begin to carry".into());
            }
            sleep(ASK).await;
        }
        Ok(())
    }

    pub(crate) async fn confirms(&self, rows: u64) -> Outcome<()> {
        self.confirms_all(rows as f64).await
    }

    async fn confirms_all(&self, rows: f64) -> Outcome<()> {
        let (mut before, mut moved) = (0.0, Instant::now());
        loop {
            let confirmed = self.confirmed().await?;
            if confirmed >= rows {
                return Ok(());
            }
            if confirmed > before {
                (before, moved) = (confirmed, Instant::now());
            } else if moved.elapsed() > STUCK {
                return Err(format!("the relay stands still at {confirmed} of {rows} events").into());
            }
        }
    }

    async fn confirmed(&self) -> Outcome<f64> {
        sleep(ASK).await;
        match self.counter("postrider_events_confirmed_total").await {
            Err(error) if error.downcast_ref::<std::io::Error>().is_none() => Err(error),
            // It does not listen yet. A relay that has died never will, and is noticed as one that stands still.
            Err(_) => Ok(0.0),
            confirmed => confirmed,
        }
    }

    async fn counter(&self, name: &str) -> Outcome<f64> {
        let metrics = self.metrics().await?;
        let value = metrics.lines().find(|line| line.starts_with(name)).and_then(|line| line.rsplit(' ').next());
        Ok(value.ok_or_else(|| format!("no metric {name}"))?.parse()?)
    }

    pub(crate) async fn metrics(&self) -> Outcome<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// In good order: the slot is free when it has ended.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let ended = self.process.wait()?;
        if told.success() && ended.success() { Ok(()) } else { Err(format!("the relay ended with {ended}").into()) }
    }
}

/// One that was not stopped must not outlive us.
impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// pg_recvlogical to /dev/null, up to a position.
pub(crate) struct Recv<'a> {
    pub(crate) slot: &'a str,
    pub(crate) end: &'a str,
}

impl Recv<'_> {
    pub(crate) async fn drain(&self, servers: &Servers, database: &Database, rows: u64) -> Outcome<Drained> {
        // bash's `time` knows milliseconds, and works inside a container too.
        let script = format!(
            "TIMEFORMAT='%R %U %S'; time {} -d '{}' --slot={} --start --endpos={} -f /dev/null -F 0 --no-loop \
             -o proto_version=1 -o publication_names=postrider",
            servers.recv_program, database.url, self.slot, self.end
        );
        let mut words = servers.recv_in.split_whitespace().chain(["bash", "-c"]);
        let mut command = Command::new(words.next().unwrap_or("bash"));
        command.args(words).arg(&script).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let begin = servers.sample()?;
        let process = command.spawn()?;
        let ended = tokio::task::spawn_blocking(move || process.wait_with_output());
        tokio::pin!(ended);
        // The walsender's CPU goes with it, so that it is looked at until then.
        let (mut walsender, mut last) = (0.0_f64, begin);
        let output = loop {
            tokio::select! {
                output = &mut ended => break output.map_err(Failure::from)??,
                () = sleep(ASK) => {
                    last = servers.sample()?;
                    walsender = walsender.max(last.walsender);
                }
            }
        };
        let mut spent = Sample::until(&begin, &last);
        spent.walsender = walsender;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().last().unwrap_or_default();
        let numbers: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let (true, [seconds, user, system]) = (output.status.success(), numbers.as_slice()) else {
            return Err(format!("pg_recvlogical failed: {text}").into());
        };
        database.drop_slot(self.slot).await?;
        let rows = rows as f64;
        Ok(Drained { events: rows, seconds: *seconds, own: user + system, peak_memory: 0.0, spent, all: rows })
    }
}
