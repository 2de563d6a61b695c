//! An init: a small process between cage and programs that starts one program after the other, counts for it and cleans
//! up behind it.
//!
//! `spawn` is called by `cage`, `Init::in_room` by `room`; everything else runs in the forked child, and between its `vfork` and exec in the
//! program-to-be.
//!
//! ```text
//!   cage ── fork ──► init ◄──── a block, perhaps with three streams (launch) ──────────── cage
//!                     │ vfork: session, streams, nice, chdir, signals, exec
//!                     ├─ exec failed ─► Report::Failed ───────────────────────────────────► cage
//!                     ├─ streams given, or captured and running for CAPTURE_TIME:
//!                     │         Report::Started, with the pipes of captured output ───────► cage
//!                     └─ waits ─┬─ program ended ─► kills the rest of its tree ─┐
//!                               └─ SIGTERM ───────► kills the whole tree ───────┤
//!                   Report::Finished, with captured output that was not given away ◄┘ ────► cage, then the next block
//!
//!   blocks wait in init's socket, in their order; with Report::Started, and after SIGUSR1 with Report::Returned, they go
//!   back to the cage (dropped here, for the cage still has them)
//! ```
//!
//! What is always true:
//! - SIGTERM is the order to end the program that runs: the cage sends it for a wall limit or a kill, when no other
//!   program waits here that it could hit; the kernel sends it when the cage dies. SIGUSR1 is the order to give back. All signals stay blocked and are taken by sigtimedwait, so no handler runs anywhere. One that
//!   comes late, for a program that is over, is forgotten before the next begins. Without a program, the end of the
//!   socket is the order to leave.
//! - Each program is reported before the next begins: one of which nothing was heard, behind another of which nothing was
//!   heard, has not begun.
//! - `Report::Finished` and `Report::Failed` are sent only after waitpid said that there is no child left: whatever a
//!   program leaves behind, the next one finds nothing of it.
//! - Init holds its socket, /proc and /dev/null; of a program only the read ends of captured output, for a moment. The
//!   worker's pipes end with the program's last holder.
//! - The program dies with its init (parent-death signal), and orphans of the program fall to its init (subreaper).
//!
//! The init of a room is made by `room`, behind walls that stand already, and serves the same way. What differs: it is the
//! first process of its namespace, so it needs no /proc to kill and dies with the cage by itself; programs of its room can
//! send it signals, which it does not take for orders.
//!
//! Deliberately not here: why a program is stopped and when, and which init gets which program (`cage`, `pool`). The
//! place where a program-to-be limits itself is `limit_and_place`.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::clock::Moment;
use crate::launch::{Launch, is_returnable};
use crate::limits::{CAPTURE_TIME, CAPTURED_BYTES_MAX, EXEC_RETRY_WAIT, EXEC_TRIES, MESSAGE_BYTES_MAX, REAP_WAIT};
use crate::proc::Proc;
use crate::protocol::{Capture, Limits, Step};
use crate::report::{Failure, Finished, Report};
use crate::sys::{self, Change, Stack};
use crate::tree;
use crate::wire::{self, Packet};

/// The order to give back the blocks that wait.
pub(crate) const RETURN: Signal = Signal::USR1;

/// What an init listens to.
const ORDERS: [i32; 3] = [libc::SIGCHLD, libc::SIGTERM, RETURN.as_raw()];

/// An init as the cage sees it. Dropping it lets an init without a program exit.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) pid: Pid,
    /// Blocks go in, reports come out.
    pub(crate) socket: OwnedFd,
}

/// Forks an init that waits for its first program.
///
/// # Errors
/// The step that failed.
pub(crate) fn spawn(proc: &Proc) -> Result<Handle, Failure> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (socket, theirs) = pair.map_err(|error| Failure::new(Step::Pipe, error))?;
    let cage = rustix::process::getpid();
    // The closure owns the other end: the cage's copy of it is closed here.
    let pid = sys::fork(move || {
        let home = Home::Host { cage, proc };
        Init { home, own: rustix::process::getpid(), socket: theirs, stack: Stack::new() }.run()
    });
    Ok(Handle { pid: pid.map_err(|error| Failure::new(Step::Fork, error))?, socket })
}

