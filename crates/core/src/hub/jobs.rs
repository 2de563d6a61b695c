//! The life of a job: accepted, cancelled, ended, lost, forgotten.
//!
//! Called by [`super::Hub::step`]. Always true: every end goes through [`Hub::end_task`], every loss through
//! [`Hub::lose_attempt`]; both ignore what is not the current attempt.
//! Deliberately not here: where a task runs ([`super::placement`]), what lists show ([`super::view`]).

use super::changes::{Loss, lost_too_often};
use super::effect::{Answer, Effect, Out, ToWorker};
use super::input::SessionId;
use super::keys::too_many;
use super::placement::Class;
use super::record::Record;
use super::{Hub, Session, checked};
use crate::Now;
use crate::limits::{ENDED_BYTES_MAX, ENDED_JOBS_MAX, LIVE_BYTES_MAX, LIVE_TASKS_MAX, LOST_ATTEMPTS_MAX};
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, Reason, TaskResult, Verdict};
use essaim_proto::link::{EndAck, Ended, Progress, Stop};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId, KeyName, NodeName, Refusal, RefusalCode, SubmitKey};
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
        if let Some(job) = self.durable.submitted(&owner, key) {
            self.live.ephemeral.adopt(session, job);
            let answer = Answer::Submitted { job, repeated: true };
            return out.effects.push(Effect::Answer { session, request, answer });
        }
        match self.accept(now, session, owner, key, spec, out) {
            Err(refusal) => out.effects.push(Effect::Refuse { session, request, refusal }),
            Ok(job) => {
                let answer = Answer::Submitted { job, repeated: false };
                out.effects.push(Effect::Answer { session, request, answer });
                self.place(now, out);
                // What found a slot at once has said so.
                if self.durable.jobs.get(&job).is_some_and(|known| known.task.attempt == 0) {
                    self.job_changed(now, job, out);
                }
            }
        }
    }

    fn accept(
        &mut self,
        now: Now,
        session: SessionId,
        owner: KeyName,
        key: SubmitKey,
        mut spec: JobSpec,
        out: &mut Out,
    ) -> Result<JobId, Refusal> {
        if self.live.draining {
            return Err(RefusalCode::ShuttingDown.into());
        }
        self.has_room()?;
        if self.durable.live_tasks >= LIVE_TASKS_MAX {
            return Err(too_many("waiting jobs", LIVE_TASKS_MAX));
        }
        if self.durable.live_bytes >= LIVE_BYTES_MAX {
            return Err(too_many("bytes of waiting jobs", LIVE_BYTES_MAX));
        }
        let program = self.table.resolve(&spec)?;
        self.check_possible(&spec, &program)?;
        if spec.name.is_empty() {
            let named = if program.entry.is_empty() { &spec.args[0] } else { &program.entry };
            spec.name = named.chars().take(NAME_CHARS_MAX).collect();
        }
        // What was found by extension is recorded by name: a table that changes later cannot change the job.
        spec.lang = program.lang;
        spec.entry = program.entry;
        let ephemeral = spec.ephemeral;
        let job = JobId(self.durable.last_job.0 + 1);
        let record = Record::JobAccepted { job, owner, key, spec: Arc::new(spec), at_ms: now.unix_ms };
        self.note(record, out);
        let class = Class::of(&self.durable.jobs[&job]);
        self.live.ready.entry(class).or_default().insert(job);
        if ephemeral {
            self.live.ephemeral.hold(session, job);
        }
        Ok(job)
    }

    pub(super) fn cancel(&mut self, now: Now, session: SessionId, request: u64, job: JobId, out: &mut Out) {
        let checked = self.allowed(session, Role::User).and_then(|(key, role)| {
            let no_such = || Refusal::new(RefusalCode::NoSuchJob).with("job", job);
            let known = self.durable.jobs.get(&job).ok_or_else(no_such)?;
            if known.owner != key && role < Role::Operator {
                let refusal = Refusal::new(RefusalCode::NotAllowed);
                return Err(refusal.with("role", role.name()).with("needs", Role::Operator.name()));
            }
            if known.state().is_over() {
                let refusal = Refusal::new(RefusalCode::JobEnded);
                return Err(refusal.with("job", job).with("state", known.state().name()));
            }
            Ok(key)
        });
        match checked {
            Err(refusal) => out.effects.push(Effect::Refuse { session, request, refusal }),
            Ok(key) => {
                self.want_cancel(now, job, key.as_str(), out);
                out.effects.push(Effect::Answer { session, request, answer: Answer::Done });
            }
        }
    }

    /// Cancels: what waits ends now, what runs is stopped by its worker, what cannot be reached ends now as well and is
    /// killed when its worker comes back.
    pub(super) fn want_cancel(&mut self, now: Now, job: JobId, by: &str, out: &mut Out) {
        let Some(known) = self.durable.jobs.get(&job) else { return };
        if known.state().is_over() {
            return;
        }
        let attempt = known.attempt_id(job);
        if known.cancel_by.is_none() {
            self.note(Record::CancelWanted { job, by: by.to_owned() }, out);
        }
        let node = self.live.attempts.get(&attempt).map(|held| held.node.clone());
        let session = node.and_then(|node| self.live.nodes.get(&node)?.session);
        match session {
            Some(session) => {
                let held = self.live.attempts.get_mut(&attempt);
                let was_stopping = held.is_some_and(|held| std::mem::replace(&mut held.stopping, true));
                out.effects.push(Effect::Tell { session, message: ToWorker::Stop(Stop { attempt }) });
                if !was_stopping {
                    self.job_changed(now, job, out);
                }
            }
            None => {
                let result = self.result_without_run(attempt, Verdict::Cancelled, cancelled_by(by));
                self.end_task(now, attempt, result, out);
            }
        }
        self.place(now, out);
    }

    pub(super) fn progress(&mut self, now: Now, session: SessionId, progress: Progress, out: &mut Out) {
        let Some(node) = self.node_of(session) else { return };
        if self.sign_of_life(now, &node, out) {
            self.place(now, out);
        }
        let did_run = self.runs(progress.attempt.job);
        let is_his = |held: &&mut super::Held| held.node == node;
        let Some(held) = self.live.attempts.get_mut(&progress.attempt).filter(is_his) else {
            self.live.late_messages += 1;
            return;
        };
        let said = (Some(progress.phase), progress.waiting_for_input);
        if said == (held.phase, held.waiting_for_input) {
            return; // Told again after a reconnect: nobody needs to hear it twice.
        }
        (held.phase, held.waiting_for_input) = said;
        if self.runs(progress.attempt.job) == did_run {
            self.publish(progress.attempt.job, out);
        } else {
            self.job_changed(now, progress.attempt.job, out);
        }
    }

    pub(super) fn ended(&mut self, now: Now, session: SessionId, ended: Ended, out: &mut Out) {
        let Some(node) = self.node_of(session) else { return };
        self.sign_of_life(now, &node, out);
        let Ended { attempt, result } = ended;
        let ack = Effect::Tell { session, message: ToWorker::EndAck(EndAck { attempt }) };
        let is_his = self.live.attempts.get(&attempt).is_some_and(|held| held.node == node);
        if !is_his {
            // Cancelled meanwhile, or given to another: the worker may forget it, the record stands.
            self.live.late_messages += 1;
            return out.effects.push(ack);
        }
        let mut result = checked::result(result);
        result.attempt = attempt.attempt;
        result.node = node.to_string();
        let stops = self.stops(now, &node, &result, out);
        let cancel_by = self.durable.jobs.get(&attempt.job).and_then(|job| job.cancel_by.as_deref());
        match (result.verdict, cancel_by) {
            (Verdict::Cancelled, Some(by)) => {
                result.reason = Some(cancelled_by(by));
                self.end_task(now, attempt, result, out);
            }
            // Its worker stops: another try, whoever's idea it was.
            (_, None) if stops => self.lose_attempt(now, attempt, Loss::Stopped, out),
            // The worker gave it up and nobody had asked for that: another try, like a lost one.
            (Verdict::Cancelled | Verdict::Lost, None) => self.lose_attempt(now, attempt, Loss::GivenBack, out),
            // The worker failed, not the program: another try, but the last one's reason stays.
            (Verdict::InternalError, None) if self.may_retry(attempt.job) => {
                self.lose_attempt(now, attempt, Loss::Failed, out);
            }
            _ => self.end_task(now, attempt, result, out),
        }
        out.effects.push(ack);
        self.place(now, out);
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

    fn may_retry(&self, job: JobId) -> bool {
        self.durable.jobs.get(&job).is_some_and(|j| j.cancel_by.is_none() && j.task.lost + 1 < LOST_ATTEMPTS_MAX)
    }

    /// An attempt is gone with its worker: its task is ready again, or over when that happened too often.
    pub(super) fn lose_attempt(&mut self, now: Now, attempt: AttemptId, loss: Loss, out: &mut Out) {
        let Some(job) = self.durable.jobs.get(&attempt.job) else { return };
        if job.attempt_id(attempt.job) != attempt || job.task.state.is_over() {
            return;
        }
        if let Some(by) = job.cancel_by.clone() {
            let result = self.result_without_run(attempt, Verdict::Cancelled, cancelled_by(&by));
            return self.end_task(now, attempt, result, out);
        }
        if loss.counts() && !self.may_retry(attempt.job) {
            let result = self.result_without_run(attempt, Verdict::Lost, lost_too_often());
            return self.end_task(now, attempt, result, out);
        }
        if let Some(node) = self.release(attempt) {
            self.live.avoid.insert(attempt.job, node);
        }
        self.note(Record::AttemptLost { attempt, given_back: !loss.counts() }, out);
        let class = Class::of(&self.durable.jobs[&attempt.job]);
        self.live.ready.entry(class).or_default().insert(attempt.job);
        self.job_lost(now, attempt, loss, out);
    }

    /// The one way in which a task ends.
    pub(super) fn end_task(&mut self, now: Now, attempt: AttemptId, result: TaskResult, out: &mut Out) {
        self.release(attempt);
        let class = Class::of(&self.durable.jobs[&attempt.job]);
        self.no_longer_ready(&class, attempt.job);
        self.live.avoid.remove(&attempt.job);
        self.live.ephemeral.ended(attempt.job);
        let record = Record::TaskEnded { attempt, result: Box::new(result), at_ms: now.unix_ms, output: None };
        self.note(record, out);
        self.job_changed(now, attempt.job, out);
        self.live.ended.push_back(attempt.job);
        while self.live.ended.len() > ENDED_JOBS_MAX || self.durable.ended_bytes > ENDED_BYTES_MAX {
            let Some(job) = self.live.ended.pop_front() else { break };
            self.note(Record::JobForgotten { job }, out);
        }
    }

    /// Takes a task out of its class, and a class out of the map when it was the last one.
    pub(super) fn no_longer_ready(&mut self, class: &Class, job: JobId) {
        if let Some(waiting) = self.live.ready.get_mut(class) {
            waiting.remove(&job);
            if waiting.is_empty() {
                self.live.ready.remove(class);
            }
        }
    }

    /// Frees what a node held for an attempt, and says which node that was.
    fn release(&mut self, attempt: AttemptId) -> Option<NodeName> {
        let held = self.live.attempts.remove(&attempt)?;
        if let Some(node) = self.live.nodes.get_mut(&held.node) {
            node.held.remove(&attempt);
        }
        Some(held.node)
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
            isolation: "none".into(),
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

fn cancelled_by(who: &str) -> Reason {
    if who == "client_gone" { Reason::new("client_gone") } else { Reason::new("cancelled_by").with("who", who) }
}
