//! Workers that fall silent, die, come back, or fail.

use crate::story::{Story, attempt, instance, node, python, register, result};
use essaim_core::hub::{Answer, Input, Query, SessionId};
use essaim_proto::job::{Phase, Reason, TaskResult, TaskState, Verdict};
use essaim_proto::link::{Ended, Register, Report};
use essaim_proto::node::NodeState;
use essaim_proto::{AttemptId, JobId};

fn node_state(story: &mut Story, client: SessionId, name: &str) -> (NodeState, String) {
    match story.query(client, Query::NodeList { after: None }) {
        Answer::Nodes(page) => {
            let found = page.nodes.iter().find(|n| n.name == name).unwrap();
            (found.state, found.reason.clone().unwrap().code)
        }
        other => panic!("expected nodes: {other:?}"),
    }
}

/// When does silence make a node suspect, closed, and its attempts lost? We look a second before and after each limit.
#[test]
fn silence_makes_suspect_then_closed_then_lost() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    story.pass(14);
    assert_eq!(node_state(&mut story, client, "lab").0, NodeState::Online);
    story.pass(1);
    assert_eq!(node_state(&mut story, client, "lab"), (NodeState::Suspect, "silent".into()));
    // A suspect node gets nothing new.
    story.pass(14);
    story.pass(1);
    story.closed(lab, "silence");
    assert_eq!(node_state(&mut story, client, "lab").0, NodeState::Offline);
    story.gone(lab);
    let other = story.worker("other", 1);
    story.pass(14);
    story.report(other, Report::default());
    story.pass(15);
    assert_eq!(story.task(client, job).state, TaskState::Placed);
    story.report(other, Report::default());
    story.pass(1);
    story.event(job, TaskState::Ready);
    story.start(other, attempt(job, 2));
    story.end();
}

/// Does a suspect node get nothing new, and work again with its first word, whatever that word is?
#[test]
fn any_word_lifts_suspicion_and_work_follows() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let (job, first) = story.run(client, lab);
    story.pass(15);
    let waits = story.submit(client, python());
    assert_eq!(story.task(client, waits).reason.unwrap().code, "all_silent");
    story.progress(lab, first, Phase::Run);
    story.start(lab, attempt(waits, 1));
    story.event(job, TaskState::Running);
    story.end();
}

/// Does a worker that reconnects with what it holds keep it, and are its slots not given twice?
#[test]
fn the_same_instance_keeps_what_it_holds() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.gone(lab);
    assert_eq!(node_state(&mut story, client, "lab"), (NodeState::Offline, "connection_lost".into()));
    let waits = story.submit(client, python());
    story.pass(59);
    let (lab, registered) = story.register("lab", Register { held: vec![first], ..register(1) });
    assert_eq!((registered.keep[0].attempt, registered.kill.len()), (first, 0));
    assert!(!registered.languages.is_empty());
    story.nothing_else();
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    story.start(lab, attempt(waits, 1));
    story.end();
}

/// Does a new instance free at once what the old one held, without waiting for the lease, and does the task run
/// elsewhere?
#[test]
fn a_new_instance_frees_at_once() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let (job, _) = story.run(client, lab);
    let other = story.worker("other", 1);
    let (new, registered) = story.register_over("lab", lab, Register { instance: instance(2), ..register(4) });
    assert!(registered.keep.is_empty() && registered.kill.is_empty());
    story.event(job, TaskState::Ready);
    story.start(other, attempt(job, 2));
    assert_ne!(new, lab);
    story.end();
}

/// Where does a lost task go when there is no other node? Back to where it was lost.
#[test]
fn the_only_node_is_tried_again() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    let (lab, _) = story.register_over("lab", lab, Register { instance: instance(2), ..register(1) });
    story.event(job, TaskState::Ready);
    story.start(lab, attempt(job, 2));
    story.end();
}

/// Does a task that lost three attempts end as lost? Its node restarts three times.
#[test]
fn the_third_loss_is_the_last() {
    let mut story = Story::new();
    let client = story.admin();
    let mut lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    for n in 2..=3 {
        (lab, _) = story.register_over("lab", lab, Register { instance: instance(n), ..register(1) });
        story.event(job, TaskState::Ready);
        story.start(lab, attempt(job, n.into()));
    }
    story.register_over("lab", lab, Register { instance: instance(4), ..register(1) });
    let over = story.event(job, TaskState::Failed);
    assert_eq!((over.reason.unwrap().code.as_str(), over.result.unwrap().verdict), ("lost_attempts", Verdict::Lost));
    story.end();
}

