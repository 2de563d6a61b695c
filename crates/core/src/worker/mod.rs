//! A worker's decisions: what is prepared, what runs next, what is told, what is kept.
//!
//! The worker's driver calls [`Worker::step`] with one [`Input`] after the other and carries out the effects.
//!
//! ```text
//!   start        prepared           phase ended (ok, more phases)
//!  ───────▶ Preparing ─────▶ Running ◀──┐
//!               │               │ ──────┘
//!               │ failed, stop  │ last phase, failure, stop
//!               └──────▶ Ended ◀┘ ── end_ack ──▶ forgotten
//! ```
//!
//! Always true: an attempt ends once and its result is kept until the hub says that it is recorded, over any number of
//! connections; a program that runs is stopped by order, by its limit or by the end of this worker, not by a lost
//! connection; the slots of what runs are never more than there are. Of array's tasks that take a moment (`pace`) more are
//! begun than that, and launched with the number that may run at once, which the cage keeps: what it gives back has not
//! begun, and waits here again.
//! Deliberately not here: which node runs what (the hub), output bytes, processes, files.

mod effect;
mod input;
mod leases;
mod pace;

pub use effect::Effect;
pub use input::{Input, PhaseEnd};

use crate::limits::{AHEAD_MAX, IN_HAND_ALL_MAX, SLOTS_MAX};
use essaim_proto::job::{Isolation, Phase, Reason, TaskResult, Verdict};
use essaim_proto::link::{GivenBack, HeldMany, Progress, Start, TakeBack};
use essaim_proto::{AttemptId, JobId, TaskSet};
use leases::Leases;
use pace::Paces;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A worker's state. All of it ends with the process: what runs dies with it.
#[derive(Debug)]
pub struct Worker {
    slots: u32,
    attempts: BTreeMap<AttemptId, Attempt>,
    /// The sum over `attempts`.
    weight: Weight,
    paces: Paces,
    /// What waits for slots.
    leases: Leases,
    connected: bool,
    draining: bool,
    /// The hub has said that it is not needed.
    leaving: bool,
}

#[derive(Debug)]
struct Attempt {
    start: Arc<Start>,
    stage: Stage,
    /// Somebody wants it dead.
    stopping: bool,
    /// The hub does not want to hear of it again.
    unwanted: bool,
    waiting_for_input: bool,
    /// It takes a moment, and shares a slot with others.
    shares: bool,
    /// Of those: its program is known to run.
    runs_on: bool,
    of_array: bool,
    /// Of an array: ticks that it has seen; it is told after the second, for most are over by then.
    ticks: u32,
    so_far: TaskResult,
}

/// What attempts take, as long as they are not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Weight {
    attempts: u32,
    /// Slots of those that do not share any. What the hub has given up is being killed and gives its slot back now: the
    /// hub counts it as free already.
    slots: u32,
    /// Attempts that share slots.
    sharing: u32,
}

impl Weight {
    fn add(&mut self, other: Weight) {
        self.attempts += other.attempts;
        self.slots += other.slots;
        self.sharing += other.sharing;
    }

    fn remove(&mut self, other: Weight) {
        self.attempts -= other.attempts;
        self.slots -= other.slots;
        self.sharing -= other.sharing;
    }
}

/// A task of an array that runs for so many ticks is told.
const TOLD_AFTER_TICKS: u32 = 2;

/// Tasks that may wait here: the hub leases no more than some thousand ahead.
const WAITING_MAX: usize = 2 * (AHEAD_MAX as usize + SLOTS_MAX as usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preparing,
    /// Phase number so many runs.
    Running(usize),
    Ended,
}

impl Worker {
    /// A worker that runs `slots` programs at once: at least one, like the hub counts it.
    pub fn new(slots: u32) -> Worker {
        Worker {
            slots: slots.clamp(1, SLOTS_MAX),
            attempts: BTreeMap::new(),
            weight: Weight::default(),
            paces: Paces::default(),
            leases: Leases::default(),
            connected: false,
            draining: false,
            leaving: false,
        }
    }

