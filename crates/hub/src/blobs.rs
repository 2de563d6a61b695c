//! Which blobs are needed: those that live jobs refer to, and fresh uploads for a while.
//!
//! The driver calls it with each batch of records. Always true: a blob that a live job needs is never removed; one that
//! nobody needs is removed after [`BLOB_GRACE_MS`].
//! Deliberately not here: the bytes (the store), removing them ([`crate::keeper`]), transfers (the sessions).

use crate::limits::BLOB_GRACE_MS;
use essaim_core::hub::{Durable, NewJob, Record};
use essaim_proto::job::JobSpec;
use essaim_proto::{BlobHash, JobId};
use essaim_store::Blobs;
use std::collections::{BTreeMap, BTreeSet};

/// Counts who needs which blob.
#[derive(Debug)]
pub(crate) struct BlobKeeper {
    blobs: Blobs,
    needed: BTreeMap<BlobHash, usize>,
    /// What each live job needs; jobs whose files all travelled inline are not listed.
    by_job: BTreeMap<JobId, Vec<BlobHash>>,
    /// Needed by nobody since then.
    idle: BTreeMap<BlobHash, u64>,
    /// Being removed: as good as gone.
    going: BTreeSet<BlobHash>,
}

/// The blobs that a job's attempts read: files, and the lines of an array.
pub(crate) fn blobs_of(spec: &JobSpec) -> impl Iterator<Item = BlobHash> + '_ {
    let lines = spec.array.iter().filter_map(|array| array.lines.as_ref());
    spec.files.iter().chain(lines).filter(|file| file.inline.is_none()).map(|file| file.hash)
}

impl BlobKeeper {
    /// A keeper for a state that was just replayed.
    pub(crate) fn new(blobs: Blobs, durable: &Durable) -> BlobKeeper {
        let mut keeper = BlobKeeper {
            blobs,
            needed: BTreeMap::new(),
            by_job: BTreeMap::new(),
            idle: BTreeMap::new(),
            going: BTreeSet::new(),
        };
        for (id, job) in durable.jobs.iter().filter(|(_, job)| !job.state().is_over()) {
            keeper.need(id, &job.accepted.spec());
        }
        keeper
    }

    /// The state was replayed anew. What this process has seen before and nobody needs now is swept like any other.
    pub(crate) fn rebuild(&mut self, durable: &Durable, mono_ms: u64) {
        let mut keeper = BlobKeeper::new(self.blobs.clone(), durable);
        keeper.going = std::mem::take(&mut self.going);
        let idle = std::mem::take(&mut self.idle);
        let was_needed = std::mem::take(&mut self.needed).into_keys().map(|hash| (hash, mono_ms));
        keeper.idle =
            idle.into_iter().chain(was_needed).filter(|(hash, _)| !keeper.needed.contains_key(hash)).collect();
        *self = keeper;
    }

    /// Those of `hashes` that are not here. The others stay for as long as if they had just come: who asks will refer to
    /// them.
    pub(crate) fn missing(&mut self, hashes: &[BlobHash], mono_ms: u64) -> Vec<BlobHash> {
        for hash in hashes {
            if let Some(since) = self.idle.get_mut(hash) {
                *since = mono_ms;
            }
        }
        self.lacking(hashes)
    }

    /// What this process has seen needs no look at the disk.
    fn lacking(&self, hashes: &[BlobHash]) -> Vec<BlobHash> {
        let is_here = |hash: &BlobHash| self.needed.contains_key(hash) || self.idle.contains_key(hash);
        let is_going = |hash: &BlobHash| self.going.contains(hash);
        let unseen: Vec<BlobHash> = hashes.iter().filter(|hash| !is_here(hash) && !is_going(hash)).copied().collect();
        let missing: BTreeSet<BlobHash> = self.blobs.missing(&unseen).into_iter().collect();
        let mut seen = BTreeSet::new();
        let lacks = |hash: &BlobHash| !is_here(hash) && (is_going(hash) || missing.contains(hash));
        hashes.iter().filter(|hash| lacks(hash) && seen.insert(**hash)).copied().collect()
    }

    /// The first blob of the job that is not here.
    pub(crate) fn first_missing(&self, spec: &JobSpec) -> Option<BlobHash> {
        let wanted: Vec<BlobHash> = blobs_of(spec).collect();
        self.lacking(&wanted).first().copied()
    }

    /// An upload is complete.
    pub(crate) fn stored(&mut self, hash: BlobHash, mono_ms: u64) {
        if !self.needed.contains_key(&hash) {
            self.idle.insert(hash, mono_ms);
        }
    }

    /// Follows what the records of a batch changed, after which the state is `durable`.
    pub(crate) fn follow(&mut self, records: &[Record], durable: &Durable, mono_ms: u64) {
        for record in records {
            let ended = match record {
                Record::JobAccepted(NewJob { job, spec, .. }) => {
                    self.need(*job, spec);
                    continue;
                }
                Record::TaskEnded { attempt, .. } => attempt.job,
                Record::TasksEnded { job, .. } | Record::TasksCancelled { job, .. } => *job,
                _ => continue,
            };
            // Other tasks of an array may still need them.
            if durable.jobs.get(&ended).is_none_or(|job| job.is_over()) {
                self.release(ended, mono_ms);
            }
        }
    }

