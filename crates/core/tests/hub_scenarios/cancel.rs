//! Cancelling, wherever the job is.

use crate::story::{Story, attempt, python, register};
use essaim_core::hub::Record;
use essaim_proto::RefusalCode;
use essaim_proto::job::{Phase, TaskState, Verdict};
use essaim_proto::link::Register;

/// Does a job that waits end at once, without an attempt?
#[test]
fn a_waiting_job_ends_at_once() {
    let mut story = Story::new();
    let client = story.admin();
    let job = story.submit(client, python());
    story.ask_cancel(client, job);
    let over = story.event(job, TaskState::Cancelled);
    let reason = over.reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["who"].as_str()), ("cancelled_by", "admin"));
    assert_eq!(over.result.unwrap().attempt, 0);
    story.done();
    story.ask_cancel(client, job);
    assert_eq!(story.refused(RefusalCode::JobEnded).param("state"), "cancelled");
    // A node that comes now has nothing to do.
    story.worker("lab", 1);
    story.end();
}

/// Is a job that was placed or runs stopped by its worker, and over only when the worker says so? Cancelled twice, with
/// one record.
#[test]
fn a_running_job_is_stopped_by_its_worker() {
    for runs in [false, true] {
        let mut story = Story::new();
        let client = story.admin();
        let worker = story.worker("lab", 1);
        let (job, first) = story.run(client, worker);
        let mut state = TaskState::Placed;
        if runs {
            story.progress(worker, first, Phase::Run);
            state = TaskState::Running;
            story.event(job, state);
        }
        story.ask_cancel(client, job);
        story.told_to_stop(worker, first);
        assert_eq!(story.event(job, state).reason.unwrap().code, "cancelling");
        story.done();
        // Asked again, the word is said again; nothing has changed.
        story.ask_cancel(client, job);
        story.told_to_stop(worker, first);
        story.done();
        story.ended(worker, first, Verdict::Cancelled);
        assert_eq!(story.event(job, TaskState::Cancelled).reason.unwrap().code, "cancelled_by");
        story.acked(worker, first);
        let wanted = |record: &&Record| matches!(record, Record::CancelWanted { .. });
        assert_eq!(story.records.iter().filter(wanted).count(), 1);
        story.end();
    }
}

/// Which end counts when the program was faster than the cancel? Its own.
#[test]
fn a_program_that_ended_first_keeps_its_end() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (job, first) = story.run(client, worker);
    story.ask_cancel(client, job);
    story.told_to_stop(worker, first);
    story.event(job, TaskState::Placed);
    story.done();
    story.ended(worker, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(worker, first);
    story.end();
}

/// Does a job on a node that cannot be reached end now, and its program when the node comes back? Its slot is free for
/// the next job then.
#[test]
fn an_unreachable_job_ends_now_and_is_killed_later() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (job, first) = story.run(client, worker);
    story.gone(worker);
    story.ask_cancel(client, job);
    let over = story.event(job, TaskState::Cancelled);
    assert_eq!(over.result.unwrap().node, "lab");
    story.done();
    let next = story.submit(client, python());
    let (worker, registered) = story.register("lab", Register { held: vec![first], ..register(1) });
    assert_eq!((registered.kill, registered.keep.len()), (vec![first], 0));
    story.start(worker, attempt(next, 1));
    story.end();
}

/// Is the word to stop said again when it was lost with the connection, and does a cancelled attempt that never reached
/// the worker end instead of starting?
#[test]
fn a_lost_stop_is_said_again() {
    for worker_has_it in [true, false] {
        let mut story = Story::new();
        let client = story.admin();
        let worker = story.worker("lab", 1);
        let (job, first) = story.run(client, worker);
        story.ask_cancel(client, job);
        story.told_to_stop(worker, first);
        story.event(job, TaskState::Placed);
        story.done();
        story.gone(worker);
        let held = if worker_has_it { vec![first] } else { Vec::new() };
        let (worker, registered) = story.register("lab", Register { held, ..register(1) });
        if worker_has_it {
            assert_eq!(registered.keep[0].attempt, first);
            story.told_to_stop(worker, first);
        } else {
            story.event(job, TaskState::Cancelled);
        }
        story.end();
    }
}

/// Does a cancelled job whose node dies end as cancelled and not run again?
#[test]
fn a_cancelled_job_of_a_dead_node_is_cancelled() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (job, first) = story.run(client, worker);
    story.ask_cancel(client, job);
    story.told_to_stop(worker, first);
    story.event(job, TaskState::Placed);
    story.done();
    story.goodbye(worker);
    story.event(job, TaskState::Cancelled);
    story.end();
}

/// What if a worker gives an attempt up as cancelled and nobody had asked for that (its owner stopped it)? The task is
/// tried again, like a lost one.
#[test]
fn a_cancel_that_nobody_wanted_is_a_loss() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    let other = story.worker("other", 1);
    story.ended(lab, first, Verdict::Cancelled);
    story.event(job, TaskState::Ready);
    story.acked(lab, first);
    story.start(other, attempt(job, 2));
    story.end();
}
