//! What the hub's decisions cost: processor time of one step while a large queue is worked off, and memory of what waits.
//!
//! `main` calls [`core`]; with the word `core` as its argument it does nothing else. The hub has no shell here: workers
//! are queues in this process, so that each step is measured alone, on the clock of this thread's processor time, which
//! others on the machine do not disturb. Limits: a step 10 ms at the 99.9th percentile; 24 MB, 60 MB and 100 MB for the
//! three kinds of waiting.
//! Deliberately not here: the store and the wire (`accept`, `history`), assertions.

use crate::ask::{array, command};
use anyhow::{Context, Result};
use essaim_core::Now;
use essaim_core::hub::{Durable, Effect, Hub, Input, Out, SessionId, ToWorker};
use essaim_core::lang::LanguageTable;
use essaim_proto::hello::Role;
use essaim_proto::job::{Isolation, JobSpec, Needs, TaskResult, Verdict};
use essaim_proto::link::{Ended, EndedMany, Register, TaskEnd};
use essaim_proto::{AttemptId, BlobHash, InstanceId, JobId, SubmitKey};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, VecDeque};

/// Nodes, and slots of each.
const NODES: u64 = 1_000;
const SLOTS: u32 = 4;
/// Tasks of the one array, and single jobs beside it.
const TASKS: u32 = 1_000_000;
const JOBS: u64 = 100_000;
/// Bytes of the arguments of a single job.
const ARGUMENT_BYTES: usize = 200;
/// Jobs that wait for memory in many classes.
const CLASS_JOBS: u64 = 5_000;
/// Steps between two looks at the clock by the hub.
const TICK_STEPS: u64 = 1_000;

/// The table of steps, then that of memory.
pub(crate) fn core() -> Result<()> {
    memory()?;
    steps()
}

/// How long this thread has computed, in nanoseconds.
fn computed_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Memory that this process has, in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// A hub, the queues of its workers, and how long its steps took.
struct Bench {
    hub: Hub,
    now: Now,
    out: Out,
    /// What each worker has, by its session.
    given: BTreeMap<SessionId, VecDeque<(AttemptId, bool)>>,
    took: BTreeMap<&'static str, Vec<u64>>,
    steps: u64,
}

/// Whoever submits: the array is the first one's, the single jobs are the second one's.
const CLIENTS: [SessionId; 2] = [SessionId(1), SessionId(2)];

impl Bench {
    fn new() -> Result<Bench> {
        let now = Now { mono_ms: 1, unix_ms: 1_700_000_000_000 };
        let hub = Hub::new(now, Durable::default(), LanguageTable::built_in());
        let (given, took) = (BTreeMap::new(), BTreeMap::new());
        let mut bench = Bench { hub, now, out: Out::default(), given, took, steps: 0 };
        for (session, name) in CLIENTS.into_iter().zip(["alice", "bob"]) {
            let secret = BlobHash::of(name.as_bytes());
            bench.step("key", Input::LocalKey { name: name.parse()?, role: Role::Operator, secret });
            bench.step("key", Input::ClientOpened { session, secret });
        }
        Ok(bench)
    }

    /// One step, measured; what it tells workers is queued, the rest dropped.
    fn step(&mut self, kind: &'static str, input: Input) {
        let begun = computed_ns();
        self.hub.step(self.now, input, &mut self.out);
        self.took.entry(kind).or_default().push(computed_ns() - begun);
        self.out.records.clear();
        for effect in self.out.effects.drain(..) {
            let Effect::Tell { session, message: ToWorker::Start(start) } = effect else { continue };
            let queue = self.given.entry(session).or_default();
            match &start.tasks {
                Some(tasks) => queue.extend(tasks.iter().map(|task| (AttemptId { task, ..start.attempt }, true))),
                None => queue.push_back((start.attempt, false)),
            }
        }
        self.steps += 1;
        if self.steps.is_multiple_of(TICK_STEPS) {
            self.now.mono_ms += 100;
            self.now.unix_ms += 100;
            self.step("tick", Input::Tick);
        }
    }

    fn nodes(&mut self) -> Result<()> {
        for n in 0..NODES {
            let (session, name) = (SessionId(1_000 + n), format!("node-{n:04}").parse()?);
            let register = Register { instance: InstanceId([1; 16]), slots: SLOTS, ..Register::default() };
            self.step("register", Input::Register { session, name, register: Box::new(register) });
        }
        Ok(())
    }

    fn submit(&mut self, kind: &'static str, session: SessionId, number: u64, spec: JobSpec) {
        let key = SubmitKey(u128::from(number + 1).to_le_bytes());
        self.step(kind, Input::Submit { session, request: number, key, spec: Box::new(spec) });
    }

    fn array(&mut self) {
        self.submit("submit an array", CLIENTS[0], 0, array(TASKS, &["true", "true"]));
    }

    fn jobs(&mut self) {
        for number in 1..=JOBS {
            self.submit("submit a job", CLIENTS[1], number, command(&["true", &format!("{number:0>ARGUMENT_BYTES$}")]));
        }
    }

