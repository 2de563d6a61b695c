//! The life of a job: accepted, cancelled, ended, lost, forgotten.
//!
//! Called by [`super::Hub::step`]. Always true: every end goes through [`Hub::end_task`], every loss through
//! [`Hub::lose_attempt`]; both ignore what is not the current attempt.
//! Deliberately not here: where a task runs ([`super::placement`]), what lists show ([`super::view`]).

use super::accepted::Accepted;
use super::changes::{Loss, lost_too_often};
use super::effect::{Answer, Effect, Out, ToWorker};
use super::input::{Input, SessionId};
use super::job::Job;
use super::keys::too_many;
use super::nodes::names_few;
use super::record::{NewJob, Record};
use super::{Hub, Session, checked};
use crate::Now;
use crate::limits::{
    ENDED_BYTES_MAX, ENDED_JOBS_MAX, LIVE_BYTES_MAX, LIVE_JOBS_MAX, LIVE_TASKS_MAX, LOST_ATTEMPTS_MAX,
};
use essaim_proto::api::JobRerun;
use essaim_proto::hello::Role;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{Clamped, Isolation, JobSpec, JobState, Reason, TaskResult, Verdict};
use essaim_proto::link::{EndAck, EndAckMany, Ended, EndedMany, GivenBack, Progress, Stop};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId, KeyName, NodeName, Refusal, RefusalCode, SubmitKey, TaskId, TaskSet};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Length of the name that a job gets from its entry, in characters: as much as lists show.
const NAME_CHARS_MAX: usize = 200;

impl Hub {
    pub(super) fn submit(
        &mut self,
        now: Now,
        session: SessionId,
        request: u64,
        key: SubmitKey,
        spec: JobSpec,
        out: &mut Out,
    ) {
        // Until programs run behind walls, a submitter can do all that the hub's user can.
        let owner = match self.allowed(session, Role::Operator) {
            Ok((owner, _)) => owner,
            Err(refusal) => return out.effects.push(Effect::Refuse { session, request, refusal }),
        };
        if let Some(job) = self.submitted(&owner, key) {
            self.live.ephemeral.adopt(session, job);
            let clamped = self.durable.jobs.get(&job).map(|job| job.accepted.spec().clamped.clone());
            let answer = Answer::Submitted { job, repeated: true, clamped: clamped.unwrap_or_default() };
            return out.effects.push(Effect::Answer { session, request, answer });
        }
        match self.accept(now, session, owner, key, spec, out) {
            Err(refusal) => out.effects.push(Effect::Refuse { session, request, refusal }),
            Ok((job, clamped)) => {
                let answer = Answer::Submitted { job, repeated: false, clamped };
                out.effects.push(Effect::Answer { session, request, answer });
                if let Some(by) = self.doomed_by(job) {
                    // The same end as if that had happened a moment later.
                    return self.want_cancel(now, job, &by, out);
                }
                self.place(now, out);
                // What found a slot at once has said so.
                if self.durable.jobs.get(&job).is_some_and(|known| known.ready() == known.total()) {
                    self.job_changed(now, job, out);
                }
            }
        }
    }

    /// The job that the owner's Submit with this key made, listed or forgotten.
    fn submitted(&self, owner: &KeyName, key: SubmitKey) -> Option<JobId> {
        let listed = self.live.submits.get(&self.durable.jobs, owner, key);
        listed.or_else(|| self.durable.remembered.get(owner, key))
    }

