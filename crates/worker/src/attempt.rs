//! One attempt from its folder to its end: prepare, one phase after the other, clean.
//!
//! The driver begins one per start and speaks to it in [`Word`]s; it answers with the inputs of the worker's decisions.
//!
//! ```text
//!   begin ─▶ lay out, fetch ─▶ Prepared ─▶ Launch ─▶ program runs ─▶ PhaseEnded ─┬─▶ Launch …
//!               │ PrepareFailed              │ LaunchFailed                      │
//!               └────────────────────────────┴──────────────▶ Clean ◀────────────┘
//! ```
//!
//! Always true: an attempt is never away from its words for longer than a disk needs, so a kill is heard whatever the
//! hub does; a phase has ended when its tree is dead and its output is read; the folder is removed after that.
//! Deliberately not here: what happens next (the core), output (`output`) and input (`input`), processes (the cage).

use crate::cage::{CageHand, Streams};
use crate::driver::Event;
use crate::fetch::Fetcher;
use crate::folder::{Folder, Places};
use crate::input::{Input as Stdin, Reader};
use crate::launch::{Resolved, Surroundings};
use crate::limits::{ATTEMPT_WORDS, PIPE_BYTES, PROGRAM_NICE};
use crate::link::LinkWatch;
use crate::output::{Budget, Pipes, Printing, Pump, Wishes};
use essaim_core::worker::{Input, PhaseEnd};
use essaim_proto::AttemptId;
use essaim_proto::job::{FileSpec, Phase, Reason, StdinSpec, Verdict};
use essaim_proto::link::PhaseSpec;
use essaim_sandbox::{CageError, Capture, Evidence, Limits, OutputPipes, Printed, ProgramId, Start, Stdio3, verdict};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};

/// What all attempts of a worker share.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub(crate) driver: mpsc::Sender<Event>,
    pub(crate) hand: CageHand,
    pub(crate) fetcher: Fetcher,
    pub(crate) link: LinkWatch,
    pub(crate) surroundings: Arc<Surroundings>,
    /// Where work folders are made.
    pub(crate) work: PathBuf,
    /// Where rooms are made.
    pub(crate) rooms: PathBuf,
}

impl Workshop {
    /// What a program may print, with who would kill it.
    pub(crate) fn budget(&self, program: ProgramId, output_max: u64) -> Budget {
        Budget { left: output_max, hand: self.hand.clone(), program }
    }
}

/// How many bytes a program of this phase may print.
pub(crate) fn output_max(phase: &PhaseSpec) -> u64 {
    phase.limits.output_bytes.unwrap_or(u64::MAX)
}

/// A word of the driver to one attempt.
#[derive(Debug)]
pub(crate) enum Word {
    /// Run a phase.
    Launch(Box<Launch>),
    /// Kill what runs.
    Kill,
    /// The cage says: it runs on, and this is what it prints into.
    Output(OutputPipes),
    /// The cage says: its tree is dead, and this is what it printed, if that was not said before.
    Ended(Evidence, Printed),
    /// The cage says: it could not be started.
    StartFailed {
        /// What failed.
        step: String,
        /// The system's number.
        errno: i32,
    },
    /// This cage, and all before it, are dead.
    CageDied {
        /// Its number.
        generation: u64,
    },
    /// It is over: remove the folder.
    Clean,
}

/// A phase to run.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Its number for the cage.
    pub(crate) program: ProgramId,
    pub(crate) phase: PhaseSpec,
    pub(crate) stdin: StdinSpec,
    pub(crate) resolved: Option<Resolved>,
    /// How many that may wait run at once; `None`: it does not wait.
    pub(crate) at_once: Option<u32>,
}

/// The driver's hold on an attempt. Dropping it ends its output and input; its folder must have been cleaned before.
#[derive(Debug)]
pub(crate) struct Attempt {
    words: mpsc::Sender<Word>,
    /// What the driver wants of the output.
    pub(crate) wishes: watch::Sender<Wishes>,
    /// The way to its standard input, if it reads one.
    pub(crate) stdin: Option<Arc<Stdin>>,
}

