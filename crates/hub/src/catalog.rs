//! The catalog follows the journal: what ended is written there by a thread of its own, behind the driver.
//!
//! ```text
//!   driver ── (seq, what is over) ──▶ queue ── gathered ──▶ Catalog::apply ──▶ small outputs released
//!                                       └── too much waits: dropped, read from the journal again
//! ```
//!
//! Always true: the driver never waits for it; rows are applied in the order of the journal; a small output is released
//! only when the catalog has it; a catalog that fails is complained about by name and tried again, and nothing is trimmed
//! that it has not applied.
//! Deliberately not here: reading it ([`crate::past`]), removing what is old ([`crate::keeper`]).

use crate::driver::catch_up;
use crate::ends::Ends;
use crate::limits::{
    CATALOG_BYTES_AT_ONCE, CATALOG_COMPLAINT, CATALOG_ENDS_BYTES, CATALOG_ENDS_PER_ROW, CATALOG_GATHER,
    CATALOG_QUEUE_BYTES, CATALOG_RETRY, CATALOG_ROWS_AT_ONCE,
};
use essaim_core::hub::Durable;
use essaim_proto::api::JobView;
use essaim_proto::{AttemptId, JobId, SubmitKey};
use essaim_store::{Catalog, CatalogEnds, CatalogError, CatalogRow, Outputs, Seq, Small, Store};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{error, info};

/// What a row of the catalog holds in its opaque part.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    /// The job as its owner sees it.
    pub(crate) view: JobView,
    /// The key of its Submit, which a client names that must not be shown another job.
    pub(crate) key: SubmitKey,
}

/// A job that is over.
#[derive(Debug)]
pub(crate) struct Finished {
    kept: Kept,
    attempt: AttemptId,
    output: Option<Small>,
}

impl Finished {
    /// The job as it stands in `durable`, if it is over.
    pub(crate) fn of(durable: &Durable, job: JobId, output: Option<Small>) -> Option<Finished> {
        let known = durable.jobs.get(&job)?;
        let kept = Kept { view: durable.ended_view(job)?, key: known.accepted.key };
        // An array has no attempt of its own, and no output: its tasks have.
        Some(Finished { kept, attempt: known.attempt_id(job), output })
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let output = self.output.as_ref().map_or(0, |small| small.stdout.len() + small.stderr.len());
        1_024 + output
    }

    fn row(self) -> CatalogRow {
        let view = essaim_proto::encode(&self.kept);
        let JobView { job, owner, name, state, submitted_ms, ended_ms, tasks, array, .. } = self.kept.view;
        let result = tasks.into_iter().next().filter(|_| array.is_none()).and_then(|task| task.result);
        CatalogRow {
            job,
            owner,
            name,
            state,
            node: result.map(|result| result.node).unwrap_or_default(),
            submitted_ms,
            ended_ms: ended_ms.unwrap_or(submitted_ms),
            attempt: self.attempt,
            view,
            output: self.output,
        }
    }
}

/// What is over by some records.
#[derive(Debug, Default)]
pub(crate) struct Over {
    /// Jobs.
    pub(crate) jobs: Vec<Finished>,
    /// Tasks of arrays, in the order of the records.
    pub(crate) tasks: Vec<(JobId, Arc<Ends>)>,
}

impl Over {
    /// Nothing?
    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.tasks.is_empty()
    }

    fn bytes(&self) -> usize {
        let tasks = self.tasks.iter().map(|(_, ends)| ends.bytes()).sum::<usize>();
        self.jobs.iter().map(Finished::bytes).sum::<usize>() + tasks
    }
}

/// Writes what is over into the catalog, some thousand jobs or a hundred thousand tasks per transaction.
pub(crate) struct Applier {
    catalog: Catalog,
    outputs: Outputs,
    rows: Vec<CatalogRow>,
    tasks: BTreeMap<JobId, Vec<Arc<Ends>>>,
    /// About what waits here, in bytes.
    bytes: usize,
    to: Seq,
    /// How often the catalog fails before it takes something.
    #[cfg(test)]
    fails: usize,
}

