//! Who gets the next slot: priorities, owners, wide and narrow tasks; and what is leased ahead of slots.

use crate::array_story::{LONG_MS, array};
use crate::story::{Story, attempt, command, register};
use essaim_core::hub::{Effect, Input, Out, Record, SessionId, ToWorker};
use essaim_core::limits::TAKE_BACK_MS;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, Needs, Phase, TaskState, Verdict};
use essaim_proto::link::Start;
use essaim_proto::{AttemptId, JobId, TaskId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SHORT: (Verdict, u64) = (Verdict::Ok, 1);
const LONG: (Verdict, u64) = (Verdict::Ok, LONG_MS);

fn cpus(cpus: u32, spec: JobSpec) -> JobSpec {
    JobSpec { needs: Needs { cpus, ..Needs::default() }, ..spec }
}

/// An array of short tasks that is known to be one: eight have ended, the worker has leases ahead.
fn short_array(story: &mut Story, client: SessionId, lab: SessionId, spec: JobSpec) -> (JobId, String) {
    let job = story.submit_array(client, spec);
    assert_eq!(story.started(lab, job), ("1-4".into(), 1));
    story.counted(job);
    story.end_tasks(lab, job, 1, "1-4", SHORT);
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job), ("5-8".into(), 1), "four ends say too little");
    story.counted(job);
    story.end_tasks(lab, job, 1, "5-8", SHORT);
    story.acked_tasks(lab, job);
    let (ahead, first_try) = story.started(lab, job);
    assert_eq!(first_try, 1);
    story.counted(job);
    (job, ahead)
}

/// Are short tasks leased ahead, fifty milliseconds of work to each slot, and topped up when half of them is done?
#[test]
fn short_tasks_are_leased_ahead() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let (job, ahead) = short_array(&mut story, client, lab, array("1-10000"));
    assert_eq!(ahead, "9-212", "51 for each slot");
    story.end_tasks(lab, job, 1, "9-109", SHORT);
    story.acked_tasks(lab, job);
    assert_eq!(story.counted(job).1[2], 109, "more than half is still there");
    story.end_tasks(lab, job, 1, "110", SHORT);
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job).0, "213-314");
    story.counted(job);
    // They take no place from others: who has less comes behind what is leased, whose they are comes behind the array.
    let mine = story.submit(client, command(&["true"]));
    let reason = story.task(client, mine).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["busy"].as_str()), ("no_free_slot", "4"));
    let bob = story.client("bob", Role::Operator);
    let other = story.submit(bob, command(&["true"]));
    story.start(lab, attempt(other, 1));
    // When they take longer, no more are leased than there are slots.
    story.end_tasks(lab, job, 1, "111-314", LONG);
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job).0, "315-317");
    story.counted(job);
    story.end();
}

/// Is nothing leased ahead where tasks are long, wide or reserve memory, or where a node's owner limits their number?
#[test]
fn only_short_narrow_tasks_are_leased_ahead() {
    let memory = Needs { memory_bytes: 1 << 20, ..Needs::default() };
    let wide = Needs { cpus: 2, ..Needs::default() };
    for (needs, how, tasks_max, per_batch) in [
        (Needs::default(), LONG, 0, 4),
        (memory, SHORT, 0, 4),
        (wide, SHORT, 0, 2),
        (Needs::default(), SHORT, 3, 3),
        (Needs::default(), SHORT, 0, 204),
    ] {
        let mut story = Story::new();
        let client = story.admin();
        let offered = essaim_proto::link::Register { memory_bytes: 1 << 30, tasks_max, ..register(4) };
        let (lab, _) = story.register("lab", offered);
        let job = story.submit_array(client, JobSpec { needs: needs.clone(), ..array("1-10000") });
        let mut given = story.started(lab, job).0;
        story.counted(job);
        for _ in 0..8 {
            story.end_tasks(lab, job, 1, &given, how);
            story.acked_tasks(lab, job);
            given = story.started(lab, job).0;
            story.counted(job);
        }
        let count = crate::array_story::tasks(&given).len();
        assert_eq!(count, per_batch, "{needs:?}, {how:?}, {tasks_max}");
        story.end();
    }
}

