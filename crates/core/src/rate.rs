//! How often somebody may ask: a token bucket.
//!
//! The hub's shell keeps one per key with a rate and asks it before each request that counts. Always true: in any span of
//! time no more requests pass than the burst and the rate times the span; after the pause that a refusal names, the next
//! request passes if nobody else came before it.
//! Deliberately not here: a clock (the caller has one), which requests count.

use crate::limits::{BURST_MIN, BURST_SECONDS};

/// What a token is cut into: a rate of one in a second refills one of these in a millisecond.
const PARTS: u64 = 1_000;

/// Tokens that come back with time; each request takes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    per_second: u64,
    parts: u64,
    at_ms: u64,
}

impl Bucket {
    /// A full one.
    pub fn new(per_second: u64, now_ms: u64) -> Bucket {
        let mut bucket = Bucket { per_second: per_second.max(1), parts: 0, at_ms: now_ms };
        bucket.parts = bucket.burst() * PARTS;
        bucket
    }

    /// Requests that may come at once after a silence.
    pub fn burst(&self) -> u64 {
        self.per_second.saturating_mul(BURST_SECONDS).clamp(BURST_MIN, u64::MAX / PARTS)
    }

    /// The rate.
    pub fn per_second(&self) -> u64 {
        self.per_second
    }

    /// Another rate from now on. What was left stays, as far as it fits.
    pub fn set(&mut self, per_second: u64, now_ms: u64) {
        self.refill(now_ms);
        self.per_second = per_second.max(1);
        self.parts = self.parts.min(self.burst() * PARTS);
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; there will be one after so many milliseconds.
    pub fn take(&mut self, now_ms: u64) -> Result<(), u64> {
        self.refill(now_ms);
        match self.parts.checked_sub(PARTS) {
            Some(left) => {
                self.parts = left;
                Ok(())
            }
            None => Err((PARTS - self.parts).div_ceil(self.per_second)),
        }
    }

    fn refill(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        self.parts = self.parts.saturating_add(passed.saturating_mul(self.per_second)).min(self.burst() * PARTS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Whoever asks how ever: never more than the burst and the rate allow, in every span; and who waits as long as it
        // was told gets through, not a millisecond later than needed.
        #[test]
        fn never_more_than_the_rate(
            per_second in 1_u64..400,
            pauses in proptest::collection::vec(prop_oneof![Just(0_u64), 0_u64..30, 0_u64..5_000], 1..200),
        ) {
            let mut bucket = Bucket::new(per_second, 7);
            let burst = bucket.burst();
            let (mut now, mut passed) = (7, Vec::new());
            for pause in pauses {
                now += pause;
                match bucket.take(now) {
                    Ok(()) => passed.push(now),
                    Err(retry_ms) => {
                        prop_assert!(retry_ms >= 1);
                        let mut patient = bucket.clone();
                        prop_assert_eq!(patient.take(now + retry_ms), Ok(()));
                        prop_assert!(bucket.clone().take(now + retry_ms - 1).is_err());
                    }
                }
            }
            for (n, from) in passed.iter().enumerate() {
                for (m, to) in passed.iter().enumerate().skip(n) {
                    let allowed = burst + (to - from) * per_second / PARTS + 1;
                    prop_assert!((m - n) as u64 <= allowed, "{} requests in {} ms", m - n, to - from);
                }
            }
        }
    }

    // A clock that stands still or goes back gives nothing for free; the largest rate breaks nothing.
    #[test]
    fn the_ends_of_the_scale() {
        let mut bucket = Bucket::new(1, 1_000);
        (0..BURST_MIN).for_each(|_| assert_eq!(bucket.take(1_000), Ok(())));
        assert_eq!((bucket.take(1_000), bucket.take(0)), (Err(1_000), Err(1_000)));
        assert_eq!((bucket.take(1_999), bucket.take(2_000)), (Err(1), Ok(())));
        bucket.set(u64::MAX, 2_000);
        assert_eq!((bucket.take(2_001), bucket.take(u64::MAX)), (Ok(()), Ok(())));
        bucket.set(0, u64::MAX);
        assert_eq!((bucket.per_second(), bucket.burst()), (1, BURST_MIN));
    }
}
