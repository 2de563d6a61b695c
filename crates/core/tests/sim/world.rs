//! The world: one thread, virtual time, and everything that happens in it.
//!
//! [`run`] deals a plan from a seed and lets events happen until all is said and done. Always true: the same seed gives
//! the same run; nothing is read from outside.
//! Deliberately not here: what the parts do (their own files), what must not be (`judge`).

use crate::client::ModelClient;
use crate::hub::{HubShell, key_of};
use crate::judge::Judge;
use crate::net::{Conn, ConnId, Far, FromHub, Peer, ToHub};
use crate::plan::{JobPlan, Kind, Plan};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::store::{Disk, Store};
use crate::trace;
use crate::worker::ModelWorker;
use essaim_core::hub::Job;
use essaim_core::limits::LEASE_MS;
use essaim_proto::job::Verdict;
use essaim_proto::{AttemptId, JobId, RefusalCode};

/// More events than any seed should need: a storm of messages ends here.
const STEPS_MAX: u64 = 300_000;

/// An ephemeral job is cancelled so long after the last fault, when its client is gone.
const ORPHAN_MS: u64 = LEASE_MS + 45_000;

/// A mistake that is built into the shells' model, to see that the judge finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    None,
    /// Effects leave before their records are durable.
    SendBeforePersist,
    /// Output is acknowledged when it is visible.
    AckVisible,
    /// The end of an attempt is recorded before its output is durable.
    EndBeforeOutput,
    /// Nobody tells the worker that the end is recorded.
    ForgetEndAck,
    /// An end counts for the present attempt, whichever it was of.
    TakeStaleEnds,
    /// After a failed append the hub goes on with the state that it has.
    GoOnAfterFailure,
    /// The disk forgets the last row that it had confirmed.
    DiskLies,
    /// The worker drops output when it was sent.
    DropWhenSent,
    /// The worker tells an end on one session only.
    TellEndOnce,
    /// A worker that starts again has its old instance.
    SameInstance,
    /// A client draws a new key each time that it asks.
    NewSubmitKey,
    /// A worker gives tasks back and runs them all the same.
    RunsWhatItGaveBack,
    /// The hub forgets to say which tasks of arrays go on.
    ForgetKeepMany,
    /// The ends of a batch are recorded twice.
    EndTwice,
    /// The number of the try of an array's task is not raised.
    SameTry,
    /// A worker starts what it is given, whether it fits or not.
    IgnoreSlots,
}

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    ToHub(ConnId, ToHub),
    FromHub(ConnId, FromHub),
    NearClosed(ConnId),
    FarClosed {
        conn: ConnId,
        clean: bool,
    },
    HubStart,
    HubStop(u32),
    HubWokeUp {
        generation: u32,
        slept: u64,
    },
    DriverWake(u32),
    Tick(u32),
    Persist(u32),
    Appended(u32, Result<u64, RefusalCode>),
    Settled {
        generation: u32,
        conn: ConnId,
        attempt: AttemptId,
        lengths: [usize; 2],
    },
    Recovered(u32),
    Pump {
        generation: u32,
        watch: (JobId, ConnId, u64),
    },
    DiskIsWell,
    WorkerStart(usize),
    ProcessEnded(usize),
    DialWorker {
        worker: usize,
        instance: u32,
    },
    RegisterLate {
        worker: usize,
        instance: u32,
        conn: ConnId,
    },
    Heartbeat {
        worker: usize,
        instance: u32,
    },
    Prepared {
        worker: usize,
        instance: u32,
        attempt: AttemptId,
        fails: bool,
    },
    Print {
        worker: usize,
        instance: u32,
        attempt: AttemptId,
        phase: u32,
        stream: usize,
        count: u64,
    },
    PhaseOver {
        worker: usize,
        instance: u32,
        attempt: AttemptId,
        phase: u32,
        verdict: Verdict,
    },
    FlushEnds {
        worker: usize,
        instance: u32,
    },
    WorkerTick {
        worker: usize,
        instance: u32,
    },
    Poisoned {
        worker: usize,
        instance: u32,
    },
    WorkerIdle {
        worker: usize,
        instance: u32,
    },
    Wish(usize),
    WishCancel(usize),
    WishRerun(usize),
    DialClient(usize),
    CancelAgain {
        client: usize,
        wish: usize,
        request: u64,
    },
    AskAgain {
        client: usize,
        wish: usize,
        request: u64,
    },
    Fault(Kind),
    Calm,
    /// Is everything over?
    Look,
}