    fn need(&mut self, job: JobId, spec: &JobSpec) {
        let hashes: Vec<BlobHash> = blobs_of(spec).collect();
        for hash in &hashes {
            *self.needed.entry(*hash).or_default() += 1;
            self.idle.remove(hash);
        }
        if !hashes.is_empty() {
            self.by_job.insert(job, hashes);
        }
    }

    fn release(&mut self, job: JobId, mono_ms: u64) {
        for hash in self.by_job.remove(&job).unwrap_or_default() {
            let Some(count) = self.needed.get_mut(&hash) else { continue };
            *count -= 1;
            if *count == 0 {
                self.needed.remove(&hash);
                self.idle.insert(hash, mono_ms);
            }
        }
    }

    /// What nobody has needed for a while, to be removed: until [`BlobKeeper::gone`] it counts as missing.
    #[must_use]
    pub(crate) fn sweep(&mut self, mono_ms: u64) -> Vec<BlobHash> {
        let is_old = |since: u64| mono_ms.saturating_sub(since) >= BLOB_GRACE_MS;
        let old: Vec<BlobHash> = self.idle.iter().filter(|(_, since)| is_old(**since)).map(|(hash, _)| *hash).collect();
        for hash in &old {
            self.idle.remove(hash);
            self.going.insert(*hash);
        }
        old
    }

    /// These were removed.
    pub(crate) fn gone(&mut self, hashes: &[BlobHash]) {
        self.going.retain(|hash| !hashes.contains(hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::{FileSpec, TaskResult};
    use essaim_proto::{AttemptId, SubmitKey};
    use essaim_store::{Store, StoreLimits};

    fn accepted(job: u64, hash: BlobHash) -> Record {
        let file = FileSpec { path: "a.py".into(), hash, size_bytes: 3, ..FileSpec::default() };
        let spec = std::sync::Arc::new(JobSpec { files: vec![file], ..JobSpec::default() });
        let owner = "me".parse().expect("a name");
        Record::JobAccepted(NewJob::new(JobId(job), owner, SubmitKey([job as u8; 16]), spec, 0))
    }

    fn ended(job: u64) -> Record {
        let attempt = AttemptId { job: JobId(job), task: essaim_proto::id::TASK_ONE, attempt: 0 };
        Record::TaskEnded { attempt, result: Box::<TaskResult>::default(), at_ms: 0, output: None }
    }

    // Is a blob kept while a job needs it or somebody has just asked for it, and removed afterwards, over a replay too?
    #[test]
    fn a_blob_goes_when_nobody_has_needed_it_for_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::memory(folder.path(), StoreLimits::default()).expect("a store");
        let hash = BlobHash::of(b"abc");
        store.blobs.put(hash, b"abc").expect("stored");
        let mut keeper = BlobKeeper::new(store.blobs.clone(), &Durable::default());
        let mut durable = Durable::default();
        let mut follow = |keeper: &mut BlobKeeper, record: Record, at| {
            durable.apply(&record);
            keeper.follow(&[record], &durable, at);
            durable.clone()
        };
        keeper.stored(hash, 0);
        follow(&mut keeper, accepted(1, hash), 1);
        follow(&mut keeper, accepted(2, hash), 2);
        follow(&mut keeper, ended(1), 3);
        assert!(keeper.sweep(10 * BLOB_GRACE_MS).is_empty(), "job 2 needs it");
        let now = 10 * BLOB_GRACE_MS;
        let durable = follow(&mut keeper, ended(2), now);
        keeper.rebuild(&durable, now);
        assert_eq!(keeper.missing(&[hash, BlobHash::of(b"x")], now + 5), vec![BlobHash::of(b"x")]);
        assert!(keeper.sweep(now + BLOB_GRACE_MS).is_empty(), "somebody has asked for it");
        assert_eq!(keeper.sweep(now + BLOB_GRACE_MS + 5), [hash]);
        assert_eq!(keeper.missing(&[hash, hash], now), [hash], "as good as gone");
        keeper.gone(&[hash]);
        assert!(keeper.idle.is_empty() && keeper.needed.is_empty() && keeper.by_job.is_empty());
        assert!(keeper.going.is_empty());
    }

    // Is a blob that was needed by a job that never became durable swept as well?
    #[test]
    fn a_blob_of_a_job_that_was_refused_by_the_store_is_swept() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::memory(folder.path(), StoreLimits::default()).expect("a store");
        let hash = BlobHash::of(b"abc");
        store.blobs.put(hash, b"abc").expect("stored");
        let mut keeper = BlobKeeper::new(store.blobs.clone(), &Durable::default());
        keeper.follow(&[accepted(1, hash)], &Durable::default(), 0);
        keeper.rebuild(&Durable::default(), 7);
        assert_eq!(keeper.sweep(7 + BLOB_GRACE_MS), [hash]);
    }
}
