//! Arrays: their tasks are placed and end in batches, are lost, cancelled, tried and run again by ranges.

use crate::array_story::{LONG_MS, array, held, tasks};
use crate::story::{Story, attempt, command, instance, node, register};
use essaim_core::hub::{Answer, Input, Query, Record};
use essaim_proto::api::TaskList;
use essaim_proto::job::{JobSpec, JobState, TaskState, Verdict};
use essaim_proto::link::{Register, Report};
use essaim_proto::{AttemptId, JobId, RefusalCode, TaskId, TaskSet};

const OK: (Verdict, u64) = (Verdict::Ok, LONG_MS);
const FAILED: (Verdict, u64) = (Verdict::RuntimeError, LONG_MS);

/// Are tasks given by as many as there are slots, acknowledged by ranges, and told once a step?
#[test]
fn an_array_from_its_queue_to_its_end() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let job = story.submit_array(client, array("1-10"));
    assert_eq!(story.started(lab, job), ("1-4".into(), 1));
    assert_eq!(story.counted(job), (JobState::Queued, [10, 0, 0, 0, 0]));
    let before = story.records.len();
    story.end_tasks(lab, job, 1, "1-4", OK);
    assert_eq!(story.acked_tasks(lab, job), [(1, "1-4".to_owned())]);
    assert_eq!(story.started(lab, job), ("5-8".into(), 1));
    assert_eq!(story.counted(job), (JobState::Running, [6, 0, 4, 0, 0]));
    let kinds = |record: &Record| matches!(record, Record::TasksEnded { .. } | Record::TasksPlaced { .. });
    assert_eq!((story.records_since(before).len(), story.records_since(before).iter().all(kinds)), (2, true));
    // One end alone, as of a task that printed much, and a batch with an end that was told before.
    let fifth = AttemptId { job, task: TaskId(5), attempt: 1 };
    story.ended(lab, fifth, Verdict::Ok);
    story.acked(lab, fifth);
    assert_eq!(story.started(lab, job), ("9".into(), 1));
    assert_eq!(story.counted(job), (JobState::Running, [5, 0, 5, 0, 0]));
    story.end_tasks(lab, job, 1, "4-6", FAILED);
    assert_eq!(story.acked_tasks(lab, job), [(1, "4-6".to_owned())], "the worker may forget them all");
    assert_eq!(story.hub.late_messages(), 2);
    assert_eq!(story.started(lab, job), ("10".into(), 1));
    assert_eq!(story.counted(job), (JobState::Running, [4, 0, 5, 1, 0]));
    story.end_tasks(lab, job, 1, "7-10", OK);
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job), (JobState::Failed, [0, 0, 9, 1, 0]));
    let view = story.show(client, job);
    assert_eq!((view.tasks.len(), view.tasks[0].task, view.tasks[0].state), (1, TaskId(6), TaskState::Failed));
    assert_eq!(view.tasks[0].result.as_ref().unwrap().node, "lab");
    story.end();
}

/// Is a task that runs for a while told as running, and counted so until it ends or is lost?
#[test]
fn long_tasks_are_counted_as_running() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let job = story.submit_array(client, array("1-2"));
    story.started(lab, job);
    assert_eq!(story.counted(job), (JobState::Queued, [2, 0, 0, 0, 0]));
    for task in [1, 2] {
        story.progress(lab, AttemptId { job, task: TaskId(task), attempt: 1 }, essaim_proto::job::Phase::Run);
        assert_eq!(story.counted(job).1[1], u64::from(task));
    }
    story.gone(lab);
    story.give(Input::WorkerProcessEnded { node: node("lab") });
    assert_eq!(story.counted(job), (JobState::Queued, [2, 0, 0, 0, 0]));
    story.end();
}

