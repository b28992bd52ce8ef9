//! Faults that the chaos harness (`tests/chaos`) plants in the relay: places where it dies, and bugs that the harness has to find.
//!
//! Only with the feature `chaos`, which no release has: without it [`point`] is empty and [`seeded`] is always false, so that the
//! compiler removes both. Numbers in brackets are those of the project's catalogue of faults (`docs/faults.md`).

/// They are no settings.
pub const VARIABLES: [&str; 2] = ["POSTRIDER_FAILPOINT", "POSTRIDER_BUG"];

/// Where a relay can be told to die, by `POSTRIDER_FAILPOINT=NAME` or `NAME@N` (the Nth time that it comes by; 1 is the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A transaction has begun to arrive (FP1).
    Begin,
    /// One of its rows has been decoded (FP2).
    Row,
    /// Its commit has been decoded, nothing of it is published yet (FP3).
    Commit,
    /// A publish has been handed to the broker's connection, its confirm is not there (FP4).
    Published,
    /// A confirm has been judged (FP5).
    Confirmed,
    /// Progress has moved, its record is not written (FP6).
    Resolved,
    /// The record is written, PostgreSQL has not been told (FP7).
    Recorded,
    /// The status update has been sent (FP8).
    Acknowledged,
    /// The dead letters are about to be committed (FP9).
    Parking,
    /// They are committed and their events not resolved (FP10).
    Parked,
    /// The witness in `state_dir` is written under another name (FP11).
    WitnessWritten,
    /// It has its name, and the directory is not synchronised (FP12).
    WitnessRenamed,
    /// The slot exists, its record does not (FP13).
    SlotMade,
    /// A released event has been confirmed and is still among the dead letters (FP15).
    Released,
    /// It has been removed from them (FP16).
    Removed,
}

/// A bug that the harness must be able to see, chosen by `POSTRIDER_BUG=NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An event counts as delivered once it is sent (M1).
    AckBeforeConfirm,
    /// One byte more than the end of the commit is acknowledged (M2).
    AckEndPlusOne,
    /// A keepalive is acknowledged past events under way (M3).
    AckKeepaliveInFlight,
    /// Publishes are not `mandatory` (M4).
    NotMandatory,
    /// A return decides the confirm that it came with (M5).
    ReturnsInFifo,
    /// A nack counts as an ack (M6).
    NackIsAck,
    /// Later events of a key do not wait for one that is tried again (M7).
    RetryWithoutHold,
    /// The stream is resumed from where the server is now (M8).
    ResumeAtServer,
    /// Rows with an LSN that was seen already are skipped (M9).
    SkipByRowLsn,
    /// Each publish has a new message id (M11).
    RandomMessageIds,
    /// PostgreSQL hears nothing while the broker is blocked (M13).
    SilentWhileBlocked,
    /// A dead letter counts as written before its transaction is committed (M14).
    ResolveBeforeParking,
    /// A slot that is gone is made again (M15).
    RecreateSlot,
    /// What waits in the window has no bound (M16).
    UnboundedWindow,
    /// The events of a batch go out in the order of their ids (M17).
    OrderById,
    /// The record is written after the acknowledgement that it allows (M18).
    RecordAfterAck,
}

/// Dies here, as by SIGABRT, if told to. Without the feature `chaos` it does nothing.
#[inline]
pub fn point(point: Point) {
    #[cfg(feature = "chaos")]
    planted::point(point);
    #[cfg(not(feature = "chaos"))]
    let _ = point;
}

/// Whether this bug has been planted. Without the feature `chaos`: no.
#[inline]
pub fn seeded(bug: Bug) -> bool {
    #[cfg(feature = "chaos")]
    return planted::seeded(bug);
    #[cfg(not(feature = "chaos"))]
    {
        let _ = bug;
        false
    }
}

#[cfg(feature = "chaos")]
mod planted {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Bug, Point};

    /// Names are those of the variants, as `Debug` prints them.
    struct Plan {
        die_at: Option<(String, u64)>,
        bug: Option<String>,
    }

    static PLAN: LazyLock<Plan> = LazyLock::new(|| {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let die_at = variable("POSTRIDER_FAILPOINT").map(|text| match text.split_once('@') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (text, 1),
        });
        Plan { die_at, bug: variable("POSTRIDER_BUG") }
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn point(point: Point) {
        let Some((name, nth)) = &PLAN.die_at else { return };
        if *name == format!("{point:?}") && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
            eprintln!("failpoint {point:?}: dying");
            std::process::abort();
        }
    }

    pub(super) fn seeded(bug: Bug) -> bool {
        PLAN.bug.as_ref().is_some_and(|name| *name == format!("{bug:?}"))
    }
}