impl Attempt {
    /// Starts the tasks of an attempt that the session `born` brought; its folder is made at once.
    pub(crate) fn begin(
        workshop: &Workshop,
        id: AttemptId,
        born: u64,
        files: Vec<FileSpec>,
        stdin: StdinSpec,
    ) -> Attempt {
        let (words, heard) = mpsc::channel(ATTEMPT_WORDS);
        let PumpHand { wishes, phases } = PumpHand::start(workshop, id, born, Default::default());
        let (reader, stdin) = match stdin {
            StdinSpec::Live => {
                let (reader, given) = oneshot::channel();
                let stdin = Arc::new(Stdin::default());
                let (pump, mut alive) = (Arc::clone(&stdin).pump(id, workshop.link.clone(), given), wishes.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        () = pump => {}
                        // An error, and only that: the attempt is forgotten.
                        _ = alive.wait_for(|_| false) => {}
                    }
                });
                (Some(reader), Some(stdin))
            }
            _ => (None, None),
        };
        let places = Places::of(&workshop.work, id);
        let runner = Runner { workshop: workshop.clone(), id, places, words: heard, phases, reader };
        tokio::spawn(runner.run(files));
        Attempt { words, wishes, stdin }
    }

    /// Says a word. An attempt that has too many to hear is a mistake of ours, which is logged.
    pub(crate) fn say(&self, word: Word) {
        if let Err(error) = self.words.try_send(word) {
            match error {
                mpsc::error::TrySendError::Full(word) => tracing::error!(?word, "an attempt does not listen"),
                // It has cleaned up and left.
                mpsc::error::TrySendError::Closed(_) => {}
            }
        }
    }
}

/// The hold on a pump. Dropping it ends the pump.
#[derive(Debug)]
pub(crate) struct PumpHand {
    /// What the driver wants of it.
    pub(crate) wishes: watch::Sender<Wishes>,
    phases: mpsc::Sender<Pipes>,
}

/// Pipes that a pump reads.
#[derive(Debug)]
pub(crate) struct Reading {
    over: oneshot::Sender<()>,
    read: oneshot::Receiver<Printing>,
}

impl PumpHand {
    /// Starts a pump for an attempt of the session `born` that has printed `before`.
    pub(crate) fn start(workshop: &Workshop, id: AttemptId, born: u64, before: [Vec<u8>; 2]) -> PumpHand {
        let (wishes, wished) = watch::channel(Wishes::default());
        // One phase runs at a time.
        let (phases, pumped) = mpsc::channel(1);
        tokio::spawn(Pump::new(id, born, workshop.link.clone(), wished, pumped, before).run());
        PumpHand { wishes, phases }
    }

    /// Gives it what a program has printed and the pipes that it prints into. `None`: it is gone.
    pub(crate) fn read(&self, pipes: OutputPipes, printed: Printed, budget: Budget) -> Option<Reading> {
        let (pipes, reading) = pipes_of(pipes, printed, budget);
        // There is room: the phase before was read to its end.
        self.phases.try_send(pipes).ok().map(|()| reading)
    }
}

impl Reading {
    /// The tree is dead: waits until all was read.
    pub(crate) async fn rest(self) -> Option<Printing> {
        // An error of either: the pump is gone, and with it the attempt.
        let _ = self.over.send(());
        self.read.await.ok()
    }
}

fn pipes_of(pipes: OutputPipes, printed: Printed, budget: Budget) -> (Pipes, Reading) {
    let (over, is_over) = oneshot::channel();
    let (done, read) = oneshot::channel();
    let ends = [pipes.stdout, pipes.stderr].map(|end| end.and_then(receiver));
    let before = [printed.stdout, printed.stderr];
    (Pipes { ends, before, over: is_over, budget, done }, Reading { over, read })
}

/// The end to read of a pipe, with more room than the system gives.
fn receiver(end: OwnedFd) -> Option<pipe::Receiver> {
    // A user with many pipes may be refused: then it is an ordinary one.
    let _ = rustix::pipe::fcntl_setpipe_size(&end, PIPE_BYTES);
    let receiver = pipe::Receiver::from_owned_fd(end);
    receiver.inspect_err(|error| tracing::warn!(%error, "a program's output cannot be read")).ok()
}

