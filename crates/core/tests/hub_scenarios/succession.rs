//! A store that does not take a record: a new hub takes the place of the old one, in the same process.

use crate::story::{Story, attempt, key, python, register, secret};
use essaim_core::hub::Input;
use essaim_core::limits::LEASE_MS;
use essaim_proto::SubmitKey;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, JobState, Phase, TaskState, Verdict};
use essaim_proto::link::Register;
use essaim_proto::node::NodeState;

/// What is said to whom? Clients stay and hear how what they watch stands; the worker is gone, which is told, and comes
/// back to what it runs; what was not durable has never been.
#[test]
fn clients_stay_and_workers_come_back() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let (job, first) = story.run(client, lab);
    story.worker("gone", 1);
    story.progress(lab, first, Phase::Run);
    story.event(job, TaskState::Running);
    let durable = story.records.len();
    let lost = story.submit(client, python());
    story.watch_states();
    let kept = story.store_failed(durable, &[job]);
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [client]);

    for name in ["gone", "lab"] {
        let told = (name.to_owned(), NodeState::Online, NodeState::Offline, "store_error".to_owned());
        assert_eq!(story.node_changed(), told);
    }
    let (state, tried, node, reason) = story.job_changed(job);
    assert_eq!(
        (state, tried, node.as_deref(), reason.unwrap().code.as_str()),
        (JobState::Running, 1, Some("lab"), "node_silent")
    );
    for _ in 0..2 {
        story.event(job, TaskState::Running);
    }
    assert!(!story.hub.durable().jobs.contains_key(&lost));
    let (lab, registered) = story.register("lab", Register { held: vec![first, attempt(lost, 1)], ..register(2) });
    assert_eq!((registered.keep[0].attempt, registered.kill.as_slice()), (first, &[attempt(lost, 1)][..]));
    story.node_changed();
    // Told again after the reconnect: nobody needs to hear it twice.
    story.progress(lab, first, Phase::Run);
    story.ended(lab, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(lab, first);
    story.job_changed(job);
    story.end();
}

/// Does an ephemeral job stay with its client's session, and is a client whose key was not durable not kept?
#[test]
fn what_a_session_holds_goes_with_it() {
    let mut story = Story::new();
    let client = story.admin();
    let spec = Box::new(JobSpec { ephemeral: true, ..python() });
    story.give(Input::Submit { session: client, request: 1, key: SubmitKey([7; 16]), spec });
    let job = story.submitted(false);
    story.event(job, TaskState::Ready);
    let durable = story.records.len();
    story.give(Input::LocalKey { name: key("new"), role: Role::Admin, secret: secret("new") });
    let new = story.client("new", Role::Admin);
    let kept = story.store_failed(durable, &[]);
    assert!(kept.contains(&client) && !kept.contains(&new));
    story.pass(LEASE_MS / 1_000 + 1);
    story.nothing_else();
    story.gone(client);
    story.event(job, TaskState::Cancelled);
    story.end();
}

/// A job that lives as long as its client ended, and the store did not take the end: does its client still hold it?
#[test]
fn an_end_that_is_not_taken_leaves_the_job_with_its_client() {
    let mut story = Story::new();
    let client = story.admin();
    let job = story.submit(client, JobSpec { ephemeral: true, ..python() });
    let records = story.records.len();
    story.ask_cancel(client, job);
    story.store_failed(records, &[]);
    story.skip_all();
    story.pass(LEASE_MS / 1_000 + 1);
    story.nothing_else();
    story.gone(client);
    assert_eq!(story.event(job, TaskState::Cancelled).reason.unwrap().code, "client_gone");
    story.end();
}

/// The store took an end without saying so: is it told?
#[test]
fn an_end_that_was_taken_without_a_word_is_told() {
    let mut story = Story::new();
    let client = story.admin();
    let job = story.submit(client, python());
    let told_to = story.records.len();
    story.ask_cancel(client, job);
    let records = story.records.len();
    story.watch_states();
    story.store_failed_unsaid(told_to, records, &[job]);
    story.event(job, TaskState::Cancelled);
    assert_eq!(story.job_changed(job).0, JobState::Cancelled);
    story.end();
}
