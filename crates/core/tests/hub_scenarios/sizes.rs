//! Nothing that a peer says makes a message of ours too large, or the hub's memory grow without a limit.

use crate::story::{Story, command, key, python, register, result};
use essaim_core::hub::{Answer, Effect, Input, NewKey, Out, Query};
use essaim_core::limits::{ENDED_BYTES_MAX, LIVE_BYTES_MAX, SLOTS_MAX};
use essaim_proto::api::JobList;
use essaim_proto::job::{FileSpec, JobSpec, Reason, TaskResult, TaskState, Verdict};
use essaim_proto::limits::{ARGUMENT_BYTES_MAX, JOB_FILES_MAX, JOB_PATHS_BYTES_MAX, NAMED_TASKS_MAX, VALUE_BYTES_MAX};
use essaim_proto::link::{Ended, GivenBack, HeldMany, Register, Report};
use essaim_proto::node::{Facts, Load, Toolchain};
use essaim_proto::{AttemptId, BlobHash, JobId, RefusalCode, SubmitKey, TaskId, TaskSet};

/// Four bytes a letter: what is counted in letters is four times as long on the wire.
fn wide(letters: usize) -> String {
    "🐝".repeat(letters)
}

/// Does a page of jobs fit a frame however long their names, arguments and results are? Two hundred jobs with all at
/// full length and the widest letters; the pages still name every job once.
#[test]
fn a_page_of_jobs_fits_a_frame() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let long = wide(220);
    let params = (0..8).map(|n| (format!("{n}{long}"), long.clone())).collect();
    let reason = Some(Reason { code: long.clone(), params });
    let spec = JobSpec { name: wide(256), ..command(&[long.as_str(); 6]) };
    for _ in 0..200 {
        let job = story.submit(client, spec.clone());
        let first = crate::story::attempt(job, 1);
        story.start(lab, first);
        let said = TaskResult { reason: reason.clone(), ..result(Verdict::RuntimeError) };
        story.give(Input::Ended { session: lab, ended: Box::new(Ended { attempt: first, result: said }) });
        story.event(job, TaskState::Failed);
        story.acked(lab, first);
    }
    let (mut before, mut seen) = (None, 0);
    loop {
        let query = Query::JobList(JobList { before, ..JobList::default() });
        let Answer::Jobs(page) = story.query(client, query) else { panic!("expected jobs") };
        assert!(essaim_proto::encode(&page).len() <= VALUE_BYTES_MAX);
        seen += page.jobs.len();
        before = page.jobs.last().map(|job| job.job);
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, 200);
    story.end();
}