    fn accept(
        &mut self,
        now: Now,
        session: SessionId,
        owner: KeyName,
        key: SubmitKey,
        mut spec: JobSpec,
        out: &mut Out,
    ) -> Result<(JobId, Vec<Clamped>), Refusal> {
        if self.live.draining {
            return Err(RefusalCode::ShuttingDown.into());
        }
        self.has_room()?;
        if self.durable.jobs.len() - self.live.ended.len() >= LIVE_JOBS_MAX {
            return Err(too_many("waiting jobs", LIVE_JOBS_MAX));
        }
        let tasks = spec.array.as_ref().map_or(1, |array| array.tasks.len());
        if self.durable.live_tasks as u64 + tasks > LIVE_TASKS_MAX {
            return Err(too_many("waiting tasks", LIVE_TASKS_MAX as usize));
        }
        if self.durable.live_bytes >= LIVE_BYTES_MAX {
            return Err(too_many("bytes of waiting jobs", LIVE_BYTES_MAX));
        }
        self.rule_limits(&mut spec)?;
        let program = self.table.resolve(&spec)?;
        checked::tasks(&spec)?;
        self.has_quota(&owner, tasks, &spec)?;
        self.check_possible(&spec, &program)?;
        self.check_after(&owner, session, &spec)?;
        self.check_notice(spec.notify.as_deref())?;
        if spec.name.is_empty() {
            let named = if program.entry.is_empty() { &spec.args[0] } else { &program.entry };
            spec.name = named.chars().take(NAME_CHARS_MAX).collect();
        }
        // What was found by extension is recorded by name: a table that changes later cannot change the job.
        spec.lang = program.lang;
        spec.entry = program.entry;
        let (ephemeral, clamped) = (spec.ephemeral, spec.clamped.clone());
        let job = JobId(self.durable.last_job.0 + 1);
        let spec = Arc::new(spec);
        let accepted = self.durable.kinds.share(Accepted::new(owner, key, &spec, now.unix_ms));
        self.note(Record::JobAccepted(NewJob { job, accepted: Arc::new(accepted), spec }), out);
        self.is_ready(job);
        if ephemeral {
            self.live.ephemeral.hold(session, job);
        }
        Ok((job, clamped))
    }

    /// May a job wait for these? They must be listed, and the submitter's own or an operator's business.
    fn check_after(&self, owner: &KeyName, session: SessionId, spec: &JobSpec) -> Result<(), Refusal> {
        for id in &spec.after {
            let Some(known) = self.durable.jobs.get(id) else {
                // How a forgotten job ended only the catalog knows.
                let why = format!("job {id} ended so long ago that nothing can wait for it any more");
                return Err(match *id <= self.durable.last_job && id.0 > 0 {
                    true => Refusal::new(RefusalCode::BadJob).with("field", "after").with("why", why),
                    false => Refusal::new(RefusalCode::NoSuchJob).with("job", id),
                });
            };
            if known.accepted.owner() != owner {
                self.allowed(session, Role::Operator)?;
            }
        }
        Ok(())
    }

    /// Who cancels a new job that waits for one that has not ended well.
    fn doomed_by(&self, id: JobId) -> Option<String> {
        let is_bad = |other: &&JobId| {
            let known = self.durable.jobs.get(other);
            known.is_some_and(|known| known.is_over() && known.state() != JobState::Done)
        };
        let bad = self.durable.jobs.get(&id)?.accepted.after().iter().find(is_bad)?;
        Some(format!("{AFTER_FAILED}{bad}"))
    }

    /// The job has ready tasks: they wait for a slot, or for other jobs.
    pub(super) fn is_ready(&mut self, id: JobId) {
        let Some(job) = self.durable.jobs.get(&id) else { return };
        if job.is_over() || job.ready() == 0 {
            return;
        }
        let awaited = self.durable.awaited(job);
        if awaited.is_empty() {
            return self.live.queue.insert(id, job);
        }
        for other in awaited {
            self.live.dependents.entry(other).or_default().insert(id);
        }
    }

