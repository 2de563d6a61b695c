//! What a seed is dealt: how large its world is, what is submitted, which faults come and when.
//!
//! Drawn as a whole before anything runs, except what depends on what happens (delays, what a program prints). Always
//! true: after [`Plan::chaos_ms`] no new fault begins, and everything that was broken is mended.
//! Deliberately not here: how a fault is carried out (`faults`).

use crate::rng::Rng;
use essaim_proto::{TaskId, TaskSet};

/// What every node offers.
pub(crate) const MEMORY_BYTES: u64 = 8 << 20;

/// The kinds of faults. Each seed has some of them, so that each meets each other without all the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A connection breaks; both ends notice at their own time.
    Break,
    /// A peer cannot be reached for a while, then everything arrives late or the connection is broken.
    Partition,
    /// `kill -9` of the hub, or its machine loses power.
    HubCrash,
    /// An ordered stop of the hub.
    HubRestart,
    /// The hub's process, or its whole machine, stands still.
    HubPause,
    /// `kill -9` of a worker, or its machine loses power.
    WorkerCrash,
    /// An ordered stop of a worker: its programs are killed, it says goodbye.
    WorkerStop,
    /// A worker dies and never comes back.
    WorkerVanish,
    /// A worker finishes what it has, takes nothing new, and leaves.
    WorkerDrain,
    /// A worker's process, or its whole machine, stands still.
    WorkerPause,
    /// Appends and output take very long.
    StoreSlow,
    /// Appends fail.
    StoreFails,
    /// Appends are refused for lack of room.
    StoreFull,
    /// The hub's clock for people jumps.
    UnixJump,
    /// A worker opens a second connection beside one that the hub believes in; registrations are heard twice.
    RegisterAgain,
    /// A worker tells an end again.
    EndAgain,
    /// A client submits again what it has submitted, on its open session.
    SubmitAgain,
    /// A client goes and comes back.
    ClientReconnect,
    /// A client goes and never comes back.
    ClientVanish,
    /// The worker reports that it failed, not the program.
    WorkerFails,
}

const KINDS: [Kind; 20] = [
    Kind::Break,
    Kind::Partition,
    Kind::HubCrash,
    Kind::HubRestart,
    Kind::HubPause,
    Kind::WorkerCrash,
    Kind::WorkerStop,
    Kind::WorkerVanish,
    Kind::WorkerDrain,
    Kind::WorkerPause,
    Kind::StoreSlow,
    Kind::StoreFails,
    Kind::StoreFull,
    Kind::UnixJump,
    Kind::RegisterAgain,
    Kind::EndAgain,
    Kind::SubmitAgain,
    Kind::ClientReconnect,
    Kind::ClientVanish,
    Kind::WorkerFails,
];

/// What is submitted.
#[derive(Debug, Clone)]
pub(crate) struct JobPlan {
    pub(crate) client: usize,
    pub(crate) at: u64,
    pub(crate) lang: Lang,
    pub(crate) on: Option<usize>,
    pub(crate) ephemeral: bool,
    pub(crate) run_ms: u64,
    /// Its tasks, when it is an array.
    pub(crate) tasks: Option<TaskSet>,
    pub(crate) cpus: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) priority: i32,
    pub(crate) retry: u32,
    /// It waits for the last job of its client that is known then.
    pub(crate) is_after: bool,
    pub(crate) cancel_at: Option<u64>,
    /// Only these of its tasks are cancelled.
    pub(crate) cancel_tasks: Option<TaskSet>,
    /// Its failed tasks, or all, are run once more.
    pub(crate) rerun_at: Option<(u64, bool)>,
    /// It kills the worker that runs it.
    pub(crate) is_poison: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lang {
    /// One phase, on any node.
    Command,
    /// One phase, on a node with Python.
    Python,
    /// Two phases.
    C,
}

/// A world.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) slots: Vec<u32>,
    /// Was the worker started by the hub's `up`, which sees its end?
    pub(crate) local: Vec<bool>,
    pub(crate) clients: usize,
    pub(crate) jobs: Vec<JobPlan>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) faults: Vec<(u64, Kind)>,
    pub(crate) chaos_ms: u64,
    /// Longest way of a frame in quiet times.
    pub(crate) latency_ms: u64,
    /// Longest append in quiet times.
    pub(crate) append_ms: u64,
    /// Commands of one batch.
    pub(crate) batch_max: u64,
    /// Outputs of at most so many bytes travel inside the record of the end.
    pub(crate) small_bytes: usize,
    /// Journal rows after which a snapshot is taken; 0: never.
    pub(crate) snapshot_every: u64,
    /// Are rows and snapshots written as bytes and read again?
    pub(crate) as_bytes: bool,
}

