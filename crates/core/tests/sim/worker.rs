//! The model of a worker's shell: sessions, attempts, programs and their output. The decisions are the real [`Worker`]'s.
//!
//! As in `crates/worker`: one session at a time, dialled again for ever; each attempt keeps output that is not
//! acknowledged and its end, and says both again on every new session that keeps it; the end goes behind all output; a
//! crash leaves nothing, a new process has a new instance; ends of arrays' tasks gather for some milliseconds and leave with
//! their output, a fifth of them alone like those that print much. Programs take virtual time and print bytes by their number;
//! those that may wait do so as in the cage, and go back when all that may run take long.
//! Deliberately not here: work folders, fetching, probes, what else the cage does, standard input.

use crate::judge::byte;
use crate::net::{BULK, CONTROL, ConnId, FromHub, Peer, ToHub};
use crate::plan::{Kind, MEMORY_BYTES};
use crate::trace;
use crate::world::{Event, Sabotage, World};
use essaim_core::limits::HEARTBEAT_MS;
use essaim_core::worker::{Effect, Input, PhaseEnd, Worker};
use essaim_proto::job::{Phase, Reason, TaskResult, Verdict};
use essaim_proto::link::{Ended, EndedMany, GivenBack, HeldMany, Register, Registered, Report, Start, TaskEnd};
use essaim_proto::node::Toolchain;
use essaim_proto::{AttemptId, InstanceId, JobId, NodeName};
use std::collections::{BTreeMap, VecDeque};

/// First and longest pause between two dials, and the time after which a session was a good one.
const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 10_000;
const SESSION_STOOD_MS: u64 = 5_000;
/// The hub gets so long to answer a registration.
const REGISTER_MS: u64 = 30_000;
/// A dial that reaches nobody takes so long.
const DIAL_MS: u64 = 5_000;
/// A program that takes so long is known to run on.
const LONG_MS: u64 = 5;
/// How often the core is told that time has passed, while tasks of arrays run.
const WORKER_TICK_MS: u64 = 100;

/// A worker's process, and what its machine remembers.
#[derive(Debug)]
pub(crate) struct ModelWorker {
    pub(crate) name: NodeName,
    pub(crate) slots: u32,
    pub(crate) is_local: bool,
    pub(crate) is_up: bool,
    /// It never comes back.
    pub(crate) is_gone: bool,
    /// How long its machine has slept since it last registered.
    pub(crate) slept_ms: u64,
    /// Counts processes: events of an older one mean nothing.
    pub(crate) instance: u32,
    core: Worker,
    pub(crate) conn: Option<ConnId>,
    /// The open session and its number, once the hub has answered.
    link: Option<(ConnId, u64)>,
    epoch: u64,
    opened_at: u64,
    backoff_ms: u64,
    pub(crate) attempts: BTreeMap<AttemptId, Shell>,
    /// Launched, and waiting for their turn.
    queue: VecDeque<(AttemptId, Phase)>,
    /// How many of those that may wait run at once.
    at_once: u32,
    /// Ends wait to be told together.
    is_flushing: bool,
    is_ticking: bool,
    /// What it was told to start last of each array, for a sabotage.
    starts: BTreeMap<JobId, Box<Start>>,
}

/// What the shell has of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Shell {
    /// The session that brought it.
    born: u64,
    /// The number of its program; 0 before the first phase.
    run: u64,
    kept: [Kept; 2],
    end: Option<(u64, Box<TaskResult>)>,
    end_told: u64,
    is_unwanted: bool,
    phase: u32,
    runs: bool,
    /// It may wait for its turn.
    may_wait: bool,
    /// What it has for itself while it runs.
    slots: u32,
    memory_bytes: u64,
    of_array: bool,
    /// Its end is told with those of others, with all of its output.
    is_told_with_others: bool,
    wall_ms: u64,
}

#[derive(Debug, Default)]
struct Kept {
    start: u64,
    bytes: Vec<u8>,
    sent: u64,
}

impl Kept {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn drop_below(&mut self, offset: u64) {
        let count = offset.clamp(self.start, self.end()) - self.start;
        self.bytes.drain(..count as usize);
        self.start += count;
        self.sent = self.sent.max(self.start);
    }
}

impl Shell {
    fn ends(&self) -> [u64; 2] {
        self.kept.each_ref().map(Kept::end)
    }

