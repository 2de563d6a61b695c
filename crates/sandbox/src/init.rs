//! The init of one program: a tiny process between cage and program that starts it, counts for it and cleans up.
//!
//! `spawn` is called by `cage`; everything else runs in the forked child and in the program-to-be.
//!
//! ```text
//!   cage ── fork ──► init ── fork ──► program-to-be: session, stdio, nice, chdir, signals, exec
//!                     │                        │ failure pipe (exec closes it)
//!                     │◄───────────────────────┘
//!                     ├─ Report::Failed, exit
//!                     └─ Report::Started ─► waits ─┬─ program ended ─► kills the rest of its tree ─┐
//!                                                  └─ SIGTERM ───────► kills the whole tree ───────┤
//!                                                                       Report::Finished, exit ◄───┘
//! ```
//!
//! What is always true:
//! - SIGTERM is the one order: the cage sends it for a wall limit or a kill, the kernel sends it when the cage dies.
//!   All signals stay blocked and are taken by sigtimedwait, so no handler runs anywhere.
//! - `Report::Finished` is written only after waitpid said that there is no child left.
//! - Init holds the status pipe and /proc, and never the program's stdio: the worker's pipes end with the program's
//!   last holder.
//! - The program dies with its init (parent-death signal), and orphans of the program fall to its init (subreaper).
//!
//! Deliberately not here: why a program is stopped and when (`cage`). The place where a program-to-be limits itself is
//! `ProgramToBe::prepare`.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

use crate::clock::Moment;
use crate::limits::{EXEC_RETRY_WAIT, EXEC_TRIES, REAP_WAIT};
use crate::proc::Proc;
use crate::protocol::{Start, Step};
use crate::report::{FAILURE_BYTES, Failure, Finished, Report};
use crate::sys::{self, Change, ExecImage};
use crate::tree;

/// All that a program needs, checked and ready before the first fork.
pub(crate) struct Launch {
    pub(crate) image: ExecImage,
    pub(crate) cwd: CString,
    pub(crate) nice: i32,
    pub(crate) stdio: [OwnedFd; 3],
}

impl Launch {
    /// Checks what the worker asked for and makes what exec needs.
    ///
    /// # Errors
    /// The part of it that cannot be: it holds a NUL byte, or no file descriptors came along.
    pub(crate) fn new(start: &Start, stdio: Vec<OwnedFd>) -> Result<Launch, Failure> {
        let unfit = |step| Failure::new(step, Errno::INVAL);
        let argv: Vec<CString> =
            start.argv.iter().cloned().map(CString::new).collect::<Result<_, _>>().map_err(|_| unfit(Step::Argv))?;
        if !start.argv.first().is_some_and(|program| program.contains('/')) {
            return Err(unfit(Step::Argv));
        }
        let env = start.env.iter().map(|(name, value)| {
            let is_name = !name.is_empty() && !name.contains('=');
            CString::new(format!("{name}={value}")).ok().filter(|_| is_name)
        });
        let env: Vec<CString> = env.collect::<Option<_>>().ok_or(unfit(Step::Env))?;
        let cwd = CString::new(start.cwd.as_os_str().as_bytes()).map_err(|_| unfit(Step::Cwd))?;
        if !start.cwd.is_absolute() {
            return Err(unfit(Step::Cwd));
        }
        let stdio: [OwnedFd; 3] = stdio.try_into().map_err(|_| unfit(Step::Stdio))?;
        let mut stdio_above = Vec::with_capacity(3);
        for fd in stdio {
            // A descriptor below 3 would be overwritten while the three are put in their places.
            stdio_above.push(match fd.as_raw_fd() {
                0..3 => rustix::io::fcntl_dupfd_cloexec(&fd, 3).map_err(|error| Failure::new(Step::Stdio, error))?,
                _ => fd,
            });
        }
        let stdio = stdio_above.try_into().map_err(|_| unfit(Step::Stdio))?;
        let image = ExecImage::new(argv, env).ok_or(unfit(Step::Argv))?;
        Ok(Launch { image, cwd, nice: start.nice, stdio })
    }
}

