//! Jobs that live no longer than their client.
//!
//! Called when such a job is accepted, ends, or is asked for again, and when a session closes. Always true: a job is
//! held by one session, or by none after a restart of the hub; then its client has [`LEASE_MS`] to come back. Jobs that
//! are over are not in here.
//! Deliberately not here: cancelling them ([`super::jobs`]).

use super::input::SessionId;
use crate::Now;
use crate::limits::{LEASE_MS, UNDONE_ENDS_MAX};
use essaim_proto::JobId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Who holds which ephemeral job.
#[derive(Debug, Default)]
pub(super) struct Ephemeral {
    held: BTreeSet<(SessionId, JobId)>,
    holder: BTreeMap<JobId, SessionId>,
    /// Jobs whose session ended with the hub's process.
    orphans: BTreeSet<JobId>,
    orphans_until_mono_ms: u64,
    /// Jobs that ended while they were held, oldest first: their ends may not be durable yet.
    ended: VecDeque<(SessionId, JobId)>,
}

impl Ephemeral {
    pub(super) fn hold(&mut self, session: SessionId, job: JobId) {
        self.holder.insert(job, session);
        self.held.insert((session, job));
    }

    /// The hub was restarted: the job's client may come back.
    pub(super) fn orphan(&mut self, now: Now, job: JobId) {
        self.orphans.insert(job);
        self.orphans_until_mono_ms = now.mono_ms.saturating_add(LEASE_MS);
    }

    /// The hub itself was away: nobody could come back meanwhile.
    pub(super) fn wait_longer(&mut self, ms: u64) {
        self.orphans_until_mono_ms = self.orphans_until_mono_ms.saturating_add(ms);
    }

    /// The job's owner is back: an orphan is held again, any other job stays with whom it has.
    pub(super) fn adopt(&mut self, session: SessionId, job: JobId) {
        if self.orphans.remove(&job) {
            self.hold(session, job);
        }
    }

    pub(super) fn ended(&mut self, job: JobId) {
        self.orphans.remove(&job);
        if let Some(session) = self.holder.remove(&job) {
            self.held.remove(&(session, job));
            if self.ended.len() == UNDONE_ENDS_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back((session, job));
        }
    }

    /// The session is gone: these were its jobs.
    pub(super) fn take_of(&mut self, session: SessionId) -> Vec<JobId> {
        let range = (session, JobId(0))..=(session, JobId(u64::MAX));
        let jobs: Vec<JobId> = self.held.range(range).map(|(_, job)| *job).collect();
        jobs.iter().for_each(|job| self.ended(*job));
        jobs
    }

    /// Orphans whose clients did not come back in time.
    pub(super) fn take_overdue(&mut self, now: Now) -> BTreeSet<JobId> {
        if now.mono_ms < self.orphans_until_mono_ms { BTreeSet::new() } else { std::mem::take(&mut self.orphans) }
    }

    /// Which session holds which job, or would if its end had not happened.
    pub(super) fn held(&self) -> impl Iterator<Item = (SessionId, JobId)> + '_ {
        self.held.iter().chain(&self.ended).copied()
    }

    /// All jobs that are named here, once for each place.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        let held = self.held.iter().map(|(_, job)| *job);
        held.chain(self.holder.keys().copied()).chain(self.orphans.iter().copied())
    }
}