/// Inside the init process.
pub(crate) struct Init<'a> {
    home: Home<'a>,
    own: Pid,
    socket: OwnedFd,
    stack: Stack,
}

/// Where an init and its programs live.
enum Home<'a> {
    /// On the host, below the cage.
    Host { cage: Pid, proc: &'a Proc },
    /// In a room, as its first process. Landlock rules are for the programs only: init is out of the reach of their
    /// signals.
    Room { rules: Option<OwnedFd> },
}

/// The program of now.
#[derive(Clone, Copy)]
struct Program {
    pid: Pid,
    began: Moment,
}

/// What was counted while reaping.
#[derive(Default)]
struct Tally {
    end: Option<(Change, Moment)>,
    cpu: Duration,
    memory_peak_bytes: u64,
}

/// Init cannot go on: the cage is gone, or something is wrong that a new init does not have.
#[derive(Debug)]
struct Leave;

impl Init<'_> {
    /// The init of a room whose walls stand. Called in its first process.
    pub(crate) fn in_room(socket: OwnedFd, rules: Option<OwnedFd>) -> Init<'static> {
        Init { home: Home::Room { rules }, own: rustix::process::getpid(), socket, stack: Stack::new() }
    }

    /// The whole life of an init; returns its exit code, which nobody reads.
    pub(crate) fn run(&mut self) -> u8 {
        let prepared = match self.home {
            Home::Host { proc, .. } => self.prepare(proc),
            Home::Room { .. } => Ok(()),
        };
        let mut block = vec![0; MESSAGE_BYTES_MAX];
        // An error of the socket is its end too.
        while let Ok(Packet::Whole(count, streams)) = wire::receive(self.socket.as_fd(), &mut block, RecvFlags::empty())
        {
            let served = match prepared {
                Ok(()) => self.serve(&block[..count], streams),
                Err(failure) => self.report(Report::Failed(failure), &[], &[]),
            };
            if served.is_err() {
                return 1;
            }
        }
        0
    }

    /// Makes this copy of the cage an init.
    fn prepare(&self, proc: &Proc) -> Result<(), Failure> {
        let at = |step| move |error| Failure::new(step, error);
        rustix::thread::set_name(c"essaim-init").map_err(at(Step::Init))?;
        rustix::process::set_child_subreaper(Some(self.own)).map_err(at(Step::Init))?;
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(at(Step::Init))?;
        sys::close_all_except(&[self.socket.as_fd(), proc.as_fd()]);
        // What every program inherits as it is, so that nothing is left to do for each: dispositions of signals, umask,
        // streams that are nobody's. The worker's current folder must not be kept busy by us; staying there is no harm
        // if / cannot be entered.
        sys::restore_dispositions();
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let _ = rustix::process::chdir(c"/");
        for (number, flags) in [(0, OFlags::RDONLY), (1, OFlags::WRONLY), (2, OFlags::WRONLY)] {
            let null = rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(at(Step::Stdio))?;
            sys::keep_as(null, number).map_err(at(Step::Stdio))?;
        }
        Ok(())
    }

    /// One program from its block to the report of its end; or the block goes back, with all behind it.
    fn serve(&mut self, block: &[u8], streams: Vec<OwnedFd>) -> Result<(), Leave> {
        if self.forget_signals()? && is_returnable(block) {
            let count = 1 + self.drop_blocks();
            return self.report(Report::Returned { count, is_running: false }, &[], &[]);
        }
        match self.start(block, streams) {
            Ok((program, streams)) => self.watch(program, streams),
            Err(failure) => self.report(Report::Failed(failure), &[], &[]),
        }
    }

    /// Takes signals that were meant for the program before; says whether one may have been meant for the next, which
    /// goes back then if it can: the cage knows. `Leave`: one was the cage's death.
    fn forget_signals(&self) -> Result<bool, Leave> {
        let mut must_return = false;
        while let Some(signal) = sys::wait_signal(&ORDERS, Some(Duration::ZERO)) {
            must_return |= signal != libc::SIGCHLD;
        }
        match self.home {
            Home::Host { cage, .. } if rustix::process::getppid() != Some(cage) => Err(Leave),
            // A room is killed when the cage dies.
            Home::Host { .. } | Home::Room { .. } => Ok(must_return),
        }
    }

    /// Waits for one of `ORDERS`. In a room, only SIGCHLD counts that its own processes send: orders come from outside, where
    /// nobody has a number here.
    fn wait_order(&self, wait: Option<Duration>) -> Option<i32> {
        match self.home {
            Home::Host { .. } => sys::wait_signal(&ORDERS, wait),
            Home::Room { .. } => match sys::wait_signal_from(&ORDERS, wait)? {
                (libc::SIGCHLD, _) => Some(libc::SIGCHLD),
                (signal, 0) => Some(signal),
                // As if a child had changed: looked at once more, and nothing else.
                (_, _) => Some(libc::SIGCHLD),
            },
        }
    }

    /// One round of killing all that is left of a program.
    fn kill_rest(&self) {
        match self.home {
            Home::Host { proc, .. } => tree::kill_below(proc, self.own.as_raw_pid(), &BTreeSet::new()),
            // The kernel does it in one step that no fork outruns.
            Home::Room { .. } => sys::kill_namespace(),
        }
    }

    /// Empties the socket of what waits behind the program of now: the cage has it all, and gives it to others.
    fn drop_blocks(&self) -> u32 {
        let mut count = 0;
        // No byte is wanted: what is too large for the buffer is gone too.
        while let Ok(Packet::TooLarge | Packet::Whole(..)) =
            wire::receive(self.socket.as_fd(), &mut [0], RecvFlags::DONTWAIT)
        {
            count += 1;
        }
        count
    }

    /// Starts the program; its exec has succeeded when this returns.
    fn start(&mut self, block: &[u8], streams: Vec<OwnedFd>) -> Result<(Program, Streams), Failure> {
        let launch = Launch::from_block(block).ok_or(Failure::new(Step::Argv, Errno::INVAL))?;
        let mut streams = Streams::new(launch.capture, streams)?;
        let own = self.own;
        let rules = match &self.home {
            Home::Host { .. } => None,
            Home::Room { rules } => rules.as_ref(),
        };
        let began = Moment::now();
        let mut failed = None;
        let program = sys::vfork(&mut self.stack, || {
            // It shares our memory until exec, so it can say here what went wrong.
            failed = Some(become_program(own, &launch, &streams.theirs, rules));
            1
        });
        let program = program.map_err(|error| Failure::new(Step::Fork, error))?;
        streams.theirs.clear();
        let Some(failure) = failed else { return Ok((Program { pid: program, began }, streams)) };
        // It exits by itself; we report only when it is gone.
        while !matches!(sys::wait_any(false), Err(Errno::CHILD)) {
            sys::wait_signal(&[libc::SIGCHLD], Some(REAP_WAIT));
        }
        Err(failure)
    }

    /// Waits for the program's end or for the order to end it, empties the tree, reports.
    fn watch(&self, program: Program, mut streams: Streams) -> Result<(), Leave> {
        let mut tally = Tally::default();
        let mut is_stopping = false;
        let mut give_away_at = None;
        if streams.ours.is_empty() {
            self.report_started(program, &tally, &mut streams)?;
        } else {
            give_away_at = Some(Moment::now().plus(CAPTURE_TIME));
        }
        loop {
            if is_stopping || tally.end.is_some() {
                self.kill_rest();
                // SIGCHLD usually cuts this short; the wait is for deaths whose signals were merged into one.
                sys::wait_signal(&[libc::SIGCHLD], Some(REAP_WAIT));
            } else {
                let wait = give_away_at.map(|at| at.since(Moment::now()));
                let signal = self.wait_order(wait);
                is_stopping = signal == Some(libc::SIGTERM);
                if signal == Some(RETURN.as_raw()) {
                    let count = self.drop_blocks();
                    self.report(Report::Returned { count, is_running: true }, &[], &[])?;
                }
                if signal.is_none() && give_away_at.is_some_and(|at| at <= Moment::now()) {
                    self.report_started(program, &tally, &mut streams)?;
                    give_away_at = None;
                }
            }
            if !reap(program.pid, &mut tally) {
                return self.report_finished(program, &tally, is_stopping, &mut streams);
            }
        }
    }

    /// Says that the program runs, and gives away the pipes of its captured output: what is in them stays in them. What
    /// waits behind it goes back.
    fn report_started(&self, program: Program, tally: &Tally, streams: &mut Streams) -> Result<(), Leave> {
        let reaped_before = sys::cpu_of_children().saturating_sub(tally.cpu);
        let report = Report::Started {
            pid: program.pid.as_raw_pid(),
            reaped_before_micros: micros(reaped_before),
            began_nanos: program.began.nanos(),
            returned: self.drop_blocks(),
        };
        let sent = self.report(report, &[], &streams.ours);
        streams.ours.clear();
        sent
    }

    fn report_finished(
        &self,
        program: Program,
        tally: &Tally,
        is_stopping: bool,
        streams: &mut Streams,
    ) -> Result<(), Leave> {
        let (exit_code, signal, ended) = match tally.end {
            Some((Change::Exited(code), ended)) => (Some(code), None, ended),
            Some((Change::Signaled(signal), ended)) => (None, Some(signal), ended),
            Some((Change::Stopped, _)) | None => return Err(Leave),
        };
        let output = match streams.rest() {
            Some(output) => output,
            None => {
                self.report_started(program, tally, streams)?;
                Output::default()
            }
        };
        let report = Report::Finished(Finished {
            exit_code,
            signal,
            stopped: is_stopping && signal == Some(libc::SIGKILL),
            began_nanos: program.began.nanos(),
            ended_nanos: ended.nanos(),
            cpu_micros: micros(tally.cpu),
            memory_peak_bytes: tally.memory_peak_bytes,
            stdout_bytes: output.stdout_bytes,
        });
        self.report(report, &output.bytes, &[])
    }

    fn report(&self, report: Report, output: &[u8], fds: &[OwnedFd]) -> Result<(), Leave> {
        let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
        let parts = [&report.to_bytes()[..], output];
        // An error means that the cage is gone, and with it everyone who could read this.
        wire::send(self.socket.as_fd(), &parts, &fds, SendFlags::empty()).map_err(|_| Leave)
    }
}

