//! What lists and watchers are shown, and who may see what.
//!
//! Called by [`super::Hub::step`] for questions and by the other files for events. Always true: arguments of a job are
//! shown to its owner and to operators only; a page never exceeds the limit of the wire.
//! Deliberately not here: sentences (`view`), ended jobs beyond memory (the catalog, a later issue).

use super::Hub;
use super::durable::Job;
use super::effect::{Answer, Effect, Out};
use super::input::{Query, SessionId};
use super::nodes::LiveNode;
use super::placement::Class;
use crate::limits::{NODE_PAGE_ENTRIES, PAGE_BYTES_MAX};
use essaim_proto::api::{JobEvent, JobList, JobPage, JobView, NodePage};
use essaim_proto::hello::Role;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{JobState, Phase, Reason, TaskState, TaskView};
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_proto::node::{NodeState, NodeView};
use essaim_proto::{JobId, KeyName, NodeName, Refusal, RefusalCode, SubmitKey};
use serde::Serialize;
use std::collections::BTreeMap;

/// Why tasks wait, computed once for all tasks of a class on a page.
type Reasons = BTreeMap<Class, Reason>;

/// As many entries as are allowed and fit a frame, and whether there are more. Each alone is far smaller than a frame.
fn page<T: Serialize>(entries: impl Iterator<Item = T>, entries_max: usize) -> (Vec<T>, bool) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        bytes += essaim_proto::encode(&entry).len();
        if taken.len() == entries_max || bytes > PAGE_BYTES_MAX {
            return (taken, true);
        }
        taken.push(entry);
    }
    (taken, false)
}

impl Hub {
    pub(super) fn query(&mut self, session: SessionId, request: u64, query: Query, out: &mut Out) {
        let answered = match query {
            Query::JobList(list) => {
                self.allowed(session, Role::Viewer).map(|who| Answer::Jobs(self.job_page(&who, &list)))
            }
            Query::JobShow(job) => self.visible_job(session, job).map(|view| Answer::Job(Box::new(view))),
            Query::Watch { job, key } => self.watch(session, job, key).map(|view| Answer::Watching(Box::new(view))),
            Query::NodeList { after } => {
                self.allowed(session, Role::Viewer).map(|_| Answer::Nodes(self.node_page(after.as_deref())))
            }
            Query::KeyList => self.allowed(session, Role::Admin).map(|_| Answer::Keys(self.key_page())),
            Query::Upload => self.allowed(session, Role::Operator).map(|_| Answer::Done),
        };
        out.effects.push(match answered {
            Ok(answer) => Effect::Answer { session, request, answer },
            Err(refusal) => Effect::Refuse { session, request, refusal },
        });
    }

    /// Tells whoever watches how the job stands now.
    pub(super) fn publish(&self, job: JobId, out: &mut Out) {
        let Some(known) = self.durable.jobs.get(&job) else { return };
        let task = self.task_view(job, known, &mut Reasons::new());
        let state = self.job_state(job, known);
        let event = JobEvent { job, state, last: state.is_over(), task: Some(task) };
        out.effects.push(Effect::Publish { event });
    }

    fn visible_job(&self, session: SessionId, job: JobId) -> Result<JobView, Refusal> {
        let who = self.allowed(session, Role::Viewer)?;
        let known = self.durable.jobs.get(&job).ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        Ok(self.job_view(&who, job, known, &mut Reasons::new()))
    }

    fn watch(&mut self, session: SessionId, job: JobId, submit: Option<SubmitKey>) -> Result<JobView, Refusal> {
        let (key, role) = self.allowed(session, Role::User)?;
        let meant = self.durable.jobs.get(&job).filter(|known| submit.is_none_or(|submit| known.key == submit));
        let known = meant.ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        if known.owner != key && role < Role::Operator {
            let refusal = Refusal::new(RefusalCode::NotAllowed).with("role", role.name());
            return Err(refusal.with("needs", Role::Operator.name()));
        }
        let view = self.job_view(&(key.clone(), role), job, known, &mut Reasons::new());
        if known.owner == key {
            // After a restart of the hub its client is back.
            self.live.ephemeral.adopt(session, job);
        }
        Ok(view)
    }

