//! The life of a job that nothing disturbs.

use crate::story::{Story, attempt, command, instance, node, python, register, result};
use essaim_core::hub::{Answer, Effect, Input, Query, Record};
use essaim_core::limits::ENDED_JOBS_MAX;
use essaim_proto::api::JobList;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, JobState, Phase, TaskState, Verdict};
use essaim_proto::link::{Ended, Register};
use essaim_proto::{JobId, RefusalCode, SubmitKey};

/// In which order does everyone hear of a job, and what is recorded? We follow one from its submission to its end.
#[test]
fn a_job_walks_from_submit_to_end() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let before = story.records.len();

    let request = story.ask_submit(client, python());
    let job = JobId(1);
    let first = attempt(job, 1);
    let answer = Answer::Submitted { job, repeated: false, clamped: vec![] };
    assert_eq!(story.take(), Effect::Answer { session: client, request, answer });
    let start = story.start(worker, first);
    assert_eq!((start.lang.as_str(), start.phases[0].argv.join(" ").as_str()), ("python", "python3 main.py"));
    assert_eq!(story.task(client, job).reason.unwrap().code, "starting");

    story.progress(worker, first, Phase::Run);
    let running = story.event(job, TaskState::Running);
    assert_eq!((running.node.as_deref(), running.attempt), (Some("lab"), 1));
    assert_eq!(story.hub.running(), [(job, "main.py".to_owned(), node("lab"))]);

    story.ended(worker, first, Verdict::Ok);
    let over = story.event(job, TaskState::Done);
    assert_eq!(over.result.unwrap().node, "lab");
    story.acked(worker, first);
    assert!(matches!(
        &story.records[before..],
        [Record::JobAccepted { .. }, Record::TaskPlaced { .. }, Record::TaskEnded { .. }]
    ));
    assert!(story.hub.running().is_empty());
    story.end();
}

/// Is a job that waits for its process queued, and running only when one runs? We look at each step of a compiled one.
#[test]
fn placed_is_queued_and_compiling_is_running() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (job, first) = story.run(client, worker);
    let state = |story: &mut Story| match story.query(client, Query::JobShow(job)) {
        Answer::Job(view) => view.state,
        other => panic!("expected a job: {other:?}"),
    };
    assert_eq!(state(&mut story), JobState::Queued);
    story.progress(worker, first, Phase::Prepare);
    story.event(job, TaskState::Placed);
    assert_eq!(state(&mut story), JobState::Queued);
    for phase in [Phase::Compile, Phase::Run, Phase::Unknown] {
        story.progress(worker, first, phase);
        story.event(job, TaskState::Running);
        assert_eq!(state(&mut story), JobState::Running);
    }
    // Told again after a reconnect: nobody hears it twice.
    story.progress(worker, first, Phase::Unknown);
    story.end();
}

/// Do two jobs on one slot run in the order of their submission?
#[test]
fn one_slot_is_first_come_first_served() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (first, first_attempt) = story.run(client, worker);
    let second = story.submit(client, python());
    let third = story.submit(client, python());
    assert_eq!(story.task(client, second).reason.unwrap().code, "no_free_slot");
    story.ended(worker, first_attempt, Verdict::RuntimeError);
    story.event(first, TaskState::Failed);
    story.acked(worker, first_attempt);
    story.start(worker, attempt(second, 1));
    story.ended(worker, attempt(second, 1), Verdict::Ok);
    story.event(second, TaskState::Done);
    story.acked(worker, attempt(second, 1));
    story.start(worker, attempt(third, 1));
    story.end();
}

/// Does a repeated Submit return the first job, from another session of the same key too, and does another key's
/// Submit not?
#[test]
fn a_repeated_submit_returns_the_first_job() {
    let mut story = Story::new();
    let admin = story.admin();
    let again = story.admin();
    let other = story.client("anna", Role::Operator);
    let submit = |session, n| Input::Submit { session, request: 1, key: SubmitKey([n; 16]), spec: Box::new(python()) };
    story.give(submit(admin, 7));
    let job = story.submitted(false);
    story.event(job, TaskState::Ready);
    story.give(submit(again, 7));
    assert_eq!(story.submitted(true), job);
    story.give(submit(other, 7));
    let others = story.submitted(false);
    assert_ne!(others, job);
    story.event(others, TaskState::Ready);
    // After its end and during a shutdown it is still the same job.
    story.ask_cancel(admin, job);
    story.event(job, TaskState::Cancelled);
    story.done();
    story.give(Input::Drain);
    story.give(submit(admin, 7));
    assert_eq!(story.submitted(true), job);
    story.end();
}

/// Is nothing new accepted or placed once a shutdown has begun, while what runs may end?
#[test]
fn a_hub_that_shuts_down_takes_nothing_new() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (job, first) = story.run(client, worker);
    let waits = story.submit(client, python());
    story.give(Input::Drain);
    story.ask_submit(client, python());
    story.refused(RefusalCode::ShuttingDown);
    assert_eq!(story.task(client, waits).reason.unwrap().code, "hub_draining");
    story.ended(worker, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(worker, first);
    story.end();
}

