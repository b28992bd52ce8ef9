use futures_util::FutureExt;

use super::*;
use crate::dead_letters::Reason;
use crate::event::{Event, Joins, PoisonReason, Route, Ticket};
use crate::lsn::Lsn;

fn position(n: u64) -> Position {
    Position { epoch: 0, commit: Lsn(n), ordinal: 0, part: 0 }
}

fn letter(n: u64) -> NewDeadLetter {
    let event = Event {
        position: position(n),
        id: "id".into(),
        key: "key".into(),
        joins: Joins::Nothing,
        route: Route::default().into(),
        commit_time: std::time::UNIX_EPOCH,
        ticket: Ticket::NONE,
        content: Err(crate::event::Poison { reason: PoisonReason::TooLarge, detail: String::new() }),
        remains: None,
    };
    let reason = Reason::Behind;
    NewDeadLetter { event: event.into(), reason, error: String::new(), holds_key: true, attempts: 0 }
}

fn failed(n: u64) -> FailedAgain {
    FailedAgain { position: position(n), reason: Reason::Nacked, error: String::new() }
}

/// The desk of a relay that carries, and the session that hears it.
fn open() -> (Desk, Registry) {
    let (mut desk, registry) = desk();
    assert!(!desk.is_open());
    registry.answers.send(Answer::Loaded { relay_epoch: 1, letters: Vec::new() }).unwrap();
    desk.answer().now_or_never().unwrap();
    assert!(desk.is_open());
    (desk, registry)
}

/// What is given to the session now.
fn given(registry: &mut Registry) -> Option<String> {
    let command = registry.commands.try_recv().ok()?;
    let numbers = |positions: &[Position]| {
        positions.iter().map(|position| position.commit.0.to_string()).collect::<Vec<_>>().join(" ")
    };
    Some(match command {
        Command::Park(letters) => {
            format!("park {}", numbers(&letters.iter().map(|letter| letter.event.position).collect::<Vec<_>>()))
        }
        Command::Remove(positions) => format!("remove {}", numbers(&positions)),
        Command::FailedAgain(failed) => {
            format!("failed {}", numbers(&failed.iter().map(|failed| failed.position).collect::<Vec<_>>()))
        }
        Command::Fetch(positions) => format!("fetch {}", numbers(&positions)),
        Command::Look => "look".to_owned(),
    })
}

/// The command under way is done.
fn done(desk: &mut Desk, registry: &Registry, answer: Answer) {
    registry.answers.send(answer).unwrap();
    desk.answer().now_or_never().unwrap();
}

fn looked(desk: &mut Desk, registry: &Registry) -> bool {
    done(desk, registry, Answer::Looked(Look::default()));
    desk.look_is_exact()
}

#[test]
fn of_what_comes_together_inserts_go_first_and_reads_last() {
    let (mut desk, mut registry) = open();
    desk.carry_out(Errands { park: vec![letter(1)], ..Errands::default() });
    assert_eq!(given(&mut registry).unwrap(), "park 1");
    // One after another: nothing is given while one is under way, and what comes up meanwhile is gathered.
    desk.carry_out(Errands { fetch: vec![position(2)], ..Errands::default() });
    desk.carry_out(Errands { remove: vec![position(3)], failed: vec![failed(4)], ..Errands::default() });
    desk.carry_out(Errands { park: vec![letter(2)], fetch: vec![position(5)], ..Errands::default() });
    let mut order = Vec::new();
    for _ in 0..4 {
        assert_eq!(given(&mut registry), None);
        done(&mut desk, &registry, Answer::Removed);
        assert!(!desk.is_idle());
        desk.go_on();
        order.push(given(&mut registry).unwrap());
    }
    assert_eq!(order, ["park 2", "failed 4", "remove 3", "fetch 2 5"]);
    done(&mut desk, &registry, Answer::Removed);
    assert!(desk.is_idle());
}

#[test]
fn many_inserts_go_in_several_in_their_order_and_before_the_read() {
    let (mut desk, mut registry) = open();
    let park = (0..1_200).map(letter).collect();
    desk.carry_out(Errands { park, fetch: vec![position(1_100)], ..Errands::default() });
    let mut sizes = Vec::new();
    while let Some(command) = given(&mut registry) {
        sizes.push(command.split(' ').count() - 1);
        done(&mut desk, &registry, Answer::Removed);
        desk.go_on();
    }
    assert_eq!(sizes, [500, 500, 200, 1]);
}

#[test]
fn a_look_counts_exactly_when_nothing_was_to_be_written_meanwhile() {
    let (mut desk, mut registry) = open();
    let now = Instant::now();
    assert_eq!(desk.look(now), None);
    assert_eq!(given(&mut registry).unwrap(), "look");
    assert!(looked(&mut desk, &registry));
    // Not again at once.
    assert_eq!(desk.look(now), Some(now + LOOK));
    assert_eq!(given(&mut registry), None);

    desk.look(now + LOOK);
    assert_eq!(given(&mut registry).unwrap(), "look");
    desk.remove(vec![position(1)]);
    assert!(!looked(&mut desk, &registry), "the lot knows already that 1 is gone");
    desk.go_on();
    assert_eq!(given(&mut registry).unwrap(), "remove 1");
    // One that waits for its turn comes after what is to be written.
    desk.look(now + 2 * LOOK);
    desk.carry_out(Errands { park: vec![letter(2)], ..Errands::default() });
    done(&mut desk, &registry, Answer::Removed);
    desk.go_on();
    assert_eq!(given(&mut registry).unwrap(), "park 2");
    done(&mut desk, &registry, Answer::Parked(vec![position(2)]));
    desk.go_on();
    assert_eq!(given(&mut registry).unwrap(), "look");
    assert!(looked(&mut desk, &registry));
}
