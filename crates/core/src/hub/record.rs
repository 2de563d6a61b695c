//! The durable facts, and how a batch of them is written in the journal.
//!
//! One journal row is one batch of the driver. Always true: a record is a fact, not a request; old records stay
//! readable (fields are only added, with defaults).
//! Deliberately not here: what a record changes ([`super::durable`]), and where it is kept (`store`).

use super::accepted::Accepted;
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

/// A job that was accepted. Written as its number, owner, key, description and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "WrittenJob", into = "WrittenJob")]
pub struct NewJob {
    /// Its id.
    pub job: JobId,
    /// As every durable part that applies the record keeps it.
    pub accepted: Arc<Accepted>,
    /// Its whole description; not kept longer than the record.
    pub spec: Arc<JobSpec>,
}

#[derive(Serialize, Deserialize)]
struct WrittenJob {
    job: JobId,
    owner: KeyName,
    key: SubmitKey,
    #[serde(with = "shared")]
    spec: Arc<JobSpec>,
    at_ms: u64,
}

impl NewJob {
    /// A job of this owner, for which its client drew the key, accepted at this time in milliseconds since 1970.
    pub fn new(job: JobId, owner: KeyName, key: SubmitKey, spec: Arc<JobSpec>, at_ms: u64) -> NewJob {
        NewJob { job, accepted: Arc::new(Accepted::new(owner, key, &spec, at_ms)), spec }
    }
}

impl From<WrittenJob> for NewJob {
    fn from(WrittenJob { job, owner, key, spec, at_ms }: WrittenJob) -> NewJob {
        NewJob::new(job, owner, key, spec, at_ms)
    }
}

impl From<NewJob> for WrittenJob {
    fn from(NewJob { job, accepted, spec }: NewJob) -> WrittenJob {
        let Accepted { key, submitted_ms: at_ms, .. } = *accepted;
        WrittenJob { job, owner: accepted.owner().clone(), key, spec, at_ms }
    }
}

/// A description that is shared, written as if it were not.
mod shared {
    use super::{Arc, Deserialize, JobSpec, Serialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(spec: &Arc<JobSpec>, serializer: S) -> Result<S::Ok, S::Error> {
        spec.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<JobSpec>, D::Error> {
        JobSpec::deserialize(from).map(Arc::new)
    }
}

/// A durable fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A job was accepted.
    JobAccepted(NewJob),
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
            Record::JobAccepted(new) => Some(new.job),
            Record::CancelWanted { job, .. } | Record::JobForgotten { job } => Some(*job),
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

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_proto::job::JobKind;

    /// A record as it was first written.
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Old {
        JobAccepted { job: JobId, owner: KeyName, key: SubmitKey, spec: JobSpec, at_ms: u64 },
    }

    // Is a record of a new job written as before it was shared, to the byte, and read again?
    #[test]
    fn a_new_job_is_written_as_ever() {
        let (job, owner, key, at_ms) = (JobId(7), "me".parse::<KeyName>().unwrap(), SubmitKey([3; 16]), 1 << 40);
        let spec = JobSpec { name: "n".into(), kind: JobKind::Command, args: vec!["ls".into()], ..JobSpec::default() };
        let record = Record::JobAccepted(NewJob::new(job, owner.clone(), key, Arc::new(spec.clone()), at_ms));
        let old = essaim_proto::encode(&[Old::JobAccepted { job, owner, key, spec, at_ms }]);
        assert_eq!(encode_batch(std::slice::from_ref(&record)), old);
        assert_eq!(decode_batch(&old).unwrap(), [record]);
    }
}