    fn drop_acked(&mut self, acked: [u64; 2]) {
        self.kept.iter_mut().zip(acked).for_each(|(kept, acked)| kept.drop_below(acked));
    }
}

impl ModelWorker {
    pub(crate) fn new(number: usize, slots: u32, is_local: bool) -> ModelWorker {
        ModelWorker {
            name: format!("node-{number}").parse().unwrap(),
            slots,
            is_local,
            is_up: false,
            is_gone: false,
            slept_ms: 0,
            instance: 0,
            core: Worker::new(slots),
            conn: None,
            link: None,
            epoch: 0,
            opened_at: 0,
            backoff_ms: BACKOFF_FIRST_MS,
            attempts: BTreeMap::new(),
            queue: VecDeque::new(),
            at_once: 0,
            is_flushing: false,
            is_ticking: false,
            starts: BTreeMap::new(),
        }
    }

    /// Has it nothing to do and nothing to tell?
    pub(crate) fn is_at_rest(&self) -> bool {
        self.is_gone || self.is_up && self.conn.is_some() && self.holds_nothing()
    }

    fn holds_nothing(&self) -> bool {
        self.attempts.is_empty() && self.core.held().is_empty()
    }

    fn register(&self, sabotage: Sabotage) -> Box<Register> {
        let instance = if sabotage == Sabotage::SameInstance { 1 } else { self.instance };
        let (held, held_many) = self.core.held_by_kind();
        Box::new(Register {
            instance: InstanceId([instance as u8; 16]),
            local: self.is_local,
            slots: self.slots,
            toolchains: ["c", "python"].map(|lang| Toolchain { lang: lang.into(), version: "1".into() }).into(),
            held,
            held_many,
            memory_bytes: MEMORY_BYTES,
            draining: self.core.is_draining(),
            slept_ms: self.slept_ms,
            ..Register::default()
        })
    }
}

impl World {
    pub(crate) fn start_worker(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.is_up || worker.is_gone {
            return;
        }
        let instance = worker.instance + 1;
        *worker = ModelWorker { is_up: true, instance, ..ModelWorker::new(at, worker.slots, worker.is_local) };
        trace::line(self.now, || format!("worker {at} starts, instance {instance}"));
        self.queue.push(self.now, Event::DialWorker { worker: at, instance });
        self.queue.push(self.now + HEARTBEAT_MS, Event::Heartbeat { worker: at, instance });
    }

    // Sessions.

    pub(crate) fn dial_worker(&mut self, at: usize) {
        if self.workers[at].conn.is_some() {
            return;
        }
        let register = self.workers[at].register(self.sabotage);
        let blocked = self.unreachable_until(Peer::Worker(at)) > self.now;
        match self.connect(Peer::Worker(at), ToHub::Register(register)) {
            Some(conn) => {
                self.workers[at].conn = Some(conn);
                let instance = self.workers[at].instance;
                self.queue.push(self.now + REGISTER_MS, Event::RegisterLate { worker: at, instance, conn });
            }
            None => self.dial_later(at, if blocked { DIAL_MS } else { 0 }),
        }
    }

    fn dial_later(&mut self, at: usize, after: u64) {
        let worker = &mut self.workers[at];
        let step = worker.backoff_ms;
        worker.backoff_ms = (step * 2).min(BACKOFF_MAX_MS);
        let pause = after + step / 2 + self.rng.below(step / 2 + 1);
        let instance = worker.instance;
        self.queue.push(self.now + pause, Event::DialWorker { worker: at, instance });
    }

    pub(crate) fn register_late(&mut self, at: usize, conn: ConnId) {
        if self.workers[at].conn == Some(conn) && self.workers[at].link.is_none() {
            self.close_near(conn, false);
            self.worker_lost_connection(at, conn);
        }
    }

    pub(crate) fn worker_lost_connection(&mut self, at: usize, conn: ConnId) {
        self.conns[conn].near_is_open = false;
        if self.workers[at].conn != Some(conn) || !self.workers[at].is_up {
            return;
        }
        trace::line(self.now, || format!("worker {at} has lost connection {conn}"));
        let worker = &mut self.workers[at];
        worker.conn = None;
        if worker.link.take().is_some() {
            if self.now - worker.opened_at >= SESSION_STOOD_MS {
                worker.backoff_ms = BACKOFF_FIRST_MS;
            }
            self.step_worker(at, Input::Disconnected);
        }
        self.dial_later(at, 0);
    }

