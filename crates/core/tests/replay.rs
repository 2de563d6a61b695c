//! Random inputs for the hub: well-formed, out of turn, and nonsense, from several sessions, nodes and clocks.
//!
//! What we want to know: does the hub ever panic, break a promise that [`Hub::check`] knows, speak to a session that is
//! closed, end a job twice, make a message that fits no frame, or differ from the replay of its own records?
//! Deliberately not here: what it should answer (`hub_scenarios`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use essaim_core::Now;
use essaim_core::hub::{
    Answer, Durable, Effect, Hub, Input, Job, KeyLimits, LocalPlan, NewKey, Out, Query, Record, Rules, SessionId,
    ToWorker, Url, decode_batch, encode_batch,
};
use essaim_core::lang::LanguageTable;
use essaim_proto::api::{JobList, JobRerun, KeySet, LocalSet, TaskList};
use essaim_proto::hello::Role;
use essaim_proto::job::{
    ArraySpec, FileSpec, JobKind, JobSpec, Limits, Needs, Phase, Reason, TaskResult, TaskState, Verdict,
};
use essaim_proto::limits::VALUE_BYTES_MAX;
use essaim_proto::link::{Ended, EndedMany, GivenBack, Progress, Register, Report, TaskEnd};
use essaim_proto::node::{Load, Toolchain};
use essaim_proto::quota::{Quota, Quotas};
use essaim_proto::{AttemptId, BlobHash, InstanceId, JobId, KeyName, NodeName, SubmitKey, TaskId, TaskSet};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[path = "hub_scenarios/observer.rs"]
mod observer;
use observer::Observer;

const NODES: [&str; 3] = ["lab", "lab-2", "printer"];
const URL: &str = "http://ada:8000/hook";
const KEYS: [&str; 3] = ["admin", "anna", "bert"];
/// Small enough to be reached.
fn rules() -> Rules {
    let keys = KeyLimits { queued_tasks: Some(50), stored_bytes: Some(8_000), requests_per_second: Some(9) };
    let limits = Limits { wall_ms: Some(10_000), ..Rules::default().limits };
    Rules { keys, limits, limits_max: Limits { wall_ms: Some(600_000), ..Limits::default() } }
}
const ROLES: [Role; 4] = [Role::Viewer, Role::User, Role::Operator, Role::Admin];
const VERDICTS: [Verdict; 6] =
    [Verdict::Ok, Verdict::RuntimeError, Verdict::Cancelled, Verdict::InternalError, Verdict::Lost, Verdict::TimeLimit];

/// One thing to happen; numbers choose among what is there when it happens, so that most steps mean something.
#[derive(Debug, Clone)]
enum Step {
    OpenClient { key: usize },
    OpenAgain { session: usize, key: usize },
    Register { node: usize, instance: u8, slots: u32, holds: u8, languages: u8, draining: bool },
    RegisterAgain { session: usize, node: usize },
    Close { session: usize, clean: bool },
    Submit { session: usize, key: u8, spec: Box<JobSpec> },
    Cancel { session: usize, job: u64, tasks: Option<u8> },
    Rerun { session: usize, job: u64, key: u8, failed: bool },
    Ask { session: usize, what: u8, job: u64, limit: u32 },
    KeyCreate { session: usize, key: usize, role: usize },
    KeySet { session: usize, key: usize, tasks: Option<u64>, bytes: Option<u64> },
    Upload { session: usize, hash: u8, size_bytes: u64 },
    KeyRevoke { session: usize, key: usize },
    JoinCreate { session: usize, line: u8, uses: u32, ttl_ms: u64 },
    LocalJoin { line: u8, ttl_ms: u64 },
    LocalPlan { workers: u32, more: u32, is_said: [bool; 2] },
    LocalSet { session: usize, mode: Option<bool>, workers: Option<u32>, workers_max: Option<u32> },
    Join { line: u8, wish: Option<usize> },
    Report { session: usize, draining: bool, languages: Option<u8>, cpu: f64 },
    Progress { session: usize, pick: usize, phase: u8 },
    End { session: usize, pick: usize, verdict: usize, words: usize },
    EndMany { session: usize, pick: usize, verdict: usize, wall_ms: u64 },
    GiveBack { session: usize, pick: usize },
    Nonsense { session: usize, job: u64, task: u32, attempt: u32, ends: bool },
    ProcessEnded { node: usize },
    Pass { ms: u64 },
    StandStill { ms: u64 },
    Storage { full: bool },
    Allow { urls: bool },
    Told { job: u64, well: bool },
    Drain,
    Restart,
}

