//! Tasks that this worker was given and that wait for slots of its own.
//!
//! [`super::Worker`] adds what the hub gives and takes what fits. Always true: a task is in here once; the order is the
//! jobs' priority, then the order in which they came; what comes first and does not fit is waited for.
//! Deliberately not here: tasks that have begun ([`super`]), what a task needs beyond slots (the hub counts memory).

use essaim_proto::link::{HeldMany, Start};
use essaim_proto::{AttemptId, JobId, TaskId, TaskSet};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tasks of one word of the hub.
#[derive(Debug)]
struct Lease {
    start: Arc<Start>,
    attempt: u32,
    waiting: BTreeSet<TaskId>,
}

/// All of them, whose turn it is first.
#[derive(Debug, Default)]
pub(super) struct Leases(Vec<Lease>);

impl Leases {
    /// Takes the tasks of `start` that are `wanted`.
    pub(super) fn add(&mut self, start: Start, wanted: impl Fn(AttemptId) -> bool) {
        let attempt = start.attempt.attempt;
        let is_new = |attempt: &AttemptId| wanted(*attempt) && !self.contains(*attempt);
        let waiting: BTreeSet<TaskId> = start.attempts().filter(is_new).map(|attempt| attempt.task).collect();
        if waiting.is_empty() {
            return;
        }
        let at = self.0.partition_point(|lease| lease.start.priority >= start.priority);
        self.0.insert(at, Lease { start: Arc::new(start), attempt, waiting });
    }

    fn contains(&self, attempt: AttemptId) -> bool {
        self.of(attempt).is_some()
    }

    fn of(&self, attempt: AttemptId) -> Option<usize> {
        let holds = |lease: &Lease| {
            (lease.start.attempt.job, lease.attempt) == (attempt.job, attempt.attempt)
                && lease.waiting.contains(&attempt.task)
        };
        self.0.iter().position(holds)
    }

    /// Tasks that wait.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|lease| lease.waiting.len()).sum()
    }

    /// The first task, when it fits.
    pub(super) fn next(&mut self, fits: impl FnOnce(&Start) -> bool) -> Option<(AttemptId, Arc<Start>)> {
        let lease = self.0.first_mut().filter(|lease| fits(&lease.start))?;
        let task = lease.waiting.pop_first()?;
        let attempt = AttemptId { task, ..lease.start.attempt };
        let start = lease.start.clone();
        self.0.retain(|lease| !lease.waiting.is_empty());
        Some((attempt, start))
    }

    /// Takes back a task that has not begun after all: it comes first among those of its priority.
    pub(super) fn put_back(&mut self, attempt: AttemptId, start: Arc<Start>) {
        if let Some(lease) = self.0.iter_mut().find(|lease| Arc::ptr_eq(&lease.start, &start)) {
            lease.waiting.insert(attempt.task);
            return;
        }
        let at = self.0.partition_point(|lease| lease.start.priority > start.priority);
        self.0.insert(at, Lease { start, attempt: attempt.attempt, waiting: BTreeSet::from([attempt.task]) });
    }

    /// Takes one task away; says whether it was there.
    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<Arc<Start>> {
        let at = self.of(attempt)?;
        let start = self.0[at].start.clone();
        self.0[at].waiting.remove(&attempt.task);
        self.0.retain(|lease| !lease.waiting.is_empty());
        Some(start)
    }

    /// Takes tasks of a job away, by the number of their try.
    pub(super) fn take(&mut self, job: JobId, wanted: &TaskSet) -> Vec<(u32, TaskSet)> {
        let mut taken: Vec<(u32, TaskSet)> = Vec::new();
        for lease in self.0.iter_mut().filter(|lease| lease.start.attempt.job == job) {
            let tasks: TaskSet = lease.waiting.iter().copied().filter(|task| wanted.contains(*task)).collect();
            if !tasks.is_empty() {
                lease.waiting.retain(|task| !tasks.contains(*task));
                taken.push((lease.attempt, tasks));
            }
        }
        self.0.retain(|lease| !lease.waiting.is_empty());
        taken
    }

    /// Takes all away.
    pub(super) fn drain(&mut self) -> Vec<HeldMany> {
        let taken = self.held();
        self.0.clear();
        taken
    }

    /// All that wait.
    pub(super) fn held(&self) -> Vec<HeldMany> {
        let held = |lease: &Lease| {
            let tasks = lease.waiting.iter().copied().collect();
            HeldMany { job: lease.start.attempt.job, attempt: lease.attempt, tasks }
        };
        self.0.iter().map(held).collect()
    }
}