    /// Attempts that it holds: waiting for a slot, running, or ended and not recorded.
    pub fn held(&self) -> Vec<AttemptId> {
        let begun = self.attempts.iter().filter(|(_, a)| !a.unwanted).map(|(id, _)| *id);
        let waiting = self.leases.held();
        begun.chain(waiting.iter().flat_map(HeldMany::attempts)).collect()
    }

    /// All that it holds, as a registration and a report name it: single jobs, and tasks of arrays by job and try.
    pub fn held_by_kind(&self) -> (Vec<AttemptId>, Vec<HeldMany>) {
        let begun = self.attempts.iter().filter(|(_, attempt)| !attempt.unwanted);
        let (of_arrays, single): (Vec<_>, Vec<_>) = begun.partition(|(_, attempt)| attempt.of_array);
        let mut many = self.leases.held();
        many.extend(HeldMany::gather(of_arrays.into_iter().map(|(id, _)| *id)));
        (single.into_iter().map(|(id, _)| *id).collect(), many)
    }

    /// Does something wait for a slot?
    pub fn has_waiting(&self) -> bool {
        self.leases.len() > 0
    }

    /// Does it take nothing new?
    pub fn is_draining(&self) -> bool {
        self.draining || self.leaving
    }

    /// Programs that are prepared or run.
    pub fn busy(&self) -> u32 {
        self.weight.attempts
    }