/// Who stands still together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    Hub,
    Worker(usize),
    Client(usize),
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) sabotage: Sabotage,
    pub(crate) now: u64,
    pub(crate) queue: Queue<Event>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) hub: HubShell,
    pub(crate) store: Store,
    pub(crate) workers: Vec<ModelWorker>,
    pub(crate) clients: Vec<ModelClient>,
    pub(crate) judge: Judge,
    /// Until when each machine stands still: the hub, then workers, then clients.
    pub(crate) frozen: Vec<u64>,
    /// Until when each machine but the hub cannot reach it.
    pub(crate) partitioned: Vec<u64>,
    pub(crate) is_calm: bool,
    pub(crate) calm_at: u64,
    steps: u64,
}

/// What came of a seed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) finding: Option<String>,
    pub(crate) steps: u64,
    pub(crate) frames: u64,
    pub(crate) ended_at: u64,
    pub(crate) jobs: usize,
}

/// Runs a seed to its end.
pub(crate) fn run(seed: u64, sabotage: Sabotage) -> Outcome {
    let mut world = World::new(seed, sabotage);
    world.begin();
    while world.judge.finding.is_none() && world.next() {}
    if world.judge.finding.is_none() {
        world.last_look();
    }
    Outcome {
        finding: world.judge.finding.take().map(|text| format!("step {}, {} ms: {text}", world.steps, world.now)),
        steps: world.steps,
        frames: world.judge.frames,
        ended_at: world.now,
        jobs: world.judge.truth.jobs.len(),
    }
}