/// The task behind an attempt.
struct Runner {
    workshop: Workshop,
    id: AttemptId,
    places: Places,
    words: mpsc::Receiver<Word>,
    phases: mpsc::Sender<Pipes>,
    /// Where the program's end of its live input goes; taken by the phase that reads it.
    reader: Option<oneshot::Sender<Reader>>,
}

/// A program that the cage was asked to start.
struct Running {
    program: ProgramId,
    /// The word that named it.
    word: String,
    phase: Phase,
    budget: Budget,
    /// The cage that was asked.
    generation: u64,
    /// Its pipes are read.
    reading: Option<Reading>,
    /// Tells the input's pump by being dropped.
    _input_over: oneshot::Sender<()>,
}

/// Why a phase did not start, or did not end in order.
pub(crate) type Failure = (Verdict, Reason);

impl Runner {
    async fn run(mut self, files: Vec<FileSpec>) {
        if let Some(prepared) = self.prepare(files).await {
            let attempt = self.id;
            self.tell(match prepared {
                Ok(()) => Input::Prepared { attempt },
                Err(reason) => Input::PrepareFailed { attempt, reason },
            })
            .await;
            // Late words about a phase that is over mean nothing.
            while let Some(word) = self.words.recv().await {
                match word {
                    Word::Launch(launch) => self.launch(*launch).await,
                    Word::Clean => break,
                    Word::Kill
                    | Word::Output(_)
                    | Word::Ended(..)
                    | Word::StartFailed { .. }
                    | Word::CageDied { .. } => {}
                }
            }
        }
        self.clean().await;
    }

    async fn tell(&self, input: Input) {
        // Without a driver the worker is ending.
        let _ = self.workshop.driver.send(Event::Core(input)).await;
    }

    /// Makes and fills the folder. `None`: it is to be cleaned meanwhile.
    async fn prepare(&mut self, files: Vec<FileSpec>) -> Option<Result<(), Reason>> {
        let (folder, files) = match self.lay_out(files).await {
            Ok(laid_out) => laid_out,
            Err(reason) => return Some(Err(reason)),
        };
        let fetched = fetch_all(self.workshop.fetcher.clone(), self.id, Arc::new(folder), files);
        tokio::pin!(fetched);
        loop {
            tokio::select! {
                fetched = &mut fetched => return Some(fetched),
                word = self.words.recv() => {
                    if matches!(word, Some(Word::Clean) | None) {
                        return None;
                    }
                }
            }
        }
    }