/// Are tasks cancelled one by one, those that a node has by their end there, and the others at once?
#[test]
fn parts_are_cancelled() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 2);
    let job = story.submit_array(client, array("1-10"));
    assert_eq!(story.started(lab, job), ("1-2".into(), 1));
    story.counted(job);
    let before = story.records.len();
    story.cancel_tasks(client, job, "2-6,8,40");
    let second = AttemptId { job, task: TaskId(2), attempt: 1 };
    story.told_to_stop(lab, second);
    story.done();
    assert_eq!(story.counted(job), (JobState::Running, [5, 0, 0, 0, 5]));
    assert_eq!(story.records_since(before).len(), 2, "one record for those that run, one for the others");
    story.end_tasks(lab, job, 1, "2", (Verdict::Cancelled, 5));
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job), ("7".into(), 1), "what was cancelled is left out");
    assert_eq!(story.counted(job).1, [4, 0, 0, 0, 6]);
    story.end_tasks(lab, job, 1, "1,7", OK);
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job), ("9-10".into(), 1));
    story.counted(job);
    // Cancelled again, with what is over: nothing but the answer.
    story.cancel_tasks(client, job, "1-8");
    story.done();
    story.end_tasks(lab, job, 1, "9-10", OK);
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job), (JobState::Cancelled, [0, 0, 4, 0, 6]));
    story.end();
}

/// Can what was cancelled in any pattern be read again from the journal? A record holds so many ranges and no more.
#[test]
fn any_pattern_can_be_recorded() {
    let mut story = Story::new();
    let client = story.admin();
    let job = story.submit_array(client, array("1-120000"));
    story.counted(job);
    story.cancel_tasks(client, job, "1-119999:2");
    story.done();
    assert_eq!(story.counted(job).1, [60_000, 0, 0, 0, 60_000]);
    story.cancel_tasks(client, job, "4-120000:8");
    story.done();
    story.counted(job);
    // Who asks for the numbers of those that wait gets what a message holds, and the rest when he asks again.
    let (mut waiting, mut after) = (0, None);
    loop {
        let list = TaskList { job, after, states: vec![TaskState::Ready], numbers_only: true, ..TaskList::default() };
        let Answer::Tasks(page) = story.query(client, Query::TaskList(list)) else { panic!("no page") };
        let back: TaskSet = essaim_proto::decode(&essaim_proto::encode(&page.set)).unwrap();
        waiting += back.len();
        after = back.iter().last();
        if !page.more {
            break;
        }
    }
    assert_eq!(waiting, 60_000 - 15_000);
    story.ask_cancel(client, job);
    story.done();
    assert_eq!(story.counted(job), (JobState::Cancelled, [0, 0, 0, 0, 120_000]));
    let row = essaim_core::hub::encode_batch(&story.records);
    assert_eq!(essaim_core::hub::decode_batch(&row).unwrap(), story.records);
    story.end();
}

/// Does a failed task run again as often as its job asks, under a new number, and no more?
#[test]
fn failures_are_tried_again() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 3);
    let job = story.submit_array(client, JobSpec { retry: 1, ..array("1-3") });
    story.started(lab, job);
    story.counted(job);
    story.end_tasks(lab, job, 1, "1-2", FAILED);
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job), ("1-2".into(), 2));
    assert_eq!(story.counted(job), (JobState::Queued, [3, 0, 0, 0, 0]));
    // The first number means nothing any more.
    story.end_tasks(lab, job, 1, "1", OK);
    story.acked_tasks(lab, job);
    story.end_tasks(lab, job, 2, "1", OK);
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job).1, [2, 0, 1, 0, 0]);
    story.end_tasks(lab, job, 2, "2", FAILED);
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job).1, [1, 0, 1, 1, 0]);
    story.end_tasks(lab, job, 1, "3", (Verdict::CompileError, 5));
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job), (JobState::Failed, [0, 0, 1, 2, 0]), "what does not compile never will");
    story.end();
}

/// Does a lost node cost one record, however many tasks it had, and does the third loss of a task end it?
#[test]
fn a_lost_node_is_one_record() {
    let mut story = Story::new();
    let client = story.admin();
    let mut lab = story.worker("lab", 5);
    let job = story.submit_array(client, array("1-9:2"));
    for lost in 1..=3 {
        assert_eq!(story.started(lab, job), ("1-9:2".into(), lost));
        story.counted(job);
        let before = story.records.len();
        story.gone(lab);
        story.give(Input::WorkerProcessEnded { node: node("lab") });
        if lost < 3 {
            let record = Record::TasksLost { job, tasks: tasks("1-9:2"), attempt: lost, given_back: false };
            assert_eq!(story.records_since(before), [record]);
            assert_eq!(story.counted(job).1, [5, 0, 0, 0, 0]);
            lab = story.register("lab", Register { instance: instance(1 + lost as u8), ..register(5) }).0;
        }
    }
    assert_eq!(story.counted(job), (JobState::Failed, [0, 0, 0, 5, 0]));
    let view = story.show(client, job);
    let result = view.tasks[4].result.as_ref().unwrap();
    assert_eq!((result.verdict, result.attempt, result.node.as_str()), (Verdict::Lost, 3, "lab"));
    assert_eq!(result.reason.as_ref().unwrap().code, "lost_attempts");
    story.end();
}