    /// A frame of the hub arrives.
    pub(crate) fn worker_hears(&mut self, at: usize, conn: ConnId, frame: FromHub) {
        if self.workers[at].conn != Some(conn) {
            return;
        }
        match frame {
            // Said twice: the session is open already.
            FromHub::Registered(_) if self.workers[at].link.is_some() => {}
            FromHub::Registered(registered) => self.registered(at, conn, *registered),
            FromHub::Refused { .. } => {
                self.close_near(conn, false);
                self.worker_lost_connection(at, conn);
            }
            FromHub::Start(start) => self.told_to_start(at, start),
            FromHub::EndAckMany(ack) => {
                for (attempt, tasks) in &ack.tasks {
                    for task in tasks.iter() {
                        let attempt = AttemptId { job: ack.job, task, attempt: *attempt };
                        self.step_worker(at, Input::EndAck { attempt });
                    }
                }
            }
            FromHub::TakeBack(wanted) => self.step_worker(at, Input::TakeBack(wanted)),
            FromHub::Leave(leave) => self.step_worker(at, Input::Leave { leave }),
            FromHub::Stop(attempt) => self.step_worker(at, Input::Stop { attempt }),
            FromHub::EndAck(attempt) => self.step_worker(at, Input::EndAck { attempt }),
            FromHub::OutputAck { attempt, has } => {
                if let Some(shell) = self.workers[at].attempts.get_mut(&attempt) {
                    shell.drop_acked(has);
                }
            }
            _ => {}
        }
    }

    fn told_to_start(&mut self, at: usize, mut start: Box<Start>) {
        for attempt in start.attempts() {
            self.judge.told_to_start(at, attempt);
        }
        if start.tasks.is_some() {
            self.workers[at].starts.insert(start.attempt.job, start.clone());
        }
        if self.sabotage == Sabotage::IgnoreSlots {
            start.needs.cpus = 1;
        }
        self.step_worker(at, Input::Start(start));
    }

    fn registered(&mut self, at: usize, conn: ConnId, registered: Registered) {
        let worker = &mut self.workers[at];
        worker.epoch += 1;
        worker.slept_ms = 0;
        worker.link = Some((conn, worker.epoch));
        worker.opened_at = self.now;
        // Of what is named by ranges the hub has nothing.
        let many = registered.keep_many.iter().flat_map(HeldMany::attempts).map(|attempt| (attempt, [0, 0]));
        let one = registered.keep.iter().map(|kept| (kept.attempt, [kept.stdout, kept.stderr]));
        let keep: BTreeMap<AttemptId, [u64; 2]> = many.chain(one).collect();
        for (attempt, shell) in &mut worker.attempts {
            match keep.get(attempt) {
                Some(has) => {
                    if shell.kept.iter().zip(has).any(|(kept, has)| kept.start > *has) {
                        self.judge.find(format!("the hub has lost output of {attempt} that it had acknowledged"));
                    }
                    shell.drop_acked(*has);
                    shell.kept.iter_mut().for_each(|kept| kept.sent = kept.start);
                }
                None if shell.born == worker.epoch => {}
                None => shell.is_unwanted = true,
            }
            if shell.is_unwanted {
                shell.drop_acked(shell.ends());
            }
        }
        let keep = keep.into_keys().collect();
        let killed = registered.kill_many.iter().flat_map(HeldMany::attempts);
        let kill = registered.kill.iter().copied().chain(killed).collect();
        self.step_worker(at, Input::Registered { keep, kill });
        let attempts: Vec<AttemptId> = self.workers[at].attempts.keys().copied().collect();
        attempts.into_iter().for_each(|attempt| self.pump_attempt(at, attempt));
        self.report(at);
    }

    fn report(&mut self, at: usize) {
        let worker = &self.workers[at];
        if let Some((conn, _)) = worker.link {
            let (held, held_many) = worker.core.held_by_kind();
            let report = Report { held, held_many, draining: worker.core.is_draining(), ..Report::default() };
            self.send_to_hub(conn, CONTROL, ToHub::Report(Box::new(report)));
        }
    }

