//! The durable state as everybody may see it, one step behind the state that decides.
//!
//! The driver applies to it each batch whose records are durable; questions and snapshots read it, and what ended goes to
//! the catalog from here. Always true: it is what a replay of the journal up to `at` gives; it never holds a record that
//! could still be lost.
//! Deliberately not here: decisions (`essaim_core`), writing the catalog ([`crate::catalog`]).

use super::ReplayError;
use crate::catalog::{Applier, Finished, Over};
use crate::ends::Ends;
use essaim_core::hub::{Durable, Record, decode_batch};
use essaim_proto::job::TaskState;
use essaim_proto::{AttemptId, JobId};
use essaim_store::{Seq, Small, Store};
use std::sync::Arc;

/// The published state.
#[derive(Debug)]
pub(crate) struct Published {
    /// What is durable up to `at`.
    pub(super) durable: Durable,
    /// The last batch that it holds.
    pub(super) at: Seq,
    /// Bytes of journal behind the latest snapshot.
    pub(super) since_snapshot_bytes: u64,
}

impl Published {
    /// The latest snapshot of the store and all batches after it. What ended after the catalog's last sequence is given
    /// to `over`, in order, with the sequence that holds it.
    pub(crate) fn replay(store: &Store, mut over: impl FnMut(Seq, Over)) -> Result<Published, ReplayError> {
        let applied = store.catalog.applied().map_err(ReplayError::Catalog)?;
        let mut published = Published { durable: Durable::default(), at: Seq(0), since_snapshot_bytes: 0 };
        if let Some((seq, bytes)) = store.journal.latest_snapshot()? {
            published.durable =
                essaim_proto::decode(&bytes).map_err(|source| ReplayError::Row { seq: seq.0, source })?;
            published.at = seq;
            if seq > applied {
                // A catalog that is new, or older than the journal's beginning: what the state still holds is given to it.
                let ended = published.durable.jobs.iter().filter(|(_, job)| job.state().is_over());
                let jobs = ended.filter_map(|(id, _)| Finished::of(&published.durable, id, None)).collect();
                over(seq, Over { jobs, ..Over::default() });
            }
        }
        loop {
            let batches = rows_after(store, published.at)?;
            if batches.is_empty() {
                return Ok(published);
            }
            for (seq, records, bytes) in batches {
                published.since_snapshot_bytes += bytes;
                let ended = published.apply(seq, records);
                if seq > applied {
                    over(seq, ended);
                }
            }
        }
    }

    /// The last batch that it holds.
    pub(crate) fn at(&self) -> Seq {
        self.at
    }

    /// Jobs that it lists.
    pub(crate) fn jobs(&self) -> usize {
        self.durable.jobs.len()
    }

    /// The newest job that it knows.
    pub(crate) fn last_job(&self) -> JobId {
        self.durable.last_job
    }

    /// The newest attempt of each task that is not over; its next ones have the numbers after it.
    pub(crate) fn newest_attempts(&self) -> Vec<AttemptId> {
        let mut newest = Vec::new();
        for (id, job) in self.durable.jobs.iter().filter(|(_, job)| !job.is_over()) {
            let Some(array) = &job.array else {
                newest.push(job.attempt_id(id));
                continue;
            };
            let live = array.in_states(&[TaskState::Ready, TaskState::Placed]);
            newest.extend(live.map(|(task, _)| AttemptId { job: id, task, attempt: array.tries(task).attempt }));
        }
        newest
    }

    /// Takes the records of the batches up to `at`, which are durable, and says what ended by them.
    pub(super) fn apply(&mut self, at: Seq, records: Vec<Record>) -> Over {
        self.at = at;
        let mut over = Over::default();
        for record in records {
            self.durable.apply(&record);
            let job = match &record {
                Record::TaskEnded { attempt, .. } => attempt.job,
                Record::TasksEnded { job, .. } | Record::TasksCancelled { job, .. } => *job,
                Record::NoticeEnded { job, .. } => {
                    over.jobs.extend(Finished::of(&self.durable, *job, None));
                    continue;
                }
                _ => continue,
            };
            if self.durable.jobs.get(&job).is_some_and(|known| known.array.is_some()) {
                over.tasks.extend(Ends::of(record).map(|ends| (job, Arc::new(ends))));
                over.jobs.extend(Finished::of(&self.durable, job, None));
            } else if let Record::TaskEnded { output, .. } = record {
                let output = output.map(|small| Small { stdout: small.stdout, stderr: small.stderr });
                over.jobs.extend(Finished::of(&self.durable, job, output));
            }
        }
        over
    }
}

/// Rows of the journal after `at`, decoded, with their sizes: some, or none when there are none.
pub(super) fn rows_after(store: &Store, at: Seq) -> Result<Vec<(Seq, Vec<Record>, u64)>, ReplayError> {
    let rows = store.journal.read(at.next(), essaim_store::limits::READ_BYTES_MAX)?;
    let decoded = rows.into_iter().map(|(seq, bytes)| {
        let records = decode_batch(&bytes).map_err(|source| ReplayError::Row { seq: seq.0, source })?;
        Ok((seq, records, bytes.len() as u64))
    });
    decoded.collect()
}

/// Brings the catalog up to what the journal holds, reading it from its beginning.
pub(crate) fn catch_up(store: &Store, applier: &mut Applier) -> Result<Published, ReplayError> {
    let mut failed = None;
    let published = Published::replay(store, |seq, over| {
        if failed.is_none() {
            failed = applier.take(seq, over).err();
        }
    })?;
    let ended = failed.map_or_else(|| applier.finish(published.at), Err);
    ended.map_err(ReplayError::Catalog)?;
    Ok(published)
}
