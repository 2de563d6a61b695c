//! Somebody who lists all states once and then only hears the changes: does he know what a second list would say?
//!
//! The stories and the random inputs tell it every change and let it compare after every input. Always true: it compares
//! only while there are few jobs and nodes, because it looks at all of them.
//! Deliberately not here: what the states should be.

use essaim_core::hub::{Answer, Effect, Hub, Query, SessionId};
use essaim_proto::JobId;
use essaim_proto::api::{JobList, JobView, StateChange};
use essaim_proto::job::{JobState, Verdict};
use essaim_proto::node::NodeState;
use std::collections::BTreeMap;

/// As many jobs, or nodes, as are compared.
const COMPARED_MAX: usize = 15;

/// What is known from changes alone.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    jobs: BTreeMap<JobId, Job>,
    nodes: BTreeMap<String, (NodeState, String)>,
    has_listed: bool,
}

#[derive(Debug, PartialEq)]
struct Job {
    state: JobState,
    attempt: u32,
    verdict: Option<Verdict>,
    cancelling: bool,
}

fn ask(hub: &Hub, session: SessionId, query: &Query) -> Option<Answer> {
    match hub.read(hub.durable(), session, 0, query) {
        Effect::Answer { answer, .. } => Some(answer),
        // The session is gone, or may not.
        _ => None,
    }
}

fn listed(view: &JobView) -> Job {
    if view.array.is_some() {
        return Job { state: view.state, attempt: 0, verdict: None, cancelling: false };
    }
    let task = &view.tasks[0];
    let cancelling = task.reason.as_ref().is_some_and(|reason| reason.code == "cancelling");
    Job { state: view.state, attempt: task.attempt, verdict: task.result.as_ref().map(|r| r.verdict), cancelling }
}

fn jobs(hub: &Hub, session: SessionId) -> Option<BTreeMap<JobId, Job>> {
    match ask(hub, session, &Query::JobList(JobList::default()))? {
        Answer::Jobs(page) => Some(page.jobs.iter().map(|view| (view.job, listed(view))).collect()),
        other => panic!("expected jobs: {other:?}"),
    }
}

fn nodes(hub: &Hub, session: SessionId) -> Option<BTreeMap<String, (NodeState, String)>> {
    match ask(hub, session, &Query::NodeList { after: None })? {
        Answer::Nodes(page) => {
            let known = page.nodes.into_iter();
            Some(known.map(|n| (n.name, (n.state, n.reason.map_or_else(String::new, |r| r.code)))).collect())
        }
        other => panic!("expected nodes: {other:?}"),
    }
}

impl Observer {
    /// Hears a change, which must be one.
    pub(crate) fn hear(&mut self, change: &StateChange) {
        assert!(change.at_ms > 0 && change.missed == 0, "{change:?}");
        if let Some(job) = &change.job {
            let cancelling = job.reason.as_ref().is_some_and(|reason| reason.code == "cancelling");
            let Some(was) = self.jobs.get_mut(&job.job) else {
                self.jobs
                    .insert(job.job, Job { state: job.state, attempt: job.attempt, verdict: job.verdict, cancelling });
                return;
            };
            assert!(!was.state.is_over(), "it was over: {change:?}");
            // Lost before it ran, it is queued as before; the reason says what happened.
            let again = job.reason.as_ref().is_some_and(|reason| reason.params.contains_key("attempt"));
            let now = Job { state: job.state, attempt: job.attempt, verdict: job.verdict, cancelling };
            assert!(*was != now || again, "nothing changed: {change:?}");
            *was = now;
        }
        if let Some(node) = &change.node {
            let reason = node.reason.clone().map_or_else(String::new, |reason| reason.code);
            let was = self.nodes.insert(node.name.clone(), (node.state, reason.clone()));
            if let Some(was) = was {
                assert_eq!(node.was, was.0, "{change:?}");
                assert_ne!(was, (node.state, reason), "nothing changed: {change:?}");
            }
        }
    }

    /// Compares with what a list says now; the first time it only lists.
    pub(crate) fn compare(&mut self, hub: &Hub, session: SessionId) {
        if hub.durable().jobs.len() > COMPARED_MAX || hub.durable().nodes.len() > COMPARED_MAX {
            return;
        }
        let (Some(jobs), Some(nodes)) = (jobs(hub, session), nodes(hub, session)) else { return };
        if !std::mem::replace(&mut self.has_listed, true) {
            self.jobs.extend(jobs);
            self.nodes.extend(nodes);
            return;
        }
        for (id, job) in jobs {
            assert_eq!(self.jobs.get(&id), Some(&job), "job {id}");
        }
        let not_seen = (NodeState::Offline, "not_seen".to_owned());
        for (name, node) in nodes {
            assert_eq!(self.nodes.get(&name).unwrap_or(&not_seen), &node, "node {name}");
        }
    }
}
