//! The one owner of the worker's decisions: takes what happens, asks the core, carries out what it wants.
//!
//! Session, attempts, the cage's ear and probes send [`Event`]s; the driver speaks to attempts, to the hub over the link
//! of the moment, and to the cage; attempts without files and live input are its own (`quick`). Always true: it never waits for anything but its next event; the link is published
//! before the decisions that depend on it are carried out; every frame of one session is taken before the news of its
//! end.
//! Deliberately not here: decisions (the core), bytes of output and input (`output`, `input`), sockets (`session`).

use crate::attempt::{Attempt, Launch, Word, Workshop};
use crate::cage::CageNews;
use crate::facts::LoadMeter;
use crate::launch::Resolved;
use crate::limits::{END_BYTES, ENDS_BYTES_MAX, EVENTS_AT_ONCE, GATHER_ENDS, STOP_TIME, TICK};
use crate::lines::{Library, Lines, Waits};
use crate::link::Link;
use crate::probe::{ProbeNews, Round};
use crate::quick::{QuickNews, Quicks};
use crate::sleep::SleepMeter;
use essaim_core::limits::{HEARTBEAT_MS, begun_max};
use essaim_core::worker::{Effect, Input, Worker};
use essaim_proto::job::{FileSpec, Reason, StdinSpec, TaskResult};
use essaim_proto::limits::BATCH_TASKS_MAX;
use essaim_proto::link::{
    AttemptOutputAck, AttemptStdin, AttemptStdinAck, EndAckMany, Ended, EndedMany, HeldMany, LanguageProbe, Registered,
    Report, Start, TaskEnd,
};
use essaim_proto::node::Toolchain;
use essaim_proto::{AttemptId, BlobHash, Frame, Function, JobId};
use essaim_sandbox::{Event as CageEvent, ProgramId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

/// Something that the driver is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// An attempt has got somewhere.
    Core(Input),
    /// The session is about to register: what should it say?
    Snapshot(oneshot::Sender<Snapshot>),
    /// The session is open.
    Registered {
        /// The hub's words.
        registered: Box<Registered>,
        /// The way to the hub.
        link: Arc<Link>,
    },
    /// The connection is gone.
    Disconnected,
    /// The hub gives an attempt.
    Start(Box<Start>),
    /// A file of which tasks get a line is here, or cannot be had.
    Lines {
        /// Which.
        hash: BlobHash,
        /// The file, or why not.
        lines: Result<Arc<Lines>, Reason>,
    },
    /// The hub has recorded ends of an array's tasks.
    EndAckMany(EndAckMany),
    /// The hub has output up to here.
    OutputAck(AttemptOutputAck),
    /// Input for a program.
    Stdin(AttemptStdin),
    /// The cage said something, or died.
    Cage(CageNews),
    /// Something for an attempt without a task came true.
    Quick(QuickNews),
    /// A probe ended.
    Probe {
        /// Of which round.
        round: u64,
        /// What it found.
        news: ProbeNews,
    },
    /// Do others use the machine more than its owner allows?
    Overloaded(bool),
    /// Finish, take nothing new.
    Drain,
    /// The hub says the same, or that it has changed its mind.
    Leave(bool),
    /// Kill everything; answered when all are dead, or time is up. Nothing is carried out any more.
    Stop(oneshot::Sender<()>),
}

impl From<CageNews> for Event {
    fn from(news: CageNews) -> Event {
        Event::Cage(news)
    }
}

/// What a session tells when it registers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) held: Vec<AttemptId>,
    pub(crate) held_many: Vec<HeldMany>,
    pub(crate) toolchains: Vec<Toolchain>,
    pub(crate) probing: bool,
    pub(crate) draining: bool,
    pub(crate) slept_ms: u64,
}

/// The worker's state and all that carries out its decisions.
pub(crate) struct Driver {
    core: Worker,
    workshop: Workshop,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Of the last session.
    epoch: u64,
    attempts: BTreeMap<AttemptId, Attempt>,
    /// The attempts that need no task.
    quicks: Quicks,
    /// What the core is still to hear, of what it asked for itself.
    unheard: VecDeque<Input>,
    /// Programs that the cage was asked to start and has not ended.
    programs: BTreeMap<ProgramId, AttemptId>,
    programs_started: ProgramId,
    /// Attempts of arrays, with their lines.
    of_arrays: BTreeMap<AttemptId, Option<String>>,
    /// Ends of arrays' tasks that go out together.
    ends: BTreeMap<JobId, Vec<TaskEnd>>,
    ends_bytes: usize,
    /// When they go out at the latest.
    ends_due: Option<Instant>,
    library: Library,
    probes: Probes,
    load: LoadMeter,
    sleep: SleepMeter,
    overloaded: bool,
    idle: watch::Sender<bool>,
}