    pub(crate) fn heartbeat(&mut self, at: usize) {
        let instance = self.workers[at].instance;
        self.queue.push(self.now + HEARTBEAT_MS, Event::Heartbeat { worker: at, instance });
        self.report(at);
    }

    // What it decides.

    pub(crate) fn step_worker(&mut self, at: usize, input: Input) {
        trace::line(self.now, || match &input {
            Input::Start(start) => format!("worker {at} <- Start {}", start.attempt),
            input => format!("worker {at} <- {input:?}"),
        });
        let mut effects = Vec::new();
        self.workers[at].core.step(input, &mut effects);
        for effect in effects {
            trace::line(self.now, || match &effect {
                Effect::Launch { attempt, .. } => format!("worker {at} -> Launch {attempt}"),
                effect => format!("worker {at} -> {effect:?}"),
            });
            self.carry_out_at_worker(at, effect);
        }
    }

    fn carry_out_at_worker(&mut self, at: usize, effect: Effect) {
        let instance = self.workers[at].instance;
        match effect {
            Effect::Prepare { attempt, of_array, .. } => {
                let born = self.workers[at].epoch;
                let is_told_with_others = of_array && self.rng.percent(80);
                let plan = self.job_plan(attempt.job);
                let (slots, memory_bytes) = plan.map_or((1, 0), |plan| (plan.cpus.max(1), plan.memory_bytes));
                let shell = Shell { born, of_array, is_told_with_others, slots, memory_bytes, ..Shell::default() };
                self.workers[at].attempts.insert(attempt, shell);
                let fails = self.plan.has(Kind::WorkerFails) && !self.is_calm && self.rng.percent(5);
                let delay = self.rng.below(40);
                self.queue.push(self.now + delay, Event::Prepared { worker: at, instance, attempt, fails });
            }
            Effect::Launch { attempt, phase, at_once: None, .. } => self.launch(at, attempt, phase.phase),
            Effect::Launch { attempt, phase, at_once: Some(at_once), .. } => {
                let worker = &mut self.workers[at];
                worker.at_once = at_once;
                worker.queue.push_back((attempt, phase.phase));
                self.launch_waiting(at);
            }
            Effect::Kill { attempt } => {
                let queue = &mut self.workers[at].queue;
                if let Some(place) = queue.iter().position(|(waiting, _)| *waiting == attempt) {
                    queue.remove(place);
                    let end = PhaseEnd { verdict: Verdict::Cancelled, ..PhaseEnd::default() };
                    return self.step_worker(at, Input::PhaseEnded { attempt, end });
                }
                let Some(shell) = self.workers[at].attempts.get(&attempt).filter(|shell| shell.runs) else { return };
                let phase = shell.phase;
                let delay = self.rng.below(50);
                let over = Event::PhaseOver { worker: at, instance, attempt, phase, verdict: Verdict::Cancelled };
                self.queue.push(self.now + delay, over);
            }
            Effect::Progress(progress) => {
                if let Some((conn, _)) = self.workers[at].link {
                    self.send_to_hub(conn, CONTROL, ToHub::Progress(progress));
                }
            }
            Effect::End { attempt, result } => self.end(at, attempt, result),
            Effect::GiveBack(given) => self.give_back(at, given),
            Effect::Clean { .. } => {}
            Effect::Forget { attempt } => drop(self.workers[at].attempts.remove(&attempt)),
            Effect::Idle => self.queue.push(self.now, Event::WorkerIdle { worker: at, instance }),
        }
    }

    fn give_back(&mut self, at: usize, given: GivenBack) {
        for (attempt, tasks) in &given.tasks {
            for task in tasks.iter() {
                self.judge.gives_back(at, AttemptId { job: given.job, task, attempt: *attempt });
            }
        }
        let again = self.workers[at].starts.get(&given.job).cloned();
        let again = again.filter(|start| given.tasks.iter().any(|(attempt, _)| *attempt == start.attempt.attempt));
        if let Some((conn, _)) = self.workers[at].link {
            self.send_to_hub(conn, CONTROL, ToHub::GivenBack(given));
        }
        if let (Sabotage::RunsWhatItGaveBack, Some(start)) = (self.sabotage, again) {
            self.step_worker(at, Input::Start(start));
        }
    }