    /// What a new job would be made of, if the session may submit it: the shell looks whether the files are there. Nobody
    /// else is told of a file that is not.
    pub fn submits<'a>(&'a self, input: &'a Input) -> Option<(SessionId, u64, Cow<'a, JobSpec>)> {
        let (session, request, key, spec) = match input {
            Input::Submit { session, request, key, spec } => (*session, *request, key, Cow::Borrowed(&**spec)),
            Input::Rerun { session, request, rerun } => {
                (*session, *request, &rerun.key, self.may_rerun(*session, rerun.job).ok()?.accepted.spec())
            }
            _ => return None,
        };
        let (owner, _) = self.allowed(session, Role::Operator).ok()?;
        // Submitted before: the answer is the first job, whatever has become of its files.
        self.submitted(&owner, *key).is_none().then_some((session, request, spec))
    }

    fn may_rerun(&self, session: SessionId, job: JobId) -> Result<&Job, Refusal> {
        let (key, role) = self.allowed(session, Role::User)?;
        let known = self.durable.jobs.get(&job);
        let known = known.ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        super::may_watch(known.accepted.owner().as_str(), &key, role)?;
        Ok(known)
    }

    /// Runs a job, or tasks of it, once more, as a new one. The shell has seen that its files are still there.
    pub(super) fn rerun(&mut self, now: Now, session: SessionId, request: u64, rerun: JobRerun, out: &mut Out) {
        let spec = self.may_rerun(session, rerun.job).map(|known| {
            let mut spec = JobSpec {
                after: Vec::new(),
                ephemeral: false,
                stdin: Default::default(),
                ..known.accepted.spec().into_owned()
            };
            if let (Some(array), Some(known)) = (&mut spec.array, &known.array) {
                let is_wanted = |task: &TaskId| {
                    let stands = rerun.states.is_empty()
                        || known.task_state(*task).is_some_and(|state| rerun.states.contains(&state));
                    stands && rerun.tasks.as_ref().is_none_or(|only| only.contains(*task))
                };
                array.tasks = known.ids.iter().filter(is_wanted).collect();
            }
            spec
        });
        match spec {
            Ok(spec) => self.submit(now, session, request, rerun.key, spec, out),
            Err(refusal) => out.effects.push(Effect::Refuse { session, request, refusal }),
        }
    }

    pub(super) fn cancel(
        &mut self,
        now: Now,
        session: SessionId,
        request: u64,
        job: JobId,
        tasks: Option<TaskSet>,
        out: &mut Out,
    ) {
        let checked = self.allowed(session, Role::User).and_then(|(key, role)| {
            let no_such = || Refusal::new(RefusalCode::NoSuchJob).with("job", job);
            let known = self.durable.jobs.get(&job).ok_or_else(no_such)?;
            if *known.accepted.owner() != key && role < Role::Operator {
                let refusal = Refusal::new(RefusalCode::NotAllowed);
                return Err(refusal.with("role", role.name()).with("needs", Role::Operator.name()));
            }
            if known.is_over() {
                let refusal = Refusal::new(RefusalCode::JobEnded);
                return Err(refusal.with("job", job).with("state", known.state().name()));
            }
            Ok(key)
        });
        match checked {
            Err(refusal) => out.effects.push(Effect::Refuse { session, request, refusal }),
            Ok(key) => {
                self.want_cancel_of(now, job, tasks.as_ref(), key.as_str(), out);
                out.effects.push(Effect::Answer { session, request, answer: Answer::Done });
            }
        }
    }

    pub(super) fn want_cancel(&mut self, now: Now, job: JobId, by: &str, out: &mut Out) {
        self.want_cancel_of(now, job, None, by, out);
    }

    /// Cancels: what waits ends now, what runs is stopped by its worker, what cannot be reached ends now as well and is
    /// killed when its worker comes back.
    fn want_cancel_of(&mut self, now: Now, id: JobId, only: Option<&TaskSet>, by: &str, out: &mut Out) {
        let Some(job) = self.durable.jobs.get(&id).filter(|job| !job.is_over()) else { return };
        let only = only.filter(|_| job.array.is_some());
        let is_wanted = |attempt: &AttemptId| only.is_none_or(|only| only.contains(attempt.task));
        let placed: Vec<AttemptId> = job.placements(id).map(|(attempt, _)| attempt).filter(is_wanted).collect();
        match only {
            None if job.cancel_by.is_none() => self.note(Record::CancelWanted { job: id, by: by.to_owned() }, out),
            Some(_) if !placed.is_empty() => {
                let tasks: TaskSet = placed.iter().map(|attempt| attempt.task).collect();
                for tasks in tasks.pieces() {
                    self.note(Record::TasksUnwanted { job: id, tasks, by: by.to_owned() }, out);
                }
            }
            _ => {}
        }
        self.cancel_ready(now, id, only, by, out);
        for attempt in placed {
            let node = self.live.attempts.get(&attempt).map(|held| held.node.clone());
            let Some(session) = node.and_then(|node| self.live.nodes.get(&node)?.session) else {
                let result = self.result_without_run(attempt, Verdict::Cancelled, cancelled_by(by));
                self.end_task(now, attempt, result, out);
                continue;
            };
            let held = self.live.attempts.get_mut(&attempt);
            let was_stopping = held.is_some_and(|held| std::mem::replace(&mut held.stopping, true));
            out.effects.push(Effect::Tell { session, message: ToWorker::Stop(Stop { attempt }) });
            if !was_stopping {
                self.job_changed(now, id, out);
            }
        }
        self.place(now, out);
    }

    /// Ends ready tasks that nobody wants any more.
    fn cancel_ready(&mut self, now: Now, id: JobId, only: Option<&TaskSet>, by: &str, out: &mut Out) {
        let Some(job) = self.durable.jobs.get(&id).filter(|job| job.ready() > 0) else { return };
        match &job.array {
            None => {
                let attempt = job.attempt_id(id);
                let result = self.result_without_run(attempt, Verdict::Cancelled, cancelled_by(by));
                self.end_task(now, attempt, result, out);
            }
            Some(array) => {
                let tasks = array.ready_among(only);
                if !tasks.is_empty() {
                    for tasks in tasks.pieces() {
                        let (by, at_ms) = (by.to_owned(), now.unix_ms);
                        self.note(Record::TasksCancelled { job: id, tasks, by, at_ms }, out);
                    }
                    self.tasks_ended(now, id, out);
                }
            }
        }
    }

    pub(super) fn progress(&mut self, now: Now, session: SessionId, progress: Progress, out: &mut Out) {
        let Some(node) = self.node_of(session) else { return };
        if self.sign_of_life(now, &node, out) {
            self.place(now, out);
        }
        let did_run = self.runs(progress.attempt.job);
        let is_his = |held: &&super::Held| held.node == node;
        let Some(held) = self.live.attempts.get(&progress.attempt).filter(is_his) else {
            self.live.late_messages += 1;
            return;
        };
        if (Some(progress.phase), progress.waiting_for_input) == (held.phase, held.waiting_for_input) {
            return; // Told again after a reconnect: nobody needs to hear it twice.
        }
        self.runs_now(progress.attempt, Some(progress.phase), progress.waiting_for_input);
        self.is_long(progress.attempt);
        if self.runs(progress.attempt.job) == did_run {
            self.publish(progress.attempt.job, out);
        } else {
            self.job_changed(now, progress.attempt.job, out);
        }
    }

    pub(super) fn ended(&mut self, now: Now, session: SessionId, ended: Ended, out: &mut Out) {
        let Some(node) = self.node_of(session) else { return };
        self.sign_of_life(now, &node, out);
        let Ended { attempt, mut result } = ended;
        let ack = Effect::Tell { session, message: ToWorker::EndAck(EndAck { attempt }) };
        if !self.is_held_by(attempt, &node) {
            // Cancelled meanwhile, or given to another: the worker may forget it, the record stands.
            self.live.late_messages += 1;
            return out.effects.push(ack);
        }
        if self.durable.jobs.get(&attempt.job).is_some_and(|job| job.array.is_some()) {
            self.live.pace.ended(attempt.job, result.wall_ms);
        }
        if self.judge(now, &node, attempt, &mut result, out) {
            result.attempt = attempt.attempt;
            result.node = node.to_string();
            self.end_task(now, attempt, result, out);
        }
        out.effects.push(ack);
        self.place(now, out);
    }

    pub(super) fn ended_many(&mut self, now: Now, session: SessionId, ended: EndedMany, out: &mut Out) {
        let Some(node) = self.node_of(session) else { return };
        self.sign_of_life(now, &node, out);
        let EndedMany { job, ends } = ended;
        let mut acks: BTreeMap<u32, Vec<TaskId>> = BTreeMap::new();
        let mut over = Vec::with_capacity(ends.len());
        for mut end in ends {
            let attempt = AttemptId { job, task: end.task, attempt: end.attempt };
            acks.entry(end.attempt).or_default().push(end.task);
            if !self.is_held_by(attempt, &node) {
                self.live.late_messages += 1;
                continue;
            }
            self.live.pace.ended(job, end.result.wall_ms);
            if self.judge(now, &node, attempt, &mut end.result, out) {
                self.release(now, attempt);
                end.result.attempt = attempt.attempt;
                // The record names it once.
                end.result.node = String::new();
                over.push(end);
            }
        }
        if !over.is_empty() {
            self.note(Record::TasksEnded { job, node, at_ms: now.unix_ms, ends: over }, out);
            self.tasks_ended(now, job, out);
        }
        let rising = |mut tasks: Vec<TaskId>| {
            tasks.sort_unstable();
            tasks.into_iter().collect()
        };
        let tasks = acks.into_iter().map(|(attempt, tasks)| (attempt, rising(tasks))).collect();
        let message = ToWorker::EndAckMany(EndAckMany { job, tasks });
        out.effects.push(Effect::Tell { session, message });
        self.place(now, out);
    }

    /// Tasks that a worker was asked for and had not started are ready again.
    pub(super) fn given_back(&mut self, now: Now, session: SessionId, given: &GivenBack, out: &mut Out) {
        let Some(node) = self.node_of(session) else { return };
        if let Err(refusal) = names_few(given.tasks_named()) {
            return out.effects.push(Effect::Refuse { session, request: 0, refusal });
        }
        self.sign_of_life(now, &node, out);
        for attempt in given.attempts() {
            if self.is_held_by(attempt, &node) {
                self.lose_attempt(now, attempt, Loss::Stopped, out);
            }
        }
        self.place(now, out);
    }

    fn is_held_by(&self, attempt: AttemptId, node: &NodeName) -> bool {
        self.live.attempts.get(&attempt).is_some_and(|held| held.node == *node)
    }

    /// What follows from a worker's word about an end. Says whether it is the task's end; else another try has been noted.
    fn judge(&mut self, now: Now, node: &NodeName, attempt: AttemptId, result: &mut TaskResult, out: &mut Out) -> bool {
        checked::result(result);
        let stops = self.stops(now, node, result, out);
        let cancel_by = self.durable.jobs.get(&attempt.job).and_then(|job| job.unwanted_by(attempt.task));
        match (result.verdict, cancel_by) {
            (Verdict::Cancelled, Some(by)) => result.reason = Some(cancelled_by(by)),
            // Its worker stops: another try, whoever's idea it was.
            (_, None) if stops => {
                self.lose_attempt(now, attempt, Loss::Stopped, out);
                return false;
            }
            // The worker gave it up and nobody had asked for that: another try, like a lost one.
            (Verdict::Cancelled | Verdict::Lost, None) => {
                self.lose_attempt(now, attempt, Loss::GivenBack, out);
                return false;
            }
            // The worker failed, not the program: another try, but the last one's reason stays.
            (Verdict::InternalError, None) if self.may_retry(attempt) => {
                self.lose_attempt(now, attempt, Loss::Failed, out);
                return false;
            }
            (verdict, None) if self.tries_again(attempt, verdict) => {
                self.release(now, attempt);
                let (attempt_no, node) = (attempt.attempt, node.to_string());
                let result = Box::new(TaskResult { attempt: attempt_no, node, ..std::mem::take(result) });
                self.note(Record::AttemptFailed { attempt, result }, out);
                self.is_ready(attempt.job);
                self.job_lost(now, attempt, Loss::Retried, out);
                return false;
            }
            _ => {}
        }
        true
    }

    /// Does the job ask for another try after this end of its program?
    fn tries_again(&self, attempt: AttemptId, verdict: Verdict) -> bool {
        let may_help = !matches!(
            verdict,
            Verdict::Ok | Verdict::Cancelled | Verdict::Rejected | Verdict::CompileError | Verdict::InternalError
        );
        let Some(job) = self.durable.jobs.get(&attempt.job).filter(|_| may_help) else { return false };
        job.tries(attempt.task).failed < job.accepted.retry()
    }

    /// Did the worker give the attempt up because it stops, or finishes and takes nothing new?
    fn stops(&mut self, now: Now, name: &NodeName, result: &TaskResult, out: &mut Out) -> bool {
        let Some(node) = self.live.nodes.get_mut(name) else { return false };
        let is_given_up = matches!(result.verdict, Verdict::Cancelled | Verdict::Lost | Verdict::InternalError);
        let says_so = result.reason.as_ref().is_some_and(|reason| reason.code == "worker_stopped");
        if is_given_up && says_so && node.state == NodeState::Online {
            // Its report is still on its way: nothing more is given to it, or it would come back at once, for ever.
            node.become_state(now, name, NodeState::Draining, Reason::new("draining"), out);
        }
        is_given_up && (says_so || (node.state == NodeState::Draining && result.verdict != Verdict::InternalError))
    }

    fn may_retry(&self, attempt: AttemptId) -> bool {
        let job = self.durable.jobs.get(&attempt.job);
        job.is_some_and(|j| !j.is_unwanted(attempt.task) && j.tries(attempt.task).lost + 1 < LOST_ATTEMPTS_MAX)
    }

    /// An attempt is gone with its worker: its task is ready again, or over when that happened too often.
    pub(super) fn lose_attempt(&mut self, now: Now, attempt: AttemptId, loss: Loss, out: &mut Out) {
        let Some(job) = self.durable.jobs.get(&attempt.job).filter(|job| job.is_current(attempt)) else { return };
        if let Some(by) = job.unwanted_by(attempt.task).map(str::to_owned) {
            let result = self.result_without_run(attempt, Verdict::Cancelled, cancelled_by(&by));
            return self.end_task(now, attempt, result, out);
        }
        if loss.counts() && !self.may_retry(attempt) {
            let result = self.result_without_run(attempt, Verdict::Lost, lost_too_often());
            return self.end_task(now, attempt, result, out);
        }
        let is_array = job.array.is_some();
        if let Some(node) = self.release(now, attempt) {
            self.live.avoid.insert(attempt.job, node);
        }
        let given_back = !loss.counts();
        let AttemptId { job, task, attempt: number } = attempt;
        let record = match is_array {
            true => Record::TasksLost { job, tasks: TaskSet::one(task), attempt: number, given_back },
            false => Record::AttemptLost { attempt, given_back },
        };
        self.note(record, out);
        self.is_ready(job);
        self.job_lost(now, attempt, loss, out);
    }

    /// The one way in which a single task ends.
    pub(super) fn end_task(&mut self, now: Now, attempt: AttemptId, result: TaskResult, out: &mut Out) {
        self.release(now, attempt);
        let record = Record::TaskEnded { attempt, result: Box::new(result), at_ms: now.unix_ms, output: None };
        self.note(record, out);
        self.tasks_ended(now, attempt.job, out);
    }

    /// Tasks of the job have ended: is it over, and who waited for that?
    fn tasks_ended(&mut self, now: Now, id: JobId, out: &mut Out) {
        let Some(job) = self.durable.jobs.get(&id) else { return };
        if job.ready() == 0 {
            self.no_longer_ready(id);
        }
        let Some(job) = self.durable.jobs.get(&id).filter(|job| job.is_over()) else {
            return self.job_changed(now, id, out);
        };
        let state = job.state();
        self.live.avoid.remove(&id);
        self.live.running.remove(&id);
        self.live.pace.forget(id);
        self.live.ephemeral.ended(id);
        self.job_changed(now, id, out);
        self.live.ended.push_back(id);
        for dependent in self.live.dependents.remove(&id).unwrap_or_default() {
            match state {
                JobState::Done => {
                    self.is_ready(dependent);
                    // It waits as before, for something else.
                    self.publish(dependent, out);
                }
                // Not here: a long chain of jobs would be as many calls within each other.
                _ => self.live.doomed.push_back((dependent, format!("{AFTER_FAILED}{id}"))),
            }
        }
        self.notice_is_due(now, id, out);
        self.forget_oldest(now, out);
    }

    /// Cancels what waited for jobs that have not ended well in this step, and what waited for that.
    pub(super) fn cancel_doomed(&mut self, now: Now, out: &mut Out) {
        while let Some((job, by)) = self.live.doomed.pop_front() {
            self.want_cancel(now, job, &by, out);
        }
    }

    fn forget_oldest(&mut self, now: Now, out: &mut Out) {
        while self.live.ended.len() > ENDED_JOBS_MAX || self.durable.ended_bytes > ENDED_BYTES_MAX {
            let Some(job) = self.live.ended.pop_front() else { break };
            self.give_up_notice(now, job, out);
            self.note(Record::JobForgotten { job }, out);
        }
    }

    /// Takes a job without ready tasks out of the queue, and out of what waits for others.
    pub(super) fn no_longer_ready(&mut self, id: JobId) {
        let Some(job) = self.durable.jobs.get(&id) else { return };
        self.live.queue.remove(id, job);
        for other in job.accepted.after() {
            if let Some(waiting) = self.live.dependents.get_mut(other) {
                waiting.remove(&id);
                if waiting.is_empty() {
                    self.live.dependents.remove(other);
                }
            }
        }
    }

    /// Ends the ready tasks of a job that cannot be started as it was asked for.
    pub(super) fn reject_ready(&mut self, now: Now, id: JobId, refusal: Refusal, out: &mut Out) {
        let Some(job) = self.durable.jobs.get(&id) else { return };
        let tasks = job.array.as_ref().map_or_else(|| TaskSet::one(TASK_ONE), |array| array.ready_among(None));
        let attempts: Vec<AttemptId> =
            tasks.iter().map(|task| AttemptId { job: id, task, attempt: job.tries(task).attempt }).collect();
        attempts.into_iter().for_each(|attempt| self.reject(now, attempt, refusal.clone(), out));
    }

    /// Ends a task that cannot be started as it was asked for.
    pub(super) fn reject(&mut self, now: Now, attempt: AttemptId, refusal: Refusal, out: &mut Out) {
        let reason = Reason { code: refusal.code.name().to_owned(), params: refusal.params };
        let result = self.result_without_run(attempt, Verdict::Rejected, reason);
        self.end_task(now, attempt, result, out);
    }

    fn result_without_run(&self, attempt: AttemptId, verdict: Verdict, reason: Reason) -> TaskResult {
        let node = self.live.attempts.get(&attempt).map(|held| held.node.to_string()).unwrap_or_default();
        TaskResult {
            verdict,
            attempt: attempt.attempt,
            node,
            isolation: Isolation::None,
            reason: Some(reason),
            ..TaskResult::default()
        }
    }

    /// The node behind a worker's session.
    pub(super) fn node_of(&self, session: SessionId) -> Option<NodeName> {
        match self.live.sessions.get(&session) {
            Some(Session::Worker { node }) => Some(node.clone()),
            _ => None,
        }
    }

    /// Cancels the jobs that were to live no longer than their client's session.
    pub(super) fn cancel_ephemeral(&mut self, now: Now, session: SessionId, out: &mut Out) {
        for job in self.live.ephemeral.take_of(session) {
            self.want_cancel(now, job, "client_gone", out);
        }
    }

    /// The same after a restart of the hub, for those whose clients did not come back.
    pub(super) fn cancel_orphans(&mut self, now: Now, out: &mut Out) {
        for job in self.live.ephemeral.take_overdue(now) {
            self.want_cancel(now, job, "client_gone", out);
        }
    }
}

/// Who cancels a job when one that it waits for does not end well. No key is called so.
const AFTER_FAILED: &str = "after:";

/// Why a task was cancelled, from who wanted that in its record.
pub fn cancelled_by(who: &str) -> Reason {
    match who.strip_prefix(AFTER_FAILED) {
        Some(job) => Reason::new("after_failed").with("job", job),
        None if who == "client_gone" => Reason::new("client_gone"),
        None => Reason::new("cancelled_by").with("who", who),
    }
}
