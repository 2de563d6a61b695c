//! The judge: sees all that becomes durable, all that is said and all that runs, and says what must not be.
//!
//! Called by the models at the moment when something happens; it decides nothing in the run. Always true: `truth` is what
//! the rows on the disk say, applied one by one; each program that runs has a number, and the bytes that it prints depend
//! on that number, so that a byte of another run is seen.
//! Deliberately not here: what should happen instead (`hub_scenarios`), checks inside the hub (`Hub::check`).

use crate::store::Bytes;
use essaim_core::hub::{Durable, Job, NewJob, Record};
use essaim_core::limits::LOST_ATTEMPTS_MAX;
use essaim_proto::api::{JobEvent, StateChange};
use essaim_proto::job::{JobState, TaskResult, TaskState, Verdict};
use essaim_proto::link::TaskEnd;
use essaim_proto::node::{NodeState, NodeView};
use essaim_proto::{AttemptId, JobId, SubmitKey, TaskId, TaskSet};
use std::collections::{BTreeMap, BTreeSet};

/// A program that ran.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) attempt: AttemptId,
    pub(crate) worker: usize,
    pub(crate) is_alive: bool,
    /// How its last phase ended, and what it had printed.
    pub(crate) end: Option<(Verdict, [u64; 2])>,
}

/// What is known from outside.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    pub(crate) finding: Option<String>,
    /// What is on the disk.
    pub(crate) truth: Durable,
    runs: Vec<Run>,
    run_of: BTreeMap<AttemptId, u64>,
    /// What was last told of each node and job by the hub's present state.
    nodes: BTreeMap<String, (NodeState, String)>,
    /// Nodes and jobs whose latest change may not have been told, because the store did not take its batch.
    loose_nodes: BTreeSet<String>,
    loose_jobs: BTreeSet<JobId>,
    jobs: BTreeMap<JobId, (JobState, u32, Option<String>, Option<String>)>,
    /// How each task ended.
    ends: BTreeMap<(JobId, TaskId), TaskResult>,
    /// What a worker has given back and was not told to start again.
    gave_back: BTreeSet<(usize, AttemptId)>,
    /// What clients were told.
    promised: BTreeMap<SubmitKey, JobId>,
    pub(crate) frames: u64,
}

/// What the program number `run` writes at `offset`.
pub(crate) fn byte(run: u64, stream: usize, offset: u64) -> u8 {
    (run.wrapping_mul(37) ^ (stream as u64 * 101) ^ offset.wrapping_mul(11)) as u8
}

impl Judge {
    /// The first finding counts.
    pub(crate) fn find(&mut self, text: String) {
        self.finding.get_or_insert(text);
    }

