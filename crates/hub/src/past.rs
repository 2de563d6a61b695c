//! Jobs that the core has forgotten, and output that only the catalog has: read beside the driver, on threads that may
//! wait for a disk.
//!
//! Client sessions ask when the core knows no such job or has no more of a list; watch tasks ask when the store of outputs
//! has nothing (more). Always true: a job that was durable is found here or in the core; whoever may see it there may see
//! the same of it here ([`essaim_core::hub::sight`], [`essaim_core::hub::may_watch`]); no more than [`PAST_READS_MAX`]
//! readers hold a thread.
//! Deliberately not here: writing the catalog ([`crate::catalog`]), removing from it ([`crate::keeper`]).

mod tasks;

use crate::catalog::{Follower, Kept};
use crate::limits::{CATALOG_WAIT, PAST_READS_MAX};
use essaim_core::hub::sight;
use essaim_core::limits::PAGE_BYTES_MAX;
use essaim_proto::api::{JobList, JobPage, JobView, Stream};
use essaim_proto::hello::Role;
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_proto::{AttemptId, JobId, KeyName, Refusal, RefusalCode, TaskId};
use essaim_store::{
    Catalog, CatalogError, CatalogJob, CatalogPart, CatalogQuery, Chunk, OutputReadError, Outputs, Seq, Small, Store,
};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;
use tracing::{error, warn};

/// Reads what is past.
#[derive(Debug)]
pub(crate) struct Past {
    catalog: Catalog,
    outputs: Outputs,
    follower: Follower,
    /// The last end is here.
    ended: AtomicU64,
    /// What the core has forgotten ended up to here.
    must_see: AtomicU64,
    gate: Semaphore,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) key: KeyName,
    pub(crate) role: Role,
}

impl Past {
    pub(crate) fn new(store: &Store, follower: Follower) -> Past {
        Past {
            catalog: store.catalog.clone(),
            outputs: store.outputs.clone(),
            follower,
            ended: AtomicU64::new(0),
            must_see: AtomicU64::new(0),
            gate: Semaphore::new(PAST_READS_MAX),
        }
    }

    /// Something ended at `seq`.
    pub(crate) fn ended(&self, seq: Seq) {
        self.ended.fetch_max(seq.0, Ordering::Release);
    }

    /// The core has forgotten something that ended up to `seq`: who reads waits until the catalog has it.
    pub(crate) fn must_see(&self, seq: Seq) {
        self.must_see.fetch_max(seq.0, Ordering::Release);
    }

    /// One job, with the key of its Submit.
    ///
    /// # Errors
    /// `no_such_job`; `store_error` when the catalog cannot be read.
    pub(crate) async fn job(&self, job: JobId) -> Result<Kept, Refusal> {
        let found = self.read(self.must_see.load(Ordering::Acquire), move |catalog| catalog.job(job)).await?;
        let found = found.ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        kept(&found).ok_or_else(|| RefusalCode::StoreError.into())
    }

    /// The core's page of a list, completed with what only the catalog has.
    ///
    /// # Errors
    /// `store_error` when the catalog cannot be read.
    pub(crate) async fn complete(&self, list: &JobList, page: JobPage, who: &Who) -> Result<JobPage, Refusal> {
        if list.live_only {
            return Ok(page);
        }
        let limit = entries_max(list);
        let query = CatalogQuery {
            before: list.before,
            // One more says whether there are more.
            limit: limit + 1,
            states: list.states.clone(),
            owner: list.owner.clone(),
            node: list.node.clone(),
            text: list.text.clone(),
        };
        let found = self.read(self.must_see.load(Ordering::Acquire), move |catalog| catalog.list(&query)).await?;
        let views = found.iter().filter_map(kept).map(|kept| sight(kept.view, &who.key, who.role));
        Ok(merge(page, views.collect(), limit))
    }

    /// A piece of an output that is over, from the catalog when it was small.
    pub(crate) async fn output(&self, attempt: AttemptId) -> Option<Small> {
        // Its end was told a moment ago, perhaps.
        let found = self.read(self.ended.load(Ordering::Acquire), move |catalog| {
            let is_his = catalog.job(attempt.job)?.is_some_and(|job| job.attempt == attempt);
            if is_his { catalog.output(attempt.job) } else { Ok(None) }
        });
        found.await.ok().flatten()
    }

    /// Everything that has ended until now is in the catalog up to here, or will be.
    pub(crate) fn last_end(&self) -> Seq {
        Seq(self.ended.load(Ordering::Acquire))
    }

    /// How tasks of an array ended after `after`, behind the part `behind`, and whether the catalog holds everything up to
    /// `wanted`, which is waited for. `None` when it cannot be read.
    pub(crate) async fn ends_after(
        &self,
        job: JobId,
        after: Seq,
        behind: u64,
        wanted: Seq,
    ) -> Option<(Vec<CatalogPart>, bool)> {
        let found = self.read(wanted.0, move |catalog| {
            // Asked first: what is applied meanwhile is one part more.
            let is_whole = catalog.applied()? >= wanted;
            Ok((catalog.ends_after(job, after, behind)?, is_whole))
        });
        found.await.ok()
    }

    /// The parts that may tell how tasks from `first` to `last` ended, by their smallest task.
    ///
    /// # Errors
    /// `store_error` when the catalog cannot be read.
    pub(crate) async fn ends_among(
        &self,
        job: JobId,
        (first, last): (TaskId, TaskId),
        behind: Option<CatalogPart>,
    ) -> Result<Vec<CatalogPart>, Refusal> {
        let wanted = self.ended.load(Ordering::Acquire);
        self.read(wanted, move |catalog| catalog.ends_among(job, first, last, behind.as_ref())).await
    }

