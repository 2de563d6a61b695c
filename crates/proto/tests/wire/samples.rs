//! One sample of every message, with every field filled, and the frame that carries it.

use essaim_proto::api::*;
use essaim_proto::frame::{FLAG_ANSWER, FLAG_LAST};
use essaim_proto::hello::*;
use essaim_proto::job::*;
use essaim_proto::link::*;
use essaim_proto::node::*;
use essaim_proto::quota::*;
use essaim_proto::{
    AttemptId, BlobHash, Frame, Function, InstanceId, JobId, MachineId, Refusal, RefusalCode, SubmitKey, TaskId,
    TaskSet,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What the samples have in common.
pub(crate) trait Message: Serialize + DeserializeOwned + Default + PartialEq + Debug {}
impl<T: Serialize + DeserializeOwned + Default + PartialEq + Debug> Message for T {}

/// Sees each sample with its type.
pub(crate) trait Visit {
    /// A message that a frame carries.
    fn message<T: Message>(&mut self, name: &'static str, frame: Frame, sample: T);
    /// A struct that stands inside messages.
    fn part<T: Message>(&mut self, _name: &'static str, _sample: T) {}
}

/// Shows every message to `visit`.
pub(crate) fn each(visit: &mut impl Visit) {
    first_words(visit);
    jobs(visit);
    blobs_nodes_keys(visit);
    link(visit);
    parts(visit);
}

fn show<T: Message>(visit: &mut impl Visit, name: &'static str, function: Function, flags: u8, sample: T) {
    let frame = Frame::of(function, 7, &sample).with_flag(flags);
    visit.message(name, frame, sample);
}

const JOB: JobId = JobId(42);
const ATTEMPT: AttemptId = AttemptId { job: JOB, task: TaskId(1), attempt: 2 };

fn text(text: &str) -> String {
    text.to_owned()
}

fn map(name: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(text(name), text(value))])
}

fn quotas() -> Quotas {
    Quotas { queued_tasks: Quota::At(1_000), stored_bytes: Quota::Unlimited, requests_per_second: Quota::At(20) }
}

fn quota() -> QuotaView {
    QuotaView { used: Some(3), limit: Some(1_000), own: true }
}

fn key() -> KeyView {
    KeyView {
        name: text("bob"),
        role: Role::User,
        created_ms: 1_760_000_000_000,
        queued_tasks: quota(),
        stored_bytes: quota(),
        requests_per_second: quota(),
    }
}

fn reason() -> Reason {
    Reason::new("no_free_slot").with("nodes", 3)
}

fn result() -> TaskResult {
    TaskResult {
        verdict: Verdict::RuntimeError,
        phase: Phase::Run,
        exit_code: Some(-3),
        signal: Some(11),
        cpu_ms: 12,
        wall_ms: 345,
        memory_peak_bytes: 9_000_000_000,
        stdout_bytes: 6,
        stderr_bytes: 1,
        truncated: true,
        isolation: Isolation::Full,
        node: text("here-1"),
        attempt: 2,
        cache_hit: true,
        reason: Some(reason()),
    }
}

fn task() -> TaskView {
    TaskView {
        task: TaskId(1),
        state: TaskState::Running,
        reason: Some(reason()),
        attempt: 2,
        node: Some(text("here-1")),
        phase: Some(Phase::Compile),
        waiting_for_input: true,
        result: Some(result()),
    }
}

fn file() -> FileSpec {
    FileSpec {
        path: text("src/héllo.py"),
        hash: BlobHash([0xAB; 32]),
        size_bytes: 3,
        executable: true,
        inline: Some(ByteBuf::from(vec![0x00, 0xFF, 0x0A])),
    }
}

fn tasks() -> TaskSet {
    "1-9:2,12,20-1000".parse().unwrap()
}

fn array() -> ArraySpec {
    ArraySpec { tasks: tasks(), lines: Some(file()) }
}

fn needs() -> Needs {
    Needs { cpus: 4, memory_bytes: 1 << 33, labels: map("gpu", "a100") }
}

fn counts() -> TaskCounts {
    TaskCounts { total: 1_000, waiting: 480, running: 4, done: 512, failed: 3, cancelled: 1 }
}

fn ruled_out() -> RuledOut {
    RuledOut { node: text("here-1"), reason: Reason::new("node_busy").with("free", 1).with("slots", 4) }
}

fn limits() -> Limits {
    Limits {
        wall_ms: Some(5_000),
        cpu_ms: Some(2_000),
        memory_bytes: Some(256 << 20),
        processes: Some(32),
        output_bytes: Some(1 << 20),
        file_bytes: Some(32 << 20),
        disk_bytes: Some(64 << 20),
    }
}

fn clamped() -> Clamped {
    Clamped { limit: Limit::CpuTime, asked: 9_000, given: 2_000 }
}

fn spec() -> JobSpec {
    JobSpec {
        name: text("hello"),
        kind: JobKind::Command,
        lang: Some(text("python")),
        entry: text("src/héllo.py"),
        files: vec![file()],
        args: vec![text("-x"), text("")],
        env: map("LANG", "C.UTF-8"),
        stdin: StdinSpec::Live,
        on: Some("here-1".parse().unwrap()),
        limits: limits(),
        clamped: vec![clamped()],
        ephemeral: true,
        array: Some(Box::new(array())),
        needs: needs(),
        priority: -2,
        retry: 3,
        after: vec![JobId(40), JobId(41)],
        notify: Some(text("http://ada:8000/hook")),
    }
}

fn job() -> JobView {
    JobView {
        limits: limits(),
        clamped: vec![clamped()],
        job: JOB,
        name: text("hello"),
        owner: text("ann"),
        lang: text("python"),
        state: JobState::Running,
        submitted_ms: 1_760_000_000_000,
        ended_ms: Some(1_760_000_000_999),
        tasks: vec![task()],
        args: vec![text("-x")],
        array: Some(tasks()),
        counts: counts(),
        priority: -2,
        needs: needs(),
        reason: Some(reason()),
        ruled_out: vec![ruled_out()],
        notify: Some(text("http://ada:8000/hook")),
        notice: Some(notice()),
    }
}

fn notice() -> Notice {
    Notice { at_ms: 1_700_000_400_000, tries: 10, error: Some(text("no answer within 10 s")) }
}

fn toolchain() -> Toolchain {
    Toolchain { lang: text("c"), version: text("gcc 12.2.0") }
}

fn facts() -> Facts {
    Facts {
        hostname: text("here"),
        os: text("linux"),
        arch: text("x86_64"),
        cpus: 2,
        memory_bytes: 24 << 30,
        version: text("0.1.0"),
        addresses: vec![text("192.0.2.7")],
    }
}

fn load() -> Load {
    Load { cpu: 0.25, memory_used_bytes: 1 << 30 }
}

fn node() -> NodeView {
    NodeView {
        name: text("here-1"),
        state: NodeState::Draining,
        reason: Some(reason()),
        since_ms: 1_760_000_000_000,
        local: true,
        slots: 2,
        slots_used: 1,
        toolchains: vec![toolchain()],
        probing: true,
        facts: facts(),
        load: Some(load()),
        rtt_us: Some(180),
        jobs: vec![42],
        labels: map("room", "B12"),
    }
}

fn first_words(visit: &mut impl Visit) {
    let hello = Hello {
        proto_min: 1,
        proto_max: 1,
        software: text("essaim 0.1.0"),
        kind: PeerKind::Client,
        features: vec![text("zstd")],
        key: Some(Secret(text("essaim-key.demo"))),
    };
    show(visit, "Hello", Function::HELLO, 0, hello);
    let welcome = Welcome {
        proto: 1,
        software: text("essaim 0.1.0"),
        hub: text("lab"),
        features: vec![text("zstd")],
        heartbeat_ms: 5_000,
        silence_ms: 30_000,
        lease_ms: 60_000,
        you: text("ann"),
        role: Role::Admin,
        seen_from: text("192.0.2.7:51234"),
    };
    show(visit, "Welcome", Function::WELCOME, 0, welcome);
    let refusal = Refusal::new(RefusalCode::NoSuchJob).with("job", 42);
    show(visit, "Refusal", Function::REFUSED, FLAG_ANSWER, refusal);
    show(visit, "Goodbye", Function::GOODBYE, 0, Goodbye { reason: text("shutdown") });
    let join =
        Join { secret: Secret(text("0f1e2d3c")), csr: vec![0x30, 0x82, 0x00], name: Some("desk".parse().unwrap()) };
    show(visit, "Join", Function::JOIN, 0, join);
    let joined = Joined { chain: vec![ByteBuf::from(vec![0x30, 0x81]), ByteBuf::new()], name: text("desk") };
    show(visit, "Joined", Function::JOIN, FLAG_ANSWER, joined);
}

fn jobs(visit: &mut impl Visit) {
    let submit = Submit { key: SubmitKey([0x11; 16]), spec: spec(), watch: true, in_order: true };
    show(visit, "Submit", Function::SUBMIT, 0, submit);
    show(
        visit,
        "Submitted",
        Function::SUBMIT,
        FLAG_ANSWER,
        Submitted { job: JOB, repeated: true, clamped: vec![clamped()] },
    );
    let from = OutputFrom { attempt: ATTEMPT, stdout: 6, stderr: 1 };
    let key = Some(SubmitKey([0x11; 16]));
    let tasks = Some(tasks());
    let watch =
        Watch { job: JOB, output: true, from: Some(from), no_follow: true, key, tasks: tasks.clone(), in_order: true };
    show(visit, "Watch", Function::WATCH, 0, watch);
    let (state, counts, ended) = (JobState::Done, Some(counts()), "3-5,17".parse().unwrap());
    let event = JobEvent { job: JOB, state, task: Some(task()), counts, ended, last: true };
    show(visit, "JobEvent", Function::EVENT, FLAG_LAST, event);
    let chunk = OutputChunk {
        attempt: ATTEMPT,
        stream: Stream::Stderr,
        offset: 6,
        bytes: vec![0xC3, 0x28],
        dropped: true,
        damaged_bytes: 4,
    };
    show(visit, "OutputChunk", Function::OUTPUT, 0, chunk);
    show(visit, "OutputAck", Function::OUTPUT_ACK, 0, OutputAck { received_bytes: 1 << 33 });
    let stdin = StdinChunk { job: JOB, task: TaskId(1), offset: 4, bytes: b"yes\n".to_vec(), end: true };
    show(visit, "StdinChunk", Function::STDIN, 0, stdin);
    show(visit, "StdinAck", Function::STDIN_ACK, 0, StdinAck { job: JOB, task: TaskId(1), offset: 8 });
    show(visit, "JobCancel", Function::JOB_CANCEL, 0, JobCancel { job: JOB, tasks: tasks.clone() });
    show(visit, "Done", Function::JOB_CANCEL, FLAG_ANSWER, Done {});
    let rerun = JobRerun { job: JOB, key: SubmitKey([0x11; 16]), tasks, states: vec![TaskState::Failed] };
    show(visit, "JobRerun", Function::JOB_RERUN, 0, rerun);
    job_lists(visit);
}

fn job_lists(visit: &mut impl Visit) {
    let list = JobList {
        before: Some(JOB),
        limit: 20,
        live_only: true,
        states: vec![JobState::Done, JobState::Failed],
        owner: Some(text("ada")),
        node: Some(text("here-0")),
        text: Some(text("main")),
    };
    show(visit, "JobList", Function::JOB_LIST, 0, list);
    show(visit, "JobPage", Function::JOB_LIST, FLAG_ANSWER, JobPage { jobs: vec![job()], more: true });
    show(visit, "JobShow", Function::JOB_SHOW, 0, JobShow { job: JOB });
    show(visit, "JobView", Function::JOB_SHOW, FLAG_ANSWER, job());
    let states = vec![TaskState::Failed];
    let list = TaskList { job: JOB, after: Some(TaskId(17)), limit: 20, states, numbers_only: true };
    show(visit, "TaskList", Function::TASK_LIST, 0, list);
    let page = TaskPage { tasks: vec![task()], more: true, set: tasks() };
    show(visit, "TaskPage", Function::TASK_LIST, FLAG_ANSWER, page);
    show(visit, "StatesWatch", Function::STATES, 0, StatesWatch { nodes: true, jobs: true });
    let (node, job) = (Some(node_change()), Some(job_change()));
    let change = StateChange { at_ms: 1_700_000_000_000, missed: 2, node, job };
    show(visit, "StateChange", Function::STATE, 0, change);
}

fn node_change() -> NodeChange {
    let reason = Some(Reason::new("connection_lost"));
    NodeChange { name: text("here-0"), was: NodeState::Online, state: NodeState::Offline, reason }
}

fn job_change() -> JobChange {
    JobChange {
        job: JOB,
        name: text("main.py"),
        owner: text("ada"),
        state: JobState::Failed,
        attempt: 2,
        node: Some(text("here-0")),
        verdict: Some(Verdict::Lost),
        reason: Some(Reason::new("lost").with("attempts", 3)),
    }
}

fn blobs_nodes_keys(visit: &mut impl Visit) {
    let hash = BlobHash([0xCD; 32]);
    show(visit, "BlobsMissing", Function::BLOBS_MISSING, 0, BlobsMissing { hashes: vec![hash] });
    show(visit, "BlobPut", Function::BLOB_PUT, 0, BlobPut { hash, size_bytes: 1 << 20 });
    show(visit, "BlobGet", Function::BLOB_GET, 0, BlobGet { hash, offset: 65_536 });
    show(visit, "BlobWanted", Function::BLOB_GET, 0, BlobWanted { attempt: ATTEMPT, hash, offset: 65_536 });
    show(visit, "Credit", Function::CREDIT, 0, Credit { bytes: 65_536 });
    show(visit, "NodeList", Function::NODE_LIST, 0, NodeList { after: Some(text("here-0")) });
    let local = LocalWorkers { mode: true, workers: 1, workers_max: 4, wanted: 2 };
    let page = NodePage { nodes: vec![node()], more: true, local: Some(local) };
    show(visit, "NodePage", Function::NODE_LIST, FLAG_ANSWER, page);
    show(
        visit,
        "KeyCreate",
        Function::KEY_CREATE,
        0,
        KeyCreate { name: text("bob"), role: Role::Operator, quotas: quotas() },
    );
    let created = KeyCreated { key: Secret(text("essaim-key.demo")), addresses: vec![text("127.0.0.1:4200")] };
    show(visit, "KeyCreated", Function::KEY_CREATE, FLAG_ANSWER, created);
    show(visit, "KeyList", Function::KEY_LIST, 0, KeyList {});
    show(visit, "KeyPage", Function::KEY_LIST, FLAG_ANSWER, KeyPage { keys: vec![key()] });
    let Quotas { queued_tasks, stored_bytes, requests_per_second } = quotas();
    let set = KeySet {
        name: text("bob"),
        queued_tasks: Some(queued_tasks),
        stored_bytes: Some(stored_bytes),
        requests_per_second: Some(requests_per_second),
    };
    show(visit, "KeySet", Function::KEY_SET, 0, set);
    show(visit, "KeyRevoke", Function::KEY_REVOKE, 0, KeyRevoke { name: text("bob") });
    let make =
        JoinLineMake { open: Some(text("0.0.0.0:5200")), open_clients: Some(text("0.0.0.0")), uses: 3, ttl_ms: 60_000 };
    show(visit, "JoinLineMake", Function::JOIN_LINE, 0, make);
    let made = JoinLineMade {
        line: Secret(text("essaim-join.aa.bb@192.0.2.7:5200")),
        expires_ms: 1_760_000_060_000,
        addresses: vec![text("192.0.2.7:5200")],
    };
    show(visit, "JoinLineMade", Function::JOIN_LINE, FLAG_ANSWER, made);
    let set = LocalSet { mode: Some(false), workers: Some(1), workers_max: Some(4) };
    show(visit, "LocalSet", Function::LOCAL_SET, 0, set);
    show(visit, "LocalWorkers", Function::LOCAL_SET, FLAG_ANSWER, local);
}

fn link(visit: &mut impl Visit) {
    let register = Register {
        machine: MachineId([0x22; 16]),
        instance: InstanceId([0x33; 16]),
        local: true,
        slots: 2,
        facts: facts(),
        toolchains: vec![toolchain()],
        probing: true,
        held: vec![ATTEMPT],
        held_many: vec![held_many()],
        draining: true,
        labels: map("gpu", "a100"),
        memory_bytes: 22 << 30,
        tasks_max: 6,
        slept_ms: 30_000,
        local_number: 3,
    };
    show(visit, "Register", Function::REGISTER, 0, register);
    let ack = AttemptOutputAck { attempt: ATTEMPT, stdout: 6, stderr: 1 };
    let probe =
        LanguageProbe { lang: text("c"), probes: vec![vec![text("cc"), text("-v")]], resolve: Some(vec![text("w")]) };
    let registered = Registered {
        name: text("here-1"),
        kill: vec![ATTEMPT],
        keep: vec![ack],
        keep_many: vec![held_many()],
        kill_many: vec![held_many()],
        languages: vec![probe],
    };
    show(visit, "Registered", Function::REGISTER, FLAG_ANSWER, registered);
    let phase = PhaseSpec {
        limits: limits(),
        phase: Phase::Run,
        argv: vec![text("./a.out")],
        env: map("LANG", "C.UTF-8"),
        line_buffered: true,
        wall_ms: 5_000,
    };
    let start = Start {
        attempt: ATTEMPT,
        lang: text("c"),
        files: vec![file()],
        phases: vec![phase],
        stdin: StdinSpec::Live,
        tasks: Some(tasks()),
        lines: Some(file()),
        needs: needs(),
        priority: -2,
    };
    show(visit, "Start", Function::START, 0, start);
    show(visit, "Stop", Function::STOP, 0, Stop { attempt: ATTEMPT });
    let progress = Progress { attempt: ATTEMPT, phase: Phase::Compile, waiting_for_input: true };
    show(visit, "Progress", Function::PROGRESS, 0, progress);
    show(visit, "Ended", Function::ENDED, 0, Ended { attempt: ATTEMPT, result: result() });
    show(visit, "EndAck", Function::END_ACK, 0, EndAck { attempt: ATTEMPT });
    let report = Report {
        load: load(),
        held: vec![ATTEMPT],
        held_many: vec![held_many()],
        overloaded: true,
        toolchains: Some(vec![toolchain()]),
        probing: true,
        draining: true,
    };
    show(visit, "Report", Function::REPORT, 0, report);
    let output = AttemptOutput { attempt: ATTEMPT, stream: Stream::Stdout, offset: 6, bytes: b"hello\n".to_vec() };
    show(visit, "AttemptOutput", Function::ATTEMPT_OUTPUT, 0, output);
    show(visit, "AttemptOutputAck", Function::ATTEMPT_OUTPUT_ACK, 0, ack);
    let stdin = AttemptStdin { attempt: ATTEMPT, offset: 4, bytes: b"yes\n".to_vec(), end: true };
    show(visit, "AttemptStdin", Function::ATTEMPT_STDIN, 0, stdin);
    show(visit, "AttemptStdinAck", Function::ATTEMPT_STDIN_ACK, 0, AttemptStdinAck { attempt: ATTEMPT, offset: 8 });
    link_many(visit);
}

fn held_many() -> HeldMany {
    HeldMany { job: JOB, attempt: 2, tasks: tasks() }
}

fn link_many(visit: &mut impl Visit) {
    // What is not sent is empty when it is read.
    let result = TaskResult { node: String::new(), ..result() };
    let (stdout, stderr) = (b"hello\n".to_vec(), vec![0xC3]);
    let ends = vec![TaskEnd { task: TaskId(17), attempt: 2, result, stdout, stderr }];
    show(visit, "EndedMany", Function::ENDED_MANY, 0, EndedMany { job: JOB, ends });
    let by_attempt = || vec![(1, tasks()), (2, TaskSet::one(TaskId(17)))];
    show(visit, "EndAckMany", Function::END_ACK_MANY, 0, EndAckMany { job: JOB, tasks: by_attempt() });
    show(visit, "TakeBack", Function::TAKE_BACK, 0, TakeBack { job: JOB, tasks: tasks() });
    show(visit, "Leave", Function::LEAVE, 0, Leave { leave: true });
    show(visit, "GivenBack", Function::GIVEN_BACK, 0, GivenBack { job: JOB, tasks: by_attempt() });
}

fn parts(visit: &mut impl Visit) {
    visit.part("NodeChange", node_change());
    visit.part("JobChange", job_change());
    visit.part("AttemptId", ATTEMPT);
    visit.part("JobSpec", spec());
    visit.part("FileSpec", file());
    visit.part("Limits", limits());
    visit.part("Clamped", clamped());
    visit.part("ArraySpec", array());
    visit.part("Needs", needs());
    visit.part("TaskCounts", counts());
    visit.part("RuledOut", ruled_out());
    visit.part("Notice", notice());
    visit.part("HeldMany", held_many());
    visit.part("TaskView", task());
    visit.part("TaskResult", result());
    visit.part("Reason", reason());
    visit.part("OutputFrom", OutputFrom { attempt: ATTEMPT, stdout: 1, stderr: 2 });
    visit.part("NodeView", node());
    visit.part("Facts", facts());
    visit.part("Load", load());
    visit.part("Toolchain", toolchain());
    visit.part("KeyView", key());
    visit.part("Quotas", quotas());
    visit.part("QuotaView", quota());
    visit.part("LanguageProbe", LanguageProbe { lang: text("c"), probes: vec![vec![text("cc")]], resolve: None });
    visit.part("PhaseSpec", PhaseSpec { phase: Phase::Run, limits: limits(), ..PhaseSpec::default() });
}