    /// Tells ends of arrays together, as `crates/worker` does.
    pub(crate) fn flush_ends(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        worker.is_flushing = false;
        let Some((conn, epoch)) = worker.link else { return };
        let once = self.sabotage == Sabotage::TellEndOnce;
        let mut by_job: BTreeMap<JobId, Vec<TaskEnd>> = BTreeMap::new();
        for (attempt, shell) in &mut worker.attempts {
            let told_before = if once { u64::from(shell.end_told > 0) * epoch } else { shell.end_told };
            let Some((of, result)) = &shell.end else { continue };
            if !shell.is_told_with_others || shell.is_unwanted || *of != epoch || told_before >= epoch || shell.runs {
                continue;
            }
            let mut result = TaskResult::clone(result);
            [result.stdout_bytes, result.stderr_bytes] = shell.ends();
            shell.end_told = epoch;
            let [stdout, stderr] = shell.kept.each_ref().map(|kept| kept.bytes.clone());
            let end = TaskEnd { task: attempt.task, attempt: attempt.attempt, result, stdout, stderr };
            by_job.entry(attempt.job).or_default().push(end);
        }
        for (job, mut ends) in by_job {
            while !ends.is_empty() {
                let rest = ends.split_off(ends.len().min(1 + self.rng.index(64)));
                let frame = ToHub::EndedMany(Box::new(EndedMany { job, ends: std::mem::replace(&mut ends, rest) }));
                if self.plan.has(Kind::EndAgain) && self.rng.percent(40) {
                    self.send_to_hub(conn, BULK, frame.clone());
                }
                self.send_to_hub(conn, BULK, frame);
            }
        }
    }

    /// A tenth of a second has passed.
    pub(crate) fn worker_ticks(&mut self, at: usize) {
        self.workers[at].is_ticking = false;
        self.step_worker(at, Input::Tick);
        if self.workers[at].attempts.values().any(|shell| shell.runs && shell.of_array) {
            self.tick_later(at);
        }
    }

    fn tick_later(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if !std::mem::replace(&mut worker.is_ticking, true) {
            let event = Event::WorkerTick { worker: at, instance: worker.instance };
            self.queue.push(self.now + WORKER_TICK_MS, event);
        }
    }

    /// Do the programs that run fit into what the worker offers? What nobody wants any more is being killed.
    fn fits(&mut self, at: usize) {
        let runs = self.workers[at].attempts.values().filter(|shell| shell.runs && !shell.is_unwanted);
        let (slots, memory) =
            runs.fold((0, 0), |(slots, memory), shell| (slots + shell.slots, memory + shell.memory_bytes));
        if slots > self.workers[at].slots || memory > MEMORY_BYTES {
            let offered = self.workers[at].slots;
            self.judge.find(format!("worker {at} offers {offered} slots, and runs {slots} of them, {memory} bytes"));
        }
    }

    fn end(&mut self, at: usize, attempt: AttemptId, mut result: Box<TaskResult>) {
        let worker = &mut self.workers[at];
        let epoch = worker.epoch;
        if result.reason.as_ref().is_some_and(|reason| reason.code == "queue_full") {
            self.judge.find(format!("worker {at} was given attempt {attempt} without a free slot"));
        }
        match worker.attempts.get_mut(&attempt) {
            Some(shell) => {
                result.memory_peak_bytes = shell.run;
                shell.end = Some((epoch, result));
                self.pump_attempt(at, attempt);
            }
            None => {
                if let Some((conn, _)) = worker.link {
                    self.send_to_hub(conn, CONTROL, ToHub::Ended(Box::new(Ended { attempt, result: *result })));
                }
            }
        }
    }

