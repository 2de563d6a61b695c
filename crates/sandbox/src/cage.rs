//! The cage: the main loop of the process that starts, watches and kills programs for one worker.
//!
//! `run_cage` is called by the binary for `essaim __cage`. It uses `init` and `pool` to start, `program` to remember,
//! `tree` to kill, `meter` to look, `wire` to talk.
//!
//! One turn of the loop: wait (socket, SIGCHLD and SIGTERM, sockets of inits, next deadline or tick) → hear inits → reap
//! → enforce deadlines → say last words → take requests → look at programs → send events.
//!
//! What is always true:
//! - One thread, no blocking call but poll. A worker that does not read cannot stop it: events wait in a bounded queue,
//!   and when that is full no requests are read.
//! - Children of this process are inits, with a program or waiting for one, and, if an init was killed, its orphans.
//!   Whoever is not an init may be killed.
//! - When the worker's socket closes (or SIGTERM comes) everything is killed, then the owned folders are removed.
//!
//! Deliberately not here: what a program is allowed to do (`init` applies it), and any word of the hub.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal};
use rustix::time::Timespec;

use crate::clock::Moment;
use crate::error::CageError;
use crate::folder::remove_tree;
use crate::init::{self, Handle};
use crate::launch;
use crate::limits::{
    EVENTS_WAITING_MAX, INSPECTED_PER_TICK, MESSAGE_BYTES_MAX, OWNED_FOLDERS_MAX, PIPES_WAITING_MAX, PROGRAMS_MAX,
    REAP_WAIT, REQUESTS_PER_TURN, SHUT_DOWN_MAX, TICK,
};
use crate::meter::Meter;
use crate::pool::Pool;
use crate::proc::{FileId, Proc, RawPid};
use crate::program::Program;
use crate::protocol::{Capture, Event, OutputPipes, ProgramId, Request, Start, Step, Stop, decode, encode};
use crate::report::{Failure, REPORT_BYTES, Report};
use crate::sys::{self, Change};
use crate::tree;
use crate::wire::{self, Packet};

/// The whole life of a cage process: serves the worker at the other end of `socket` until it is gone, kills what still
/// runs, removes the owned folders. The caller should exit right after. Changes this process for good (signals,
/// session, name, subreaper), so it must have been started for this only.
///
/// # Errors
/// `Setup`, `ManyThreads`: nothing was started. `Socket`, `TooLarge`, `Decode`, `TooManyFolders`: the worker spoke nonsense
/// and was treated as gone. `Folder`: an owned folder could not be removed.
pub fn run_cage(socket: OwnedFd) -> Result<(), CageError> {
    let mut cage = Inside::set_up(socket)?;
    let served = cage.serve();
    cage.empty();
    served.and(cage.remove_folders())
}

/// The cage's state.
struct Inside {
    socket: OwnedFd,
    signals: OwnedFd,
    proc: Proc,
    meter: Meter,
    own: RawPid,
    programs: BTreeMap<ProgramId, Program>,
    idle: Pool,
    owned: BTreeSet<PathBuf>,
    events: VecDeque<Event>,
    /// How many of the events hold pipes.
    pipes_waiting: usize,
    /// For one request or report.
    buffer: Vec<u8>,
    /// When to look at the programs again; `None` while there are none.
    next_tick: Option<Moment>,
    /// The program that gets its look first.
    tick_from: ProgramId,
}

/// What a wait found.
#[derive(Default)]
struct Ready {
    socket: bool,
    hung_up: bool,
    signals: bool,
    programs: Vec<ProgramId>,
}

/// Whether the worker is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    There,
    Gone,
}