    fn job_page(&self, who: &(KeyName, Role), list: &JobList) -> JobPage {
        let limit = if list.limit == 0 { PAGE_ENTRIES_MAX } else { (list.limit as usize).min(PAGE_ENTRIES_MAX) };
        let before = list.before.unwrap_or(JobId(u64::MAX));
        let wanted = |(_, job): &(&JobId, &Job)| !list.live_only || !job.state().is_over();
        let found = self.durable.jobs.range(..before).rev().filter(wanted);
        let mut reasons = Reasons::new();
        let (jobs, more) = page(found.map(|(id, job)| self.job_view(who, *id, job, &mut reasons)), limit);
        JobPage { jobs, more }
    }

    fn job_view(&self, (key, role): &(KeyName, Role), id: JobId, job: &Job, reasons: &mut Reasons) -> JobView {
        let in_full = job.owner == *key || *role >= Role::Operator;
        // A page of jobs must fit a frame however long their arguments are.
        let shown = |arg: &String| arg.chars().take(200).collect();
        JobView {
            job: id,
            name: job.spec.name.chars().take(200).collect(),
            owner: job.owner.to_string(),
            lang: job.spec.lang.clone().unwrap_or_else(|| "command".into()),
            state: self.job_state(id, job),
            submitted_ms: job.submitted_ms,
            ended_ms: job.ended_ms,
            tasks: vec![self.task_view(id, job, reasons)],
            args: if in_full { job.spec.args.iter().take(5).map(shown).collect() } else { Vec::new() },
        }
    }

    fn job_state(&self, id: JobId, job: &Job) -> JobState {
        match job.state() {
            // Placed is not yet running: nothing of the program has started.
            JobState::Running if self.task_state(id, job) == TaskState::Placed => JobState::Queued,
            state => state,
        }
    }

    /// How the task stands: placed becomes running when a process of it runs (of a phase that we know, or of a newer
    /// worker's).
    fn task_state(&self, id: JobId, job: &Job) -> TaskState {
        let phase = self.live.attempts.get(&job.attempt_id(id)).and_then(|held| held.phase);
        match (job.task.state, phase) {
            (TaskState::Placed, Some(phase)) if phase != Phase::Prepare => TaskState::Running,
            (state, _) => state,
        }
    }

    fn task_view(&self, id: JobId, job: &Job, reasons: &mut Reasons) -> TaskView {
        let held = self.live.attempts.get(&job.attempt_id(id));
        let state = self.task_state(id, job);
        TaskView {
            task: TASK_ONE,
            state,
            reason: self.task_reason(job, state, held.is_some_and(|h| h.stopping), reasons),
            attempt: job.task.attempt,
            node: job.task.node.as_ref().map(NodeName::to_string),
            phase: held.and_then(|h| h.phase),
            waiting_for_input: held.is_some_and(|h| h.waiting_for_input),
            result: job.task.result.clone(),
        }
    }

    fn task_reason(&self, job: &Job, state: TaskState, stopping: bool, reasons: &mut Reasons) -> Option<Reason> {
        let node = || job.task.node.as_ref().map(NodeName::to_string).unwrap_or_default();
        match state {
            TaskState::Waiting | TaskState::Ready => {
                Some(reasons.entry(Class::of(job)).or_insert_with(|| self.wait_reason(job)).clone())
            }
            TaskState::Placed | TaskState::Running if stopping => Some(Reason::new("cancelling")),
            TaskState::Placed => Some(Reason::new("starting").with("node", node())),
            _ => job.task.result.as_ref().and_then(|r| r.reason.clone()),
        }
    }

    fn node_page(&self, after: Option<&str>) -> NodePage {
        let mut names: Vec<&NodeName> = self.durable.nodes.iter().chain(self.live.nodes.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let rest = names.into_iter().filter(|n| after.is_none_or(|a| n.as_str() > a));
        let (nodes, more) = page(rest.map(|name| self.node_view(name)), NODE_PAGE_ENTRIES);
        NodePage { nodes, more }
    }

    fn node_view(&self, name: &NodeName) -> NodeView {
        let Some(node) = self.live.nodes.get(name) else {
            let reason = Some(Reason::new("not_seen"));
            return NodeView { name: name.to_string(), state: NodeState::Offline, reason, ..NodeView::default() };
        };
        let LiveNode { state, since_ms, local, slots, probing, .. } = *node;
        NodeView {
            name: name.to_string(),
            state,
            reason: Some(node.reason.clone()),
            since_ms,
            local,
            slots,
            slots_used: node.held.len() as u32,
            toolchains: node.toolchains.clone(),
            probing,
            facts: node.facts.clone(),
            load: node.load.clone(),
            rtt_us: node.rtt_us,
            jobs: node.held.iter().take(100).map(|attempt| attempt.job.0).collect(),
            labels: Default::default(),
        }
    }
}
