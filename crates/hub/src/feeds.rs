//! What watchers and workers of a job share beside the core: its latest event, the growth of its output, its input.
//!
//! The driver publishes events, worker sessions announce output, client sessions push input; watch tasks and input
//! pumps wait on it. Always true: of the jobs that are not over only those are listed that somebody watched or that a node
//! was given, so that what only waits costs nothing here; a feed holds one event (the latest), a bounded piece of input
//! and the newest ends of an array's tasks, however many watch and however slow they are; output bytes are in the store
//! and read by offset.
//! Deliberately not here: who may watch (the core), the input's bytes ([`crate::stdin`]), sockets (the sessions).

use crate::blobs::blobs_of;
use crate::ends::Tail;
use crate::stdin::Stdin;
use essaim_proto::api::JobEvent;
use essaim_proto::job::{JobSpec, StdinSpec};
use essaim_proto::{AttemptId, BlobHash, JobId};
use essaim_store::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// All feeds of jobs that are not over, by job.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    by_job: Mutex<BTreeMap<JobId, Arc<Feed>>>,
    /// Jobs up to this one were there before this process: what was typed into them is not known here.
    inherited: JobId,
}

impl Feeds {
    /// No feeds yet, in a process that was not there when the jobs up to `inherited` were accepted.
    pub(crate) fn new(inherited: JobId) -> Feeds {
        Feeds { by_job: Mutex::default(), inherited }
    }

    /// The job's feed; made now from its description if there is none, when its tasks may have ended up to `from`. Only
    /// for jobs whose end has not been published: nobody would take the feed away again.
    pub(crate) fn of(&self, job: JobId, spec: Option<&JobSpec>, from: Seq) -> Arc<Feed> {
        let make = || Arc::new(Feed::new(spec, job <= self.inherited, from));
        self.lock().entry(job).or_insert_with(make).clone()
    }

    /// The job's feed, if there is one.
    pub(crate) fn known(&self, job: JobId) -> Option<Arc<Feed>> {
        self.lock().get(&job).cloned()
    }

    /// Jobs that have one.
    pub(crate) fn jobs(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    /// The job is over: its feed leaves the list. Whoever watches keeps it.
    pub(crate) fn end(&self, job: JobId) -> Option<Arc<Feed>> {
        self.lock().remove(&job)
    }

    /// Output of the attempt has grown.
    pub(crate) fn grown(&self, attempt: AttemptId) {
        if let Some(feed) = self.known(attempt.job) {
            feed.output.send_modify(|n| *n += 1);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Feed>>> {
        self.by_job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One job's feed.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// The latest event.
    pub(crate) event: watch::Sender<Option<JobEvent>>,
    /// Counts growths of output.
    pub(crate) output: watch::Sender<u64>,
    /// How its tasks ended, when it is an array.
    pub(crate) array: Option<Tail>,
    /// What is typed into it; `None` for a job that reads nothing.
    pub(crate) stdin: Option<Stdin>,
    /// Blobs that attempts of this job may read.
    files: BTreeSet<BlobHash>,
    /// The last attempt that had to be stopped here, beside the core, and why.
    stopped: Mutex<Option<(AttemptId, Stopped)>>,
}

/// What only the shell knows about the end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The store had no room for its output.
    StoreFull,
    /// Input that it needs is no longer kept.
    InputLost,
}

impl Feed {
    fn new(spec: Option<&JobSpec>, is_inherited: bool, from: Seq) -> Feed {
        let Some(spec) = spec else { return Feed::default() };
        let files = blobs_of(spec).collect();
        let stdin = (spec.stdin == StdinSpec::Live).then(|| Stdin::new(is_inherited));
        let array = spec.array.as_ref().map(|array| Tail::new(array.tasks.clone(), from));
        Feed { array, stdin, files, ..Feed::default() }
    }

    /// The attempt cannot go on; the first cause counts.
    pub(crate) fn stop(&self, attempt: AttemptId, why: Stopped) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if stopped.is_none_or(|(which, _)| which != attempt) {
            *stopped = Some((attempt, why));
        }
    }

    /// Was the attempt stopped, and why?
    pub(crate) fn stopped(&self, attempt: AttemptId) -> Option<Stopped> {
        let stopped = *self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.filter(|(which, _)| *which == attempt).map(|(_, why)| why)
    }

    /// May attempts of this job read that blob?
    pub(crate) fn refers_to(&self, hash: BlobHash) -> bool {
        self.files.contains(&hash)
    }
}
