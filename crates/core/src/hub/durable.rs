//! The durable part of the hub: what a replayed journal gives back.
//!
//! [`Durable::apply`] is the only thing that changes it, for a new record and for a replayed one alike.
//! Always true: applying the same records in the same order gives an equal value; a record that does not fit (a replay
//! of damaged data) changes nothing.
//! Deliberately not here: sessions, leases, what is ready (derived or volatile, in `Live`).

use super::accepted::Kinds;
use super::array::{Array, Gone};
use super::job::{Job, Task};
use super::listed::Jobs;
use super::local::LocalSettings;
use super::record::{NewJob, Record};
use super::remembered::Remembered;
use super::snapshot;
use essaim_proto::hello::Role;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{TaskResult, TaskState, Verdict};
use essaim_proto::quota::Quotas;
use essaim_proto::{AttemptId, BlobHash, JobId, KeyName, NodeName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All durable facts. Written as a whole into a snapshot of the journal.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(from = "snapshot::Read")]
pub struct Durable {
    /// The last id given to a job.
    pub last_job: JobId,
    /// Jobs that are listed.
    pub jobs: Jobs,
    /// What they have in common. Derived.
    pub(super) kinds: Kinds,
    /// The keys of jobs that are no longer listed.
    pub remembered: Remembered,
    /// Keys that are valid.
    pub keys: BTreeMap<KeyName, Key>,
    /// Join lines that are remembered.
    pub joins: BTreeMap<BlobHash, JoinLine>,
    /// Nodes that have a certificate.
    pub nodes: BTreeSet<NodeName>,
    /// Tasks that are not over, for the limit.
    pub live_tasks: usize,
    /// Bytes of the jobs that are not over, for the limit.
    pub live_bytes: usize,
    /// Bytes of the jobs that are over, for the limit.
    pub ended_bytes: usize,
    /// What an administrator has set about the workers of this machine.
    pub local: LocalSettings,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// What it may do.
    pub role: Role,
    /// BLAKE3 of its secret.
    pub secret: BlobHash,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// How much it may use.
    #[serde(default, skip_serializing_if = "Quotas::is_plain")]
    pub quotas: Quotas,
}

/// A join line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinLine {
    /// How many machines may still use it.
    pub uses_left: u32,
    /// Until when, in milliseconds since 1970.
    pub expires_ms: u64,
}