impl Applier {
    pub(crate) fn new(store: &Store) -> Applier {
        Applier {
            catalog: store.catalog.clone(),
            outputs: store.outputs.clone(),
            rows: Vec::new(),
            tasks: BTreeMap::new(),
            bytes: 0,
            to: Seq(0),
            #[cfg(test)]
            fails: 0,
        }
    }

    /// Takes what ended up to `to`, and writes when that is enough for one transaction.
    pub(crate) fn take(&mut self, to: Seq, over: Over) -> Result<(), CatalogError> {
        self.to = to;
        self.bytes += over.bytes();
        self.rows.extend(over.jobs.into_iter().map(Finished::row));
        for (job, ends) in over.tasks {
            self.tasks.entry(job).or_default().push(ends);
        }
        let is_enough = self.rows.len() >= CATALOG_ROWS_AT_ONCE || self.bytes >= CATALOG_BYTES_AT_ONCE;
        if is_enough { self.write() } else { Ok(()) }
    }

    /// Writes the rest; everything up to `to` has been taken.
    pub(crate) fn finish(&mut self, to: Seq) -> Result<(), CatalogError> {
        self.to = self.to.max(to);
        self.write()
    }

    /// What could not be written stays and is written the next time.
    fn write(&mut self) -> Result<(), CatalogError> {
        #[cfg(test)]
        if let Some(left) = self.fails.checked_sub(1) {
            self.fails = left;
            return Err(CatalogError::Io(std::io::Error::other("the disk is away").into()));
        }
        if self.to > self.catalog.applied()? {
            let ends: Vec<CatalogEnds> = self.tasks.iter().flat_map(|(job, ends)| packed(*job, ends)).collect();
            self.catalog.apply(self.to, &self.rows, &ends)?;
        }
        for row in self.rows.drain(..).filter(|row| row.output.is_some()) {
            self.outputs.release(row.attempt);
        }
        let ends = std::mem::take(&mut self.tasks).into_values().flatten();
        ends.for_each(|ends| ends.given.iter().for_each(|attempt| self.outputs.release(*attempt)));
        self.bytes = 0;
        Ok(())
    }
}

/// The ends of an array's tasks as rows, each of some thousand.
fn packed(job: JobId, all: &[Arc<Ends>]) -> Vec<CatalogEnds> {
    let mut rows = Vec::new();
    let mut rest = all;
    while !rest.is_empty() {
        let (mut tasks, mut bytes, mut taken) = (0, 0, 0);
        while let Some(next) = rest.get(taken).filter(|_| tasks < CATALOG_ENDS_PER_ROW && bytes < CATALOG_ENDS_BYTES) {
            (tasks, bytes, taken) = (tasks + next.ends.len(), bytes + next.bytes(), taken + 1);
        }
        let (row, others) = rest.split_at(taken);
        rest = others;
        let spans: Vec<_> = row.iter().filter_map(|ends| ends.span()).collect();
        let first = spans.iter().map(|(first, _)| *first).min();
        let last = spans.iter().map(|(_, last)| *last).max();
        if let (Some(first), Some(last)) = (first, last) {
            let parts: Vec<&Ends> = row.iter().map(|ends| &**ends).collect();
            rows.push(CatalogEnds { job, first, last, body: essaim_proto::encode(&parts) });
        }
    }
    rows
}

/// What a row of ends holds; one that cannot be read is left out.
pub(crate) fn unpacked(job: JobId, body: &[u8]) -> Vec<Ends> {
    let decoded = essaim_proto::decode(body);
    decoded.unwrap_or_else(|error| {
        error!(%job, %error, "a row of the catalog cannot be read");
        Vec::new()
    })
}