/// Do leases go back when a task before them turns out long and another node is free, without counting as lost?
#[test]
fn leases_that_stand_still_are_taken_back() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let (job, ahead) = short_array(&mut story, client, lab, array("1-100"));
    assert_eq!(ahead, "9-100");
    let other = story.worker("other", 4);
    story.stand_still(TAKE_BACK_MS - 1, TAKE_BACK_MS - 1);
    story.nothing_else();
    story.stand_still(1, 1);
    // Nobody has told of those that it has begun.
    assert_eq!(story.taken_back(lab, job), "9-100");
    for task in 9..=12 {
        story.progress(lab, AttemptId { job, task: TaskId(task), attempt: 1 }, Phase::Run);
        story.counted(job);
    }
    let before = story.records.len();
    story.give_back(lab, job, 1, "13-100");
    assert_eq!(story.started(other, job), ("13-16".into(), 2), "no more than there are slots");
    assert_eq!(story.counted(job).1, [88, 4, 8, 0, 0]);
    let is_loss = |record: &&Record| matches!(record, Record::TasksLost { given_back: true, .. });
    assert_eq!(story.records_since(before).iter().filter(is_loss).count(), 1, "one record");
    let tries = story.hub.durable().jobs[&job].tries(TaskId(50));
    assert_eq!((tries.lost, tries.failed), (0, 0));
    story.end();
}

/// Does a job that comes behind tasks which turn out long get the next slot, where there is one node only?
#[test]
fn long_tasks_do_not_keep_others_waiting_behind_leases() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 4);
    let (job, ahead) = short_array(&mut story, client, lab, array("1-100"));
    assert_eq!(ahead, "9-100");
    for task in 9..=12 {
        story.progress(lab, AttemptId { job, task: TaskId(task), attempt: 1 }, Phase::Run);
        story.counted(job);
    }
    let bob = story.client("bob", Role::Operator);
    let other = story.submit(bob, command(&["true"]));
    assert_eq!(story.task(bob, other).reason.unwrap().code, "no_free_slot", "those that run have their slots");
    story.stand_still(TAKE_BACK_MS, TAKE_BACK_MS);
    assert_eq!(story.taken_back(lab, job), "13-100");
    story.give_back(lab, job, 1, "13-100");
    story.counted(job);
    story.end_tasks(lab, job, 1, "9", LONG);
    story.acked_tasks(lab, job);
    story.start(lab, attempt(other, 1));
    story.counted(job);
    story.end();
}

/// Is a higher priority served first whoever is older, and age among equals of one owner?
#[test]
fn priority_goes_before_age() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let first = story.submit(client, command(&["true"]));
    story.start(lab, attempt(first, 1));
    let with = |priority| JobSpec { priority, ..command(&["true"]) };
    let jobs: Vec<JobId> = [0, -5, 10, 0, 10].map(|priority| story.submit(client, with(priority))).to_vec();
    let mut last = first;
    for at in [2, 4, 0, 3, 1] {
        story.ended(lab, attempt(last, 1), Verdict::Ok);
        story.event(last, TaskState::Done);
        story.acked(lab, attempt(last, 1));
        last = jobs[at];
        story.start(lab, attempt(last, 1));
    }
    story.end();
}

/// The starts that were told to a worker since, with how many tasks each.
fn starts(story: &mut Story) -> Vec<Start> {
    let start = |effect| match effect {
        Effect::Tell { message: ToWorker::Start(start), .. } => Some(*start),
        _ => None,
    };
    story.skip_all().into_iter().filter_map(start).collect()
}

/// Do an owner of a hundred thousand tasks and one of ten share the slots, and does the small one end soon?
#[test]
fn owners_share() {
    let mut story = Story::new();
    let (alice, bob) = (story.client("alice", Role::Operator), story.client("bob", Role::Operator));
    let lab = story.worker("lab", 8);
    story.ask_submit(alice, array("1-100000"));
    story.ask_submit(bob, array("1-10"));
    let (many, few) = (JobId(1), JobId(2));
    let mut running: Vec<AttemptId> = Vec::new();
    let mut at_once = BTreeMap::new();
    let mut rounds = 0;
    while story.hub.durable().jobs[&few].state() != essaim_proto::job::JobState::Done {
        for start in starts(&mut story) {
            let tasks = start.tasks.unwrap();
            running.extend(tasks.iter().map(|task| AttemptId { task, ..start.attempt }));
        }
        let of_few = running.iter().filter(|attempt| attempt.job == few).count();
        *at_once.entry(of_few).or_insert(0) += 1;
        let AttemptId { job, task, attempt } = running.remove(0);
        story.end_tasks(lab, job, attempt, &task.to_string(), LONG);
        rounds += 1;
        assert!(rounds < 60, "ten tasks wait for a hundred thousand: {at_once:?}");
    }
    assert!(at_once.keys().max() >= Some(&4), "half of the slots: {at_once:?}");
    assert!(story.hub.durable().jobs[&many].ready() > 99_000);
    story.skip_all();
    story.end();
}

