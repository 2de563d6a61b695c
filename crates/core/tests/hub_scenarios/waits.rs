//! Why a job waits: for each situation the reason of the job and what is said of each node are exactly the true ones, and
//! when the obstacle that they name is taken away, the job runs.

use crate::array_story::array;
use crate::story::{Story, attempt, command, instance, on, python, register, toolchains};
use essaim_core::hub::{Effect, Input, SessionId, ToWorker};
use essaim_proto::JobId;
use essaim_proto::hello::Role;
use essaim_proto::job::{JobSpec, Needs, Reason, Verdict};
use essaim_proto::link::{Register, Report};
use std::collections::BTreeMap;

const GIB: u64 = 1 << 30;

/// A situation: nodes and jobs are made, the last job waits.
struct Situation {
    name: &'static str,
    /// Leads to it and submits the job that waits; says how it is ended.
    set: fn(&mut Story, SessionId) -> (JobId, Cure),
    /// The code of the job's reason with its parameters.
    reason: &'static str,
    /// What is said of each node: its name, the code, the parameters.
    nodes: &'static [&'static str],
}

type Cure = Box<dyn FnOnce(&mut Story)>;

fn text(reason: &Reason) -> String {
    let params: Vec<String> = reason.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{} {}", reason.code, params.join(" ")).trim().to_owned()
}

fn submit(story: &mut Story, client: SessionId, spec: JobSpec) -> JobId {
    story.ask_submit(client, spec);
    let job = story.submitted(false);
    story.skip_all();
    job
}

fn needs(cpus: u32, memory_bytes: u64) -> JobSpec {
    JobSpec { needs: Needs { cpus, memory_bytes, ..Needs::default() }, ..command(&["true"]) }
}

fn labelled(value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("gpu".to_owned(), value.to_owned())])
}

fn come(story: &mut Story, name: &str, says: Register) -> SessionId {
    let session = story.register(name, says).0;
    story.skip_all();
    session
}

/// A node comes.
fn comes(name: &'static str, says: Register) -> Cure {
    Box::new(move |story| {
        story.register(name, says);
    })
}

/// Ends the first try of a job on a worker.
fn end(worker: SessionId, job: JobId) -> Cure {
    Box::new(move |story| story.ended(worker, attempt(job, 1), Verdict::Ok))
}

fn say(worker: SessionId, report: Report) -> Cure {
    Box::new(move |story| story.report(worker, report))
}

