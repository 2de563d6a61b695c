//! What stories about arrays have in common: tasks are named as people write them, "1-4,7".
//!
//! Used by `arrays`, `shares` and `waits`. Always true: like the rest of the fixture it takes effects one by one, so that
//! whatever else is sent is noticed. Deliberately not here: stories.

use crate::story::{Story, command, result};
use essaim_core::hub::{Answer, Effect, Input, Query, Record, SessionId, ToWorker};
use essaim_proto::api::{JobRerun, JobView};
use essaim_proto::job::{ArraySpec, JobSpec, JobState, TaskResult, TaskState, Verdict};
use essaim_proto::link::{EndedMany, GivenBack, HeldMany, Start, TaskEnd};
use essaim_proto::{JobId, SubmitKey, TaskSet};

/// So long takes a task that is not short.
pub(crate) const LONG_MS: u64 = 1_000;

pub(crate) fn tasks(text: &str) -> TaskSet {
    text.parse().unwrap()
}

/// An array of a command, which every node can run.
pub(crate) fn array(text: &str) -> JobSpec {
    JobSpec { array: Some(Box::new(ArraySpec { tasks: tasks(text), lines: None })), ..command(&["true"]) }
}

pub(crate) fn held(job: JobId, attempt: u32, text: &str) -> HeldMany {
    HeldMany { job, attempt, tasks: tasks(text) }
}

impl Story {
    /// Submits; what it leads to is left to be taken.
    pub(crate) fn submit_array(&mut self, client: SessionId, spec: JobSpec) -> JobId {
        self.ask_submit(client, spec);
        self.submitted(false)
    }

    /// The worker is told to start tasks of the array: which, and which try.
    pub(crate) fn started(&mut self, to: SessionId, job: JobId) -> (String, u32) {
        let Start { attempt, tasks, .. } = self.start_of(to);
        assert_eq!(attempt.job, job);
        let tasks = tasks.expect("it is an array");
        assert_eq!(tasks.first(), Some(attempt.task));
        (tasks.to_string(), attempt.attempt)
    }

    /// The worker is told to start something.
    pub(crate) fn start_of(&mut self, to: SessionId) -> Start {
        match self.take() {
            Effect::Tell { session, message: ToWorker::Start(start) } if session == to => *start,
            other => panic!("expected a start on {to:?}: {other:?}"),
        }
    }

    /// The watchers are told how many tasks of the array wait, run, ended well, failed, were cancelled.
    pub(crate) fn counted(&mut self, job: JobId) -> (JobState, [u64; 5]) {
        match self.take() {
            Effect::Publish { event } if event.job == job => {
                let counts = event.counts.expect("it is an array");
                assert_eq!(event.last, event.state.is_over());
                let each = [counts.waiting, counts.running, counts.done, counts.failed, counts.cancelled];
                assert_eq!(each.iter().sum::<u64>(), counts.total);
                (event.state, each)
            }
            other => panic!("expected the counts of {job}: {other:?}"),
        }
    }

    /// Tasks end in one message; what it leads to is left to be taken.
    pub(crate) fn end_tasks(&mut self, of: SessionId, job: JobId, attempt: u32, text: &str, how: (Verdict, u64)) {
        let (verdict, wall_ms) = how;
        let result = TaskResult { wall_ms, ..result(verdict) };
        let end = |task| TaskEnd { task, attempt, result: result.clone(), stdout: Vec::new(), stderr: Vec::new() };
        let ends = tasks(text).iter().map(end).collect();
        self.give(Input::EndedMany { session: of, ended: Box::new(EndedMany { job, ends }) });
    }

    /// The worker hears in one message which ends are recorded.
    pub(crate) fn acked_tasks(&mut self, to: SessionId, job: JobId) -> Vec<(u32, String)> {
        match self.take() {
            Effect::Tell { session, message: ToWorker::EndAckMany(ack) } if session == to && ack.job == job => {
                ack.tasks.into_iter().map(|(attempt, tasks)| (attempt, tasks.to_string())).collect()
            }
            other => panic!("expected the ends of {job} to be acknowledged: {other:?}"),
        }
    }

    /// The worker is asked to give back what has not started.
    pub(crate) fn taken_back(&mut self, from: SessionId, job: JobId) -> String {
        match self.take() {
            Effect::Tell { session, message: ToWorker::TakeBack(wanted) } if session == from && wanted.job == job => {
                wanted.tasks.to_string()
            }
            other => panic!("expected tasks of {job} to be taken back: {other:?}"),
        }
    }

    pub(crate) fn give_back(&mut self, session: SessionId, job: JobId, attempt: u32, text: &str) {
        let given = GivenBack { job, tasks: vec![(attempt, tasks(text))] };
        self.give(Input::GivenBack { session, given });
    }

    pub(crate) fn cancel_tasks(&mut self, client: SessionId, job: JobId, text: &str) {
        let request = self.next_request();
        self.give(Input::Cancel { session: client, request, job, tasks: Some(tasks(text)) });
    }

    /// Runs tasks in these states once more; what it leads to is left to be taken.
    pub(crate) fn rerun(&mut self, client: SessionId, job: JobId, states: &[TaskState], key: u8) {
        let request = self.next_request();
        let rerun = JobRerun { job, key: SubmitKey([key; 16]), states: states.to_vec(), ..JobRerun::default() };
        self.give(Input::Rerun { session: client, request, rerun });
    }

    pub(crate) fn show(&mut self, client: SessionId, job: JobId) -> JobView {
        match self.query(client, Query::JobShow(job)) {
            Answer::Job(view) => *view,
            other => panic!("expected a job: {other:?}"),
        }
    }

    /// Records since there were so many.
    pub(crate) fn records_since(&self, count: usize) -> &[Record] {
        &self.records[count..]
    }
}
