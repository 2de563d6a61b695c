//! Every change of a node's or a job's state, with its reason: what who watches them all is told.
//!
//! Each story is told to the end: nothing else changed. That the changes agree with the lists is checked in every story
//! (`observer`).

use crate::story::{Story, attempt, command, instance, node, on, python, register, result};
use essaim_core::hub::{Input, SessionId};
use essaim_core::limits::SLEPT_MS;
use essaim_proto::job::{JobState, Phase, Reason, TaskResult, TaskState, Verdict};
use essaim_proto::link::{Ended, Register, Report};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId};

use JobState::{Cancelled, Done, Failed, Queued, Running};
use NodeState::{Draining, Offline, Online, Stopped, Suspect};

impl Story {
    /// A client, a node `lab` with one slot, and somebody who has listed and watches from now on.
    fn watched() -> (Story, SessionId, SessionId) {
        let mut story = Story::new();
        let client = story.admin();
        let lab = story.worker("lab", 1);
        story.watch_states();
        (story, client, lab)
    }

    /// The next change is of `lab`.
    fn lab(&mut self, was: NodeState, state: NodeState, why: &str) {
        assert_eq!(self.node_changed(), ("lab".into(), was, state, why.into()));
    }

    /// The next change is of the job, at this attempt, on `lab` or nowhere.
    fn job(&mut self, job: JobId, state: JobState, attempt: u32, why: Option<&str>) -> Reason {
        let (now, tried, place, reason) = self.job_changed(job);
        assert_eq!((now, tried, place.as_deref()), (state, attempt, (attempt > 0).then_some("lab")));
        assert_eq!(reason.as_ref().map(|reason| reason.code.as_str()), why);
        reason.unwrap_or_default()
    }

    /// A job of the client's is started on `lab` and runs.
    fn runs(&mut self, client: SessionId, lab: SessionId) -> (JobId, AttemptId) {
        let (job, first) = self.run(client, lab);
        self.job(job, Queued, 1, Some("starting"));
        self.progress(lab, first, Phase::Run);
        self.event(job, TaskState::Running);
        self.job(job, Running, 1, None);
        (job, first)
    }
}

/// What is told of a job that waits, runs and ends well? Each step once, with why it waits; compiling before it runs and
/// waiting for someone to type are no changes of state.
#[test]
fn a_job_from_its_queue_to_its_end() {
    let (mut story, client, lab) = Story::watched();
    let (first_job, first) = story.runs(client, lab);
    let job = story.submit(client, python());
    assert_eq!(story.job(job, Queued, 0, Some("no_free_slot")).params["slots"], "1");

    story.ended(lab, first, Verdict::Ok);
    story.event(first_job, TaskState::Done);
    story.acked(lab, first);
    let second = attempt(job, 1);
    story.start(lab, second);
    story.job(first_job, Done, 1, None);
    story.job(job, Queued, 1, Some("starting"));

    story.progress(lab, second, Phase::Prepare);
    story.event(job, TaskState::Placed);
    story.progress(lab, second, Phase::Compile);
    story.event(job, TaskState::Running);
    story.job(job, Running, 1, None);
    story.progress(lab, second, Phase::Run);
    story.event(job, TaskState::Running);
    story.ended(lab, second, Verdict::TimeLimit);
    story.event(job, TaskState::Failed);
    story.acked(lab, second);
    let change = story.changed().job.unwrap();
    assert_eq!((change.state, change.verdict, change.node.as_deref()), (Failed, Some(Verdict::TimeLimit), Some("lab")));
    assert_eq!((change.name.as_str(), change.owner.as_str()), ("main.py", "admin"));
    story.end();
}

