//! Changes of state, told as they happen: to who watches one job, and to who watches all nodes or jobs.
//!
//! Called by the files of this folder wherever a node or a job changes. Always true: every change of a node's or a job's
//! state, of a job's attempt and of where it is, is told once, with its time and its reason, after the record that it
//! follows from; whoever lists first and then applies the changes knows what a second list would say.
//! Deliberately not here: who watches, and how slowly (the shell counts what it leaves out for them).

use super::effect::{Effect, Out};
use super::nodes::LiveNode;
use super::view::Reasons;
use super::{Hub, LOST_ATTEMPTS_MAX};
use crate::Now;
use essaim_proto::api::{JobChange, JobEvent, NodeChange, StateChange};
use essaim_proto::job::{JobState, Reason};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId, NodeName};

/// Why an attempt did not end although its task has to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its node fell silent, crashed, or was started anew.
    Node,
    /// Its node was stopped, or finishes and took nothing more: nobody's fault.
    Stopped,
    /// Its worker could not run it.
    Failed,
    /// Its worker ended it without being asked to.
    GivenBack,
    /// Its worker was told to start it, more than once, and does not hold it.
    NotStarted,
    /// Its program failed, and its job asks for another try.
    Retried,
}

impl Loss {
    /// Does it count as one of the [`LOST_ATTEMPTS_MAX`] tries? Stopping a node in good order says nothing about the
    /// program.
    pub(super) fn counts(self) -> bool {
        !matches!(self, Loss::Stopped | Loss::Retried)
    }

    fn reason(self, node: &str, attempt: AttemptId) -> Reason {
        let code = match self {
            Loss::Node => "node_lost",
            Loss::Stopped => "node_stopped",
            Loss::Failed => "attempt_failed",
            Loss::GivenBack => "given_back",
            Loss::NotStarted => "not_started",
            Loss::Retried => "retried",
        };
        Reason::new(code).with("node", node).with("attempt", attempt.attempt)
    }
}

/// Why a task ended as lost.
pub(super) fn lost_too_often() -> Reason {
    Reason::new("lost_attempts").with("count", LOST_ATTEMPTS_MAX)
}

impl Hub {
    /// Tells whoever watches the job how it stands now: something of it changed, but not its state.
    pub(super) fn publish(&mut self, job: JobId, out: &mut Out) {
        let Some(known) = self.durable.jobs.get(&job) else { return };
        if known.array.is_some() {
            self.live.touched.insert(job);
            return;
        }
        let task = self.task_view(job, known, &mut Reasons::new());
        let state = self.job_state(job, known);
        let event = JobEvent { job, state, last: state.is_over(), task: Some(task), ..JobEvent::default() };
        out.effects.push(Effect::Publish { event });
    }

    /// Tells whoever watches the job, or all jobs, that its state changed.
    pub(super) fn job_changed(&mut self, now: Now, job: JobId, out: &mut Out) {
        self.job_changed_for(now, job, None, out);
    }

    /// The same for a job that is ready again: why it is.
    pub(super) fn job_lost(&mut self, now: Now, attempt: AttemptId, loss: Loss, out: &mut Out) {
        let node = self.live.avoid.get(&attempt.job).map(NodeName::as_str).unwrap_or_default();
        let reason = loss.reason(node, attempt);
        self.job_changed_for(now, attempt.job, Some(reason), out);
    }

    /// Arrays of which something changed are told once a step, however many of their tasks changed.
    pub(super) fn tell_arrays(&mut self, now: Now, out: &mut Out) {
        for job in std::mem::take(&mut self.live.touched) {
            let Some(known) = self.durable.jobs.get(&job) else { continue };
            let state = self.job_state(job, known);
            let counts = Some(self.counts(job, known));
            let event = JobEvent { job, state, last: state.is_over(), counts, ..JobEvent::default() };
            out.effects.push(Effect::Publish { event });
            if self.live.told.get(&job) == Some(&state) {
                continue;
            }
            let change = JobChange {
                job,
                name: known.shown_name(),
                owner: known.accepted.owner().to_string(),
                state,
                reason: self.job_reason(job, known, &mut Reasons::new()),
                ..JobChange::default()
            };
            let change = StateChange { at_ms: now.unix_ms, job: Some(change), ..StateChange::default() };
            out.effects.push(Effect::Changed { change });
            match state.is_over() {
                true => drop(self.live.told.remove(&job)),
                false => drop(self.live.told.insert(job, state)),
            }
        }
    }

    fn job_changed_for(&mut self, now: Now, job: JobId, why: Option<Reason>, out: &mut Out) {
        let Some(known) = self.durable.jobs.get(&job) else { return };
        if known.array.is_some() {
            self.live.touched.insert(job);
            return;
        }
        let task = self.task_view(job, known, &mut Reasons::new());
        let state = self.job_state(job, known);
        let change = JobChange {
            job,
            name: known.shown_name(),
            owner: known.accepted.owner().to_string(),
            state,
            attempt: task.attempt,
            node: self.last_node(job, known).map(str::to_owned),
            verdict: task.result.as_ref().map(|result| result.verdict),
            reason: why.or_else(|| task.reason.clone()),
        };
        let event = JobEvent { job, state, last: state.is_over(), task: Some(task), ..JobEvent::default() };
        out.effects.push(Effect::Publish { event });
        let change = StateChange { at_ms: now.unix_ms, job: Some(change), ..StateChange::default() };
        out.effects.push(Effect::Changed { change });
    }

    /// Is a process of the job's program running, as far as the hub knows?
    pub(super) fn runs(&self, job: JobId) -> bool {
        self.durable.jobs.get(&job).is_some_and(|known| self.job_state(job, known) == JobState::Running)
    }
}

impl LiveNode {
    /// The node stands so from now on. Said again it is no change; another reason for the same state is one, but the
    /// node has stood there for as long as before.
    pub(super) fn become_state(&mut self, now: Now, name: &NodeName, state: NodeState, reason: Reason, out: &mut Out) {
        if self.state != state || self.reason.code != reason.code {
            self.stand(now, name, state, reason, out);
        }
    }

    /// The same, told even when it is no change.
    pub(super) fn stand(&mut self, now: Now, name: &NodeName, state: NodeState, reason: Reason, out: &mut Out) {
        let was = std::mem::replace(&mut self.state, state);
        if was != state {
            self.since_ms = now.unix_ms;
        }
        self.reason = reason;
        let node = NodeChange { name: name.to_string(), was, state, reason: Some(self.reason.clone()) };
        let change = StateChange { at_ms: now.unix_ms, node: Some(node), ..StateChange::default() };
        out.effects.push(Effect::Changed { change });
    }
}
