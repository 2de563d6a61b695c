//! The durable part of the hub: what a replayed journal gives back.
//!
//! [`Durable::apply`] is the only thing that changes it, for a new record and for a replayed one alike.
//! Always true: applying the same records in the same order gives an equal value; a record that does not fit (a replay
//! of damaged data) changes nothing.
//! Deliberately not here: sessions, leases, what is ready (derived or volatile, in `Live`).

use super::record::{Record, shared};
use super::remembered::Remembered;
use essaim_proto::hello::Role;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{FileSpec, JobSpec, JobState, TaskResult, TaskState};
use essaim_proto::{AttemptId, BlobHash, InstanceId, JobId, KeyName, NodeName, SubmitKey};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a job's description costs beside its words, in bytes: its places in the maps and the fixed fields.
const JOB_BYTES: usize = 1_024;

/// What one word or one file of a description costs beside its text, in bytes.
const WORD_BYTES: usize = 32;
const FILE_BYTES: usize = 128;

/// All durable facts. Written as a whole into a snapshot of the journal.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Durable {
    /// The last id given to a job.
    pub last_job: JobId,
    /// Jobs that are listed.
    pub jobs: BTreeMap<JobId, Job>,
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
    /// Its task; arrays come later.
    pub task: Task,
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
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
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
        JOB_BYTES + spec.name.len() + spec.entry.len() + words + variables + files
    }

    /// Its current attempt.
    pub fn attempt_id(&self, job: JobId) -> AttemptId {
        AttemptId { job, task: TASK_ONE, attempt: self.task.attempt }
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
                let current = |task: &&mut Task| task.node.is_some() && attempt.attempt == task.attempt;
                if let Some(task) = self.live_task(*attempt).filter(current) {
                    task.state = TaskState::Ready;
                    (task.node, task.instance) = (None, None);
                    task.lost += u32::from(!given_back);
                }
            }
            Record::CancelWanted { job, by } => {
                if let Some(job) = self.jobs.get_mut(job).filter(|job| !job.task.state.is_over()) {
                    job.cancel_by = Some(by.clone());
                }
            }
            Record::TaskEnded { attempt, result, at_ms, output: _ } => self.end(*attempt, result, *at_ms),
            Record::JobForgotten { job } => self.forget(*job),
            Record::KeyMade { name, role, secret, at_ms } => {
                self.keys.insert(name.clone(), Key { role: *role, secret: *secret, created_ms: *at_ms });
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
        self.live_tasks += 1;
        let job = Job {
            owner: owner.clone(),
            key,
            spec: spec.clone(),
            submitted_ms: at_ms,
            ended_ms: None,
            cancel_by: None,
            task: Task::default(),
        };
        self.live_bytes += job.bytes();
        self.jobs.insert(id, job);
    }

    fn end(&mut self, attempt: AttemptId, result: &TaskResult, at_ms: u64) {
        let current = |task: &&mut Task| attempt.attempt == task.attempt;
        let Some(task) = self.live_task(attempt).filter(current) else { return };
        task.state = result.verdict.task_state();
        (task.node, task.instance) = (None, None);
        task.result = Some(result.clone());
        self.live_tasks -= 1;
        if let Some(job) = self.jobs.get_mut(&attempt.job) {
            job.ended_ms = Some(at_ms);
            self.live_bytes = self.live_bytes.saturating_sub(job.bytes());
            // The files' bytes are of no use any more; their names and hashes stay.
            if job.spec.files.iter().any(|file| file.inline.is_some()) {
                Arc::make_mut(&mut job.spec).files.iter_mut().for_each(|file| file.inline = None);
            }
            self.ended_bytes += job.bytes();
        }
    }

    fn forget(&mut self, id: JobId) {
        if !self.jobs.get(&id).is_some_and(|job| job.task.state.is_over()) {
            return;
        }
        if let Some(old) = self.jobs.remove(&id) {
            self.ended_bytes = self.ended_bytes.saturating_sub(old.bytes());
            self.remembered.keep(&old.owner, old.key, id);
            self.by_key.remove(&(old.owner, old.key));
        }
    }

    fn live_task(&mut self, attempt: AttemptId) -> Option<&mut Task> {
        let task = &mut self.jobs.get_mut(&attempt.job)?.task;
        (attempt.task == TASK_ONE && !task.state.is_over()).then_some(task)
    }
}
