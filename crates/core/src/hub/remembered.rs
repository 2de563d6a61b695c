//! The keys of Submits whose jobs the core has forgotten: a client that asks again hours later still gets its first job.
//!
//! [`super::Durable`] keeps one of these. Always true: at most [`SUBMIT_KEYS_MAX`] are kept, the ones that were forgotten
//! last; the same calls in the same order give an equal value.
//! Deliberately not here: the keys of jobs that are still listed ([`super::submits`]).

use crate::limits::SUBMIT_KEYS_MAX;
use essaim_proto::{BlobHash, JobId, KeyName, SubmitKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Which Submit made which job. An owner and his key are kept as a hash of both: no names a hundred thousand times.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(SubmitKey, JobId)>", into = "Vec<(SubmitKey, JobId)>")]
pub struct Remembered {
    jobs: BTreeMap<SubmitKey, JobId>,
    /// Oldest first.
    order: VecDeque<SubmitKey>,
}

/// One that nobody can make equal to another.
pub(super) fn hash(owner: &KeyName, key: SubmitKey) -> SubmitKey {
    // A name holds no zero, so that no two pairs are written alike.
    let hash = BlobHash::of(&[owner.as_str().as_bytes(), &[0], &key.0].concat());
    let mut half = SubmitKey::default();
    half.0.copy_from_slice(&hash.0[..16]);
    half
}

impl Remembered {
    /// The job that this Submit made.
    pub(super) fn get(&self, owner: &KeyName, key: SubmitKey) -> Option<JobId> {
        self.jobs.get(&hash(owner, key)).copied()
    }

    pub(super) fn keep(&mut self, owner: &KeyName, key: SubmitKey, job: JobId) {
        self.keep_hash(hash(owner, key), job);
    }

    fn keep_hash(&mut self, hash: SubmitKey, job: JobId) {
        if self.jobs.insert(hash, job).is_none() {
            self.order.push_back(hash);
        }
        while self.order.len() > SUBMIT_KEYS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.jobs.remove(&oldest);
        }
    }
}

impl From<Vec<(SubmitKey, JobId)>> for Remembered {
    fn from(kept: Vec<(SubmitKey, JobId)>) -> Remembered {
        let mut remembered = Remembered::default();
        kept.into_iter().for_each(|(hash, job)| remembered.keep_hash(hash, job));
        remembered
    }
}

impl From<Remembered> for Vec<(SubmitKey, JobId)> {
    fn from(remembered: Remembered) -> Vec<(SubmitKey, JobId)> {
        let Remembered { jobs, order } = remembered;
        order.into_iter().filter_map(|hash| Some((hash, *jobs.get(&hash)?))).collect()
    }
}