impl World {
    fn new(seed: u64, sabotage: Sabotage) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::deal(&mut rng);
        let (slots, local) = (plan.slots.iter(), plan.local.iter());
        let workers = slots.zip(local).enumerate().map(|(at, (slots, local))| ModelWorker::new(at, *slots, *local));
        let machines = plan.slots.len() + plan.clients;
        World {
            workers: workers.collect(),
            clients: (0..plan.clients).map(|_| ModelClient::default()).collect(),
            store: Store::new(plan.as_bytes),
            hub: HubShell::new(),
            plan,
            rng,
            sabotage,
            now: 0,
            queue: Queue::new(),
            conns: Vec::new(),
            judge: Judge::default(),
            frozen: vec![0; machines + 1],
            partitioned: vec![0; machines],
            is_calm: false,
            calm_at: 0,
            steps: 0,
        }
    }

    fn begin(&mut self) {
        trace::line(0, || format!("{:#?}", self.plan));
        self.start_hub();
        for at in 0..self.workers.len() {
            let late = self.rng.below(2_000);
            self.queue.push(late, Event::WorkerStart(at));
        }
        (0..self.clients.len()).for_each(|at| self.queue.push(1, Event::DialClient(at)));
        for (at, job) in self.plan.jobs.iter().enumerate() {
            self.queue.push(job.at, Event::Wish(at));
            if let Some(cancel_at) = job.cancel_at {
                self.queue.push(cancel_at, Event::WishCancel(at));
            }
            if let Some((rerun_at, _)) = job.rerun_at {
                self.queue.push(rerun_at.min(self.plan.chaos_ms), Event::WishRerun(at));
            }
        }
        for (at, kind) in &self.plan.faults {
            self.queue.push(*at, Event::Fault(*kind));
        }
        self.queue.push(self.plan.chaos_ms, Event::Calm);
        self.queue.push(self.plan.chaos_ms + 1, Event::Look);
    }

    /// The next thing that happens; false when nothing is left to wait for.
    fn next(&mut self) -> bool {
        let Some((at, order, event)) = self.queue.pop() else {
            self.judge.find("nothing happens any more".to_owned());
            return false;
        };
        self.now = self.now.max(at);
        let until = self.held_up(&event);
        if until > self.now {
            self.queue.defer(until, order, event);
            return true;
        }
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.judge.find("a storm: too much happens".to_owned());
        }
        if matches!(event, Event::Look) {
            return !self.is_over();
        }
        self.happen(event);
        true
    }

    /// Until when an event must wait, because a machine stands still or a connection stalls.
    fn held_up(&self, event: &Event) -> u64 {
        let (machine, conn) = match event {
            Event::ToHub(conn, _) | Event::FarClosed { conn, .. } => (Machine::Hub, Some(*conn)),
            Event::FromHub(conn, _) | Event::NearClosed(conn) => (self.machine_of(self.conns[*conn].peer), Some(*conn)),
            Event::DriverWake(_)
            | Event::Tick(_)
            | Event::Persist(_)
            | Event::Appended(..)
            | Event::Settled { .. }
            | Event::Recovered(_)
            | Event::Pump { .. }
            | Event::HubStop(_) => (Machine::Hub, None),
            Event::DialWorker { worker, .. }
            | Event::RegisterLate { worker, .. }
            | Event::Heartbeat { worker, .. }
            | Event::Prepared { worker, .. }
            | Event::Print { worker, .. }
            | Event::PhaseOver { worker, .. }
            | Event::FlushEnds { worker, .. }
            | Event::WorkerTick { worker, .. }
            | Event::Poisoned { worker, .. }
            | Event::WorkerIdle { worker, .. } => (Machine::Worker(*worker), None),
            _ => return 0,
        };
        let stalled = conn.map_or(0, |conn| self.conns[conn].stalled_until);
        self.frozen[self.place_of(machine)].max(stalled)
    }

    pub(crate) fn place_of(&self, machine: Machine) -> usize {
        match machine {
            Machine::Hub => 0,
            Machine::Worker(at) => 1 + at,
            Machine::Client(at) => 1 + self.workers.len() + at,
        }
    }

    fn machine_of(&self, peer: Peer) -> Machine {
        match peer {
            Peer::Worker(at) => Machine::Worker(at),
            Peer::Client(at) => Machine::Client(at),
        }
    }

    pub(crate) fn unreachable_until(&self, peer: Peer) -> u64 {
        match peer {
            Peer::Worker(at) => self.partitioned[at],
            Peer::Client(at) => self.partitioned[self.workers.len() + at],
        }
    }

    fn is_his(&self, generation: u32) -> bool {
        self.hub.is_up && self.hub.generation == generation
    }

    fn lives(&self, worker: usize, instance: u32) -> bool {
        self.workers[worker].is_up && self.workers[worker].instance == instance
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToHub(conn, frame) => {
                let link = &self.conns[conn];
                if !link.is_cut && link.far != Far::Closed && self.is_his(link.generation) {
                    self.hub_hears(conn, frame);
                }
            }
            Event::FromHub(conn, frame) => {
                let link = &self.conns[conn];
                if !link.is_cut && link.near_is_open {
                    match link.peer {
                        Peer::Worker(at) => self.worker_hears(at, conn, frame),
                        Peer::Client(at) => self.client_hears(at, conn, frame),
                    }
                }
            }
            Event::NearClosed(conn) => match self.conns[conn].peer {
                Peer::Worker(at) => self.worker_lost_connection(at, conn),
                Peer::Client(at) => self.client_lost_connection(at, conn),
            },
            Event::FarClosed { conn, clean } => self.far_closed(conn, clean),
            Event::Wish(plan) => self.wish(plan),
            Event::WishCancel(plan) => self.wish_cancel(plan),
            Event::WishRerun(plan) => self.wish_rerun(plan),
            Event::DialClient(at) => self.dial_client(at),
            Event::CancelAgain { client, wish, request } => self.cancel_again(client, wish, request),
            Event::AskAgain { client, wish, request } => self.ask_again(client, wish, request),
            Event::Fault(kind) => self.fault(kind),
            Event::DiskIsWell => self.store.disk = Disk::Well,
            Event::Calm => self.calm_down(),
            Event::Look => {}
            event => self.happen_at_hub(event),
        }
    }

    fn happen_at_hub(&mut self, event: Event) {
        match event {
            Event::HubStart => self.start_hub(),
            Event::HubStop(generation) if self.is_his(generation) => self.stop_hub(),
            Event::HubWokeUp { generation, slept } if self.is_his(generation) => self.hub.slept += slept,
            Event::DriverWake(generation) if self.is_his(generation) => self.driver_wakes(),
            Event::Tick(generation) if self.is_his(generation) => self.tick(),
            Event::Persist(generation) if self.is_his(generation) => self.persist(),
            Event::Appended(generation, end) if self.is_his(generation) => self.appended(end),
            Event::Settled { generation, conn, attempt, lengths } if self.is_his(generation) => {
                self.settled(conn, attempt, lengths);
            }
            Event::Recovered(generation) if self.is_his(generation) => self.recovered(),
            Event::Pump { generation, watch } if self.is_his(generation) => self.pump(watch),
            Event::ProcessEnded(at) if self.hub.is_up => {
                let node = self.workers[at].name.clone();
                self.command(essaim_core::hub::Input::WorkerProcessEnded { node });
            }
            event => self.happen_at_worker(event),
        }
    }

    fn happen_at_worker(&mut self, event: Event) {
        match event {
            Event::WorkerStart(at) => self.start_worker(at),
            Event::DialWorker { worker, instance } if self.lives(worker, instance) => self.dial_worker(worker),
            Event::RegisterLate { worker, instance, conn } if self.lives(worker, instance) => {
                self.register_late(worker, conn);
            }
            Event::Heartbeat { worker, instance } if self.lives(worker, instance) => self.heartbeat(worker),
            Event::Prepared { worker, instance, attempt, fails } if self.lives(worker, instance) => {
                self.prepared(worker, attempt, fails);
            }
            Event::Print { worker, instance, attempt, phase, stream, count } if self.lives(worker, instance) => {
                self.print(worker, attempt, phase, stream, count);
            }
            Event::PhaseOver { worker, instance, attempt, phase, verdict } if self.lives(worker, instance) => {
                self.phase_over(worker, attempt, phase, verdict);
            }
            Event::FlushEnds { worker, instance } if self.lives(worker, instance) => self.flush_ends(worker),
            Event::WorkerTick { worker, instance } if self.lives(worker, instance) => self.worker_ticks(worker),
            Event::Poisoned { worker, instance } if self.lives(worker, instance) => {
                let down_ms = self.rng.below(3_000);
                self.crash_worker(worker, false, down_ms);
            }
            Event::WorkerIdle { worker, instance } if self.lives(worker, instance) => {
                let down_ms = self.rng.below(5_000);
                self.stop_worker(worker, down_ms);
            }
            // It was for a process that is gone.
            _ => {}
        }
    }

    // The end.

    fn is_over(&mut self) -> bool {
        let jobs = &self.judge.truth.jobs;
        let is_over = self.hub.is_up
            && self.hub.is_at_rest()
            && jobs.values().all(|job| job.state().is_over())
            && self.clients.iter().all(ModelClient::is_satisfied)
            && self.workers.iter().all(ModelWorker::is_at_rest);
        if is_over {
            return true;
        }
        self.look_for_orphans();
        let work: u64 = self.plan.jobs.iter().map(JobPlan::work_ms).sum();
        let patience = 4 * LEASE_MS + 3 * work;
        if self.now > self.calm_at + patience {
            self.judge.find(self.what_is_missing());
        }
        self.queue.push(self.now + 500, Event::Look);
        false
    }

    /// What is cancelled ends soon. A job that was to live no longer than its client is cancelled some time after it is
    /// gone: silence, and the time that a restarted hub gives.
    fn look_for_orphans(&mut self) {
        if self.now < self.calm_at + ORPHAN_MS || !self.hub.is_at_rest() {
            return;
        }
        let goes_on = |job: &&Job| !job.state().is_over() && job.cancel_by.is_some();
        let going = self.judge.truth.jobs.values().find(goes_on).map(|job| job.accepted.name().to_owned());
        if self.now > self.calm_at + ORPHAN_MS + 10_000
            && let Some(name) = going
        {
            self.judge.find(format!("job {name} was cancelled and goes on"));
        }
        let is_orphan = |job: &&Job| {
            let client = self.clients.iter().enumerate().find(|(at, _)| *job.accepted.owner() == key_of(*at));
            job.accepted.spec().ephemeral
                && !job.state().is_over()
                && job.cancel_by.is_none()
                && client.is_some_and(|(_, client)| client.is_gone)
        };
        let orphan = self.judge.truth.jobs.values().find(is_orphan).map(|job| job.accepted.name().to_owned());
        if let Some(name) = orphan {
            self.judge.find(format!("job {name} outlives its client"));
        }
    }

    fn what_is_missing(&self) -> String {
        let mut missing = vec![format!("{} s after the last fault:", (self.now - self.calm_at) / 1_000)];
        for (id, job) in self.judge.truth.jobs.iter().filter(|(_, job)| !job.state().is_over()) {
            missing.push(format!("job {id} is not over: {:?} {:?}", job.task, job.array));
        }
        for (at, client) in self.clients.iter().enumerate().filter(|(_, client)| !client.is_satisfied()) {
            let open: Vec<_> = client.wishes.iter().filter(|wish| !wish.is_over).collect();
            missing.push(format!("client {at} waits for {open:?}"));
        }
        for (at, worker) in self.workers.iter().enumerate() {
            if !worker.is_at_rest() {
                let held: Vec<_> = worker.attempts.keys().map(ToString::to_string).collect();
                missing
                    .push(format!("worker {at}, up: {}, connection: {:?}, holds {held:?}", worker.is_up, worker.conn));
            }
        }
        if !self.hub.is_at_rest() {
            missing.push("the hub is not at rest".to_owned());
        }
        missing.join("\n  ")
    }

    fn last_look(&mut self) {
        let alive = self.judge.alive().next().map(|run| format!("a program runs that nobody waits for: {run:?}"));
        if let Some(text) = alive {
            return self.judge.find(text);
        }
        if *self.hub.hub.durable() != self.judge.truth {
            return self.judge.find("the hub's durable part differs from what is recorded".to_owned());
        }
        self.list_nodes();
        let replayed = self.store.replay();
        self.judge.replayed(&replayed);
        self.judge.all_counted();
        for attempt in self.judge.ended_attempts() {
            let stored = self.store.outputs.get(&attempt).map(|output| {
                let mut bytes = output.visible.clone();
                bytes.iter_mut().zip(output.durable).for_each(|(bytes, durable)| bytes.truncate(durable));
                bytes
            });
            self.judge.complete(attempt, stored.as_ref());
        }
        let wishes: usize = self.clients.iter().map(|client| client.wishes.len()).sum();
        if self.judge.truth.jobs.len() > wishes {
            self.judge.find(format!("{} jobs of {wishes} wishes", self.judge.truth.jobs.len()));
        }
        if self.judge.truth.live_tasks != 0 || self.judge.truth.live_bytes != 0 {
            self.judge.find("something counts as live when all is over".to_owned());
        }
    }
}
