//! Which Submit made which job that is listed.
//!
//! [`super::Hub`] keeps it up to date with each record. Always true: the number of a job is in here once, if and only if
//! the job is listed, behind half of a hash of its owner and of the key that his client drew; whose it is, and by which key,
//! says the job itself, so that nobody gets another one's.
//! Deliberately not here: the keys of jobs that are no longer listed ([`super::remembered`]).

use super::accepted::Accepted;
use super::listed::Jobs;
use super::remembered::hash;
use essaim_proto::{JobId, KeyName, SubmitKey};
use std::collections::BTreeSet;

/// Hashes of Submits, and the jobs that they made. Derived. It is a hash because a client could draw keys that begin alike,
/// all of which would be looked at.
#[derive(Debug, Default)]
pub(super) struct Submits(BTreeSet<(u64, JobId)>);

fn half(owner: &KeyName, key: SubmitKey) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash(owner, key).0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Submits {
    pub(super) fn of(jobs: &Jobs) -> Submits {
        Submits(jobs.iter().map(|(id, job)| (half(job.accepted.owner(), job.accepted.key), id)).collect())
    }

    pub(super) fn insert(&mut self, accepted: &Accepted, job: JobId) {
        self.0.insert((half(accepted.owner(), accepted.key), job));
    }

    pub(super) fn remove(&mut self, accepted: &Accepted, job: JobId) {
        self.0.remove(&(half(accepted.owner(), accepted.key), job));
    }

    /// The job of this owner that his Submit with this key made.
    pub(super) fn get(&self, jobs: &Jobs, owner: &KeyName, key: SubmitKey) -> Option<JobId> {
        let half = half(owner, key);
        let mut alike = self.0.range((half, JobId(0))..=(half, JobId(u64::MAX))).map(|(_, id)| *id);
        let is_it = |accepted: &Accepted| accepted.key == key && accepted.owner() == owner;
        alike.find(|id| jobs.get(id).is_some_and(|job| is_it(&job.accepted)))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::job::Job;
    use essaim_proto::job::JobSpec;
    use std::sync::Arc;

    // Has each of two owners who draw the same key his own job, and is neither taken for the other when the halves of their
    // hashes are the same?
    #[test]
    fn nobody_gets_the_job_of_another() {
        let (key, names) = (SubmitKey([3; 16]), ["abe", "zoe"]);
        let [abe, zoe] = names.map(|name| Accepted::new(name.parse().unwrap(), key, &Arc::new(JobSpec::default()), 0));
        let jobs = [abe.clone(), zoe.clone()].map(|accepted| Job::new(Arc::new(accepted), None));
        let jobs: Jobs = [JobId(1), JobId(2)].into_iter().zip(jobs).collect();
        let mut submits = Submits::of(&jobs);
        // As if the halves were alike.
        submits.0.insert((half(abe.owner(), key), JobId(2)));
        submits.0.insert((half(zoe.owner(), key), JobId(1)));
        let found = |submits: &Submits, who: &Accepted, key| submits.get(&jobs, who.owner(), key);
        assert_eq!([&abe, &zoe].map(|who| found(&submits, who, key)), [Some(JobId(1)), Some(JobId(2))]);
        assert_eq!(found(&submits, &abe, SubmitKey([4; 16])), None);
        submits.remove(&abe, JobId(1));
        assert_eq!([&abe, &zoe].map(|who| found(&submits, who, key)), [None, Some(JobId(2))]);
    }
}