fn spec() -> impl Strategy<Value = Box<JobSpec>> {
    let path = prop_oneof![Just("main.py"), Just("x.c"), Just("../up"), Just("a.zz")];
    (path, 0..3u8, prop::option::of(0..4usize), any::<bool>(), 0..3usize).prop_map(
        |(path, kind, on, ephemeral, words)| {
            let kind = [JobKind::Program, JobKind::Command, JobKind::Unknown][usize::from(kind)];
            let on = on.map(|n| NODES.get(n).unwrap_or(&"moon").parse().unwrap());
            let files = vec![FileSpec { path: path.into(), ..FileSpec::default() }];
            let files = if kind == JobKind::Command { Vec::new() } else { files };
            Box::new(JobSpec {
                kind, files, on, ephemeral, args: vec!["🐝".repeat(300); words], ..JobSpec::default()
            })
        },
    )
}

/// Tasks of an array, slots, memory, priority, tries.
type Wants = (Option<u32>, u32, u64, i32, u32, Option<u64>);

fn wants() -> impl Strategy<Value = Wants> {
    let tasks = prop_oneof![3 => Just(None), 2 => (1..40u32).prop_map(Some)];
    let after = prop_oneof![6 => Just(None), 1 => (1..6u64).prop_map(Some)];
    (tasks, 0..3u32, 0..3u64, -1..2i32, 0..2u32, after)
}