/// What is told of a cancel? That it is wanted, once, and that it is over; a job that waits is over at once.
#[test]
fn a_cancel_is_told_when_wanted_and_when_done() {
    let (mut story, client, lab) = Story::watched();
    let (job, first) = story.runs(client, lab);
    let waits = story.submit(client, python());
    story.job(waits, Queued, 0, Some("no_free_slot"));
    for _ in 0..2 {
        story.ask_cancel(client, job);
    }
    story.skip_all();
    story.job(job, Running, 1, Some("cancelling"));
    story.ask_cancel(client, waits);
    story.event(waits, TaskState::Cancelled);
    story.done();
    story.job(waits, Cancelled, 0, Some("cancelled_by"));
    story.ended(lab, first, Verdict::Cancelled);
    story.event(job, TaskState::Cancelled);
    story.acked(lab, first);
    story.job(job, Cancelled, 1, Some("cancelled_by"));
    story.end();
}

/// How is a crash told from a clean stop, a lost connection, silence and a new start? Each by its own reason, for the
/// node and for the job that it had.
#[test]
fn the_ways_to_lose_a_node_are_told_apart() {
    // `up` saw the process end; the connection had broken a moment before.
    let (mut story, client, lab) = Story::watched();
    let (job, _) = story.runs(client, lab);
    story.gone(lab);
    story.lab(Online, Offline, "connection_lost");
    story.give(Input::WorkerProcessEnded { node: node("lab") });
    story.lab(Offline, Offline, "crashed");
    let lost = story.job(job, Queued, 1, Some("node_lost"));
    assert_eq!((lost.params["node"].as_str(), lost.params["attempt"].as_str()), ("lab", "1"));
    story.event(job, TaskState::Ready);
    let (lab, _) = story.register("lab", Register { instance: instance(2), ..register(1) });
    story.lab(Offline, Online, "restarted");
    story.start(lab, attempt(job, 2));
    story.job(job, Queued, 2, Some("starting"));

    // It says goodbye; its process ends after that, which is no crash.
    story.goodbye(lab);
    story.lab(Online, Stopped, "clean_stop");
    story.event(job, TaskState::Ready);
    story.job(job, Queued, 2, Some("node_stopped"));
    story.give(Input::WorkerProcessEnded { node: node("lab") });
    story.nothing_else();

    // It is silent.
    let (lab, _) = story.register("lab", Register { instance: instance(3), ..register(1) });
    story.lab(Stopped, Online, "restarted");
    story.start(lab, attempt(job, 3));
    story.job(job, Queued, 3, Some("starting"));
    story.pass(15);
    story.lab(Online, Suspect, "silent");
    story.pass(15);
    story.closed(lab, "silence");
    story.lab(Suspect, Offline, "silent");
    story.pass(30);
    story.event(job, TaskState::Ready);
    story.job(job, Queued, 3, Some("node_lost"));

    // The same start of it comes back.
    let (lab, _) = story.register("lab", Register { instance: instance(3), ..register(1) });
    story.lab(Offline, Online, "connected");
    story.start(lab, attempt(job, 4));
    story.job(job, Queued, 4, Some("starting"));
    story.end();
}

/// Is a worker that was started anew while the hub still believed in its old start told as such, with what it had?
#[test]
fn a_new_start_of_a_worker_is_told() {
    let (mut story, client, lab) = Story::watched();
    let (job, _) = story.runs(client, lab);
    let (lab, _) = story.register_over("lab", lab, Register { instance: instance(2), ..register(1) });
    story.lab(Online, Online, "restarted");
    story.event(job, TaskState::Ready);
    story.job(job, Queued, 1, Some("node_lost"));
    story.start(lab, attempt(job, 2));
    story.job(job, Queued, 2, Some("starting"));
    // It stays so: a report is no news.
    story.report(lab, Report { held: vec![attempt(job, 2)], ..Report::default() });
    // The same start over a new connection is no change of the node.
    let held = vec![attempt(job, 2)];
    story.register_over("lab", lab, Register { instance: instance(2), held, ..register(1) });
    story.end();
}

/// Is it told that a node finishes its work, and that it takes work again?
#[test]
fn draining_is_told() {
    let (mut story, _, lab) = Story::watched();
    for _ in 0..2 {
        story.report(lab, Report { draining: true, ..Report::default() });
    }
    story.lab(Online, Draining, "draining");
    story.report(lab, Report::default());
    story.lab(Draining, Online, "connected");
    story.gone(lab);
    story.lab(Online, Offline, "connection_lost");
    story.register("lab", Register { draining: true, ..register(1) });
    story.lab(Offline, Draining, "draining");
    story.end();
}

