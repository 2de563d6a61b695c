//! The durable part as a snapshot of the journal has it.
//!
//! Called by whoever encodes or decodes a [`Durable`]. Always true: what a snapshot holds is as old as the first one that
//! was written, and stays readable; what is derived in the memory is written out, and derived anew when it is read.
//! Deliberately not here: how one job is written ([`super::job`]).

use super::accepted::Kinds;
use super::durable::{Durable, JoinLine, Key};
use super::job::Job;
use super::listed::Jobs;
use super::local::LocalSettings;
use super::remembered::Remembered;
use essaim_proto::{BlobHash, JobId, KeyName, NodeName, SubmitKey};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};

/// A snapshot to be written.
#[derive(Serialize)]
struct Written<'a> {
    last_job: JobId,
    jobs: &'a Jobs,
    by_key: ByKey<'a>,
    remembered: &'a Remembered,
    keys: &'a BTreeMap<KeyName, Key>,
    joins: &'a BTreeMap<BlobHash, JoinLine>,
    nodes: &'a BTreeSet<NodeName>,
    live_tasks: usize,
    live_bytes: usize,
    ended_bytes: usize,
    local: &'a LocalSettings,
}

/// The jobs by their owners and the keys that these drew: the memory has it otherwise ([`super::submits`]).
struct ByKey<'a>(&'a Jobs);

impl Serialize for ByKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let by_key = self.0.iter().map(|(id, job)| ((job.accepted.owner(), job.accepted.key), id));
        let mut by_key: Vec<((&KeyName, SubmitKey), JobId)> = by_key.collect();
        by_key.sort_unstable();
        serializer.collect_map(by_key)
    }
}

/// A snapshot that was read. Its jobs by key say nothing that its jobs do not say.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Read {
    last_job: JobId,
    jobs: BTreeMap<JobId, Job>,
    remembered: Remembered,
    keys: BTreeMap<KeyName, Key>,
    joins: BTreeMap<BlobHash, JoinLine>,
    nodes: BTreeSet<NodeName>,
    live_tasks: usize,
    live_bytes: usize,
    ended_bytes: usize,
    local: LocalSettings,
}

impl Serialize for Durable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Durable {
            last_job,
            jobs,
            kinds: _,
            remembered,
            keys,
            joins,
            nodes,
            live_tasks,
            live_bytes,
            ended_bytes,
            local,
        } = self;
        let (last_job, by_key, local) = (*last_job, ByKey(jobs), local);
        let (live_tasks, live_bytes, ended_bytes) = (*live_tasks, *live_bytes, *ended_bytes);
        Written { last_job, jobs, by_key, remembered, keys, joins, nodes, live_tasks, live_bytes, ended_bytes, local }
            .serialize(serializer)
    }
}

impl From<Read> for Durable {
    fn from(read: Read) -> Durable {
        let Read { last_job, jobs, remembered, keys, joins, nodes, live_tasks, live_bytes, ended_bytes, local } = read;
        let (mut kinds, mut jobs) = (Kinds::default(), jobs.into_iter().collect::<Jobs>());
        jobs.values_mut().for_each(|job| job.accepted = kinds.add(&job.accepted));
        Durable { last_job, jobs, kinds, remembered, keys, joins, nodes, live_tasks, live_bytes, ended_bytes, local }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::record::{NewJob, Record};
    use essaim_proto::job::{JobKind, JobSpec, TaskState};
    use std::sync::Arc;

    /// A job, its task and a snapshot as they were first written, as far as a waiting job shows them.
    #[derive(Serialize)]
    struct OldJob {
        owner: KeyName,
        key: SubmitKey,
        spec: JobSpec,
        submitted_ms: u64,
        ended_ms: Option<u64>,
        cancel_by: Option<String>,
        task: OldTask,
    }

    #[derive(Default, Serialize)]
    struct OldTask {
        state: TaskState,
        attempt: u32,
        lost: u32,
    }

    #[derive(Serialize)]
    struct Old {
        last_job: JobId,
        jobs: BTreeMap<JobId, OldJob>,
        by_key: BTreeMap<(KeyName, SubmitKey), JobId>,
        remembered: Remembered,
        keys: BTreeMap<KeyName, Key>,
        joins: BTreeMap<BlobHash, JoinLine>,
        nodes: BTreeSet<NodeName>,
        live_tasks: usize,
        live_bytes: usize,
        ended_bytes: usize,
        local: LocalSettings,
    }

    // Is a snapshot written as before descriptions were packed, to the byte, and read again? Two owners have drawn the
    // same key, and the later one's name comes first.
    #[test]
    fn a_snapshot_is_written_as_ever() {
        let (key, spec) = (SubmitKey([3; 16]), JobSpec { kind: JobKind::Command, ..JobSpec::default() });
        let mut durable = Durable::default();
        let mut old = Old {
            last_job: JobId(2),
            jobs: BTreeMap::new(),
            by_key: BTreeMap::new(),
            remembered: Remembered::default(),
            keys: BTreeMap::new(),
            joins: BTreeMap::new(),
            nodes: BTreeSet::new(),
            live_tasks: 2,
            live_bytes: 2 * 1_024,
            ended_bytes: 0,
            local: LocalSettings::default(),
        };
        for (id, owner) in [(1, "zoe"), (2, "abe")] {
            let (id, owner) = (JobId(id), owner.parse::<KeyName>().unwrap());
            durable.apply(&Record::JobAccepted(NewJob::new(id, owner.clone(), key, Arc::new(spec.clone()), 9)));
            old.by_key.insert((owner.clone(), key), id);
            let (spec, task) = (spec.clone(), OldTask::default());
            let job = OldJob { owner, key, spec, submitted_ms: 9, ended_ms: None, cancel_by: None, task };
            old.jobs.insert(id, job);
        }
        let old = essaim_proto::encode(&old);
        assert_eq!(essaim_proto::encode(&durable), old);
        assert_eq!(essaim_proto::decode::<Durable>(&old).unwrap(), durable);
    }
}