/// Does a task that needs a whole node get it while narrow ones of its owner and of another keep coming?
#[test]
fn a_wide_task_is_not_starved() {
    for same_owner in [true, false] {
        let mut story = Story::new();
        let client = story.admin();
        let other = if same_owner { client } else { story.client("bob", Role::Operator) };
        let lab = story.worker("lab", 4);
        let narrow = story.submit_array(other, array("1-4"));
        story.started(lab, narrow);
        story.counted(narrow);
        let wide = story.submit(client, cpus(4, command(&["true"])));
        let more = story.submit_array(other, array("1-1000"));
        story.counted(more);
        let mut begun = false;
        for task in 1..=4 {
            assert!(!begun);
            story.end_tasks(lab, narrow, 1, &task.to_string(), LONG);
            for effect in story.skip_all() {
                let Effect::Tell { message: ToWorker::Start(start), .. } = effect else { continue };
                assert_eq!(start.attempt.job, wide, "a narrow one slipped in");
                begun = true;
            }
            if !begun {
                let reason = story.task(client, wide).reason.unwrap();
                assert_eq!((reason.code.as_str(), reason.params["slots"].as_str()), ("no_room", "4"));
            }
        }
        assert!(begun, "it never came");
        story.ended(lab, attempt(wide, 1), Verdict::Ok);
        assert_eq!(starts(&mut story).len(), 1, "the narrow ones go on");
        story.end();
    }
}

/// Does memory that tasks reserve keep others away, and come back with their end?
#[test]
fn memory_is_reserved() {
    let mut story = Story::new();
    let client = story.admin();
    let (lab, _) = story.register("lab", essaim_proto::link::Register { memory_bytes: 8 << 30, ..register(8) });
    let with = |memory_bytes: u64| {
        let needs = Needs { memory_bytes, ..Needs::default() };
        JobSpec { needs, ..array("1-10") }
    };
    let job = story.submit_array(client, with(3 << 30));
    assert_eq!(story.started(lab, job).0, "1-2");
    story.counted(job);
    // Something small fits beside them, and nothing that would take what the third waits for.
    let small = story.submit(client, command(&["true"]));
    story.skip_all();
    let reason = story.task(client, small).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["job"].as_str()), ("reserved", job.to_string().as_str()));
    story.end_tasks(lab, job, 1, "1", LONG);
    story.acked_tasks(lab, job);
    assert_eq!(story.started(lab, job).0, "3");
    story.counted(job);
    story.end();
}

/// How long does a step take with a thousand nodes and twenty thousand jobs of many classes in the queue? Printed;
/// what is asserted is that it is no work of minutes.
#[test]
fn a_full_queue_and_a_thousand_nodes() {
    let mut story = Story::new();
    let client = story.admin();
    let mut out = Out::default();
    for n in 0..1_000_u64 {
        let (session, name) = (SessionId(10_000 + n), crate::story::node(&format!("n{n}")));
        story.hub.step(story.now, Input::Register { session, name, register: Box::new(register(4)) }, &mut out);
    }
    story.records.append(&mut out.records);
    let mut slowest = Duration::ZERO;
    for n in 0..20_000_u64 {
        let needs = Needs { cpus: 1 + (n % 4) as u32, memory_bytes: 0, ..Needs::default() };
        let spec = Box::new(JobSpec { needs, priority: (n % 3) as i32, ..command(&["true"]) });
        let mut key = essaim_proto::SubmitKey([7; 16]);
        key.0[..8].copy_from_slice(&n.to_le_bytes());
        let begun = Instant::now();
        story.hub.step(story.now, Input::Submit { session: client, request: 1, key, spec }, &mut out);
        slowest = slowest.max(begun.elapsed());
        story.records.append(&mut out.records);
        out.effects.clear();
    }
    println!("the slowest of 20,000 submits with 1,000 nodes: {slowest:?}");
    assert!(slowest < Duration::from_secs(10));
    assert_eq!(story.hub.check(), Ok(()));
    story.end();
}
