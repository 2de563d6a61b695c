//! How long the tasks of an array take: those of short ones are leased ahead.
//!
//! [`super::jobs`] tells it each end, [`super::placement`] asks. Always true: what is not known yet is not short; what was
//! short and is no longer is noticed with the ends that say so.
//! Deliberately not here: what is done about tasks that were leased and turn out long ([`super::placement`]).

use crate::limits::{AHEAD_MS, PACE_ENDS, SHORT_TASK_MS};
use essaim_proto::JobId;
use std::collections::BTreeMap;

/// Tasks that are leased ahead to one slot at most, whatever their pace: a message and the answer to a reconnect stay small.
const AHEAD_MAX: u64 = 256;

/// The shortest time that a task is believed to take, in microseconds: the clock's milliseconds say 0.
const TASK_US_MIN: u64 = 200;

/// The pace of arrays that run.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace(BTreeMap<JobId, Known>);

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    ends: u32,
    /// A mean that forgets: the last some twenty ends count.
    mean_us: u64,
}

impl Pace {
    /// A task took so long.
    pub(super) fn ended(&mut self, job: JobId, wall_ms: u64) {
        let known = self.0.entry(job).or_default();
        let us = wall_ms.saturating_mul(1_000);
        known.ends = known.ends.saturating_add(1);
        let weight = u64::from(known.ends.min(16));
        known.mean_us = (known.mean_us * (weight - 1)).saturating_add(us) / weight;
    }

    /// Nothing of it has ended for so long where it was leased ahead: it is not short, until ends say so again.
    pub(super) fn stalls(&mut self, job: JobId, ms: u64) {
        let known = self.0.entry(job).or_default();
        known.mean_us = known.mean_us.max(ms.saturating_mul(1_000));
    }

    pub(super) fn forget(&mut self, job: JobId) {
        self.0.remove(&job);
    }

    /// How many tasks of the job each slot may have at once, when they are short; otherwise 0.
    pub(super) fn tasks_ahead(&self, job: JobId) -> u32 {
        let Some(known) = self.0.get(&job) else { return 0 };
        if known.ends < PACE_ENDS || known.mean_us >= SHORT_TASK_MS * 1_000 {
            return 0;
        }
        let fit = AHEAD_MS * 1_000 / known.mean_us.max(TASK_US_MIN);
        (1 + fit).clamp(2, AHEAD_MAX) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Short is known after some ends, and forgotten when tasks take longer.
    #[test]
    fn short_tasks_are_noticed() {
        let (mut pace, job) = (Pace::default(), JobId(1));
        assert_eq!(pace.tasks_ahead(job), 0);
        (1..PACE_ENDS).for_each(|_| pace.ended(job, 1));
        assert_eq!(pace.tasks_ahead(job), 0, "too few to know");
        pace.ended(job, 1);
        assert_eq!(pace.tasks_ahead(job), 51);
        (0..6).for_each(|_| pace.ended(job, 1_000));
        assert_eq!(pace.tasks_ahead(job), 0);
        (0..200).for_each(|_| pace.ended(job, 0));
        assert_eq!(pace.tasks_ahead(job), AHEAD_MAX.min(251) as u32);
        pace.stalls(job, 500);
        assert_eq!(pace.tasks_ahead(job), 0);
        pace.forget(job);
        assert_eq!(pace.tasks_ahead(job), 0);
    }
}
