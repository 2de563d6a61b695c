//! What lists and watchers are shown, and who may see what.
//!
//! Called by [`super::Hub::step`] for questions and events, and by the driver ([`Hub::read`]) for questions that need no
//! place in the journal's order. Always true: arguments of a job are
//! shown to its owner and to operators only; a page never exceeds the limit of the wire.
//! Deliberately not here: sentences (`view`), ended jobs that the core has forgotten (the hub's catalog; what of them who
//! may see says [`sight`] and [`may_watch`]).

use super::array::Array;
use super::durable::Durable;
use super::effect::{Answer, Effect, Out};
use super::input::{Query, SessionId};
use super::job::Job;
use super::nodes::LiveNode;
use super::queue::Class;
use super::{Hub, Session};
use crate::limits::{NODE_PAGE_ENTRIES, PAGE_BYTES_MAX};
use essaim_proto::api::{JobList, JobPage, JobView, NodePage, TaskList, TaskPage};
use essaim_proto::hello::Role;
use essaim_proto::id::TASK_ONE;
use essaim_proto::job::{JobState, Phase, Reason, TaskCounts, TaskResult, TaskState, TaskView};
use essaim_proto::limits::{PAGE_ENTRIES_MAX, SHOWN_TASKS_MAX};
use essaim_proto::node::{NodeState, NodeView};
use essaim_proto::{AttemptId, JobId, KeyName, NodeName, Refusal, RefusalCode, SubmitKey, TaskId, TaskSet};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why tasks wait, computed once for all tasks of a class on a page.
pub(super) type Reasons = BTreeMap<Arc<Class>, Reason>;

/// Length of a job's name and of each of its arguments in a list, in characters.
const SHOWN_CHARS_MAX: usize = 200;

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

/// A job as the key's holder may see it: arguments and URLs are for its owner and for operators.
pub fn sight(mut view: JobView, key: &KeyName, role: Role) -> JobView {
    if view.owner != key.as_str() && role < Role::Operator {
        view.args.clear();
        // Whoever may post there may know it from here.
        view.notify = None;
    }
    view
}

/// May the key's holder watch a job of this owner with its output? His own, or any when he operates the hub.
///
/// # Errors
/// `not_allowed`.
pub fn may_watch(owner: &str, key: &KeyName, role: Role) -> Result<(), Refusal> {
    if role >= Role::Operator || (role >= Role::User && owner == key.as_str()) {
        return Ok(());
    }
    let needs = if role < Role::User { Role::User } else { Role::Operator };
    Err(Refusal::new(RefusalCode::NotAllowed).with("role", role.name()).with("needs", needs.name()))
}

impl Job {
    /// Its name, as long as lists show it.
    pub(super) fn shown_name(&self) -> String {
        self.accepted.name().chars().take(SHOWN_CHARS_MAX).collect()
    }
}

impl Durable {
    /// A job that is over, as its owner sees it; nothing for any other.
    pub fn ended_view(&self, job: JobId) -> Option<JobView> {
        let known = self.jobs.get(&job).filter(|known| known.is_over())?;
        if let Some(array) = &known.array {
            let failed = array.failures().take(SHOWN_TASKS_MAX).map(|(task, result)| failed_task(task, result));
            return Some(in_full(job, known, known.state(), failed.collect()));
        }
        let task = TaskView {
            task: TASK_ONE,
            state: known.task.state,
            reason: known.task.result.as_ref().and_then(|result| result.reason.clone()),
            attempt: known.task.attempt,
            result: known.task.result.as_deref().cloned(),
            ..TaskView::default()
        };
        Some(in_full(job, known, known.state(), vec![task]))
    }
}

fn failed_task(task: TaskId, result: &TaskResult) -> TaskView {
    TaskView {
        task,
        state: TaskState::Failed,
        reason: result.reason.clone(),
        attempt: result.attempt,
        result: Some(result.clone()),
        ..TaskView::default()
    }
}

/// How many tasks stand how, as far as the durable part knows: none runs.
fn counts(job: &Job) -> TaskCounts {
    let total = u64::from(job.total());
    let [done, failed, cancelled] = match &job.array {
        Some(array) => array.ends().map(u64::from),
        None => {
            let is = |state| u64::from(job.task.state == state);
            [is(TaskState::Done), is(TaskState::Failed), is(TaskState::Cancelled)]
        }
    };
    TaskCounts { total, waiting: total - done - failed - cancelled, running: 0, done, failed, cancelled }
}