    /// Nodes whose memory is in use and whose slots are not, and jobs of as many classes as there can be that wait for it:
    /// what is looked at in vain in each step.
    fn classes(&mut self) -> Result<()> {
        let with = |cpus: u32, mib: u64| {
            let needs = Needs { cpus, memory_bytes: mib << 20, ..Needs::default() };
            JobSpec { needs, ..command(&["true", "true"]) }
        };
        for n in 0..NODES {
            let (session, name) = (SessionId(1_000 + n), format!("node-{n:04}").parse()?);
            let instance = InstanceId([1; 16]);
            let register = Register { instance, slots: SLOTS, memory_bytes: 1 << 30, ..Register::default() };
            self.step("register", Input::Register { session, name, register: Box::new(register) });
            self.submit("submit a job", CLIENTS[0], n, with(1, 1_000));
        }
        for n in 0..CLASS_JOBS {
            let (cpus, mib) = ((n % u64::from(SLOTS)) as u32 + 1, 100 + n * 37 % 900);
            self.submit("submit a job among many classes", CLIENTS[1], n, with(cpus, mib));
        }
        for n in 0..NODES {
            let session = SessionId(1_000 + n);
            let Some((attempt, _)) = self.given.get_mut(&session).and_then(VecDeque::pop_front) else { continue };
            let ended = Box::new(Ended { attempt, result: result() });
            self.step("end of a job among many classes", Input::Ended { session, ended });
        }
        Ok(())
    }

    /// Workers end what they were given, in turn, 1 to 64 tasks of the array in one message.
    fn work_off(&mut self) {
        let sessions: Vec<SessionId> = (0..NODES).map(|n| SessionId(1_000 + n)).collect();
        let mut batch = 1;
        loop {
            let before = self.steps;
            for session in &sessions {
                batch = batch % 64 + 1;
                let Some(queue) = self.given.get_mut(session) else { continue };
                let mut ends = Vec::new();
                while ends.len() < batch && queue.front().is_some_and(|(_, of_array)| *of_array) {
                    ends.extend(queue.pop_front().map(|(attempt, _)| attempt));
                }
                match (ends.first().map(|first| first.job), queue.front()) {
                    (Some(job), _) => self.end_many(*session, job, &ends),
                    (None, Some((attempt, _))) => {
                        let ended = Box::new(Ended { attempt: *attempt, result: result() });
                        queue.pop_front();
                        self.step("end of a job", Input::Ended { session: *session, ended });
                    }
                    (None, None) => {}
                }
            }
            if self.steps == before {
                return;
            }
        }
    }

    fn end_many(&mut self, session: SessionId, job: JobId, ends: &[AttemptId]) {
        let end = |end: &AttemptId| {
            let (task, attempt, stdout, stderr) = (end.task, end.attempt, b"1\n".to_vec(), Vec::new());
            TaskEnd { task, attempt, result: result(), stdout, stderr }
        };
        let ended = Box::new(EndedMany { job, ends: ends.iter().map(end).collect() });
        self.step("ends of tasks", Input::EndedMany { session, ended });
    }
}

fn result() -> TaskResult {
    TaskResult {
        verdict: Verdict::Ok,
        wall_ms: 2,
        stdout_bytes: 2,
        isolation: Isolation::Full,
        ..TaskResult::default()
    }
}

fn steps() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.nodes()?;
    bench.array();
    bench.jobs();
    bench.work_off();
    let left = bench.hub.durable().live_tasks;
    println!();
    println!("{TASKS} tasks of an array and {JOBS} jobs on {NODES} nodes of {SLOTS} slots; {left} are left");
    println!("| one step of the core | steps | median | 99.9 % | longest |");
    println!("|---|---:|---:|---:|---:|");
    let mut took = std::mem::take(&mut bench.took);
    let all: Vec<u64> = took.values().flatten().copied().collect();
    took.insert("all", all);
    let mut many = Bench::new()?;
    many.classes()?;
    took.extend(many.took.into_iter().filter(|(kind, _)| kind.ends_with("classes")));
    for (kind, mut took) in took {
        took.sort_unstable();
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize] as f64 / 1e3;
        println!("| {kind} | {} | {:.1} µs | {:.1} µs | {:.1} µs |", took.len(), at(0.5), at(0.999), at(1.0));
    }
    Ok(())
}

type Fill = fn(&mut Bench) -> Result<()>;

fn memory() -> Result<()> {
    println!();
    println!("| memory of the hub | limit | used |");
    println!("|---|---:|---:|");
    // All of them stay until the end: what is freed is not given back to the system.
    let mut kept = Vec::new();
    let fill: [(&str, u64, Fill); 3] = [
        ("1,000,000 queued tasks of one array", 24, |bench| {
            bench.array();
            Ok(())
        }),
        ("1,000 idle nodes", 100, Bench::nodes),
        ("100,000 queued jobs with 200 bytes of arguments", 60, |bench| {
            bench.jobs();
            Ok(())
        }),
    ];
    for (what, limit, fill) in fill {
        let before = resident()?;
        let mut bench = Bench::new()?;
        bench.took.clear();
        fill(&mut bench)?;
        bench.took.clear();
        println!("| {what} | {limit} MB | {:.1} MB |", (resident()? - before) as f64 / 1e6);
        kept.push(bench);
    }
    Ok(())
}