/// Is a task tried again when its worker failed, elsewhere if possible, and final the third time with the worker's
/// word?
#[test]
fn an_internal_error_is_retried_then_final() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let (job, first) = story.run(client, lab);
    let other = story.worker("other", 1);
    story.ended(lab, first, Verdict::InternalError);
    story.event(job, TaskState::Ready);
    story.acked(lab, first);
    // The freer node is the one that failed: it would fail everything that comes.
    story.start(other, attempt(job, 2));
    story.ended(other, attempt(job, 2), Verdict::InternalError);
    story.event(job, TaskState::Ready);
    story.acked(other, attempt(job, 2));
    story.start(lab, attempt(job, 3));
    story.ended(lab, attempt(job, 3), Verdict::InternalError);
    let over = story.event(job, TaskState::Failed).result.unwrap();
    assert_eq!((over.verdict, over.attempt), (Verdict::InternalError, 3));
    story.acked(lab, attempt(job, 3));
    story.end();
}

/// Is what a worker held free at once when it says goodbye?
#[test]
fn a_clean_goodbye_frees_at_once() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    story.goodbye(lab);
    story.event(job, TaskState::Ready);
    assert_eq!(node_state(&mut story, client, "lab"), (NodeState::Stopped, "clean_stop".into()));
    assert_eq!(story.task(client, job).reason.unwrap().code, "no_node");
    story.end();
}

/// Does the hub take `up`'s word that a worker's process has ended? Its session ends and its tasks are free.
#[test]
fn an_ended_worker_process_frees_at_once() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    story.give(Input::WorkerProcessEnded { node: node("lab") });
    story.closed(lab, "process_ended");
    story.event(job, TaskState::Ready);
    assert_eq!(node_state(&mut story, client, "lab"), (NodeState::Offline, "crashed".into()));
    // The session's own end comes later and says nothing new; a node that nobody knows says nothing at all.
    story.gone(lab);
    story.give(Input::WorkerProcessEnded { node: node("moon") });
    story.end();
}

/// Is a start that was lost with the connection sent again to the same instance, as the same attempt?
#[test]
fn a_lost_start_is_sent_again() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (_, first) = story.run(client, lab);
    story.gone(lab);
    let (lab, registered) = story.register("lab", register(1));
    assert!(registered.keep.is_empty());
    story.told_to_start(lab, first);
    story.end();
}

/// Does the end of an attempt that was given up change anything? It is acknowledged, so that the worker forgets it, and
/// counted; what its worker still holds is killed.
#[test]
fn a_late_end_is_acknowledged_and_counted() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.gone(lab);
    story.pass(60);
    story.event(job, TaskState::Ready);
    let other = story.worker("other", 1);
    story.start(other, attempt(job, 2));
    let (lab, registered) = story.register("lab", Register { held: vec![first], ..register(1) });
    assert_eq!(registered.kill, [first]);
    story.ended(lab, first, Verdict::Ok);
    story.acked(lab, first);
    assert_eq!(story.hub.late_messages(), 1);
    assert_eq!(story.task(client, job).attempt, 2);
    story.ended(other, attempt(job, 2), Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(other, attempt(job, 2));
    // Told a second time, because the acknowledgement was lost.
    story.ended(other, attempt(job, 2), Verdict::RuntimeError);
    story.acked(other, attempt(job, 2));
    assert_eq!(story.hub.late_messages(), 2);
    story.end();
}

/// What if a worker registers twice on one session? What it says last counts, and the session stays.
#[test]
fn a_second_registration_on_a_session_is_taken() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (_, first) = story.run(client, lab);
    let again = Register { held: vec![first], ..register(2) };
    story.give(Input::Register { session: lab, name: node("lab"), register: Box::new(again.clone()) });
    assert_eq!(story.registered(lab, "lab").keep[0].attempt, first);
    let second = story.submit(client, python());
    story.start(lab, attempt(second, 1));
    // Under another name it is refused.
    story.give(Input::Register { session: lab, name: node("moon"), register: Box::new(again) });
    story.refused(essaim_proto::RefusalCode::BadValue);
    story.end();
}

/// Does a worker that comes back with fewer slots keep what runs, and get nothing until it has room?
#[test]
fn fewer_slots_are_respected_after_what_runs() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let (one, first) = story.run(client, lab);
    let (_, second) = story.run(client, lab);
    story.gone(lab);
    let held = vec![first, second];
    let (lab, registered) = story.register("lab", Register { held, ..register(1) });
    assert_eq!(registered.keep.len(), 2);
    let third = story.submit(client, python());
    assert_eq!(story.task(client, third).reason.unwrap().code, "no_free_slot");
    story.ended(lab, first, Verdict::Ok);
    story.event(one, TaskState::Done);
    story.acked(lab, first);
    story.end();
}

/// Does a draining worker finish what it has, get nothing new, and its nodes' sentence say so?
#[test]
fn a_draining_worker_gets_nothing_new() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let (job, first) = story.run(client, lab);
    story.report(lab, Report { draining: true, ..Report::default() });
    let waits = story.submit(client, python());
    assert_eq!(story.task(client, waits).reason.unwrap().code, "all_draining");
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    story.report(lab, Report::default());
    story.start(lab, attempt(waits, 1));
    story.end();
}