/// The streams of one program.
struct Streams {
    /// The program's ends and their numbers. What is not here is /dev/null.
    theirs: Vec<(OwnedFd, i32)>,
    /// Read ends of captured output: of stdout and stderr, or of both in one.
    ours: Vec<OwnedFd>,
}

/// Captured output that did not outlive its program.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// How many of them are of stdout, which comes first.
    stdout_bytes: u64,
}

impl Streams {
    /// Makes the pipes of captured output, or takes the three streams that came along.
    fn new(capture: Option<Capture>, given: Vec<OwnedFd>) -> Result<Streams, Failure> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::new(Step::Pipe, error));
        match capture {
            None if given.len() == 3 => Ok(Streams { theirs: given.into_iter().zip(0..).collect(), ours: Vec::new() }),
            None => Err(Failure::new(Step::Stdio, Errno::INVAL)),
            Some(Capture::Apart) => {
                let ((stdout, theirs_out), (stderr, theirs_err)) = (pipe()?, pipe()?);
                Ok(Streams { theirs: vec![(theirs_out, 1), (theirs_err, 2)], ours: vec![stdout, stderr] })
            }
            Some(Capture::Joined) => {
                let (both, theirs) = pipe()?;
                let copy = rustix::io::fcntl_dupfd_cloexec(&theirs, 3);
                let copy = copy.map_err(|error| Failure::new(Step::Stdio, error))?;
                Ok(Streams { theirs: vec![(copy, 1), (theirs, 2)], ours: vec![both] })
            }
        }
    }

    /// What the pipes hold when the tree is dead, which is the rest. `None`: it is too much for a report.
    fn rest(&mut self) -> Option<Output> {
        // An error would mean that it is no pipe.
        let held = |end| usize::try_from(rustix::io::ioctl_fionread(end).unwrap_or(0)).unwrap_or(usize::MAX);
        let counts: Vec<usize> = self.ours.iter().map(held).collect();
        let total = counts.iter().fold(0, |sum: usize, count| sum.saturating_add(*count));
        if total > CAPTURED_BYTES_MAX {
            return None;
        }
        let mut output = Output { bytes: vec![0; total], stdout_bytes: 0 };
        let mut filled = 0;
        for (place, (end, count)) in self.ours.iter().zip(&counts).enumerate() {
            let until = filled + count;
            while filled < until {
                match rustix::io::read(end, &mut output.bytes[filled..until]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            if place == 0 && counts.len() == 2 {
                output.stdout_bytes = u64::try_from(filled).unwrap_or(0);
            }
        }
        output.bytes.truncate(filled);
        Some(output)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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

/// Inside the process that becomes the program. Returns only if something failed.
fn become_program(init: Pid, launch: &Launch<'_>, streams: &[(OwnedFd, i32)], rules: Option<&OwnedFd>) -> Failure {
    match limit_and_place(init, launch, streams, rules) {
        Ok(()) => Failure::new(Step::Exec, exec(launch)),
        Err(failure) => failure,
    }
}

/// Everything before exec, in an order that matters: signals last. Every descriptor but the three streams is
/// close-on-exec. It borrows init's memory and must not allocate here: what it needs was made before.
fn limit_and_place(
    init: Pid,
    launch: &Launch<'_>,
    streams: &[(OwnedFd, i32)],
    rules: Option<&OwnedFd>,
) -> Result<(), Failure> {
    let at = |step| move |error| Failure::new(step, error);
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(Step::Init))?;
    if rustix::process::getppid() != Some(init) {
        return Err(Failure::new(Step::Init, Errno::SRCH));
    }
    rustix::process::setsid().map_err(at(Step::Session))?;
    for (fd, number) in streams {
        sys::install_fd(fd.as_fd(), *number).map_err(at(Step::Stdio))?;
    }
    rustix::process::nice(launch.nice).map_err(at(Step::Nice))?;
    rustix::process::chdir(launch.cwd).map_err(at(Step::Chdir))?;
    limit(&launch.limits).map_err(at(Step::Limits))?;
    if let Some(rules) = rules {
        sys::landlock(rules.as_fd()).map_err(at(Step::Walls))?;
    }
    sys::unblock_signals();
    Ok(())
}

/// Sets the limits that were asked for, as far as we may have that much ourselves. Processes are limited in
/// rooms only, where init counts as one of them.
fn limit(limits: &Limits) -> Result<(), Errno> {
    let processes = limits.processes.map(|count| count.saturating_add(1));
    for (resource, limit) in [
        (Resource::Nofile, limits.open_files),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Stack, limits.stack_bytes),
        (Resource::Nproc, processes),
    ] {
        let Some(limit) = limit else { continue };
        let own = rustix::process::getrlimit(resource).maximum;
        let limit = Some(own.map_or(limit, |own| own.min(limit)));
        rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })?;
    }
    Ok(())
}

fn exec(launch: &Launch<'_>) -> Errno {
    let mut error = launch.image.exec();
    for _ in 1..EXEC_TRIES {
        if error != Errno::TXTBSY {
            break;
        }
        std::thread::sleep(EXEC_RETRY_WAIT);
        error = launch.image.exec();
    }
    error
}