/// What is known of this machine's toolchains.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// Look for these languages only.
    only: Option<Vec<String>>,
    /// What the last round looks, or looked, for; before the first, nobody has said.
    languages: Option<Vec<LanguageProbe>>,
    round: u64,
    running: Option<Round>,
    toolchains: Vec<Toolchain>,
    resolved: BTreeMap<String, Resolved>,
}

impl Driver {
    /// A driver for `slots` programs. It publishes the link in `link`, and in `idle` that nothing is left to finish.
    pub(crate) fn new(
        slots: u32,
        workshop: Workshop,
        probes: Probes,
        link: watch::Sender<Option<Arc<Link>>>,
        idle: watch::Sender<bool>,
    ) -> Driver {
        Driver {
            core: Worker::new(slots),
            quicks: Quicks::new(workshop.clone(), begun_max(slots)),
            unheard: VecDeque::new(),
            workshop,
            link,
            epoch: 0,
            attempts: BTreeMap::new(),
            programs: BTreeMap::new(),
            programs_started: 0,
            of_arrays: BTreeMap::new(),
            ends: BTreeMap::new(),
            ends_bytes: 0,
            ends_due: None,
            library: Library::default(),
            probes,
            load: LoadMeter::default(),
            sleep: SleepMeter::default(),
            overloaded: false,
            idle,
        }
    }