/// Does an ephemeral job die with its client's session and an ordinary one live on? The client vanishes.
#[test]
fn an_ephemeral_job_dies_with_its_session() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 2);
    let (_, _) = story.run(client, worker);
    let job = story.submit(client, JobSpec { ephemeral: true, ..python() });
    let first = attempt(job, 1);
    story.start(worker, first);
    let waits = story.submit(client, JobSpec { ephemeral: true, ..python() });
    story.gone(client);
    story.told_to_stop(worker, first);
    assert_eq!(story.event(job, TaskState::Placed).reason.unwrap().code, "cancelling");
    assert_eq!(story.event(waits, TaskState::Cancelled).reason.unwrap().code, "client_gone");
    story.ended(worker, first, Verdict::Cancelled);
    assert_eq!(story.event(job, TaskState::Cancelled).reason.unwrap().code, "client_gone");
    story.acked(worker, first);
    story.end();
}

/// Is an ephemeral job that has ended forgotten by its session? `Hub::check` looks for leftovers after each input; the
/// session then closes without a word about it.
#[test]
fn an_ended_ephemeral_job_is_nobodys_any_more() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    for n in 1..=3 {
        let job = story.submit(client, JobSpec { ephemeral: true, ..python() });
        assert_eq!(job, JobId(n));
        story.start(worker, attempt(job, 1));
        story.ended(worker, attempt(job, 1), Verdict::Ok);
        story.event(job, TaskState::Done);
        story.acked(worker, attempt(job, 1));
    }
    story.gone(client);
    story.end();
}

/// Does the oldest ended job go when there are too many, with its place in the lists, and does its key still name it?
#[test]
fn the_oldest_ended_job_is_forgotten_beyond_the_limit() {
    let mut story = Story::new();
    let client = story.admin();
    let key_of = |n: usize| SubmitKey((n as u128 | 1 << 100).to_be_bytes());
    let submit =
        |n: usize| Input::Submit { session: client, request: 1, key: key_of(n), spec: Box::new(command(&["true"])) };
    // Not through `give`: thousands of full checks would take minutes.
    let mut out = essaim_core::hub::Out::default();
    for n in 1..=ENDED_JOBS_MAX {
        story.hub.step(story.now, submit(n), &mut out);
        let job = JobId(n as u64);
        story.hub.step(story.now, Input::Cancel { session: client, request: 2, job, tasks: None }, &mut out);
    }
    story.records.append(&mut out.records);
    let forgotten = |record: &Record| matches!(record, Record::JobForgotten { .. });
    assert!(!story.records.iter().any(forgotten));
    let last = story.submit(client, python());
    story.ask_cancel(client, last);
    story.event(last, TaskState::Cancelled);
    assert_eq!(story.records.last(), Some(&Record::JobForgotten { job: JobId(1) }));
    story.done();
    story.give(Input::Query { session: client, request: 3, query: Query::JobShow(JobId(1)) });
    story.refused(RefusalCode::NoSuchJob);
    // Asked for again it is still the first job, which the catalog knows; the same key of another owner is another job.
    story.give(submit(1));
    assert_eq!(story.submitted(true), JobId(1));
    story.restart_hub();
    let client = story.admin();
    story.give(Input::Submit { session: client, request: 4, key: key_of(1), spec: Box::new(python()) });
    assert_eq!(story.submitted(true), JobId(1));
    let other = story.client("other", Role::Operator);
    story.give(Input::Submit { session: other, request: 4, key: key_of(1), spec: Box::new(python()) });
    story.submitted(false);
    story.event(JobId(last.0 + 1), TaskState::Ready);
    story.end();
}

/// Is a job that cannot work refused with its own code and without a record?
#[test]
fn what_cannot_work_is_refused_and_leaves_no_record() {
    let mut story = Story::new();
    let client = story.admin();
    let records = story.records.len();
    story.ask_submit(client, JobSpec { lang: Some("cobol".into()), entry: "main.py".into(), ..python() });
    story.refused(RefusalCode::NoSuchLanguage);
    story.ask_submit(client, command(&[]));
    story.refused(RefusalCode::BadJob);
    story.ask_cancel(client, JobId(1));
    story.refused(RefusalCode::NoSuchJob);
    assert_eq!(story.records.len(), records);
    story.end();
}

/// Whose word counts for node and number of an attempt: the worker's, or what we know? The worker lies.
#[test]
fn the_hub_says_where_an_attempt_ran() {
    let mut story = Story::new();
    let client = story.admin();
    let worker = story.worker("lab", 1);
    let (job, first) = story.run(client, worker);
    let mut lie = result(Verdict::Ok);
    (lie.node, lie.attempt) = ("moon".into(), 99);
    story.give(Input::Ended { session: worker, ended: Box::new(Ended { attempt: first, result: lie }) });
    let told = story.event(job, TaskState::Done).result.unwrap();
    assert_eq!((told.node.as_str(), told.attempt), ("lab", 1));
    story.acked(worker, first);
    story.end();
}

/// Does a worker's word about another worker's attempt change anything? It is counted, and its end acknowledged.
#[test]
fn nobody_speaks_for_another_node() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    let other = Register { instance: instance(9), ..register(1) };
    let (thief, _) = story.register("thief", other);
    story.progress(thief, first, Phase::Run);
    story.ended(thief, first, Verdict::Ok);
    story.acked(thief, first);
    assert_eq!(story.hub.late_messages(), 2);
    assert_eq!(story.task(client, job).state, TaskState::Placed);
    assert!(matches!(story.query(client, Query::JobList(JobList::default())), Answer::Jobs(_)));
    story.end();
}