/// Is sleep told apart? A worker whose machine slept says so when it comes back; nodes that are gone after the hub's own
/// machine slept, or stood still, are not called silent.
#[test]
fn sleep_is_told_apart() {
    let (mut story, _, lab) = Story::watched();
    story.gone(lab);
    story.lab(Online, Offline, "connection_lost");
    let (lab, _) = story.register("lab", Register { slept_ms: SLEPT_MS, ..register(1) });
    story.lab(Offline, Online, "slept");

    // The hub's machine sleeps for an hour; its connections are dead when it wakes.
    story.stand_still(1_000, 3_600_000);
    story.gone(lab);
    story.lab(Online, Offline, "hub_slept");
    let (lab, _) = story.register("lab", register(1));
    story.lab(Offline, Online, "connected");

    // A minute later that is no reason any more.
    for _ in 0..4 {
        story.pass(10);
        story.report(lab, Report::default());
    }
    story.gone(lab);
    story.lab(Online, Offline, "connection_lost");
    story.end();
}

/// What if the hub itself stood still for minutes (its process was stopped, its store hung)? It heard nobody, so nobody's
/// lease has run out; the same silence counts when it watched.
#[test]
fn leases_wait_while_the_hub_stands_still() {
    let (mut story, client, lab) = Story::watched();
    let (job, first) = story.runs(client, lab);
    story.pass(10);
    story.stand_still(180_000, 180_000);
    story.pass(4);
    story.nothing_else();
    story.pass(1);
    story.lab(Online, Suspect, "hub_slept");
    story.report(lab, Report { held: vec![first], ..Report::default() });
    story.lab(Suspect, Online, "connected");
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    story.job(job, Done, 1, None);
    story.end();
}

/// Why does a job run again that its worker failed, gave back or never started? Each is told with its own reason.
#[test]
fn the_ways_to_run_again_are_told_apart() {
    let (mut story, client, lab) = Story::watched();
    let (job, first) = story.runs(client, lab);
    story.ended(lab, first, Verdict::InternalError);
    story.event(job, TaskState::Ready);
    story.acked(lab, first);
    story.start(lab, attempt(job, 2));
    story.job(job, Queued, 1, Some("attempt_failed"));
    story.job(job, Queued, 2, Some("starting"));
    story.ended(lab, attempt(job, 2), Verdict::Cancelled);
    story.event(job, TaskState::Ready);
    story.acked(lab, attempt(job, 2));
    story.start(lab, attempt(job, 3));
    story.job(job, Queued, 2, Some("given_back"));
    story.job(job, Queued, 3, Some("starting"));

    // It stops: what it gives back does not count, and it gets nothing more.
    let stopped = TaskResult { reason: Some(Reason::new("worker_stopped")), ..result(Verdict::InternalError) };
    story.give(Input::Ended { session: lab, ended: Box::new(Ended { attempt: attempt(job, 3), result: stopped }) });
    story.lab(Online, Draining, "draining");
    story.event(job, TaskState::Ready);
    story.acked(lab, attempt(job, 3));
    story.job(job, Queued, 3, Some("node_stopped"));
    story.end();
}

/// What is told when the hub has no room for records? What waits says so; when there is room it starts.
#[test]
fn a_full_store_keeps_jobs_waiting() {
    let (mut story, client, lab) = Story::watched();
    let job = story.submit(client, on("lab", command(&["true"])));
    story.start(lab, attempt(job, 1));
    story.job(job, Queued, 1, Some("starting"));
    let waits = story.submit(client, python());
    story.job(waits, Queued, 0, Some("no_free_slot"));
    story.give(Input::Storage { full: true });
    story.ended(lab, attempt(job, 1), Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, attempt(job, 1));
    story.job(job, Done, 1, None);
    assert_eq!(story.task(client, waits).reason.unwrap().code, "hub_full");
    story.nothing_else();
    story.give(Input::Storage { full: false });
    story.start(lab, attempt(waits, 1));
    story.job(waits, Queued, 1, Some("starting"));
    story.end();
}