const SITUATIONS: &[Situation] = &[
    Situation {
        name: "no node has ever come",
        set: |story, client| {
            let job = submit(story, client, command(&["true"]));
            (job, comes("a", register(1)))
        },
        reason: "no_node",
        nodes: &[],
    },
    Situation {
        name: "all slots of all nodes are busy",
        set: |story, client| {
            let a = come(story, "a", register(1));
            come(story, "b", register(2));
            let first = submit(story, client, on("a", command(&["true"])));
            submit(story, client, on("b", JobSpec { needs: needs(2, 0).needs, ..command(&["true"]) }));
            (submit(story, client, command(&["true"])), end(a, first))
        },
        reason: "no_free_slot busy=3 slots=3",
        nodes: &["a: slots_busy slots=1", "b: slots_busy slots=2"],
    },
    Situation {
        name: "the wanted node is busy, another one is free",
        set: |story, client| {
            let a = come(story, "a", register(1));
            come(story, "b", register(1));
            let first = submit(story, client, on("a", command(&["true"])));
            (submit(story, client, on("a", command(&["true"]))), end(a, first))
        },
        reason: "node_busy node=a",
        nodes: &["a: slots_busy slots=1", "b: not_wanted wanted=a"],
    },
    Situation {
        name: "the wanted node is not connected",
        set: |story, client| {
            let a = come(story, "a", register(1));
            come(story, "b", register(1));
            story.goodbye(a);
            let job = submit(story, client, on("a", command(&["true"])));
            let again = Register { instance: instance(2), ..register(1) };
            (job, comes("a", again))
        },
        reason: "node_offline node=a",
        nodes: &["a: node_offline", "b: not_wanted wanted=a"],
    },
    Situation {
        name: "nobody has the toolchain, for one looked in vain",
        set: |story, client| {
            let a = come(story, "a", Register { toolchains: Vec::new(), probing: true, ..register(1) });
            let job = submit(story, client, python());
            story.report(a, Report::default());
            (job, say(a, Report { toolchains: Some(toolchains(&["python"])), ..Report::default() }))
        },
        reason: "no_toolchain lang=python tool=python3",
        nodes: &["a: no_toolchain lang=python tool=python3"],
    },
    Situation {
        name: "one still looks, another has not found it",
        set: |story, client| {
            let a = come(story, "a", Register { toolchains: Vec::new(), probing: true, ..register(1) });
            come(story, "b", Register { toolchains: Vec::new(), ..register(1) });
            let job = submit(story, client, python());
            (job, say(a, Report { toolchains: Some(toolchains(&["python"])), ..Report::default() }))
        },
        reason: "node_probing nodes=1",
        nodes: &["a: node_probing nodes=1", "b: no_toolchain lang=python tool=python3"],
    },
    Situation {
        name: "no node is large enough: one has too few slots, one too little memory",
        set: |story, client| {
            come(story, "a", Register { memory_bytes: 64 * GIB, ..register(2) });
            come(story, "b", Register { memory_bytes: 2 * GIB, ..register(8) });
            let job = submit(story, client, needs(4, 8 * GIB));
            (job, comes("c", Register { memory_bytes: 8 * GIB, ..register(4) }))
        },
        reason: "no_node_fits nodes=2",
        nodes: &["a: too_few_slots needs=4 slots=2", "b: too_little_memory bytes=2147483648 needs=8589934592"],
    },
    Situation {
        name: "no node has the label",
        set: |story, client| {
            come(story, "a", register(1));
            come(story, "b", Register { labels: labelled("old"), ..register(1) });
            let wanted = Needs { labels: labelled("new"), ..Needs::default() };
            let job = submit(story, client, JobSpec { needs: wanted, ..command(&["true"]) });
            (job, comes("c", Register { labels: labelled("new"), ..register(1) }))
        },
        reason: "no_node_fits nodes=2",
        nodes: &["a: no_label label=gpu=new", "b: no_label label=gpu=new"],
    },
    Situation {
        name: "a wide task waits for the slots of the only node",
        set: |story, client| {
            let a = come(story, "a", register(4));
            let first = submit(story, client, command(&["true"]));
            (submit(story, client, needs(4, 0)), end(a, first))
        },
        reason: "no_room slots=4",
        nodes: &["a: slots_taken free=3 needs=4"],
    },
    Situation {
        name: "memory is in use on one node and too little on the other",
        set: |story, client| {
            let a = come(story, "a", Register { memory_bytes: 8 * GIB, ..register(4) });
            come(story, "b", Register { memory_bytes: 2 * GIB, ..register(4) });
            let first = submit(story, client, needs(1, 6 * GIB));
            (submit(story, client, needs(1, 4 * GIB)), end(a, first))
        },
        reason: "no_room memory=4294967296 slots=1",
        nodes: &[
            "a: memory_in_use free=2147483648 needs=4294967296",
            "b: too_little_memory bytes=2147483648 needs=4294967296",
        ],
    },
    Situation {
        name: "a free slot is kept for a wider task of a higher priority",
        set: |story, client| {
            let a = come(story, "a", register(2));
            let first = submit(story, client, command(&["true"]));
            let wide = submit(story, client, JobSpec { priority: 5, ..needs(2, 0) });
            let job = submit(story, client, command(&["true"]));
            let cure = move |story: &mut Story| {
                story.ended(a, attempt(first, 1), Verdict::Ok);
                story.skip_all();
                story.ended(a, attempt(wide, 1), Verdict::Ok);
            };
            (job, Box::new(cure))
        },
        reason: "reserved job=2",
        nodes: &["a: reserved job=2"],
    },
    Situation {
        name: "the owner of the node allows no more programs",
        set: |story, client| {
            let a = come(story, "a", Register { tasks_max: 1, ..register(4) });
            let first = submit(story, client, command(&["true"]));
            (submit(story, client, command(&["true"])), end(a, first))
        },
        reason: "no_room slots=1",
        nodes: &["a: tasks_max limit=1"],
    },
    Situation {
        name: "one node is overloaded, one finishes, one is silent",
        set: |story, client| {
            let a = come(story, "a", register(1));
            let b = come(story, "b", register(1));
            come(story, "c", register(1));
            for _ in 0..4 {
                story.pass(4);
                story.report(a, Report { overloaded: true, ..Report::default() });
                story.report(b, Report { draining: true, ..Report::default() });
            }
            (submit(story, client, command(&["true"])), say(a, Report::default()))
        },
        reason: "no_room slots=1",
        nodes: &["a: overloaded", "b: node_draining", "c: node_silent"],
    },
    Situation {
        name: "it waits for a job that runs",
        set: |story, client| {
            let a = come(story, "a", register(4));
            let first = submit(story, client, command(&["true"]));
            (submit(story, client, JobSpec { after: vec![first], ..command(&["true"]) }), end(a, first))
        },
        reason: "after jobs=1",
        nodes: &[],
    },
    Situation {
        name: "the hub's disk is full",
        set: |story, client| {
            let a = come(story, "a", register(1));
            let first = submit(story, client, command(&["true"]));
            let job = submit(story, client, command(&["true"]));
            story.give(Input::Storage { full: true });
            story.ended(a, attempt(first, 1), Verdict::Ok);
            (job, Box::new(|story| story.give(Input::Storage { full: false })))
        },
        reason: "hub_full",
        nodes: &[],
    },
];

/// Is the reason true in each situation, for the job and for each node, and is it the one whose end lets the job run?
#[test]
fn fifteen_situations() {
    assert_eq!(SITUATIONS.len(), 15);
    for Situation { name, set, reason, nodes } in SITUATIONS {
        let mut story = Story::new();
        let client = story.admin();
        let (job, cure) = set(&mut story, client);
        story.skip_all();
        let view = story.show(client, job);
        assert_eq!(text(view.reason.as_ref().expect(name)), *reason, "{name}");
        let said: Vec<String> =
            view.ruled_out.iter().map(|out| format!("{}: {}", out.node, text(&out.reason))).collect();
        assert_eq!(said, *nodes, "{name}");
        assert_eq!(view.tasks[0].reason, view.reason, "{name}");
        cure(&mut story);
        let is_start = |effect: Effect| matches!(effect, Effect::Tell { message: ToWorker::Start(start), .. } if start.attempt.job == job);
        assert!(story.skip_all().into_iter().any(is_start), "{name}: it does not run");
        story.end();
    }
}

/// Is an array told for what its other tasks wait while some of them run, and nothing once all have a node?
#[test]
fn an_array_says_what_its_other_tasks_wait_for() {
    let mut story = Story::new();
    let client = story.client("alice", Role::Operator);
    let lab = story.worker("lab", 2);
    let job = story.submit_array(client, array("1-3"));
    story.skip_all();
    assert_eq!(text(&story.show(client, job).reason.unwrap()), "no_free_slot busy=2 slots=2");
    story.end_tasks(lab, job, 1, "1-2", (Verdict::Ok, 1_000));
    story.skip_all();
    let view = story.show(client, job);
    assert_eq!((view.reason, view.ruled_out.len()), (None, 0));
    story.end();
}
