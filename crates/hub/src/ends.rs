//! How tasks of arrays ended, on the way from the journal to the catalog and to who watches.
//!
//! The driver makes an [`Ends`] of each durable record that ends tasks; it goes to the catalog's thread, and into the
//! [`Tail`] of the job's feed while somebody watches. Always true: the ends of a job are a log, in the order of the journal;
//! its tail is here, all of it is in the catalog a moment later; a tail holds no more than [`TAIL_BYTES_MAX`], however slow a
//! watcher is, who then reads on in the catalog.
//! Deliberately not here: who has been sent what ([`crate::watch`]), rows ([`crate::catalog`]).

use crate::limits::TAIL_BYTES_MAX;
use essaim_core::hub::{Record, cancelled_by};
use essaim_proto::job::{Isolation, TaskResult, TaskState, TaskView, Verdict};
use essaim_proto::link::TaskEnd;
use essaim_proto::{AttemptId, TaskId, TaskSet};
use essaim_store::Seq;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How some tasks of an array ended: as much as one record says. Some of them are a row of the catalog.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ends {
    /// Where they ran; empty when they never did.
    pub(crate) node: String,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Those that were given to a node.
    pub(crate) ends: Vec<TaskEnd>,
    /// Those that were cancelled before,
    #[serde(skip_serializing_if = "TaskSet::is_empty")]
    pub(crate) cancelled: TaskSet,
    /// and by whom.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) by: String,
    /// Attempts whose output was given away by the store of outputs, which is to release it.
    #[serde(skip)]
    pub(crate) given: Vec<AttemptId>,
}

/// Which tasks somebody looks for, by their number and by how they ended.
pub(crate) type Wanted<'a> = &'a dyn Fn(TaskId, TaskState) -> bool;

impl Ends {
    /// What a record about tasks of an array says, if it ends any.
    pub(crate) fn of(record: Record) -> Option<Ends> {
        match record {
            Record::TasksEnded { job: _, node, at_ms, ends } => {
                Some(Ends { node: node.to_string(), at_ms, ends, ..Ends::default() })
            }
            Record::TasksCancelled { job: _, tasks, by, at_ms } => {
                Some(Ends { at_ms, cancelled: tasks, by, ..Ends::default() })
            }
            Record::TaskEnded { attempt, result, at_ms, output } => {
                let given = output.iter().map(|_| attempt).collect();
                let (stdout, stderr) = output.map(|small| (small.stdout, small.stderr)).unwrap_or_default();
                let node = result.node.clone();
                let end = TaskEnd { task: attempt.task, attempt: attempt.attempt, result: *result, stdout, stderr };
                Some(Ends { node, at_ms, ends: vec![end], given, ..Ends::default() })
            }
            _ => None,
        }
    }

    /// The smallest and the greatest number among them.
    pub(crate) fn span(&self) -> Option<(TaskId, TaskId)> {
        let ended = self.ends.iter().map(|end| end.task);
        let cancelled = self.cancelled.first().into_iter().chain(self.cancelled.last());
        let mut all = ended.chain(cancelled);
        let first = all.next()?;
        Some(all.fold((first, first), |(least, most), task| (least.min(task), most.max(task))))
    }

    /// About what they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        let one = |end: &TaskEnd| size_of::<TaskEnd>() + end.stdout.len() + end.stderr.len();
        self.ends.iter().map(one).sum::<usize>() + self.cancelled.ranges() * 12
    }

    /// Those of the tasks that somebody looks for,
    pub(crate) fn numbers<'a>(&'a self, wanted: Wanted<'a>) -> impl Iterator<Item = TaskId> + 'a {
        let cancelled = self.cancelled.iter().filter(move |task| wanted(*task, TaskState::Cancelled));
        self.ended(wanted).map(|end| end.task).chain(cancelled)
    }

    /// and as lists show them.
    pub(crate) fn views<'a>(&'a self, wanted: Wanted<'a>) -> impl Iterator<Item = TaskView> + 'a {
        let cancelled = self.cancelled.iter().filter(move |task| wanted(*task, TaskState::Cancelled));
        let ended = self.ended(wanted).map(|end| shown(end, &self.node));
        ended.chain(cancelled.map(|task| self.cancelled_view(task)))
    }

    fn ended<'a>(&'a self, wanted: Wanted<'a>) -> impl Iterator<Item = &'a TaskEnd> + 'a {
        self.ends.iter().filter(move |end| wanted(end.task, end.result.verdict.task_state()))
    }

    /// A task that was cancelled before a node had it, as lists show it.
    fn cancelled_view(&self, task: TaskId) -> TaskView {
        let reason = Some(cancelled_by(&self.by));
        let isolation = Isolation::None;
        let verdict = Verdict::Cancelled;
        let result = TaskResult { verdict, isolation, reason: reason.clone(), ..TaskResult::default() };
        TaskView { task, state: TaskState::Cancelled, reason, result: Some(result), ..TaskView::default() }
    }
}