impl Inside {
    fn set_up(socket: OwnedFd) -> Result<Inside, CageError> {
        let setup = |what| move |error: Errno| CageError::Setup { what, source: error.into() };
        let open_proc = || Proc::open().map_err(|source| CageError::Setup { what: "open /proc", source });
        let own = rustix::process::getpid();
        let threads = open_proc()?.threads(own.as_raw_pid(), usize::MAX).len();
        if threads != 1 {
            return Err(CageError::ManyThreads { threads });
        }
        rustix::thread::set_name(c"essaim-cage").map_err(setup("set its name"))?;
        let socket = keep_above_stdio(socket).map_err(setup("keep its streams"))?;
        // Ctrl+C in the worker's terminal is the worker's business. The only error is that we lead a session already.
        let _ = rustix::process::setsid();
        sys::ignore_signals(&[libc::SIGINT, libc::SIGHUP, libc::SIGPIPE]);
        sys::restore_child_signal();
        sys::block_signals();
        rustix::process::set_child_subreaper(Some(own)).map_err(setup("become a subreaper"))?;
        let signals = sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM])
            .map_err(|source| CageError::Setup { what: "make a signal descriptor", source })?;
        Ok(Inside {
            socket,
            signals,
            proc: open_proc()?,
            meter: Meter::new(),
            own: own.as_raw_pid(),
            programs: BTreeMap::new(),
            idle: Pool::default(),
            owned: BTreeSet::new(),
            events: VecDeque::new(),
            pipes_waiting: 0,
            buffer: vec![0; MESSAGE_BYTES_MAX],
            next_tick: None,
            tick_from: 0,
        })
    }

    /// Serves until the worker is gone.
    fn serve(&mut self) -> Result<(), CageError> {
        loop {
            let ready = self.wait(true)?;
            if ready.signals && self.take_signals() {
                return Ok(());
            }
            self.watch(&ready);
            if ready.socket && self.take_requests(ready.hung_up)? == Worker::Gone {
                return Ok(());
            }
            self.tick(Moment::now());
            self.send_events()?;
        }
    }

    /// Kills all programs and waits until no child is left, within limits.
    fn empty(&mut self) {
        let give_up_at = Moment::now().plus(SHUT_DOWN_MAX);
        let ids: Vec<ProgramId> = self.programs.keys().copied().collect();
        for id in ids {
            self.stop(id, Stop::Kill);
        }
        while !self.programs.is_empty() && Moment::now() < give_up_at {
            // Nothing but memory can fail in poll; then we go round without waiting, which is no worse.
            let ready = self.wait(false).unwrap_or_default();
            if ready.signals {
                self.take_signals();
            }
            self.watch(&ready);
            self.events.clear();
            self.pipes_waiting = 0;
        }
        // Inits that wait leave when their socket ends. Nothing of ours is to be there when we are gone.
        self.idle = Pool::default();
        while Moment::now() < give_up_at {
            match sys::wait_any(false) {
                Ok(Some(_)) => {}
                Err(Errno::CHILD) => return,
                _ => {
                    sys::wait_signal(&[libc::SIGCHLD], Some(REAP_WAIT));
                }
            }
        }
    }

    fn remove_folders(&mut self) -> Result<(), CageError> {
        let mut outcome = Ok(());
        for path in std::mem::take(&mut self.owned) {
            if let Err(source) = remove_tree(&path) {
                outcome = outcome.and(Err(CageError::Folder { path, source }));
            }
        }
        outcome
    }

    /// Everything about programs that is not a request: reports, deaths, deadlines, last words.
    fn watch(&mut self, ready: &Ready) {
        for id in &ready.programs {
            self.hear(*id);
        }
        if ready.signals {
            self.reap();
        }
        let now = Moment::now();
        self.enforce(now);
        self.conclude(now);
        self.idle.expire(now);
    }

    /// Waits for something to do. `with_socket`: requests and room for events count as something.
    fn wait(&self, with_socket: bool) -> Result<Ready, CageError> {
        let mut fds = Vec::with_capacity(self.programs.len() + 2);
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        let mut ids = Vec::with_capacity(self.programs.len());
        let may_hear = self.pipes_waiting < PIPES_WAITING_MAX;
        for program in self.programs.values().filter(|program| may_hear && !program.is_init_gone()) {
            fds.push(PollFd::new(&program.init.socket, PollFlags::IN));
            ids.push(program.id);
        }
        if with_socket {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, self.events.len() < EVENTS_WAITING_MAX);
            wanted.set(PollFlags::OUT, !self.events.is_empty());
            fds.push(PollFd::new(&self.socket, wanted));
        }
        match rustix::event::poll(&mut fds, self.timeout(Moment::now()).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(CageError::Setup { what: "poll", source: error.into() }),
        }
        let socket =
            if with_socket { fds.last().map_or(PollFlags::empty(), PollFd::revents) } else { PollFlags::empty() };
        let programs = fds[1..].iter().zip(ids).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, id)| id);
        Ok(Ready {
            socket: !socket.difference(PollFlags::OUT).is_empty(),
            hung_up: socket.intersects(PollFlags::HUP | PollFlags::ERR),
            signals: !fds[0].revents().is_empty(),
            programs: programs.collect(),
        })
    }

    /// Time until the next deadline, tick or round of killing. `None`: nothing is due ever.
    fn timeout(&self, now: Moment) -> Option<Timespec> {
        let wakes = self.programs.values().filter_map(Program::next_wake);
        let wakes = wakes.chain(self.next_tick).chain(self.idle.next_expiry());
        let mut wait = wakes.min().map(|wake| wake.since(now));
        if self.programs.values().any(Program::is_lost) {
            wait = Some(wait.map_or(REAP_WAIT, |wait| wait.min(REAP_WAIT)));
        }
        // Never wake before the moment: rounding is the kernel's, and it rounds up.
        wait.map(|wait| Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }))
    }

    /// Empties the signal descriptor. Returns whether we are asked to leave.
    fn take_signals(&mut self) -> bool {
        let mut leave = false;
        let mut record = [0; sys::SIGNAL_RECORD_BYTES];
        while let Ok(count) = rustix::io::read(&self.signals, &mut record) {
            let number = record.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            leave |= count > 0 && number == Some(libc::SIGTERM.cast_unsigned());
        }
        leave
    }

    /// Reads what an init has reported, up to its last word of this program.
    fn hear(&mut self, id: ProgramId) {
        let Some(program) = self.programs.get_mut(&id) else { return };
        while !program.is_told() {
            let packet = wire::receive(program.init.socket.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT);
            // An error: there is no report, or the init is gone, which SIGCHLD tells.
            let Ok(Packet::Whole(count, pipes)) = packet else { return };
            let Some((record, output)) = self.buffer[..count].split_first_chunk::<REPORT_BYTES>() else { return };
            let Some(report) = Report::from_bytes(record) else { return };
            self.events.extend(program.hear(report, output));
            if !pipes.is_empty() {
                self.events.push_back(Event::Output { id, pipes: OutputPipes::new(pipes) });
                self.pipes_waiting += 1;
            }
        }
    }

    /// Takes all children that ended, inits and orphans.
    fn reap(&mut self) {
        while let Ok(Some(child)) = sys::wait_any(true) {
            let found = self.programs.values_mut().find(|program| is_init(program, child.pid));
            if child.change == Change::Stopped {
                // Nobody stops an init but its own program. It must go on, or the program's end would not be noticed.
                // One that waits would not begin. Orphans are killed, stopped or not.
                let waiting = self.idle.pids().find(|pid| pid.as_raw_pid() == child.pid);
                if let Some(init) = found.map(|program| program.init.pid).or(waiting) {
                    let _ = rustix::process::kill_process(init, Signal::CONT);
                }
                continue;
            }
            let Some(program) = found else {
                self.idle.forget(child.pid);
                continue;
            };
            let id = program.id;
            program.init_gone(Moment::now());
            self.hear(id);
        }
    }

    /// Stops programs that are over their wall limit; kills the trees of inits that did not manage to.
    fn enforce(&mut self, now: Moment) {
        let overdue = self.programs.values().filter(|program| program.is_overdue(now));
        let overdue: Vec<ProgramId> = overdue.map(|program| program.id).collect();
        for id in overdue {
            self.stop(id, Stop::Wall);
        }
        for program in self.programs.values_mut() {
            if program.must_force(now) {
                tree::kill_below(&self.proc, program.init.pid.as_raw_pid(), &BTreeSet::new());
                tree::kill_own_child(program.init.pid);
            }
        }
    }

    /// Tells the init of a program to kill its tree.
    fn stop(&mut self, id: ProgramId, why: Stop) {
        let now = Moment::now();
        if let Some(program) = self.programs.get_mut(&id)
            && program.stop(why, now)
        {
            // Init is our child and not reaped yet, so the number is its own.
            let _ = rustix::process::kill_process(program.init.pid, Signal::TERM);
        }
    }

    /// Says the last word of programs that are over. Orphans of lost ones are killed first; since they are nobody's in
    /// particular any more, all lost programs wait for all orphans.
    fn conclude(&mut self, now: Moment) {
        let any_lost = self.programs.values().any(Program::is_lost);
        let orphans_gone = any_lost && self.kill_orphans();
        let is_over = |program: &&Program| match program.is_told() {
            true => program.is_init_gone() || !program.is_forced(),
            false => program.is_lost() && orphans_gone,
        };
        let over: Vec<ProgramId> = self.programs.values().filter(is_over).map(|program| program.id).collect();
        for id in over {
            let Some(mut program) = self.programs.remove(&id) else { continue };
            self.events.push_back(program.last_word());
            if !program.is_init_gone() {
                self.idle.give(program.init, now);
            }
        }
        if self.programs.is_empty() {
            self.next_tick = None;
        }
    }

    /// One round of killing our children that are no inits. Returns whether there are none.
    fn kill_orphans(&mut self) -> bool {
        let inits = self.programs.values().filter(|program| !program.is_init_gone());
        let inits = inits.map(|program| program.init.pid).chain(self.idle.pids());
        let inits: BTreeSet<RawPid> = inits.map(Pid::as_raw_pid).collect();
        tree::kill_below(&self.proc, self.own, &inits);
        self.reap();
        // A child leaves this list only by being reaped, and only we reap: the list is exact. An init that was reaped
        // just now is not in it any more.
        self.proc.children(self.own).iter().all(|child| inits.contains(child))
    }

    /// Looks at the programs if it is time to.
    fn tick(&mut self, now: Moment) {
        if self.next_tick.is_none_or(|tick| now < tick) {
            return;
        }
        self.next_tick = Some(now.plus(TICK));
        let after = self.programs.range(self.tick_from..).map(|(id, _)| *id);
        let before = self.programs.range(..self.tick_from).map(|(id, _)| *id);
        let order: Vec<ProgramId> = after.chain(before).collect();
        let mut looks_left = INSPECTED_PER_TICK;
        for id in order {
            // A worker that does not read gets no news; what it needs to know comes with the end.
            if looks_left == 0 || self.events.len() >= EVENTS_WAITING_MAX {
                self.tick_from = id;
                return;
            }
            let Some(program) = self.programs.get_mut(&id).filter(|program| program.is_running()) else { continue };
            let reading = self.meter.read(&self.proc, program.init.pid.as_raw_pid(), program.stdin);
            looks_left = looks_left.saturating_sub(reading.looks);
            self.events.extend(program.note(reading, now));
        }
    }

    /// Takes some requests; all that there are if the worker hung up.
    fn take_requests(&mut self, hung_up: bool) -> Result<Worker, CageError> {
        let mut taken = 0;
        while hung_up || (taken < REQUESTS_PER_TURN && self.events.len() < EVENTS_WAITING_MAX) {
            let packet = match wire::receive(self.socket.as_fd(), &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok(packet) => packet,
                Err(Errno::AGAIN) => return Ok(Worker::There),
                Err(error) => return Err(CageError::Socket(error.into())),
            };
            match packet {
                Packet::End => return Ok(Worker::Gone),
                Packet::TooLarge => {
                    return Err(CageError::TooLarge { bytes: MESSAGE_BYTES_MAX + 1, bytes_max: MESSAGE_BYTES_MAX });
                }
                Packet::Whole(count, fds) => {
                    let request = decode(&self.buffer[..count], MESSAGE_BYTES_MAX)?;
                    self.take(request, fds, hung_up)?;
                }
            }
            taken += 1;
        }
        Ok(Worker::There)
    }

    fn take(&mut self, request: Request<'_>, fds: Vec<OwnedFd>, hung_up: bool) -> Result<(), CageError> {
        match request {
            // Nobody would read its output; it would only be killed again.
            Request::Start { .. } if hung_up => {}
            Request::Start { start, capture } => {
                let id = start.id;
                if let Err(failure) = self.start(&start, capture, &fds) {
                    let step = failure.step.word().to_owned();
                    self.events.push_back(Event::StartFailed { id, step, errno: failure.errno });
                }
            }
            Request::Kill { id } => self.stop(id, Stop::Kill),
            Request::Own { path } => {
                // The worker's end counts too; more than that is a bug there, and forgetting a folder would hide it.
                if self.owned.len() >= OWNED_FOLDERS_MAX {
                    return Err(CageError::TooManyFolders { folders_max: OWNED_FOLDERS_MAX });
                }
                self.owned.insert(path);
            }
            Request::Disown { path } => {
                self.owned.remove(&path);
            }
        }
        Ok(())
    }

    fn start(&mut self, start: &Start, capture: Option<Capture>, fds: &[OwnedFd]) -> Result<(), Failure> {
        if self.programs.len() >= PROGRAMS_MAX {
            return Err(Failure::new(Step::TooMany, Errno::AGAIN));
        }
        if self.programs.contains_key(&start.id) {
            return Err(Failure::new(Step::IdInUse, Errno::EXIST));
        }
        let block = launch::block(start, capture)?;
        let wall_limit = start.wall_limit_ms.map(Duration::from_millis);
        let began = Moment::now();
        let init = self.give_to_init(&block, fds)?;
        let mut program = Program::new(start.id, init, capture, began, wall_limit);
        program.stdin = fds.first().and_then(|stdin| FileId::of_stream(stdin.as_fd()));
        self.programs.insert(start.id, program);
        self.next_tick.get_or_insert(began.plus(TICK));
        Ok(())
    }

    /// Gives a block and its streams to an init that waits, or to a new one.
    fn give_to_init(&mut self, block: &[u8], streams: &[OwnedFd]) -> Result<Handle, Failure> {
        let fds: Vec<_> = streams.iter().map(OwnedFd::as_fd).collect();
        let give = |init: &Handle| wire::send(init.socket.as_fd(), &[block], &fds, SendFlags::DONTWAIT);
        while let Some(init) = self.idle.take() {
            if give(&init).is_ok() {
                return Ok(init);
            }
            // Somebody has killed it; its death is still to be reaped.
        }
        let init = init::spawn(&self.proc)?;
        give(&init).map_err(|error| Failure::new(Step::Init, error))?;
        Ok(init)
    }

    /// Sends what the socket takes.
    fn send_events(&mut self) -> Result<(), CageError> {
        while let Some(event) = self.events.front() {
            let fds: Vec<_> = match event {
                Event::Output { pipes, .. } => pipes.fds().map(OwnedFd::as_fd).collect(),
                _ => Vec::new(),
            };
            match wire::send(self.socket.as_fd(), &[&encode(event)?], &fds, SendFlags::DONTWAIT) {
                Ok(()) => self.pipes_waiting -= usize::from(!fds.is_empty()),
                Err(Errno::AGAIN) => return Ok(()),
                // The worker reads no more. What it sent before is still to be taken: poll will say that it hung up.
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.events.clear();
                    self.pipes_waiting = 0;
                    return Ok(());
                }
                Err(error) => return Err(CageError::Socket(error.into())),
            }
            self.events.pop_front();
        }
        Ok(())
    }
}

fn is_init(program: &Program, pid: RawPid) -> bool {
    !program.is_init_gone() && Pid::from_raw(pid) == Some(program.init.pid)
}

/// Sees to it that no descriptor of ours has the number of a standard stream: inits put theirs there.
fn keep_above_stdio(socket: OwnedFd) -> Result<OwnedFd, Errno> {
    let socket = match socket.as_raw_fd() {
        0..3 => rustix::io::fcntl_dupfd_cloexec(&socket, 3)?,
        _ => socket,
    };
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        if null.as_raw_fd() >= 3 {
            return Ok(socket);
        }
        let _ = null.into_raw_fd();
    }
}