/// A running init as the cage sees it.
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    /// Reports come out here, `REPORT_BYTES` each. Non-blocking.
    pub(crate) status: OwnedFd,
}

/// Forks an init for `launch`. The caller's copies of the program's stdio are closed when this returns.
///
/// # Errors
/// The step that failed; nothing was started then.
pub(crate) fn spawn(proc: &Proc, launch: Launch) -> Result<Spawned, Failure> {
    let (status, status_writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::new(Step::Pipe, error))?;
    rustix::io::ioctl_fionbio(&status, true).map_err(|error| Failure::new(Step::Pipe, error))?;
    let cage = rustix::process::getpid();
    let init = Init { cage, proc, status: status_writer };
    let pid = sys::fork(move || init.run(launch)).map_err(|error| Failure::new(Step::Fork, error))?;
    Ok(Spawned { pid, status })
}

/// Inside the init process.
struct Init<'a> {
    cage: Pid,
    proc: &'a Proc,
    status: OwnedFd,
}

/// What was counted while reaping.
#[derive(Default)]
struct Tally {
    end: Option<(Change, Moment)>,
    cpu: Duration,
    memory_peak_bytes: u64,
}

impl Init<'_> {
    /// The whole life of an init; returns its exit code, which nobody reads.
    fn run(self, launch: Launch) -> u8 {
        let prepared = rustix::thread::set_name(c"essaim-init")
            .and_then(|()| rustix::process::set_child_subreaper(Some(rustix::process::getpid())))
            .and_then(|()| rustix::process::set_parent_process_death_signal(Some(Signal::TERM)));
        if let Err(error) = prepared {
            self.report(Report::Failed(Failure::new(Step::Init, error)));
            return 1;
        }
        // If the cage died before the line above, the signal will never come.
        if rustix::process::getppid() != Some(self.cage) {
            return 1;
        }
        match self.start(launch) {
            Ok(program) => {
                self.report(Report::Started { pid: program.as_raw_pid() });
                self.watch(program)
            }
            Err(failure) => {
                self.report(Report::Failed(failure));
                1
            }
        }
    }

    /// Forks the program and waits until its exec succeeded or failed.
    fn start(&self, launch: Launch) -> Result<Pid, Failure> {
        let (failures, failure_writer) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::new(Step::Pipe, error))?;
        let init = rustix::process::getpid();
        // The closure owns the stdio and the writer: they are closed here as soon as the child has them.
        let program_to_be = ProgramToBe { init, launch, failures: failure_writer };
        let program = sys::fork(move || program_to_be.run()).map_err(|error| Failure::new(Step::Fork, error))?;
        sys::close_all_except(&[self.status.as_fd(), self.proc.as_fd(), failures.as_fd()]);
        // The worker's current folder must not be kept busy by us. Staying there is no harm if / cannot be entered.
        let _ = rustix::process::chdir(c"/");
        match read_failure(failures.as_fd()) {
            None => Ok(program),
            Some(failure) => {
                // It exits by itself; the caller reports only when it is gone.
                while !matches!(sys::wait_any(false), Err(Errno::CHILD)) {
                    sys::wait_signal(&[libc::SIGCHLD], Some(REAP_WAIT));
                }
                Err(failure)
            }
        }
    }

    /// Waits for the program's end or for the order to end it, empties the tree, reports.
    fn watch(&self, program: Pid) -> u8 {
        let own = rustix::process::getpid().as_raw_pid();
        let mut tally = Tally::default();
        let mut is_stopping = false;
        while reap(program, &mut tally) {
            if is_stopping || tally.end.is_some() {
                tree::kill_below(self.proc, own, &BTreeSet::new());
                // SIGCHLD usually cuts this short; the wait is for deaths whose signals were merged into one.
                sys::wait_signal(&[libc::SIGCHLD], Some(REAP_WAIT));
            } else {
                is_stopping = sys::wait_signal(&[libc::SIGCHLD, libc::SIGTERM], None) == Some(libc::SIGTERM);
            }
        }
        let Some((change, ended)) = tally.end else { return 1 };
        let (exit_code, signal) = match change {
            Change::Exited(code) => (Some(code), None),
            Change::Signaled(signal) => (None, Some(signal)),
            Change::Stopped => return 1,
        };
        self.report(Report::Finished(Finished {
            exit_code,
            signal,
            stopped: is_stopping && signal == Some(libc::SIGKILL),
            ended_nanos: ended.nanos(),
            cpu_micros: u64::try_from(tally.cpu.as_micros()).unwrap_or(u64::MAX),
            memory_peak_bytes: tally.memory_peak_bytes,
        }));
        0
    }

    fn report(&self, report: Report) {
        // An error means that the cage is gone, and with it everyone who could read this.
        let _ = rustix::io::write(&self.status, &report.to_bytes());
    }
}