    /// Takes one input; what must happen is added to `out`.
    pub fn step(&mut self, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Registered { keep, kill } => self.registered(&keep, &kill, out),
            Input::Disconnected => self.connected = false,
            Input::Start(start) => self.start(*start, out),
            Input::TakeBack(wanted) => self.take_back(&wanted, out),
            Input::Tick => self.tick(out),
            Input::Stop { attempt } => self.stop(attempt, out),
            Input::EndAck { attempt } => self.forget(attempt, out),
            Input::Prepared { attempt } => self.prepared(attempt, out),
            Input::PrepareFailed { attempt, reason } => {
                if self.stage(attempt) == Some(Stage::Preparing) {
                    self.end(attempt, Verdict::InternalError, Some(reason), out);
                }
            }
            Input::LaunchFailed { attempt, verdict, reason } => self.launch_failed(attempt, verdict, reason, out),
            Input::PhaseEnded { attempt, end } => self.phase_ended(attempt, &end, out),
            Input::RunsOn { attempt } => _ = self.change(attempt, |known| known.runs_on = true),
            Input::Returned { attempt } => self.returned(attempt, out),
            Input::WaitingForInput { attempt, waiting } => self.waits_for_input(attempt, waiting, out),
            Input::Drain => {
                self.draining = true;
                self.finish(out);
            }
            Input::Leave { leave } => {
                self.leaving = leave;
                self.finish(out);
            }
        }
        self.fill(out);
        debug_assert_eq!(self.weight, self.weighed());
    }

    fn weighed(&self) -> Weight {
        let mut sum = Weight::default();
        self.attempts.values().for_each(|attempt| sum.add(attempt.weight()));
        sum
    }

    /// The one way in which an attempt comes to be.
    fn begin(&mut self, id: AttemptId, attempt: Attempt) {
        self.weight.add(attempt.weight());
        self.attempts.insert(id, attempt);
    }

    /// The way to change what an attempt weighs.
    fn change<T>(&mut self, id: AttemptId, change: impl FnOnce(&mut Attempt) -> T) -> Option<T> {
        let attempt = self.attempts.get_mut(&id)?;
        self.weight.remove(attempt.weight());
        let changed = change(attempt);
        self.weight.add(attempt.weight());
        Some(changed)
    }

    /// Gives back what has not begun, if it is to take nothing new.
    fn finish(&mut self, out: &mut Vec<Effect>) {
        if !self.is_draining() {
            return;
        }
        for HeldMany { job, attempt, tasks } in self.leases.drain() {
            self.give_back(job, vec![(attempt, tasks)], out);
        }
        self.tell_if_idle(out);
    }

    fn registered(&mut self, keep: &[AttemptId], kill: &[AttemptId], out: &mut Vec<Effect>) {
        self.connected = true;
        for attempt in kill {
            self.leases.remove(*attempt);
            self.change(*attempt, |known| known.unwanted = true);
            match self.attempts.get(attempt).map(|a| a.stage) {
                Some(Stage::Ended) => self.forget(*attempt, out),
                Some(_) => self.stop(*attempt, out),
                None => {}
            }
        }
        for attempt in keep {
            match self.attempts.get(attempt) {
                Some(known) if known.stage == Stage::Ended => out.push(known.told(*attempt)),
                Some(known) if known.is_told() => out.push(known.progress(*attempt)),
                Some(_) | None => {}
            }
        }
    }

    fn start(&mut self, start: Start, out: &mut Vec<Effect>) {
        if self.is_draining() || self.leases.len() >= WAITING_MAX {
            return self.turn_down(&start, out);
        }
        let attempts = &self.attempts;
        self.leases.add(start, |attempt| !attempts.contains_key(&attempt));
    }

    /// There is no place for these tasks.
    fn turn_down(&mut self, start: &Start, out: &mut Vec<Effect>) {
        let unknown = |attempt: &AttemptId| !self.attempts.contains_key(attempt);
        for id in start.attempts().filter(unknown).collect::<Vec<AttemptId>>() {
            let of_array = start.tasks.is_some();
            self.begin(id, Attempt { of_array, ..Attempt::new(Arc::default()) });
            let reason = Reason::new(if self.is_draining() { "worker_stopped" } else { "queue_full" });
            self.end(id, Verdict::InternalError, Some(reason), out);
        }
    }

    /// Begins what waits, as far as it fits.
    fn fill(&mut self, out: &mut Vec<Effect>) {
        if self.leases.len() == 0 {
            return;
        }
        loop {
            let Weight { slots: taken, sharing, .. } = self.weight;
            let free = self.slots.saturating_sub(taken);
            let mut shares = false;
            let next = self.leases.next(|start| match self.paces.in_hand(start) {
                0 | 1 => start.needs.slots() <= free.saturating_sub(sharing),
                in_hand => {
                    shares = true;
                    sharing < free.saturating_mul(in_hand).min(IN_HAND_ALL_MAX.max(free))
                }
            });
            let Some((id, start)) = next else { return };
            let (files, lines) = (start.files.clone(), start.lines.clone());
            let (of_array, stdin) = (start.tasks.is_some(), start.stdin);
            self.begin(id, Attempt { shares, ..Attempt::new(start) });
            out.push(Effect::Prepare { attempt: id, files, lines, of_array, stdin });
        }
    }

    fn take_back(&mut self, wanted: &TakeBack, out: &mut Vec<Effect>) {
        let tasks = self.leases.take(wanted.job, &wanted.tasks);
        if !tasks.is_empty() {
            self.give_back(wanted.job, tasks, out);
        }
    }

    /// Tasks that have not begun here are the hub's again. Without a connection it offers them again, and is told then.
    fn give_back(&self, job: JobId, tasks: Vec<(u32, TaskSet)>, out: &mut Vec<Effect>) {
        if self.connected {
            out.push(Effect::GiveBack(GivenBack { job, tasks }));
        }
    }

    /// Tasks of arrays that run for a while are told; most are over before.
    fn tick(&mut self, out: &mut Vec<Effect>) {
        for (id, attempt) in &mut self.attempts {
            let runs = matches!(attempt.stage, Stage::Running(_)) && (attempt.runs_on || !attempt.shares);
            if !attempt.of_array || !runs {
                continue;
            }
            attempt.ticks = attempt.ticks.saturating_add(1);
            if attempt.ticks == TOLD_AFTER_TICKS && self.connected {
                out.push(attempt.progress(*id));
            }
        }
    }

    fn stage(&self, id: AttemptId) -> Option<Stage> {
        self.attempts.get(&id).map(|attempt| attempt.stage)
    }

    fn prepared(&mut self, id: AttemptId, out: &mut Vec<Effect>) {
        // Stopped while its files were on their way: nobody wants the folder that came too late.
        if self.stage(id).is_none_or(|stage| stage == Stage::Ended) {
            return out.push(Effect::Clean { attempt: id });
        }
        let Some(attempt) = self.attempts.get(&id).filter(|a| a.stage == Stage::Preparing) else { return };
        if attempt.start.phases.is_empty() {
            return self.end(id, Verdict::Rejected, Some(Reason::new("program_missing").with("program", "")), out);
        }
        self.launch(id, 0, out);
    }

    fn launch(&mut self, id: AttemptId, index: usize, out: &mut Vec<Effect>) {
        let at_once = self.slots.saturating_sub(self.weight.slots).max(1);
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Running(index);
        let last = index + 1 == attempt.start.phases.len();
        let phase = attempt.start.phases[index].clone();
        attempt.so_far.phase = phase.phase;
        let stdin = if last { attempt.start.stdin } else { Default::default() };
        let lang = attempt.start.lang.clone();
        let (told, is_told) = (attempt.progress(id), attempt.is_told());
        let at_once = attempt.shares.then_some(at_once);
        out.push(Effect::Launch { attempt: id, lang, phase: Box::new(phase), stdin, at_once });
        if self.connected && is_told {
            out.push(told);
        }
    }

    fn launch_failed(&mut self, id: AttemptId, verdict: Verdict, reason: Reason, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get(&id) else { return };
        match attempt.stage {
            // It was to be killed and is not there: what was wanted.
            Stage::Running(_) if attempt.stopping => self.end(id, Verdict::Cancelled, None, out),
            Stage::Running(_) => self.end(id, verdict, Some(reason), out),
            Stage::Preparing | Stage::Ended => {}
        }
    }

    fn phase_ended(&mut self, id: AttemptId, end: &PhaseEnd, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let Stage::Running(index) = attempt.stage else { return };
        if attempt.of_array {
            self.paces.ended(id.job, end.wall_ms);
        }
        attempt.add(end);
        let more = index + 1 < attempt.start.phases.len();
        match end.verdict {
            Verdict::Ok if attempt.stopping && more => self.end(id, Verdict::Cancelled, None, out),
            Verdict::Ok if more => self.launch(id, index + 1, out),
            verdict => {
                let phase = &attempt.start.phases[index];
                let reason = match (verdict, phase.limits.output_bytes) {
                    (Verdict::TimeLimit, _) => Some(Reason::new("wall_limit").with("limit_ms", phase.wall_ms)),
                    (Verdict::OutputLimit, Some(bytes)) => Some(Reason::new("output_limit").with("limit", bytes)),
                    _ => None,
                };
                self.end(id, verdict, reason, out);
            }
        }
    }

    /// It was launched and has not begun.
    fn returned(&mut self, id: AttemptId, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get(&id).filter(|a| a.shares && a.stage == Stage::Running(0)) else { return };
        self.paces.stalls(id.job);
        if attempt.stopping {
            return self.end(id, Verdict::Cancelled, None, out);
        }
        let start = attempt.start.clone();
        self.weight.remove(attempt.weight());
        self.attempts.remove(&id);
        out.extend([Effect::Clean { attempt: id }, Effect::Forget { attempt: id }]);
        if !self.is_draining() {
            return self.leases.put_back(id, start);
        }
        self.give_back(id.job, vec![(id.attempt, TaskSet::one(id.task))], out);
        self.tell_if_idle(out);
    }

    fn stop(&mut self, id: AttemptId, out: &mut Vec<Effect>) {
        if let Some(start) = self.leases.remove(id) {
            self.begin(id, Attempt::new(start));
        }
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.stage == Stage::Ended || std::mem::replace(&mut attempt.stopping, true) {
            return;
        }
        match attempt.stage {
            // Nothing runs yet: it ends here, and what is still being fetched is thrown away.
            Stage::Preparing => self.end(id, Verdict::Cancelled, None, out),
            _ => out.push(Effect::Kill { attempt: id }),
        }
    }

    fn waits_for_input(&mut self, id: AttemptId, waiting: bool, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let runs = matches!(attempt.stage, Stage::Running(_));
        if !runs || std::mem::replace(&mut attempt.waiting_for_input, waiting) == waiting {
            return;
        }
        if self.connected {
            out.push(attempt.progress(id));
        }
    }

    /// The one way in which an attempt ends.
    fn end(&mut self, id: AttemptId, verdict: Verdict, reason: Option<Reason>, out: &mut Vec<Effect>) {
        if self.stage(id).is_none_or(|stage| stage == Stage::Ended) {
            return;
        }
        let ended = self.change(id, |attempt| {
            attempt.stage = Stage::Ended;
            attempt.so_far.verdict = verdict;
            attempt.so_far.reason = reason;
            // Its result waits for the hub, perhaps for hours; its files and commands are of no use any more.
            attempt.start = Arc::default();
            (attempt.unwanted, attempt.told(id))
        });
        let Some((unwanted, told)) = ended else { return };
        out.push(Effect::Clean { attempt: id });
        if unwanted {
            self.forget(id, out);
        } else if self.connected {
            out.push(told);
        }
    }

    fn forget(&mut self, id: AttemptId, out: &mut Vec<Effect>) {
        if self.attempts.get(&id).is_none_or(|a| a.stage != Stage::Ended) {
            return;
        }
        self.attempts.remove(&id);
        out.push(Effect::Forget { attempt: id });
        self.tell_if_idle(out);
    }

    fn tell_if_idle(&self, out: &mut Vec<Effect>) {
        if self.is_draining() && self.attempts.is_empty() && self.leases.len() == 0 {
            out.push(Effect::Idle);
        }
    }
}

