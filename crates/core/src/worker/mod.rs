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
//! connection.
//! Deliberately not here: which node runs what (the hub), output bytes, processes, files.

mod effect;
mod input;

pub use effect::Effect;
pub use input::{Input, PhaseEnd};

use crate::limits::SLOTS_MAX;
use essaim_proto::AttemptId;
use essaim_proto::job::{Phase, Reason, TaskResult, Verdict};
use essaim_proto::link::{Progress, Start};
use std::collections::BTreeMap;

/// A worker's state. All of it ends with the process: what runs dies with it.
#[derive(Debug)]
pub struct Worker {
    slots: u32,
    attempts: BTreeMap<AttemptId, Attempt>,
    connected: bool,
    draining: bool,
}

#[derive(Debug)]
struct Attempt {
    start: Box<Start>,
    stage: Stage,
    /// Somebody wants it dead.
    stopping: bool,
    /// The hub does not want to hear of it again.
    unwanted: bool,
    waiting_for_input: bool,
    so_far: TaskResult,
}

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
        Worker { slots: slots.clamp(1, SLOTS_MAX), attempts: BTreeMap::new(), connected: false, draining: false }
    }

    /// Attempts that it holds: running, or ended and not recorded.
    pub fn held(&self) -> Vec<AttemptId> {
        self.attempts.iter().filter(|(_, a)| !a.unwanted).map(|(id, _)| *id).collect()
    }

    /// Does it take nothing new?
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Programs that are prepared or run.
    pub fn busy(&self) -> u32 {
        self.attempts.values().filter(|a| a.stage != Stage::Ended).count() as u32
    }

    /// Takes one input; what must happen is added to `out`.
    pub fn step(&mut self, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Registered { keep, kill } => self.registered(&keep, &kill, out),
            Input::Disconnected => self.connected = false,
            Input::Start(start) => self.start(start, out),
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
            Input::WaitingForInput { attempt, waiting } => self.waiting(attempt, waiting, out),
            Input::Drain => {
                self.draining = true;
                self.tell_if_idle(out);
            }
        }
    }

    fn registered(&mut self, keep: &[AttemptId], kill: &[AttemptId], out: &mut Vec<Effect>) {
        self.connected = true;
        for attempt in kill {
            if let Some(known) = self.attempts.get_mut(attempt) {
                known.unwanted = true;
            }
            match self.attempts.get(attempt).map(|a| a.stage) {
                Some(Stage::Ended) => self.forget(*attempt, out),
                Some(_) => self.stop(*attempt, out),
                None => {}
            }
        }
        for attempt in keep {
            match self.attempts.get(attempt) {
                Some(known) if known.stage == Stage::Ended => out.push(known.told(*attempt)),
                Some(known) => out.push(known.progress(*attempt)),
                None => {}
            }
        }
    }

    fn start(&mut self, start: Box<Start>, out: &mut Vec<Effect>) {
        let id = start.attempt;
        if self.attempts.contains_key(&id) {
            return;
        }
        // What the hub has given up is being killed and gives its slot back now: the hub counts it as free already.
        let taken = self.attempts.values().filter(|a| a.stage != Stage::Ended && !a.unwanted).count();
        let no_room = self.draining || taken >= self.slots as usize;
        let attempt = Attempt {
            start,
            stage: Stage::Preparing,
            stopping: false,
            unwanted: false,
            waiting_for_input: false,
            so_far: TaskResult { isolation: "none".into(), ..TaskResult::default() },
        };
        let files = attempt.start.files.clone();
        self.attempts.insert(id, attempt);
        if no_room {
            let reason = Reason::new(if self.draining { "worker_stopped" } else { "queue_full" });
            self.end(id, Verdict::InternalError, Some(reason), out);
        } else {
            out.push(Effect::Prepare { attempt: id, files });
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
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Running(index);
        let last = index + 1 == attempt.start.phases.len();
        let phase = attempt.start.phases[index].clone();
        attempt.so_far.phase = phase.phase;
        let stdin = if last { attempt.start.stdin } else { Default::default() };
        let lang = attempt.start.lang.clone();
        let told = attempt.progress(id);
        out.push(Effect::Launch { attempt: id, lang, phase: Box::new(phase), stdin });
        if self.connected {
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
        attempt.add(end);
        let more = index + 1 < attempt.start.phases.len();
        match end.verdict {
            Verdict::Ok if attempt.stopping && more => self.end(id, Verdict::Cancelled, None, out),
            Verdict::Ok if more => self.launch(id, index + 1, out),
            Verdict::TimeLimit => {
                let limit = attempt.start.phases[index].wall_ms;
                self.end(id, end.verdict, Some(Reason::new("wall_limit").with("limit_ms", limit)), out);
            }
            verdict => self.end(id, verdict, None, out),
        }
    }

    fn stop(&mut self, id: AttemptId, out: &mut Vec<Effect>) {
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

    fn waiting(&mut self, id: AttemptId, waiting: bool, out: &mut Vec<Effect>) {
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
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.stage == Stage::Ended {
            return;
        }
        attempt.stage = Stage::Ended;
        attempt.so_far.verdict = verdict;
        attempt.so_far.reason = reason;
        // Its result waits for the hub, perhaps for hours; its files and commands are of no use any more.
        *attempt.start = Start::default();
        out.push(Effect::Clean { attempt: id });
        let (unwanted, told) = (attempt.unwanted, attempt.told(id));
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
        if self.draining && self.attempts.is_empty() {
            out.push(Effect::Idle);
        }
    }
}

impl Attempt {
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
        self.waiting_for_input = false;
    }
}
