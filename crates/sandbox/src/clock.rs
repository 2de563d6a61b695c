//! The one clock of the cage: monotonic nanoseconds, the same number in the cage and in every init.
//!
//! Used by `cage`, `program` and `init`. Deliberately not here: `std::time::Instant` because its value cannot be
//! written into a pipe: an init says when its program ended, and the cage subtracts when it began.

use std::time::Duration;

/// A moment: nanoseconds of CLOCK_MONOTONIC, comparable between processes of this machine until it restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Reads the clock.
    pub(crate) fn now() -> Moment {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Moment(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// From a number that `nanos` gave, perhaps in another process.
    pub(crate) fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// The number behind the moment.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    /// The moment `wait` later; the end of time if that overflows.
    pub(crate) fn plus(self, wait: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this moment, zero if it is not earlier.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