/// Does a page of nodes fit a frame when each says as much about itself as it may?
#[test]
fn a_page_of_nodes_fits_a_frame() {
    let mut story = Story::new();
    let client = story.admin();
    let toolchain = |n| Toolchain { lang: format!("{n}{}", wide(500)), version: wide(500) };
    let facts = Facts {
        hostname: wide(500),
        os: wide(500),
        arch: wide(500),
        version: wide(500),
        addresses: vec![wide(500); 100],
        ..Facts::default()
    };
    let toolchains = (0..200).map(toolchain).collect();
    let says = Register { facts, toolchains, ..register(SLOTS_MAX) };
    for n in 0..20 {
        story.register(&format!("{n:02}{}", "x".repeat(60)), says.clone());
    }
    let (mut after, mut seen) = (None, 0);
    loop {
        let Answer::Nodes(page) = story.query(client, Query::NodeList { after }) else { panic!("expected nodes") };
        assert!(essaim_proto::encode(&page).len() <= VALUE_BYTES_MAX);
        seen += page.nodes.len();
        after = page.nodes.last().map(|node| node.name.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, 20);
    story.end();
}

/// Does a list of keys fit a frame when there are as many as allowed?
#[test]
fn a_page_of_keys_fits_a_frame() {
    let mut story = Story::new();
    let admin = story.admin();
    let create = |n: usize| Input::KeyCreate {
        session: admin,
        request: 1,
        name: key(&format!("{n:063}")),
        key: NewKey {
            role: essaim_proto::hello::Role::Operator,
            secret: BlobHash::of(&n.to_be_bytes()),
            quotas: essaim_proto::quota::Quotas::default(),
        },
    };
    for n in 1..essaim_core::limits::KEYS_MAX {
        story.give(create(n));
        assert!(matches!(story.take(), Effect::Answer { answer: Answer::KeyMade, .. }));
    }
    story.give(create(0));
    story.refused(RefusalCode::TooMany);
    let Answer::Keys(page) = story.query(admin, Query::KeyList) else { panic!("expected keys") };
    assert!(essaim_proto::encode(&page).len() <= VALUE_BYTES_MAX);
    story.end();
}

/// Does the largest job that is accepted fit the message that starts it, and its Submit?
#[test]
fn the_start_of_the_largest_job_fits_a_frame() {
    let mut story = Story::new();
    let client = story.admin();
    let (lab, _) = story.register("lab", Register { toolchains: crate::story::toolchains(&["c"]), ..register(1) });
    // Half of the files are sources, so that the compiler's command is as long as it may be.
    let path = |n: usize| {
        format!(
            "{n:0width$}.{}",
            if n.is_multiple_of(2) { "c" } else { "h" },
            width = JOB_PATHS_BYTES_MAX / JOB_FILES_MAX - 3
        )
    };
    let file = |n| FileSpec { path: path(n), hash: BlobHash([255; 32]), size_bytes: 1 << 29, ..FileSpec::default() };
    let mut files: Vec<FileSpec> = (0..JOB_FILES_MAX).map(file).collect();
    let inline = vec![255; 64 << 10];
    files[1].hash = BlobHash::of(&inline);
    files[1].size_bytes = inline.len() as u64;
    files[1].inline = Some(inline.into());
    let env = (0..10_000).map(|n| (format!("{n}"), String::new())).collect();
    let args = vec!["a".into(); (ARGUMENT_BYTES_MAX - 65_000) / 2];
    let spec = JobSpec { entry: path(0), files, env, args, ..JobSpec::default() };
    let job = story.submit(client, spec);
    let start = story.start(lab, crate::story::attempt(job, 1));
    let bytes = essaim_proto::encode(&start).len();
    assert!(bytes > VALUE_BYTES_MAX / 3 && bytes <= VALUE_BYTES_MAX, "{bytes}");
    story.end();
}

/// Does the answer to a registration fit a frame when the worker claims to hold as many attempts as its own frame can
/// carry?
#[test]
fn a_registration_with_thousands_of_attempts_is_answered_in_one_frame() {
    let mut story = Story::new();
    let held: Vec<AttemptId> =
        (0..28_000).map(|n| AttemptId { job: JobId(1 << 40 | n), task: TaskId(u32::MAX), attempt: u32::MAX }).collect();
    let (_, registered) = story.register("lab", Register { held, ..register(1) });
    assert!(!registered.kill.is_empty());
    assert!(essaim_proto::encode(&registered).len() <= VALUE_BYTES_MAX);
    story.end();
}

/// What if a worker's result or report holds a novel, control characters, or a number that is none? It is cut before it
/// is recorded.
#[test]
fn what_a_worker_says_is_cut() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let (job, first) = story.run(client, lab);
    let mut said = result(Verdict::RuntimeError);
    said.isolation = wide(10_000).as_str().into();
    let mut reason = Reason::new(&wide(10_000));
    for n in 0..1_000 {
        reason = reason.with(&format!("{n}{}", wide(500)), format!("\u{1b}[2J{}", wide(500)));
    }
    said.reason = Some(reason);
    story.give(Input::Ended { session: lab, ended: Box::new(Ended { attempt: first, result: said }) });
    let view = story.event(job, TaskState::Failed);
    let bytes = essaim_proto::encode(&view).len();
    assert!(bytes < 32 << 10, "{bytes}");
    let reason = view.result.unwrap().reason.unwrap();
    assert!(reason.params.values().all(|value| !value.contains('\u{1b}')));
    story.acked(lab, first);

    story.report(lab, Report { load: Load { cpu: f64::NAN, memory_used_bytes: 1 }, ..Report::default() });
    let Answer::Nodes(page) = story.query(client, Query::NodeList { after: None }) else { panic!("expected nodes") };
    assert_eq!(page.nodes[0].load.as_ref().unwrap().cpu, 0.0);
    story.end();
}