impl Plan {
    pub(crate) fn deal(rng: &mut Rng) -> Plan {
        let chaos_ms = *pick(rng, &[5_000, 20_000, 40_000, 70_000, 100_000]);
        let workers = rng.between(1, 4) as usize;
        let clients = rng.between(1, 3) as usize;
        let share = *pick(rng, &[10, 25, 50]);
        let kinds: Vec<Kind> = KINDS.into_iter().filter(|_| rng.percent(share)).collect();
        let count = if kinds.is_empty() { 0 } else { *pick(rng, &[1, 2, 4, 8, 14]) };
        let mut faults: Vec<(u64, Kind)> =
            (0..count).map(|_| (rng.below(chaos_ms), kinds[rng.index(kinds.len())])).collect();
        faults.sort_unstable();
        let jobs = rng.between(3, 16);
        let slots: Vec<u32> = (0..workers).map(|_| rng.between(1, 3) as u32).collect();
        let arrays = *pick(rng, &[0, 30, 30, 70]);
        let deal = |rng: &mut Rng| match rng.percent(arrays) {
            true => JobPlan::deal_array(rng, chaos_ms, &slots, clients),
            false => JobPlan::deal(rng, chaos_ms, &slots, clients),
        };
        let jobs = (0..jobs).map(|_| deal(rng)).collect();
        Plan {
            slots,
            local: (0..workers).map(|_| rng.percent(30)).collect(),
            clients,
            jobs,
            kinds,
            faults,
            chaos_ms,
            latency_ms: *pick(rng, &[1, 5, 40, 300]),
            append_ms: *pick(rng, &[0, 2, 20, 200]),
            batch_max: *pick(rng, &[1, 3, 16]),
            small_bytes: *pick(rng, &[0, 40, 10_000]),
            snapshot_every: *pick(rng, &[0, 0, 3, 10]),
            as_bytes: rng.percent(10),
        }
    }

    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

impl JobPlan {
    fn deal(rng: &mut Rng, chaos_ms: u64, slots: &[u32], clients: usize) -> JobPlan {
        let workers = slots.len();
        // It fits on each node, because most nodes may vanish.
        let cpus_max = u64::from(slots.iter().copied().min().unwrap_or(1));
        let at = rng.below(chaos_ms);
        let ephemeral = rng.percent(15);
        let cancel_at = rng.percent(15).then(|| at + rng.below(6_000));
        JobPlan {
            client: rng.index(clients),
            at,
            lang: *pick(rng, &[Lang::Command, Lang::Command, Lang::Python, Lang::C]),
            on: rng.percent(15).then(|| rng.index(workers)),
            ephemeral,
            run_ms: match rng.below(10) {
                // Longer than anybody waits for its client, or for the end of what is cancelled.
                8.. if ephemeral || cancel_at.is_some() => rng.between(130_000, 260_000),
                0 => rng.between(20_000, 80_000),
                1..4 => rng.between(1_000, 8_000),
                _ => rng.below(400),
            },
            tasks: None,
            cpus: if rng.percent(20) { rng.between(1, cpus_max) as u32 } else { 0 },
            memory_bytes: if rng.percent(20) { rng.between(1, MEMORY_BYTES) } else { 0 },
            priority: if rng.percent(20) { rng.below(5) as i32 - 2 } else { 0 },
            retry: if rng.percent(20) { rng.below(3) as u32 } else { 0 },
            is_after: rng.percent(10),
            cancel_at,
            cancel_tasks: None,
            rerun_at: rng.percent(10).then(|| (at + rng.below(20_000), rng.percent(50))),
            is_poison: rng.below(150) == 0,
        }
    }

    /// Short tasks, which are leased ahead, or some that take a while.
    fn deal_array(rng: &mut Rng, chaos_ms: u64, slots: &[u32], clients: usize) -> JobPlan {
        let job = JobPlan::deal(rng, chaos_ms, slots, clients);
        let count = rng.between(1, 60) as u32;
        let first = rng.below(5) as u32;
        let step = *pick(rng, &[1, 1, 1, 2]);
        let holes = *pick(rng, &[0, 0, 20]);
        let numbers = (0..count).map(|n| TaskId(first + n * step));
        let mut tasks: TaskSet = numbers.filter(|_| !rng.percent(holes)).collect();
        if tasks.is_empty() {
            tasks = TaskSet::one(TaskId(first));
        }
        let some: TaskSet = tasks.iter().filter(|_| rng.percent(40)).collect();
        let is_plain = rng.percent(60);
        JobPlan {
            run_ms: if count > 10 { *pick(rng, &[0, 2, 8, 40, 300]) } else { *pick(rng, &[5, 300, 3_000]) },
            lang: *pick(rng, &[Lang::Command, Lang::Command, Lang::Python, Lang::C]),
            cpus: if is_plain { 0 } else { job.cpus },
            memory_bytes: if is_plain { 0 } else { job.memory_bytes },
            cancel_tasks: (rng.percent(70) && !some.is_empty()).then_some(some),
            cancel_at: rng.percent(30).then(|| job.at + rng.below(3_000)),
            tasks: Some(tasks),
            is_poison: false,
            ..job
        }
    }

    /// How long its tasks take one after the other, with all tries.
    pub(crate) fn work_ms(&self) -> u64 {
        let tasks = self.tasks.as_ref().map_or(1, TaskSet::len);
        tasks * (self.run_ms + 2_000) * u64::from(1 + self.retry) * if self.rerun_at.is_some() { 2 } else { 1 }
    }
}

pub(crate) fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.index(from.len())]
}