/// Is a worker that comes back told in one message what it keeps, what it kills and what it is to start again?
#[test]
fn a_worker_comes_back_to_its_tasks() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 6);
    let job = story.submit_array(client, array("1-6"));
    story.started(lab, job);
    story.counted(job);
    story.gone(lab);
    // Two end while nobody hears it, one is cancelled, and two of six never arrived.
    story.cancel_tasks(client, job, "3");
    story.done();
    story.counted(job);
    let held_many = vec![held(job, 1, "1-3,6"), held(JobId(77), 2, "1")];
    let (lab, registered) = story.register("lab", Register { held_many, ..register(6) });
    assert_eq!(registered.keep_many, [held(job, 1, "1-2,6")]);
    assert_eq!(registered.kill_many, [held(job, 1, "3")]);
    assert_eq!(registered.kill, [attempt(JobId(77), 2)], "of a job that nobody knows, one by one");
    assert!(registered.keep.is_empty());
    assert_eq!(story.started(lab, job), ("4-5".into(), 1), "the same try: it never heard of it");
    // Another start of it has nothing of all that.
    let (lab, registered) = story.register_over("lab", lab, Register { instance: instance(2), ..register(6) });
    assert!(registered.keep_many.is_empty() && registered.kill_many.is_empty());
    assert_eq!(story.started(lab, job), ("1-2,4-6".into(), 2));
    story.counted(job);
    story.ask_cancel(client, job);
    let stopped: Vec<TaskId> = [1, 2, 4, 5, 6].map(TaskId).to_vec();
    for task in stopped {
        story.told_to_stop(lab, AttemptId { job, task, attempt: 2 });
    }
    story.done();
    story.counted(job);
    story.end_tasks(lab, job, 2, "1-2,4-6", (Verdict::Cancelled, 0));
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job), (JobState::Cancelled, [0, 0, 0, 0, 6]));
    story.end();
}

/// Are tasks that a report does not name told again, as a range, and lost in the end?
#[test]
fn what_a_report_does_not_name_is_told_again() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let job = story.submit_array(client, array("1-4"));
    story.started(lab, job);
    story.counted(job);
    let report = || Report { held_many: vec![held(job, 1, "2-3")], ..Report::default() };
    for _ in 0..2 {
        for _ in 0..2 {
            story.pass(5);
            story.report(lab, report());
        }
        story.nothing_else();
        story.pass(5);
        story.report(lab, report());
        assert_eq!(story.started(lab, job), ("1,4".into(), 1));
    }
    for _ in 0..3 {
        story.pass(5);
        story.report(lab, report());
    }
    assert_eq!(story.started(lab, job), ("1,4".into(), 2));
    assert_eq!(story.counted(job).1, [4, 0, 0, 0, 0]);
    story.end();
}

/// Are the failed tasks run again as a job of their own, and is a set that cannot be written down refused?
#[test]
fn failed_tasks_are_run_again() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 8);
    let job = story.submit_array(client, array("1-8"));
    story.started(lab, job);
    story.counted(job);
    story.end_tasks(lab, job, 1, "1-4,6,8", OK);
    story.acked_tasks(lab, job);
    story.counted(job);
    story.rerun(client, job, &[TaskState::Failed], 1);
    assert_eq!(story.refused(RefusalCode::BadJob).param("field"), "array", "none has failed yet");
    story.end_tasks(lab, job, 1, "5,7", FAILED);
    story.acked_tasks(lab, job);
    story.counted(job);
    story.rerun(client, job, &[TaskState::Failed], 2);
    let again = story.submitted(false);
    assert_eq!(story.started(lab, again), ("5,7".into(), 1));
    story.counted(again);
    story.rerun(client, job, &[TaskState::Failed], 2);
    assert_eq!(story.submitted(true), again);
    story.rerun(client, job, &[], 3);
    let whole = story.submitted(false);
    assert_eq!(story.started(lab, whole), ("1-6".into(), 1));
    story.counted(whole);
    story.end();
}

