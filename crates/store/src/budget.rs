//! Bytes in use against a limit, counted by many threads.
//!
//! The back-ends of outputs call it. Always true: the sum never exceeds the limit by a `take`; the order between threads
//! does not matter.
//! Deliberately not here: who waits for room, and what is dropped for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes in use and how many may be.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Budget {
        Budget { used: AtomicU64::new(0), limit }
    }

    /// A budget of which `used` is taken already, be it more than the limit: the limit may be lower than it once was.
    pub(crate) fn with(limit: u64, used: u64) -> Budget {
        Budget { used: AtomicU64::new(used), limit }
    }

    /// Takes `bytes`, or nothing.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// As `take`, but who finds nothing in use may take more than the limit: it could never begin otherwise.
    pub(crate) fn take_at_last(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| used == 0 || *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }
}