    /// Sends what is to be sent: output first, then the end.
    fn pump_attempt(&mut self, at: usize, attempt: AttemptId) {
        let Some((conn, epoch)) = self.workers[at].link else { return };
        let instance = self.workers[at].instance;
        let Some(shell) = self.workers[at].attempts.get_mut(&attempt).filter(|shell| !shell.is_unwanted) else {
            return;
        };
        if shell.is_told_with_others {
            let is_over = shell.end.is_some() && !shell.runs;
            if is_over && !std::mem::replace(&mut self.workers[at].is_flushing, true) {
                let delay = self.rng.below(10);
                self.queue.push(self.now + delay, Event::FlushEnds { worker: at, instance });
            }
            return;
        }
        let mut frames = Vec::new();
        for (stream, kept) in shell.kept.iter_mut().enumerate() {
            while kept.sent < kept.end() {
                let from = (kept.sent - kept.start) as usize;
                let count = (kept.bytes.len() - from).min(1 + self.rng.index(60));
                let bytes = kept.bytes[from..from + count].to_vec();
                frames.push(ToHub::Output { attempt, stream, offset: kept.sent, bytes });
                kept.sent += count as u64;
            }
            if self.sabotage == Sabotage::DropWhenSent {
                kept.drop_below(kept.sent);
            }
        }
        let told_before =
            if self.sabotage == Sabotage::TellEndOnce { u64::from(shell.end_told > 0) * epoch } else { shell.end_told };
        if let Some((of, result)) = &shell.end
            && *of == epoch
            && told_before < epoch
            && !shell.runs
        {
            let mut result = TaskResult::clone(result);
            [result.stdout_bytes, result.stderr_bytes] = shell.ends();
            frames.push(ToHub::Ended(Box::new(Ended { attempt, result })));
            if self.plan.has(Kind::EndAgain) && self.rng.percent(40) {
                frames.extend(frames.last().cloned());
            }
            shell.end_told = epoch;
        }
        frames.into_iter().for_each(|frame| self.send_to_hub(conn, BULK, frame));
    }

    // Programs.

    pub(crate) fn prepared(&mut self, at: usize, attempt: AttemptId, fails: bool) {
        self.step_worker(
            at,
            match fails {
                true => Input::PrepareFailed { attempt, reason: Reason::new("disk_full") },
                false => Input::Prepared { attempt },
            },
        );
    }

    /// Starts what waits, as far as it may; what would wait for long goes back.
    fn launch_waiting(&mut self, at: usize) {
        loop {
            let worker = &mut self.workers[at];
            let sharing = worker.attempts.values().filter(|shell| shell.runs && shell.may_wait);
            let (runs, long) =
                sharing.fold((0, 0), |(runs, long), shell| (runs + 1, long + u32::from(shell.wall_ms >= LONG_MS)));
            let is_full = runs >= worker.at_once && self.sabotage != Sabotage::IgnoreSlots;
            if is_full && long < runs {
                return;
            }
            let Some((attempt, phase)) = worker.queue.pop_front() else { return };
            if is_full {
                self.step_worker(at, Input::Returned { attempt });
                continue;
            }
            if let Some(shell) = worker.attempts.get_mut(&attempt) {
                shell.may_wait = true;
            }
            self.launch(at, attempt, phase);
        }
    }

    fn launch(&mut self, at: usize, attempt: AttemptId, phase: Phase) {
        let instance = self.workers[at].instance;
        let Some(shell) = self.workers[at].attempts.get_mut(&attempt) else { return };
        shell.phase += 1;
        shell.runs = true;
        let number = shell.phase;
        if shell.run == 0 {
            shell.run = self.judge.launched(attempt, at);
        }
        self.judge.lives(shell.run);
        if shell.of_array {
            self.tick_later(at);
        }
        self.fits(at);
        let plan = self.job_plan(attempt.job);
        let is_last = phase == Phase::Run;
        let (run_ms, is_poison) = plan.map_or((10, false), |plan| (plan.run_ms, plan.is_poison));
        let of_array = self.workers[at].attempts.get(&attempt).is_some_and(|shell| shell.of_array);
        let run_ms = match (is_last, of_array) {
            (false, false) => self.rng.below(300),
            (false, true) => self.rng.below(run_ms + 5),
            // One among many that takes long: what was leased behind it stands still.
            (true, true) if self.rng.percent(2) => run_ms + self.rng.below(3_000),
            (true, _) => run_ms,
        };
        if let Some(shell) = self.workers[at].attempts.get_mut(&attempt) {
            shell.wall_ms = run_ms;
        }
        let fails = self.plan.has(Kind::WorkerFails) && !self.is_calm;
        for _ in 0..self.rng.below(if is_last { 10 } else { 2 }) {
            let (after, stream, count) = (self.rng.below(run_ms + 1), self.rng.index(2), self.rng.between(1, 60));
            let print = Event::Print { worker: at, instance, attempt, phase: number, stream, count };
            self.queue.push(self.now + after, print);
        }
        let verdict = match self.rng.below(100) {
            0..8 if is_last => Verdict::RuntimeError,
            0..4 => Verdict::CompileError,
            95.. if fails => Verdict::InternalError,
            _ => Verdict::Ok,
        };
        let over = Event::PhaseOver { worker: at, instance, attempt, phase: number, verdict };
        if is_poison && is_last {
            self.queue.push(self.now + run_ms.min(2_000), Event::Poisoned { worker: at, instance });
        }
        self.queue.push(self.now + run_ms, over);
    }