    /// The folder with the files that are here already, and those that are to be fetched.
    async fn lay_out(&self, files: Vec<FileSpec>) -> Result<(Folder, Vec<FileSpec>), Reason> {
        let failed = |why: &dyn std::fmt::Display| Reason::new("work_folder").with("why", why);
        for path in [&self.places.folder, &self.places.tmp] {
            match self.workshop.hand.own(path.clone()).await {
                Ok(()) | Err(CageError::Gone) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        let places = self.places.clone();
        let made = spawn_blocking(move || {
            let folder = places.make().map_err(|error| error.to_string())?;
            folder.write_inline(&files).map_err(|(path, error)| format!("{path}: {error}"))?;
            Ok((folder, files.into_iter().filter(|file| file.inline.is_none()).collect()))
        });
        made.await.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| failed(&why))
    }

    async fn launch(&mut self, launch: Launch) {
        let attempt = self.id;
        let ended = match self.start(launch).await {
            Ok(running) => self.follow(running).await,
            Err(failure) => Some(Err(failure)),
        };
        match ended {
            Some(Ok(end)) => self.tell(Input::PhaseEnded { attempt, end }).await,
            Some(Err((verdict, reason))) => self.tell(Input::LaunchFailed { attempt, verdict, reason }).await,
            // The driver is gone.
            None => {}
        }
    }

    async fn start(&mut self, launch: Launch) -> Result<Running, Failure> {
        // What reads live input or brings files never waits for its turn.
        let Launch { program, phase, stdin, resolved, at_once: _ } = launch;
        let places = (self.places.folder.as_path(), self.places.tmp.as_path());
        let command = self.workshop.surroundings.command(self.id, &phase, resolved.as_ref(), places);
        let command = command.map_err(|reason| (Verdict::Rejected, reason))?;
        let is_joined = is_joined(phase.phase);
        let ours_failed = |error: io::Error| (Verdict::InternalError, Reason::new("start_failed").with("why", error));
        let (streams, pipes, input) = match stdin {
            StdinSpec::Live => {
                let (stdio, pipes, input) = stdio(is_joined).map_err(ours_failed)?;
                (Streams::Given(stdio), Some(pipes), Some(input))
            }
            _ => (Streams::Captured(if is_joined { Capture::Joined } else { Capture::Apart }), None, None),
        };
        let start = Start {
            id: program,
            argv: command.argv,
            env: command.env,
            cwd: self.places.folder.clone(),
            wall_limit_ms: Some(phase.wall_ms),
            nice: PROGRAM_NICE,
            at_once: None,
            room: None,
            limits: Limits::default(),
        };
        let generation = self.workshop.hand.start(start, streams).await.map_err(refused_by_cage)?;
        let budget = self.workshop.budget(program, output_max(&phase));
        let mut reading = None;
        if let Some(pipes) = pipes {
            reading = self.read(pipes, Printed::default(), &budget).await;
            if reading.is_none() {
                return Err((Verdict::InternalError, Reason::new("worker_stopped")));
            }
        }
        let (_input_over, over) = oneshot::channel();
        if let (Some(reader), Some(pipe)) = (self.reader.take_if(|_| input.is_some()), input) {
            // Its pump ends with the attempt only.
            let _ = reader.send(Reader { pipe, over });
        }
        let word = phase.argv.into_iter().next().unwrap_or_default();
        Ok(Running { program, word, phase: phase.phase, budget, generation, reading, _input_over })
    }

    /// Waits for the end of a program and of its output. `None`: the driver is gone.
    async fn follow(&mut self, mut running: Running) -> Option<Result<PhaseEnd, Failure>> {
        let ended = loop {
            match self.words.recv().await? {
                Word::Kill => self.workshop.hand.kill(running.program).await,
                Word::Output(pipes) => {
                    running.reading = Some(self.read(pipes, Printed::default(), &running.budget).await?);
                }
                Word::Ended(evidence, printed) => {
                    if running.reading.is_none() {
                        running.reading = Some(self.read(OutputPipes::default(), printed, &running.budget).await?);
                    }
                    break Ok(evidence);
                }
                Word::StartFailed { step, errno } => break Err(start_failed(&running.word, &step, errno)),
                Word::CageDied { generation } if generation >= running.generation => {
                    break Err((Verdict::InternalError, Reason::new("cage_failed")));
                }
                Word::CageDied { .. } | Word::Launch(_) | Word::Clean => {}
            }
        };
        let printing = match running.reading {
            Some(reading) => reading.rest().await?,
            None => Printing::default(),
        };
        Some(ended.map(|evidence| phase_end(running.phase, &evidence, printing)))
    }

    /// As [`PumpHand::read`], waiting for room.
    async fn read(&self, pipes: OutputPipes, printed: Printed, budget: &Budget) -> Option<Reading> {
        let (pipes, reading) = pipes_of(pipes, printed, budget.clone());
        self.phases.send(pipes).await.ok().map(|()| reading)
    }

    async fn clean(self) {
        remove_folders(self.workshop, self.places).await;
    }
}

/// Removes what an attempt has left.
pub(crate) async fn remove_folders(workshop: Workshop, places: Places) {
    let Places { folder, tmp } = places.clone();
    let removed = spawn_blocking(move || places.remove()).await;
    match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(()) => {
            workshop.hand.disown(folder).await;
            workshop.hand.disown(tmp).await;
        }
        // It stays owned: the cage tries again when the worker ends.
        Err(error) => tracing::warn!(folder = %folder.display(), %error, "a work folder cannot be removed"),
    }
}