impl Durable {
    /// Applies a fact.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::JobAccepted(new) => self.accept(new),
            Record::TaskPlaced { attempt, node, instance } => {
                let next = |task: &&mut Task| task.node.is_none() && attempt.attempt == task.attempt.saturating_add(1);
                if let Some(task) = self.live_task(*attempt).filter(next) {
                    task.state = TaskState::Placed;
                    task.attempt = attempt.attempt;
                    task.node = Some(node.clone());
                    task.instance = Some(*instance);
                }
            }
            Record::AttemptLost { attempt, given_back } => {
                self.lose(*attempt, if *given_back { Gone::GivenBack } else { Gone::Lost });
            }
            Record::AttemptFailed { attempt, result: _ } => self.lose(*attempt, Gone::Failed),
            Record::CancelWanted { job, by } => {
                if let Some(job) = self.jobs.get_mut(job).filter(|job| !job.is_over()) {
                    job.change().cancel_by = Some(by.clone());
                }
            }
            Record::TaskEnded { attempt, result, at_ms, output: _ } => self.end(*attempt, result, *at_ms),
            Record::TasksPlaced { .. }
            | Record::TasksLost { .. }
            | Record::TasksUnwanted { .. }
            | Record::TasksEnded { .. }
            | Record::TasksCancelled { .. } => self.apply_to_array(record),
            Record::NoticeEnded { job, notice } => {
                if let Some(job) = self.jobs.get_mut(job).filter(|job| job.is_over()) {
                    job.change().notice = Some(Box::new(notice.clone()));
                }
            }
            Record::JobForgotten { job } => self.forget(*job),
            Record::KeyMade { name, role, secret, at_ms, quotas } => {
                let key = Key { role: *role, secret: *secret, created_ms: *at_ms, quotas: *quotas };
                self.keys.insert(name.clone(), key);
            }
            Record::KeyQuotas { name, quotas } => {
                if let Some(key) = self.keys.get_mut(name) {
                    key.quotas = *quotas;
                }
            }
            Record::KeyRevoked { name } => {
                self.keys.remove(name);
            }
            Record::JoinMade { secret, uses, expires_ms } => {
                self.joins.insert(*secret, JoinLine { uses_left: *uses, expires_ms: *expires_ms });
            }
            Record::JoinUsed { secret, name } => {
                if let Some(line) = self.joins.get_mut(secret) {
                    line.uses_left = line.uses_left.saturating_sub(1);
                }
                self.nodes.insert(name.clone());
            }
            Record::JoinForgotten { secret } => {
                self.joins.remove(secret);
            }
            Record::NodeKnown { name } => {
                self.nodes.insert(name.clone());
            }
            Record::LocalChanged { settings } => self.local = *settings,
        }
    }

    /// Applies a fact about many tasks of an array.
    fn apply_to_array(&mut self, record: &Record) {
        match record {
            Record::TasksPlaced { job, tasks, attempt, node, instance } => {
                if let Some(array) = self.array(*job) {
                    array.place(tasks, *attempt, node, *instance);
                }
            }
            Record::TasksLost { job, tasks, attempt, given_back } => {
                let gone = if *given_back { Gone::GivenBack } else { Gone::Lost };
                for attempt in tasks.attempts(*job, *attempt) {
                    self.lose(attempt, gone);
                }
            }
            Record::TasksUnwanted { job, tasks, by } => {
                if let Some(array) = self.array(*job) {
                    array.unwant(tasks, by);
                }
            }
            Record::TasksEnded { job, node, at_ms, ends } => {
                for end in ends {
                    let attempt = AttemptId { job: *job, task: end.task, attempt: end.attempt };
                    match end.result.verdict {
                        Verdict::Ok => self.end(attempt, &end.result, *at_ms),
                        // How it failed is kept, with where.
                        _ => {
                            let result = TaskResult { node: node.to_string(), ..end.result.clone() };
                            self.end(attempt, &result, *at_ms);
                        }
                    }
                }
            }
            Record::TasksCancelled { job, tasks, by: _, at_ms } => {
                let result = TaskResult { verdict: Verdict::Cancelled, ..TaskResult::default() };
                for task in tasks.iter() {
                    let attempt = self.jobs.get(job).map_or(0, |known| known.tries(task).attempt);
                    self.end(AttemptId { job: *job, task, attempt }, &result, *at_ms);
                }
            }
            _ => {}
        }
    }

    fn accept(&mut self, NewJob { job: id, accepted, spec }: &NewJob) {
        if self.jobs.contains_key(id) {
            return;
        }
        self.last_job = self.last_job.max(*id);
        let array = spec.array.as_ref().map(|array| Box::new(Array::new(array.tasks.clone())));
        let job = Job::new(self.kinds.add(accepted), array);
        self.live_tasks += job.live() as usize;
        self.live_bytes += job.bytes();
        self.jobs.insert(*id, job);
    }

    fn end(&mut self, attempt: AttemptId, result: &TaskResult, at_ms: u64) {
        match self.array(attempt.job) {
            Some(array) => {
                if !array.end(attempt.task, attempt.attempt, result) {
                    return;
                }
            }
            None => {
                let current = |task: &&mut Task| attempt.attempt == task.attempt;
                let Some(task) = self.live_task(attempt).filter(current) else { return };
                task.state = result.verdict.task_state();
                (task.node, task.instance) = (None, None);
                task.result = Some(Box::new(result.clone()));
            }
        }
        self.live_tasks -= 1;
        if let Some(job) = self.jobs.get_mut(&attempt.job).filter(|job| job.is_over()) {
            job.change().ended_ms = Some(at_ms);
            self.live_bytes = self.live_bytes.saturating_sub(job.bytes());
            if let Some(shortened) = job.accepted.shortened() {
                job.accepted = Arc::new(shortened);
            }
            self.ended_bytes += job.bytes();
        }
    }

    fn lose(&mut self, attempt: AttemptId, gone: Gone) {
        if let Some(array) = self.array(attempt.job) {
            return array.lose(attempt.task, attempt.attempt, gone);
        }
        let current = |task: &&mut Task| task.node.is_some() && attempt.attempt == task.attempt;
        if let Some(task) = self.live_task(attempt).filter(current) {
            task.state = TaskState::Ready;
            (task.node, task.instance) = (None, None);
            task.lost += u32::from(gone == Gone::Lost);
            task.failed += u32::from(gone == Gone::Failed);
        }
    }

    fn array(&mut self, job: JobId) -> Option<&mut Array> {
        self.jobs.get_mut(&job)?.array_mut()
    }

    /// Jobs that a job waits for: those that it names and that are not over. One that is no longer listed has ended well,
    /// or the job would have been cancelled with it.
    pub fn awaited(&self, job: &Job) -> Vec<JobId> {
        let is_live = |id: &&JobId| self.jobs.get(id).is_some_and(|known| !known.is_over());
        job.accepted.after().iter().filter(is_live).copied().collect()
    }

    fn forget(&mut self, id: JobId) {
        if !self.jobs.get(&id).is_some_and(|job| job.is_over()) {
            return;
        }
        if let Some(old) = self.jobs.remove(&id) {
            self.ended_bytes = self.ended_bytes.saturating_sub(old.bytes());
            self.kinds.remove(&old.accepted);
            self.remembered.keep(old.accepted.owner(), old.accepted.key, id);
        }
    }

    fn live_task(&mut self, attempt: AttemptId) -> Option<&mut Task> {
        let is_live = |job: &&mut Job| job.array.is_none() && !job.task.state.is_over();
        let job = self.jobs.get_mut(&attempt.job).filter(is_live).filter(|_| attempt.task == TASK_ONE)?;
        Some(&mut job.change().task)
    }
}
