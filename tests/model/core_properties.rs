//! The whole core under random histories.

use std::time::Duration;

use postrider::dead_letters::Mark;
use proptest::prelude::*;

use crate::broker::{ExchangeState, QueueState};
use crate::wal::{EXCHANGES, Joined, KEYS, Policy, QUEUES, Row};
use crate::world::{Checked, World};

/// `PROPTEST_CASES` counts histories of the whole core; the judge alone is `times` as quick.
pub(crate) fn config(times: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(250);
    ProptestConfig { cases: cases * times, failure_persistence: None, ..ProptestConfig::default() }
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Row>),
    Message(Option<Row>),
    Foreign,
    Keepalive,
    Read(u8),
    Publish(u8),
    Process(u8),
    Confirm(u8),
    Multiple(u8, u64),
    Poll(u8),
    /// Whole passes until nothing more can be decided.
    Sweep,
    Feedback,
    LateTickets,
    Probe,
    /// The publisher gives its errands to the session.
    Errands,
    /// The database carries out so many of them.
    Database(u8),
    /// So many answers are heard.
    Hear(u8),
    /// One turn of the publisher's loop, which is to stop or not.
    Turn(bool),
    /// Everybody goes on for a while.
    GoOn(u8),
    /// A person marks the nth dead letter.
    Mark(u8, Mark),
    /// A person deletes its row.
    Delete(u8),
    /// So many events of one key, one after another.
    Burst(Row, u8),
    Look,
    Tick(u16),
    Queue(usize, QueueState),
    Exchange(usize, ExchangeState),
    LoseConnection(u8),
    EndSession(u8),
}

/// How often what happens: the weight of events of two keys, of those of a whole table, of the ends of sessions; and how many keys there are.
#[derive(Clone, Copy)]
struct Mix {
    joined: u32,
    barriers: u32,
    ends: u32,
    keys: u8,
}

/// As in production, but for the faults.
const ORDINARY: Mix = Mix { joined: 4, barriers: 1, ends: 1, keys: KEYS };

/// Everything is tied to everything, and comes again from the slot and from the dead letters.
const TIED: Mix = Mix { joined: 12, barriers: 4, ends: 6, keys: 4 };

fn row(mix: Mix) -> impl Strategy<Value = Row> {
    let exchange = 0..u8::try_from(EXCHANGES.len()).unwrap();
    let queue = 0..u8::try_from(QUEUES.len()).unwrap();
    let policy = prop_oneof![
        12 => Just(Policy::Park),
        1 => Just(Policy::DiscardUnroutable),
        1 => Just(Policy::HoldUnroutable),
        1 => Just(Policy::SkipPoison),
        1 => Just(Policy::HaltOnPoison),
    ];
    let joins = prop_oneof![
        16 => Just(Joined::Nothing),
        mix.joined => (0..mix.keys).prop_map(Joined::Key),
        mix.barriers => Just(Joined::Table),
        mix.barriers => Just(Joined::Keyless),
    ];
    let rare = || prop::bool::weighted(0.03);
    (0..mix.keys, joins, exchange, queue, any::<bool>(), rare(), rare(), policy).prop_map(
        |(key, joins, exchange, queue, pipelined, refused, unfit, policy)| Row {
            key,
            joins,
            exchange,
            queue,
            pipelined,
            refused,
            unfit,
            policy,
        },
    )
}