/// A task that ended on a node, as lists show it.
pub(crate) fn shown(end: &TaskEnd, node: &str) -> TaskView {
    let result = TaskResult { attempt: end.attempt, node: node.to_owned(), ..end.result.clone() };
    TaskView {
        task: end.task,
        state: result.verdict.task_state(),
        reason: result.reason.clone(),
        attempt: end.attempt,
        result: Some(result),
        ..TaskView::default()
    }
}

/// The newest ends of an array that is not over.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The array's tasks.
    pub(crate) ids: TaskSet,
    /// Where its log ends, for who waits for more.
    pub(crate) told: watch::Sender<Seq>,
    kept: Mutex<KeptEnds>,
}

#[derive(Debug, Default)]
struct KeptEnds {
    /// What ended after this is in `batches`.
    after: Seq,
    batches: VecDeque<(Seq, Vec<Arc<Ends>>)>,
    bytes: usize,
    /// No task is left.
    is_over: bool,
}

/// What comes next in a log.
#[derive(Debug)]
pub(crate) enum Next {
    /// This, which is all up to that sequence.
    Batch(Seq, Vec<Arc<Ends>>),
    /// Something that only the catalog has.
    InCatalog,
    /// Nothing.
    Nothing,
}

impl Tail {
    /// Of an array with these tasks, of which some may have ended up to `from`.
    pub(crate) fn new(ids: TaskSet, from: Seq) -> Tail {
        let kept = KeptEnds { after: from, ..KeptEnds::default() };
        Tail { ids, told: watch::Sender::new(from), kept: Mutex::new(kept) }
    }

    /// These have ended at `at`, and perhaps the whole job has. Never waits; the catalog's thread has been told before.
    pub(crate) fn push(&self, at: Seq, parts: Vec<Arc<Ends>>, is_over: bool) {
        let mut kept = self.lock();
        kept.is_over = is_over;
        kept.bytes += bytes_of(&parts);
        kept.batches.push_back((at, parts));
        // Nobody watches, or not from here on.
        let most = if self.told.receiver_count() == 0 { 0 } else { TAIL_BYTES_MAX };
        while kept.bytes > most {
            let Some((gone, parts)) = kept.batches.pop_front() else { break };
            kept.bytes = kept.bytes.saturating_sub(bytes_of(&parts));
            kept.after = gone;
        }
        drop(kept);
        self.told.send_replace(at);
    }

    /// What comes after `at`.
    pub(crate) fn next(&self, at: Seq) -> Next {
        let kept = self.lock();
        if at < kept.after {
            return Next::InCatalog;
        }
        let behind = kept.batches.partition_point(|(seq, _)| *seq <= at);
        kept.batches.get(behind).map_or(Next::Nothing, |(seq, parts)| Next::Batch(*seq, parts.clone()))
    }

    /// Has the last task ended? Then the job's last event follows.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    fn lock(&self) -> MutexGuard<'_, KeptEnds> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(parts: &[Arc<Ends>]) -> usize {
    parts.iter().map(|part| part.bytes()).sum()
}

/// A bit for each task of an array, by its place.
#[derive(Debug, Default)]
pub(crate) struct Places(Vec<u64>);

impl Places {
    /// No bit of `count` is set.
    pub(crate) fn new(count: u64) -> Places {
        Places(vec![0; count.div_ceil(64) as usize])
    }

    /// Is it set?
    pub(crate) fn has(&self, place: u32) -> bool {
        self.0.get(place as usize / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// Sets one; says whether it was not set.
    pub(crate) fn set(&mut self, place: u32) -> bool {
        let Some(word) = self.0.get_mut(place as usize / 64) else { return false };
        let bit = 1 << (place % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}
