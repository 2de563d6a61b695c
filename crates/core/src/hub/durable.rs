//! The durable part of the hub: what a replayed journal gives back.
//!
//! [`Durable::apply`] is the only thing that changes it, for a new record and for a replayed one alike.
//! Always true: applying the same records in the same order gives an equal value; a record that does not fit (a replay
//! of damaged data) changes nothing.
//! Deliberately not here: sessions, leases, what is ready (derived or volatile, in `Live`).

use super::array::{Array, Batch, Gone, Tries};
use super::local::LocalSettings;
use super::record::{Record, shared};
use super::remembered::Remembered;
use crate::limits::NOTICE_ERROR_CHARS_MAX;
use essaim_proto::hello::Role;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{FileSpec, JobSpec, JobState, Notice, TaskResult, TaskState, Verdict};
use essaim_proto::quota::Quotas;
use essaim_proto::{AttemptId, BlobHash, InstanceId, JobId, KeyName, NodeName, SubmitKey, TaskId, TaskSet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a job's description costs beside its words, in bytes: its places in the maps and the fixed fields.
const JOB_BYTES: usize = 1_024;

/// Bytes of small files that a job keeps when it is over, so that it can be run again.
const INLINE_KEPT_BYTES: usize = 8 << 10;

/// What one word or one file of a description costs beside its text, in bytes.
const WORD_BYTES: usize = 32;
const FILE_BYTES: usize = 128;

/// All durable facts. Written as a whole into a snapshot of the journal.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Durable {
    /// The last id given to a job.
    pub last_job: JobId,
    /// Jobs that are listed; boxed, because a map that grows at its end keeps its nodes half empty.
    pub jobs: BTreeMap<JobId, Box<Job>>,
    /// Jobs by the key that their client drew.
    pub by_key: BTreeMap<(KeyName, SubmitKey), JobId>,
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

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Whose key.
    pub owner: KeyName,
    /// The client's own key for it.
    pub key: SubmitKey,
    /// What was submitted; shared, so that a second durable part for reads costs little.
    #[serde(with = "shared")]
    pub spec: Arc<JobSpec>,
    /// When it was accepted, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Who wants it cancelled.
    pub cancel_by: Option<String>,
    /// Its task; that of an array is never used.
    #[serde(default)]
    pub task: Task,
    /// Its tasks, when it is an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<Box<Array>>,
    /// What became of the notice that it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Box<Notice>>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    /// How it stands; `Running` is volatile and never here.
    pub state: TaskState,
    /// The current or last attempt, 0 before the first.
    pub attempt: u32,
    /// Where, when it is placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Which start of the worker there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Attempts that were lost, without those that were given back.
    pub lost: u32,
    /// Attempts whose program failed and was tried again.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed: u32,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<TaskResult>>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
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

impl Job {
    /// How the job stands, as far as the durable part knows (a running task counts as placed).
    pub fn state(&self) -> JobState {
        if let Some(array) = &self.array {
            return array.state();
        }
        match self.task.state {
            TaskState::Waiting | TaskState::Ready | TaskState::Unknown => JobState::Queued,
            TaskState::Placed | TaskState::Running => JobState::Running,
            TaskState::Done => JobState::Done,
            TaskState::Failed => JobState::Failed,
            TaskState::Cancelled => JobState::Cancelled,
        }
    }

    /// About what its description costs in memory.
    pub(super) fn bytes(&self) -> usize {
        let spec = &self.spec;
        let words = spec.args.iter().map(|arg| arg.len() + WORD_BYTES).sum::<usize>();
        let variables = spec.env.iter().map(|(name, value)| name.len() + value.len() + 2 * WORD_BYTES).sum::<usize>();
        let inline = |file: &FileSpec| file.inline.as_ref().map_or(0, |bytes| bytes.len());
        let files = spec.files.iter().map(|file| file.path.len() + inline(file) + FILE_BYTES).sum::<usize>();
        let lines = spec.array.as_ref().and_then(|array| array.lines.as_ref()).map_or(0, inline);
        let array = lines + self.array.as_ref().map_or(0, |array| array.bytes());
        let notify = spec.notify.as_ref().map_or(0, |url| url.len() + NOTICE_ERROR_CHARS_MAX);
        JOB_BYTES + notify + spec.name.len() + spec.entry.len() + words + variables + files + array
    }

    /// The current attempt of a job that is no array.
    pub fn attempt_id(&self, job: JobId) -> AttemptId {
        AttemptId { job, task: TASK_ONE, attempt: self.task.attempt }
    }

    /// Is every task over?
    pub fn is_over(&self) -> bool {
        match &self.array {
            Some(array) => array.live() == 0,
            None => self.task.state.is_over(),
        }
    }

    /// Is it over, with a notice of which nothing is known yet?
    pub(super) fn owes_notice(&self) -> bool {
        self.notice.is_none() && self.spec.notify.is_some() && self.is_over()
    }

    /// What a task went through.
    pub fn tries(&self, task: TaskId) -> Tries {
        match &self.array {
            Some(array) => array.tries(task),
            None => Tries { attempt: self.task.attempt, lost: self.task.lost, failed: self.task.failed },
        }
    }

    /// How a task stands, as far as the durable part knows; nothing for a number that is none of its tasks.
    pub fn task_state(&self, task: TaskId) -> Option<TaskState> {
        match &self.array {
            Some(array) => array.task_state(task),
            None => (task == TASK_ONE).then_some(self.task.state),
        }
    }

    /// Is this the present attempt of a task that is not over?
    pub fn is_current(&self, attempt: AttemptId) -> bool {
        let is_live = self.task_state(attempt.task).is_some_and(|state| !state.is_over());
        is_live && self.tries(attempt.task).attempt == attempt.attempt
    }

    /// Where the present attempt of a task is.
    pub fn placed(&self, task: TaskId) -> Option<(&NodeName, InstanceId)> {
        match &self.array {
            Some(array) => array.placed(task).map(|placed| (&placed.node, placed.instance)),
            None => self.task.node.as_ref().map(|node| (node, self.task.instance.unwrap_or_default())),
        }
    }

    /// The attempts that nodes have, and which nodes.
    pub fn placements(&self, job: JobId) -> impl Iterator<Item = (AttemptId, &NodeName)> {
        let one = self.task.node.as_ref().map(|node| (self.attempt_id(job), node));
        let many = self.array.iter().flat_map(move |array| {
            array
                .running()
                .map(move |(task, placed)| (AttemptId { job, task, attempt: array.tries(task).attempt }, &placed.node))
        });
        one.into_iter().chain(many)
    }

    /// Who wants a task cancelled.
    pub fn unwanted_by(&self, task: TaskId) -> Option<&str> {
        let part = || self.array.as_ref().and_then(|array| array.unwanted_by(task));
        self.cancel_by.as_deref().or_else(part)
    }

    /// Does somebody?
    pub(super) fn is_unwanted(&self, task: TaskId) -> bool {
        self.unwanted_by(task).is_some()
    }

    /// How many tasks.
    pub fn total(&self) -> u32 {
        self.array.as_ref().map_or(1, |array| array.total())
    }

    /// Tasks that are not over.
    pub(super) fn live(&self) -> u64 {
        match &self.array {
            Some(array) => u64::from(array.live()),
            None => u64::from(!self.task.state.is_over()),
        }
    }

    /// Tasks that are not over and that no node has.
    pub fn ready(&self) -> u32 {
        match &self.array {
            Some(array) => array.ready(),
            None => u32::from(self.task.node.is_none() && !self.task.state.is_over()),
        }
    }

    /// Up to `most` of those that would begin the same attempt.
    pub(super) fn next(&self, most: u32) -> Option<Batch> {
        match &self.array {
            Some(array) => array.next(most),
            None => (self.ready() > 0)
                .then(|| Batch { tasks: TaskSet::one(TASK_ONE), attempt: self.task.attempt.saturating_add(1) }),
        }
    }
}

impl Durable {
    /// Applies a fact.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::JobAccepted { job, owner, key, spec, at_ms } => self.accept(*job, owner, *key, spec, *at_ms),
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
                    job.cancel_by = Some(by.clone());
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
                    job.notice = Some(Box::new(notice.clone()));
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

    /// The job that the owner's Submit with this key made, listed or forgotten.
    pub(super) fn submitted(&self, owner: &KeyName, key: SubmitKey) -> Option<JobId> {
        // The key of the map is owned; a name is short.
        self.by_key.get(&(owner.clone(), key)).copied().or_else(|| self.remembered.get(owner, key))
    }

    fn accept(&mut self, id: JobId, owner: &KeyName, key: SubmitKey, spec: &Arc<JobSpec>, at_ms: u64) {
        if self.jobs.contains_key(&id) {
            return;
        }
        self.last_job = self.last_job.max(id);
        self.by_key.insert((owner.clone(), key), id);
        let array = spec.array.as_ref().map(|array| Box::new(Array::new(array.tasks.clone())));
        self.live_tasks += array.as_ref().map_or(1, |array| array.total()) as usize;
        let job = Box::new(Job {
            owner: owner.clone(),
            key,
            spec: spec.clone(),
            submitted_ms: at_ms,
            ended_ms: None,
            cancel_by: None,
            task: Task::default(),
            array,
            notice: None,
        });
        self.live_bytes += job.bytes();
        self.jobs.insert(id, job);
    }

    fn end(&mut self, attempt: AttemptId, result: &TaskResult, at_ms: u64) {
        match self.jobs.get_mut(&attempt.job).and_then(|job| job.array.as_mut()) {
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
            job.ended_ms = Some(at_ms);
            self.live_bytes = self.live_bytes.saturating_sub(job.bytes());
            // Little is kept for another run; of much only names and hashes stay.
            let inline = |file: &FileSpec| file.inline.as_ref().map_or(0, |bytes| bytes.len());
            if job.spec.files.iter().map(inline).sum::<usize>() > INLINE_KEPT_BYTES {
                Arc::make_mut(&mut job.spec).files.iter_mut().for_each(|file| file.inline = None);
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
        self.jobs.get_mut(&job)?.array.as_deref_mut()
    }

    /// Jobs that a job waits for: those that it names and that are not over. One that is no longer listed has ended well,
    /// or the job would have been cancelled with it.
    pub fn awaited(&self, job: &Job) -> Vec<JobId> {
        let is_live = |id: &&JobId| self.jobs.get(id).is_some_and(|known| !known.is_over());
        job.spec.after.iter().filter(is_live).copied().collect()
    }

    fn forget(&mut self, id: JobId) {
        if !self.jobs.get(&id).is_some_and(|job| job.is_over()) {
            return;
        }
        if let Some(old) = self.jobs.remove(&id) {
            self.ended_bytes = self.ended_bytes.saturating_sub(old.bytes());
            self.remembered.keep(&old.owner, old.key, id);
            self.by_key.remove(&(old.owner, old.key));
        }
    }

    fn live_task(&mut self, attempt: AttemptId) -> Option<&mut Task> {
        let job = self.jobs.get_mut(&attempt.job).filter(|job| job.array.is_none())?;
        let task = &mut job.task;
        (attempt.task == TASK_ONE && !task.state.is_over()).then_some(task)
    }
}