fn step(mix: Mix) -> impl Strategy<Value = Step> {
    let queue_state = prop_oneof![
        3 => Just(QueueState::Open),
        3 => Just(QueueState::Unbound),
        1 => Just(QueueState::Full),
        1 => Just(QueueState::Stuck),
    ];
    let exchange_state = prop_oneof![
        3 => Just(ExchangeState::Present),
        1 => Just(ExchangeState::Missing),
        1 => Just(ExchangeState::Forbidden),
    ];
    prop_oneof![
        6 => prop::collection::vec(row(mix), 0..4).prop_map(Step::Commit),
        2 => prop::option::weighted(0.7, row(mix)).prop_map(Step::Message),
        1 => Just(Step::Foreign),
        3 => Just(Step::Keepalive),
        10 => (1..8_u8).prop_map(Step::Read),
        10 => (1..5_u8).prop_map(Step::Publish),
        10 => (1..5_u8).prop_map(Step::Process),
        8 => any::<u8>().prop_map(Step::Confirm),
        4 => (0..5_u8, any::<u64>()).prop_map(|(length, seed)| Step::Multiple(length, seed)),
        12 => (1..6_u8).prop_map(Step::Poll),
        2 => Just(Step::Sweep),
        2 => Just(Step::Feedback),
        1 => Just(Step::LateTickets),
        4 => Just(Step::Probe),
        8 => Just(Step::Errands),
        8 => (1..4_u8).prop_map(Step::Database),
        8 => (1..4_u8).prop_map(Step::Hear),
        1 => (any::<u8>(), prop_oneof![Just(Mark::Redrive), Just(Mark::Discard)]).prop_map(|(n, mark)| Step::Mark(n, mark)),
        6 => prop::bool::weighted(0.8).prop_map(Step::Turn),
        12 => (1..6_u8).prop_map(Step::GoOn),
        1 => any::<u8>().prop_map(Step::Delete),
        1 => (row(mix), 1..10_u8).prop_map(|(row, length)| Step::Burst(row, length)),
        2 => Just(Step::Look),
        4 => (0..9_000_u16).prop_map(Step::Tick),
        4 => (0..QUEUES.len(), queue_state).prop_map(|(queue, state)| Step::Queue(queue, state)),
        1 => (0..EXCHANGES.len(), exchange_state).prop_map(|(exchange, state)| Step::Exchange(exchange, state)),
        1 => (0..4_u8).prop_map(Step::LoseConnection),
        mix.ends => (0..4_u8).prop_map(Step::EndSession),
    ]
}

fn play(world: &mut World, step: &Step) -> Checked {
    match step {
        Step::Commit(rows) => world.wal.append(true, rows.clone()),
        Step::Message(row) => world.wal.append(false, row.iter().copied().collect()),
        Step::Foreign => world.wal.foreign(),
        Step::Keepalive => world.keepalive(),
        Step::Read(times) => (0..*times).try_for_each(|_| world.read().map(|_| ()))?,
        Step::Publish(times) => (0..*times).try_for_each(|_| world.publish().map(|_| ()))?,
        Step::Process(times) => (0..*times).for_each(|_| world.process()),
        Step::Confirm(pick) => world.confirm(*pick),
        Step::Multiple(length, seed) => world.multiple(*length, *seed),
        Step::Poll(times) => (0..*times).try_for_each(|_| world.poll())?,
        Step::Sweep => {
            world.sweep()?;
            while world.needs_another_pass() {
                world.sweep()?;
            }
        }
        Step::Feedback => world.feedback(),
        Step::LateTickets => world.late_tickets()?,
        Step::Probe => world.probe()?,
        Step::Errands => world.errands(true)?,
        Step::Turn(releasing) => world.turn(*releasing)?,
        Step::GoOn(much) => world.go_on(*much)?,
        Step::Delete(pick) => world.delete(*pick),
        Step::Burst(row, length) => (0..*length).for_each(|_| world.wal.append(true, vec![*row])),
        Step::Database(times) => (0..*times).for_each(|_| world.database()),
        Step::Hear(times) => (0..*times).try_for_each(|_| world.hear().map(|_| ()))?,
        Step::Mark(pick, mark) => world.mark(*pick, *mark),
        Step::Look => world.look(),
        Step::Tick(milliseconds) => world.tick(Duration::from_millis((*milliseconds).into()))?,
        Step::Queue(queue, state) => world.set_queue(*queue, *state),
        Step::Exchange(exchange, state) => world.set_exchange(*exchange, *state),
        Step::LoseConnection(processed) => world.lose_connection(usize::from(*processed))?,
        Step::EndSession(processed) => world.end_session(usize::from(*processed)),
    }
    world.check_all()
}

fn play_all(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    let mut run = || {
        steps.iter().try_for_each(|step| play(&mut world, step))?;
        world.heal()
    };
    run().map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn nothing_is_lost_reordered_repeated_for_no_reason_or_acknowledged_undelivered(
        steps in prop::collection::vec(step(ORDINARY), 1..150),
    ) {
        play_all(&steps)?;
    }

    #[test]
    fn neither_is_it_when_all_keys_are_tied_to_each_other_and_sessions_end_often(
        steps in prop::collection::vec(step(TIED), 1..150),
    ) {
        play_all(&steps)?;
    }
}