    /// A piece of an output that is over, from the store of outputs, which may have to wait for its disk.
    ///
    /// # Errors
    /// As reading it here.
    pub(crate) async fn chunk(
        &self,
        attempt: AttemptId,
        stream: Stream,
        offset: u64,
        most: usize,
    ) -> Result<Chunk, OutputReadError> {
        let outputs = self.outputs.clone();
        let read = self.blocking(move || outputs.read(attempt, stream, offset, most)).await;
        read.unwrap_or_else(|| Ok(Chunk::default()))
    }

    /// Reads the catalog once it holds everything up to `seq`; one that is behind for long is read as it is.
    async fn read<T: Send + 'static>(
        &self,
        seq: u64,
        read: impl FnOnce(&Catalog) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, Refusal> {
        if tokio::time::timeout(CATALOG_WAIT, self.follower.applied(Seq(seq))).await.is_err() {
            warn!("the catalog of finished jobs is behind; a reader does not wait for it any longer");
        }
        let catalog = self.catalog.clone();
        match self.blocking(move || read(&catalog)).await {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => {
                error!(%error, "the catalog of finished jobs cannot be read");
                Err(RefusalCode::StoreError.into())
            }
            None => Err(RefusalCode::StoreError.into()),
        }
    }

    async fn blocking<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        // Held until the thread is free again; it is never closed.
        let _permit = self.gate.acquire().await.ok()?;
        // A panic was in the log when it happened.
        tokio::task::spawn_blocking(read).await.ok()
    }
}

/// Entries of one page of the list.
fn entries_max(list: &JobList) -> usize {
    if list.limit == 0 { PAGE_ENTRIES_MAX } else { (list.limit as usize).min(PAGE_ENTRIES_MAX) }
}

/// What a row holds; one that cannot be read is left out.
fn kept(row: &CatalogJob) -> Option<Kept> {
    let decoded = essaim_proto::decode(&row.view);
    decoded.map_err(|error| error!(job = %row.job, %error, "a row of the catalog cannot be read")).ok()
}

/// Both lists as one, newest first; where both have a job, the core's word counts. `past` has one entry more than `limit`
/// when there are more.
fn merge(page: JobPage, past: Vec<JobView>, limit: usize) -> JobPage {
    let JobPage { jobs, more: core_has_more } = page;
    // Below this one the core has jobs that are not on its page.
    let floor = if core_has_more { jobs.last().map_or(JobId(u64::MAX), |job| job.job) } else { JobId(0) };
    let (mut core, mut past) = (jobs.into_iter().peekable(), past.into_iter().peekable());
    let mut merged = JobPage { jobs: Vec::new(), more: core_has_more };
    let mut bytes = 0;
    loop {
        let next = match (core.peek().map(|job| job.job), past.peek().map(|job| job.job)) {
            (Some(mine), Some(other)) if mine >= other => {
                if mine == other {
                    past.next();
                }
                core.next()
            }
            (Some(_), None) => core.next(),
            (_, Some(other)) if other >= floor => past.next(),
            (None, Some(_)) => None,
            (Some(_), Some(_)) => past.next(),
            (None, None) => return merged,
        };
        let Some(job) = next else {
            merged.more = true;
            return merged;
        };
        bytes += essaim_proto::encode(&job).len();
        if merged.jobs.len() == limit || bytes > PAGE_BYTES_MAX {
            merged.more = true;
            return merged;
        }
        merged.jobs.push(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::JobState;

    fn jobs(ids: &[u64], state: JobState) -> Vec<JobView> {
        ids.iter().map(|id| JobView { job: JobId(*id), state, ..JobView::default() }).collect()
    }

    fn ids(page: &JobPage) -> (Vec<u64>, bool) {
        (page.jobs.iter().map(|job| job.job.0).collect(), page.more)
    }

    fn merged(core: &[u64], more: bool, past: &[u64], limit: usize) -> JobPage {
        merge(JobPage { jobs: jobs(core, JobState::Running), more }, jobs(past, JobState::Done), limit)
    }

    // Are both lists one, without holes and doubles, with the core's word first and `more` right?
    #[test]
    fn two_lists_become_one() {
        let page = merged(&[9, 7, 5], false, &[8, 7, 3, 1], 10);
        assert_eq!(ids(&page), (vec![9, 8, 7, 5, 3, 1], false));
        assert_eq!(page.jobs[2].state, JobState::Running, "the core's");
        assert_eq!(ids(&merged(&[9, 7], true, &[8, 6, 5], 3)), (vec![9, 8, 7], true), "the core may have 6 too");
        assert_eq!(ids(&merged(&[9], true, &[8, 7], 1)), (vec![9], true));
        assert_eq!(ids(&merged(&[], false, &[3, 2, 1], 2)), (vec![3, 2], true));
        assert_eq!(ids(&merged(&[3, 2], false, &[], 2)), (vec![3, 2], false));
        assert_eq!(ids(&merged(&[3, 2], false, &[3, 2], 2)), (vec![3, 2], false));
        assert_eq!(ids(&merged(&[3], false, &[2, 1], 2)), (vec![3, 2], true));
        assert_eq!(ids(&merged(&[], false, &[], 2)), (vec![], false));
    }

    // Does a page of long entries still fit a frame?
    #[test]
    fn a_merged_page_fits_a_frame() {
        let mut past = jobs(&(0..200).rev().collect::<Vec<u64>>(), JobState::Done);
        past.iter_mut().for_each(|job| job.args = vec!["x".repeat(10_000)]);
        let page = merge(JobPage::default(), past, 200);
        assert!(page.more && essaim_proto::encode(&page).len() < essaim_proto::limits::VALUE_BYTES_MAX);
    }
}
