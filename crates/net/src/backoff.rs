//! How long to wait before the next try: doubling, capped, with jitter.
//!
//! A worker uses it for its endless reconnect, `client` for its few tries. Always true: a pause lies between half and the
//! whole of the step, so that a thousand workers whose hub restarted do not return in one instant.
//! Deliberately not here: sleeping (the caller does), and which errors are worth another try (`DialError::is_retryable`).

use crate::limits::{BACKOFF_FIRST, BACKOFF_MAX};
use crate::ticket::random;
use std::time::Duration;

/// The pauses of one series of tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    step: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new()
    }
}

impl Backoff {
    /// A series that begins at [`BACKOFF_FIRST`] and grows to [`BACKOFF_MAX`].
    pub fn new() -> Backoff {
        Backoff::between(BACKOFF_FIRST, BACKOFF_MAX)
    }

    /// A series that begins at `first` and grows to `max`.
    pub fn between(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, step: first }
    }

    /// The pause before the next try.
    pub fn next_pause(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.max);
        let share = f64::from(u32::from_le_bytes(random())) / f64::from(u32::MAX);
        step / 2 + (step / 2).mul_f64(share)
    }

    /// Begins anew: call it when a connection stood (after the welcome, not after the dial).
    pub fn reset(&mut self) {
        self.step = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Pauses must grow to the cap, stay within half and whole of their step, and start again after a reset.
    #[test]
    fn pauses_grow_and_are_capped() {
        let mut backoff = Backoff::new();
        let mut step = BACKOFF_FIRST;
        for _ in 0..12 {
            let pause = backoff.next_pause();
            assert!(pause >= step / 2 && pause <= step, "{pause:?} for a step of {step:?}");
            step = (step * 2).min(BACKOFF_MAX);
        }
        assert_eq!(step, BACKOFF_MAX);
        backoff.reset();
        assert!(backoff.next_pause() <= BACKOFF_FIRST);
        let mut patient = Backoff::between(BACKOFF_MAX, BACKOFF_MAX);
        assert!((0..3).all(|_| patient.next_pause() >= BACKOFF_MAX / 2));
    }
}