/// Is the memory of waiting and of ended jobs bounded in bytes and not only in numbers? Folders of two thousand files
/// are submitted and cancelled until the first is forgotten, then submitted until one is refused.
#[test]
fn large_jobs_are_bounded_in_bytes() {
    let mut story = Story::new();
    let client = story.admin();
    let path = |n| format!("{n:0width$}", width = 60);
    let mut spec = python();
    spec.files.extend((0..1_990).map(|n| FileSpec { path: path(n), ..FileSpec::default() }));
    spec.args = vec!["x".repeat(90_000)];
    let mut out = Out::default();
    let mut step = |story: &mut Story, input| {
        story.hub.step(story.now, input, &mut out);
        // The records are as large as the jobs: this story is not replayed.
        out.records.clear();
        out.effects.drain(..).collect::<Vec<Effect>>()
    };
    let submit = |n: u64| {
        let mut key = SubmitKey::default();
        key.0[..8].copy_from_slice(&n.to_le_bytes());
        Input::Submit { session: client, request: 1, key, spec: Box::new(spec.clone()) }
    };
    let mut forgotten = false;
    for n in 1.. {
        step(&mut story, submit(n));
        step(&mut story, Input::Cancel { session: client, request: 2, job: JobId(n), tasks: None });
        assert!(story.hub.durable().ended_bytes <= ENDED_BYTES_MAX);
        forgotten = !story.hub.durable().jobs.contains_key(&JobId(1));
        if forgotten || n > 5_000 {
            break;
        }
    }
    assert!(forgotten);
    let refused = |effects: &[Effect]| matches!(effects, [Effect::Refuse { refusal, .. }] if refusal.code == RefusalCode::TooMany);
    let mut was_refused = false;
    for n in 10_000..20_000 {
        if refused(&step(&mut story, submit(n))) {
            was_refused = true;
            break;
        }
    }
    assert!(was_refused);
    assert!(story.hub.durable().live_bytes < LIVE_BYTES_MAX + (1 << 20));
    assert_eq!(story.hub.check(), Ok(()));
    story.end_without_replay();
}

/// How many slots does a node have that offers none, or a million? Between one and the limit.
#[test]
fn slots_are_kept_within_reason() {
    let mut story = Story::new();
    let client = story.admin();
    story.worker("none", 0);
    story.worker("too-many", u32::MAX);
    let Answer::Nodes(page) = story.query(client, Query::NodeList { after: None }) else { panic!("expected nodes") };
    let slots: Vec<u32> = page.nodes.iter().map(|n| n.slots).collect();
    assert_eq!(slots, [1, SLOTS_MAX]);
    story.end();
}

/// What if a worker names more tasks than any worker holds? A registration, a report and what it gives back are refused by
/// name before anything is worked on one by one; what the others hold is as it was.
#[test]
fn a_worker_names_no_more_tasks_than_it_could_hold() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    let job = story.submit_array(client, crate::array_story::array("1-3"));
    let (started, attempt) = story.started(lab, job);
    assert_eq!(started, "1");
    story.counted(job);
    let all = || TaskSet::span(0, 9_999_999);
    let held_many = || vec![HeldMany { job, attempt, tasks: all() }; 1_000];
    let session = story.next_session();
    let liar = Register { held_many: held_many(), ..register(1) };
    story.give(Input::Register { session, name: crate::story::node("liar"), register: Box::new(liar) });
    story.refused(RefusalCode::TooMany);
    let report = Report { held_many: held_many(), ..Report::default() };
    story.give(Input::Report { session: lab, report: Box::new(report), rtt_us: None });
    let refusal = story.refused(RefusalCode::TooMany);
    assert_eq!(refusal.param("limit"), NAMED_TASKS_MAX.to_string());
    let given = GivenBack { job, tasks: vec![(attempt, all()); 1_000] };
    story.give(Input::GivenBack { session: lab, given });
    story.refused(RefusalCode::TooMany);
    // As many as it may: those that it does not hold change nothing.
    let given = GivenBack { job, tasks: vec![(attempt, TaskSet::span(2, NAMED_TASKS_MAX as u32 + 1))] };
    story.give(Input::GivenBack { session: lab, given });
    assert_eq!(story.show(client, job).counts.waiting, 3);
    story.end();
}