/// The driver's and the readers' way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Follower {
    queue: Arc<Queue>,
    applied: watch::Receiver<Seq>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<(Seq, Over)>,
    bytes: usize,
    /// Everything up to here was said.
    to: Seq,
    /// Somebody waits for this sequence.
    wanted: Seq,
    /// Too much waited: it is to be read from the journal.
    is_overrun: bool,
    ends: bool,
}

/// The thread, to be waited for at the end.
#[derive(Debug)]
pub(crate) struct FollowerThread {
    queue: Arc<Queue>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Follower {
    /// Starts the thread on a catalog that has everything up to `applied`.
    pub(crate) fn start(store: Store, applied: Seq) -> std::io::Result<(Follower, FollowerThread)> {
        let queue = Arc::new(Queue::default());
        let (told, applied) = watch::channel(applied);
        let thread = Thread { applier: Applier::new(&store), store, queue: queue.clone(), told, complained: None };
        let thread = std::thread::Builder::new().name("catalog".into()).spawn(move || thread.run())?;
        Ok((Follower { queue: queue.clone(), applied }, FollowerThread { queue, thread: Some(thread) }))
    }

    /// Everything up to `to` is durable, and this is what ended by it. Never waits.
    pub(crate) fn push(&self, to: Seq, over: Over) {
        let mut waiting = self.queue.lock();
        waiting.to = to;
        if over.is_empty() || waiting.is_overrun {
            // What changed nothing in the catalog waits for company.
            return;
        }
        waiting.bytes += over.bytes();
        waiting.batches.push_back((to, over));
        if waiting.bytes > CATALOG_QUEUE_BYTES {
            waiting.batches.clear();
            waiting.bytes = 0;
            waiting.is_overrun = true;
        }
        drop(waiting);
        self.queue.changed.notify_all();
    }

    /// Waits until the catalog holds everything up to `seq`; `false` when the thread has ended before.
    pub(crate) async fn applied(&self, seq: Seq) -> bool {
        let mut applied = self.applied.clone();
        if *applied.borrow() < seq {
            let mut waiting = self.queue.lock();
            waiting.wanted = waiting.wanted.max(seq);
            drop(waiting);
            self.queue.changed.notify_all();
        }
        applied.wait_for(|applied| *applied >= seq).await.is_ok()
    }
}

impl FollowerThread {
    /// Writes what waits, once, and ends.
    pub(crate) fn stop(mut self) {
        self.queue.end();
        if let Some(thread) = self.thread.take() {
            // A panic was in the log when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for FollowerThread {
    fn drop(&mut self) {
        self.queue.end();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().ends = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do, then a little longer for more of it. Gives the batches and the sequence up to
    /// which they are complete.
    fn next(&self, applied: Seq) -> Work {
        let waits = |waiting: &mut Waiting| {
            waiting.batches.is_empty() && !waiting.is_overrun && !waiting.ends && !waiting.is_wanted(applied)
        };
        let waiting = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let gathers = |waiting: &mut Waiting| !waiting.ends && !waiting.is_wanted(applied);
        let gathered = self.changed.wait_timeout_while(waiting, CATALOG_GATHER, gathers);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        let is_overrun = std::mem::take(&mut waiting.is_overrun);
        waiting.bytes = 0;
        Work { batches: std::mem::take(&mut waiting.batches), to: waiting.to, is_overrun, ends: waiting.ends }
    }

    /// Waits before another try.
    fn pause(&self, time: Duration) {
        let waits = |waiting: &mut Waiting| !waiting.ends;
        let paused = self.changed.wait_timeout_while(self.lock(), time, waits);
        drop(paused.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Waiting {
    /// Does somebody wait for something that was said and not applied?
    fn is_wanted(&self, applied: Seq) -> bool {
        self.wanted.min(self.to) > applied
    }
}

/// What the thread does next.
struct Work {
    batches: VecDeque<(Seq, Over)>,
    to: Seq,
    is_overrun: bool,
    ends: bool,
}

struct Thread {
    store: Store,
    applier: Applier,
    queue: Arc<Queue>,
    told: watch::Sender<Seq>,
    /// When the catalog's failure was said last.
    complained: Option<Instant>,
}

impl Thread {
    fn run(mut self) {
        loop {
            let applied = *self.told.borrow();
            let work = self.queue.next(applied);
            let ends = work.ends;
            self.work(work);
            if ends {
                return;
            }
        }
    }

    fn work(&mut self, work: Work) {
        if work.is_overrun {
            self.insist(CATALOG_COMPLAINT, |thread| {
                thread.applier = Applier::new(&thread.store);
                catch_up(&thread.store, &mut thread.applier).map(drop).map_err(|error| chain(&error))
            });
            return;
        }
        for (seq, over) in work.batches {
            // What was not written stays with the applier.
            if let Err(error) = self.applier.take(seq, over) {
                self.complain(&chain(&error));
                if !self.insist(CATALOG_RETRY, |thread| thread.applier.finish(seq).map_err(|error| chain(&error))) {
                    return;
                }
            }
        }
        self.insist(CATALOG_RETRY, |thread| thread.applier.finish(work.to).map_err(|error| chain(&error)));
    }

    /// Tries until it works; `false` when the hub ends before: the journal keeps what the catalog lacks, and the next start
    /// takes it from there.
    fn insist(&mut self, pause: Duration, mut write: impl FnMut(&mut Thread) -> Result<(), String>) -> bool {
        while let Err(error) = write(self) {
            self.complain(&error);
            self.queue.pause(pause);
            if self.queue.lock().ends {
                return false;
            }
        }
        if self.complained.take().is_some() {
            info!("the catalog is written again");
        }
        // It was written to a moment ago; should it not say so, the next time does.
        if let Ok(applied) = self.store.catalog.applied() {
            self.told.send_replace(applied);
        }
        true
    }

    fn complain(&mut self, error: &str) {
        if self.complained.is_none_or(|at| at.elapsed() >= CATALOG_COMPLAINT) {
            self.complained = Some(Instant::now());
            error!(%error, "the catalog of finished jobs cannot be written; it is tried again, the journal keeps what it lacks");
        }
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error).chain(causes).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use essaim_core::hub::{NewJob, Record, encode_batch};
    use essaim_proto::api::Stream;
    use essaim_proto::id::TASK_ONE;
    use essaim_proto::job::{JobSpec, JobState, TaskResult, Verdict};
    use essaim_store::StoreLimits;

    /// The records of a job that was accepted and ended.
    fn records(job: u64) -> Vec<Record> {
        let attempt = AttemptId { job: JobId(job), task: TASK_ONE, attempt: 0 };
        let result = TaskResult { verdict: Verdict::Cancelled, ..TaskResult::default() };
        vec![
            Record::JobAccepted(NewJob::new(
                JobId(job),
                "me".parse().expect("a name"),
                SubmitKey([job as u8; 16]),
                Arc::new(JobSpec::default()),
                job,
            )),
            Record::TaskEnded { attempt, result: Box::new(result), at_ms: job + 1, output: None },
        ]
    }

    // When more waits than the memory may hold: does the catalog get it from the journal, and go on from there?
    #[tokio::test]
    async fn what_was_too_much_is_read_from_the_journal() {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::memory(home.path(), StoreLimits::default()).expect("a store");
        let term = store.lead.acquire("hub", 0, 0).expect("the lead");
        let mut durable = Durable::default();
        let append = |job: u64| {
            let done = Box::new(move |end: Result<Seq, _>| assert_eq!(end.expect("appended"), Seq(job)));
            store.journal.append(Seq(job - 1), term, encode_batch(&records(job)), done);
        };
        (1..=10).for_each(append);
        for record in (1..=11).flat_map(records) {
            durable.apply(&record);
        }
        let (follower, thread) = Follower::start(store.clone(), Seq(0)).expect("a thread");
        let huge = Small { stdout: vec![0; CATALOG_QUEUE_BYTES], stderr: Vec::new() };
        let over = |job, output| Over {
            jobs: Finished::of(&durable, JobId(job), output).into_iter().collect(),
            ..Over::default()
        };
        follower.push(Seq(10), over(10, Some(huge)));
        assert!(follower.applied(Seq(10)).await);
        for job in 1..=10 {
            let row = store.catalog.job(JobId(job)).expect("readable").expect("it is there");
            assert_eq!(row.state, JobState::Cancelled);
        }
        assert!(store.catalog.output(JobId(10)).expect("readable").is_none(), "what the journal says counts");
        append(11);
        follower.push(Seq(11), over(11, None));
        assert!(follower.applied(Seq(11)).await);
        assert!(store.catalog.job(JobId(11)).expect("readable").is_some());
        thread.stop();
        assert!(!follower.applied(Seq(12)).await, "nobody is left to apply it");
    }
    /// As many jobs as one transaction takes and one more, in two batches, with a little output of the first.
    fn work_of(store: &Store) -> (u64, Work) {
        let count = CATALOG_ROWS_AT_ONCE as u64 + 1;
        let mut durable = Durable::default();
        for record in (1..=count).flat_map(records) {
            durable.apply(&record);
        }
        let first = AttemptId { job: JobId(1), task: TASK_ONE, attempt: 0 };
        store.outputs.append(first, Stream::Stdout, 0, b"well").expect("stored");
        let small = store.outputs.small(first);
        let mut jobs = (1..=count).filter_map(|job| {
            let output = if job == 1 { small.clone() } else { None };
            Finished::of(&durable, JobId(job), output)
        });
        let over = |jobs| Over { jobs, ..Over::default() };
        let most = over(jobs.by_ref().take(CATALOG_ROWS_AT_ONCE).collect());
        let batches = VecDeque::from([(Seq(1), most), (Seq(2), over(jobs.collect()))]);
        (count, Work { batches, to: Seq(2), is_overrun: false, ends: false })
    }

    /// A thread's work on a catalog that fails so many times, to be done by hand.
    fn thread(store: &Store, fails: usize) -> (Thread, watch::Receiver<Seq>) {
        let (told, applied) = watch::channel(Seq(0));
        let applier = Applier { fails, ..Applier::new(store) };
        let queue = Arc::new(Queue::default());
        (Thread { store: store.clone(), applier, queue, told, complained: None }, applied)
    }

    // A catalog that cannot be written, when a batch is taken and once more: is it tried again until all is there, each job
    // with its output, and is nothing said to be applied, and no output let go, before it is?
    #[test]
    fn a_catalog_that_failed_is_tried_again() {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::memory(home.path(), StoreLimits::default()).expect("a store");
        let (mut thread, applied) = thread(&store, 2);
        let (count, work) = work_of(&store);
        thread.work(work);
        assert_eq!((*applied.borrow(), store.catalog.applied().expect("readable")), (Seq(2), Seq(2)));
        assert!(thread.complained.is_none(), "it is well again");
        for job in 1..=count {
            assert!(store.catalog.job(JobId(job)).expect("readable").is_some(), "job {job} is lost");
        }
        let small = store.catalog.output(JobId(1)).expect("readable").expect("it is there");
        assert_eq!(small.stdout, b"well");
        assert_eq!(store.outputs.used_bytes(), 0, "the catalog has it");
    }

    // The same when the hub ends meanwhile: is it given up, with nothing said to be applied and no output let go? The next
    // start takes it from the journal.
    #[test]
    fn a_catalog_that_fails_does_not_hold_up_the_end() {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::memory(home.path(), StoreLimits::default()).expect("a store");
        let (mut thread, applied) = thread(&store, usize::MAX);
        let (_, work) = work_of(&store);
        thread.queue.end();
        thread.work(work);
        assert_eq!((*applied.borrow(), store.catalog.applied().expect("readable")), (Seq(0), Seq(0)));
        assert_eq!(store.outputs.used_bytes(), 4);
    }
}