    fn expect(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.find(text());
        }
    }

    // Records.

    /// A row is on the disk.
    pub(crate) fn persisted(&mut self, row: &[Record]) {
        for record in row {
            if let Err(why) = self.fits(record) {
                self.find(format!("{why}: {record:?}"));
            }
            self.note_ends(record);
            self.truth.apply(record);
        }
    }

    fn note_ends(&mut self, record: &Record) {
        let mut ends = Vec::new();
        match record {
            Record::TaskEnded { attempt, result, .. } => ends.push((attempt.job, attempt.task, (**result).clone())),
            Record::TasksEnded { job, ends: many, .. } => {
                let result = |end: &TaskEnd| TaskResult { attempt: end.attempt, ..end.result.clone() };
                ends.extend(many.iter().map(|end| (*job, end.task, result(end))));
            }
            Record::TasksCancelled { job, tasks, .. } => {
                let result = TaskResult { verdict: Verdict::Cancelled, ..TaskResult::default() };
                ends.extend(tasks.iter().map(|task| (*job, task, result.clone())));
            }
            _ => {}
        }
        for (job, task, result) in ends {
            if self.ends.insert((job, task), result).is_some() {
                self.find(format!("task {task} of job {job} ended twice"));
            }
        }
    }

    /// Does the record follow from those before it?
    fn fits(&self, record: &Record) -> Result<(), &'static str> {
        let is = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
        let job = |id: &JobId| self.truth.jobs.get(id).ok_or("a record of an unknown job");
        let each = |job: &JobId, tasks: &TaskSet, attempt: u32| {
            tasks.iter().map(|task| AttemptId { job: *job, task, attempt }).collect::<Vec<AttemptId>>()
        };
        match record {
            Record::JobAccepted(NewJob { job, accepted, .. }) => {
                is(job.0 == self.truth.last_job.0 + 1, "the number of a new job is not the next one")?;
                let is_same =
                    |known: &Job| (known.accepted.owner(), known.accepted.key) == (accepted.owner(), accepted.key);
                is(!self.truth.jobs.values().any(is_same), "a second job for one submit key")
            }
            Record::TaskPlaced { attempt, .. } => self.may_be_placed(*attempt),
            Record::TasksPlaced { job, tasks, attempt, .. } => {
                each(job, tasks, *attempt).into_iter().try_for_each(|attempt| self.may_be_placed(attempt))
            }
            Record::AttemptLost { attempt, .. } => self.may_be_gone(*attempt),
            Record::TasksLost { job, tasks, attempt, .. } => {
                each(job, tasks, *attempt).into_iter().try_for_each(|attempt| self.may_be_gone(attempt))
            }
            Record::AttemptFailed { attempt, result } => {
                self.may_be_gone(*attempt)?;
                let known = job(&attempt.job)?;
                is(known.tries(attempt.task).failed < known.accepted.spec().retry, "a task is tried too often")?;
                is(known.unwanted_by(attempt.task).is_none(), "what nobody wants is tried again")?;
                let run = self.run(result.memory_peak_bytes);
                is(run.is_some_and(|run| run.attempt == *attempt), "a failure of another attempt was recorded")
            }
            Record::CancelWanted { job: id, .. } => is(!job(id)?.state().is_over(), "a job that is over is cancelled"),
            Record::TasksUnwanted { job: id, tasks, .. } => {
                let known = job(id)?;
                let is_live = |task| known.task_state(task).is_some_and(|state| !state.is_over());
                is(tasks.iter().all(is_live), "a task that is over is cancelled")
            }
            Record::TaskEnded { attempt, result, .. } => self.may_end(*attempt, result),
            Record::TasksEnded { job, node, ends, .. } => ends.iter().try_for_each(|end| {
                let attempt = AttemptId { job: *job, task: end.task, attempt: end.attempt };
                let placed = self.truth.jobs.get(job).and_then(|job| job.placed(end.task));
                is(placed.is_some_and(|(on, _)| on == node), "a task ended where it was not")?;
                let printed = [end.result.stdout_bytes, end.result.stderr_bytes];
                let sent = [end.stdout.len() as u64, end.stderr.len() as u64];
                is(printed == sent, "an end in a batch comes without all of its output")?;
                self.may_end(attempt, &end.result)
            }),
            Record::TasksCancelled { job: id, tasks, .. } => {
                let known = job(id)?;
                let is_ready = |task| known.task_state(task) == Some(TaskState::Ready);
                is(tasks.iter().all(is_ready), "a task was cancelled at once that is not ready")
            }
            Record::JobForgotten { job: id } => is(job(id)?.state().is_over(), "a job that is not over was forgotten"),
            _ => Ok(()),
        }
    }

    fn may_be_placed(&self, attempt: AttemptId) -> Result<(), &'static str> {
        let job = self.truth.jobs.get(&attempt.job).ok_or("an unknown job was placed")?;
        let is = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
        let state = job.task_state(attempt.task).ok_or("a task was placed that is none")?;
        is(!state.is_over(), "a task that is over was placed")?;
        is(job.placed(attempt.task).is_none(), "a second attempt beside one that is not lost")?;
        is(self.truth.awaited(job).is_empty(), "a job was placed that waits for another")?;
        is(attempt.attempt == job.tries(attempt.task).attempt + 1, "an attempt's number is not the next one")
    }

    fn may_be_gone(&self, attempt: AttemptId) -> Result<(), &'static str> {
        let job = self.truth.jobs.get(&attempt.job).ok_or("an attempt of an unknown job is gone")?;
        let is_held = job.placed(attempt.task).is_some() && job.tries(attempt.task).attempt == attempt.attempt;
        if is_held { Ok(()) } else { Err("an attempt was lost that nobody holds") }
    }

    fn may_end(&self, attempt: AttemptId, result: &TaskResult) -> Result<(), &'static str> {
        let job = self.truth.jobs.get(&attempt.job).ok_or("a task of an unknown job ended")?;
        let is = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
        let state = job.task_state(attempt.task).ok_or("a task ended that is none")?;
        is(!state.is_over(), "a task ended twice")?;
        let tries = job.tries(attempt.task);
        is(tries.attempt == attempt.attempt, "an attempt ended a task that it does not hold")?;
        let cancelled = job.unwanted_by(attempt.task).is_some();
        let is_last = cancelled || result.verdict != Verdict::RuntimeError || tries.failed >= job.accepted.spec().retry;
        is(is_last, "a task failed that was to be tried again")?;
        self.is_justified(attempt, result, tries.lost, cancelled)
    }

    fn is_justified(
        &self,
        attempt: AttemptId,
        result: &TaskResult,
        lost: u32,
        cancelled: bool,
    ) -> Result<(), &'static str> {
        let run = self.run(result.memory_peak_bytes);
        let is = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
        if let Some(run) = run {
            is(run.attempt == attempt, "a result of another attempt was recorded")?;
            let printed = [result.stdout_bytes, result.stderr_bytes];
            is(run.end.is_some_and(|(_, lengths)| lengths == printed), "a result counts other bytes than its run")?;
        }
        match result.verdict {
            Verdict::Cancelled => is(cancelled, "a job ended as cancelled that nobody had cancelled"),
            Verdict::Lost => is(lost + 1 >= LOST_ATTEMPTS_MAX, "a job ended as lost too early"),
            Verdict::InternalError => Ok(()),
            Verdict::Rejected => Err("a job was rejected that could be started"),
            verdict => {
                let same = run.and_then(|run| run.end).is_some_and(|(how, _)| how == verdict);
                is(same, "a result was recorded that no run had")
            }
        }
    }

    // Programs.

    fn run(&self, number: u64) -> Option<&Run> {
        self.runs.get((number as usize).checked_sub(1)?)
    }

    /// A program of an attempt starts for the first time; its number.
    pub(crate) fn launched(&mut self, attempt: AttemptId, worker: usize) -> u64 {
        if let Some(before) = self.run_of.get(&attempt).and_then(|run| self.run(*run)) {
            let Run { worker: first, is_alive, end, .. } = before;
            let before = format!("before on worker {first}, alive: {is_alive}, {end:?}");
            self.find(format!("attempt {attempt} runs a second time, on worker {worker}; {before}"));
        }
        // One that is recorded as lost may start late: a worker that slept finds the word in its buffer.
        let job = self.truth.jobs.get(&attempt.job);
        let is_lost = job.is_some_and(|job| job.tries(attempt.task).attempt > attempt.attempt);
        let over = self.ends.get(&(attempt.job, attempt.task)).cloned();
        if self.gave_back.contains(&(worker, attempt)) {
            self.find(format!("worker {worker} runs attempt {attempt}, which it had given back"));
        }
        if let Some(result) = over.filter(|result| !is_lost && result.memory_peak_bytes != 0) {
            let text = format!("attempt {attempt} was started after the job had run to its end: {result:?}");
            self.find(text);
        }
        self.runs.push(Run { attempt, worker, is_alive: true, end: None });
        let number = self.runs.len() as u64;
        self.run_of.insert(attempt, number);
        number
    }

    /// A phase of it runs.
    pub(crate) fn lives(&mut self, number: u64) {
        if let Some(run) = (number as usize).checked_sub(1).and_then(|at| self.runs.get_mut(at)) {
            run.is_alive = true;
        }
    }

    /// Its tree is dead; with an end if somebody can tell of it.
    pub(crate) fn dead(&mut self, number: u64, end: Option<(Verdict, [u64; 2])>) {
        if let Some(run) = (number as usize).checked_sub(1).and_then(|at| self.runs.get_mut(at)) {
            run.is_alive = false;
            run.end = end;
        }
    }

    pub(crate) fn alive(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.is_alive)
    }

    /// Bytes that are said to be the attempt's.
    pub(crate) fn bytes(&mut self, whose: &str, attempt: AttemptId, stream: usize, offset: u64, bytes: &[u8]) {
        let Some(run) = self.run_of.get(&attempt).copied() else {
            return self.find(format!("{whose}: output of attempt {attempt}, which never ran"));
        };
        let right = (offset..).zip(bytes).all(|(at, found)| *found == byte(run, stream, at));
        self.expect(right, || format!("{whose}: wrong bytes of attempt {attempt}, stream {stream}, from {offset}"));
    }

    // Words.

    /// A client hears that its job is recorded.
    pub(crate) fn submitted(&mut self, key: SubmitKey, job: JobId) {
        let before = *self.promised.entry(key).or_insert(job);
        self.expect(before == job, || format!("one submit, two jobs: {before} and {job}"));
        let is_there = self.truth.jobs.get(&job).is_some_and(|known| known.accepted.key == key);
        self.expect(is_there, || format!("job {job} is said to be recorded and is not"));
    }

    /// Who watches all states hears of a change.
    pub(crate) fn changed(&mut self, change: &StateChange) {
        if let Some(node) = &change.node {
            let code = node.reason.as_ref().map(|reason| reason.code.clone()).unwrap_or_default();
            let now = (node.state, code);
            let was = self.nodes.insert(node.name.clone(), now.clone());
            let follows = was.as_ref().map_or(NodeState::Offline, |(state, _)| *state) == node.was;
            let fits = self.loose_nodes.remove(&node.name) || follows && was != Some(now);
            self.expect(fits, || format!("a change of a node does not follow from {was:?}: {node:?}"));
        }
        if let Some(job) = &change.job {
            let is_over = self.truth.jobs.get(&job.job).is_some_and(|known| known.state().is_over());
            self.expect(is_over || !job.state.is_over(), || format!("a change of a job is not on the disk: {job:?}"));
            let code = job.reason.as_ref().map(|reason| reason.code.clone());
            let now = (job.state, job.attempt, job.node.clone(), code);
            let was = self.jobs.insert(job.job, now.clone());
            let fits = self.loose_jobs.remove(&job.job)
                || was.as_ref().is_none_or(|was| !was.0.is_over() && was.1 <= job.attempt && *was != now);
            self.expect(fits, || format!("a change of a job does not follow from {was:?}: {job:?}"));
        }
    }

    /// A new process: who watched the old one lists again.
    pub(crate) fn forget_changes(&mut self) {
        self.nodes.clear();
        self.jobs.clear();
        self.loose_nodes.clear();
        self.loose_jobs.clear();
    }

    /// The store did not take something: the state is taken up anew, and those who listen stay.
    pub(crate) fn start_over(&mut self, nodes: impl Iterator<Item = String>) {
        self.loose_nodes = nodes.collect();
        self.loose_jobs = self.jobs.keys().copied().collect();
    }

    /// Whoever has listened to all changes knows what a list says.
    pub(crate) fn knows(&mut self, nodes: &[NodeView]) {
        for node in nodes {
            let told = self.nodes.get(&node.name).map_or(NodeState::Offline, |(state, _)| *state);
            self.expect(told == node.state, || {
                format!("{told:?} was told of node {}, a list says {:?}", node.name, node.state)
            });
        }
        let is_wrong = |id: &JobId, job: &Job| self.jobs.get(id).is_some_and(|told| told.0 != job.state());
        let wrong = self.truth.jobs.iter().find(|(id, job)| is_wrong(id, job)).map(|(id, job)| (id, job.state()));
        if let Some((id, state)) = wrong {
            self.find(format!("{:?} was told of job {id}, it is {state:?}", self.jobs.get(&id)));
        }
    }

    /// The hub (re)starts with what it read.
    pub(crate) fn replayed(&mut self, durable: &Durable) {
        self.expect(*durable == self.truth, || "a replay differs from what was recorded".to_owned());
        let gone = self
            .promised
            .iter()
            .find(|(key, job)| durable.jobs.get(job).is_none_or(|known| known.accepted.key != **key));
        if let Some((_, job)) = gone {
            let text = format!("job {job} was accepted and is gone");
            self.find(text);
        }
    }

    /// The output of an attempt that ended by itself is complete on the disk.
    pub(crate) fn complete(&mut self, attempt: AttemptId, stored: Option<&Bytes>) {
        let end = self.ends.get(&(attempt.job, attempt.task)).filter(|result| result.attempt == attempt.attempt);
        let Some(result) = end.filter(|result| result.memory_peak_bytes != 0).cloned() else { return };
        let lengths = stored.map_or([0, 0], |bytes| bytes.each_ref().map(|bytes| bytes.len() as u64));
        let counted = [result.stdout_bytes, result.stderr_bytes];
        self.expect(lengths == counted, || {
            format!("attempt {attempt} counts {counted:?} bytes of output, the disk has {lengths:?}")
        });
        for (stream, bytes) in stored.into_iter().flatten().enumerate() {
            self.bytes("the disk", attempt, stream, 0, bytes);
        }
    }

    // Arrays.

    /// The attempts that ended tasks.
    pub(crate) fn ended_attempts(&self) -> Vec<AttemptId> {
        let attempt = |((job, task), result): (&(JobId, TaskId), &TaskResult)| AttemptId {
            job: *job,
            task: *task,
            attempt: result.attempt,
        };
        self.ends.iter().map(attempt).collect()
    }

    /// A worker gives back what it has not started.
    pub(crate) fn gives_back(&mut self, worker: usize, attempt: AttemptId) {
        if self.run_of.contains_key(&attempt) {
            self.find(format!("worker {worker} gives attempt {attempt} back, which ran"));
        }
        self.gave_back.insert((worker, attempt));
    }

    /// It is told to start it, again or for the first time.
    pub(crate) fn told_to_start(&mut self, worker: usize, attempt: AttemptId) {
        self.gave_back.remove(&(worker, attempt));
    }

    fn ends_of(&self, job: JobId) -> [u64; 3] {
        let mut ends = [0; 3];
        for (_, result) in self.ends.range((job, TaskId(0))..=(job, TaskId(u32::MAX))) {
            let at = [TaskState::Done, TaskState::Failed, TaskState::Cancelled];
            let at = at.iter().position(|state| *state == result.verdict.task_state());
            ends[at.unwrap_or(1)] += 1;
        }
        ends
    }

    /// Who watches an array hears of no end that is not recorded, and of all when it is over.
    pub(crate) fn counted(&mut self, event: &JobEvent) {
        let Some(counts) = event.counts else { return };
        let (told, known) = ([counts.done, counts.failed, counts.cancelled], self.ends_of(event.job));
        let total = self.truth.jobs.get(&event.job).map_or(0, |job| u64::from(job.total()));
        let adds_up = counts.waiting + counts.running + told.iter().sum::<u64>() == total && counts.total == total;
        self.expect(adds_up, || format!("the counts of job {} do not add up to {total}: {counts:?}", event.job));
        let fits = if event.last { told == known } else { told.iter().zip(known).all(|(told, known)| *told <= known) };
        self.expect(fits, || format!("job {} counts {told:?}, {known:?} are recorded", event.job));
    }

    /// What arrays count is what was recorded, task by task.
    pub(crate) fn all_counted(&mut self) {
        let arrays = self.truth.jobs.iter().filter_map(|(id, job)| Some((id, job.array.as_ref()?.ends())));
        let wrong = arrays.map(|(id, ends)| (id, ends.map(u64::from), self.ends_of(id))).find(|(_, a, b)| a != b);
        if let Some((id, counts, ends)) = wrong {
            self.find(format!("job {id} counts {counts:?}, {ends:?} are recorded"));
        }
    }
}
