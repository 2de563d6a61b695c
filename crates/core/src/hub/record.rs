//! The durable facts, and how a batch of them is written in the journal.
//!
//! One journal row is one batch of the driver. Always true: a record is a fact, not a request; old records stay
//! readable (fields are only added, with defaults).
//! Deliberately not here: what a record changes ([`super::durable`]), and where it is kept (`store`).

use super::local::LocalSettings;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, Notice, TaskResult};
use essaim_proto::limits::TASK_RANGES_MAX;
use essaim_proto::link::TaskEnd;
use essaim_proto::quota::Quotas;
use essaim_proto::{AttemptId, BlobHash, DecodeError, InstanceId, JobId, KeyName, NodeName, SubmitKey, TaskSet};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The whole output of an attempt that wrote little: it travels inside the record of its end, so that a small program
/// costs no file and no second write. The driver attaches it; what the durable part holds does not depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SmallOutput {
    /// All of its standard output.
    #[serde(with = "serde_bytes")]
    pub stdout: Vec<u8>,
    /// All of its standard error.
    #[serde(with = "serde_bytes")]
    pub stderr: Vec<u8>,
}

/// A description that several owners share, written as if each had its own.
pub(super) mod shared {
    use super::{Arc, Deserialize, JobSpec, Serialize};
    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(spec: &Arc<JobSpec>, serializer: S) -> Result<S::Ok, S::Error> {
        spec.as_ref().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<JobSpec>, D::Error> {
        JobSpec::deserialize(from).map(Arc::new)
    }
}

/// A durable fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A job was accepted.
    JobAccepted {
        /// Its id.
        job: JobId,
        /// Whose key.
        owner: KeyName,
        /// The client's own key for it.
        key: SubmitKey,
        /// The job.
        #[serde(with = "shared")]
        spec: Arc<JobSpec>,
        /// When, in milliseconds since 1970.
        at_ms: u64,
    },
    /// An attempt was given to a node.
    TaskPlaced {
        /// Which.
        attempt: AttemptId,
        /// Where.
        node: NodeName,
        /// Which start of the worker there: after a restart of the hub, the same one has what it was given or never had
        /// it, another one has lost it.
        #[serde(default)]
        instance: InstanceId,
    },
    /// Attempts of an array's tasks were given to a node, all with the same number.
    TasksPlaced {
        /// Of which job.
        job: JobId,
        /// Which tasks.
        tasks: TaskSet,
        /// Which try of each.
        attempt: u32,
        /// Where.
        node: NodeName,
        /// Which start of the worker there.
        instance: InstanceId,
    },
    /// Attempts of an array's tasks were lost; the tasks are ready again.
    TasksLost {
        /// Of which job.
        job: JobId,
        /// Which tasks.
        tasks: TaskSet,
        /// Which try of each.
        attempt: u32,
        /// Their node gave them back in good order.
        given_back: bool,
    },
    /// The program of an attempt failed and its task is ready for another try.
    AttemptFailed {
        /// Which.
        attempt: AttemptId,
        /// How it failed.
        result: Box<TaskResult>,
    },
    /// An attempt was lost; its task is ready again.
    AttemptLost {
        /// Which.
        attempt: AttemptId,
        /// Its node gave it back in good order: it does not count as a lost try.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        given_back: bool,
    },
    /// Somebody wants the job cancelled.
    CancelWanted {
        /// Which.
        job: JobId,
        /// Who: a key's name, or why.
        by: String,
    },
    /// Somebody wants tasks of an array cancelled that nodes have.
    TasksUnwanted {
        /// Of which job.
        job: JobId,
        /// Which.
        tasks: TaskSet,
        /// Who: a key's name.
        by: String,
    },
    /// A task ended. Exactly one per task.
    TaskEnded {
        /// The attempt that ended it (attempt 0: it never ran).
        attempt: AttemptId,
        /// How.
        result: Box<TaskResult>,
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// All of its output, when that is little. The core notes none; the driver attaches it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Box<SmallOutput>>,
    },
    /// Tasks of an array ended. The driver attaches their output, when that is little.
    TasksEnded {
        /// Of which job.
        job: JobId,
        /// Where they ran.
        node: NodeName,
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// Which, and how.
        ends: Vec<TaskEnd>,
    },
    /// Tasks of an array that no node had were cancelled.
    TasksCancelled {
        /// Of which job.
        job: JobId,
        /// Which.
        tasks: TaskSet,
        /// By whom: a key's name, or why.
        by: String,
        /// When, in milliseconds since 1970.
        at_ms: u64,
    },
    /// The core no longer knows a job that is over: from now on the catalog answers for it. Its output stays until
    /// retention drops it.
    JobForgotten {
        /// Which.
        job: JobId,
    },
    /// The end of a job was posted, or that was given up.
    NoticeEnded {
        /// Which.
        job: JobId,
        /// What became of it.
        notice: Notice,
    },
    /// A key was made.
    KeyMade {
        /// Its name.
        name: KeyName,
        /// What it may do.
        role: Role,
        /// BLAKE3 of its secret.
        secret: BlobHash,
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// How much it may use.
        #[serde(default, skip_serializing_if = "Quotas::is_plain")]
        quotas: Quotas,
    },
    /// A key may use another amount.
    KeyQuotas {
        /// Its name.
        name: KeyName,
        /// How much.
        quotas: Quotas,
    },
    /// A key was revoked.
    KeyRevoked {
        /// Its name.
        name: KeyName,
    },
    /// A join line was made.
    JoinMade {
        /// BLAKE3 of its secret.
        secret: BlobHash,
        /// How many machines may use it.
        uses: u32,
        /// Until when, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// A join line was used.
    JoinUsed {
        /// BLAKE3 of its secret.
        secret: BlobHash,
        /// The name that the machine got.
        name: NodeName,
    },
    /// A join line is no longer remembered.
    JoinForgotten {
        /// BLAKE3 of its secret.
        secret: BlobHash,
    },
    /// A node with a certificate of ours came for the first time.
    NodeKnown {
        /// Its name.
        name: NodeName,
    },
    /// An administrator set something about the workers of this machine, or an `up` that says otherwise has come since.
    LocalChanged {
        /// All that is set now.
        settings: LocalSettings,
    },
}

impl Record {
    /// Takes a fact of the same kind about tasks of the same array into this record, or gives it back.
    pub(super) fn join(&mut self, next: Record) -> Option<Record> {
        match (self, next) {
            (
                Record::TasksLost { job, tasks, attempt, given_back },
                Record::TasksLost { job: j, tasks: more, attempt: a, given_back: g },
            ) if (*job, *attempt, *given_back) == (j, a, g)
                && more.len() == 1
                // One with more could not be read again.
                && tasks.ranges() < TASK_RANGES_MAX =>
            {
                // One that comes out of order begins a record of its own.
                let left = more.first().filter(|task| !tasks.push(*task));
                left.map(|task| Record::TasksLost { job: j, tasks: TaskSet::one(task), attempt: a, given_back: g })
            }
            (_, next) => Some(next),
        }
    }

    /// The job that it is about.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Record::JobAccepted { job, .. } | Record::CancelWanted { job, .. } | Record::JobForgotten { job } => {
                Some(*job)
            }
            Record::TasksPlaced { job, .. }
            | Record::TasksLost { job, .. }
            | Record::TasksEnded { job, .. }
            | Record::TasksUnwanted { job, .. }
            | Record::TasksCancelled { job, .. }
            | Record::NoticeEnded { job, .. } => Some(*job),
            Record::TaskPlaced { attempt, .. }
            | Record::AttemptLost { attempt, .. }
            | Record::AttemptFailed { attempt, .. }
            | Record::TaskEnded { attempt, .. } => Some(attempt.job),
            _ => None,
        }
    }
}

/// The bytes of a journal row.
pub fn encode_batch(records: &[Record]) -> Vec<u8> {
    essaim_proto::encode(&records)
}

/// The records of a journal row.
///
/// # Errors
/// When the bytes are not a batch of records.
pub fn decode_batch(bytes: &[u8]) -> Result<Vec<Record>, DecodeError> {
    essaim_proto::decode(bytes)
}