/// What the core hears of a phase that ended, and of what it printed.
pub(crate) fn phase_end(phase: Phase, evidence: &Evidence, printing: Printing) -> PhaseEnd {
    let Printing { ends: [stdout_bytes, stderr_bytes], is_cut } = printing;
    PhaseEnd {
        // Whoever prints more than he may has not ended well, however he ended.
        verdict: if is_cut { Verdict::OutputLimit } else { verdict_of(phase, evidence) },
        truncated: is_cut,
        exit_code: evidence.exit_code,
        signal: evidence.signal,
        cpu_ms: evidence.cpu_ms,
        wall_ms: evidence.wall_ms,
        memory_peak_bytes: evidence.memory_peak_bytes,
        stdout_bytes,
        stderr_bytes,
    }
}

/// A compiler's two streams are one: its words belong together, and they are no results.
pub(crate) fn is_joined(phase: Phase) -> bool {
    phase == Phase::Compile
}

async fn fetch_all(fetcher: Fetcher, id: AttemptId, folder: Arc<Folder>, files: Vec<FileSpec>) -> Result<(), Reason> {
    let mut fetches = JoinSet::new();
    for file in files {
        fetches.spawn(fetcher.clone().fetch(id, Arc::clone(&folder), file));
    }
    while let Some(fetched) = fetches.join_next().await {
        fetched.unwrap_or_else(|error| Err(Reason::new("work_folder").with("why", error)))?;
    }
    Ok(())
}

/// The three streams of a program with live input, and our ends of them.
fn stdio(is_joined: bool) -> io::Result<(Stdio3, OutputPipes, pipe::Sender)> {
    let (stdin, input) = new_pipe()?;
    // A user with many pipes may be refused: then it is an ordinary one.
    let _ = rustix::pipe::fcntl_setpipe_size(&input, PIPE_BYTES);
    let (ours_err, stderr) = new_pipe()?;
    let (ours_out, stdout) = match is_joined {
        true => (None, stderr.try_clone()?),
        false => {
            let (ours, theirs) = new_pipe()?;
            (Some(ours), theirs)
        }
    };
    let pipes = OutputPipes { stdout: ours_out, stderr: Some(ours_err) };
    Ok((Stdio3 { stdin, stdout, stderr }, pipes, pipe::Sender::from_owned_fd(input)?))
}

/// A pipe: the end to read, the end to write.
fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

pub(crate) fn refused_by_cage(error: CageError) -> Failure {
    match error {
        CageError::TooLarge { .. } => (Verdict::Rejected, Reason::new("arguments_too_long")),
        CageError::Gone | CageError::Busy => (Verdict::InternalError, Reason::new("cage_failed")),
        error => (Verdict::InternalError, Reason::new("start_failed").with("why", error)),
    }
}

/// The cage could not start it: is the program to blame, or are we?
pub(crate) fn start_failed(program: &str, step: &str, errno: i32) -> Failure {
    let errno = Errno::from_raw_os_error(errno);
    let why = io::Error::from(errno);
    let reason = |code| Reason::new(code).with("program", program).with("step", step).with("why", &why);
    match (step, errno) {
        ("exec", Errno::NOENT | Errno::NOTDIR) => (Verdict::Rejected, reason("program_missing")),
        ("exec" | "argv" | "env", Errno::TOOBIG) => (Verdict::Rejected, reason("arguments_too_long")),
        ("exec", _) => (Verdict::Rejected, reason("program_not_executable")),
        _ => (Verdict::InternalError, reason("start_failed")),
    }
}

fn verdict_of(phase: Phase, evidence: &Evidence) -> Verdict {
    let phase = if phase == Phase::Compile { verdict::Phase::Compile } else { verdict::Phase::Run };
    match verdict::verdict(phase, evidence) {
        verdict::Verdict::Ok => Verdict::Ok,
        verdict::Verdict::RuntimeError => Verdict::RuntimeError,
        verdict::Verdict::TimeLimit => Verdict::TimeLimit,
        verdict::Verdict::Cancelled => Verdict::Cancelled,
        verdict::Verdict::CompileError => Verdict::CompileError,
    }
}