    pub(crate) fn print(&mut self, at: usize, attempt: AttemptId, phase: u32, stream: usize, count: u64) {
        let Some(shell) = self.workers[at].attempts.get_mut(&attempt) else { return };
        if shell.phase != phase || !shell.runs {
            return;
        }
        let (run, kept) = (shell.run, &mut shell.kept[stream]);
        let from = kept.end();
        kept.bytes.extend((from..from + count).map(|offset| byte(run, stream, offset)));
        if shell.is_unwanted {
            kept.drop_below(from + count);
        }
        self.pump_attempt(at, attempt);
    }

    pub(crate) fn phase_over(&mut self, at: usize, attempt: AttemptId, phase: u32, verdict: Verdict) {
        let Some(shell) = self.workers[at].attempts.get_mut(&attempt) else { return };
        if shell.phase != phase || !shell.runs {
            return;
        }
        shell.runs = false;
        let [stdout_bytes, stderr_bytes] = shell.ends();
        self.judge.dead(shell.run, Some((verdict, shell.ends())));
        let (memory_peak_bytes, exit_code) = (shell.run, (verdict == Verdict::Ok).then_some(0));
        let wall_ms = shell.wall_ms;
        let end = PhaseEnd {
            wall_ms,
            verdict,
            exit_code,
            memory_peak_bytes,
            stdout_bytes,
            stderr_bytes,
            ..PhaseEnd::default()
        };
        self.step_worker(at, Input::PhaseEnded { attempt, end });
        self.launch_waiting(at);
    }

    // The end of a process.

    /// Dies; with `power` lost, its connection says nothing.
    pub(crate) fn crash_worker(&mut self, at: usize, power: bool, down_ms: u64) {
        if !self.workers[at].is_up {
            return;
        }
        trace::line(self.now, || format!("worker {at} crashes, power lost: {power}"));
        if let Some(conn) = self.workers[at].conn {
            if power {
                self.cut(conn);
                self.conns[conn].near_is_open = false;
            } else {
                self.close_near(conn, false);
            }
        }
        self.worker_is_gone(at, down_ms, !power);
    }

    /// Leaves in order: its programs are killed, then it says goodbye.
    pub(crate) fn stop_worker(&mut self, at: usize, down_ms: u64) {
        if !self.workers[at].is_up {
            return;
        }
        trace::line(self.now, || format!("worker {at} leaves"));
        if let Some(conn) = self.workers[at].conn {
            self.close_near(conn, true);
        }
        self.worker_is_gone(at, down_ms, true);
    }

    fn worker_is_gone(&mut self, at: usize, down_ms: u64, is_seen: bool) {
        for shell in std::mem::take(&mut self.workers[at].attempts).into_values() {
            if shell.runs {
                self.judge.dead(shell.run, None);
            }
        }
        let worker = &mut self.workers[at];
        (worker.is_up, worker.conn, worker.link) = (false, None, None);
        let mut down_ms = down_ms;
        if worker.is_local && is_seen {
            // `up` tells the end before it starts the next one.
            let seen = self.rng.below(200);
            self.queue.push(self.now + seen, Event::ProcessEnded(at));
            down_ms = down_ms.max(seen + 1);
        }
        self.queue.push(self.now + down_ms, Event::WorkerStart(at));
    }

    pub(crate) fn drain_worker(&mut self, at: usize) {
        if self.workers[at].is_up {
            self.step_worker(at, Input::Drain);
            self.report(at);
        }
    }

    /// The fault of a second connection beside one that the hub believes in for a while longer.
    pub(crate) fn leave_connection(&mut self, at: usize) {
        if let Some(conn) = self.workers[at].conn {
            self.cut(conn);
            self.worker_lost_connection(at, conn);
            let instance = self.workers[at].instance;
            self.queue.push(self.now, Event::DialWorker { worker: at, instance });
        }
    }
}