/// The job with everything that its owner may see.
fn in_full(id: JobId, job: &Job, state: JobState, tasks: Vec<TaskView>) -> JobView {
    // A page of jobs must fit a frame however long their names and arguments are.
    let shown = |text: &String| text.chars().take(SHOWN_CHARS_MAX).collect();
    let spec = job.accepted.spec();
    JobView {
        job: id,
        name: job.shown_name(),
        owner: job.accepted.owner().to_string(),
        lang: spec.lang.clone().unwrap_or_else(|| "command".into()),
        state,
        submitted_ms: job.accepted.submitted_ms,
        ended_ms: job.ended_ms,
        tasks,
        args: spec.args.iter().take(5).map(shown).collect(),
        array: job.array.as_ref().map(|array| array.ids.clone()),
        counts: counts(job),
        priority: spec.priority,
        needs: spec.needs.clone(),
        limits: spec.limits,
        clamped: spec.clamped.clone(),
        reason: job.task.result.as_ref().and_then(|result| result.reason.clone()),
        ruled_out: Vec::new(),
        notify: spec.notify.clone(),
        notice: job.notice.as_deref().cloned(),
    }
}

/// Does the text contain the wanted one, whatever the case of their letters? `wanted` is in lower case.
fn contains(text: &str, wanted: &str) -> bool {
    if text.is_ascii() && wanted.is_ascii() {
        // Most names: compared where they stand, because a search looks at a hundred thousand of them.
        return wanted.is_empty()
            || text.as_bytes().windows(wanted.len()).any(|part| part.eq_ignore_ascii_case(wanted.as_bytes()));
    }
    text.to_lowercase().contains(wanted)
}

impl Hub {
    pub(super) fn query(&mut self, session: SessionId, request: u64, query: &Query, out: &mut Out) {
        let effect = self.read(&self.durable, session, request, query);
        if let (Query::Watch { job, .. }, Effect::Answer { .. }, Some(Session::Client { key, .. })) =
            (query, &effect, self.live.sessions.get(&session))
            && self.durable.jobs.get(job).is_some_and(|known| known.accepted.owner() == key)
        {
            // After a restart of the hub its client is back.
            self.live.ephemeral.adopt(session, *job);
        }
        out.effects.push(effect);
    }

    /// Answers a question from a durable part that may lag behind the hub's own: the driver's, which holds only what is
    /// durable, so that the answer need not wait for the store. Nothing changes. A Watch that is to count as its
    /// client's return, and one whose events must not be missed, goes in as an input.
    pub fn read(&self, durable: &Durable, session: SessionId, request: u64, query: &Query) -> Effect {
        let answered = match query {
            Query::JobList(list) => {
                self.allowed(session, Role::Viewer).map(|who| Answer::Jobs(self.job_page(durable, &who, list)))
            }
            Query::JobShow(job) => self.show(durable, session, *job).map(|view| Answer::Job(Box::new(view))),
            Query::TaskList(list) => self.task_page(durable, session, list).map(Answer::Tasks),
            Query::Watch { job, key } => {
                self.watch(durable, session, *job, *key).map(|view| Answer::Watching(Box::new(view)))
            }
            Query::NodeList { after } => {
                self.allowed(session, Role::Viewer).map(|_| Answer::Nodes(self.node_page(durable, after.as_deref())))
            }
            Query::KeyList => self.allowed(session, Role::Admin).map(|_| Answer::Keys(self.key_page(durable))),
            Query::Upload => self.allowed(session, Role::Operator).map(|_| Answer::Done),
        };
        match answered {
            Ok(answer) => Effect::Answer { session, request, answer },
            Err(refusal) => Effect::Refuse { session, request, refusal },
        }
    }

    fn show(&self, durable: &Durable, session: SessionId, job: JobId) -> Result<JobView, Refusal> {
        let who = self.allowed(session, Role::Viewer)?;
        let known = durable.jobs.get(&job).ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        let mut view = self.job_view(&who, job, known, &mut Reasons::new());
        if view.counts.waiting > 0 && durable.awaited(known).is_empty() && known.ready() > 0 {
            view.ruled_out = self.ruled_out(known);
        }
        Ok(view)
    }