/// What if a worker never names an attempt that it was given among those that it holds? The first reports may have
/// crossed the word; then it is told again twice, under the same number, and in the end the attempt is lost there.
#[test]
fn a_start_that_was_not_heard_is_said_again_then_lost() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    let five_seconds = |story: &mut Story, held: &[AttemptId]| {
        story.pass(5);
        story.report(lab, Report { held: held.to_vec(), ..Report::default() });
    };
    for told in 1..=3 {
        five_seconds(&mut story, &[]);
        five_seconds(&mut story, &[]);
        story.nothing_else();
        five_seconds(&mut story, &[]);
        if told < 3 {
            story.told_to_start(lab, first);
        }
    }
    story.event(job, TaskState::Ready);
    story.start(lab, attempt(job, 2));
    // What it holds is left alone for as long as it says so.
    for _ in 0..20 {
        five_seconds(&mut story, &[attempt(job, 2)]);
    }
    story.end();
}

/// What if a worker ceases to hold what it said that it runs, without a word about its end? It is not started again
/// under its number: it has written output.
#[test]
fn what_ran_and_is_not_held_any_more_is_lost() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.progress(lab, first, Phase::Run);
    story.event(job, TaskState::Running);
    for _ in 0..3 {
        story.pass(5);
        story.report(lab, Report { held: vec![first], ..Report::default() });
    }
    story.pass(5);
    story.report(lab, Report::default());
    story.event(job, TaskState::Ready);
    story.start(lab, attempt(job, 2));
    story.end();
}

/// What if it does not hold what it was to stop? Then it is stopped.
#[test]
fn what_is_to_stop_and_is_not_held_is_cancelled() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.ask_cancel(client, job);
    story.told_to_stop(lab, first);
    story.event(job, TaskState::Placed);
    story.done();
    for _ in 0..3 {
        story.pass(5);
        story.report(lab, Report::default());
    }
    story.event(job, TaskState::Cancelled);
    story.end();
}

/// Does a clean stop of its node count as a lost try of a program? Not once in ten times; a crash still does.
#[test]
fn a_clean_stop_is_no_lost_try() {
    let mut story = Story::new();
    let client = story.admin();
    let mut lab = story.worker("lab", 1);
    let (job, _) = story.run(client, lab);
    for n in 2..12 {
        story.goodbye(lab);
        story.event(job, TaskState::Ready);
        (lab, _) = story.register("lab", Register { instance: instance(n), ..register(1) });
        story.start(lab, attempt(job, n.into()));
    }
    assert_eq!(story.hub.durable().jobs[&job].task.lost, 0);
    for n in 12..=13 {
        (lab, _) = story.register_over("lab", lab, Register { instance: instance(n), ..register(1) });
        story.event(job, TaskState::Ready);
        story.start(lab, attempt(job, n.into()));
    }
    story.register_over("lab", lab, Register { instance: instance(14), ..register(1) });
    assert_eq!(story.event(job, TaskState::Failed).result.unwrap().verdict, Verdict::Lost);
    story.end();
}

/// What if a worker that stops gives back what it was just given, and says so in its result or in its state? That does
/// not count, and nothing more is given to it.
#[test]
fn what_a_stopping_worker_gives_back_does_not_count() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let (one, first) = story.run(client, lab);
    let (two, second) = story.run(client, lab);
    let stopped = TaskResult { reason: Some(Reason::new("worker_stopped")), ..result(Verdict::InternalError) };
    story.give(Input::Ended { session: lab, ended: Box::new(Ended { attempt: first, result: stopped }) });
    story.event(one, TaskState::Ready);
    story.acked(lab, first);
    assert_eq!(node_state(&mut story, client, "lab"), (NodeState::Draining, "draining".into()));
    story.ended(lab, second, Verdict::Cancelled);
    story.event(two, TaskState::Ready);
    story.acked(lab, second);
    let lost = |job| story.hub.durable().jobs[&job].task.lost;
    assert_eq!((lost(one), lost(two)), (0, 0));
    story.end();
}

/// Is an end acknowledged whatever has become of its attempt, so that its worker can forget it? Told twice, of an older
/// attempt, of a forgotten job, of a job that never was: each is answered, and nothing changes.
#[test]
fn every_end_is_answered() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    story.ended(lab, first, Verdict::InternalError);
    story.event(job, TaskState::Ready);
    story.acked(lab, first);
    story.start(lab, attempt(job, 2));
    let records = story.records.len();
    for old in [first, attempt(JobId(999), 1)] {
        story.ended(lab, old, Verdict::Ok);
        story.acked(lab, old);
    }
    assert_eq!(story.records.len(), records);
    story.ended(lab, attempt(job, 2), Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, attempt(job, 2));
    let records = story.records.len();
    for again in [first, attempt(job, 2)] {
        story.ended(lab, again, Verdict::RuntimeError);
        story.acked(lab, again);
    }
    assert_eq!((story.records.len(), story.hub.late_messages()), (records, 4));
    story.end();
}
