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

use crate::cage::CageHand;
use crate::driver::Event;
use crate::fetch::Fetcher;
use crate::folder::{Folder, Places};
use crate::input::{Input as Stdin, Reader};
use crate::launch::{Resolved, Surroundings};
use crate::limits::{ATTEMPT_WORDS, PIPE_BYTES, PROGRAM_NICE};
use crate::link::{LinkWatch, Offsets};
use crate::output::{Pipes, Pump, Wishes};
use essaim_core::worker::{Input, PhaseEnd};
use essaim_proto::AttemptId;
use essaim_proto::job::{FileSpec, Phase, Reason, StdinSpec, Verdict};
use essaim_proto::link::PhaseSpec;
use essaim_sandbox::{CageError, Evidence, ProgramId, Start, Stdio3, verdict};
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
}

/// A word of the driver to one attempt.
#[derive(Debug)]
pub(crate) enum Word {
    /// Run a phase.
    Launch(Box<Launch>),
    /// Kill what runs.
    Kill,
    /// The cage says: its tree is dead.
    Ended(Evidence),
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
        let (wishes, wished) = watch::channel(Wishes::default());
        // One phase runs at a time.
        let (phases, pumped) = mpsc::channel(1);
        tokio::spawn(Pump::new(id, born, workshop.link.clone(), wished, pumped).run());
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
    /// The cage that was asked.
    generation: u64,
    output_over: oneshot::Sender<()>,
    /// Tells the input's pump by being dropped.
    _input_over: oneshot::Sender<()>,
    read: oneshot::Receiver<Offsets>,
}

/// Why a phase did not start, or did not end in order.
type Failure = (Verdict, Reason);

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
                    Word::Kill | Word::Ended(_) | Word::StartFailed { .. } | Word::CageDied { .. } => {}
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
        let Launch { program, phase, stdin, resolved } = launch;
        let places = (self.places.folder.as_path(), self.places.tmp.as_path());
        let command = self.workshop.surroundings.command(self.id, &phase, resolved.as_ref(), places);
        let command = command.map_err(|reason| (Verdict::Rejected, reason))?;
        let is_compile = phase.phase == Phase::Compile;
        let ours_failed = |error: io::Error| (Verdict::InternalError, Reason::new("start_failed").with("why", error));
        let (stdio, ends, input) = stdio(is_compile, stdin == StdinSpec::Live).map_err(ours_failed)?;
        let start = Start {
            id: program,
            argv: command.argv,
            env: command.env,
            cwd: self.places.folder.clone(),
            wall_limit_ms: Some(phase.wall_ms),
            nice: PROGRAM_NICE,
        };
        let generation = self.workshop.hand.start(start, stdio).await.map_err(refused_by_cage)?;
        let (output_over, over) = oneshot::channel();
        let (done, read) = oneshot::channel();
        if self.phases.send(Pipes { ends, over, done }).await.is_err() {
            return Err((Verdict::InternalError, Reason::new("worker_stopped")));
        }
        let (_input_over, over) = oneshot::channel();
        if let (Some(reader), Some(pipe)) = (self.reader.take_if(|_| input.is_some()), input) {
            // Its pump ends with the attempt only.
            let _ = reader.send(Reader { pipe, over });
        }
        let word = phase.argv.into_iter().next().unwrap_or_default();
        Ok(Running { program, word, phase: phase.phase, generation, output_over, _input_over, read })
    }

    /// Waits for the end of a program and of its output. `None`: the driver is gone.
    async fn follow(&mut self, running: Running) -> Option<Result<PhaseEnd, Failure>> {
        let ended = loop {
            match self.words.recv().await? {
                Word::Kill => self.workshop.hand.kill(running.program).await,
                Word::Ended(evidence) => break Ok(evidence),
                Word::StartFailed { step, errno } => break Err(start_failed(&running.word, &step, errno)),
                Word::CageDied { generation } if generation >= running.generation => {
                    break Err((Verdict::InternalError, Reason::new("cage_failed")));
                }
                Word::CageDied { .. } | Word::Launch(_) | Word::Clean => {}
            }
        };
        // An error of either: the pump is gone, and with it the attempt.
        let _ = running.output_over.send(());
        let [stdout_bytes, stderr_bytes] = running.read.await.ok()?;
        Some(ended.map(|evidence| PhaseEnd {
            verdict: verdict_of(running.phase, &evidence),
            exit_code: evidence.exit_code,
            signal: evidence.signal,
            cpu_ms: evidence.cpu_ms,
            wall_ms: evidence.wall_ms,
            memory_peak_bytes: evidence.memory_peak_bytes,
            stdout_bytes,
            stderr_bytes,
        }))
    }

    async fn clean(self) {
        let places = self.places.clone();
        let removed = spawn_blocking(move || places.remove()).await;
        match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => {
                self.workshop.hand.disown(self.places.folder).await;
                self.workshop.hand.disown(self.places.tmp).await;
            }
            // It stays owned: the cage tries again when the worker ends.
            Err(error) => tracing::warn!(attempt = %self.id, %error, "a work folder cannot be removed"),
        }
    }
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

/// The program's three streams, and our ends of them.
type Streams = (Stdio3, [Option<pipe::Receiver>; 2], Option<pipe::Sender>);

/// A compiler's two streams are one: its words belong together, and they are no results.
fn stdio(is_compile: bool, is_live: bool) -> io::Result<Streams> {
    let (theirs_in, input) = match is_live {
        true => {
            let (theirs, ours) = new_pipe()?;
            (theirs, Some(pipe::Sender::from_owned_fd(ours)?))
        }
        false => (std::fs::File::open("/dev/null")?.into(), None),
    };
    let (stderr, theirs_err) = new_pipe()?;
    let (stdout, theirs_out) = match is_compile {
        true => (None, theirs_err.try_clone()?),
        false => {
            let (ours, theirs) = new_pipe()?;
            (Some(pipe::Receiver::from_owned_fd(ours)?), theirs)
        }
    };
    let stdio = Stdio3 { stdin: theirs_in, stdout: theirs_out, stderr: theirs_err };
    Ok((stdio, [stdout, Some(pipe::Receiver::from_owned_fd(stderr)?)], input))
}

/// A pipe: the end to read, the end to write.
fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // A user with many pipes may be refused: then it is an ordinary one.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}

fn refused_by_cage(error: CageError) -> Failure {
    match error {
        CageError::TooLarge { .. } => (Verdict::Rejected, Reason::new("arguments_too_long")),
        CageError::Gone | CageError::Busy => (Verdict::InternalError, Reason::new("cage_failed")),
        error => (Verdict::InternalError, Reason::new("start_failed").with("why", error)),
    }
}

/// The cage could not start it: is the program to blame, or are we?
fn start_failed(program: &str, step: &str, errno: i32) -> Failure {
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