    /// Tasks of a job, by number.
    fn task_page(&self, durable: &Durable, session: SessionId, list: &TaskList) -> Result<TaskPage, Refusal> {
        let (key, role) = self.allowed(session, Role::Viewer)?;
        let no_such = || Refusal::new(RefusalCode::NoSuchJob).with("job", list.job);
        let known = durable.jobs.get(&list.job).ok_or_else(no_such)?;
        if list.numbers_only {
            may_watch(known.accepted.owner().as_str(), &key, role)?;
        }
        let after = list.after.map_or(0, |after| u64::from(after.0) + 1);
        let Some(array) = &known.array else {
            let task = self.task_view(list.job, known, &mut Reasons::new());
            let is_wanted = (list.states.is_empty() || list.states.contains(&task.state)) && after <= 1;
            let set = if is_wanted { TaskSet::one(TASK_ONE) } else { TaskSet::default() };
            return Ok(TaskPage { tasks: is_wanted.then_some(task).into_iter().collect(), more: false, set });
        };
        let told = [TaskState::Placed, TaskState::Done, TaskState::Failed, TaskState::Cancelled];
        // A running task is a placed one in the durable part.
        let mut states = if list.states.is_empty() { told.to_vec() } else { list.states.clone() };
        if states.contains(&TaskState::Running) {
            states.push(TaskState::Placed);
        }
        let found = array.in_states(&states).filter(|(task, _)| u64::from(task.0) >= after);
        if list.numbers_only {
            // One with more ranges could not be read.
            let mut pieces = found.map(|(task, _)| task).collect::<TaskSet>().pieces();
            let set = pieces.next().unwrap_or_default();
            return Ok(TaskPage { set, more: pieces.next().is_some(), ..TaskPage::default() });
        }
        let limit = if list.limit == 0 { PAGE_ENTRIES_MAX } else { (list.limit as usize).min(PAGE_ENTRIES_MAX) };
        let views = found.map(|(task, state)| self.array_task_view(list.job, array, task, state));
        let views = views.filter(|view| list.states.is_empty() || list.states.contains(&view.state));
        let (tasks, more) = page(views, limit);
        Ok(TaskPage { tasks, more, set: TaskSet::default() })
    }

    fn array_task_view(&self, job: JobId, array: &Array, task: TaskId, state: TaskState) -> TaskView {
        if let Some(result) = array.failure(task) {
            return failed_task(task, result);
        }
        let attempt = AttemptId { job, task, attempt: array.tries(task).attempt };
        let held = self.live.attempts.get(&attempt);
        let phase = held.and_then(|held| held.phase);
        let runs = state == TaskState::Placed && phase.is_some_and(|phase| phase != Phase::Prepare);
        TaskView {
            task,
            state: if runs { TaskState::Running } else { state },
            reason: held.filter(|held| held.stopping).map(|_| Reason::new("cancelling")),
            attempt: attempt.attempt,
            node: array.placed(task).map(|placed| placed.node.to_string()),
            phase,
            ..TaskView::default()
        }
    }

    fn watch(
        &self,
        durable: &Durable,
        session: SessionId,
        job: JobId,
        submit: Option<SubmitKey>,
    ) -> Result<JobView, Refusal> {
        let (key, role) = self.allowed(session, Role::User)?;
        let meant = durable.jobs.get(&job).filter(|known| submit.is_none_or(|submit| known.accepted.key == submit));
        let known = meant.ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        may_watch(known.accepted.owner().as_str(), &key, role)?;
        Ok(self.job_view(&(key, role), job, known, &mut Reasons::new()))
    }

    fn job_page(&self, durable: &Durable, who: &(KeyName, Role), list: &JobList) -> JobPage {
        let limit = if list.limit == 0 { PAGE_ENTRIES_MAX } else { (list.limit as usize).min(PAGE_ENTRIES_MAX) };
        let before = list.before.unwrap_or(JobId(u64::MAX));
        let text = list.text.as_ref().map(|text| text.to_lowercase());
        let wanted = |(id, job): &(JobId, &Job)| {
            (!list.live_only || !job.state().is_over())
                && (list.states.is_empty() || list.states.contains(&self.job_state(*id, job)))
                && list.owner.as_ref().is_none_or(|owner| job.accepted.owner().as_str() == owner)
                && list.node.as_ref().is_none_or(|node| self.last_node(*id, job) == Some(node))
                && text.as_ref().is_none_or(|text| contains(job.accepted.name(), text))
        };
        let found = durable.jobs.before(before).rev().filter(wanted);
        let mut reasons = Reasons::new();
        let (jobs, more) = page(found.map(|(id, job)| self.job_view(who, id, job, &mut reasons)), limit);
        JobPage { jobs, more }
    }

    /// Where the task is, or was last as far as the hub has seen it since it started.
    pub(super) fn last_node<'a>(&'a self, id: JobId, job: &'a Job) -> Option<&'a str> {
        let ended_on = || job.task.result.as_deref().map(|result| result.node.as_str()).filter(|node| !node.is_empty());
        let lost_on = || self.live.avoid.get(&id).map(NodeName::as_str);
        job.task.node.as_ref().map(NodeName::as_str).or_else(ended_on).or_else(lost_on)
    }