/// Does a job wait for others, run when they have ended well, and end with them when they have not?
#[test]
fn jobs_wait_for_jobs() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 8);
    let after = |jobs: &[JobId]| JobSpec { after: jobs.to_vec(), ..command(&["true"]) };
    let first = story.submit_array(client, array("1-2"));
    story.started(lab, first);
    story.counted(first);
    let second = story.submit(client, command(&["true"]));
    story.start(lab, attempt(second, 1));
    let both = story.submit(client, after(&[first, second]));
    let reason = story.task(client, both).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["jobs"].as_str()), ("after", "1, 2"));
    story.end_tasks(lab, first, 1, "1-2", OK);
    story.event(both, TaskState::Ready);
    story.acked_tasks(lab, first);
    story.counted(first);
    assert_eq!(story.task(client, both).reason.unwrap().params["jobs"], "2");
    story.ended(lab, attempt(second, 1), Verdict::Ok);
    story.event(second, TaskState::Done);
    story.event(both, TaskState::Ready);
    story.acked(lab, attempt(second, 1));
    story.start(lab, attempt(both, 1));
    // A chain: the end of its first job ends all of it, those that are arrays too.
    let third = story.submit_array(client, JobSpec { after: vec![both], ..array("1-3") });
    story.counted(third);
    let fourth = story.submit(client, after(&[third]));
    story.ended(lab, attempt(both, 1), Verdict::RuntimeError);
    story.event(both, TaskState::Failed);
    story.acked(lab, attempt(both, 1));
    let reason = story.event(fourth, TaskState::Cancelled).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["job"].as_str()), ("after_failed", third.to_string().as_str()));
    assert_eq!(story.counted(third), (JobState::Cancelled, [0, 0, 0, 0, 3]));
    // What is over badly already ends it in the same way, also one that waits for something that runs; nothing of it runs.
    let slow = story.submit(client, command(&["true"]));
    story.start(lab, attempt(slow, 1));
    for bad in [both, third] {
        story.ask_submit(client, after(&[second, slow, bad]));
        let late = story.submitted(false);
        let reason = story.event(late, TaskState::Cancelled).reason.unwrap();
        assert_eq!((reason.code.as_str(), reason.params["job"].as_str()), ("after_failed", bad.to_string().as_str()));
    }
    let many = story.submit_array(client, JobSpec { after: vec![both], ..array("1-3") });
    assert_eq!(story.counted(many), (JobState::Cancelled, [0, 0, 0, 0, 3]));
    story.ended(lab, attempt(slow, 1), Verdict::Ok);
    story.event(slow, TaskState::Done);
    story.acked(lab, attempt(slow, 1));
    // What was never there is not waited for.
    story.ask_submit(client, after(&[JobId(99)]));
    story.refused(RefusalCode::NoSuchJob);
    let last = story.submit(client, after(&[second]));
    story.start(lab, attempt(last, 1));
    story.end();
}

/// Does the hub survive a very long chain of jobs whose first one is cancelled?
#[test]
fn a_long_chain_ends_at_once() {
    let mut story = Story::new();
    let client = story.admin();
    let mut job = story.submit(client, command(&["true"]));
    let first = job;
    let mut out = essaim_core::hub::Out::default();
    for n in 0..20_000_u64 {
        let spec = Box::new(JobSpec { after: vec![job], ..command(&["true"]) });
        let mut key = essaim_proto::SubmitKey([9; 16]);
        key.0[..8].copy_from_slice(&n.to_le_bytes());
        story.hub.step(story.now, Input::Submit { session: client, request: 1, key, spec }, &mut out);
        job = JobId(job.0 + 1);
    }
    story.records.append(&mut out.records);
    let request = story.next_request();
    story.hub.step(story.now, Input::Cancel { session: client, request, job: first, tasks: None }, &mut out);
    story.records.append(&mut out.records);
    assert!(story.hub.durable().jobs.values().all(|job| job.state() == JobState::Cancelled));
    // The first is forgotten by now: nobody can say here how it ended.
    let key = essaim_proto::SubmitKey([7; 16]);
    let spec = Box::new(JobSpec { after: vec![first], ..command(&["true"]) });
    let mut out = essaim_core::hub::Out::default();
    story.hub.step(story.now, Input::Submit { session: client, request: 2, key, spec }, &mut out);
    match &out.effects[..] {
        [essaim_core::hub::Effect::Refuse { refusal, .. }] => {
            assert_eq!((refusal.code, refusal.param("field")), (RefusalCode::BadJob, "after"));
        }
        other => panic!("{other:?}"),
    }
    story.end();
}
