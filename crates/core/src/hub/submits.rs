//! Which Submit made which job that is listed.
//!
//! [`super::Hub`] keeps it up to date with each record. Always true: the number of a job is in here once, behind the key
//! that its client drew, if and only if the job is listed; whose job it is says the job itself, so that two clients who
//! draw the same key have each their own.
//! Deliberately not here: the keys of jobs that are no longer listed ([`super::remembered`]).

use super::listed::Jobs;
use essaim_proto::{JobId, KeyName, SubmitKey};
use std::collections::BTreeSet;

/// Keys of Submits and the jobs that they made. Derived: each key that a client may use has one job for it at most, so
/// that few are looked at.
#[derive(Debug, Default)]
pub(super) struct Submits(BTreeSet<(SubmitKey, JobId)>);

impl Submits {
    pub(super) fn of(jobs: &Jobs) -> Submits {
        Submits(jobs.iter().map(|(id, job)| (job.accepted.key, id)).collect())
    }

    pub(super) fn insert(&mut self, key: SubmitKey, job: JobId) {
        self.0.insert((key, job));
    }

    pub(super) fn remove(&mut self, key: SubmitKey, job: JobId) {
        self.0.remove(&(key, job));
    }

    /// The job of this owner that his Submit with this key made.
    pub(super) fn get(&self, jobs: &Jobs, owner: &KeyName, key: SubmitKey) -> Option<JobId> {
        let mut made = self.0.range((key, JobId(0))..=(key, JobId(u64::MAX))).map(|(_, id)| *id);
        let is_his = |id: &JobId| jobs.get(id).is_some_and(|job| job.accepted.owner() == owner);
        made.find(is_his)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