    fn job_view(&self, (key, role): &(KeyName, Role), id: JobId, job: &Job, reasons: &mut Reasons) -> JobView {
        let state = self.job_state(id, job);
        let tasks = match &job.array {
            None => vec![self.task_view(id, job, reasons)],
            Some(array) => {
                let running = array.running().map(|(task, _)| self.array_task_view(id, array, task, TaskState::Placed));
                let running = running.filter(|task| task.state == TaskState::Running).take(SHOWN_TASKS_MAX);
                let failed = array.failures().take(SHOWN_TASKS_MAX).map(|(task, result)| failed_task(task, result));
                running.chain(failed).collect()
            }
        };
        let mut view = in_full(id, job, state, tasks);
        view.counts = self.counts(id, job);
        view.reason = self.job_reason(id, job, reasons);
        sight(view, key, *role)
    }

    /// How many tasks stand how.
    pub(super) fn counts(&self, id: JobId, job: &Job) -> TaskCounts {
        let mut counts = counts(job);
        counts.running = match &job.array {
            None => u64::from(self.task_state(id, job) == TaskState::Running),
            Some(_) => self.live.running.get(&id).copied().unwrap_or(0).into(),
        };
        counts.waiting = counts.waiting.saturating_sub(counts.running);
        counts
    }

    /// Why tasks of the job wait, when some do.
    pub(super) fn job_reason(&self, id: JobId, job: &Job, reasons: &mut Reasons) -> Option<Reason> {
        match &job.array {
            None => self.task_view(id, job, reasons).reason,
            Some(array) if array.ready() > 0 => {
                Some(reasons.entry(job.class().clone()).or_insert_with(|| self.wait_reason(job)).clone())
            }
            Some(_) => None,
        }
    }

    pub(super) fn job_state(&self, id: JobId, job: &Job) -> JobState {
        if let Some(array) = &job.array {
            return match job.state() {
                // Placed is not yet running.
                JobState::Running if array.ends() == [0, 0, 0] && self.counts(id, job).running == 0 => JobState::Queued,
                state => state,
            };
        }
        match job.state() {
            // Placed is not yet running: nothing of the program has started.
            JobState::Running if self.task_state(id, job) == TaskState::Placed => JobState::Queued,
            state => state,
        }
    }

    /// How the task stands: placed becomes running when a process of it runs (of a phase that we know, or of a newer
    /// worker's).
    pub(super) fn task_state(&self, id: JobId, job: &Job) -> TaskState {
        match (job.task.state, self.live.attempts.get(&job.attempt_id(id)).map(|held| held.phase)) {
            (TaskState::Placed, Some(Some(phase))) if phase != Phase::Prepare => TaskState::Running,
            // Nobody holds it any more: it has run, and its end is on its way to the disk.
            (TaskState::Placed, None) => TaskState::Running,
            (state, _) => state,
        }
    }

    pub(super) fn task_view(&self, id: JobId, job: &Job, reasons: &mut Reasons) -> TaskView {
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
            result: job.task.result.as_deref().cloned(),
        }
    }

    fn task_reason(&self, job: &Job, state: TaskState, stopping: bool, reasons: &mut Reasons) -> Option<Reason> {
        let node = || job.task.node.as_ref().map(NodeName::to_string).unwrap_or_default();
        let is_away =
            || job.task.node.as_ref().and_then(|node| self.live.nodes.get(node)).is_some_and(|n| n.session.is_none());
        match state {
            TaskState::Waiting | TaskState::Ready if !job.accepted.after().is_empty() => Some(self.wait_reason(job)),
            TaskState::Waiting | TaskState::Ready => {
                Some(reasons.entry(job.class().clone()).or_insert_with(|| self.wait_reason(job)).clone())
            }
            TaskState::Placed | TaskState::Running if stopping => Some(Reason::new("cancelling")),
            TaskState::Placed | TaskState::Running if is_away() => {
                Some(Reason::new("node_silent").with("node", node()))
            }
            TaskState::Placed => Some(Reason::new("starting").with("node", node())),
            _ => job.task.result.as_ref().and_then(|r| r.reason.clone()),
        }
    }

    fn node_page(&self, durable: &Durable, after: Option<&str>) -> NodePage {
        let mut names: Vec<&NodeName> = durable.nodes.iter().chain(self.live.nodes.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let rest = names.into_iter().filter(|n| after.is_none_or(|a| n.as_str() > a));
        let (nodes, more) = page(rest.map(|name| self.node_view(name)), NODE_PAGE_ENTRIES);
        NodePage { nodes, more, local: self.local_view() }
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
            slots_used: node.slots_used(),
            toolchains: node.toolchains.clone(),
            probing,
            facts: node.facts.clone(),
            load: node.load.clone(),
            rtt_us: node.rtt_us,
            jobs: node.held.iter().take(100).map(|attempt| attempt.job.0).collect(),
            labels: node.labels.clone(),
        }
    }
}