impl Attempt {
    fn new(start: Arc<Start>) -> Attempt {
        Attempt {
            of_array: start.tasks.is_some(),
            start,
            stage: Stage::Preparing,
            stopping: false,
            unwanted: false,
            waiting_for_input: false,
            shares: false,
            runs_on: false,
            ticks: 0,
            so_far: TaskResult { isolation: Isolation::None, ..TaskResult::default() },
        }
    }

    fn weight(&self) -> Weight {
        let counts = u32::from(self.stage != Stage::Ended && !self.unwanted);
        Weight {
            attempts: u32::from(self.stage != Stage::Ended),
            slots: if self.shares { 0 } else { counts * self.start.needs.slots() },
            sharing: if self.shares { counts } else { 0 },
        }
    }

    /// Is the hub told of each step?
    fn is_told(&self) -> bool {
        !self.of_array || self.ticks >= TOLD_AFTER_TICKS
    }

    fn progress(&self, id: AttemptId) -> Effect {
        let phase = if self.stage == Stage::Preparing { Phase::Prepare } else { self.so_far.phase };
        Effect::Progress(Progress { attempt: id, phase, waiting_for_input: self.waiting_for_input })
    }

    fn told(&self, id: AttemptId) -> Effect {
        Effect::End { attempt: id, result: Box::new(self.so_far.clone()) }
    }

    fn add(&mut self, end: &PhaseEnd) {
        let so_far = &mut self.so_far;
        so_far.exit_code = end.exit_code;
        so_far.signal = end.signal;
        so_far.cpu_ms = so_far.cpu_ms.saturating_add(end.cpu_ms);
        so_far.wall_ms = so_far.wall_ms.saturating_add(end.wall_ms);
        so_far.memory_peak_bytes = so_far.memory_peak_bytes.max(end.memory_peak_bytes);
        so_far.stdout_bytes = end.stdout_bytes;
        so_far.stderr_bytes = end.stderr_bytes;
        so_far.truncated |= end.truncated;
        self.waiting_for_input = false;
    }
}
