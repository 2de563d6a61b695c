//! How long tasks of arrays take here: of those that take a moment, a slot gets several at once.
//!
//! [`super::Worker`] tells it each end, and asks when it fills its slots. Always true: what is not known yet does not take a
//! moment; only what needs nothing but a slot, and may wait behind others, is ever handed over before its turn.
//! Deliberately not here: leases of the hub (it measures for itself), and who runs when (the cage).

use crate::limits::{IN_HAND_BYTES_MAX, IN_HAND_MAX, IN_HAND_MS, MOMENT_MS, PACE_ENDS, PACES_MAX};
use essaim_proto::JobId;
use essaim_proto::job::StdinSpec;
use essaim_proto::link::{PhaseSpec, Start};
use std::collections::BTreeMap;

/// A program with a shorter limit does not wait behind others.
const WALL_MIN_MS: u64 = 1_000;

/// What the clock's whole milliseconds leave out on average.
const ROUNDED_US: u64 = 500;

/// The paces of arrays.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<JobId, Pace>);

#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    ends: u32,
    /// A mean that forgets: the last some twenty ends count.
    mean_us: u64,
}

impl Paces {
    /// A task took so long.
    pub(super) fn ended(&mut self, job: JobId, wall_ms: u64) {
        if self.0.len() >= PACES_MAX && !self.0.contains_key(&job) {
            self.0.pop_first();
        }
        let pace = self.0.entry(job).or_default();
        pace.ends = pace.ends.saturating_add(1);
        let weight = u64::from(pace.ends.min(16));
        let us = wall_ms.saturating_mul(1_000);
        pace.mean_us = pace.mean_us.saturating_mul(weight - 1).saturating_add(us) / weight;
    }

    /// Its tasks fill all slots for longer: they take no moment, until ends say so again.
    pub(super) fn stalls(&mut self, job: JobId) {
        if let Some(pace) = self.0.get_mut(&job) {
            pace.mean_us = pace.mean_us.max(16 * MOMENT_MS * 1_000);
        }
    }

    /// How many of these tasks a slot may have at once.
    pub(super) fn in_hand(&self, start: &Start) -> u32 {
        let Some(pace) = self.0.get(&start.attempt.job).filter(|_| may_wait(start)) else { return 1 };
        if pace.ends < PACE_ENDS || pace.mean_us >= MOMENT_MS * 1_000 {
            return 1;
        }
        (IN_HAND_MS * 1_000 / (pace.mean_us + ROUNDED_US)).clamp(1, u64::from(IN_HAND_MAX)) as u32
    }
}

fn may_wait(start: &Start) -> bool {
    let [phase] = &start.phases[..] else { return false };
    start.tasks.is_some()
        && start.needs.is_plain()
        && start.files.is_empty()
        && start.stdin != StdinSpec::Live
        && phase.wall_ms >= WALL_MIN_MS
        && bytes(phase) <= IN_HAND_BYTES_MAX
}

fn bytes(phase: &PhaseSpec) -> usize {
    let variables = phase.env.iter().map(|(name, value)| name.len() + value.len());
    phase.argv.iter().map(String::len).chain(variables).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::TaskSet;
    use essaim_proto::job::{FileSpec, Needs};

    fn start() -> Start {
        let phases = vec![PhaseSpec { argv: vec!["true".into()], wall_ms: 60_000, ..PhaseSpec::default() }];
        Start { tasks: Some(TaskSet::span(1, 9)), phases, ..Start::default() }
    }

    // Is a moment known after some ends, and forgotten when tasks take longer or stall?
    #[test]
    fn moments_are_noticed() {
        let (mut paces, job) = (Paces::default(), start().attempt.job);
        assert_eq!(paces.in_hand(&start()), 1);
        (1..PACE_ENDS).for_each(|_| paces.ended(job, 1));
        assert_eq!(paces.in_hand(&start()), 1, "too few to know");
        paces.ended(job, 1);
        assert_eq!(paces.in_hand(&start()), 10);
        paces.stalls(job);
        assert_eq!(paces.in_hand(&start()), 1);
        (0..100).for_each(|_| paces.ended(job, 0));
        assert_eq!(paces.in_hand(&start()), IN_HAND_MAX);
        paces.ended(job, u64::MAX);
        assert_eq!(paces.in_hand(&start()), 1);
        paces.stalls(JobId(77));
        (100..100 + 2 * PACES_MAX as u64).for_each(|job| paces.ended(JobId(job), 1));
        assert_eq!(paces.0.len(), PACES_MAX);
    }

    // Does only what needs nothing but a slot go to one before its turn?
    #[test]
    fn only_the_plainest_wait() {
        let mut paces = Paces::default();
        (0..PACE_ENDS).for_each(|_| paces.ended(start().attempt.job, 1));
        let with = |change: &dyn Fn(&mut Start)| {
            let mut start = start();
            change(&mut start);
            paces.in_hand(&start)
        };
        assert!(with(&|_| ()) > 1);
        assert_eq!(with(&|start| start.tasks = None), 1);
        assert_eq!(with(&|start| start.needs = Needs { cpus: 2, ..Needs::default() }), 1);
        assert_eq!(with(&|start| start.files.push(FileSpec::default())), 1);
        assert_eq!(with(&|start| start.stdin = StdinSpec::Live), 1);
        assert_eq!(with(&|start| start.phases[0].wall_ms = 999), 1);
        assert_eq!(with(&|start| start.phases.push(PhaseSpec::default())), 1);
        assert_eq!(with(&|start| start.phases[0].argv.push("x".repeat(IN_HAND_BYTES_MAX))), 1);
    }
}
