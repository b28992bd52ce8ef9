mod failures;
mod joint;
mod order;
mod parking;

use std::time::SystemTime;

use bytes::Bytes;

use super::*;
use crate::event::{Joins, Message, Ordering, PoisonReason, Properties, Route, Ticket};
use crate::lsn::Lsn;

const SECOND: Duration = Duration::from_secs(1);

fn position(n: u64) -> Position {
    Position { epoch: 0, commit: Lsn(n), ordinal: 0, part: 0 }
}

fn poison() -> Poison {
    Poison { reason: PoisonReason::TooLarge, detail: "body".to_owned() }
}

/// The ordering key of a row of a table; of the table itself, if the row's is empty.
fn row(table: &str, key: &str) -> String {
    format!("\u{1e}public\u{1e}{table}\u{1f}{key}")
}

fn old(key: &str) -> Joins {
    Joins::Key(key.into())
}

impl Spec<'_> {
    fn event(self) -> Event {
        let content = self.content.map(|size| Message {
            routing_key: self.key.to_owned(),
            properties: Properties {
                message_id: "id".into(),
                kind: "type".to_owned(),
                content_type: "application/json",
                timestamp: 0,
                correlation_id: None,
                headers: Vec::new(),
            },
            body: Bytes::from(vec![0; size]),
        });
        let route = Route {
            name: "route".to_owned(),
            exchange: self.exchange.to_owned(),
            ordering: self.ordering,
            ..Route::default()
        };
        Event {
            position: position(self.n),
            id: "id".into(),
            key: self.key.into(),
            joins: Joins::Nothing,
            route: Arc::new(route),
            commit_time: SystemTime::UNIX_EPOCH,
            ticket: Ticket { session: 1, entry: self.n },
            content,
            remains: None,
        }
    }
}

/// A hold, its clock, and events that are named by their position.
struct Bench {
    hold: Hold,
    now: Instant,
}

struct Spec<'a> {
    n: u64,
    key: &'a str,
    exchange: &'a str,
    ordering: Ordering,
    content: Result<usize, Poison>,
}

impl Bench {
    fn new() -> Self {
        Bench::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Limits)) -> Self {
        // Parking has tests of its own.
        let mut limits = Limits { hold_for: 24 * 3600 * SECOND, ..Limits::default() };
        change(&mut limits);
        Bench::after(&limits, Suspects::default())
    }

    fn after(limits: &Limits, suspects: Suspects) -> Self {
        Bench { hold: Hold::with_seed(limits, suspects, 7), now: Instant::now() }
    }

    fn add(&mut self, spec: Spec<'_>) {
        self.insert(spec.event());
    }

    fn insert(&mut self, event: Event) {
        self.hold.insert(event, self.now).unwrap();
    }

    fn key(&mut self, n: u64, key: &str) {
        self.add(Spec { n, key, exchange: "x", ordering: Ordering::Key, content: Ok(10) });
    }

    fn pipelined(&mut self, n: u64, key: &str) {
        self.add(Spec { n, key, exchange: "x", ordering: Ordering::Pipelined, content: Ok(10) });
    }

    fn to(&mut self, n: u64, key: &str, exchange: &str) {
        self.add(Spec { n, key, exchange, ordering: Ordering::Key, content: Ok(10) });
    }

    fn joint(&mut self, n: u64, key: &str, joins: Joins) {
        self.insert(Event {
            joins,
            ..Spec { n, key, exchange: "x", ordering: Ordering::Key, content: Ok(10) }.event()
        });
    }

    fn barrier(&mut self, n: u64, table: &str) {
        self.joint(n, &row(table, ""), Joins::Table);
    }

    fn take(&mut self) -> Option<u64> {
        self.hold.take_next(self.now).map(|event| event.position.commit.0)
    }

    fn take_all(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.take()).collect()
    }

    fn deliver(&mut self, n: u64) -> Delivered {
        self.hold.delivered(position(n), self.now).unwrap()
    }

    fn refuse(&mut self, n: u64, refusal: Refusal) -> Instant {
        let refused = self.hold.refused(position(n), refusal, self.now).unwrap();
        let Decision::Retry { at } = refused.decision else { panic!("{:?}", refused.decision) };
        at
    }

    fn fail(&mut self, fault: ChannelFault) -> ChannelJudgement {
        self.hold.channel_failed(fault, "words", self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}