/// Takes all children that ended. Returns whether there are others.
fn reap(program: Pid, tally: &mut Tally) -> bool {
    loop {
        match sys::wait_any(false) {
            Ok(Some(child)) => {
                tally.cpu += child.cpu;
                tally.memory_peak_bytes = tally.memory_peak_bytes.max(child.memory_peak_bytes);
                // Only the first: afterwards the number is free, and an adopted orphan may have got it.
                if child.pid == program.as_raw_pid() && tally.end.is_none() {
                    tally.end = Some((child.change, Moment::now()));
                }
            }
            Ok(None) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// `None` if the pipe ends without a word: exec closed it.
fn read_failure(pipe: BorrowedFd<'_>) -> Option<Failure> {
    let mut bytes = [0; FAILURE_BYTES];
    loop {
        match rustix::io::read(pipe, &mut bytes) {
            Ok(FAILURE_BYTES) => return Failure::from_bytes(bytes),
            Err(Errno::INTR) => {}
            _ => return None,
        }
    }
}

/// Inside the process that becomes the program.
struct ProgramToBe {
    init: Pid,
    launch: Launch,
    failures: OwnedFd,
}

impl ProgramToBe {
    /// Returns only if something failed, which it has told init.
    fn run(self) -> u8 {
        let failure = match self.prepare() {
            Ok(()) => Failure::new(Step::Exec, self.exec()),
            Err(failure) => failure,
        };
        let _ = rustix::io::write(&self.failures, &failure.to_bytes());
        1
    }

    /// Everything between fork and exec, in an order that matters: what may fail while it can still be told first,
    /// signals and descriptors last. Limits of later issues go between nice and chdir.
    fn prepare(&self) -> Result<(), Failure> {
        let at = |step| move |error| Failure::new(step, error);
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(Step::Init))?;
        if rustix::process::getppid() != Some(self.init) {
            return Err(Failure::new(Step::Init, Errno::SRCH));
        }
        rustix::process::setsid().map_err(at(Step::Session))?;
        for (fd, number) in self.launch.stdio.iter().zip(0..) {
            sys::install_fd(fd.as_fd(), number).map_err(at(Step::Stdio))?;
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::nice(self.launch.nice).map_err(at(Step::Nice))?;
        rustix::process::chdir(self.launch.cwd.as_c_str()).map_err(at(Step::Chdir))?;
        sys::restore_signals();
        sys::close_on_exec_above_stdio();
        Ok(())
    }

    fn exec(&self) -> Errno {
        let mut error = self.launch.image.exec();
        for _ in 1..EXEC_TRIES {
            if error != Errno::TXTBSY {
                break;
            }
            std::thread::sleep(EXEC_RETRY_WAIT);
            error = self.launch.image.exec();
        }
        error
    }
}