fn good_spec() -> impl Strategy<Value = Box<JobSpec>> {
    let data = (prop::option::of(0..3_000usize), 0..4u8, 0..4_000u64);
    (any::<bool>(), prop::option::of(0..2usize), any::<bool>(), wants(), prop::bool::weighted(0.1), data).prop_map(
        |(is_command, on, ephemeral, wants, notify, (inline, hash, size_bytes))| {
            let on = on.map(|n| NODES[n].parse().unwrap());
            // Small files inside the job, and large ones that jobs share and describe as they like.
            let main = FileSpec { path: "main.py".into(), ..FileSpec::default() };
            let main = match inline {
                Some(bytes) => {
                    let hash = BlobHash::of(&vec![7; bytes]);
                    let inline = Some(serde_bytes::ByteBuf::from(vec![7; bytes]));
                    FileSpec { size_bytes: bytes as u64, hash, inline, ..main }
                }
                None => main,
            };
            let data = FileSpec { path: "data".into(), hash: BlobHash([hash; 32]), size_bytes, ..FileSpec::default() };
            let files = vec![main, data];
            let (tasks, cpus, gigabytes, priority, retry, after) = wants;
            let array = tasks.map(|last| Box::new(ArraySpec { tasks: TaskSet::span(1, last), lines: None }));
            let needs = Needs { cpus, memory_bytes: gigabytes << 30, ..Needs::default() };
            let after = after.map(JobId).into_iter().collect();
            let notify = notify.then(|| URL.to_owned());
            let spec = JobSpec { on, ephemeral, array, needs, priority, retry, after, notify, ..JobSpec::default() };
            Box::new(match is_command {
                true => JobSpec { kind: JobKind::Command, args: vec!["ls".into()], ..spec },
                false => JobSpec { files, ..spec },
            })
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0..8usize;
    let s = || session.clone();
    prop_oneof![
        3 => prop_oneof![Just(0usize), 0..3usize].prop_map(|key| Step::OpenClient { key }),
        1 => (s(), 0..4usize).prop_map(|(session, key)| Step::OpenAgain { session, key }),
        4 => (0..3usize, 0..3u8, 0..4u32, any::<u8>(), 0..4u8, prop::bool::weighted(0.1)).prop_map(
            |(node, instance, slots, holds, languages, draining)| Step::Register {
                node, instance, slots, holds, languages, draining
            }
        ),
        1 => (s(), 0..3usize).prop_map(|(session, node)| Step::RegisterAgain { session, node }),
        2 => (s(), any::<bool>()).prop_map(|(session, clean)| Step::Close { session, clean }),
        8 => (s(), 0..20u8, good_spec()).prop_map(|(session, key, spec)| Step::Submit { session, key, spec }),
        2 => (s(), 0..20u8, spec()).prop_map(|(session, key, spec)| Step::Submit { session, key, spec }),
        3 => (s(), 0..12u64, prop::option::of(0..20u8))
            .prop_map(|(session, job, tasks)| Step::Cancel { session, job, tasks }),
        1 => (s(), 0..12u64, 20..40u8, any::<bool>())
            .prop_map(|(session, job, key, failed)| Step::Rerun { session, job, key, failed }),
        8 => (s(), any::<usize>(), 0..VERDICTS.len(), prop_oneof![Just(0u64), Just(100)])
            .prop_map(|(session, pick, verdict, wall_ms)| Step::EndMany { session, pick, verdict, wall_ms }),
        1 => (s(), any::<usize>()).prop_map(|(session, pick)| Step::GiveBack { session, pick }),
        2 => (s(), 0..7u8, 0..12u64, 0..4u32)
            .prop_map(|(session, what, job, limit)| Step::Ask { session, what, job, limit }),
        1 => (s(), 0..3usize, 0..4usize).prop_map(|(session, key, role)| Step::KeyCreate { session, key, role }),
        1 => (s(), 0..3usize, prop::option::of(0..60u64), prop::option::of(0..9_000u64))
            .prop_map(|(session, key, tasks, bytes)| Step::KeySet { session, key, tasks, bytes }),
        1 => (s(), 0..4u8, 0..4_000u64)
            .prop_map(|(session, hash, size_bytes)| Step::Upload { session, hash, size_bytes }),
        1 => (s(), 0..3usize).prop_map(|(session, key)| Step::KeyRevoke { session, key }),
        1 => (s(), 0..4u8, 0..3u32, 0..100_000u64)
            .prop_map(|(session, line, uses, ttl_ms)| Step::JoinCreate { session, line, uses, ttl_ms }),
        1 => (0..4u8, 0..100_000u64).prop_map(|(line, ttl_ms)| Step::LocalJoin { line, ttl_ms }),
        1 => (0..3u32, 0..3u32, any::<[bool; 2]>())
            .prop_map(|(workers, more, is_said)| Step::LocalPlan { workers, more, is_said }),
        1 => (s(), any::<Option<bool>>(), prop::option::of(0..5u32), prop::option::of(0..5u32))
            .prop_map(|(session, mode, workers, workers_max)| Step::LocalSet { session, mode, workers, workers_max }),
        1 => (0..5u8, prop::option::of(0..3usize)).prop_map(|(line, wish)| Step::Join { line, wish }),
        2 => (s(), prop::bool::weighted(0.2), prop::option::of(0..4u8), prop_oneof![Just(f64::NAN), Just(0.5), Just(-7.0)])
            .prop_map(|(session, draining, languages, cpu)| Step::Report { session, draining, languages, cpu }),
        4 => (s(), any::<usize>(), 0..4u8).prop_map(|(session, pick, phase)| Step::Progress { session, pick, phase }),
        8 => (s(), any::<usize>(), 0..VERDICTS.len(), 0..3usize)
            .prop_map(|(session, pick, verdict, words)| Step::End { session, pick, verdict, words }),
        1 => (s(), 0..12u64, 0..3u32, 0..5u32, any::<bool>())
            .prop_map(|(session, job, task, attempt, ends)| Step::Nonsense { session, job, task, attempt, ends }),
        1 => (0..12u64, any::<bool>()).prop_map(|(job, well)| Step::Told { job, well }),
        1 => (0..3usize).prop_map(|node| Step::ProcessEnded { node }),
        4 => prop_oneof![Just(1_000u64), Just(16_000), Just(31_000), Just(61_000)]
            .prop_map(|ms| Step::Pass { ms }),
        1 => (0..40u8).prop_map(|rare| match rare {
            0 => Step::Drain,
            1..4 => Step::Storage { full: true },
            4..10 => Step::Storage { full: false },
            10..14 => Step::StandStill { ms: 90_000_000 },
            14..28 => Step::Restart,
            28..36 => Step::Allow { urls: rare > 29 },
            _ => Step::Pass { ms: 500 },
        }),
    ]
}

fn node(n: usize) -> NodeName {
    NODES[n].parse().unwrap()
}

fn key(n: usize) -> KeyName {
    KEYS[n].parse().unwrap()
}

fn secret(text: &str) -> BlobHash {
    BlobHash::of(text.as_bytes())
}

fn toolchains(languages: u8) -> Vec<Toolchain> {
    let all = ["python", "c"].into_iter().enumerate().filter(|(n, _)| languages & (1 << n) != 0);
    all.map(|(_, lang)| Toolchain { lang: lang.into(), version: "1".into() }).collect()
}

/// The world around the hub: what its shell knows.
struct World {
    hub: Hub,
    now: Now,
    records: Vec<Record>,
    /// All sessions that ever were; the index is the number less one.
    open: Vec<bool>,
    clients: BTreeSet<SessionId>,
    workers: BTreeMap<SessionId, usize>,
    /// Attempts that a node was told to start and has not heard of since: what it may hold.
    given: BTreeMap<usize, BTreeSet<AttemptId>>,
    ended: BTreeSet<(JobId, TaskId)>,
    observer: Observer,
}

impl World {
    fn new() -> World {
        let now = Now { mono_ms: 5, unix_ms: 1_700_000_000_000 };
        let hub = Hub::new(now, Durable::default(), LanguageTable::built_in()).with_rules(rules());
        let mut world = World {
            hub,
            now,
            records: Vec::new(),
            open: Vec::new(),
            clients: BTreeSet::new(),
            workers: BTreeMap::new(),
            given: BTreeMap::new(),
            ended: BTreeSet::new(),
            observer: Observer::default(),
        };
        world.give(Input::LocalKey { name: key(0), role: Role::Admin, secret: secret(KEYS[0]) }, None);
        world.run(Step::OpenClient { key: 0 });
        let says = Register { slots: 2, toolchains: toolchains(3), ..Register::default() };
        let session = world.fresh();
        world.register(session, 0, says);
        world
    }

    fn fresh(&mut self) -> SessionId {
        self.open.push(true);
        SessionId(self.open.len() as u64)
    }

    /// One of the open sessions that such a thing comes from; sometimes of any other.
    fn pick(&self, n: usize, is_workers: bool) -> Option<SessionId> {
        let any = || (1..=self.open.len()).filter(|n| self.open[n - 1]).map(|n| SessionId(n as u64)).collect();
        let sessions: Vec<SessionId> = match (n, is_workers) {
            (7, _) => any(),
            (_, true) => self.workers.keys().copied().collect(),
            (_, false) => self.clients.iter().copied().collect(),
        };
        sessions.get(n.checked_rem(sessions.len())?).copied()
    }

    fn close(&mut self, session: SessionId) {
        self.open[session.0 as usize - 1] = false;
        self.clients.remove(&session);
        self.workers.remove(&session);
    }

    fn give(&mut self, input: Input, from: Option<SessionId>) {
        let mut out = Out::default();
        self.hub.step(self.now, input.clone(), &mut out);
        assert_eq!(self.hub.check(), Ok(()), "after {input:?}");
        for record in &out.records {
            let ended: Vec<(JobId, TaskId)> = match record {
                Record::TaskEnded { attempt, .. } => vec![(attempt.job, attempt.task)],
                Record::TasksEnded { job, ends, .. } => ends.iter().map(|end| (*job, end.task)).collect(),
                Record::TasksCancelled { job, tasks, .. } => tasks.iter().map(|task| (*job, task)).collect(),
                _ => Vec::new(),
            };
            for end in ended {
                assert!(self.ended.insert(end), "{end:?} ended twice");
            }
        }
        for effect in &out.effects {
            self.look_at(effect, from);
        }
        if let Some(session) = self.clients.first() {
            self.observer.compare(&self.hub, *session);
        }
        assert_eq!(decode_batch(&encode_batch(&out.records)).unwrap(), out.records);
        self.records.extend(out.records);
    }

    fn look_at(&mut self, effect: &Effect, from: Option<SessionId>) {
        let (to, bytes) = match effect {
            Effect::Admit { session, .. } | Effect::GrantJoin { session, .. } => (Some(*session), 0),
            Effect::Answer { session, answer, .. } => (Some(*session), size_of_answer(answer)),
            Effect::Refuse { session, refusal, .. } => (Some(*session), essaim_proto::encode(refusal).len()),
            Effect::Tell { session, message } => (Some(*session), size_of_word(message)),
            Effect::Close { session, .. } => (Some(*session), 0),
            Effect::Publish { event } => (None, essaim_proto::encode(event).len()),
            Effect::Changed { change } => (None, essaim_proto::encode(change).len()),
            Effect::Notify { url, .. } => (None, url.len()),
            Effect::Rate { .. } => (None, 0),
            Effect::LocalWorkers { numbers } => {
                assert!(numbers.iter().all(|number| (1..=4).contains(number)), "{numbers:?}");
                (None, 0)
            }
        };
        assert!(bytes <= VALUE_BYTES_MAX, "{effect:?}");
        if let Some(session) = to {
            let is_open = self.open[session.0 as usize - 1];
            assert!(is_open || from == Some(session), "{session:?} is closed: {effect:?}");
        }
        match effect {
            Effect::Changed { change } => self.observer.hear(change),
            Effect::Close { session, .. } => self.close(*session),
            Effect::Admit { session, .. } => drop(self.clients.insert(*session)),
            Effect::Tell { session, message: ToWorker::Start(start) } => {
                if let Some(node) = self.workers.get(session) {
                    self.given.entry(*node).or_default().extend(start.attempts());
                }
            }
            Effect::Tell { session, message: ToWorker::EndAck(ack) } => {
                if let Some(node) = self.workers.get(session) {
                    self.given.entry(*node).or_default().remove(&ack.attempt);
                }
            }
            Effect::Tell { session, message: ToWorker::EndAckMany(ack) } => {
                if let Some(node) = self.workers.get(session) {
                    let given = self.given.entry(*node).or_default();
                    let is_acked = |attempt: &AttemptId| {
                        let mut tasks = ack.tasks.iter();
                        attempt.job == ack.job
                            && tasks.any(|(n, tasks)| *n == attempt.attempt && tasks.contains(attempt.task))
                    };
                    given.retain(|attempt| !is_acked(attempt));
                }
            }
            _ => {}
        }
    }

    fn replayed(&self) -> Durable {
        let mut durable = Durable::default();
        self.records.iter().for_each(|record| durable.apply(record));
        durable
    }

    fn restart(&mut self) {
        self.open.iter_mut().for_each(|open| *open = false);
        self.clients.clear();
        self.workers.clear();
        self.observer = Observer::default();
        self.now.mono_ms = 1;
        // From its journal, or from a snapshot of it.
        let durable = essaim_proto::decode(&essaim_proto::encode(&self.replayed())).unwrap();
        self.hub = Hub::new(self.now, durable, LanguageTable::built_in()).with_rules(rules());
        assert_eq!(self.hub.check(), Ok(()));
        self.run(Step::OpenClient { key: 0 });
    }

    fn stand_still(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        self.give(Input::Tick, None);
    }

    fn register(&mut self, session: SessionId, node_n: usize, register: Register) {
        self.workers.insert(session, node_n);
        let input = Input::Register { session, name: node(node_n), register: Box::new(register) };
        self.give(input, Some(session));
    }

    /// An attempt that the session's node was given, or none.
    fn attempt_of(&self, session: SessionId, pick: usize) -> Option<AttemptId> {
        let given = self.given.get(self.workers.get(&session)?)?;
        given.iter().nth(pick.checked_rem(given.len())?).copied()
    }

    /// Some attempts of one job that the session's node was given.
    fn many_of(&self, session: SessionId, pick: usize) -> Vec<AttemptId> {
        let Some(first) = self.attempt_of(session, pick) else { return Vec::new() };
        let given = self.workers.get(&session).and_then(|node| self.given.get(node));
        given.into_iter().flatten().filter(|attempt| attempt.job == first.job).take(1 + pick % 17).copied().collect()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::OpenClient { key } => {
                let session = self.fresh();
                self.give(Input::ClientOpened { session, secret: secret(KEYS[key]) }, Some(session));
            }
            Step::Register { node, instance, slots, holds, languages, draining } => {
                let session = self.fresh();
                let given = self.given.entry(node).or_default();
                // Each bit keeps or drops one of what it was given: a new instance may claim it too, that is nonsense.
                let mut n = 0;
                given.retain(|_| {
                    n += 1;
                    holds & (1 << (n % 8)) != 0
                });
                let held = given.iter().copied().collect();
                let instance = InstanceId([instance; 16]);
                let toolchains = toolchains(languages);
                let probing = languages == 0;
                // The last one is a worker of another machine.
                let local_number = if node < 2 { node as u32 + 1 } else { 0 };
                let says = Register { instance, slots, held, toolchains, probing, draining, ..Register::default() };
                let says = Register { local_number, ..says };
                self.register(session, node, says);
            }
            Step::ProcessEnded { node: n } => self.give(Input::WorkerProcessEnded { node: node(n) }, None),
            Step::LocalJoin { line, ttl_ms } => {
                self.give(Input::LocalJoin { secret: BlobHash([line; 32]), uses: 2, ttl_ms }, None);
            }
            Step::LocalPlan { workers, more, is_said } => {
                let (idle_ms, memory_bytes) = (20_000, 1 << 30);
                let plan = LocalPlan {
                    workers,
                    workers_max: workers + more,
                    is_said,
                    idle_ms,
                    slots: 2,
                    memory_bytes,
                    ..LocalPlan::default()
                };
                self.give(Input::LocalPlan { plan: Box::new(plan) }, None);
            }
            Step::Join { line, wish } => {
                let session = self.fresh();
                let input = Input::Join { session, request: 1, secret: BlobHash([line; 32]), wish: wish.map(node) };
                self.give(input, Some(session));
            }
            Step::Pass { ms } => {
                // Looked at often enough that the hub does not believe that it stood still.
                let parts = (ms / 4_000 + 1).min(20);
                (0..parts).for_each(|_| self.stand_still(ms / parts));
            }
            Step::StandStill { ms } => self.stand_still(ms),
            Step::Storage { full } => self.give(Input::Storage { full }, None),
            Step::Allow { urls } => {
                let urls = urls.then(|| Url::parse(URL).unwrap()).into_iter().collect();
                self.give(Input::NotifyUrls { urls }, None);
            }
            Step::Told { job, well } => {
                let error = (!well).then(|| "nobody listens".to_owned());
                self.give(Input::NoticeEnded { job: JobId(job), tries: 1, error }, None);
            }
            Step::Drain => self.give(Input::Drain, None),
            Step::Restart => self.restart(),
            said => self.say(said),
        }
    }

    /// What needs a session that is there.
    fn say(&mut self, step: Step) {
        let (Step::OpenAgain { session: n, .. }
        | Step::RegisterAgain { session: n, .. }
        | Step::Close { session: n, .. }
        | Step::Submit { session: n, .. }
        | Step::Cancel { session: n, .. }
        | Step::Rerun { session: n, .. }
        | Step::EndMany { session: n, .. }
        | Step::GiveBack { session: n, .. }
        | Step::Ask { session: n, .. }
        | Step::KeyCreate { session: n, .. }
        | Step::KeySet { session: n, .. }
        | Step::Upload { session: n, .. }
        | Step::KeyRevoke { session: n, .. }
        | Step::JoinCreate { session: n, .. }
        | Step::LocalSet { session: n, .. }
        | Step::Report { session: n, .. }
        | Step::Progress { session: n, .. }
        | Step::End { session: n, .. }
        | Step::Nonsense { session: n, .. }) = &step
        else {
            return;
        };
        let is_workers =
            matches!(step, Step::RegisterAgain { .. } | Step::Report { .. } | Step::Progress { .. } | Step::End { .. });
        let is_workers = is_workers || matches!(step, Step::EndMany { .. } | Step::GiveBack { .. });
        let is_workers = is_workers || matches!(step, Step::Close { clean: true, .. } | Step::Nonsense { .. });
        let Some(session) = self.pick(*n, is_workers) else { return };
        let input = match step {
            Step::Close { clean, .. } => {
                self.close(session);
                Input::SessionClosed { session, clean }
            }
            Step::RegisterAgain { node, .. } => {
                if self.workers.get(&session).is_none_or(|n| *n == node) {
                    self.register(session, node, Register { slots: 2, ..Register::default() });
                }
                return;
            }
            Step::Progress { pick, phase, .. } => {
                let Some(attempt) = self.attempt_of(session, pick) else { return };
                let phase = [Phase::Prepare, Phase::Compile, Phase::Run, Phase::Unknown][usize::from(phase)];
                let waiting_for_input = pick % 2 == 0;
                Input::Progress { session, progress: Progress { attempt, phase, waiting_for_input } }
            }
            Step::End { pick, verdict, words, .. } => {
                let Some(attempt) = self.attempt_of(session, pick) else { return };
                let reason = (words > 0).then(|| Reason::new("x").with("why", "🐝".repeat(words * 1_000)));
                let result = TaskResult { verdict: VERDICTS[verdict], reason, ..TaskResult::default() };
                Input::Ended { session, ended: Box::new(Ended { attempt, result }) }
            }
            Step::EndMany { pick, verdict, wall_ms, .. } => {
                let attempts = self.many_of(session, pick);
                let Some(job) = attempts.first().map(|attempt| attempt.job) else { return };
                let result = TaskResult { verdict: VERDICTS[verdict], wall_ms, ..TaskResult::default() };
                let end = |attempt: &AttemptId| TaskEnd {
                    task: attempt.task,
                    attempt: attempt.attempt,
                    result: result.clone(),
                    ..TaskEnd::default()
                };
                Input::EndedMany {
                    session,
                    ended: Box::new(EndedMany { job, ends: attempts.iter().map(end).collect() }),
                }
            }
            Step::GiveBack { pick, .. } => {
                let attempts = self.many_of(session, pick);
                let Some(first) = attempts.first().copied() else { return };
                let same = attempts.iter().filter(|attempt| attempt.attempt == first.attempt);
                let tasks = vec![(first.attempt, same.clone().map(|attempt| attempt.task).collect())];
                if let Some(given) = self.workers.get(&session).and_then(|node| self.given.get_mut(node)) {
                    same.for_each(|attempt| _ = given.remove(attempt));
                }
                Input::GivenBack { session, given: GivenBack { job: first.job, tasks } }
            }
            other => plain_input(other, session),
        };
        self.give(input, Some(session));
    }
}

/// Inputs that need nothing of the world.
fn plain_input(step: Step, session: SessionId) -> Input {
    let request = 7;
    match step {
        Step::OpenAgain { key, .. } => Input::ClientOpened { session, secret: secret(KEYS.get(key).unwrap_or(&"no")) },
        Step::Submit { key, spec, .. } => Input::Submit { session, request, key: SubmitKey([key; 16]), spec },
        Step::Cancel { job, tasks, .. } => {
            let tasks = tasks.map(|last| TaskSet::span(1, u32::from(last)));
            Input::Cancel { session, request, job: JobId(job), tasks }
        }
        Step::Rerun { job, key, failed, .. } => {
            let states = if failed { vec![TaskState::Failed] } else { Vec::new() };
            let rerun = JobRerun { job: JobId(job), key: SubmitKey([key; 16]), tasks: None, states };
            Input::Rerun { session, request, rerun }
        }
        Step::Ask { what, job, limit, .. } => {
            let before = (job > 0).then_some(JobId(job));
            let query = match what {
                0 => Query::JobList(JobList { before, limit, live_only: job % 2 == 0, ..JobList::default() }),
                1 => Query::JobShow(JobId(job)),
                2 => Query::Watch { job: JobId(job), key: None },
                3 => Query::NodeList { after: (limit > 1).then(|| NODES[0].into()) },
                4 => Query::KeyList,
                5 => {
                    Query::TaskList(TaskList { job: JobId(job), limit, numbers_only: limit > 2, ..TaskList::default() })
                }
                _ => Query::Upload,
            };
            Input::Query { session, request, query }
        }
        Step::KeyCreate { key: n, role, .. } => {
            let new = NewKey { role: ROLES[role], secret: secret(KEYS[n]), quotas: Quotas::default() };
            Input::KeyCreate { session, request, name: key(n), key: new }
        }
        Step::KeySet { key: n, tasks, bytes, .. } => {
            let quota = |limit: Option<u64>| Some(limit.map_or(Quota::Unlimited, Quota::At));
            let set = KeySet { queued_tasks: quota(tasks), stored_bytes: quota(bytes), ..KeySet::default() };
            Input::KeySet { session, request, name: key(n), set: Box::new(set) }
        }
        Step::Upload { hash, size_bytes, .. } => {
            Input::Upload { session, request, hash: BlobHash([hash; 32]), size_bytes }
        }
        Step::KeyRevoke { key: n, .. } => Input::KeyRevoke { session, request, name: key(n) },
        Step::LocalSet { mode, workers, workers_max, .. } => {
            Input::LocalSet { session, request, set: LocalSet { mode, workers, workers_max } }
        }
        Step::JoinCreate { line, uses, ttl_ms, .. } => {
            Input::JoinCreate { session, request, secret: BlobHash([line; 32]), uses, ttl_ms }
        }
        Step::Report { draining, languages, cpu, .. } => {
            let load = Load { cpu, memory_used_bytes: 1 };
            let report = Report { load, draining, toolchains: languages.map(toolchains), ..Report::default() };
            Input::Report { session, report: Box::new(report), rtt_us: None }
        }
        Step::Nonsense { job, task, attempt, ends, .. } => {
            let attempt = AttemptId { job: JobId(job), task: TaskId(task), attempt };
            match ends {
                true => Input::Ended { session, ended: Box::new(Ended { attempt, ..Ended::default() }) },
                false => Input::Progress { session, progress: Progress { attempt, ..Progress::default() } },
            }
        }
        other => panic!("{other:?} is carried out elsewhere"),
    }
}

fn size_of_answer(answer: &Answer) -> usize {
    match answer {
        Answer::Watching(view) | Answer::Job(view) => essaim_proto::encode(view).len(),
        Answer::Jobs(page) => essaim_proto::encode(page).len(),
        Answer::Nodes(page) => essaim_proto::encode(page).len(),
        Answer::Keys(page) => essaim_proto::encode(page).len(),
        Answer::Tasks(page) => essaim_proto::encode(page).len(),
        Answer::Local(local) => essaim_proto::encode(local).len(),
        Answer::Done | Answer::Submitted { .. } | Answer::KeyMade | Answer::JoinMade { .. } => 0,
    }
}

fn size_of_word(message: &ToWorker) -> usize {
    match message {
        ToWorker::Registered(registered) => essaim_proto::encode(registered).len(),
        ToWorker::Start(start) => essaim_proto::encode(start).len(),
        ToWorker::EndAckMany(ack) => essaim_proto::encode(ack).len(),
        ToWorker::TakeBack(tasks) => essaim_proto::encode(tasks).len(),
        ToWorker::Stop(_) | ToWorker::EndAck(_) | ToWorker::Leave(_) => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, are the promises kept and does the replay tell the same?
    #[test]
    fn the_hub_keeps_its_promises(steps in prop::collection::vec(step(), 20..200)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        let replayed = world.replayed();
        prop_assert_eq!(&replayed, world.hub.durable());
        let over = |job: &Job| match &job.array {
            Some(array) => (array.total() - array.live()) as usize,
            None => usize::from(job.state().is_over()),
        };
        prop_assert_eq!(replayed.jobs.values().map(over).sum::<usize>(), world.ended.len());
        let snapshot: Durable = essaim_proto::decode(&essaim_proto::encode(&replayed)).unwrap();
        prop_assert_eq!(snapshot, replayed);
    }

    /// Does every job end when its workers are there and answer? After any beginning a fresh worker that can do
    /// everything comes, and does it.
    #[test]
    fn every_job_ends_when_a_worker_is_there(steps in prop::collection::vec(step(), 20..150)) {
        let mut world = World::new();
        for step in steps.into_iter().filter(|step| !matches!(step, Step::Drain)) {
            world.run(step);
        }
        // What was placed on nodes that never come back is lost, what names a node finds it again.
        world.restart();
        world.run(Step::Pass { ms: 61_000 });
        for n in 0..NODES.len() {
            let session = world.fresh();
            world.given.remove(&n);
            let instance = InstanceId([99; 16]);
            let says = Register { instance, slots: 4, toolchains: toolchains(3), memory_bytes: 8 << 30, ..Register::default() };
            world.register(session, n, says);
        }
        for _ in 0..20_000 {
            let sessions: Vec<SessionId> = world.workers.keys().copied().collect();
            let Some((session, attempt)) = sessions.iter().find_map(|s| Some((*s, world.attempt_of(*s, 0)?))) else { break };
            let result = TaskResult { verdict: Verdict::Ok, ..TaskResult::default() };
            world.give(Input::Ended { session, ended: Box::new(Ended { attempt, result }) }, Some(session));
        }
        prop_assert_eq!(world.hub.durable().live_tasks, 0);
        prop_assert_eq!(world.hub.running().len(), 0);
    }
}

/// Are bytes that are no batch refused instead of half read? Cut, empty, followed by others.
#[test]
fn damaged_rows_are_refused() {
    let records = vec![Record::NodeKnown { name: node(0) }, Record::JobForgotten { job: JobId(3) }];
    let bytes = encode_batch(&records);
    assert_eq!(decode_batch(&bytes).unwrap(), records);
    for cut in 0..bytes.len() {
        assert!(decode_batch(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(decode_batch(&[bytes.as_slice(), &[1]].concat()).is_err());
    assert_eq!(decode_batch(&encode_batch(&[])).unwrap(), []);
}