    /// Takes events until it is stopped.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MS));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Stop(stopped)) => {
                        self.stop(&mut events).await;
                        // Whoever gave the order may have given up waiting.
                        let _ = stopped.send(());
                        return;
                    }
                    Some(event) => {
                        self.take(event);
                        if let Some(stopped) = self.take_more(&mut events) {
                            self.stop(&mut events).await;
                            let _ = stopped.send(());
                            return;
                        }
                    }
                    None => return,
                },
                () = until(self.ends_due) => self.tell_ends(),
                _ = tick.tick(), if self.core.busy() > 0 => self.step(Input::Tick),
                _ = heartbeat.tick() => {
                    self.sleep.look();
                    self.report(false);
                }
            }
            self.quicks.ask();
        }
    }

    /// What has happened meanwhile, then the ends of arrays' tasks in as few messages as can be. Gives back an order to
    /// stop.
    fn take_more(&mut self, events: &mut mpsc::Receiver<Event>) -> Option<oneshot::Sender<()>> {
        for _ in 1..EVENTS_AT_ONCE {
            match events.try_recv() {
                Ok(Event::Stop(stopped)) => return Some(stopped),
                Ok(event) => self.take(event),
                Err(_) => break,
            }
        }
        self.tell_ends_soon();
        None
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Core(input) => self.step(input),
            // A session that was given up meanwhile needs no answer.
            Event::Snapshot(answer) => drop(answer.send(self.snapshot())),
            Event::Registered { registered, link } => self.registered(*registered, link),
            Event::Disconnected => {
                self.link.send_replace(None);
                self.step(Input::Disconnected);
            }
            Event::Start(start) => self.step(Input::Start(start)),
            Event::Lines { hash, lines } => self.lines_are_here(hash, lines),
            Event::EndAckMany(ack) => {
                ack.attempts().for_each(|attempt| self.step(Input::EndAck { attempt }));
            }
            Event::OutputAck(ack) => match self.attempts.get(&ack.attempt) {
                Some(attempt) => attempt.wishes.send_modify(|wishes| wishes.acked = [ack.stdout, ack.stderr]),
                None => self.quicks.acked(ack.attempt, [ack.stdout, ack.stderr]),
            },
            Event::Stdin(stdin) => self.stdin(&stdin),
            Event::Cage(CageNews::Events(events)) => events.into_iter().for_each(|event| self.heard(event)),
            Event::Cage(CageNews::Died { generation }) => {
                for attempt in self.attempts.values() {
                    attempt.say(Word::CageDied { generation });
                }
                self.unheard.extend(self.quicks.cage_died(generation));
                self.hear_all();
            }
            Event::Quick(news) => {
                self.unheard.extend(self.quicks.hear(news));
                self.hear_all();
            }
            Event::Probe { round, news } => self.probed(round, news),
            Event::Overloaded(overloaded) => {
                self.overloaded = overloaded;
                self.report(false);
            }
            Event::Drain => {
                self.step(Input::Drain);
                self.report(false);
            }
            Event::Leave(leave) => {
                // What is said now counts, unless nobody waits for it any more.
                self.idle.send_replace(false);
                self.step(Input::Leave { leave });
                self.report(false);
            }
            // The loop takes it.
            Event::Stop(_) => {}
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        let (held, held_many) = self.core.held_by_kind();
        Snapshot {
            held,
            held_many,
            toolchains: self.probes.toolchains.clone(),
            probing: self.probes.is_looking(),
            draining: self.core.is_draining(),
            slept_ms: self.sleep.slept_ms(),
        }
    }

    fn registered(&mut self, registered: Registered, link: Arc<Link>) {
        self.epoch = link.epoch;
        let keep = link.keep.keys().copied().collect();
        self.quicks.registered(&link);
        self.link.send_replace(Some(link));
        let kill =
            registered.kill.into_iter().chain(registered.kill_many.iter().flat_map(HeldMany::attempts)).collect();
        self.step(Input::Registered { keep, kill });
        self.look_for(registered.languages);
        self.report(true);
    }

    fn step(&mut self, input: Input) {
        self.unheard.push_back(input);
        self.hear_all();
    }

    fn hear_all(&mut self) {
        let mut effects = Vec::new();
        while let Some(input) = self.unheard.pop_front() {
            log_input(&input);
            self.core.step(input, &mut effects);
            for effect in effects.drain(..) {
                log_effect(&effect);
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare { attempt, files, lines, of_array, stdin } => {
                if of_array {
                    self.of_arrays.insert(attempt, None);
                }
                match lines {
                    Some(lines) => self.look_up(lines, Waits { attempt, files, stdin }),
                    None => self.prepare(Waits { attempt, files, stdin }),
                }
            }
            Effect::Launch { attempt, lang, mut phase, stdin, at_once } => {
                if let Some(Some(line)) = self.of_arrays.get(&attempt) {
                    phase.env.insert("ESSAIM_LINE".to_owned(), line.clone());
                }
                self.programs_started += 1;
                let program = self.programs_started;
                self.programs.insert(program, attempt);
                let resolved = self.probes.resolved.get(&lang).cloned();
                let launch = Launch { program, phase: *phase, stdin, resolved, at_once };
                match self.quicks.has(attempt) {
                    true => self.unheard.extend(self.quicks.launch(attempt, launch)),
                    false => self.say(attempt, Word::Launch(Box::new(launch))),
                }
            }
            Effect::Kill { attempt } => {
                self.quicks.kill(attempt);
                self.say(attempt, Word::Kill);
            }
            Effect::Progress(progress) => self.send(Frame::of(Function::PROGRESS, 0, &progress)),
            Effect::End { attempt, result } => self.end(attempt, *result),
            Effect::Clean { attempt } => {
                self.quicks.clean(attempt);
                self.say(attempt, Word::Clean);
            }
            Effect::Forget { attempt } => {
                self.quicks.forget(attempt);
                self.attempts.remove(&attempt);
                self.of_arrays.remove(&attempt);
                self.programs.retain(|_, of| *of != attempt);
            }
            Effect::GiveBack(given) => self.send(Frame::of(Function::GIVEN_BACK, 0, &given)),
            Effect::Idle => drop(self.idle.send_replace(true)),
        }
    }

    /// Prepares an attempt when its line is known.
    fn look_up(&mut self, file: FileSpec, waits: Waits) {
        match self.library.get(file.hash) {
            Some(lines) => self.with_line(&lines, waits),
            None => self.library.wait(&self.workshop, file, waits),
        }
    }

    fn lines_are_here(&mut self, hash: BlobHash, lines: Result<Arc<Lines>, Reason>) {
        for waits in self.library.loaded(hash, lines.as_ref().ok().cloned()) {
            match &lines {
                Ok(lines) => self.with_line(lines, waits),
                Err(reason) => {
                    let (attempt, reason) = (waits.attempt, reason.clone());
                    self.unheard.push_back(Input::PrepareFailed { attempt, reason });
                }
            }
        }
        self.hear_all();
    }

    fn with_line(&mut self, lines: &Lines, waits: Waits) {
        let attempt = waits.attempt;
        match lines.of_task(attempt.task) {
            Ok(line) => {
                self.of_arrays.insert(attempt, Some(line));
                self.prepare(waits);
            }
            Err(reason) => self.unheard.push_back(Input::PrepareFailed { attempt, reason }),
        }
    }

    fn prepare(&mut self, waits: Waits) {
        let Waits { attempt, files, stdin } = waits;
        if files.is_empty() && stdin != StdinSpec::Live {
            self.unheard.extend(self.quicks.prepare(attempt, self.epoch));
        } else {
            let begun = Attempt::begin(&self.workshop, attempt, self.epoch, files, stdin);
            self.attempts.insert(attempt, begun);
        }
    }

    /// Ends go out at once when somebody may wait for them; while there is work here nobody does for some milliseconds, and
    /// one message carries many.
    fn tell_ends_soon(&mut self) {
        match self.core.has_waiting() {
            true if self.ends.is_empty() => {}
            true => _ = self.ends_due.get_or_insert_with(|| Instant::now() + GATHER_ENDS),
            false => self.tell_ends(),
        }
    }

    /// Sends the ends of arrays' tasks that have gathered. They are kept by the core and told again after a reconnect.
    fn tell_ends(&mut self) {
        (self.ends_bytes, self.ends_due) = (0, None);
        for (job, mut ends) in std::mem::take(&mut self.ends) {
            while !ends.is_empty() {
                let rest = ends.split_off(ends.len().min(BATCH_TASKS_MAX));
                let message = EndedMany { job, ends: std::mem::replace(&mut ends, rest) };
                self.send(Frame::of(Function::ENDED_MANY, 0, &message));
            }
        }
    }

    fn say(&self, attempt: AttemptId, word: Word) {
        // An attempt that was refused at once has nobody to speak to.
        if let Some(attempt) = self.attempts.get(&attempt) {
            attempt.say(word);
        }
    }

    /// Its output goes first, so its own pump tells the end; what never began has no output.
    fn end(&mut self, attempt: AttemptId, result: TaskResult) {
        if let Some(known) = self.attempts.get(&attempt) {
            let end = Some((self.epoch, Arc::new(result)));
            known.wishes.send_modify(|wishes| wishes.end = end);
            return;
        }
        let little = self.of_arrays.contains_key(&attempt).then(|| self.quicks.little(attempt)).flatten();
        match little {
            Some([stdout, stderr]) => {
                let AttemptId { job, task, attempt } = attempt;
                self.ends_bytes += stdout.len() + stderr.len() + END_BYTES;
                self.ends.entry(job).or_default().push(TaskEnd { task, attempt, result, stdout, stderr });
                if self.ends_bytes >= ENDS_BYTES_MAX {
                    self.tell_ends();
                }
            }
            None if self.quicks.has(attempt) => {
                let link = self.link.borrow();
                self.quicks.end(attempt, self.epoch, result, link.as_deref());
            }
            None => self.send(Frame::of(Function::ENDED, 0, &Ended { attempt, result })),
        }
    }

    fn stdin(&self, stdin: &AttemptStdin) {
        match self.attempts.get(&stdin.attempt).map(|attempt| attempt.stdin.as_ref()) {
            Some(Some(input)) => input.feed(stdin),
            // Nobody reads it.
            _ => {
                let offset = stdin.offset + stdin.bytes.len() as u64;
                let ack = AttemptStdinAck { attempt: stdin.attempt, offset };
                self.send(Frame::of(Function::ATTEMPT_STDIN_ACK, 0, &ack));
            }
        }
    }

    fn heard(&mut self, event: CageEvent) {
        match event {
            CageEvent::StartFailed { id, step, errno } => {
                let Some(attempt) = self.programs.remove(&id) else { return };
                match self.quicks.start_failed(attempt, &step, errno) {
                    Some(input) => self.step(input),
                    None => self.say(attempt, Word::StartFailed { step, errno }),
                }
            }
            CageEvent::Output { id, pipes } => {
                let Some(attempt) = self.programs.get(&id).copied() else { return };
                match self.quicks.has(attempt) {
                    true => {
                        self.quicks.outlived(attempt, pipes);
                        self.step(Input::RunsOn { attempt });
                    }
                    false => self.say(attempt, Word::Output(pipes)),
                }
            }
            CageEvent::Ended { id, evidence, output } => {
                let Some(attempt) = self.programs.remove(&id) else { return };
                if !self.quicks.has(attempt) {
                    return self.say(attempt, Word::Ended(evidence, output));
                }
                if let Some(input) = self.quicks.ended(attempt, evidence, output) {
                    self.step(input);
                }
            }
            CageEvent::Returned { id } => {
                let Some(attempt) = self.programs.remove(&id) else { return };
                if let Some(input) = self.quicks.returned(attempt) {
                    self.step(input);
                }
            }
            CageEvent::WaitingForInput { id, waiting } => {
                if let Some(attempt) = self.programs.get(&id).copied() {
                    self.step(Input::WaitingForInput { attempt, waiting });
                }
            }
            CageEvent::Started { id, pid } => tracing::debug!(program = id, pid, "a program runs"),
            CageEvent::Sample { .. } => {}
            // Nobody here asks for rooms yet.
            CageEvent::RoomReady { .. } | CageEvent::RoomFailed { .. } => {}
        }
    }

    /// Starts a round of probes, unless these languages were looked for already.
    fn look_for(&mut self, mut languages: Vec<LanguageProbe>) {
        let probes = &mut self.probes;
        if let Some(only) = &probes.only {
            languages.retain(|language| only.contains(&language.lang));
        }
        if probes.languages.as_ref() == Some(&languages) {
            return;
        }
        probes.running = None;
        probes.languages = Some(languages.clone());
        probes.round += 1;
        probes.toolchains.clear();
        probes.resolved.clear();
        let scratch = self.workshop.work.join(format!("probe.{}", probes.round));
        let (surroundings, driver) = (Arc::clone(&self.workshop.surroundings), self.workshop.driver.clone());
        probes.running = Some(Round::start(probes.round, languages, surroundings, scratch, driver));
    }

    fn probed(&mut self, round: u64, news: ProbeNews) {
        if round != self.probes.round {
            return;
        }
        match news {
            ProbeNews::Found { toolchain, resolved } => {
                if let Some(resolved) = resolved {
                    self.probes.resolved.insert(toolchain.lang.clone(), resolved);
                }
                self.probes.toolchains.push(toolchain);
                self.probes.toolchains.sort();
            }
            ProbeNews::Done => self.probes.running = None,
        }
        self.report(true);
    }

    fn report(&mut self, with_toolchains: bool) {
        if self.link.borrow().is_none() {
            return;
        }
        let Snapshot { held, held_many, toolchains, probing, draining, slept_ms: _ } = self.snapshot();
        let toolchains = with_toolchains.then_some(toolchains);
        let (load, overloaded) = (self.load.load(), self.overloaded);
        let report = Report { load, overloaded, held, held_many, toolchains, probing, draining };
        self.send(Frame::of(Function::REPORT, 0, &report));
    }

    fn send(&self, frame: Frame) {
        let link = self.link.borrow().clone();
        if let Some(link) = link {
            // A closed connection is the session's news; what matters is said again after the next registration.
            let _ = link.sender.control(frame);
        }
    }

    /// Kills all programs and probes, and waits for their trees to be dead, within [`STOP_TIME`].
    async fn stop(&mut self, events: &mut mpsc::Receiver<Event>) {
        let until = Instant::now() + STOP_TIME;
        let probes = self.probes.running.take();
        tokio::join!(self.stop_programs(events, until), async {
            if let Some(probes) = probes {
                probes.end(until).await;
            }
        });
    }

    async fn stop_programs(&mut self, events: &mut mpsc::Receiver<Event>, until: Instant) {
        self.quicks.ask();
        for program in self.programs.keys() {
            self.workshop.hand.kill_now(*program);
        }
        while !self.programs.is_empty() {
            match timeout_at(until, events.recv()).await {
                Ok(Some(Event::Cage(CageNews::Events(events)))) => {
                    for event in events {
                        if let CageEvent::Ended { id, .. }
                        | CageEvent::StartFailed { id, .. }
                        | CageEvent::Returned { id } = event
                        {
                            self.programs.remove(&id);
                        }
                    }
                }
                Ok(Some(Event::Cage(CageNews::Died { .. }))) | Ok(None) | Err(_) => return,
                Ok(Some(_)) => {}
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Without the contents of files and the variables of jobs: they are their owner's.
fn log_input(input: &Input) {
    match input {
        Input::Start(start) => {
            tracing::debug!(attempt = %start.attempt, lang = start.lang, files = start.files.len(), "input: start");
        }
        input => tracing::debug!(?input, "input"),
    }
}

fn log_effect(effect: &Effect) {
    match effect {
        Effect::Prepare { attempt, files, .. } => tracing::debug!(%attempt, files = files.len(), "effect: prepare"),
        Effect::Launch { attempt, phase, .. } => {
            tracing::debug!(%attempt, phase = phase.phase.name(), program = phase.argv.first(), "effect: launch");
        }
        effect => tracing::debug!(?effect, "effect"),
    }
}

impl Probes {
    /// Nothing is known yet; `only` these languages will be looked for.
    pub(crate) fn new(only: Option<Vec<String>>) -> Probes {
        Probes { only, ..Probes::default() }
    }

    /// Is a list expected, or being tried?
    fn is_looking(&self) -> bool {
        self.languages.is_none() || self.running.is_some()
    }
}
