//! A job: what was accepted of it, and how it stands.
//!
//! [`super::durable`] keeps them and changes them with records; everybody reads them. Always true: one that only waits is
//! what was accepted and nothing else, because a hundred thousand of them may wait; it is written, in snapshots, as if
//! all of its fields were there.
//! Deliberately not here: what a record changes ([`super::durable`]), what lists show ([`super::view`]).

use super::accepted::Accepted;
use super::array::{Array, Batch, Tries};
use super::queue::Class;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{JobSpec, JobState, Notice, TaskResult, TaskState};
use essaim_proto::{AttemptId, InstanceId, JobId, KeyName, NodeName, SubmitKey, TaskId, TaskSet};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ops::Deref;
use std::sync::Arc;

/// A job. How it stands is read as if it were a part of it.
#[derive(Debug, Clone)]
pub struct Job {
    /// What was accepted; shared by all durable parts.
    pub accepted: Arc<Accepted>,
    /// What has happened since; nothing to one that only waits.
    standing: Option<Box<Standing>>,
}

/// What changes of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Who wants it cancelled.
    pub cancel_by: Option<String>,
    /// Its task; that of an array is never used.
    pub task: Task,
    /// Its tasks, when it is an array.
    pub array: Option<Box<Array>>,
    /// What became of the notice that it asked for.
    pub notice: Option<Box<Notice>>,
}

/// Of each job to which nothing has happened.
static WAITING: Standing = Standing::WAITING;

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

impl Standing {
    const WAITING: Standing =
        Standing { ended_ms: None, cancel_by: None, task: Task::WAITING, array: None, notice: None };
}

impl Task {
    const WAITING: Task =
        Task { state: TaskState::Ready, attempt: 0, node: None, instance: None, lost: 0, failed: 0, result: None };
}

impl Deref for Job {
    type Target = Standing;

    fn deref(&self) -> &Standing {
        self.standing.as_deref().unwrap_or(&WAITING)
    }
}

/// Equal is what reads equal.
impl PartialEq for Job {
    fn eq(&self, other: &Job) -> bool {
        self.accepted == other.accepted && **self == **other
    }
}

/// A job as snapshots have it.
#[derive(Serialize)]
struct Written<'a> {
    owner: &'a KeyName,
    key: SubmitKey,
    spec: &'a JobSpec,
    submitted_ms: u64,
    ended_ms: Option<u64>,
    cancel_by: &'a Option<String>,
    task: &'a Task,
    #[serde(skip_serializing_if = "Option::is_none")]
    array: &'a Option<Box<Array>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: &'a Option<Box<Notice>>,
}

/// The same, read.
#[derive(Deserialize)]
struct Read {
    owner: KeyName,
    key: SubmitKey,
    spec: JobSpec,
    submitted_ms: u64,
    ended_ms: Option<u64>,
    cancel_by: Option<String>,
    #[serde(default)]
    task: Task,
    #[serde(default)]
    array: Option<Box<Array>>,
    #[serde(default)]
    notice: Option<Box<Notice>>,
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Standing { ended_ms, cancel_by, task, array, notice } = &**self;
        let Accepted { key, submitted_ms, .. } = *self.accepted;
        let (owner, spec, ended_ms) = (self.accepted.owner(), &*self.accepted.spec(), *ended_ms);
        Written { owner, key, spec, submitted_ms, ended_ms, cancel_by, task, array, notice }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Job {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Job, D::Error> {
        let Read { owner, key, spec, submitted_ms, ended_ms, cancel_by, task, array, notice } =
            Read::deserialize(from)?;
        let accepted = Arc::new(Accepted::new(owner, key, &Arc::new(spec), submitted_ms));
        Ok(Job::of(accepted, Standing { ended_ms, cancel_by, task, array, notice }))
    }
}

impl Job {
    /// One that was just accepted.
    pub(super) fn new(accepted: Arc<Accepted>, array: Option<Box<Array>>) -> Job {
        Job::of(accepted, Standing { array, ..Standing::WAITING })
    }

    fn of(accepted: Arc<Accepted>, standing: Standing) -> Job {
        let standing = (standing != WAITING).then(|| Box::new(standing));
        Job { accepted, standing }
    }

    /// How it stands, to be changed.
    pub(super) fn change(&mut self) -> &mut Standing {
        self.standing.get_or_insert_with(|| Box::new(Standing::WAITING))
    }

    /// Its tasks, to be changed.
    pub(super) fn array_mut(&mut self) -> Option<&mut Array> {
        self.standing.as_mut()?.array.as_deref_mut()
    }

    /// What its tasks need.
    pub(super) fn class(&self) -> &Arc<Class> {
        self.accepted.class()
    }

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

    /// About what it costs in memory.
    pub(super) fn bytes(&self) -> usize {
        self.accepted.cost_bytes() + self.array.as_ref().map_or(0, |array| array.bytes())
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
        self.notice.is_none() && self.accepted.notify().is_some() && self.is_over()
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
