//! Where a task runs, and what it waits for.

use crate::story::{Story, attempt, command, instance, node, on, python, register, toolchains};
use essaim_core::hub::{Input, Out};
use essaim_proto::RefusalCode;
use essaim_proto::job::{TaskState, Verdict};
use essaim_proto::link::{Register, Report};

/// Which node gets a task: the one with the largest share of free slots, the name deciding between equals?
#[test]
fn the_freer_node_wins() {
    let mut story = Story::new();
    let client = story.admin();
    let big = story.worker("big", 4);
    let small = story.worker("small", 2);
    // 4/4 and 2/2 are equal: the name. Then 3/4 against 2/2, 3/4 against 1/2, 2/4 against 1/2 (equal).
    for worker in [big, small, big, big, small, big] {
        story.run(client, worker);
    }
    let waits = story.submit(client, python());
    let reason = story.task(client, waits).reason.unwrap();
    assert_eq!((reason.params["busy"].as_str(), reason.params["slots"].as_str()), ("6", "6"));
    story.end();
}

/// Does a job for a named node wait for it although another is free, and do others pass it?
#[test]
fn a_named_node_is_waited_for() {
    let mut story = Story::new();
    let client = story.admin();
    let a = story.worker("a", 1);
    let (job, first) = story.run(client, a);
    let b = story.worker("b", 1);
    let named = story.submit(client, on("a", python()));
    let reason = story.task(client, named).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["node"].as_str()), ("node_busy", "a"));
    story.run(client, b);
    story.ended(a, first, Verdict::Ok);
    story.event(job, TaskState::Done);
    story.acked(a, first);
    story.start(a, attempt(named, 1));
    story.end();
}

/// Is the order of submission kept between a job that names a node and one that does not, when one slot comes free?
#[test]
fn the_oldest_of_all_classes_is_first() {
    let mut story = Story::new();
    let client = story.admin();
    let a = story.worker("a", 1);
    let (_, running) = story.run(client, a);
    let waiting: Vec<_> = [python(), on("a", python()), command(&["ls"]), on("a", command(&["ls"])), python()]
        .into_iter()
        .map(|spec| story.submit(client, spec))
        .collect();
    let mut last = running;
    for job in waiting {
        story.ended(a, last, Verdict::Ok);
        story.event(last.job, TaskState::Done);
        story.acked(a, last);
        last = attempt(job, 1);
        story.start(a, last);
    }
    story.end();
}

/// Is a mistyped node refused with the name that was probably meant, and a name like no other without one?
#[test]
fn an_unknown_node_is_refused_with_a_near_name() {
    let mut story = Story::new();
    let client = story.admin();
    story.worker("lab-12", 1);
    story.worker("printer", 1);
    for (wanted, near) in
        [("lab-21", "lab-12"), ("lab12", "lab-12"), ("Lab-12", "lab-12"), ("xyz", ""), ("pinter", "printer")]
    {
        story.ask_submit(client, on(wanted, python()));
        let refusal = story.refused(RefusalCode::NoSuchNode);
        assert_eq!((refusal.param("node"), refusal.param("near")), (wanted, near));
    }
    story.end();
}

/// Is a toolchain that nobody has, or that the named node does not have, refused with the tool's name?
#[test]
fn a_toolchain_that_is_nowhere_is_refused() {
    let mut story = Story::new();
    let client = story.admin();
    story.worker("lab", 1);
    let java = || essaim_proto::job::JobSpec { entry: "Main.java".into(), ..rename("Main.java") };
    story.ask_submit(client, java());
    let refusal = story.refused(RefusalCode::NoToolchain);
    assert_eq!((refusal.param("tool"), refusal.param("nodes")), ("java, javac", "1"));
    story.ask_submit(client, on("lab", java()));
    assert_eq!(story.refused(RefusalCode::NoToolchainOnNode).param("node"), "lab");
    // A command needs no toolchain.
    let job = story.submit(client, command(&["uname"]));
    story.told_to_start(essaim_core::hub::SessionId(2), attempt(job, 1));
    story.event(job, TaskState::Placed);
    story.end();
}

fn rename(path: &str) -> essaim_proto::job::JobSpec {
    let mut spec = python();
    spec.files[0].path = path.into();
    spec
}

/// Does a program wait while a node is still looking for its toolchains, and start with the report that names it? For
/// any node, and for a named one.
#[test]
fn a_node_that_still_looks_is_waited_for() {
    for named in [false, true] {
        let mut story = Story::new();
        let client = story.admin();
        let looking = Register { toolchains: Vec::new(), probing: true, ..register(1) };
        let (lab, _) = story.register("lab", looking);
        let spec = if named { on("lab", python()) } else { python() };
        let job = story.submit(client, spec);
        assert_eq!(story.task(client, job).reason.unwrap().code, "node_probing");
        story.report(lab, Report { probing: true, ..Report::default() });
        story.nothing_else();
        let found = Some(toolchains(&["python"]));
        story.report(lab, Report { toolchains: found, ..Report::default() });
        story.start(lab, attempt(job, 1));
        story.end();
    }
}

/// What does a job wait for when its node looked and found nothing? For the toolchain; when one comes, it runs.
#[test]
fn a_toolchain_that_was_not_found_is_named() {
    let mut story = Story::new();
    let client = story.admin();
    let looking = Register { toolchains: Vec::new(), probing: true, ..register(1) };
    let (lab, _) = story.register("lab", looking);
    let job = story.submit(client, python());
    story.report(lab, Report::default());
    let reason = story.task(client, job).reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.params["tool"].as_str()), ("no_toolchain", "python3"));
    let other = story.worker("other", 1);
    story.start(other, attempt(job, 1));
    story.end();
}

/// Does a job wait, with a reason, when no node is connected, and start when one comes?
#[test]
fn without_a_node_a_job_waits() {
    let mut story = Story::new();
    let client = story.admin();
    let lab = story.worker("lab", 1);
    story.goodbye(lab);
    let job = story.submit(client, python());
    assert_eq!(story.task(client, job).reason.unwrap().code, "no_node");
    let named = story.submit(client, on("lab", python()));
    assert_eq!(story.task(client, named).reason.unwrap().code, "node_offline");
    let (lab, _) = story.register("lab", Register { instance: instance(2), ..register(2) });
    story.start(lab, attempt(job, 1));
    story.start(lab, attempt(named, 1));
    story.end();
}

/// Is one step bounded when thousands of nodes are waited for, each with jobs of its own? With every class compared to
/// every other the last submissions would take minutes each.
#[test]
fn thousands_of_classes_do_not_slow_a_step_down() {
    let mut story = Story::new();
    let client = story.admin();
    let mut out = Out::default();
    for n in 0..5_000u64 {
        let name = node(&format!("n{n}"));
        let session = essaim_core::hub::SessionId(1_000 + n);
        story.hub.step(story.now, Input::Register { session, name, register: Box::new(register(1)) }, &mut out);
        story.hub.step(story.now, Input::SessionClosed { session, clean: true }, &mut out);
        let mut key = essaim_proto::SubmitKey::default();
        key.0[..8].copy_from_slice(&(n + 1).to_le_bytes());
        let spec = Box::new(on(&format!("n{n}"), python()));
        story.hub.step(story.now, Input::Submit { session: client, request: 1, key, spec }, &mut out);
    }
    story.records.append(&mut out.records);
    let free = story.worker("zzz", 1);
    let job = story.submit(client, python());
    story.start(free, attempt(job, 1));
    story.end();
}
