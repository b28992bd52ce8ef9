//! The numbers of the heartbeats have no gaps (rules R7 and D10): one that is missing is WAL that was not sent.

use crate::postgres::state::HeartbeatNo;

/// A number that cannot be the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("heartbeat {found} came where {expected} was due")]
pub struct Gap {
    /// On a new connection: at most this one.
    pub expected: HeartbeatNo,
    pub found: HeartbeatNo,
}

/// Which number may come next through one connection.
#[derive(Clone, Copy, Debug)]
pub struct Continuity {
    /// The last that came on this connection.
    last: Option<HeartbeatNo>,
    /// The highest that the first may be: PostgreSQL resends what it was told of, so the first may be any earlier one.
    first_at_most: HeartbeatNo,
    /// The first transaction of the slot's life. What was written before it was numbered by a record that may be gone.
    born: u64,
}

impl Continuity {
    /// `recorded`: the newest heartbeat that may have been acknowledged. In a life of the slot that has had none yet, the first may be
    /// any up to the next one that is written; `written` is the last one that was.
    pub fn new(recorded: Option<HeartbeatNo>, written: HeartbeatNo, born: u64) -> Continuity {
        Continuity { last: None, first_at_most: recorded.unwrap_or(written) + 1, born }
    }

    /// `xmax` is that of the heartbeat's snapshot. One of this life was written after the transaction that began it had ended, so that
    /// its snapshot ends behind `born`; of an earlier one nothing is concluded, and `false` returned.
    pub fn next(&mut self, found: HeartbeatNo, xmax: u64) -> Result<bool, Gap> {
        if xmax <= self.born {
            return Ok(false);
        }
        let expected = self.last.map_or(self.first_at_most, |last| last + 1);
        let fits = if self.last.is_some() { found == expected } else { found <= expected };
        self.last = Some(found);
        if fits { Ok(true) } else { Err(Gap { expected, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_may_be_any_that_was_not_surely_acknowledged() {
        for first in [1, 6, 7, 8] {
            Continuity::new(Some(7), 9, 50).next(first, 60).unwrap();
        }
        assert_eq!(Continuity::new(Some(7), 9, 50).next(9, 60), Err(Gap { expected: 8, found: 9 }));
    }

    #[test]
    fn in_a_new_life_the_first_is_at_most_the_next_one_that_is_written() {
        Continuity::new(None, 9, 50).next(10, 60).unwrap();
        assert_eq!(Continuity::new(None, 9, 50).next(11, 60), Err(Gap { expected: 10, found: 11 }));
    }

    #[test]
    fn a_heartbeat_of_an_earlier_life_says_nothing() {
        let mut numbers = Continuity::new(None, 0, 50);
        for (number, xmax, of_this_life) in [(57, 49, false), (58, 50, false), (1, 51, true)] {
            assert_eq!(numbers.next(number, xmax), Ok(of_this_life));
        }
        assert_eq!(numbers.next(3, 52), Err(Gap { expected: 2, found: 3 }));
    }

    #[test]
    fn after_the_first_exactly_the_next_one_is_due() {
        for (second, result) in [(8, Ok(true)), (9, Err(9)), (7, Err(7)), (6, Err(6))] {
            let mut numbers = Continuity::new(Some(7), 9, 50);
            numbers.next(7, 60).unwrap();
            assert_eq!(numbers.next(second, 60), result.map_err(|found| Gap { expected: 8, found }));
        }
    }
}
